"""Anchors: boxes of a few sizes and shapes at every place of a feature map (Ren et al. 2015, section 3.1.1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CellAnchors = Sequence[tuple[float, float, float, float]]
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width


def compute_cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float] = ASPECT_RATIOS
) -> list[tuple[float, float, float, float]]:
    """The anchors about one place, of each scale in each shape, rounded to whole pixels as the reference codes do.

    Args:
        sizes: sides in pixels of a square of the same area.
        aspect_ratios: height over width.
    """
    halves = [
        (scale / math.sqrt(ratio) / 2, scale * math.sqrt(ratio) / 2) for ratio in aspect_ratios for scale in sizes
    ]
    return [(-round(across), -round(down), round(across), round(down)) for across, down in halves]


def compute_anchors(
    cell_anchors: Sequence[CellAnchors], feature_maps: Sequence[Tensor], image_size: tuple[int, int]
) -> Tensor:
    """All anchors of the feature maps, place by place and map after map, ``(A, 4)`` in pixels of the frame.

    Args:
        cell_anchors: the anchors about one place of each map, as :func:`compute_cell_anchors` gives them.
        feature_maps: ``(N, C, H, W)`` each.
        image_size: height and width of the images that they are of.
    """
    every = []
    for cell, features in zip(cell_anchors, feature_maps, strict=True):
        about = torch.tensor(cell, dtype=torch.float32, device=features.device)
        height, width = features.shape[-2:]
        down = torch.arange(height, device=about.device) * (image_size[0] // height)
        right = torch.arange(width, device=about.device) * (image_size[1] // width)
        y, x = torch.meshgrid(down, right, indexing="ij")
        every.append((torch.stack([x, y, x, y], -1).view(-1, 1, 4) + about).view(-1, 4))
    return torch.cat(every)
