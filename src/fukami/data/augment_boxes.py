"""Augmentation of images in frames: what is in an image, its boxes and its masks, moves with the pixels.

A frame is as large as the largest image of a batch. Each image is changed within its own sides; beyond them its
frame stays 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fukami.data import augment
from fukami.data.augment import AugmentationPipeline
from fukami.data.samples import PaddedBatch
from fukami.errors import UsageError

SIZE_DIVISOR = 32  # pixels of which the sides of a frame are a multiple: the stride of the deepest maps
MIN_VISIBLE_FRACTION = 0.3  # least share of a box that a move leaves in the image
UNSUPPORTED_OPERATIONS = {
    "mixup": "mixes two images, whose boxes and masks cannot be mixed",
    "cutmix": "mixes two images, whose boxes and masks cannot be mixed",
    "trivial": "counts the black of the frame among an image's colours",
    "rand": "counts the black of the frame among an image's colours",
}


def parse_box_augmentation(specs: Sequence[str]) -> AugmentationPipeline | None:
    """The augmentation of images with boxes or masks that the words ask for, which keeps their sides; None: none.

    Raises:
        UsageError: a word is unknown or given twice or makes no sense with boxes and masks, or its strength is out of
            bounds.
    """
    for name in augment.parse_strengths(specs):
        if name in UNSUPPORTED_OPERATIONS:
            allowed = ", ".join(word for word in augment.OPERATIONS if word not in UNSUPPORTED_OPERATIONS)
            raise UsageError(f"the augmentation {name} {UNSUPPORTED_OPERATIONS[name]}; use of these: {allowed}")
    return augment.parse_augmentation(specs, size=0) if specs else None


def augment_batch(augmentation: AugmentationPipeline, batch: PaddedBatch, draws: Tensor) -> PaddedBatch:
    """The batch with its images, boxes and masks changed; those boxes of which too little is left become 0.

    Args:
        augmentation: as :func:`parse` makes it.
        batch: on the device of ``draws``.
        draws: ``(N, what.draws)`` random numbers in [0, 1).
    """
    heights, widths = batch.sizes.unbind(1)
    geometry = augmentation.compute_matrix(draws, heights, widths)
    images, boxes, classes, masks = batch.images, batch.boxes, batch.classes, batch.masks
    if geometry is not None:
        images = warp_images(augmentation, images, geometry, batch.sizes, draws)
        if masks.numel():
            masks = warp_images(augmentation, masks.unsqueeze(1), geometry, batch.sizes).squeeze(1)
        boxes, seen = warp_visible_boxes(augmentation, boxes, geometry, batch.sizes)
        classes = torch.where(seen, classes, -1)
        boxes = boxes * seen.unsqueeze(2)
    covered = batch.sizes / torch.tensor(images.shape[-2:], device=draws.device)
    if augmentation.has_stage("compute_color_matrix"):  # which would light up the frame
        images = augmentation.recolor(images, draws, covered) * compute_valid_mask(batch.sizes, images)
    for operation, own in zip(augmentation.operations, augmentation.split_draws(draws), strict=True):
        images = operation.change_pixels(images, own, covered)
    return batch._replace(images=images, boxes=boxes, classes=classes, masks=masks)


def crop_batch(batch: PaddedBatch, window_size: int, draws: Tensor) -> PaddedBatch:
    """A square of at most ``window_size`` pixels a side out of each image and its mask, anywhere in it.

    Args:
        batch: with masks; boxes are not cut.
        window_size: the side.
        draws: ``(N, 2)`` random numbers in [0, 1).
    """
    if max(batch.masks.shape[-2:]) <= window_size:
        return batch
    spare = (batch.sizes - window_size).clamp(min=0)
    corners = ((spare + 1) * draws).floor().minimum(spare).long().tolist()
    height, width = (min(-(-window_size // SIZE_DIVISOR) * SIZE_DIVISOR, side) for side in batch.masks.shape[-2:])
    sizes = batch.sizes.clamp(max=window_size)
    inside = compute_valid_mask(sizes, batch.images[..., :height, :width])

    def part(maps: Tensor) -> Tensor:
        """The windows of maps ``(N, C, H, W)``."""
        padded = F.pad(maps, (0, width, 0, height))
        cuts = [m[:, top : top + height, left : left + width] for m, (top, left) in zip(padded, corners, strict=True)]
        return torch.stack(cuts) * inside

    return batch._replace(images=part(batch.images), masks=part(batch.masks.unsqueeze(1)).squeeze(1), sizes=sizes)


def warp_images(
    augmentation: AugmentationPipeline, images: Tensor, matrix: Tensor, sizes: Tensor, draws: Tensor | None = None
) -> Tensor:
    """Images ``(N, C, H, W)`` moved as :meth:`Augment.geometry` says of their own ``sizes`` ``(N, 2)``.

    Masks and maps of classes, which are not to be blended, go without ``draws``: they take the nearest pixel. Mirrors
    alone keep the type and every pixel.
    """
    inside = compute_valid_mask(sizes, images)
    if augmentation.only_flips:
        return flip_images(images, matrix, sizes)
    mode = "nearest" if draws is None else "bilinear"
    found = augmentation.warp(images.float(), convert_to_frame(matrix, sizes, images), mode) * inside
    return found.to(images.dtype) if draws is None else found


def flip_images(images: Tensor, matrix: Tensor, sizes: Tensor) -> Tensor:
    """The images mirrored within their own sides where the moves say so, exactly."""
    for dimension, row in ((2, 1), (3, 0)):
        side = images.shape[dimension]
        own = sizes[:, dimension - 2].long().unsqueeze(1)
        place = torch.arange(side, device=images.device).expand(len(images), side)
        other = torch.where((matrix[:, row, row] < 0).unsqueeze(1) & (place < own), own - 1 - place, place)
        shape = (-1, 1, side, 1) if dimension == 2 else (-1, 1, 1, side)
        images = images.gather(dimension, other.view(shape).expand_as(images))
    return images


def convert_to_frame(matrix: Tensor, sizes: Tensor, images: Tensor) -> Tensor:
    """Moves ``(N, 3, 3)`` in coordinates of each image in those of the frame that it is in, both from -1 to 1."""
    share = (sizes / torch.tensor(images.shape[-2:], device=sizes.device)).flip(1)
    outward = F.pad(share, (0, 1), value=1.0).diag_embed()
    outward[:, :2, 2] = share - 1
    return outward @ matrix @ outward.inverse()


def warp_visible_boxes(
    augmentation: AugmentationPipeline, boxes: Tensor, matrix: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes ``(N, M, 4)`` moved and cut at the border, and ``(N, M)`` whether enough of each can still be seen."""
    heights, widths = sizes.unbind(1)
    whole = augmentation.compute_box_bounds(boxes, matrix, heights, widths)
    cut = augmentation.warp_boxes(boxes, matrix, heights, widths)
    before, after = ((each[..., 2:] - each[..., :2]).clamp(min=0).prod(2) for each in (whole, cut))
    return cut, (after > 0) & (after >= MIN_VISIBLE_FRACTION * before)


def compute_valid_mask(sizes: Tensor, images: Tensor) -> Tensor:
    """``(N, 1, H, W)``: which pixels of the frames belong to the images."""
    rows, columns = (torch.arange(side, device=sizes.device) for side in images.shape[-2:])
    heights, widths = (side.view(-1, 1, 1, 1) for side in sizes.unbind(1))
    return (rows.view(1, 1, -1, 1) < heights) & (columns < widths)
