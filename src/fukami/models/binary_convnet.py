"""Binarized convolutional networks: binary weights and activations.

Courbariaux et al., "Binarized Neural Networks: Training Deep Neural Networks with Weights and Activations Constrained
to +1 or -1" (2016), section 2.3. For a 32×32 image, each layer followed by batch normalization and sign:

    conv3-128  conv3-128  pool    128 × 16 × 16
    conv3-256  conv3-256  pool    256 ×  8 ×  8
    conv3-512  conv3-512  pool    512 ×  4 ×  4
    fc 1024    fc 1024    fc 10

In the paper all layers are binary. Here the first and the last layer have full precision by default, as in later work;
they hold 0.1 % of the weights.
"""

from typing import Literal

from torch import nn

from fukami.layers.binary import BinaryConv2d, BinaryLinear, Sign
from fukami.layers.stem import StemConv2d
from fukami.models.deep_convnet import PADDINGS

EndLayers = Literal["float", "binary"]


def binary_convnet(
    num_classes: int = 10,
    *,
    channels: int = 3,
    size: int = 32,
    widths: tuple[int, ...] = (128, 128, 256, 256, 512, 512),
    hidden: tuple[int, ...] = (1024, 1024),
    end_layers: EndLayers = "float",
    scaling_factors: bool = False,
    learned_thresholds: bool = False,
) -> nn.Sequential:
    """Build the BNN paper's CIFAR-10 network: three pairs of 3×3 convolutions and three fully connected layers.

    Args:
        num_classes: number of classes; the scores are ``(N, classes)``.
        channels, size: the input is ``(N, channels, size, size)``.
        widths: output channels of the convolutions, in pairs; a pooling follows each pair.
        hidden: number of units of each hidden fully connected layer.
        end_layers: weights of the first and the last layer: ``"float"`` or, as in the paper, ``"binary"``.
        scaling_factors: scale the binary weights, as in XNOR-Net.
        learned_thresholds: learn the thresholds of the signs, as in ReActNet.

    Raises:
        ValueError: ``size`` is too small for the poolings, or ``end_layers`` has another value.
    """
    paddings = (1,) * len(widths)
    return _build_binary_convnet(
        num_classes, channels, size, widths, paddings, hidden, end_layers, scaling_factors, learned_thresholds
    )


def binary_deep_convnet(
    num_classes: int = 10,
    *,
    channels: int = 1,
    size: int = 28,
    widths: tuple[int, ...] = (32, 32, 64, 64, 128, 128),
    hidden: int = 128,
    dropout: float = 0.0,
    end_layers: EndLayers = "float",
    scaling_factors: bool = False,
    learned_thresholds: bool = False,
) -> nn.Sequential:
    """Build binarized DeepConvNet (Saitoh 2016, figure 8-1): sign instead of ReLU, and twice the channels.

    The arguments are those of :func:`binary_convnet`; ``dropout`` is the dropout probability of the hidden units.
    """
    return _build_binary_convnet(
        num_classes,
        channels,
        size,
        widths,
        PADDINGS,
        (hidden,),
        end_layers,
        scaling_factors,
        learned_thresholds,
        dropout,
    )


def _build_binary_convnet(
    num_classes: int,
    channels: int,
    size: int,
    widths: tuple[int, ...],
    paddings: tuple[int, ...],
    hidden: tuple[int, ...],
    end_layers: str,
    scaling_factors: bool,
    learned_thresholds: bool,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build pairs of convolutions and fully connected layers, each followed by batch normalization and sign."""
    if end_layers not in ("float", "binary"):
        raise ValueError(f"end_layers must be 'float' or 'binary', not {end_layers!r}")
    layers: list[nn.Module] = []
    inputs, side = channels, size
    for layer_number, (width, padding) in enumerate(zip(widths, paddings, strict=True), start=1):
        if layer_number > 1 or end_layers == "binary":
            layers.append(BinaryConv2d(inputs, width, 3, padding=padding, scaling_factors=scaling_factors))
        else:
            layers.append(StemConv2d(inputs, width, 3, padding=padding, bias=False))
        side += 2 * padding - 2
        if layer_number % 2 == 0:
            layers.append(nn.MaxPool2d(2))  # before the sign: max pooling of signs gives mostly +1
            side //= 2
        layers += [nn.BatchNorm2d(width), Sign(width if learned_thresholds else 0)]
        inputs = width
    if side < 1:
        raise ValueError(f"{size}×{size} images are too small for {len(widths) // 2} poolings; use larger images")
    layers.append(nn.Flatten())
    inputs *= side * side
    for width in hidden:
        layers += [BinaryLinear(inputs, width, scaling_factors=scaling_factors), nn.BatchNorm1d(width)]
        layers.append(Sign(width if learned_thresholds else 0))
        inputs = width
    if dropout:
        layers.append(nn.Dropout(dropout))
    if end_layers == "binary":
        layers += [BinaryLinear(inputs, num_classes, scaling_factors=scaling_factors), nn.BatchNorm1d(num_classes)]
    else:
        layers.append(nn.Linear(inputs, num_classes))
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(*layers)
