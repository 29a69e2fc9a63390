"""RoIAlign: regions of a feature map pooled to a fixed size (He et al. 2017, section 3)."""

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

SAMPLING_RATIO = 2  # samples across and down in each bin


def roi_align(features: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """Pool regions as ``torchvision.ops.roi_align`` with a sampling ratio of 2 does, by an embedding bag.

    Each bin is a weighted sum of 16 pixels of the map, a look-up in a table of all pixels. The channels of a pixel
    are contiguous and added at once. Unlike torchvision's, the gradient is deterministic on a GPU.

    Args:
        features: ``(N, C, H, W)``, float32, preferably channels last.
        rois: ``(K, 5)``: index of the map, then left, top, right and bottom in pixels of the image.
        output_size: number of bins across and down.
        spatial_scale: size of the map relative to the image.

    Returns:
        ``(K, C, output_size, output_size)``, channels last.
    """
    if torch.compiler.is_exporting():  # inference runtimes have an operator for it
        exported: Tensor = torchvision.ops.roi_align(features, rois, output_size, spatial_scale, SAMPLING_RATIO)
        return exported
    index, left, top, right, bottom = rois.unbind(1)
    channels, height, width = features.shape[1:]
    rows, row_weights = _compute_sample_weights(top * spatial_scale, bottom * spatial_scale, output_size, height)
    columns, column_weights = _compute_sample_weights(left * spatial_scale, right * spatial_scale, output_size, width)
    pixel = (index.long().view(-1, 1, 1, 1, 1) * height + rows[:, :, None, :, None]) * width + columns[:, None, :, None]
    weight = row_weights[:, :, None, :, None] * column_weights[:, None, :, None]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    pixels, weights = pixel.view(-1, rows.shape[2] ** 2), weight.view(-1, rows.shape[2] ** 2)
    pooled = F.embedding_bag(pixels, table, per_sample_weights=weights, mode="sum")
    return pooled.view(len(rois), output_size, output_size, channels).permute(0, 3, 1, 2)


def _compute_sample_weights(start: Tensor, end: Tensor, num_bins: int, length: int) -> tuple[Tensor, Tensor]:
    """Compute the pixels that each bin interpolates along one axis, and their weights, ``(K, num_bins, 4)`` each.

    A sample more than a pixel outside the map counts as 0; ``start`` and ``end`` are ``(K,)`` in pixels of the map.
    """
    sample_offsets = (torch.arange(SAMPLING_RATIO, device=start.device) + 0.5) / SAMPLING_RATIO
    offsets = torch.arange(num_bins, device=start.device).unsqueeze(1) + sample_offsets
    positions = start.view(-1, 1, 1) + (end - start).clamp(min=1).view(-1, 1, 1) / num_bins * offsets
    inside = (positions >= -1) & (positions <= length)
    positions = positions.clamp(0, length - 1)
    low = positions.floor()
    fraction = positions - low
    pixels = torch.stack([low, (low + 1).clamp(max=length - 1)], -1)
    weights = torch.stack([1 - fraction, fraction], -1) * inside.unsqueeze(-1) / SAMPLING_RATIO
    return pixels.long().flatten(2), weights.flatten(2)
