"""Labeled images for classification, loaded by dataset name or path."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fukami.data import cifar, digits, image_folder, imagenet, label_tables, mnist, shards, sources
from fukami.data.splits import SPLITS, Split, Splits, select_validation
from fukami.errors import Error, UsageError
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform

DIGIT_LABELS = tuple("0123456789")


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images ``(N, C, H, W)``, uint8 or float32 in 0..255, their class indices ``(N,)`` and names."""

    images: Tensor
    targets: Tensor
    names: Sequence[str] = ()


@dataclass(frozen=True)
class LabeledImages:
    """Labeled images before decoding and preprocessing.

    Args:
        items: files, samples in shards, or an array of images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8.
        targets: ``(N,)`` class indices.
    """

    items: tuple[Path, ...] | shards.ShardSamples | image_io.UInt8Array
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    def select(self, mask: npt.NDArray[np.bool_]) -> "LabeledImages":
        """Return the images selected by ``mask`` ``(N,)``."""
        items: tuple[Path, ...] | shards.ShardSamples | image_io.UInt8Array
        if isinstance(self.items, shards.ShardSamples):
            items = self.items.select(mask)
        elif isinstance(self.items, np.ndarray):
            items = self.items[mask]
        else:
            items = tuple(self.items[i] for i in np.flatnonzero(mask))
        return LabeledImages(items, self.targets[mask])

    def count_bytes(self, transform: SquareTransform) -> int:
        """Count the bytes of all decoded images, which have the depth of the first one."""
        from fukami.data import streaming, tar

        first: Path | bytes | image_io.UInt8Array = b""
        if isinstance(self.items, shards.ShardSamples) and len(self):
            with contextlib.suppress(Error):  # reading reports it
                (block,) = self.items.read_blocks([0])
                first = tar.extract_image(block, *self.items.locate(0))[1]
        elif len(self.items) and not isinstance(self.items, shards.ShardSamples):
            first = self.items[0]
        return len(self) * transform.nbytes * streaming.count_value_bytes(first)

    def decode(self, transform: SquareTransform, max_unreadable: int = image_folder.MAX_UNREADABLE) -> DecodedImages:
        """Decode and preprocess all images in memory; unreadable images are skipped and reported.

        Raises:
            Error: more than ``max_unreadable`` images are unreadable, or all are.
        """
        from fukami.data import streaming, webdataset

        if isinstance(self.items, np.ndarray):
            return DecodedImages(_resize(self.items, transform), torch.from_numpy(self.targets))
        if isinstance(self.items, shards.ShardSamples):
            results, problems = webdataset.decode_shards(self.items, transform), self.items.problems
        else:
            results, problems = streaming.decode_files(self.items, transform), ()
        image_folder.check_unreadable(problems, max_unreadable)
        max_unreadable -= len(problems)
        indices, images = image_folder.stack_images(results, len(self.items), transform, max_unreadable)
        is_readable = np.zeros(len(self.items), bool)
        is_readable[indices] = True
        readable = self.select(is_readable).items
        names = readable.names if isinstance(readable, shards.ShardSamples) else list(map(str, readable))
        targets = torch.from_numpy(self.targets[indices])
        return DecodedImages(torch.from_numpy(images).permute(0, 3, 1, 2), targets, names)


