"""Segmentation datasets: loading by name or path."""

import dataclasses
import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fukami.data import class_tables, coco_masks, formats, image_folder, mask_folders, masks, scenes
from fukami.data.annotations import (
    AnnotationProblem,
    ImageHeader,
    Samples,
    read_header,
    read_headers,
    separate_trainval,
    split_off_validation,
)
from fukami.data.class_tables import ClassTable
from fukami.data.samples import Mask, Sample
from fukami.data.sources import DataSource, identify_source
from fukami.data.splits import Splits
from fukami.errors import Error

logger = logging.getLogger(__name__)


class Mismatch(NamedTuple):
    """Problem of an image's mask: its kind as in ``fukami doctor``, and a description."""

    kind: str
    detail: str


@dataclass(frozen=True)
class DatasetIndex:
    """Index of a dataset: its classes, and the images and masks of each split."""

    class_table: ClassTable
    splits: dict[str, list[tuple[Path, Mask]]]
    problems: Sequence[AnnotationProblem] = ()  # unreadable or missing images, and list entries
    orphans: Sequence[AnnotationProblem] = ()  # annotations that belong to no image or class

    def has_masks(self, split: str) -> bool:
        """Return whether an image of a split has a mask or an object; a warning names a split without any."""
        masks_of_images = [mask for _, mask in self.splits.get(split, ())]
        if any(_is_annotated(mask) for mask in masks_of_images):
            return True
        if masks_of_images or any(problem.split == split for problem in self.problems):
            logger.warning(f"the {split} split has no mask and is not used for evaluation; annotate its images")
        return False


def load_dataset(
    spec: str,
    val_fraction: float | None,
    max_unreadable: int = image_folder.MAX_UNREADABLE,
    *,
    images: str = "",
    ignore_index: int = class_tables.IGNORE_INDEX,
    include_train: bool = True,
) -> Splits[Samples]:
    """Load the splits and the class names of a dataset.

    Args:
        spec: ``scenes`` (bundled), ``camvid``, ``voc2012``, ``cityscapes``, ``coco``, or the path of a folder (or
            archive) of images and masks, or with polygons of COCO, labelme or YOLO.
        val_fraction: fraction of the training images used for validation, if the dataset has no validation split;
            None: as for :func:`fukami.data.splits.select_validation`.
        max_unreadable: maximum number of missing or unreadable images per split; they are skipped and logged.
        images: folder of the images, if ``spec`` contains only their masks.
        ignore_index: mask value of ignored pixels.
        include_train: also load the training samples; otherwise they need not exist.

    Raises:
        UsageError: ``spec`` is neither a known name nor a path.
        Error: the layout is unknown, a file is invalid, or there are no images.
    """
    source = identify_source(spec, "masks", images)
    if spec == "scenes":
        train = scenes.generate_mask_samples(0, scenes.NUM_TRAIN)
        val = scenes.generate_mask_samples(scenes.NUM_TRAIN, scenes.NUM_TEST)
        return Splits(train, val, (), scenes.MASK_LABELS)
    index = index_dataset(source, ignore_index)
    val, test = (
        _load_splits(index, (name,), max_unreadable) if index.has_masks(name) else () for name in ("val", "test")
    )
    if not include_train and (val or test):
        return Splits((), val, test, index.class_table.labels)
    train = _load_splits(index, ("", "train", "trainval"), max_unreadable)
    if not val:
        train, val = split_off_validation(train, val_fraction)
    return Splits(train, val, test, index.class_table.labels)


def index_dataset(source: DataSource, ignore_index: int = class_tables.IGNORE_INDEX) -> DatasetIndex:
    """Index the folders of masks, or the polygons of COCO, labelme or YOLO, of a dataset.

    Raises:
        Error: the dataset has no masks in a known layout, or a file is invalid.
    """
    layout, root = source.require("masks")
    if layout in formats.OUTLINE_READERS:
        annotations, image_masks = formats.OUTLINE_READERS[layout](root, source.images)
        splits: dict[str, list[tuple[Path, Mask]]] = {
            split: [(path, image_masks[path]) for path in dict.fromkeys(entry.image_path for entry in entries)]
            for split, entries in annotations.splits.items()
        }
        class_table = coco_masks.build_coco_class_table(annotations)
        problems, orphans = annotations.unreadable_images, annotations.orphan_annotations
    else:
        folders = mask_folders.index_folder(root, source.images)
        class_table = folders.class_table.with_ignore_index(ignore_index)
        problems, orphans = folders.problems, []
        splits = {
            split: [(pair.image_path, _build_mask(pair, class_table)) for pair in pairs]
            for split, pairs in folders.splits.items()
        }
    check_num_classes(source, class_table)
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    separate_trainval(splits, operator.itemgetter(0), problems)
    if {"train", "val", "trainval"} <= splits.keys():
        del splits["trainval"]
        problems = [problem for problem in problems if problem.split != "trainval"]
    return DatasetIndex(class_table, splits, problems, orphans)


