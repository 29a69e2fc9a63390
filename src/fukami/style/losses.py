"""What an image shows and how it is painted, as numbers: the losses of neural style.

Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, section 2.
"""

from typing import Any

import torch
from torch import Tensor


class GramFunction(torch.autograd.Function):
    """Equation 3, of which autograd does not know that it is symmetric: its own gradient takes twice the products."""

    @staticmethod
    def forward(context: Any, maps: Tensor) -> Tensor:
        """Maps ``(1, C, H, W)`` to ``(C, C)``."""
        context.save_for_backward(maps)
        flat = _flatten_maps(maps).to(torch.promote_types(maps.dtype, torch.float32))
        return flat.T @ flat / len(flat)

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Tensor:
        """The gradient at the maps, in their precision and their order in memory."""
        (maps,) = context.saved_tensors
        flat = _flatten_maps(maps)
        if maps.dtype == torch.float16:  # in which the slopes would be 0
            flat = flat.float()
        found = (flat @ ((slope + slope.T) / len(flat)).to(flat.dtype)).to(maps.dtype)
        return found.view(*maps.shape[2:], -1).permute(2, 0, 1).unsqueeze(0)


def _flatten_maps(maps: Tensor) -> Tensor:
    """Maps ``(1, C, H, W)`` as ``(H W, C)``; where they lie channels last, nothing is copied."""
    return maps[0].permute(1, 2, 0).flatten(0, 1)


def compute_gram_matrix(maps: Tensor) -> Tensor:
    """The style of maps ``(1, C, H, W)``: the product of every two channels, ``(C, C)``, averaged over the positions.

    Equation 3, divided by the number M of positions here and not in equation 4, so that images of other sizes can be
    compared. In float32 or better: what is summed may be more than 16 bits can hold.
    """
    with torch.autocast(maps.device.type, enabled=False):
        return GramFunction.apply(maps)  # type: ignore[no-any-return, no-untyped-call]


def compute_style_loss(grams: list[Tensor], targets: list[Tensor]) -> Tensor:
    """How far one style is from another: equations 4 and 5, each layer with the weight 1/5."""
    losses = [(own - target).square().sum() / (4 * len(own) ** 2) for own, target in zip(grams, targets, strict=True)]
    return torch.stack(losses).mean()


def compute_content_loss(maps: Tensor, target: Tensor) -> Tensor:
    """How far one content is from another: equation 1."""
    return (maps.to(target.dtype) - target).square().sum() / 2


def compute_total_variation(image: Tensor) -> Tensor:
    """The squared differences of pixels ``(C, H, W)`` beside and below one another, summed.

    Mahendran and Vedaldi, "Understanding Deep Image Representations by Inverting Them", CVPR 2015, section 2.1, with
    the exponent 2.
    """
    across, down = image.diff(dim=2), image.diff(dim=1)
    return across.square().sum() + down.square().sum()
