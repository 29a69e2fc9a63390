"""The first convolution of a network, on an image's one or three channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNEL_ALIGNMENT = 8  # channels that the tensor cores' 16-bit kernels read at once


class StemConv2d(nn.Conv2d):
    """``nn.Conv2d`` that adds zero channels up to eight in mixed precision on CUDA; the result is the same.

    Without them cuDNN falls back to a kernel that takes a third of DeepConvNet's whole step (H100, batch 500).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        # torch.fx keeps a layer of torch.nn whole and knows it by this name alone; the name of the class, which
        # pickle and torch.compile read, stays ours
        self.__module__ = "torch.nn"

    def forward(self, input: Tensor) -> Tensor:
        """Scores of ``(N, C, H, W)``, as ``nn.Conv2d`` gives them."""
        missing = CHANNEL_ALIGNMENT - self.in_channels
        if missing <= 0 or not (input.is_cuda and torch.is_autocast_enabled("cuda")):
            return super().forward(input)
        zeros = (0, 0, 0, 0, 0, missing)
        wide = F.pad(input.to(torch.get_autocast_dtype("cuda")), zeros).contiguous(memory_format=torch.channels_last)
        return F.conv2d(wide, F.pad(self.weight, zeros), self.bias, self.stride, self.padding, self.dilation)
