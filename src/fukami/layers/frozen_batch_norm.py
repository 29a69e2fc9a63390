"""Frozen batch normalization, for detectors, whose batches are too small for batch statistics."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-5  # added to the variance, as in torch


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with constant statistics and parameters ``(channels,)``, named as in ``nn.BatchNorm2d``.

    It is the identity if it is folded into a :class:`FoldedConv2d` before it.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.folded = False

    def compute_scale_and_offset(self) -> tuple[Tensor, Tensor]:
        """Return scale and offset, ``(channels,)`` each."""
        scale = self.weight.float() * (self.running_var.float() + EPSILON).rsqrt()
        return scale, self.bias.float() - self.running_mean.float() * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalize maps ``(N, channels, H, W)``."""
        if self.folded:
            return x
        scale, offset = (value.to(x.dtype).view(1, -1, 1, 1) for value in self.compute_scale_and_offset())
        return x * scale + offset

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # only nn.BatchNorm2d counts batches
        super()._load_from_state_dict(state_dict, prefix, *args)


class FoldedConv2d(nn.Conv2d):
    """Convolution without bias with the frozen batch normalization after it folded in, which saves one memory pass."""

    def __init__(self, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        height, width = convolution.kernel_size
        super().__init__(
            convolution.in_channels, convolution.out_channels, (height, width), groups=convolution.groups, bias=False
        )
        self.stride, self.padding, self.dilation = convolution.stride, convolution.padding, convolution.dilation
        self.weight = convolution.weight
        self.norms = [norm]  # a list, so that it is not registered twice
        norm.folded = True

    def forward(self, input: Tensor) -> Tensor:
        """Convolve and normalize ``(N, C, H, W)``."""
        scale, offset = self.norms[0].compute_scale_and_offset()
        dtype = self.weight.dtype
        weight = (self.weight * scale.view(-1, 1, 1, 1)).to(dtype)
        return F.conv2d(input, weight, offset.to(dtype), self.stride, self.padding, self.dilation, self.groups)


def freeze_batch_norm(network: nn.Module) -> nn.Module:
    """Freeze all batch normalizations of a network in place and fold them into the convolutions right before them."""
    for module in list(network.modules()):
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = FrozenBatchNorm2d(child.num_features)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
                if previous is not None and type(previous[1]) is nn.Conv2d and previous[1].bias is None:
                    setattr(module, previous[0], FoldedConv2d(previous[1], norm))
            previous = name, child
    return network
