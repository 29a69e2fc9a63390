"""Data sources: what a dataset's name or path is, and the annotations and formats found there.

Every family and ``fukami doctor`` use :func:`identify_source`, so that a path means the same to all of them.
"""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from fukami.data import (
    archives,
    captions,
    coco,
    coco_masks,
    image_folder,
    locations,
    mask_folders,
    parsing,
    shards,
    voc,
    yolo,
)
from fukami.errors import Error, UsageError, suggest_names

Kind = Literal["labels", "boxes", "masks", "captions", "images"]

ANNOTATION_SUFFIXES = (*captions.CAPTION_SUFFIXES, ".yaml", ".yml")  # files that are no archives
MAX_SIBLINGS = 1000  # names beside a missing path that are compared with it
LABEL_COLUMNS = {"path", "label"}
BOX_KEYS, CAPTION_KEYS = re.compile(r'"(bbox|segmentation)"\s*:'), re.compile(r'"(caption|sentences)"\s*:')
BOX_LAYOUTS: dict[str, Callable[[Path], object]] = {
    "COCO": coco.find_coco_files,
    "YOLO": yolo.is_yolo_dataset,
    "VOC": voc.is_voc_folder,
}
FORMAT_DESCRIPTIONS = {"image folder": "an image folder with one subfolder of images per class", "CSV": "a CSV file"}


class SourceFormat(NamedTuple):
    """Format of a dataset's annotations, and the folder or file that its reader opens.

    ``built-in`` and ``shards`` have no such path; their root is the spec.
    """

    name: str
    root: Path


class KindDescription(NamedTuple):
    """Texts of error messages for a kind of annotations."""

    noun: str
    recipes: str
    missing: str
    expected: str


KINDS: dict[Kind, KindDescription] = {
    "labels": KindDescription(
        "class labels",
        "classification recipes such as resnet18",
        "contains no images in folders of classes; expected",
        "one folder of images for each class, as in cats/1.jpg (also below train/ and test/), a CSV file with the "
        "columns path and label, or WebDataset shards",
    ),
    "boxes": KindDescription(
        "bounding boxes",
        "detection recipes such as faster-rcnn-vgg16",
        "contains no annotations in a known layout; expected one of:",
        "Annotations/*.xml and JPEGImages/ (VOC); an .xml next to each image; annotations/instances_train.json or "
        "train/_annotations.coco.json (COCO); data.yaml, or images/, labels/ and classes.txt (YOLO)",
    ),
    "masks": KindDescription(
        "masks",
        "segmentation recipes such as fcn8s-vgg16",
        "contains no images with masks in a known layout; expected",
        "images/ and masks/ with files of the same names (or train/images, train/masks ...), train/ and trainannot/ "
        "(CamVid), JPEGImages/ and SegmentationClass/ (VOC), leftImg8bit/ and gtFine/ (Cityscapes), or COCO's JSON "
        "with outlines",
    ),
    "captions": KindDescription(
        "captions", "captioning recipes such as show-and-tell", "has no captions: expected", captions.EXPECTED_FILES
    ),
    "images": KindDescription(
        "images",
        "generation recipes such as dcgan",
        "contains no images; expected",
        "a folder or an archive of images, a CSV file with the columns path and label, or WebDataset shards",
    ),
}


