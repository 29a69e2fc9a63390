"""GoogLeNet: nine Inception modules, each with parallel branches of several filter sizes.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1 and figure 3. The network is torchvision's, so its
published weights load directly. It has five differences from the paper:

- Batch normalization follows every convolution and replaces the two local response normalizations.
- The 5×5 branch has 3×3 filters; ``kernel_size=5`` gives the paper's.
- The fourth pooling is 2×2, not 3×3.
- The auxiliary heads use adaptive average pooling to 4×4, which also supports images other than 224×224.
- Dropout before the last layer has the probability 0.2; ``dropout=0.4`` is the paper's.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from fukami.layers.stem import StemConv2d


def googlenet(
    num_classes: int = 1000,
    *,
    channels: int = 3,
    aux_loss: bool = True,
    kernel_size: Literal[3, 5] = 3,
    dropout: float = 0.2,
    dropout_aux: float = 0.7,
) -> nn.Module:
    """Build GoogLeNet (Szegedy et al. 2015, table 1): 22 layers with parameters.

    In training mode with auxiliary heads the output is ``(scores, scores of aux1, scores of aux2)``, each
    ``(N, classes)``; the paper weights their losses 1, 0.3 and 0.3. Otherwise the output is the scores only.
    torchvision's published weights expect images normalized with mean 0.5 and standard deviation 0.5; their auxiliary
    heads are untrained.

    Args:
        num_classes: number of classes.
        channels: the input is ``(N, channels, H, W)``, at least 15×15.
        aux_loss: add the auxiliary classifiers after modules 4a and 4d.
        kernel_size: kernel size of the branch that is 5×5 in the paper.
        dropout: dropout probability of the 1024 averaged features; 0.4 in the paper.
        dropout_aux: dropout probability of the 1024 hidden units of each auxiliary head.

    Raises:
        ValueError: ``kernel_size`` is neither 3 nor 5.
    """
    if kernel_size not in (3, 5):
        raise ValueError(f"kernel_size must be 3 (torchvision's weights) or 5 (the paper), not {kernel_size}")
    network = GoogLeNet(num_classes, channels, kernel_size, dropout)
    if aux_loss:
        network.aux1 = InceptionAux(512, num_classes, dropout_aux)
        network.aux2 = InceptionAux(528, num_classes, dropout_aux)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-2, b=2)
    return network


class GoogLeNet(nn.Module):
    """GoogLeNet (Szegedy et al. 2015, table 1) without the auxiliary heads."""

    def __init__(self, num_classes: int, channels: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(channels, 64, 7, stride=2, stem=True)  # shapes for 224×224:  64 × 112 × 112
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)  #                           64 ×  56 ×  56
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3)  #                                               192 ×  56 ×  56
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)  #                          192 ×  28 ×  28
        #                             in 1×1  reduce, 3×3  reduce, 5×5  pool proj
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32, kernel_size)  #             256 ×  28 ×  28
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64, kernel_size)  #           480 ×  28 ×  28
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)  #                          480 ×  14 ×  14
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64, kernel_size)  #            512 ×  14 ×  14
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64, kernel_size)  #           512 ×  14 ×  14
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64, kernel_size)  #           512 ×  14 ×  14
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64, kernel_size)  #           528 ×  14 ×  14
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128, kernel_size)  #         832 ×  14 ×  14
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)  # the paper pools 3×3:     832 ×   7 ×   7
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128, kernel_size)  #         832 ×   7 ×   7
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128, kernel_size)  #        1024 ×   7 ×   7
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        self.aux1: InceptionAux | None = None
        self.aux2: InceptionAux | None = None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Compute the scores of ``(N, C, H, W)``; in training mode also those of the auxiliary heads, if any."""
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        maps_4a = x = self.inception4a(x)  # N × 512 × 14 × 14
        maps_4d = x = self.inception4d(self.inception4c(self.inception4b(x)))  # N × 528 × 14 × 14
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        scores: Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return scores, self.aux1(maps_4a), self.aux2(maps_4d)
        return scores


class Inception(nn.Module):
    """Inception module (Szegedy et al. 2015, figure 2b): parallel 1×1, 3×3, 5×5 and pooling branches, concatenated."""

    def __init__(
        self, inputs: int, ones: int, threes: tuple[int, int], fives: tuple[int, int], pooled: int, kernel_size: int
    ) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(inputs, ones, 1)
        self.branch2 = nn.Sequential(BasicConv2d(inputs, threes[0], 1), BasicConv2d(*threes, 3))
        self.branch3 = nn.Sequential(BasicConv2d(inputs, fives[0], 1), BasicConv2d(*fives, kernel_size))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BasicConv2d(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, ones + threes[1] + fives[1] + pooled, H, W)``."""
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), 1)


class InceptionAux(nn.Module):
    """Auxiliary classifier, which strengthens the gradient of the early layers (Szegedy et al. 2015, section 5)."""

    def __init__(self, inputs: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.conv = BasicConv2d(inputs, 128, 1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute scores ``(N, classes)`` of ``(N, inputs, H, W)``."""
        x = self.flatten(self.conv(self.avgpool(x)))  # N × 2048
        scores: Tensor = self.fc2(self.dropout(self.relu(self.fc1(x))))
        return scores


class BasicConv2d(nn.Module):
    """Padded convolution, batch normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, stem: bool = False) -> None:
        super().__init__()
        convolution = StemConv2d if stem else nn.Conv2d
        self.conv = convolution(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        x = self.relu(self.bn(self.conv(x)))
        return x
