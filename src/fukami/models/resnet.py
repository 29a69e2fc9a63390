"""ResNet: residual networks.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Table 1, for ImageNet; the first block of
conv3, conv4 and conv5 halves the resolution:

    224×224             18          34            50            101            152
    112×112 conv1     7×7, 64, stride 2
     56×56  conv2     3×3 max pooling, stride 2
                    3×3, 64     3×3, 64      1×1, 64       1×1, 64        1×1, 64
                    3×3, 64     3×3, 64      3×3, 64       3×3, 64        3×3, 64
                                             1×1, 256      1×1, 256       1×1, 256
                      × 2         × 3          × 3           × 3            × 3
     28×28  conv3   128   × 2   128   × 4    128-512  × 4  128-512  × 4   128-512  × 8
     14×14  conv4   256   × 2   256   × 6    256-1024 × 6  256-1024 × 23  256-1024 × 36
      7×7   conv5   512   × 2   512   × 3    512-2048 × 3  512-2048 × 3   512-2048 × 3
                      average pooling, fc 1000

Section 4.2, for CIFAR, with n = 3, 5, 7, 9, 18 blocks a stage:

    32×32  3×3, 16;  n × (3×3, 16; 3×3, 16)
    16×16            n × (3×3, 32; 3×3, 32)
     8×8             n × (3×3, 64; 3×3, 64)
           average pooling, fc 10

The parameter names are torchvision's, so its published weights load directly.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from fukami.layers.stem import StemConv2d

Stem = Literal["7x7", "3x3"]
StrideIn = Literal["3x3", "1x1"]


def resnet18(num_classes: int = 1000, *, channels: int = 3, stem: Stem = "7x7") -> nn.Sequential:
    """Build ResNet-18 of table 1: ``(N, channels, H, W)`` to scores ``(N, classes)``. H and W: any; 224 in the paper.

    Args:
        num_classes: number of classes.
        channels: number of input channels.
        stem: first layers: ``"7x7"``, the paper's convolution and pooling with stride 4 in total, or ``"3x3"``, one
            convolution with stride 1 for images of 32 to 64 pixels, as is usual on CIFAR.

    Raises:
        ValueError: ``stem`` has another value.
    """
    return _build_imagenet_resnet(BasicBlock, (2, 2, 2, 2), num_classes, channels, stem)


def resnet34(num_classes: int = 1000, *, channels: int = 3, stem: Stem = "7x7") -> nn.Sequential:
    """Build ResNet-34 (He et al. 2016, table 1). The arguments are those of ``resnet18``."""
    return _build_imagenet_resnet(BasicBlock, (3, 4, 6, 3), num_classes, channels, stem)


def resnet50(
    num_classes: int = 1000, *, channels: int = 3, stem: Stem = "7x7", stride_in: StrideIn = "3x3"
) -> nn.Sequential:
    """Build ResNet-50 of table 1: ``(N, channels, H, W)`` to scores ``(N, classes)``. H and W: any; 224 in the paper.

    Args:
        num_classes, channels, stem: as for :func:`resnet18`.
        stride_in: convolution with stride 2 in a stage's first block: the first ``"1x1"``, as in the paper, or the
            ``"3x3"``, as in torchvision and its weights, which uses all input values.

    Raises:
        ValueError: ``stem`` or ``stride_in`` has another value.
    """
    return _build_imagenet_resnet(_make_bottleneck(stride_in), (3, 4, 6, 3), num_classes, channels, stem)


def resnet101(
    num_classes: int = 1000, *, channels: int = 3, stem: Stem = "7x7", stride_in: StrideIn = "3x3"
) -> nn.Sequential:
    """Build ResNet-101 (He et al. 2016, table 1). The arguments are those of ``resnet50``."""
    return _build_imagenet_resnet(_make_bottleneck(stride_in), (3, 4, 23, 3), num_classes, channels, stem)


def resnet152(
    num_classes: int = 1000, *, channels: int = 3, stem: Stem = "7x7", stride_in: StrideIn = "3x3"
) -> nn.Sequential:
    """Build ResNet-152 (He et al. 2016, table 1). The arguments are those of ``resnet50``."""
    return _build_imagenet_resnet(_make_bottleneck(stride_in), (3, 8, 36, 3), num_classes, channels, stem)


def resnet20(num_classes: int = 10, *, channels: int = 3, shortcut: Literal["A", "B"] = "A") -> nn.Sequential:
    """Build ResNet-20 of section 4.2: ``(N, channels, H, W)`` to scores ``(N, classes)``. H and W: any; paper: 32.

    Args:
        num_classes: number of classes.
        channels: number of input channels.
        shortcut: shortcut of blocks that halve the resolution: ``"A"``, as in the paper, subsampling and zero padding
            of the channels, without parameters; ``"B"``, a 1×1 convolution.

    Raises:
        ValueError: ``shortcut`` has another value.
    """
    return _build_cifar_resnet(3, num_classes, channels, shortcut)


def resnet32(num_classes: int = 10, *, channels: int = 3, shortcut: Literal["A", "B"] = "A") -> nn.Sequential:
    """Build ResNet-32 (He et al. 2016, section 4.2). The arguments are those of ``resnet20``."""
    return _build_cifar_resnet(5, num_classes, channels, shortcut)


def resnet44(num_classes: int = 10, *, channels: int = 3, shortcut: Literal["A", "B"] = "A") -> nn.Sequential:
    """Build ResNet-44 (He et al. 2016, section 4.2). The arguments are those of ``resnet20``."""
    return _build_cifar_resnet(7, num_classes, channels, shortcut)


def resnet56(num_classes: int = 10, *, channels: int = 3, shortcut: Literal["A", "B"] = "A") -> nn.Sequential:
    """Build ResNet-56 (He et al. 2016, section 4.2). The arguments are those of ``resnet20``."""
    return _build_cifar_resnet(9, num_classes, channels, shortcut)


def resnet110(num_classes: int = 10, *, channels: int = 3, shortcut: Literal["A", "B"] = "A") -> nn.Sequential:
    """Build ResNet-110 of section 4.2; the paper warms up at learning rate 0.01. Arguments as for ``resnet20``."""
    return _build_cifar_resnet(18, num_classes, channels, shortcut)


BlockFactory = Callable[[int, int, int], nn.Module]  # inputs, width, stride


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions (He et al. 2016, figure 5, left)."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: str = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _build_shortcut(inputs, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        if self.downsample is not None:
            x = self.downsample(x)
        x = self.relu(residual + x)
        return x


class Bottleneck(nn.Module):
    """Bottleneck block of a 1×1, a 3×3 and a 1×1 convolution (He et al. 2016, figure 5, right)."""

    def __init__(self, inputs: int, width: int, stride: int, stride_in: str) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _build_shortcut(inputs, 4 * width, stride, "B")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        if self.downsample is not None:
            x = self.downsample(x)
        x = self.relu(residual + x)
        return x


class Subsample(nn.Module):
    """Shortcut option A: subsampling, and zero padding of the channels (He et al. 2016, section 3.3)."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # half before the input channels, half after, as in public implementations
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C + missing, H / stride, W / stride)``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def _build_shortcut(inputs: int, outputs: int, stride: int, option: str) -> nn.Module | None:
    """Build the shortcut of a block; None if the shapes agree."""
    if stride == 1 and inputs == outputs:
        return None
    if option == "A":
        return Subsample(outputs - inputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _make_bottleneck(stride_in: str) -> BlockFactory:
    if stride_in not in ("3x3", "1x1"):
        raise ValueError(f"stride_in must be '3x3' (torchvision's weights) or '1x1' (the paper), not {stride_in!r}")
    return partial(Bottleneck, stride_in=stride_in)


def _make_layer(
    block: BlockFactory, num_blocks: int, inputs: int, width: int, outputs: int, stride: int
) -> nn.Sequential:
    """Build a stage of ``num_blocks`` blocks, the first of which has the stride."""
    return nn.Sequential(block(inputs, width, stride), *(block(outputs, width, 1) for _ in range(num_blocks - 1)))


def _build_imagenet_resnet(
    block: BlockFactory, num_blocks: tuple[int, int, int, int], classes: int, channels: int, stem: Stem
) -> nn.Sequential:
    """Build the ResNet of one column of He et al. 2016, table 1."""
    if stem not in ("7x7", "3x3"):
        raise ValueError(f"stem must be '7x7' (the paper's, with a pooling) or '3x3' (for small images), not {stem!r}")
    expansion = 1 if block is BasicBlock else 4  # a bottleneck block outputs four times its width
    kernel, stride, padding = (7, 2, 3) if stem == "7x7" else (3, 1, 1)
    pooling = OrderedDict(maxpool=nn.MaxPool2d(3, stride=2, padding=1)) if stem == "7x7" else {}
    network = nn.Sequential(
        OrderedDict(
            conv1=StemConv2d(channels, 64, kernel, stride=stride, padding=padding, bias=False),  # N × 64 × 112 × 112
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            **pooling,  # N × 64 × 56 × 56
            layer1=_make_layer(block, num_blocks[0], 64, 64, 64 * expansion, 1),  # N × 64 e × 56 × 56
            layer2=_make_layer(block, num_blocks[1], 64 * expansion, 128, 128 * expansion, 2),  # N × 128 e × 28 × 28
            layer3=_make_layer(block, num_blocks[2], 128 * expansion, 256, 256 * expansion, 2),  # N × 256 e × 14 × 14
            layer4=_make_layer(block, num_blocks[3], 256 * expansion, 512, 512 * expansion, 2),  # N × 512 e × 7 × 7
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(512 * expansion, classes),  # N × classes
        )
    )
    return _init_weights(network)


def _build_cifar_resnet(n: int, classes: int, channels: int, shortcut: str) -> nn.Sequential:
    """Build the ResNet with 6n + 2 layers of He et al. 2016, section 4.2."""
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut must be 'A' (zeros for new channels) or 'B' (a 1×1 convolution), not {shortcut!r}")
    block = partial(BasicBlock, shortcut=shortcut)
    network = nn.Sequential(
        OrderedDict(
            conv1=StemConv2d(channels, 16, 3, padding=1, bias=False),  # N × 16 × 32 × 32
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(inplace=True),
            layer1=_make_layer(block, n, 16, 16, 16, 1),  # N × 16 × 32 × 32
            layer2=_make_layer(block, n, 16, 32, 32, 2),  # N × 32 × 16 × 16
            layer3=_make_layer(block, n, 32, 64, 64, 2),  # N × 64 × 8 × 8
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, classes),  # N × classes
        )
    )
    return _init_weights(network)


def _init_weights(network: nn.Sequential) -> nn.Sequential:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # He et al. 2015, equation 14
    return network