@dataclass(frozen=True)
class DataSource:
    """A dataset by name or path.

    Args:
        spec: the name or path as given.
        locate: returns its folder, archive or file; None for shards, and for built-in datasets that are generated,
            bundled, or found by their reader.
        kinds: annotations of a built-in dataset; empty for a path, whose annotations are detected.
    """

    spec: str
    locate: Callable[[], Path] | None = None
    kinds: tuple[Kind, ...] = ()

    @property
    def location(self) -> Path:
        """Folder, archive or file of the dataset.

        Raises:
            Error: a built-in dataset is in none of the data folders.
        """
        return self.locate() if self.locate else Path(self.spec)

    @property
    def path(self) -> Path:
        """Folder or file of the dataset; an archive is unpacked, unless that was done before.

        Raises:
            Error: the archive cannot be unpacked.
        """
        location = self.location
        if parsing.is_file(location) and location.suffix.lower() not in ANNOTATION_SUFFIXES:
            return archives.unpack(location)
        return location

    def has(self, kind: Kind) -> bool:
        """Return whether the dataset has annotations of a kind; false for a broken archive."""
        if self.kinds:
            return kind in self.kinds
        try:
            return self.find(kind) is not None
        except Error:  # reading the archive reports the error
            return False

    def find(self, kind: Kind) -> SourceFormat | None:
        """Return the format of the annotations of a kind, None if there are none.

        Only names of files and the starts of some files are read, but an archive is unpacked.

        Raises:
            Error: a built-in dataset is missing, or an archive cannot be unpacked.
        """
        if self.kinds and kind not in self.kinds:
            return None
        if self.locate is None:
            name = "built-in" if self.kinds else "shards"
            return SourceFormat(name, Path(self.spec)) if self.kinds or kind in ("labels", "images") else None
        return DETECTORS[kind](self.path)

    def require(self, kind: Kind) -> SourceFormat:
        """Return the format of the annotations of a kind.

        Raises:
            Error: there are none; the message contains what there is and which recipes use it. Also as :meth:`find`.
        """
        found = self.find(kind)
        if found is not None:
            return found
        _, recipes, missing, expected = KINDS[kind]
        others = [other for other in KINDS if other not in (kind, "images") and self.has(other)]
        if kind in self.kinds or not others:
            raise Error(f"{self.location} {missing} {expected}")
        actual = " and ".join(f"{self._describe(other)} for {KINDS[other].recipes}" for other in others)
        needed = f"{recipes} need {KINDS[kind].noun}"
        if self.kinds:
            raise UsageError(f"{self.spec} has {actual}; {needed}: {', '.join(list_names(kind))} or a path")
        raise Error(f"{self.location if self.locate else self.spec} has {actual}; {needed}: {expected}")

    def _describe(self, kind: Kind) -> str:
        found = None if self.kinds else self.find(kind)
        return f"{KINDS[kind].noun} ({FORMAT_DESCRIPTIONS.get(found.name, found.name)})" if found else KINDS[kind].noun


