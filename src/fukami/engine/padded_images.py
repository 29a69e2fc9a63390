"""Images of any size, padded on the right and below, as networks of detection and segmentation take them."""

import json
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fukami.data.augment_boxes import SIZE_DIVISOR, compute_valid_mask
from fukami.data.samples import PaddedBatch
from fukami.engine.task import ModelSignature
from fukami.image.transform import ResizeTransform


def build_padded_signature(
    kind: Literal["detector", "segmenter"], output: str, transform: ResizeTransform, labels: tuple[str, ...]
) -> ModelSignature:
    """Build the signature of a network of padded images; ``output`` describes the outputs in words."""
    padding = f"the sides are multiples of {SIZE_DIVISOR}, the values 0 to the right of the image and below it"
    metadata = {
        "preprocessing": json.dumps({**transform.describe(), "padding": padding}),
        "labels": json.dumps(labels, ensure_ascii=False),
        "output": output,
    }
    return ModelSignature(kind, (transform.channels, 4 * SIZE_DIVISOR, 6 * SIZE_DIVISOR), metadata)


def move_batch(batch: PaddedBatch, device: torch.device) -> PaddedBatch:
    """Return the batch on a device."""
    return PaddedBatch(*(value.to(device, non_blocking=True) for value in batch))


def normalize_padded_images(images: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize images ``(N, C, H, W)`` in 0..255, and set the padding beyond their sizes ``(N, 2)`` to 0.

    ``mean`` and ``std`` are those of the channels, in 0..255, ``(C, 1, 1)`` each.
    """
    normalized = ((images - mean) / std) * compute_valid_mask(sizes, images)
    return normalized.contiguous(memory_format=torch.channels_last)


def resize_and_pad(images: Tensor, transform: ResizeTransform) -> tuple[Tensor, Tensor]:
    """Resize images of one size ``(N, C, h, w)`` and pad them; also return their sizes ``(N, 2)``."""
    resized = torch.stack([transform(image) for image in images])
    sizes = torch.tensor([resized.shape[-2:]] * len(resized), device=resized.device, dtype=torch.float32)
    return F.pad(resized, (0, -resized.shape[-1] % SIZE_DIVISOR, 0, -resized.shape[-2] % SIZE_DIVISOR)), sizes
