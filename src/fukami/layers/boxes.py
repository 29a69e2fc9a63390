"""Boxes as left, top, right, bottom: how they are coded against one another, overlap, and are cut and chosen."""

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

MAX_LOG_SCALE = math.log(1000 / 16)  # a box grows at most so much from its reference, lest the exponential overflow
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # how much more finely the second stage codes a box than the first


def encode_boxes(boxes: Tensor, references: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """What leads from the references to the boxes, both ``(..., 4)``: shifts by their sides, and logarithms of scales.

    Girshick et al. 2014, appendix C; Ren et al. 2015, equation 2.
    """
    x, y, width, height = convert_to_cxcywh(references)
    to_x, to_y, to_width, to_height = convert_to_cxcywh(boxes)
    deltas = (to_x - x) / width, (to_y - y) / height, (to_width / width).log(), (to_height / height).log()
    return torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)], -1)


def decode_boxes(deltas: Tensor, references: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The boxes ``(..., 4)`` to which the deltas ``(..., 4)`` lead from the references; undoes :func:`encode_boxes`."""
    x, y, width, height = convert_to_cxcywh(references)
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.float().unbind(-1), weights, strict=True))
    half_width = 0.5 * dw.clamp(max=MAX_LOG_SCALE).exp() * width
    half_height = 0.5 * dh.clamp(max=MAX_LOG_SCALE).exp() * height
    x, y = dx * width + x, dy * height + y
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def convert_to_cxcywh(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres and sides, each ``(...)``."""
    left, top, right, bottom = boxes.unbind(-1)
    width, height = right - left, bottom - top
    return left + 0.5 * width, top + 0.5 * height, width, height


def compute_area(boxes: Tensor) -> Tensor:
    """Of boxes ``(..., 4)``, ``(...)``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def compute_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """The areas that boxes ``(..., M, 4)`` share with others ``(..., A, 4)``, ``(..., M, A)``."""
    one, two = boxes.unsqueeze(-2), others.unsqueeze(-3)
    width = torch.minimum(one[..., 2], two[..., 2]).sub_(torch.maximum(one[..., 0], two[..., 0])).clamp_(min=0)
    height = torch.minimum(one[..., 3], two[..., 3]).sub_(torch.maximum(one[..., 1], two[..., 1])).clamp_(min=0)
    return width.mul_(height)


def compute_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes ``(..., M, 4)`` and others ``(..., A, 4)``, ``(..., M, A)``; 0 without area."""
    shared = compute_intersection(boxes, others)
    union = (compute_area(boxes).unsqueeze(-1) + compute_area(others).unsqueeze(-2)).sub_(shared)
    return shared.div_(union.clamp_(min=1e-6))


def clip_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """The boxes ``(N, ..., 4)`` cut at the borders of their images, whose heights and widths are ``(N, 2)``."""
    height, width = image_sizes.view(-1, *[1] * (boxes.ndim - 2), 2).unbind(-1)
    most = torch.stack([width, height, width, height], -1)
    return boxes.clamp(min=0).minimum(most)


def apply_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which of the boxes ``(n, 4)`` stay, best first, where a better one of its group hides each above ``threshold``.

    Non-maximum suppression, apart for each of the ``groups`` ``(n,)``.
    """
    if torch.compiler.is_exporting():  # torchvision's choice between two ways depends on how many boxes there are
        far = torch.cat([boxes.flatten(), boxes.new_ones(1)]).max() + 1  # no group reaches into another
        return nms(boxes + (groups * far).unsqueeze(1), scores, threshold)  # type: ignore[no-any-return]
    keep: Tensor = batched_nms(boxes, scores, groups, threshold)
    return keep
