"""Grids of training images before and after data augmentation."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fukami.captioning import data as captioning_data
from fukami.data import augment, augment_boxes, labeled_images, padded_loader
from fukami.data.annotations import find_rarest_classes
from fukami.data.samples import PaddedBatch, Sample
from fukami.detection import data as detection_data
from fukami.engine.report import sanitize_texts
from fukami.engine.supervised import RESIZE_RATIO
from fukami.errors import Error, UsageError
from fukami.image import io as image_io
from fukami.image import plots as image_plots
from fukami.image.channels import ArrayImage, read_channels
from fukami.image.transform import ResizeTransform, SquareTransform
from fukami.segmentation import data as segmentation_data

MAX_DEFAULT_SIZE = 224  # pixels, if no size is specified

ImageRows = list[tuple[str, list[Tensor]]]
BoxedImage = tuple[Tensor, list[tuple[list[float], str]]]  # an image; the corners and the label of each box
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
    """Sample training images, balanced over the classes, and augment each of them.

    Args:
        data: as :func:`fukami.data.labeled_images.load_labeled_images` takes it.
        operations: as :func:`fukami.data.augment.parse_augmentation` takes them; none: only the original images.
        size: side in pixels; 0: that of the first image, at most 224.
        num_images, num_variants: number of rows, and of augmented variants in a row; mixup and cutmix mix these rows.

    Returns:
        A row for each image: its label and images ``(C, size, size)`` in 0..255, the original first.

    Raises:
        UsageError: an option is invalid.
        Error: the dataset has no training image, or none can be read.
    """
    source, _, _, labels = labeled_images.load_labeled_images(data, 0.0)
    return _build_rows(data, source, labels, operations, size, channels, num_images, num_variants, seed)


def sample_captioned_images(
    data: str, operations: Sequence[str], *, size: int = 0, num_images: int = 6, num_variants: int = 7, seed: int = 0
) -> ImageRows:
    """Sample training images with their first captions and augment them, as :func:`sample_images`.

    Args:
        data: as :func:`fukami.captioning.data.load_dataset` takes it.
        operations, size, num_images, num_variants, seed: as for :func:`sample_images`.
    """
    train, _, _ = captioning_data.load_dataset(data, 0.0)
    source = labeled_images.LabeledImages(train.items, np.arange(len(train)))
    labels = tuple(captions[0] for captions in train.captions)
    return _build_rows(data, source, labels, operations, size, 3, num_images, num_variants, seed)


def _build_rows(
    data: str,
    source: labeled_images.LabeledImages,
    labels: Sequence[str],
    operations: Sequence[str],
    size: int,
    channels: int,
    num_images: int,
    num_variants: int,
    seed: int,
) -> ImageRows:
    """Sample images of a source and augment them."""
    _check_options(size, num_images, num_variants)
    if len(source) == 0:
        raise Error(f"{data} has no training images; use a dataset with a train split")
    selected = source.select(select_balanced(source.targets, num_images, seed))
    size = size or min(MAX_DEFAULT_SIZE, *_get_image_size(selected.items[0], channels))
    cropped = "crop" in augment.parse_transform_values(operations)
    plain = selected.decode(SquareTransform(channels, size))
    inputs = selected.decode(SquareTransform(channels, round(size * RESIZE_RATIO))) if cropped else plain
    rows: ImageRows = [(labels[t], [p.float()]) for p, t in zip(plain.images, plain.targets.tolist(), strict=True)]
    if operations:
        augmentation = augment.parse_augmentation(operations, size=size, num_classes=len(labels))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(num_variants):
            random_values = torch.rand(len(rows), augmentation.num_random_values, generator=generator)
            augmented, _ = augmentation(inputs.images, inputs.targets, random_values)
            for (_, row), image in zip(rows, augmented, strict=True):
                row.append(image.float())
    return rows


def sample_boxed_images(
    data: str, operations: Sequence[str], *, size: int = 0, num_images: int = 6, num_variants: int = 7, seed: int = 0
) -> BoxedRows:
    """Sample training images with bounding boxes and augment them.

    Args:
        data: as :func:`fukami.detection.data.load_dataset` takes it.
        operations: as :func:`fukami.data.augment_boxes.parse_box_augmentation` takes them; none: only the original
            images.
        size: shorter side in pixels; 0: 224.
        num_images, num_variants: number of rows, and of augmented variants in a row.

    Returns:
        A row for each image: images ``(3, H, W)`` in 0..255, the original first, each with the corners and labels of
        its boxes.

    Raises:
        UsageError: an option is invalid.
        Error: the dataset has no training image, or none can be read.
    """
    _check_options(size, num_images, num_variants)
    samples, _, _, labels = detection_data.load_dataset(data, 0.0)
    min_size = size or MAX_DEFAULT_SIZE
    batches = _augment_batches(
        data,
        samples,
        labels,
        find_rarest_classes(samples),
        operations,
        ResizeTransform(min_size, 2 * min_size),
        num_images,
        num_variants,
        seed,
    )
    return [list(row) for row in zip(*(_unpad_images(batch, labels) for batch in batches), strict=True)]


def sample_masked_images(
    data: str,
    operations: Sequence[str],
    *,
    size: int = 0,
    channels: int = 3,
    num_images: int = 6,
    num_variants: int = 7,
    seed: int = 0,
) -> ImageRows:
    """Sample training images, overlay their segmentation masks and augment them, as :func:`sample_boxed_images`.

    Args:
        data: as :func:`fukami.segmentation.data.load_dataset` takes it.
        operations, size, num_images, num_variants, seed: as for :func:`sample_boxed_images`.
        channels: number of channels of the images, of which the first three are drawn.

    Returns:
        A row for each image: the names of its classes, and images ``(3, H, W)`` in 0..255.
    """
    _check_options(size, num_images, num_variants)
    samples, _, _, labels = segmentation_data.load_dataset(data, 0.0)
    strata = np.zeros(len(samples), np.int64)
    min_size = size or MAX_DEFAULT_SIZE
    transform = ResizeTransform(min_size, 2 * min_size, channels=channels)
    batches = list(
        _augment_batches(data, samples, labels, strata, operations, transform, num_images, num_variants, seed)
    )
    colors = [image_io.WHITE, *image_io.get_class_colors(labels)]
    rows: ImageRows = []
    for row, (height, width) in enumerate(batches[0].sizes.int().tolist()):
        overlays = []
        for batch in batches:
            image = ArrayImage(batch.images[row, :, :height, :width].permute(1, 2, 0).numpy()).build_preview()
            overlay = image_io.overlay_mask(image, batch.masks[row, :height, :width].numpy(), colors)
            overlays.append(torch.from_numpy(np.array(overlay)).permute(2, 0, 1).float())
        class_names = [labels[value - 1] for value in np.unique(batches[0].masks[row].numpy()).tolist() if value]
        rows.append((", ".join(class_names), overlays))
    return rows


def _augment_batches(
    data: str,
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    strata: npt.NDArray[np.int64],
    operations: Sequence[str],
    transform: ResizeTransform,
    num_images: int,
    num_variants: int,
    seed: int,
) -> Iterator[PaddedBatch]:
    """Yield a batch of selected samples, and then an augmented batch for each variant."""
    augmentation = augment_boxes.parse_box_augmentation(operations)
    if not samples:
        raise Error(f"{data} has no training images; use a dataset with a train split")
    mask = select_balanced(strata, num_images, seed)
    selected = [sample for sample, is_selected in zip(samples, mask, strict=True) if is_selected]
    batch = next(
        padded_loader.build_padded_loader(selected, labels, transform, batch_size=len(selected)).iterate_in_order()
    )
    yield batch
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_variants if augmentation else 0):
        assert augmentation is not None
        yield augment_boxes.augment_batch(
            augmentation, batch, torch.rand(len(selected), augmentation.num_random_values, generator=generator)
        )


def _unpad_images(batch: PaddedBatch, labels: Sequence[str]) -> list[BoxedImage]:
    """Return each image without its padding, with its boxes."""
    images = []
    for row, (height, width) in enumerate(batch.sizes.int().tolist()):
        labeled = zip(batch.boxes[row].tolist(), batch.classes[row].tolist(), strict=True)
        boxes = [(corners, labels[class_index]) for corners, class_index in labeled if class_index >= 0]
        images.append((batch.images[row, :, :height, :width].float(), boxes))
    return images


def _check_options(size: int, num_images: int, num_variants: int) -> None:
    """Check the options that the samplers share."""
    if num_images < 1 or num_variants < 1:
        raise UsageError(f"num_images is {num_images} and num_variants is {num_variants}; each should be at least 1")
    if size < 0:
        raise UsageError(f"size should be a number of pixels, or 0 for the default, not {size}")


def select_balanced(targets: "np.ndarray[tuple[int], np.dtype[np.int64]]", count: int, seed: int) -> np.ndarray:
    """Return a mask that selects ``count`` images, one of each class in turn."""
    order = np.random.default_rng(seed).permutation(len(targets))
    rank = np.empty(len(targets), int)
    counts: dict[int, int] = {}
    for index in order:
        rank[index] = counts[targets[index]] = counts.get(targets[index], -1) + 1
    mask = np.zeros(len(targets), bool)
    mask[order[np.argsort(rank[order], kind="stable")[:count]]] = True
    return mask


def save_grid(rows: ImageRows, out: Path) -> None:
    """Save the rows as one image file."""
    _save_figure(image_plots.plot_variants(rows), out)


def save_boxed_grid(rows: BoxedRows, out: Path) -> None:
    """Save rows with boxes as one image file."""
    _save_figure(image_plots.plot_boxes(rows), out)


def _save_figure(figure: Figure, out: Path) -> None:
    """Save a figure, in which a label may contain any characters."""
    sanitize_texts(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _get_image_size(item: "Path | bytes | np.ndarray", channels: int) -> tuple[int, int]:
    """Return the width and height of an image: a path, file content or an array."""
    return (item.shape[1], item.shape[0]) if isinstance(item, np.ndarray) else read_channels(item, channels).size
