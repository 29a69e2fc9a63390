"""Captioning datasets: loading by name or path."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fukami.data import captions, image_folder, labeled_images, scenes, streaming
from fukami.data.sources import identify_source
from fukami.data.splits import choose_val_fraction
from fukami.errors import Error
from fukami.image.transform import SquareTransform

logger = logging.getLogger(__name__)
DEFAULT_VAL_FRACTION = 0.1


@dataclass(frozen=True)
class CaptionDataset:
    """Images (files or arrays ``(H, W, 3)`` uint8) and the captions of each, as strings or as lists of tokens."""

    items: tuple[Any, ...]
    captions: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_on_disk(self) -> bool:
        """True if the images are files."""
        return all(isinstance(item, Path) for item in self.items)

    def select(self, indices: Iterable[int]) -> "CaptionDataset":
        """Select the images with these indices."""
        selected = list(indices)
        return CaptionDataset(tuple(self.items[i] for i in selected), tuple(self.captions[i] for i in selected))

    def load_images(
        self, transform: SquareTransform, max_unreadable: int = image_folder.MAX_UNREADABLE
    ) -> "tuple[CaptionDataset, labeled_images.DecodedImages]":
        """Load and transform all images into memory; unreadable ones are skipped with their captions, and logged.

        Raises:
            Error: more than ``max_unreadable`` images are unreadable, or all of them.
        """
        if self.is_on_disk:
            results: Iterable[Any] = streaming.decode_files(self.items, transform)
        else:
            results = (transform(Image.fromarray(item)).transpose(1, 2, 0) for item in self.items)
        readable, images = image_folder.stack_images(results, len(self), transform, max_unreadable)
        kept = self if len(readable) == len(self) else self.select(readable)
        names = [item if isinstance(item, Path) else f"scene {index}" for index, item in enumerate(kept.items)]
        return kept, labeled_images.DecodedImages(
            torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(len(readable)), list(map(str, names))
        )


def load_dataset(
    spec: str, val_fraction: float | None, *, images: str = ""
) -> tuple[CaptionDataset, CaptionDataset, CaptionDataset]:
    """Load the training, validation and test splits of a dataset; the last one may be empty.

    Args:
        spec: ``scenes``, ``flickr8k``, ``flickr30k``, ``coco``, the path of a folder, an archive, a CSV or a JSON file,
            or the name of a folder or zip archive in the dataset locations.
        val_fraction: fraction of the training images, the last by name, used for validation if there is no validation
            split; None: 0.1, or less so that there are at most 5,000.
        images: folder of the images, if ``spec`` contains only their captions.

    Raises:
        UsageError: ``spec`` is neither a known name nor a path.
        Error: the files are invalid, or there are no captions.
    """
    source = identify_source(spec, "captions", images)
    if spec == "scenes":
        train = CaptionDataset(*scenes.generate_captioned_images(0, scenes.NUM_CAPTIONED))
        val = CaptionDataset(*scenes.generate_captioned_images(scenes.NUM_CAPTIONED, scenes.NUM_TEST))
        return train, val, CaptionDataset((), ())
    parsed = captions.parse_caption_files(source.require("captions").root, source.images)
    if parsed.problems:
        first = parsed.problems[0]
        logger.warning(
            f"{len(parsed.problems)} images or captions are skipped; the first: {first.file}, line {first.line}: "
            f"{first.detail}; fukami doctor lists all"
        )
    splits = {name: _build_dataset(captions_of) for name, captions_of in parsed.splits.items() if captions_of}
    if not splits:
        raise Error(f"{spec} has no image with a caption; run fukami doctor {spec} to find the problems")
    empty = CaptionDataset((), ())
    train = _concatenate(splits.get(name, empty) for name in ("", "train"))
    val, test = splits.get("val", empty), splits.get("test", empty)
    if not len(val):
        val_fraction = choose_val_fraction(val_fraction, len(train), DEFAULT_VAL_FRACTION)
        num_train = len(train) - round(val_fraction * len(train))
        train, val = train.select(range(num_train)), train.select(range(num_train, len(train)))
    return train, val, test


def _build_dataset(images: dict[Path, list[str]]) -> CaptionDataset:
    """Build a dataset of the images, sorted by name."""
    order = sorted(images, key=lambda path: (path.name, path))
    return CaptionDataset(tuple(order), tuple(tuple(images[path]) for path in order))


def _concatenate(splits: Iterable[CaptionDataset]) -> CaptionDataset:
    """Concatenate datasets."""
    datasets = list(splits)
    return CaptionDataset(
        sum((dataset.items for dataset in datasets), ()), sum((dataset.captions for dataset in datasets), ())
    )
