"""Binarized ResNet-18: binary 3×3 convolutions and full-precision shortcuts.

Liu et al., "Bi-Real Net" (ECCV 2018): each 3×3 convolution has its own shortcut, which carries the real values past
the sign. Downsampling shortcuts are 2×2 average pooling and a full-precision 1×1 convolution. The rest is table 1 of He
et al. (2016). With ``learned_thresholds`` the signs are ReActNet's (Liu et al. 2020).
"""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from fukami.layers.binary import BinaryConv2d, Sign
from fukami.layers.stem import StemConv2d


def binary_resnet18(
    num_classes: int = 1000,
    *,
    channels: int = 3,
    stem: Literal["7x7", "3x3"] = "7x7",
    scaling_factors: bool = False,
    learned_thresholds: bool = False,
) -> nn.Sequential:
    """Build binarized ResNet-18: ``(N, channels, H, W)`` to scores ``(N, classes)``. H and W: any; 224 in the paper.

    Args:
        num_classes: number of classes.
        channels: number of input channels.
        stem: first layers: ``"7x7"``, as in the paper, or ``"3x3"``, without downsampling, for small images.
        scaling_factors: scale the binary weights, as in XNOR-Net.
        learned_thresholds: learn the thresholds of the signs, as in ReActNet.

    Raises:
        ValueError: ``stem`` has another value.
    """
    if stem not in ("7x7", "3x3"):
        raise ValueError(f"stem must be '7x7' (the paper's, with a pooling) or '3x3' (for small images), not {stem!r}")
    kernel, stride, padding = (7, 2, 3) if stem == "7x7" else (3, 1, 1)
    layers: dict[str, nn.Module] = {
        "conv1": StemConv2d(channels, 64, kernel, stride=stride, padding=padding, bias=False),  # N × 64 × 112 × 112
        "bn1": nn.BatchNorm2d(64),
    }
    if stem == "7x7":
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)  # N × 64 × 56 × 56
    inputs = 64
    for stage_number, width in enumerate((64, 128, 256, 512), start=1):  # the last is N × 512 × 7 × 7
        strides = (1 if width == inputs else 2, 1, 1, 1)  # two blocks of two convolutions
        stage = []
        for stride_of_block in strides:
            stage.append(BinaryBasicBlock(inputs, width, stride_of_block, scaling_factors, learned_thresholds))
            inputs = width
        layers[f"layer{stage_number}"] = nn.Sequential(*stage)
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(512, num_classes)}
    network = nn.Sequential(OrderedDict(layers))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


class BinaryBasicBlock(nn.Module):
    """Residual block of sign, binary 3×3 convolution and batch normalization (Liu et al. 2018)."""

    def __init__(self, inputs: int, width: int, stride: int, scaling_factors: bool, learned_thresholds: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            Sign(inputs if learned_thresholds else 0),
            BinaryConv2d(inputs, width, 3, stride, padding=1, scaling_factors=scaling_factors),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Identity() if stride == 1 and inputs == width else nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True),
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``."""
        output: Tensor = self.residual(x) + self.shortcut(x)
        return output
