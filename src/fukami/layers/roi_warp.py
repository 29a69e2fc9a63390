"""Regions of an image warped to one size (Girshick et al. 2014, section 2.1 and appendix A)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def warp_regions(image: Tensor, boxes: Tensor, size: int, context_padding: int) -> Tensor:
    """Regions of an image, each stretched to ``size`` by ``size`` pixels with ``context_padding`` around it.

    As the paper's code does it: bilinear, not antialiased, whatever the shape of the box; around it lies as much of the
    image as makes ``context_padding`` pixels of the result, and 0, the mean colour, beyond the image (appendix A).

    Args:
        image: ``(3, H, W)``, float32, normalised.
        boxes: ``(K, 4)`` in its pixels, where 0 is the outer edge of the first one.
        size: side of the result in pixels.
        context_padding: pixels of the result on each side that lie outside of the box.

    Returns:
        ``(K, 3, size, size)``, channels last.
    """
    inner = size - 2 * context_padding
    at = (torch.arange(size, device=boxes.device) + 0.5 - context_padding) / inner
    left, top, right, bottom = boxes.unsqueeze(2).unbind(1)
    height, width = image.shape[-2:]
    x = 2 / width * (left + at * (right - left)) - 1
    y = 2 / height * (top + at * (bottom - top)) - 1
    grid = torch.stack([x.unsqueeze(1).expand(-1, size, -1), y.unsqueeze(2).expand(-1, -1, size)], 3)
    shared = image.expand(len(boxes), -1, -1, -1)
    warped = F.grid_sample(shared, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)
