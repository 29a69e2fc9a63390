"""Images with masks from any source, by name or path."""

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
    """What a data set holds: the classes, and of each part its images and their masks."""

    class_table: ClassTable
    splits: dict[str, list[tuple[Path, Mask]]]
    problems: Sequence[AnnotationProblem] = ()  # what of the data is of no image

    @property
    def train_split(self) -> str:
        """The part that is learned from."""
        return next((name for name in ("train", "", "val") if name in self.splits), next(iter(self.splits), ""))

    @property
    def eval_split(self) -> str | None:
        """The part that is judged on: the test part, or else the one for validation; None where there is neither."""
        return next((name for name in ("test", "val") if name in self.splits and name != self.train_split), None)


def load_dataset(
    spec: str,
    holdout: float,
    max_broken: int = image_folder.MAX_BROKEN,
    *,
    ignore_index: int = class_tables.IGNORE_INDEX,
    include_train: bool = True,
) -> tuple[Samples, Samples, tuple[str, ...]]:
    """What to train on, what to judge on, and the class names of a data set.

    Args:
        spec: ``scenes`` (embedded), ``camvid``, ``voc2012``, ``cityscapes``, ``coco``, or the path of a folder (or
            archive) of images and masks, or of COCO's JSON.
        holdout: share of the images that is judged on, where the data have no parts of their own.
        max_broken: images that may be missing or broken, in each part; they are left out and named.
        ignore_index: the value in masks that stands for no class.
        include_train: also what to train on, which need not be there otherwise.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are in no known layout or damaged, or there are none.
    """
    if spec == "scenes":
        labels = scenes.MASK_LABELS
        return (
            scenes.generate_mask_samples(0, scenes.NUM_TRAIN),
            scenes.generate_mask_samples(scenes.NUM_TRAIN, scenes.NUM_TEST),
            labels,
        )
    found = index_dataset(find_dataset(spec), ignore_index)
    labels, judged = found.class_table.labels, found.eval_split
    train = _load_split(found.splits.get(found.train_split, []), max_broken) if include_train or judged is None else ()
    if judged is not None:
        return train, _load_split(found.splits[judged], max_broken), labels
    held = image_folder.select_holdout(np.zeros(len(train), int), holdout).tolist()
    kept = tuple(each for each, out in zip(train, held, strict=True) if not out)
    return kept, tuple(each for each, out in zip(train, held, strict=True) if out), labels


def index_dataset(path: Path, ignore_index: int = class_tables.IGNORE_INDEX) -> DatasetIndex:
    """What the folders or the JSON at a path hold.

    Raises:
        Error: they are in no known layout, or damaged.
    """
    layout, root = detect_layout(path) or ("folders", image_folder.unpack_archive(path) if path.is_file() else path)
    if layout == "COCO":
        sheets, painted = coco_masks.read_coco_masks(root)
        parts: dict[str, list[tuple[Path, Mask]]] = {
            part: [(entry.image_path, painted[entry.image_path]) for entry in some]
            for part, some in sheets.splits.items()
        }
        return DatasetIndex(
            coco_masks.build_coco_class_table(sheets), {part: some for part, some in parts.items() if some}
        )
    pairs = mask_folders.index_folder(root)
    legend = pairs.class_table.with_ignore_index(ignore_index)
    if len(legend.labels) > masks.MAX_CLASSES:
        raise Error(f"{path} has {len(legend.labels)} classes, and a map tells {masks.MAX_CLASSES} apart; join some")
    return DatasetIndex(
        legend,
        {
            part: [(pair.image_path, _build_mask(pair, legend)) for pair in some]
            for part, some in pairs.splits.items()
            if some
        },
        pairs.problems,
    )


def _build_mask(pair: mask_folders.FilePair, legend: ClassTable) -> Mask:
    if pair.mask_path is None:
        return masks.MissingMask(f"{pair.image_path} has no mask; give it one of the same name, or remove the image")
    return masks.MaskFile(pair.mask_path, legend)


def _load_split(pairs: Sequence[tuple[Path, Mask]], max_broken: int) -> Samples:
    """The images of a part that have a mask of their size; the others are left out and summed up.

    Raises:
        Error: there are more of them than ``max_broken``, or there is no other.
    """
    kept: list[Sample] = []
    wrong: list[str] = []
    for (image, mask), found in zip(pairs, read_headers([image for image, _ in pairs]), strict=True):
        fault = str(found) if isinstance(found, Error) else find_mismatch(image, found, mask)
        if fault or isinstance(found, Error):
            wrong.append(fault)
        else:
            kept.append(Sample.from_mask(image, found.upright_size, str(image), mask))
    if wrong and not kept:
        raise Error(f"not one of the {len(wrong)} images can be used; the first: {wrong[0]}")
    if wrong:
        logger.warning(f"{len(wrong)} of {len(pairs)} images are left out:\n{image_folder.format_errors(wrong)}")
    image_folder.check_broken(wrong, max_broken)
    return tuple(kept)


def find_mismatch(image_path: Path, image_header: ImageHeader, mask: Mask) -> str:
    """Why a mask does not fit its image, by its header alone; empty where it does."""
    if isinstance(mask, masks.MissingMask):
        return mask.detail
    if isinstance(mask, coco_masks.COCOMask):
        size, what = mask.size, f"what {mask.file} has of it"
    elif isinstance(mask, masks.MaskFile):
        head = read_header(mask.path)
        if isinstance(head, Error):
            return str(head)
        size, what = (head.width, head.height), f"its mask {mask.path}"
    else:
        return ""
    if size == image_header.upright_size:
        return ""
    sides = "×".join(map(str, image_header.upright_size))
    return (
        f"{image_path} has {sides} pixels, and {what} {'×'.join(map(str, size))}; make the mask of the image as it is"
    )


def find_dataset(spec: str) -> Path:
    """The folder, archive or file of a known name or a path.

    Raises:
        UsageError: no such name and no such path.
        Error: a known set is in none of the places.
    """
    if spec == "voc2012":
        return voc.find_voc("2012")
    if spec == "coco":
        return coco.find_coco()
    if spec in LOCAL_DATASETS:
        return locations.find_dataset(spec, LOCAL_DATASETS[spec])
    if not exists(Path(spec)):
        raise build_unknown_error("data set (and no file or folder)", spec, DATASETS)
    return Path(spec)


def is_segmentation_dataset(spec: str) -> bool:
    """Whether a name or a path is of images with masks; an archive is unpacked for that."""
    return locations.is_known_dataset(spec, DATASETS, detect_layout)


def detect_layout(path: Path) -> tuple[str, Path] | None:
    """The layout of a folder, an archive or a file, and where it begins; None where it has no masks.

    Raises:
        Error: the archive cannot be unpacked, or a JSON file is damaged.
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
