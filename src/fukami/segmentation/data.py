"""Segmentation datasets by name or path: bundled, downloaded, folders of masks, COCO's JSON."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fukami.data import class_tables, coco, image_folder, locations, masks, scenes, voc
from fukami.data.annotations import AnnotationProblem, ImageHeader, read_header, read_headers
from fukami.data.class_tables import ClassTable
from fukami.data.parsing import exists
from fukami.data.samples import Mask, Sample
from fukami.errors import Error, build_unknown_error
from fukami.segmentation import coco_masks, mask_folders

logger = logging.getLogger(__name__)
DATASETS = ("scenes", "camvid", "voc2012", "cityscapes", "coco")
LOCAL_DATASETS = {"camvid": "the archive, or its folder", "cityscapes": "its folders leftImg8bit and gtFine"}

Samples = tuple[Sample, ...]


@dataclass(frozen=True)
class DatasetIndex:
    """Index of a dataset: its classes, and the images and masks of each split."""

    class_table: ClassTable
    splits: dict[str, list[tuple[Path, Mask]]]
    problems: Sequence[AnnotationProblem] = ()  # files and list entries that belong to no image

    @property
    def train_split(self) -> str:
        """Name of the training split."""
        return next((name for name in ("train", "", "val") if name in self.splits), next(iter(self.splits), ""))

    @property
    def eval_split(self) -> str | None:
        """Name of the evaluation split: test, or else validation; None if the dataset has neither."""
        return next((name for name in ("test", "val") if name in self.splits and name != self.train_split), None)


def load_dataset(
    spec: str,
    holdout: float,
    max_broken: int = image_folder.MAX_BROKEN,
    *,
    ignore_index: int = class_tables.IGNORE_INDEX,
    include_train: bool = True,
) -> tuple[Samples, Samples, tuple[str, ...]]:
    """Load the training samples, the evaluation samples and the class names of a dataset.

    Args:
        spec: ``scenes`` (bundled), ``camvid``, ``voc2012``, ``cityscapes``, ``coco``, or the path of a folder (or
            archive) of images and masks, or of COCO's JSON.
        holdout: fraction of the images held out for evaluation, if the dataset has no splits.
        max_broken: maximum number of missing or unreadable images per split; they are skipped and logged.
        ignore_index: mask value of ignored pixels.
        include_train: also load the training samples; otherwise they need not exist.

    Raises:
        UsageError: ``spec`` is neither a known name nor a path.
        Error: the layout is unknown, a file is invalid, or there are no images.
    """
    if spec == "scenes":
        labels = scenes.MASK_LABELS
        return (
            scenes.generate_mask_samples(0, scenes.NUM_TRAIN),
            scenes.generate_mask_samples(scenes.NUM_TRAIN, scenes.NUM_TEST),
            labels,
        )
    index = index_dataset(find_dataset(spec), ignore_index)
    labels, eval_split = index.class_table.labels, index.eval_split
    train = (
        _load_split(index.splits.get(index.train_split, []), max_broken) if include_train or eval_split is None else ()
    )
    if eval_split is not None:
        return train, _load_split(index.splits[eval_split], max_broken), labels
    is_held_out = image_folder.select_holdout(np.zeros(len(train), int), holdout).tolist()
    kept = tuple(sample for sample, held_out in zip(train, is_held_out, strict=True) if not held_out)
    return kept, tuple(sample for sample, held_out in zip(train, is_held_out, strict=True) if held_out), labels


def index_dataset(path: Path, ignore_index: int = class_tables.IGNORE_INDEX) -> DatasetIndex:
    """Index the folders or the COCO JSON at a path.

    Raises:
        Error: the layout is unknown, or a file is invalid.
    """
    layout, root = detect_layout(path) or ("folders", image_folder.unpack_archive(path) if path.is_file() else path)
    if layout == "COCO":
        annotations, image_masks = coco_masks.read_coco_masks(root)
        splits: dict[str, list[tuple[Path, Mask]]] = {
            split: [(entry.image_path, image_masks[entry.image_path]) for entry in entries]
            for split, entries in annotations.splits.items()
        }
        return DatasetIndex(
            coco_masks.build_coco_class_table(annotations),
            {split: entries for split, entries in splits.items() if entries},
        )
    folders = mask_folders.index_folder(root)
    class_table = folders.class_table.with_ignore_index(ignore_index)
    if len(class_table.labels) > masks.MAX_CLASSES:
        raise Error(
            f"{path} has {len(class_table.labels)} classes, and masks support at most {masks.MAX_CLASSES}; merge some"
        )
    return DatasetIndex(
        class_table,
        {
            split: [(pair.image_path, _build_mask(pair, class_table)) for pair in pairs]
            for split, pairs in folders.splits.items()
            if pairs
        },
        folders.problems,
    )


def _build_mask(pair: mask_folders.FilePair, class_table: ClassTable) -> Mask:
    if pair.mask_path is None:
        return masks.MissingMask(f"{pair.image_path} has no mask; add one of the same name, or remove the image")
    return masks.MaskFile(pair.mask_path, class_table)


def _load_split(pairs: Sequence[tuple[Path, Mask]], max_broken: int) -> Samples:
    """Load the samples of a split whose mask matches the image; the others are skipped, with one warning.

    Raises:
        Error: more than ``max_broken`` are skipped, or none remains.
    """
    kept: list[Sample] = []
    errors: list[str] = []
    for (image, mask), header in zip(pairs, read_headers([image for image, _ in pairs]), strict=True):
        error = str(header) if isinstance(header, Error) else find_mismatch(image, header, mask)
        if error or isinstance(header, Error):
            errors.append(error)
        else:
            kept.append(Sample.from_mask(image, header.upright_size, str(image), mask))
    if errors and not kept:
        raise Error(f"none of the {len(errors)} images can be used; the first: {errors[0]}")
    if errors:
        logger.warning(f"{len(errors)} of {len(pairs)} images are skipped:\n{image_folder.format_errors(errors)}")
    image_folder.check_broken(errors, max_broken)
    return tuple(kept)


def find_mismatch(image_path: Path, image_header: ImageHeader, mask: Mask) -> str:
    """Return why a mask does not match its image, or an empty string; only the headers are read."""
    if isinstance(mask, masks.MissingMask):
        return mask.detail
    if isinstance(mask, coco_masks.COCOMask):
        size, source = mask.size, f"its entry in {mask.file}"
    elif isinstance(mask, masks.MaskFile):
        header = read_header(mask.path)
        if isinstance(header, Error):
            return str(header)
        size, source = (header.width, header.height), f"its mask {mask.path}"
    else:
        return ""
    if size == image_header.upright_size:
        return ""
    image_size = "×".join(map(str, image_header.upright_size))
    return (
        f"{image_path} has {image_size} pixels, and {source} {'×'.join(map(str, size))}; make the mask the same size "
        "as the image"
    )


def find_dataset(spec: str) -> Path:
    """Return the folder, archive or file of a dataset name or path.

    Raises:
        UsageError: ``spec`` is neither a known name nor a path.
        Error: a known dataset is in none of the dataset locations.
    """
    if spec == "voc2012":
        return voc.find_voc("2012")
    if spec == "coco":
        return coco.find_coco()
    if spec in LOCAL_DATASETS:
        return locations.find_dataset(spec, LOCAL_DATASETS[spec])
    if not exists(Path(spec)):
        raise build_unknown_error("dataset (and no file or folder)", spec, DATASETS)
    return Path(spec)


def is_segmentation_dataset(spec: str) -> bool:
    """Return whether a name or path is a segmentation dataset; an archive is unpacked."""
    return locations.is_known_dataset(spec, DATASETS, detect_layout)


def detect_layout(path: Path) -> tuple[str, Path] | None:
    """Return the layout of a folder, archive or file and its root folder; None if it has no masks.

    Raises:
        Error: the archive cannot be unpacked, or a JSON file is invalid.
    """
    if path.is_file():
        if path.suffix.lower() == ".json":
            return ("COCO", path) if coco_masks.has_outlines(path) else None
        if path.suffix.lower() in (".yaml", ".yml"):
            return None
        path = image_folder.unpack_archive(path)
    for root in image_folder.descend_single_folders(path):
        if mask_folders.is_mask_folder(root):
            return "folders", root
        if coco.find_coco_files(root) and coco_masks.has_outlines(root):
            return "COCO", root
    return None
