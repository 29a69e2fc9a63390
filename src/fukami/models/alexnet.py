"""AlexNet: the network that won ImageNet in 2012, in the form of one column.

Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012. The
paper's network is split over two GPUs; this is its sequel's for one (Krizhevsky, "One weird trick for parallelizing
convolutional neural networks", 2014), as torchvision has it, without the local response normalisation. For an image of
224×224:

    convolution 11×11, stride 4    64    55 × 55    max pooling 3×3, stride 2    27 × 27
    convolution  5×5              192    27 × 27    max pooling 3×3, stride 2    13 × 13
    convolution  3×3              384    13 × 13
    convolution  3×3              256    13 × 13
    convolution  3×3              256    13 × 13    max pooling 3×3, stride 2     6 ×  6
    dropout 0.5   affine 4096   dropout 0.5   affine 4096   affine 1000

The names of the parameters are torchvision's: its published weights load as they are.
"""

from collections import OrderedDict

from torch import nn

from fukami.layers.stem import StemConv2d

CONV_LAYERS = ((64, 11, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))  # width, side, pooled


def alexnet(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """AlexNet of one column: 5 convolutions and 3 affine layers.

    Args:
        num_classes: number of scores, ``(N, classes)``.
        channels, size: the input is ``(N, channels, size, size)``. The classifier sees the positions that the last
            pooling leaves of it, 6 a side at 224; images of another size than this one are averaged to as many.
        hidden: width of the two affine layers before the last.
        dropout: share of what enters each of them that training drops.

    Raises:
        ValueError: the image is too small for the poolings.
    """
    side = compute_feature_size(size)
    return nn.Sequential(
        OrderedDict(
            features=build_alexnet_features(channels),
            avgpool=nn.AdaptiveAvgPool2d(side),
            flatten=nn.Flatten(),
            classifier=build_alexnet_classifier(256 * side * side, hidden, num_classes, dropout),
        )
    )


def compute_feature_size(size: int) -> int:
    """How many positions a side the convolutions leave of an image ``size`` pixels wide.

    Raises:
        ValueError: not one.
    """
    side = (size - 7) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    if side < 1:
        raise ValueError(f"AlexNet needs images of at least 63×63, not {size}×{size}: enlarge them")
    return side


def build_alexnet_features(channels: int = 3, batch_norm: bool = False, width_multiplier: float = 1.0) -> nn.Sequential:
    """The five convolutions and three poolings; ``width_multiplier`` is the share of the table's channels there are."""
    layers: list[nn.Module] = []
    inputs = channels
    for number, side, pooled in CONV_LAYERS:
        outputs = round(width_multiplier * number)
        if layers:
            layers.append(nn.Conv2d(inputs, outputs, kernel_size=side, padding=side // 2))
        else:
            layers.append(StemConv2d(inputs, outputs, kernel_size=side, stride=4, padding=2))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
        if pooled:
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2))
        inputs = outputs
    return nn.Sequential(*layers)


def build_alexnet_classifier(inputs: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Three affine layers."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
