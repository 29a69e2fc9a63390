"""Batch normalisation whose statistics stay as they are, as detectors use it: their batches are small."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-5  # added to the variance, as torch does


class FrozenBatchNorm2d(nn.Module):
    """``(x - mean) / deviation * weight + bias`` of constants ``(channels,)``, named as ``nn.BatchNorm2d`` names them.

    Does nothing itself where a :class:`FoldedConv2d` before it has done so.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.folded = False

    def compute_scale_and_offset(self) -> tuple[Tensor, Tensor]:
        """Scale and offset, ``(channels,)``."""
        names = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (getattr(self, name).float() for name in names)
        scale = weight * (variance + EPSILON).rsqrt()
        return scale, bias - mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """``(N, channels, H, W)``."""
        if self.folded:
            return x
        scale, offset = (value.to(x.dtype).view(1, -1, 1, 1) for value in self.compute_scale_and_offset())
        return x * scale + offset

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of a batch normalisation, which counts
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FoldedConv2d(nn.Conv2d):
    """A convolution without bias and the frozen normalisation after it, in one: the maps are passed over once less."""

    def __init__(self, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            bias=False,
        )
        self.weight = convolution.weight
        self.norms = [norm]  # in a list, since it is a part of the network elsewhere
        norm.folded = True

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)``, convolved and normalised."""
        scale, offset = self.norms[0].compute_scale_and_offset()
        kind = self.weight.dtype
        weight = (self.weight * scale.view(-1, 1, 1, 1)).to(kind)
        return F.conv2d(input, weight, offset.to(kind), self.stride, self.padding, self.dilation, self.groups)


def freeze_batch_norm(network: nn.Module) -> nn.Module:
    """The network with every batch normalisation frozen, in place; convolutions right before them take them over."""
    for module in list(network.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = FrozenBatchNorm2d(child.num_features)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
                if before is not None and type(before[1]) is nn.Conv2d and before[1].bias is None:
                    setattr(module, before[0], FoldedConv2d(before[1], norm))
            before = name, child
    return network
