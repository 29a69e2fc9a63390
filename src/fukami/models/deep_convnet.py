"""DeepConvNet: an eight-layer classifier of handwritten digits.

Saitoh, "Deep Learning from Scratch" (O'Reilly Japan, 2016), section 8.1.1, figure 8-1. For a 28×28 image:

    conv3-16   conv3-16        pool      16 × 14 × 14
    conv3-32   conv3-32 pad 2  pool      32 ×  8 ×  8
    conv3-64   conv3-64        pool      64 ×  4 ×  4
    fc 50      dropout 0.5     fc 10
"""

from torch import nn

from fukami.layers.initialization import zero_bias
from fukami.layers.stem import StemConv2d

PADDINGS = (1, 1, 1, 2, 1, 1)  # the fourth layer's 2 turns 14×14 into 16×16, which halves evenly twice


def deep_convnet(
    num_classes: int = 10,
    *,
    channels: int = 1,
    size: int = 28,
    widths: tuple[int, int, int, int, int, int] = (16, 16, 32, 32, 64, 64),
    hidden: int = 50,
    dropout: float = 0.5,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Build DeepConvNet (Saitoh 2016, figure 8-1): three pairs of 3×3 convolutions, two fully connected layers.

    Args:
        num_classes: number of classes; the scores are ``(N, classes)``.
        channels, size: the input is ``(N, channels, size, size)``, in [0, 1].
        widths: output channels of the six convolutions.
        hidden: number of units of the hidden fully connected layer.
        dropout: dropout probability of the hidden units. The book also applies dropout to the scores; this does not.
        batch_norm: batch normalization after every convolution; the book has none.

    Raises:
        ValueError: ``size`` is too small for three poolings.
    """
    side = ((size // 2) + 2) // 2 // 2
    if side < 1:
        raise ValueError(f"deep_convnet pools three times and needs images of at least 4×4, not {size}×{size}")
    layers: list[nn.Module] = []
    inputs = channels
    for layer_number, (width, padding) in enumerate(zip(widths, PADDINGS, strict=True), start=1):
        convolution = nn.Conv2d if layers else StemConv2d
        layers.append(convolution(inputs, width, kernel_size=3, padding=padding))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        if layer_number % 2 == 0:
            layers.append(nn.MaxPool2d(2))  # before the ReLU: same result, a quarter of the values
        layers.append(nn.ReLU(inplace=True))
        inputs = width
    layers += [nn.Flatten(), nn.Linear(inputs * side * side, hidden), nn.ReLU(inplace=True)]
    layers += [nn.Dropout(dropout), nn.Linear(hidden, num_classes)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015, equation 10
            zero_bias(layer)
    return nn.Sequential(*layers)
