"""VGG: deep networks of 3×3 convolutions.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, section 2.1 and
table 1. Each group of 3×3 convolutions ends in a pooling that halves the resolution. For a 224×224 image:

          A = VGG-11  B = VGG-13  D = VGG-16  E = VGG-19
    64        1           2           2           2        112 × 112
    128       1           2           2           2         56 ×  56
    256       2           2           3           4         28 ×  28
    512       2           2           3           4         14 ×  14
    512       2           2           3           4          7 ×   7
    fc 4096   dropout 0.5   fc 4096   dropout 0.5   fc 1000

Column C, with 1×1 convolutions, and A-LRN, whose local response normalization does not help, are omitted. The parameter
names are torchvision's, so its published weights load directly.
"""

from collections import OrderedDict

from torch import Tensor, nn

from fukami.layers.initialization import zero_bias
from fukami.layers.stem import StemConv2d

CONFIGS = {  # output channels of the 3×3 convolutions, one group per pooling
    "A": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "B": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "D": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "E": ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}


def vgg11(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-11, column A of table 1: 8 convolutions and 3 fully connected layers.

    Args:
        num_classes: number of classes; the scores are ``(N, classes)``.
        channels, size: the input is ``(N, channels, size, size)``. The classifier's input has ``size // 32`` positions
            a side, at most 7; inputs of another size are average-pooled to that.
        hidden: number of units of the two hidden fully connected layers. 0: only one fully connected layer, on the
            globally averaged 512 features (linear probe).
        dropout: dropout probability of the hidden units.

    Raises:
        ValueError: ``size`` is too small for five poolings.
    """
    return _vgg("A", False, num_classes, channels, size, hidden, dropout)


def vgg13(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-13, column B of table 1: 10 convolutions, 3 fully connected layers. Arguments as for ``vgg11``."""
    return _vgg("B", False, num_classes, channels, size, hidden, dropout)


def vgg16(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-16, column D of table 1: 13 convolutions, 3 fully connected layers. Arguments as for ``vgg11``."""
    return _vgg("D", False, num_classes, channels, size, hidden, dropout)


def vgg19(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-19, column E of table 1: 16 convolutions, 3 fully connected layers. Arguments as for ``vgg11``."""
    return _vgg("E", False, num_classes, channels, size, hidden, dropout)


def vgg11_bn(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-11 with batch normalization after every convolution (not in the paper). Arguments as for ``vgg11``."""
    return _vgg("A", True, num_classes, channels, size, hidden, dropout)


def vgg13_bn(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-13 with batch normalization after every convolution (not in the paper). Arguments as for ``vgg11``."""
    return _vgg("B", True, num_classes, channels, size, hidden, dropout)


def vgg16_bn(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-16 with batch normalization after every convolution (not in the paper). Arguments as for ``vgg11``."""
    return _vgg("D", True, num_classes, channels, size, hidden, dropout)


def vgg19_bn(
    num_classes: int = 1000, *, channels: int = 3, size: int = 224, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Build VGG-19 with batch normalization after every convolution (not in the paper). Arguments as for ``vgg11``."""
    return _vgg("E", True, num_classes, channels, size, hidden, dropout)


def _vgg(
    column: str, batch_norm: bool, num_classes: int, channels: int, size: int, hidden: int, dropout: float
) -> nn.Sequential:
    """Build the network of one column of Simonyan and Zisserman 2015, table 1."""
    if size < 32:
        raise ValueError(f"VGG pools five times and needs images of at least 32×32, not {size}×{size}: enlarge them")
    side = min(7, size // 32) if hidden else 1
    network = nn.Sequential(
        OrderedDict(
            features=build_vgg_features(column, channels, batch_norm),  # N × 512 × size/32 × size/32
            avgpool=nn.AdaptiveAvgPool2d(side),  # identity at 32, 64 ... 224
            flatten=nn.Flatten(),
            classifier=build_vgg_classifier(512 * side * side, hidden, num_classes, dropout),  # N × classes
        )
    )
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)  # as in torchvision; the paper's variance is 0.01
            nn.init.zeros_(layer.bias)
    return network


def build_vgg_features(
    column: str, channels: int = 3, batch_norm: bool = False, width_multiplier: float = 1.0
) -> nn.Sequential:
    """Build the padded 3×3 convolutions of a column and the five poolings, which halve the resolution.

    ``width_multiplier`` scales the number of channels.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for group in CONFIGS[column]:
        for outputs in (round(width_multiplier * width) for width in group):
            convolution = nn.Conv2d if layers else StemConv2d
            layer = convolution(inputs, outputs, kernel_size=3, padding=1)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            zero_bias(layer)
            layers.append(layer)
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def renumber_conv_weights(tensors: dict[str, Tensor], features: nn.Sequential) -> dict[str, Tensor]:
    """Rename the weights of a classifier's convolutions to the names in ``features``.

    The layer numbers differ if only one of the two networks has batch normalization.
    """
    conv_weights = {key: value for key, value in tensors.items() if key.startswith("features.")}
    target_numbers = [name for name, layer in features.named_children() if isinstance(layer, nn.Conv2d)]
    source_numbers = sorted({int(key.split(".")[1]) for key, value in conv_weights.items() if value.ndim == 4})
    if len(target_numbers) != len(source_numbers) or list(map(str, source_numbers)) == target_numbers:
        return conv_weights
    renumbered = dict(zip(map(str, source_numbers), target_numbers, strict=True))
    split = {key: key.split(".") for key in conv_weights}
    return {
        f"features.{renumbered[n]}.{kind}": conv_weights[key] for key, (_, n, kind) in split.items() if n in renumbered
    }


def build_vgg_classifier(inputs: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Build the three fully connected layers, or only one if ``hidden`` is 0."""
    if not hidden:
        return nn.Sequential(nn.Linear(inputs, num_classes))
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )
