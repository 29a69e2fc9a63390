"""Augmentation of pictures in frames: what is in a picture, its boxes and its masks, moves with the pixels.

A frame is as large as the largest picture of a batch. Each picture is changed within its own sides; beyond them its
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
MIN_VISIBLE_FRACTION = 0.3  # least share of a box that a move leaves in the picture
UNSUPPORTED_OPERATIONS = {
    "mixup": "mixes two pictures, whose boxes and masks cannot be mixed",
    "cutmix": "mixes two pictures, whose boxes and masks cannot be mixed",
    "trivial": "counts the black of the frame among a picture's colours",
    "rand": "counts the black of the frame among a picture's colours",
}


def parse_box_augmentation(words: Sequence[str]) -> AugmentationPipeline | None:
    """The augmentation of pictures with boxes or masks that the words ask for, which keeps their sides; None: none.

    Raises:
        UsageError: a word is unknown or given twice or makes no sense with boxes and masks, or its strength is out of
            bounds.
    """
    for name in augment.parse_strengths(words):
        if name in UNSUPPORTED_OPERATIONS:
            allowed = ", ".join(word for word in augment.OPERATIONS if word not in UNSUPPORTED_OPERATIONS)
            raise UsageError(f"the augmentation {name} {UNSUPPORTED_OPERATIONS[name]}; use of these: {allowed}")
    return augment.parse_augmentation(words, size=0) if words else None


def augment_batch(what: AugmentationPipeline, batch: PaddedBatch, draws: Tensor) -> PaddedBatch:
    """The batch with its pictures, boxes and masks changed; those boxes of which too little is left become 0.

    Args:
        what: as :func:`parse` makes it.
        batch: on the device of ``draws``.
        draws: ``(N, what.draws)`` random numbers in [0, 1).
    """
    heights, widths = batch.sizes.unbind(1)
    geometry = what.geometry(draws, heights, widths)
    pictures, boxes, classes, masks = batch.pictures, batch.boxes, batch.classes, batch.masks
    if geometry is not None:
        pictures = warp_images(what, pictures, geometry, batch.sizes, draws)
        if masks.numel():
            masks = warp_images(what, masks.unsqueeze(1), geometry, batch.sizes).squeeze(1)
        boxes, seen = warp_visible_boxes(what, boxes, geometry, batch.sizes)
        classes = torch.where(seen, classes, -1)
        boxes = boxes * seen.unsqueeze(2)
    covered = batch.sizes / torch.tensor(pictures.shape[-2:], device=draws.device)
    if what.taking("recolour"):  # which would light up the frame
        pictures = what.coloured(pictures, draws, covered) * compute_valid_mask(batch.sizes, pictures)
    for operation, own in zip(what.operations, what.split(draws), strict=True):
        pictures = operation.retouch(pictures, own, covered)
    return batch._replace(pictures=pictures, boxes=boxes, classes=classes, masks=masks)


def crop_batch(batch: PaddedBatch, window: int, draws: Tensor) -> PaddedBatch:
    """A square of at most ``window`` pixels a side out of each picture and its mask, anywhere in it.

    Args:
        batch: with masks; boxes are not cut.
        window: the side.
        draws: ``(N, 2)`` random numbers in [0, 1).
    """
    if max(batch.masks.shape[-2:]) <= window:
        return batch
    spare = (batch.sizes - window).clamp(min=0)
    corners = ((spare + 1) * draws).floor().minimum(spare).long().tolist()
    height, width = (min(-(-window // SIZE_DIVISOR) * SIZE_DIVISOR, side) for side in batch.masks.shape[-2:])
    sizes = batch.sizes.clamp(max=window)
    inside = compute_valid_mask(sizes, batch.pictures[..., :height, :width])

    def part(maps: Tensor) -> Tensor:
        """The windows of maps ``(N, C, H, W)``."""
        padded = F.pad(maps, (0, width, 0, height))
        cuts = [m[:, top : top + height, left : left + width] for m, (top, left) in zip(padded, corners, strict=True)]
        return torch.stack(cuts) * inside

    return batch._replace(pictures=part(batch.pictures), masks=part(batch.masks.unsqueeze(1)).squeeze(1), sizes=sizes)


def warp_images(
    what: AugmentationPipeline, pictures: Tensor, geometry: Tensor, sizes: Tensor, draws: Tensor | None = None
) -> Tensor:
    """Pictures ``(N, C, H, W)`` moved as :meth:`Augment.geometry` says of their own ``sizes`` ``(N, 2)``.

    Masks and maps of classes, which are not to be blended, go without ``draws``: they take the nearest pixel. Mirrors
    alone keep the type and every pixel.
    """
    inside = compute_valid_mask(sizes, pictures)
    if what.mirroring:
        return flip_images(pictures, geometry, sizes)
    mode = "nearest" if draws is None else "bilinear"
    found = what.moved(pictures.float(), convert_to_frame(geometry, sizes, pictures), mode) * inside
    return found.to(pictures.dtype) if draws is None else found


def flip_images(pictures: Tensor, geometry: Tensor, sizes: Tensor) -> Tensor:
    """The pictures mirrored within their own sides where the moves say so, exactly."""
    for dimension, row in ((2, 1), (3, 0)):
        side = pictures.shape[dimension]
        own = sizes[:, dimension - 2].long().unsqueeze(1)
        place = torch.arange(side, device=pictures.device).expand(len(pictures), side)
        other = torch.where((geometry[:, row, row] < 0).unsqueeze(1) & (place < own), own - 1 - place, place)
        shape = (-1, 1, side, 1) if dimension == 2 else (-1, 1, 1, side)
        pictures = pictures.gather(dimension, other.view(shape).expand_as(pictures))
    return pictures


def convert_to_frame(geometry: Tensor, sizes: Tensor, pictures: Tensor) -> Tensor:
    """Moves ``(N, 3, 3)`` in coordinates of each picture in those of the frame that it is in, both from -1 to 1."""
    share = (sizes / torch.tensor(pictures.shape[-2:], device=sizes.device)).flip(1)
    outward = F.pad(share, (0, 1), value=1.0).diag_embed()
    outward[:, :2, 2] = share - 1
    return outward @ geometry @ outward.inverse()


def warp_visible_boxes(
    what: AugmentationPipeline, boxes: Tensor, geometry: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes ``(N, M, 4)`` moved and cut at the border, and ``(N, M)`` whether enough of each can still be seen."""
    heights, widths = sizes.unbind(1)
    whole = what.bounds(boxes, geometry, heights, widths)
    cut = what.moved_boxes(boxes, geometry, heights, widths)
    before, after = ((each[..., 2:] - each[..., :2]).clamp(min=0).prod(2) for each in (whole, cut))
    return cut, (after > 0) & (after >= MIN_VISIBLE_FRACTION * before)


def compute_valid_mask(sizes: Tensor, pictures: Tensor) -> Tensor:
    """``(N, 1, H, W)``: which pixels of the frames belong to the pictures."""
    rows, columns = (torch.arange(side, device=sizes.device) for side in pictures.shape[-2:])
    heights, widths = (side.view(-1, 1, 1, 1) for side in sizes.unbind(1))
    return (rows.view(1, 1, -1, 1) < heights) & (columns < widths)
