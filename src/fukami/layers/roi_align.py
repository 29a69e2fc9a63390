"""RoIAlign: a region of a feature map brought to so many places across and down (He et al. 2017, section 3)."""

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

SAMPLING_RATIO = 2  # across and down in each place


def roi_align(features: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """What ``torchvision.ops.roi_align`` gives with two samples across and down, as an embedding bag.

    Each place is a weighted sum of 16 pixels of the map, which is a look-up in a table of all pixels. All channels of a
    pixel lie together and are added at once; on a GPU the gradient adds up in the same order each time, where
    torchvision's does not.

    Args:
        features: ``(N, C, H, W)``, float32, best channels last.
        rois: ``(K, 5)``: number of the map, then left, top, right and bottom in pixels of the image.
        output_size: places across and down.
        spatial_scale: pixels of the map for each of the image.

    Returns:
        ``(K, C, side, side)``, channels last.
    """
    if torch.compiler.is_exporting():  # other programs have an operator for it
        return torchvision.ops.roi_align(features, rois, output_size, spatial_scale, SAMPLING_RATIO)  # type: ignore[no-any-return]
    number, left, top, right, bottom = rois.unbind(1)
    channels, height, width = features.shape[1:]
    row, down = _compute_sample_weights(top * spatial_scale, bottom * spatial_scale, output_size, height)
    column, across = _compute_sample_weights(left * spatial_scale, right * spatial_scale, output_size, width)
    pixel = (number.long().view(-1, 1, 1, 1, 1) * height + row[:, :, None, :, None]) * width + column[:, None, :, None]
    weight = down[:, :, None, :, None] * across[:, None, :, None]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    pixels, weights = pixel.view(-1, row.shape[2] ** 2), weight.view(-1, row.shape[2] ** 2)
    pooled = F.embedding_bag(pixels, table, per_sample_weights=weights, mode="sum")
    return pooled.view(len(rois), output_size, output_size, channels).permute(0, 3, 1, 2)


def _compute_sample_weights(start: Tensor, end: Tensor, places: int, length: int) -> tuple[Tensor, Tensor]:
    """Along one side of a map: the pixels that each place is interpolated from, and their weights, ``(K, places, 4)``.

    A sample more than a pixel outside the map counts as 0; ``start`` and ``end`` are ``(K,)`` in pixels of the map.
    """
    inside = (torch.arange(SAMPLING_RATIO, device=start.device) + 0.5) / SAMPLING_RATIO
    offsets = torch.arange(places, device=start.device).unsqueeze(1) + inside
    at = start.view(-1, 1, 1) + (end - start).clamp(min=1).view(-1, 1, 1) / places * offsets
    there = (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.floor()
    share = at - low
    pixels = torch.stack([low, (low + 1).clamp(max=length - 1)], -1)
    weights = torch.stack([1 - share, share], -1) * there.unsqueeze(-1) / SAMPLING_RATIO
    return pixels.long().flatten(2), weights.flatten(2)
