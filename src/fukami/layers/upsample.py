"""Maps of scores brought back to the size of the image."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Scores = Tensor | tuple[Tensor, ...]


class BilinearConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that begins as bilinear interpolation and may learn another (Long et al. 2015, 3.3).

    Each channel has a filter of its own: ``(N, channels, H, W)`` to ``(N, channels, factor H, factor W)``.
    """

    def __init__(self, channels: int, scale_factor: int) -> None:
        super().__init__(
            channels,
            channels,
            2 * scale_factor,
            stride=scale_factor,
            padding=scale_factor // 2,
            groups=channels,
            bias=False,
        )
        self.scale_factor = scale_factor
        rise = (torch.arange(2 * scale_factor) + 0.5) / scale_factor
        line = 1 - (rise - 1).abs()
        self.weight = nn.Parameter(line.outer(line).expand_as(self.weight).clone())

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(N, channels, H, W)`` to ``(N, channels, factor H, factor W)``.

        Computed in float32: for filters of one channel each, torch is many times slower with halves on a CPU.
        """
        exact = nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False)
        with exact:
            wide = F.conv_transpose2d(
                input.float(), self.weight.float(), None, self.scale_factor, self.scale_factor // 2, groups=self.groups
            )
        return wide.to(input.dtype)


def interpolate_bilinear(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps ``(N, C, h, w)`` at another size, bilinear, as ``F.interpolate`` gives them without aligned corners.

    Where they are trained, by products with two matrices: the gradient of torch's own is summed in any order on a GPU.
    """
    if not maps.requires_grad:
        return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    down, across = (
        _compute_interpolation_matrix(inner, outer, maps)
        for inner, outer in zip(maps.shape[-2:], (height, width), strict=True)
    )
    return down @ maps @ across.T


def _compute_interpolation_matrix(inner: int, outer: int, like: Tensor) -> Tensor:
    """What each of ``outer`` places takes of each of ``inner``, ``(outer, inner)``."""
    place = ((torch.arange(outer, device=like.device) + 0.5) * (inner / outer) - 0.5).clamp(0, inner - 1)
    distance = (place.unsqueeze(1) - torch.arange(inner, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


def apply_with_padding(compute_scores: Callable[[Tensor], Scores], images: Tensor, multiple: int) -> Scores:
    """The scores of images ``(N, C, H, W)`` of any size, by a network that takes multiples of so many pixels.

    Zeros, the mean colour of normalised images, are added to the right and below, and what is said of them cut off.
    """
    height, width = images.shape[-2:]
    found = compute_scores(F.pad(images, (0, -width % multiple, 0, -height % multiple)))
    if isinstance(found, tuple):
        return tuple(each[..., :height, :width] for each in found)
    return found[..., :height, :width]
