"""Layers of one bit: signs of weights and activations, trained through latent weights of full precision.

Courbariaux et al., "Binarized Neural Networks" (2016), sections 1.1 to 1.5; Rastegari et al., "XNOR-Net" (2016),
section 3.1; Liu et al., "ReActNet" (2020), section 4.2. Their packed form is :mod:`fukami.quantization.binary_layers`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRADIENT_BOUND = (
    1.0000001  # where the gradient ends: 1 itself, where the latent weights are clamped, must still have one
)


class _StraightThroughSign(torch.autograd.Function):
    """The sign, whose gradient is taken to be 1 from -1 to 1 and 0 beyond: that of ``hardtanh``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, -GRADIENT_BOUND, GRADIENT_BOUND)  # type: ignore[no-any-return]


def binarize(x: Tensor) -> Tensor:
    """+1 where ``x`` is at least 0, else -1; straight-through, clipped gradient (BNN, equation 4)."""
    return _StraightThroughSign.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class Sign(nn.Module):
    """The sign of activations ``(N, C, ...)``.

    Args:
        channels: so many learned thresholds, one for each channel, take the place of 0 (ReActNet, equation 3); 0: none.
    """

    def __init__(self, channels: int = 0) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(channels)) if channels else None

    def forward(self, x: Tensor) -> Tensor:
        """-1 or +1, of the shape of ``x``."""
        if self.threshold is not None:
            x = x - self.threshold.view(1, -1, *[1] * (x.ndim - 2))
        return binarize(x)


class BinaryConv2d(nn.Conv2d):
    """A convolution with the signs of its weights, zeros around the image, and no bias.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as for ``nn.Conv2d``.
        scaling_factors: multiply each output channel by the mean size of its latent weights (XNOR-Net, equation 6). The
            scale of the inputs, of which the paper found that it matters much less, is left to the batch normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        scaling_factors: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.scaling_factors = scaling_factors

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers (times the scale) of signs ``(N, inputs, H, W)``."""
        x = F.conv2d(x, binarize(self.weight), None, self.stride, self.padding)
        return x * compute_scaling_factors(self).view(-1, 1, 1) if self.scaling_factors else x


class BinaryLinear(nn.Linear):
    """An affine layer with the signs of its weights, and no bias; ``scaling_factors`` as for :class:`BinaryConv2d`."""

    def __init__(self, in_features: int, out_features: int, *, scaling_factors: bool = False) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scaling_factors = scaling_factors

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers (times the scale) of signs ``(N, inputs)``."""
        x = F.linear(x, binarize(self.weight))
        return x * compute_scaling_factors(self) if self.scaling_factors else x


def compute_scaling_factors(layer: BinaryConv2d | BinaryLinear) -> Tensor:
    """The mean size of the latent weights of each output, ``(outputs,)``."""
    return layer.weight.abs().flatten(1).mean(1)


def get_latent_weights(network: nn.Module) -> list[Tensor]:
    """The latent weights, which training keeps between -1 and 1 (BNN, section 1.3): beyond, none would turn back."""
    return [layer.weight for layer in network.modules() if isinstance(layer, BinaryConv2d | BinaryLinear)]