def identify_source(spec: str, kind: Kind | None = None) -> DataSource:
    """Identify a dataset by its name or path.

    Args:
        spec: name of a built-in dataset; shards as for :func:`fukami.data.shards.load_shards`; the path of a folder,
            an archive or an annotation file; or the name of a folder or zip archive in a data folder.
        kind: annotations that the caller needs; the error of an unknown name suggests datasets that have them.

    Raises:
        UsageError: there is no such dataset.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    if shards.is_shard_spec(spec):
        return DataSource(spec)
    path = Path(spec) if parsing.exists(Path(spec)) else locations.find_dataset_path(spec)
    if path is not None:
        return DataSource(spec, partial(Path, path))
    names = [*_find_similar_paths(spec), *list_names(kind)]
    problem = f"there is no file or folder {spec[:100]!r}, and no built-in dataset of that name"
    raise UsageError(f"{problem}; {suggest_names(spec, names)}")


def _find_similar_paths(spec: str) -> list[str]:
    """Find files and folders beside a missing path whose names are similar, as paths of the same form."""
    path = Path(spec)
    try:
        names = [entry.name for entry in islice(os.scandir(path.parent), MAX_SIBLINGS) if entry.name[0] != "."]
    except (OSError, ValueError):  # the folder is missing, or no name of a file
        return []
    return [str(path.with_name(name)) for name in difflib.get_close_matches(path.name[:100], names, n=3)]


def list_names(kind: Kind | None = None) -> list[str]:
    """List the names of the built-in datasets with annotations of a kind (None: all)."""
    return [name for name, source in BUILT_IN.items() if kind is None or kind in source.kinds]


def _find_flickr(name: str) -> Path:
    """Find Flickr8k or Flickr30k: a folder of that name, or a dataset in a data folder."""
    if parsing.exists(Path(name)):
        return Path(name)
    return locations.find_dataset(name, "the images and their captions, in a folder or a zip archive of that name,")


def _list_built_in() -> list[DataSource]:
    archive, folders = "the archive, or its folder", "its folders leftImg8bit and gtFine"
    return [
        DataSource("scenes", None, ("boxes", "masks", "captions", "images")),
        *(
            DataSource(name, None, ("labels", "images"))
            for name in ("digits", "mnist", "cifar10", "cifar100", "imagenet")
        ),
        *(
            DataSource(name, partial(locations.find_dataset, name, archive), ("boxes",))
            for name in ("bccd", "voc-animals")
        ),
        DataSource("voc2007", partial(voc.find_voc, "2007"), ("boxes",)),
        DataSource("voc2012", partial(voc.find_voc, "2012"), ("boxes", "masks")),
        DataSource("coco", coco.find_coco, ("boxes", "masks", "captions")),
        DataSource("camvid", partial(locations.find_dataset, "camvid", archive), ("masks",)),
        DataSource("cityscapes", partial(locations.find_dataset, "cityscapes", folders), ("masks",)),
        *(DataSource(name, partial(_find_flickr, name), ("captions",)) for name in ("flickr8k", "flickr30k")),
    ]


BUILT_IN = {source.spec: source for source in _list_built_in()}


# detection of formats at a folder or file


def _find_labels(path: Path) -> SourceFormat | None:
    if parsing.is_file(path):
        if path.suffix.lower() != ".csv":
            return None
        is_label_table = {*parsing.read_columns(path)} >= LABEL_COLUMNS or not captions.has_captions(path)
        return SourceFormat("CSV", path) if is_label_table else None
    folders = [
        folder for split in image_folder.find_splits(path).values() for folder in image_folder.list_folders(split)
    ]
    if not any(next(image_folder.walk_images(folder), None) for folder in folders):
        return None
    # images/, labels/ and similar folders of another layout, or its only folder, are no classes
    layout_names = {*mask_folders.IMAGE_FOLDERS, *mask_folders.MASK_FOLDERS}
    is_ambiguous = len(folders) == 1 or any(folder.name.lower() in layout_names for folder in folders)
    if is_ambiguous and (_find_boxes(path) or _find_masks(path) or _find_captions(path)):
        return None
    return SourceFormat("image folder", path)


def _find_boxes(path: Path) -> SourceFormat | None:
    if parsing.is_file(path):
        if path.suffix.lower() in (".yaml", ".yml"):
            return SourceFormat("YOLO", path)
        is_coco = path.suffix.lower() == ".json" and (
            parsing.contains_pattern(path, BOX_KEYS) or not parsing.contains_pattern(path, CAPTION_KEYS)
        )
        return SourceFormat("COCO", path) if is_coco else None
    for root in image_folder.descend_single_folders(path):
        for name, is_layout in BOX_LAYOUTS.items():
            if is_layout(root):
                return SourceFormat(name, root)
    return None


def _find_masks(path: Path) -> SourceFormat | None:
    if parsing.is_file(path):
        has_outlines = path.suffix.lower() == ".json" and coco_masks.has_outlines(path)
        return SourceFormat("COCO", path) if has_outlines else None
    for root in image_folder.descend_single_folders(path):
        if mask_folders.is_mask_folder(root):
            return SourceFormat("mask folder", root)
        if coco_masks.has_outlines(root):
            return SourceFormat("COCO", root)
    return None


def _find_captions(path: Path) -> SourceFormat | None:
    if path.suffix.lower() == ".json" and parsing.is_file(path):
        has_captions = parsing.contains_pattern(path, CAPTION_KEYS) or not parsing.contains_pattern(path, BOX_KEYS)
    else:
        has_captions = captions.has_captions(path)
    return SourceFormat("caption files", path) if has_captions else None


def _find_images(path: Path) -> SourceFormat | None:
    if parsing.is_file(path):
        return _find_labels(path)
    return SourceFormat("image files", path)


DETECTORS: dict[Kind, Callable[[Path], SourceFormat | None]] = {
    "labels": _find_labels,
    "boxes": _find_boxes,
    "masks": _find_masks,
    "captions": _find_captions,
    "images": _find_images,
}
