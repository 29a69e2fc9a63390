"""Labeled images for classification, loaded by dataset name or path."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fukami.data import cifar, digits, image_folder, imagenet, mnist, shards, sources
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform

DIGIT_LABELS = tuple("0123456789")


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images ``(N, C, H, W)`` uint8, their class indices ``(N,)`` and names."""

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

    items: tuple[Path, ...] | shards.ShardSamples | image_folder.UInt8Array
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    def select(self, mask: npt.NDArray[np.bool_]) -> "LabeledImages":
        """Return the images selected by ``mask`` ``(N,)``."""
        items: tuple[Path, ...] | shards.ShardSamples | image_folder.UInt8Array
        if isinstance(self.items, shards.ShardSamples):
            items = self.items.select(mask)
        elif isinstance(self.items, np.ndarray):
            items = self.items[mask]
        else:
            items = tuple(self.items[i] for i in np.flatnonzero(mask))
        return LabeledImages(items, self.targets[mask])

    def decode(self, transform: SquareTransform, max_broken: int = image_folder.MAX_BROKEN) -> DecodedImages:
        """Decode and preprocess all images in memory; unreadable images are skipped and reported.

        Raises:
            Error: more than ``max_broken`` images are unreadable, or all are.
        """
        from fukami.data import streaming, webdataset

        if isinstance(self.items, np.ndarray):
            return DecodedImages(_resize(self.items, transform), torch.from_numpy(self.targets))
        if isinstance(self.items, shards.ShardSamples):
            results = webdataset.decode_shards(self.items, transform)
            max_broken -= len(self.items.problems)  # already reported
        else:
            results = streaming.decode_files(self.items, transform)
        indices, images = image_folder.stack_images(results, len(self.items), transform, max_broken)
        is_readable = np.zeros(len(self.items), bool)
        is_readable[indices] = True
        readable = self.select(is_readable).items
        names = readable.names if isinstance(readable, shards.ShardSamples) else list(map(str, readable))
        targets = torch.from_numpy(self.targets[indices])
        return DecodedImages(torch.from_numpy(images).permute(0, 3, 1, 2), targets, names)


def load_labeled_images(
    spec: str, holdout: float, *, images: str = ""
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
    """Load the training split, the test split and the class names of a dataset.

    Args:
        spec: ``mnist``, ``digits``, ``cifar10``, ``cifar100``, ``imagenet``; the path of an image folder with one
            subfolder per class, of an archive of one, or of a CSV file with the columns ``path``, ``label`` and
            optionally ``split``; or shards as for :func:`fukami.data.shards.load_shards`.
        holdout: fraction of each class held out for testing, if the dataset has no test split.
        images: folder of the images, if ``spec`` is a CSV file whose paths are relative to it.

    Raises:
        UsageError: ``spec`` is neither a dataset name nor an existing path.
        Error: the dataset is corrupted or missing, or has no class labels.
    """
    source = sources.identify_source(spec, "labels", images)
    layout, root = source.require("labels")
    if layout == "shards":
        train_shards, test_shards, labels = shards.load_shards(spec)
        test_images = LabeledImages(*test_shards) if test_shards else None
        return *_hold_out(LabeledImages(*train_shards), test_images, holdout), labels
    if layout != "built-in":
        splits = image_folder.read_csv(root, source.images) if layout == "CSV" else image_folder.scan_folder(root)
        return _build_splits(*splits, holdout)
    if spec == "imagenet":
        return _build_splits(*imagenet.scan_imagenet(), holdout)
    arrays: tuple[cifar.ArraySplit, cifar.ArraySplit | None]
    labels = DIGIT_LABELS
    if spec in ("cifar10", "cifar100"):
        dataset = cifar.load_cifar(spec)
        if isinstance(dataset, Path):
            return _build_splits(*image_folder.scan_folder(dataset), holdout)
        arrays, labels = dataset
    else:
        arrays = mnist.load_mnist() if spec == "mnist" else (digits.load_digits(), None)
    (pixels, targets), test = arrays
    test_split = LabeledImages(test[0], test[1].astype(np.int64)) if test else None
    return *_hold_out(LabeledImages(pixels, targets.astype(np.int64)), test_split, holdout), labels


def _build_splits(
    train: image_folder.FolderSplit, test: image_folder.FolderSplit | None, holdout: float
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
    labels = tuple(sorted({*train.class_names, *(test.class_names if test else ())}))
    class_indices = {label: i for i, label in enumerate(labels)}

    def build(split: image_folder.FolderSplit) -> LabeledImages:
        return LabeledImages(split.files, np.array([class_indices[name] for name in split.class_names], np.int64))

    return *_hold_out(build(train), build(test) if test else None, holdout), labels


def _hold_out(train: LabeledImages, test: LabeledImages | None, holdout: float) -> tuple[LabeledImages, LabeledImages]:
    """Return the training and the test split; the test split is held out of the training split if it is None."""
    if test is not None:
        return train, test
    is_held_out = image_folder.select_holdout(train.targets, holdout)
    return train.select(~is_held_out), train.select(is_held_out)


def _resize(images: image_folder.UInt8Array, transform: SquareTransform) -> Tensor:
    """Resize images ``(N, H, W)`` or ``(N, H, W, 3)`` to ``(N, C, size, size)``; fast if the size is already right.

    Built-in datasets need no other preprocessing: their digits are already extracted and centered.
    """
    channels = 1 if images.ndim == 3 else 3
    if images.shape[1] != transform.size or (channels, transform.channels) == (3, 1):
        resized = [
            image_io.resize_and_crop(Image.fromarray(image), channels=transform.channels, size=transform.size)
            for image in images
        ]
        return torch.from_numpy(np.stack(resized))
    tensor = torch.from_numpy(np.ascontiguousarray(images)).view(len(images), transform.size, transform.size, channels)
    return tensor.permute(0, 3, 1, 2).repeat(1, transform.channels // channels, 1, 1)
