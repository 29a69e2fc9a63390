"""Upsampling of score maps to the input size."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.layers.autocast import disable_autocast

Scores = Tensor | tuple[Tensor, ...]


class BilinearConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution initialized as bilinear interpolation (Long et al. 2015, section 3.3).

    It is depthwise: each channel has its own filter.
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
        positions = (torch.arange(2 * scale_factor) + 0.5) / scale_factor
        profile = 1 - (positions - 1).abs()
        self.weight = nn.Parameter(profile.outer(profile).expand_as(self.weight).clone())

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Upsample ``(N, channels, H, W)`` to ``(N, channels, factor H, factor W)``.

        Computed in float32: depthwise half-precision convolutions of torch are many times slower on the CPU.
        """
        with disable_autocast(self.weight.device):
            output = F.conv_transpose2d(
                input.float(), self.weight.float(), None, self.scale_factor, self.scale_factor // 2, groups=self.groups
            )
        return output.to(input.dtype)


def interpolate_bilinear(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize maps ``(N, C, h, w)`` bilinearly, as ``F.interpolate`` with ``align_corners=False``.

    Maps that require a gradient are multiplied by two matrices: the gradient of ``F.interpolate`` is not deterministic
    on a GPU.
    """
    if not maps.requires_grad:
        return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    row_matrix, column_matrix = (
        _compute_interpolation_matrix(input_size, output_size, maps)
        for input_size, output_size in zip(maps.shape[-2:], (height, width), strict=True)
    )
    return row_matrix @ maps @ column_matrix.T


def _compute_interpolation_matrix(input_size: int, output_size: int, like: Tensor) -> Tensor:
    """Compute the bilinear weights of the inputs for each output, ``(output_size, input_size)``."""
    positions = ((torch.arange(output_size, device=like.device) + 0.5) * (input_size / output_size) - 0.5).clamp(
        0, input_size - 1
    )
    distance = (positions.unsqueeze(1) - torch.arange(input_size, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


def apply_with_padding(compute_scores: Callable[[Tensor], Scores], images: Tensor, multiple: int) -> Scores:
    """Compute the scores of images ``(N, C, H, W)`` of any size, by a network that needs multiples of ``multiple``.

    The images are padded with 0, the mean color of normalized images, at the right and bottom; the scores are cropped.
    """
    height, width = images.shape[-2:]
    scores = compute_scores(F.pad(images, (0, -width % multiple, 0, -height % multiple)))
    if isinstance(scores, tuple):
        return tuple(output[..., :height, :width] for output in scores)
    return scores[..., :height, :width]
