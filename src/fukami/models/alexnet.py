"""AlexNet, the winner of ImageNet 2012, in its single-GPU version.

Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012. The
paper's network is split over two GPUs. This is the single-GPU version (Krizhevsky, "One weird trick for parallelizing
convolutional neural networks", 2014) as in torchvision, without local response normalization. For a 224×224 image:

    convolution 11×11, stride 4    64    55 × 55    max pooling 3×3, stride 2    27 × 27
    convolution  5×5              192    27 × 27    max pooling 3×3, stride 2    13 × 13
    convolution  3×3              384    13 × 13
    convolution  3×3              256    13 × 13
    convolution  3×3              256    13 × 13    max pooling 3×3, stride 2     6 ×  6
    dropout 0.5   fc 4096   dropout 0.5   fc 4096   fc 1000

The parameter names are torchvision's, so its published weights load directly.
"""

from collections import OrderedDict

from torch import nn

from fukami.layers.stem import StemConv2d

# output channels, kernel size, pooled
CONV_LAYERS = ((64, 11, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))


def alexnet(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build single-GPU AlexNet: 5 convolutions and 3 fully connected layers.

    Args:
        num_classes: number of classes; the scores are ``(N, classes)``.
        channels, size: the input is ``(N, channels, size, size)``. Inputs of another size are average-pooled to the
            feature map size at ``size``, such as 6×6 at 224.
        hidden: number of units of the two hidden fully connected layers.
        dropout: dropout probability before each of them.

    Raises:
        ValueError: ``size`` is too small for the poolings.
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
    """Compute the side of the last feature map for an image with ``size`` pixels a side.

    Raises:
        ValueError: the feature map would be empty.
    """
    side = (size - 7) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    if side < 1:
        raise ValueError(f"AlexNet needs images of at least 63×63, not {size}×{size}: enlarge them")
    return side


def build_alexnet_features(channels: int = 3, batch_norm: bool = False, width_multiplier: float = 1.0) -> nn.Sequential:
    """Build the five convolutions and three poolings; ``width_multiplier`` scales the number of channels."""
    layers: list[nn.Module] = []
    inputs = channels
    for base_channels, kernel_size, pooled in CONV_LAYERS:
        outputs = round(width_multiplier * base_channels)
        if layers:
            layers.append(nn.Conv2d(inputs, outputs, kernel_size=kernel_size, padding=kernel_size // 2))
        else:
            layers.append(StemConv2d(inputs, outputs, kernel_size=kernel_size, stride=4, padding=2))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
        if pooled:
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2))
        inputs = outputs
    return nn.Sequential(*layers)


def build_alexnet_classifier(inputs: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Build the three fully connected layers."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