def check_num_classes(source: DataSource, class_table: ClassTable) -> None:
    """Check that masks support the number of classes.

    Raises:
        Error: there are more.
    """
    if len(class_table.labels) > masks.MAX_CLASSES:
        raise Error(
            f"{source.location} has {len(class_table.labels)} classes, and masks support at most {masks.MAX_CLASSES}; "
            "merge some"
        )


def _build_mask(pair: mask_folders.FilePair, class_table: ClassTable) -> Mask:
    if pair.mask_path is None:
        return masks.MissingMask(f"{pair.image_path} has no mask; add one of the same name, or remove the image")
    return masks.MaskFile(pair.mask_path, class_table)


def _is_annotated(mask: Mask) -> bool:
    return bool(mask.objects) if isinstance(mask, coco_masks.COCOMask) else not isinstance(mask, masks.MissingMask)


def _load_splits(index: DatasetIndex, names: Sequence[str], max_unreadable: int) -> Samples:
    """Load the images of splits whose mask matches the image; the others are skipped, with one warning.

    Raises:
        Error: more than ``max_unreadable`` are missing, unreadable or without a matching mask, or none remains.
    """
    pairs = [pair for name in names for pair in index.splits.get(name, ())]
    kept: list[Sample] = []
    errors = [
        f"{problem.file}{f', line {problem.line}' if problem.line else ''}: {problem.detail}"
        for problem in index.problems
        if problem.split in names and problem.kind in ("missing", "unreadable")
    ]
    for (image, mask), header in zip(pairs, read_headers([image for image, _ in pairs]), strict=True):
        if isinstance(header, Error):
            errors.append(str(header))
        elif mismatch := find_mismatch(image, header, mask):
            errors.append(mismatch.detail)
        else:
            kept.append(Sample.from_mask(image, header.upright_size, str(image), _orient_mask(mask, header)))
    if errors and not kept:
        raise Error(f"none of the {len(errors)} images can be used; the first: {errors[0]}")
    if errors:
        logger.warning(
            f"{len(errors)} of {len(kept) + len(errors)} images are skipped:\n{image_folder.format_errors(errors)}"
        )
    image_folder.check_unreadable(errors, max_unreadable)
    return tuple(kept)


def _orient_mask(mask: Mask, header: ImageHeader) -> Mask:
    """Return a mask with the image's EXIF orientation if its outlines refer to the stored image, by its size."""
    if isinstance(mask, coco_masks.COCOMask) and header.is_stored_size(mask.size):
        return dataclasses.replace(mask, orientation=header.orientation)
    return mask


def find_mismatch(image_path: Path, image_header: ImageHeader, mask: Mask) -> Mismatch | None:
    """Return why a mask does not match its image, None if it does; only the headers are read."""
    if isinstance(mask, masks.MissingMask):
        return Mismatch("no mask", mask.detail)
    if isinstance(mask, coco_masks.COCOMask):
        size, source = mask.size, f"its entry in {mask.file}"
    elif isinstance(mask, masks.MaskFile):
        header = read_header(mask.path)
        if isinstance(header, Error):
            return Mismatch("unreadable", str(header))
        size, source = (header.width, header.height), f"its mask {mask.path}"
    else:
        return None
    has_outlines = isinstance(mask, coco_masks.COCOMask)
    if size == image_header.upright_size or (has_outlines and image_header.is_stored_size(size)):
        return None
    image_size = "×".join(map(str, image_header.upright_size))
    detail = (
        f"{image_path} has {image_size} pixels, and {source} {'×'.join(map(str, size))}; make the mask the same size "
        "as the image"
    )
    return Mismatch("wrong size", detail)
