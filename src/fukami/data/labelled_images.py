"""Classified images from any source, by name or path."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fukami.data import cifar, digits, image_folder, imagenet, mnist, shards
from fukami.data.parsing import exists
from fukami.errors import build_unknown_error
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform

DIGIT_LABELS = tuple("0123456789")
DATASET_NAMES = ("digits", "mnist", "cifar10", "cifar100", "imagenet")


@dataclass(frozen=True)
class DecodedImages:
    """Images ``(N, C, H, W)`` uint8 with the number ``(N,)`` of the class of each, and their names."""

    images: Tensor
    targets: Tensor
    names: Sequence[str] = ()


@dataclass(frozen=True)
class LabelledImages:
    """Classified images that are not prepared for a network yet.

    Args:
        items: files, samples in shards, or an array of images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8.
        targets: ``(N,)`` class numbers.
    """

    items: tuple[Path, ...] | shards.ShardSamples | image_folder.UInt8Array
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    def select(self, mask: npt.NDArray[np.bool_]) -> "LabelledImages":
        """Those that are marked in ``mask`` ``(N,)``."""
        items: tuple[Path, ...] | shards.ShardSamples | image_folder.UInt8Array
        if isinstance(self.items, shards.ShardSamples):
            items = self.items.select(mask)
        elif isinstance(self.items, np.ndarray):
            items = self.items[mask]
        else:
            items = tuple(self.items[i] for i in np.flatnonzero(mask))
        return LabelledImages(items, self.targets[mask])

    def decode(self, prepare: SquareTransform, max_broken: int = image_folder.MAX_BROKEN) -> DecodedImages:
        """All images as a network sees them, in memory; broken ones are left out and named.

        Raises:
            Error: more images than ``max_broken`` are, or not one can be read.
        """
        from fukami.data import streaming, webdataset

        if isinstance(self.items, np.ndarray):
            return DecodedImages(_resize(self.items, prepare), torch.from_numpy(self.targets))
        if isinstance(self.items, shards.ShardSamples):
            results = webdataset.decode_shards(self.items, prepare)
            max_broken -= len(self.items.problems)  # which are told already
        else:
            results = streaming.decode_files(self.items, prepare)
        good, images = image_folder.stack_images(results, len(self.items), prepare, max_broken)
        which = np.zeros(len(self.items), bool)
        which[good] = True
        kept = self.select(which).items
        names = kept.names if isinstance(kept, shards.ShardSamples) else list(map(str, kept))
        return DecodedImages(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(self.targets[good]), names)


def load_labelled_images(spec: str, holdout: float) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    """The training part, the test part and the class names of a data set.

    Args:
        spec: ``mnist``, ``digits``, ``cifar10``, ``cifar100``, ``imagenet``, or the path of a folder (or archive) of
            images by class, or of a CSV file with the columns ``path`` and ``label`` (and perhaps ``split``), or
            shards as :func:`fukami.data.shards.load_shards` takes them.
        holdout: share of each class that is the test part, where the data have none of their own.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are damaged, or there are none.
    """
    arrays: tuple[Any, Any] | None = None
    labels: tuple[str, ...] = DIGIT_LABELS
    if spec == "mnist":
        arrays = mnist.load_mnist()
    elif spec == "digits":
        arrays = digits.load_digits(), None
    elif spec in ("cifar10", "cifar100"):
        found = cifar.load_cifar(spec)
        if isinstance(found, Path):
            return _build_splits(*image_folder.scan_folder(found), holdout)
        arrays, labels = found
    elif spec == "imagenet":
        return _build_splits(*imagenet.scan_imagenet(), holdout)
    if arrays is None and shards.is_shard_spec(spec):
        learned, judged, labels = shards.load_shards(spec)
        return *_hold_out(LabelledImages(*learned), LabelledImages(*judged) if judged else None, holdout), labels
    if arrays is None:
        if not exists(Path(spec)):
            raise build_unknown_error("data set (and no file or folder)", spec, DATASET_NAMES)
        scan = image_folder.read_csv if spec.lower().endswith(".csv") else image_folder.scan_folder
        return _build_splits(*scan(Path(spec)), holdout)
    train, test = (part and LabelledImages(part[0], part[1].astype(np.int64)) for part in arrays)
    return *_hold_out(train, test, holdout), labels


def _build_splits(
    train: image_folder.FolderSplit, test: image_folder.FolderSplit | None, holdout: float
) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    labels = tuple(sorted({*train.class_names, *(test.class_names if test else ())}))
    number = {label: i for i, label in enumerate(labels)}

    def source(part: image_folder.FolderSplit) -> LabelledImages:
        return LabelledImages(part.files, np.array([number[name] for name in part.class_names], np.int64))

    return *_hold_out(source(train), source(test) if test else None, holdout), labels


def _hold_out(
    train: LabelledImages, test: LabelledImages | None, holdout: float
) -> tuple[LabelledImages, LabelledImages]:
    """The two parts; the second one is held out of the first where the data have none of their own."""
    if test is not None:
        return train, test
    held = image_folder.select_holdout(train.targets, holdout)
    return train.select(~held), train.select(held)


def _resize(images: image_folder.UInt8Array, prepare: SquareTransform) -> Tensor:
    """Images ``(N, H, W)`` or ``(N, H, W, 3)`` as ``(N, C, size, size)``; those of that size already cost little.

    The embedded and the standard sets are in the form that a network sees: a digit needs no finding there.
    """
    channels = 1 if images.ndim == 3 else 3
    if images.shape[1] != prepare.size or (channels, prepare.channels) == (3, 1):
        fitted = [
            image_io.resize_and_crop(Image.fromarray(p), channels=prepare.channels, size=prepare.size) for p in images
        ]
        return torch.from_numpy(np.stack(fitted))
    found = torch.from_numpy(np.ascontiguousarray(images)).view(len(images), prepare.size, prepare.size, channels)
    return found.permute(0, 3, 1, 2).repeat(1, prepare.channels // channels, 1, 1)
