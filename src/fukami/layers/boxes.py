"""Bounding boxes as left, top, right, bottom: encoding, area, IoU, clipping and non-maximum suppression."""

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

MAX_LOG_SCALE = math.log(1000 / 16)  # limits the predicted scale, so that the exponential does not overflow
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # weights of the deltas in the second stage, as in torchvision


def encode_boxes(boxes: Tensor, references: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Encode boxes relative to references, both ``(..., 4)`` (Girshick et al. 2014, appendix C).

    The deltas are the offset of the center, divided by the reference's sides, and the logarithm of the size ratio
    (Ren et al. 2017, equation 2).
    """
    x, y, width, height = convert_to_cxcywh(references)
    to_x, to_y, to_width, to_height = convert_to_cxcywh(boxes)
    deltas = (to_x - x) / width, (to_y - y) / height, (to_width / width).log(), (to_height / height).log()
    return torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)], -1)


def decode_boxes(deltas: Tensor, references: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Decode deltas ``(..., 4)`` relative to references to boxes ``(..., 4)``; the inverse of :func:`encode_boxes`."""
    x, y, width, height = convert_to_cxcywh(references)
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.float().unbind(-1), weights, strict=True))
    half_width = 0.5 * dw.clamp(max=MAX_LOG_SCALE).exp() * width
    half_height = 0.5 * dh.clamp(max=MAX_LOG_SCALE).exp() * height
    x, y = dx * width + x, dy * height + y
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def convert_to_cxcywh(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convert boxes ``(..., 4)`` to center x, center y, width and height, ``(...)`` each."""
    left, top, right, bottom = boxes.unbind(-1)
    width, height = right - left, bottom - top
    return left + 0.5 * width, top + 0.5 * height, width, height


def compute_area(boxes: Tensor) -> Tensor:
    """Compute the area of boxes ``(..., 4)``, ``(...)``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def compute_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the pairwise intersection area of boxes ``(..., M, 4)`` and ``(..., A, 4)``, ``(..., M, A)``."""
    one, two = boxes.unsqueeze(-2), others.unsqueeze(-3)
    width = torch.minimum(one[..., 2], two[..., 2]).sub_(torch.maximum(one[..., 0], two[..., 0])).clamp_(min=0)
    height = torch.minimum(one[..., 3], two[..., 3]).sub_(torch.maximum(one[..., 1], two[..., 1])).clamp_(min=0)
    return width.mul_(height)


def compute_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the pairwise IoU of boxes ``(..., M, 4)`` and ``(..., A, 4)``, ``(..., M, A)``; 0 for empty boxes."""
    intersection = compute_intersection(boxes, others)
    union = (compute_area(boxes).unsqueeze(-1) + compute_area(others).unsqueeze(-2)).sub_(intersection)
    return intersection.div_(union.clamp_(min=1e-6))


def clip_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip boxes ``(N, ..., 4)`` to the images, whose heights and widths are ``(N, 2)``."""
    height, width = image_sizes.view(-1, *[1] * (boxes.ndim - 2), 2).unbind(-1)
    limits = torch.stack([width, height, width, height], -1)
    return boxes.clamp(min=0).minimum(limits)


def apply_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Apply non-maximum suppression to boxes ``(n, 4)``, separately for each of the ``groups`` ``(n,)``.

    Returns:
        Indices of the boxes kept, by descending score. A box is removed if its IoU with a better one of its group
        exceeds ``threshold``.
    """
    if torch.compiler.is_exporting():  # torchvision chooses its algorithm by the number of boxes
        offset = torch.cat([boxes.flatten(), boxes.new_ones(1)]).max() + 1  # separates the groups
        keep: Tensor = nms(boxes + (groups * offset).unsqueeze(1), scores, threshold)
    else:
        keep = batched_nms(boxes, scores, groups, threshold)
    return keep
