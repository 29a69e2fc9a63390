"""Augmentation in batches on the device: pure functions of the pictures and of uniform random numbers."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation(Protocol):
    """Changes pictures ``(N, C, H, W)`` by uniform draws ``(N, draws)`` in [0, 1)."""

    @property
    def draws(self) -> int:
        """Random numbers needed for each picture."""

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        """The changed pictures, float, in the range of the given ones."""


@dataclass(frozen=True)
class Affine:
    """Each picture shifted, rotated, scaled and sheared at random, by bilinear interpolation; what comes in is 0.

    Own code because torchvision's transforms draw one transformation for a whole batch.

    Args:
        shift: at most this many pixels in each direction.
        rotate: at most this many degrees either way.
        scale: between ``1 - scale`` and ``1 + scale`` times the size, for width and height apart.
        shear: at most this many pixels along x for each pixel along y.
    """

    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    draws: int = 6

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        """The pictures ``(N, C, H, W)`` moved by ``draws`` ``(N, 6)``."""
        pictures = pictures.float()
        height, width = pictures.shape[-2:]
        turn, stretch_x, stretch_y, slant, right, down = (2 * draws - 1).unbind(1)
        angle = turn * math.radians(self.rotate)
        cos, sin = angle.cos(), angle.sin()
        stretch_x, stretch_y, slant = (
            1 / (1 + self.scale * stretch_x),
            1 / (1 + self.scale * stretch_y),
            self.shear * slant,
        )
        # where each output pixel comes from: rotation, then shear, then stretch, in units of half a picture
        rows = [
            torch.stack(
                [stretch_x * (cos + slant * sin), stretch_x * (slant * cos - sin), right * 2 * self.shift / width]
            ),
            torch.stack([stretch_y * sin, stretch_y * cos, down * 2 * self.shift / height]),
        ]
        theta = torch.stack(rows).permute(2, 0, 1)
        grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
