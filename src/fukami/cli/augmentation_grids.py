"""Grids of training images before and after data augmentation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.image.channels import ArrayImage, read_channels
from fukami.image.transform import ResizeTransform, SquareTransform
from fukami.segmentation import data as segmentation_data

MAX_DEFAULT_SIZE = 224  # pixels, if no size is specified

ImageRows = list[tuple[str, list[Tensor]]]
BoxedImage = tuple[Tensor, list[tuple[list[float], str]]]  # an image; the corners and the label of each box
BoxedRows = list[list[BoxedImage]]


@dataclass(frozen=True)
class GridOptions:
    """Options of a grid.

    Args:
        operations: as :func:`fukami.data.augment.parse_augmentation` takes them, or with boxes or masks
            :func:`fukami.data.augment_boxes.parse_box_augmentation`; none: only the original images.
        size: side in pixels, with boxes or masks the shorter one; 0: that of the first image, at most 224, or 224.
        channels: number of channels of the images, of which the first three of a masked image are drawn.
        num_images, num_variants: number of rows, and of augmented variants in a row; mixup and cutmix mix the rows.
        seed: random seed of the selection and the augmentation.

    Raises:
        UsageError: a value is out of range.
    """

    operations: Sequence[str] = ()
    size: int = 0
    channels: int = 3
    num_images: int = 6
    num_variants: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.num_variants < 1:
            raise UsageError(
                f"num_images is {self.num_images} and num_variants is {self.num_variants}; each should be at least 1"
            )
        if self.size < 0:
            raise UsageError(f"size should be a number of pixels, or 0 for the default, not {self.size}")


def sample_images(data: str, options: GridOptions) -> ImageRows:
    """Sample training images, balanced over the classes, and augment each of them.

    Args:
        data: as :func:`fukami.data.labeled_images.load_labeled_images` takes it.
        options: options of the grid.

    Returns:
        A row for each image: its label and images ``(C, size, size)`` in 0..255, the original first.

    Raises:
        UsageError: an operation is invalid.
        Error: the dataset has no training image, or none can be read.
    """
    source, _, _, labels = labeled_images.load_labeled_images(data, 0.0)
    return _build_rows(data, source, labels, options)


def sample_captioned_images(data: str, options: GridOptions) -> ImageRows:
    """Sample training images with their first captions and augment them, as :func:`sample_images`.

    ``data`` is as :func:`fukami.captioning.data.load_dataset` takes it.
    """
    _check_color(options, "captions")
    train, _, _ = captioning_data.load_dataset(data, 0.0)
    source = labeled_images.LabeledImages(train.items, np.arange(len(train)))
    labels = tuple(captions[0] for captions in train.captions)
    return _build_rows(data, source, labels, options)


def _build_rows(
    data: str, source: labeled_images.LabeledImages, labels: Sequence[str], options: GridOptions
) -> ImageRows:
    """Sample images of a source and augment them."""
    if len(source) == 0:
        raise Error(f"{data} has no training images; use a dataset with a train split")
    selected = source.select(select_balanced(source.targets, options.num_images, options.seed))
    size = options.size or min(MAX_DEFAULT_SIZE, *_get_image_size(selected.items[0], options.channels))
    cropped = "crop" in augment.parse_transform_values(options.operations)
    plain = selected.decode(SquareTransform(options.channels, size))
    inputs = selected.decode(SquareTransform(options.channels, round(size * RESIZE_RATIO))) if cropped else plain
    rows: ImageRows = [(labels[t], [p.float()]) for p, t in zip(plain.images, plain.targets.tolist(), strict=True)]
    if options.operations:
        augmentation = augment.parse_augmentation(options.operations, size=size, num_classes=len(labels))
        generator = torch.Generator().manual_seed(options.seed)
        for _ in range(options.num_variants):
            random_values = torch.rand(len(rows), augmentation.num_random_values, generator=generator)
            augmented, _ = augmentation(inputs.images, inputs.targets, random_values)
            for (_, row), image in zip(rows, augmented, strict=True):
                row.append(image.float())
    return rows


def sample_boxed_images(data: str, options: GridOptions) -> BoxedRows:
    """Sample training images with bounding boxes and augment them.

    Args:
        data: as :func:`fukami.detection.data.load_dataset` takes it.
        options: options of the grid.

    Returns:
        A row for each image: images ``(3, H, W)`` in 0..255, the original first, each with the corners and labels of
        its boxes.

    Raises:
        UsageError: an operation is invalid, or the images are not in color.
        Error: the dataset has no training image, or none can be read.
    """
    _check_color(options, "boxes")
    samples, _, _, labels = detection_data.load_dataset(data, 0.0)
    batches = _augment_batches(data, samples, labels, find_rarest_classes(samples), options)
    return [list(row) for row in zip(*(_unpad_images(batch, labels) for batch in batches), strict=True)]


def sample_masked_images(data: str, options: GridOptions) -> ImageRows:
    """Sample training images, overlay their segmentation masks and augment them, as :func:`sample_boxed_images`.

    Args:
        data: as :func:`fukami.segmentation.data.load_dataset` takes it.
        options: options of the grid.

    Returns:
        A row for each image: the names of its classes, and images ``(3, H, W)`` in 0..255.
    """
    samples, _, _, labels = segmentation_data.load_dataset(data, 0.0)
    batches = list(_augment_batches(data, samples, labels, np.zeros(len(samples), np.int64), options))
    colors = [image_io.WHITE, *image_draw.get_class_colors(labels)]
    rows: ImageRows = []
    for row, (height, width) in enumerate(batches[0].sizes.int().tolist()):
        overlays = []
        for batch in batches:
            image = ArrayImage(batch.images[row, :, :height, :width].permute(1, 2, 0).numpy()).build_preview()
            overlay = image_draw.overlay_mask(image, batch.masks[row, :height, :width].numpy(), colors)
            overlays.append(torch.from_numpy(np.array(overlay)).permute(2, 0, 1).float())
        class_names = [labels[value - 1] for value in np.unique(batches[0].masks[row].numpy()).tolist() if value]
        rows.append((", ".join(class_names), overlays))
    return rows


def _check_color(options: GridOptions, annotations: str) -> None:
    if options.channels != 3:
        raise UsageError(f"images with {annotations} are in color; remove --channels")


def _augment_batches(
    data: str, samples: Sequence[Sample], labels: tuple[str, ...], strata: npt.NDArray[np.int64], options: GridOptions
) -> Iterator[PaddedBatch]:
    """Yield a batch of selected samples, and then an augmented batch for each variant."""
    augmentation = augment_boxes.parse_box_augmentation(options.operations)
    if not samples:
        raise Error(f"{data} has no training images; use a dataset with a train split")
    min_size = options.size or MAX_DEFAULT_SIZE
    transform = ResizeTransform(min_size, 2 * min_size, channels=options.channels)
    mask = select_balanced(strata, options.num_images, options.seed)
    selected = [sample for sample, is_selected in zip(samples, mask, strict=True) if is_selected]
    loader = padded_loader.build_padded_loader(selected, labels, transform, batch_size=len(selected))
    batch = next(loader.iterate_in_order())
    yield batch
    if augmentation is None:
        return
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.num_variants):
        random_values = torch.rand(len(selected), augmentation.num_random_values, generator=generator)
        yield augment_boxes.augment_batch(augmentation, batch, random_values)


def _unpad_images(batch: PaddedBatch, labels: Sequence[str]) -> list[BoxedImage]:
    """Return each image without its padding, with its boxes."""
    images = []
    for row, (height, width) in enumerate(batch.sizes.int().tolist()):
        labeled = zip(batch.boxes[row].tolist(), batch.classes[row].tolist(), strict=True)
        boxes = [(corners, labels[class_index]) for corners, class_index in labeled if class_index >= 0]
        images.append((batch.images[row, :, :height, :width].float(), boxes))
    return images


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


def save_grid(figure: Figure, out: Path) -> None:
    """Save the figure of a grid, in which a label may contain any characters."""
    sanitize_texts(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _get_image_size(item: "Path | bytes | np.ndarray", channels: int) -> tuple[int, int]:
    """Return the width and height of an image: a path, file content or an array."""
    return (item.shape[1], item.shape[0]) if isinstance(item, np.ndarray) else read_channels(item, channels).size
