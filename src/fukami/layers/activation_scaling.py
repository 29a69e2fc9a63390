"""Rescale pretrained layers so that their activations have unit mean square."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def rescale_activations(layers: Sequence[nn.Module], images: Tensor) -> None:
    """Rescale each convolution to an output mean square of 1; the output of the chain changes only by a factor.

    A batch normalization right after a convolution is initialized as the identity: its scale and offset are the
    standard deviation and the mean of its input. Otherwise batch normalization that is added to a pretrained model
    would remove the learned relative scales of the channels. ReLU and max pooling preserve the factor.

    Args:
        layers: convolutions with biases, batch normalizations, ReLUs, poolings and dropout.
        images: normalized ``(N, C, H, W)``, representative of the model's inputs.
    """
    x, scale = images, 1.0  # the original activations are x * scale
    for layer, next_layer in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            layer.bias /= scale
            x = layer(x)
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            rms = float((var + mean.square()).mean().sqrt().clamp(min=1e-12))
            if isinstance(next_layer, _BatchNorm):  # of one process or of several
                assert next_layer.running_mean is not None
                assert next_layer.running_var is not None
                next_layer.running_mean.copy_(mean)
                next_layer.running_var.copy_(var)
                next_layer.weight.copy_((var + next_layer.eps).sqrt() / rms)
                next_layer.bias.copy_(mean / rms)
            else:
                layer.weight /= rms
                layer.bias /= rms
            x, scale = x / rms, scale * rms
        elif not isinstance(layer, _BatchNorm | nn.Dropout):
            x = layer(x)