def load_labeled_images(spec: str, val_fraction: float | None = None, *, images: str = "") -> Splits[LabeledImages]:
    """Load the splits and the class names of a dataset.

    Args:
        spec: ``mnist``, ``digits``, ``cifar10``, ``cifar100``, ``imagenet``; the path of an image folder with one
            subfolder per class, of an archive of one, or of a CSV file with the columns ``path``, ``label`` and
            optionally ``split``; or shards as for :func:`fukami.data.shards.load_shards`.
        val_fraction: fraction of each class of the training data used for validation, if the dataset has no validation
            split; None: as for :func:`fukami.data.splits.select_validation`, but 0 for MNIST and CIFAR, whose protocol
            has no validation split.
        images: folder of the images, if ``spec`` is a CSV file whose paths are relative to it.

    Raises:
        UsageError: ``spec`` is neither a dataset name nor an existing path.
        Error: the dataset is corrupted or missing, or has no class labels.
    """
    source = sources.identify_source(spec, "labels", images)
    layout, root = source.require("labels")
    if layout == "shards":
        shard_splits, labels = shards.load_shards(spec)
        parts = {split: LabeledImages(*part) for split, part in shard_splits.items()}
        return _complete_splits(parts, labels, val_fraction)
    if layout != "built-in":
        splits = label_tables.read_csv(root, source.images) if layout == "CSV" else image_folder.scan_folder(root)
        return _build_splits(splits, val_fraction)
    if spec == "imagenet":
        return _build_splits(imagenet.scan_imagenet(), val_fraction)
    if spec != "digits" and val_fraction is None:
        val_fraction = 0.0
    arrays: tuple[cifar.ArraySplit, cifar.ArraySplit | None]
    labels = DIGIT_LABELS
    if spec in ("cifar10", "cifar100"):
        dataset = cifar.load_cifar(spec)
        if isinstance(dataset, Path):
            return _build_splits(image_folder.scan_folder(dataset), val_fraction)
        arrays, labels = dataset
    else:
        arrays = mnist.load_mnist() if spec == "mnist" else (digits.load_digits(), None)
    train, test = arrays
    parts = {"train": LabeledImages(train[0], train[1].astype(np.int64))}
    if test:
        parts["test"] = LabeledImages(test[0], test[1].astype(np.int64))
    return _complete_splits(parts, labels, val_fraction)


def _build_splits(
    splits: Mapping[Split, image_folder.FolderSplit], val_fraction: float | None
) -> Splits[LabeledImages]:
    labels = tuple(sorted({name for part in splits.values() for name in part.class_names}))
    class_indices = {label: i for i, label in enumerate(labels)}
    return _complete_splits(
        {
            split: LabeledImages(part.files, np.array([class_indices[name] for name in part.class_names], np.int64))
            for split, part in splits.items()
        },
        labels,
        val_fraction,
    )


def _complete_splits(
    splits: Mapping[Split, LabeledImages], labels: tuple[str, ...], val_fraction: float | None
) -> Splits[LabeledImages]:
    """Take the validation images from the training images, unless there are some."""
    empty = LabeledImages((), np.zeros(0, np.int64))
    train, val, test = (splits.get(split, empty) for split in SPLITS)
    if not len(val):
        is_selected = select_validation(train.targets, val_fraction)
        train, val = train.select(~is_selected), train.select(is_selected)
    return Splits(train, val, test, labels)


def _resize(images: image_io.UInt8Array, transform: SquareTransform) -> Tensor:
    """Resize images ``(N, H, W)`` or ``(N, H, W, 3)`` to ``(N, C, size, size)``; fast if the size is already right.

    Built-in datasets need no other preprocessing: their digits are already extracted and centered.
    """
    channels = 1 if images.ndim == 3 else 3
    if transform.channels not in (1, 3):
        raise UsageError(
            f"this dataset has {channels} channel{'s' * (channels != 1)}; remove --channels {transform.channels}"
        )
    if images.shape[1] != transform.size or (channels, transform.channels) == (3, 1):
        resized = [
            image_io.resize_and_crop(Image.fromarray(image), channels=transform.channels, size=transform.size)
            for image in images
        ]
        shape = len(images), transform.channels, transform.size, transform.size
        return torch.from_numpy(np.array(resized, np.uint8).reshape(shape))
    tensor = torch.from_numpy(np.ascontiguousarray(images)).view(len(images), transform.size, transform.size, channels)
    return tensor.permute(0, 3, 1, 2).repeat(1, transform.channels // channels, 1, 1)
