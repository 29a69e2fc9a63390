"""Anchors: boxes of several sizes and aspect ratios at each feature map position (Ren et al. 2017, section 3.1.1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CellAnchors = Sequence[tuple[float, float, float, float]]
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width


def compute_cell_anchors(sizes: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Compute the anchors of one position: one for each aspect ratio and size, centered on 0.

    The coordinates are rounded to whole pixels, as in the reference implementations.

    Args:
        sizes: anchor sizes: side in pixels of the square with the same area.
    """
    half_sides = [
        (size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2) for ratio in ASPECT_RATIOS for size in sizes
    ]
    return [
        (-round(half_width), -round(half_height), round(half_width), round(half_height))
        for half_width, half_height in half_sides
    ]


def compute_anchors(
    cell_anchors: Sequence[CellAnchors], feature_maps: Sequence[Tensor], image_size: tuple[int, int]
) -> Tensor:
    """Compute the anchors of all positions of all feature maps, ``(A, 4)`` in pixels of the input image.

    Args:
        cell_anchors: for each map, the anchors of one position, as returned by :func:`compute_cell_anchors`.
        feature_maps: ``(N, C, H, W)`` each.
        image_size: height and width of the input images.
    """
    anchors = []
    for cell_boxes, features in zip(cell_anchors, feature_maps, strict=True):
        offsets = torch.tensor(cell_boxes, dtype=torch.float32, device=features.device)
        height, width = features.shape[-2:]
        rows = torch.arange(height, device=offsets.device) * (image_size[0] // height)
        columns = torch.arange(width, device=offsets.device) * (image_size[1] // width)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        anchors.append((torch.stack([x, y, x, y], -1).view(-1, 1, 4) + offsets).view(-1, 4))
    return torch.cat(anchors)
