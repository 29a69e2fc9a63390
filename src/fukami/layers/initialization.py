"""Weight initialization shared by several models."""

from torch import nn


def zero_bias(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d) -> None:
    """Initialize the bias of a layer with zeros, if it has one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
