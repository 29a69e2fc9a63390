"""Content, style and total-variation losses of neural style transfer.

Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, section 2.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fukami.layers.autograd import AutogradContext


class GramFunction(torch.autograd.Function):
    """Gram matrix with a gradient that uses its symmetry; autograd needs twice the multiplications."""

    apply: ClassVar[Callable[[Tensor], Tensor]]

    @staticmethod
    def forward(context: AutogradContext, maps: Tensor) -> Tensor:
        """Map feature maps ``(1, C, H, W)`` to ``(C, C)``."""
        context.save_for_backward(maps)
        flat = _flatten_maps(maps).to(torch.promote_types(maps.dtype, torch.float32))
        return flat.T @ flat / len(flat)

    @staticmethod
    def backward(context: AutogradContext, grad_output: Tensor) -> Tensor:
        """Compute the gradient of the feature maps, in their dtype and memory format."""
        (maps,) = context.saved_tensors
        flat = _flatten_maps(maps)
        if maps.dtype == torch.float16:  # in which the gradient would underflow
            flat = flat.float()
        grad = (flat @ ((grad_output + grad_output.T) / len(flat)).to(flat.dtype)).to(maps.dtype)
        return grad.view(*maps.shape[2:], -1).permute(2, 0, 1).unsqueeze(0)


def _flatten_maps(maps: Tensor) -> Tensor:
    """Flatten feature maps ``(1, C, H, W)`` to ``(H W, C)``, without a copy if they are in channels-last format."""
    return maps[0].permute(1, 2, 0).flatten(0, 1)


def compute_gram_matrix(maps: Tensor) -> Tensor:
    """Compute the Gram matrix ``(C, C)`` of feature maps ``(1, C, H, W)``, which represents style.

    The division by the number M of positions is here and not in the style loss, so that images of different sizes are
    comparable (Gatys et al. 2016, equations 3 and 4). The result is float32 or higher, since the sums may overflow
    16-bit types.
    """
    with torch.autocast(maps.device.type, enabled=False):
        return GramFunction.apply(maps)


def compute_style_loss(grams: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Compute the style loss, the mean over the layers (Gatys et al. 2016, equations 4 and 5)."""
    losses = [
        (gram - target).square().sum() / (4 * len(gram) ** 2) for gram, target in zip(grams, targets, strict=True)
    ]
    return torch.stack(losses).mean()


def compute_content_loss(maps: Tensor, target: Tensor) -> Tensor:
    """Compute the content loss (Gatys et al. 2016, equation 1)."""
    return (maps.to(target.dtype) - target).square().sum() / 2


def compute_total_variation(image: Tensor) -> Tensor:
    """Compute the total variation of an image ``(C, H, W)``: the sum of squared differences of neighboring pixels.

    Mahendran and Vedaldi, "Understanding Deep Image Representations by Inverting Them", CVPR 2015, section 2.1, with
    the exponent 2.
    """
    horizontal, vertical = image.diff(dim=2), image.diff(dim=1)
    return horizontal.square().sum() + vertical.square().sum()
