"""A chain of layers that was learned elsewhere, made ready to learn on: its maps have a size of about 1."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def rescale_activations(layers: Sequence[nn.Module], images: Tensor) -> None:
    """Give the maps after each convolution a mean square of 1; what the chain computes stays the same but for a factor.

    A batch normalisation right after a convolution becomes the one that changes nothing else: its scale and offset are
    the deviation and the mean of what it is given. Without that, normalisation that was put into a network would take
    out what its layers had learned of one another's sizes. ReLU and the greatest of several pass factors on.

    Args:
        layers: convolutions with biases, batch normalisations, ReLUs, poolings and dropout.
        images: normalised ``(N, C, H, W)``, of the kind that it will see.
    """
    x, size = images, 1.0  # what the chain would have given is x times this size
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            layer.bias /= size
            x = layer(x)
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            own = float((var + mean.square()).mean().sqrt().clamp(min=1e-12))
            if isinstance(after, nn.BatchNorm2d):
                after.running_mean, after.running_var = mean.clone(), var.clone()
                after.weight.copy_((var + after.eps).sqrt() / own)
                after.bias.copy_(mean / own)
            else:
                layer.weight /= own
                layer.bias /= own
            x, size = x / own, size * own
        elif not isinstance(layer, nn.BatchNorm2d | nn.Dropout):
            x = layer(x)
