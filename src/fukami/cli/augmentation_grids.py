"""What augmentation makes of a data set's images, for the eye."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fukami.captioning import data as captioning_data
from fukami.data import augment, augment_boxes, labelled_images, padded_loader
from fukami.data.annotations import find_rarest_classes
from fukami.data.samples import PaddedBatch, Sample
from fukami.detection import data as detection_data
from fukami.engine.supervised import RESIZE_RATIO
from fukami.errors import Error, UsageError
from fukami.image import io as image_io
from fukami.image import plots as image_plots
from fukami.image.transform import ResizeTransform, SquareTransform
from fukami.segmentation import data as segmentation_data

MAX_DEFAULT_SIZE = 224  # pixels, where no size is asked for

ImageRows = list[tuple[str, list[Tensor]]]
BoxedImage = tuple[Tensor, list[tuple[list[float], str]]]  # an image, and the corners and the name of each of its boxes
BoxedRows = list[list[BoxedImage]]


def sample_images(
    data: str,
    operations: Sequence[str],
    *,
    size: int = 0,
    channels: int = 3,
    num_images: int = 6,
    num_variants: int = 7,
    seed: int = 0,
) -> ImageRows:
    """Training images of as many classes as there are, each with its label, as it is and after each change.

    Args:
        data: as :func:`fukami.data.labelled_images.load_labelled_images` takes it.
        operations: as :func:`fukami.data.augment.parse_augmentation` takes them; none: the images alone.
        size: side in pixels; 0: that of the first image, 224 at most.
        num_images, num_variants: rows, and changes of each; images are mixed with others of these.

    Returns:
        A row for each image: its label, and images ``(C, size, size)`` in 0..255, the unchanged one first.

    Raises:
        UsageError: a number or a word makes no sense.
        Error: there is no image to train on, or not one can be read.
    """
    source, _, labels = labelled_images.load_labelled_images(data, holdout=0.0)
    return _build_rows(data, source, labels, operations, size, channels, num_images, num_variants, seed)


def sample_captioned_images(
    data: str, operations: Sequence[str], *, size: int = 0, num_images: int = 6, num_variants: int = 7, seed: int = 0
) -> ImageRows:
    """Training images with the first sentence that was said of each; otherwise as :func:`sample_images`.

    Args:
        data: as :func:`fukami.captioning.data.load_dataset` takes it.
        operations, size, num_images, num_variants, seed: as for :func:`sample_images`.
    """
    learned, _, _ = captioning_data.load_dataset(data, holdout=0.0)
    source = labelled_images.LabelledImages(learned.items, np.arange(len(learned)))
    labels = tuple(own[0] for own in learned.captions)
    return _build_rows(data, source, labels, operations, size, 3, num_images, num_variants, seed)


def _build_rows(
    data: str,
    source: labelled_images.LabelledImages,
    labels: Sequence[str],
    operations: Sequence[str],
    size: int,
    channels: int,
    num_images: int,
    num_variants: int,
    seed: int,
) -> ImageRows:
    """Some images of a source as they are, and after each change."""
    _check_options(size, num_images, num_variants)
    if len(source) == 0:
        raise Error(f"{data} has no image to train on; give data with a training part")
    chosen = source.select(select_balanced(source.targets, num_images, seed))
    size = size or min(MAX_DEFAULT_SIZE, *_get_image_size(chosen.items[0]))
    cropped = "crop" in augment.parse_strengths(operations)
    plain = chosen.decode(SquareTransform(channels, size))
    found = chosen.decode(SquareTransform(channels, round(size * RESIZE_RATIO))) if cropped else plain
    rows: ImageRows = [(labels[t], [p.float()]) for p, t in zip(plain.images, plain.targets.tolist(), strict=True)]
    if operations:
        change = augment.parse_augmentation(operations, size=size, num_classes=len(labels))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(num_variants):
            draws = torch.rand(len(rows), change.num_draws, generator=generator)
            for (_, row), image in zip(rows, change(found.images, found.targets, draws)[0], strict=True):
                row.append(image.float())
    return rows


def sample_boxed_images(
    data: str, operations: Sequence[str], *, size: int = 0, num_images: int = 6, num_variants: int = 7, seed: int = 0
) -> BoxedRows:
    """Training images with the boxes in them, as they are and after each change.

    Args:
        data: as :func:`fukami.detection.data.load_dataset` takes it.
        operations: as :func:`fukami.data.augment_boxes.parse_box_augmentation` takes them; none: the images alone.
        size: the shorter side in pixels; 0: 224.
        num_images, num_variants: rows, and changes of each.

    Returns:
        A row for each image: images ``(3, H, W)`` in 0..255, the unchanged one first, each with corners and names.

    Raises:
        UsageError: a number or a word makes no sense.
        Error: there is no image to train on, or not one can be read.
    """
    _check_options(size, num_images, num_variants)
    samples, _, labels = detection_data.load_dataset(data, holdout=0.0)
    batches = _augment_batches(
        data,
        samples,
        labels,
        find_rarest_classes(samples),
        operations,
        size or MAX_DEFAULT_SIZE,
        num_images,
        num_variants,
        seed,
    )
    return [list(row) for row in zip(*(_unpad_images(batch, labels) for batch in batches), strict=True)]


def sample_masked_images(
    data: str, operations: Sequence[str], *, size: int = 0, num_images: int = 6, num_variants: int = 7, seed: int = 0
) -> ImageRows:
    """Training images in the colours of their masks, as they are and after each change; otherwise as
    :func:`sample_boxed_images`.

    Args:
        data: as :func:`fukami.segmentation.data.load_dataset` takes it.
        operations, size, num_images, num_variants, seed: as for :func:`sample_boxed_images`.

    Returns:
        A row for each image: the classes that it shows, and images ``(3, H, W)`` in 0..255.
    """
    _check_options(size, num_images, num_variants)
    samples, _, labels = segmentation_data.load_dataset(data, holdout=0.0)
    every = np.zeros(len(samples), np.int64)
    batches = list(
        _augment_batches(
            data, samples, labels, every, operations, size or MAX_DEFAULT_SIZE, num_images, num_variants, seed
        )
    )
    shades = [image_io.WHITE, *image_io.get_class_colors(labels)]
    rows: ImageRows = []
    for row, (height, width) in enumerate(batches[0].sizes.int().tolist()):
        tinted = []
        for batch in batches:
            levels = batch.images[row, :, :height, :width].permute(1, 2, 0).round().byte().numpy()
            drawn = image_io.overlay_mask(Image.fromarray(levels), batch.masks[row, :height, :width].numpy(), shades)
            tinted.append(torch.from_numpy(np.array(drawn)).permute(2, 0, 1).float())
        there = [labels[number - 1] for number in np.unique(batches[0].masks[row].numpy()).tolist() if number]
        rows.append((", ".join(there), tinted))
    return rows


def _augment_batches(
    data: str,
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    strata: npt.NDArray[np.int64],
    operations: Sequence[str],
    min_size: int,
    num_images: int,
    num_variants: int,
    seed: int,
) -> Iterator[PaddedBatch]:
    """A batch of some of the samples as they are, and then one for each change of them."""
    change = augment_boxes.parse_box_augmentation(operations)
    if not samples:
        raise Error(f"{data} has no image to train on; give data with a training part")
    taken = select_balanced(strata, num_images, seed)
    chosen = [sample for sample, take in zip(samples, taken, strict=True) if take]
    batch = next(
        padded_loader.build_padded_loader(
            chosen, labels, ResizeTransform(min_size, 2 * min_size), batch_size=len(chosen)
        ).iterate_in_order()
    )
    yield batch
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_variants if change else 0):
        assert change is not None
        yield augment_boxes.augment_batch(change, batch, torch.rand(len(chosen), change.num_draws, generator=generator))


def _unpad_images(batch: PaddedBatch, labels: Sequence[str]) -> list[BoxedImage]:
    """Each image without its frame, and its boxes."""
    found = []
    for row, (height, width) in enumerate(batch.sizes.int().tolist()):
        named = zip(batch.boxes[row].tolist(), batch.classes[row].tolist(), strict=True)
        boxes = [(corners, labels[number]) for corners, number in named if number >= 0]
        found.append((batch.images[row, :, :height, :width].float(), boxes))
    return found


def _check_options(size: int, num_images: int, num_variants: int) -> None:
    """Refuse numbers of which there is nothing to show."""
    if num_images < 1 or num_variants < 1:
        raise UsageError(
            f"there is nothing to show of {num_images} images and {num_variants} variants; give at least 1"
        )
    if size < 0:
        raise UsageError(f"size is a number of pixels, or 0 for the usual one, not {size}")


def select_balanced(targets: "np.ndarray[tuple[int], np.dtype[np.int64]]", count: int, seed: int) -> np.ndarray:
    """Which of the images to take: one of each class in turn, until there are ``count``."""
    order = np.random.default_rng(seed).permutation(len(targets))
    turn = np.empty(len(targets), int)
    seen: dict[int, int] = {}
    for number in order:
        turn[number] = seen[targets[number]] = seen.get(targets[number], -1) + 1
    taken = np.zeros(len(targets), bool)
    taken[order[np.argsort(turn[order], kind="stable")[:count]]] = True
    return taken


def save_grid(rows: ImageRows, out: Path) -> None:
    """Write the rows as one image."""
    out.parent.mkdir(parents=True, exist_ok=True)
    image_plots.plot_variants(rows).savefig(out, dpi=110)


def save_boxed_grid(rows: BoxedRows, out: Path) -> None:
    """Write rows with boxes as one image."""
    out.parent.mkdir(parents=True, exist_ok=True)
    image_plots.plot_boxes(rows).savefig(out, dpi=110)


def _get_image_size(item: "Path | bytes | np.ndarray") -> tuple[int, int]:
    """Width and height of an image: a file, what it holds, or an array."""
    return (item.shape[1], item.shape[0]) if isinstance(item, np.ndarray) else image_io.read_image(item).size
