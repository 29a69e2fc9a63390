"""Warping of image regions to a fixed size (Girshick et al. 2014, section 2.1 and appendix A)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def warp_regions(image: Tensor, boxes: Tensor, size: int, context_padding: int) -> Tensor:
    """Warp regions of an image to ``size`` by ``size`` pixels, with image context around each box.

    As in the paper's code, the warp is bilinear, without antialiasing, and ignores the aspect ratio. Pixels outside
    the image are 0, the mean color.

    Args:
        image: ``(3, H, W)``, float32, normalized.
        boxes: ``(K, 4)`` in pixels of the image, where 0 is the outer edge of the first pixel.
        size: side of the output in pixels.
        context_padding: width in output pixels of the context around the box.

    Returns:
        ``(K, 3, size, size)``, channels last.
    """
    inner_size = size - 2 * context_padding
    positions = (torch.arange(size, device=boxes.device) + 0.5 - context_padding) / inner_size
    left, top, right, bottom = boxes.unsqueeze(2).unbind(1)
    height, width = image.shape[-2:]
    x = 2 / width * (left + positions * (right - left)) - 1
    y = 2 / height * (top + positions * (bottom - top)) - 1
    grid = torch.stack([x.unsqueeze(1).expand(-1, size, -1), y.unsqueeze(2).expand(-1, -1, size)], 3)
    images = image.expand(len(boxes), -1, -1, -1)
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)
