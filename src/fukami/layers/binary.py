"""Binary layers: signs of weights and activations, trained through latent full-precision weights.

Courbariaux et al., "Binarized Neural Networks" (2016), sections 1.1 to 1.5; Rastegari et al., "XNOR-Net" (2016),
section 3.1; Liu et al., "ReActNet" (2020), section 4.2. The bit-packed layers are in
:mod:`fukami.quantization.binary_layers`.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.layers.autograd import AutogradContext

GRADIENT_BOUND = 1.0000001  # slightly above 1: latent weights clamped to 1 must still receive a gradient


class _StraightThroughSign(torch.autograd.Function):
    """Sign with a straight-through gradient: 1 on [-1, 1] and 0 elsewhere, as for ``hardtanh``."""

    apply: ClassVar[Callable[[Tensor], Tensor]]

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: AutogradContext, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        x_gradient: Tensor = torch.ops.aten.hardtanh_backward(gradient, x, -GRADIENT_BOUND, GRADIENT_BOUND)
        return x_gradient


def binarize(x: Tensor) -> Tensor:
    """Return +1 where ``x`` >= 0, else -1, with a clipped straight-through gradient (BNN, equation 4)."""
    return _StraightThroughSign.apply(x)


class Sign(nn.Module):
    """Sign of activations ``(N, C, ...)``.

    Args:
        channels: number of channels with a learned threshold each (ReActNet, equation 3); 0: threshold 0, not learned.
    """

    def __init__(self, channels: int = 0) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(channels)) if channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Return -1 or +1 in the shape of ``x``."""
        if self.threshold is not None:
            x = x - self.threshold.view(1, -1, *[1] * (x.ndim - 2))
        return binarize(x)


class BinaryConv2d(nn.Conv2d):
    """Convolution with binary weights, zero padding and no bias.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as for ``nn.Conv2d``.
        scaling_factors: multiply each output channel by the mean absolute value of its latent weights (XNOR-Net,
            equation 6). Input scaling, which matters much less (XNOR-Net), is left to batch normalization.
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
        """Convolve signs ``(N, inputs, H, W)``; the outputs are integers, multiplied by the scaling factors if any."""
        x = F.conv2d(x, binarize(self.weight), None, self.stride, self.padding)
        return x * compute_scaling_factors(self).view(-1, 1, 1) if self.scaling_factors else x


class BinaryLinear(nn.Linear):
    """Fully connected layer with binary weights and no bias; ``scaling_factors`` as for :class:`BinaryConv2d`."""

    def __init__(self, in_features: int, out_features: int, *, scaling_factors: bool = False) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scaling_factors = scaling_factors

    def forward(self, x: Tensor) -> Tensor:
        """Multiply signs ``(N, inputs)``; the outputs are integers, multiplied by the scaling factors if any."""
        x = F.linear(x, binarize(self.weight))
        return x * compute_scaling_factors(self) if self.scaling_factors else x


def compute_scaling_factors(layer: BinaryConv2d | BinaryLinear) -> Tensor:
    """Compute the mean absolute latent weight of each output, ``(outputs,)``."""
    return layer.weight.abs().flatten(1).mean(1)


def get_latent_weights(network: nn.Module) -> list[Tensor]:
    """Return the latent weights, which training clips to [-1, 1] (BNN, section 1.3).

    Outside this range the gradient is 0 and a weight could not change its sign again.
    """
    return [layer.weight for layer in network.modules() if isinstance(layer, BinaryConv2d | BinaryLinear)]
