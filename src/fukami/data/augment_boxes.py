"""Data augmentation of padded batches: boxes and masks are transformed with their images.

The images of a batch are zero-padded to the size of the largest one. Each image is transformed within its own size; its
padding stays 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fukami.data import augment
from fukami.data.augment import AugmentationPipeline
from fukami.data.samples import PaddedBatch
from fukami.errors import UsageError

SIZE_DIVISOR = 32  # padded sides are multiples of it, the stride of the deepest feature maps
MIN_VISIBLE_FRACTION = 0.3  # minimum fraction of a box's area that must stay in the image
UNSUPPORTED_TRANSFORMS = {
    "mixup": "mixes two images, whose boxes and masks cannot be mixed",
    "cutmix": "mixes two images, whose boxes and masks cannot be mixed",
    "trivial": "includes the black padding in the histogram",
    "rand": "includes the black padding in the histogram",
}


def parse_box_augmentation(specs: Sequence[str]) -> AugmentationPipeline | None:
    """Build the augmentation of images with boxes or masks, which keeps their size; None if ``specs`` is empty.

    Raises:
        UsageError: a name is unknown, repeated or unsupported with boxes and masks, or a value is out of range.
    """
    for name in augment.parse_transform_values(specs):
        if name in UNSUPPORTED_TRANSFORMS:
            allowed = ", ".join(name for name in augment.TRANSFORMS if name not in UNSUPPORTED_TRANSFORMS)
            raise UsageError(f"the augmentation {name} {UNSUPPORTED_TRANSFORMS[name]}; use one of {allowed}")
    return augment.parse_augmentation(specs, size=0) if specs else None


def augment_batch(augmentation: AugmentationPipeline, batch: PaddedBatch, random_values: Tensor) -> PaddedBatch:
    """Augment the images, boxes and masks of a batch; boxes that are mostly outside their image become 0.

    Args:
        augmentation: as built by :func:`parse_box_augmentation`.
        batch: on the device of ``random_values``.
        random_values: ``(N, augmentation.num_random_values)`` random numbers in [0, 1).
    """
    heights, widths = batch.sizes.unbind(1)
    matrix = augmentation.compute_matrix(random_values, heights, widths)
    images, boxes, classes, masks = batch.images, batch.boxes, batch.classes, batch.masks
    if matrix is not None:
        images = warp_images(augmentation, images, matrix, batch.sizes, random_values)
        if masks.numel():
            masks = warp_images(augmentation, masks.unsqueeze(1), matrix, batch.sizes).squeeze(1)
        boxes, is_visible = warp_visible_boxes(augmentation, boxes, matrix, batch.sizes)
        classes = torch.where(is_visible, classes, -1)
        boxes = boxes * is_visible.unsqueeze(2)
    valid_fraction = batch.sizes / torch.tensor(images.shape[-2:], device=random_values.device)
    if augmentation.has_stage("compute_color_matrix"):  # an offset would make the padding nonzero: mask it
        images = augmentation.recolor(images, random_values, valid_fraction) * compute_valid_mask(batch.sizes, images)
    for transform, values in zip(augmentation.transforms, augmentation.split_random_values(random_values), strict=True):
        images = transform.change_pixels(images, values, valid_fraction)
    return batch._replace(images=images, boxes=boxes, classes=classes, masks=masks)


def crop_batch(batch: PaddedBatch, crop_size: int, random_values: Tensor) -> PaddedBatch:
    """Crop a square at a random position from each image and its mask.

    Args:
        batch: batch with masks; boxes are not cropped.
        crop_size: side of the crop in pixels; shorter sides of an image are kept.
        random_values: ``(N, 2)`` random numbers in [0, 1).
    """
    if max(batch.masks.shape[-2:]) <= crop_size:
        return batch
    max_offsets = (batch.sizes - crop_size).clamp(min=0)
    corners = ((max_offsets + 1) * random_values).floor().minimum(max_offsets).long().tolist()
    height, width = (min(-(-crop_size // SIZE_DIVISOR) * SIZE_DIVISOR, side) for side in batch.masks.shape[-2:])
    sizes = batch.sizes.clamp(max=crop_size)
    valid_mask = compute_valid_mask(sizes, batch.images[..., :height, :width])

    def crop(maps: Tensor) -> Tensor:
        """Crop maps ``(N, C, H, W)``."""
        padded = F.pad(maps, (0, width, 0, height))
        crops = [m[:, top : top + height, left : left + width] for m, (top, left) in zip(padded, corners, strict=True)]
        return torch.stack(crops) * valid_mask

    return batch._replace(images=crop(batch.images), masks=crop(batch.masks.unsqueeze(1)).squeeze(1), sizes=sizes)


def warp_images(
    augmentation: AugmentationPipeline,
    images: Tensor,
    matrix: Tensor,
    sizes: Tensor,
    random_values: Tensor | None = None,
) -> Tensor:
    """Resample padded images ``(N, C, H, W)`` of ``sizes`` ``(N, 2)`` by the matrices of their own coordinates.

    Masks and class maps are passed without ``random_values`` and use nearest-neighbor instead of bilinear
    interpolation. Flips without other geometric transforms are exact and keep the data type.
    """
    valid_mask = compute_valid_mask(sizes, images)
    if augmentation.only_flips:
        return flip_images(images, matrix, sizes)
    mode = "nearest" if random_values is None else "bilinear"
    warped = augmentation.warp(images.float(), convert_to_padded_coordinates(matrix, sizes, images), mode) * valid_mask
    return warped.to(images.dtype) if random_values is None else warped


def flip_images(images: Tensor, matrix: Tensor, sizes: Tensor) -> Tensor:
    """Flip padded images within their own size, exactly, where the diagonal of ``matrix`` is negative."""
    for dimension, row in ((2, 1), (3, 0)):
        padded_size = images.shape[dimension]
        size = sizes[:, dimension - 2].long().unsqueeze(1)
        index = torch.arange(padded_size, device=images.device).expand(len(images), padded_size)
        source = torch.where((matrix[:, row, row] < 0).unsqueeze(1) & (index < size), size - 1 - index, index)
        shape = (-1, 1, padded_size, 1) if dimension == 2 else (-1, 1, 1, padded_size)
        images = images.gather(dimension, source.view(shape).expand_as(images))
    return images


def convert_to_padded_coordinates(matrix: Tensor, sizes: Tensor, images: Tensor) -> Tensor:
    """Convert matrices ``(N, 3, 3)`` from coordinates of each image to those of its padded image, in [-1, 1]."""
    valid_fraction = (sizes / torch.tensor(images.shape[-2:], device=sizes.device)).flip(1)
    image_to_padded = F.pad(valid_fraction, (0, 1), value=1.0).diag_embed()
    image_to_padded[:, :2, 2] = valid_fraction - 1
    return image_to_padded @ matrix @ image_to_padded.inverse()


def warp_visible_boxes(
    augmentation: AugmentationPipeline, boxes: Tensor, matrix: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Transform boxes ``(N, M, 4)``, clip them to the image, and return a mask ``(N, M)`` of those still visible."""
    heights, widths = sizes.unbind(1)
    unclipped = augmentation.compute_box_bounds(boxes, matrix, heights, widths)
    clipped = augmentation.warp_boxes(boxes, matrix, heights, widths)
    area, clipped_area = (
        (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(2) for corners in (unclipped, clipped)
    )
    return clipped, (clipped_area > 0) & (clipped_area >= MIN_VISIBLE_FRACTION * area)


def compute_valid_mask(sizes: Tensor, images: Tensor) -> Tensor:
    """Compute the mask ``(N, 1, H, W)`` of the pixels that belong to the images and not to the padding."""
    rows, columns = (torch.arange(side, device=sizes.device) for side in images.shape[-2:])
    heights, widths = (side.view(-1, 1, 1, 1) for side in sizes.unbind(1))
    return (rows.view(1, 1, -1, 1) < heights) & (columns < widths)
