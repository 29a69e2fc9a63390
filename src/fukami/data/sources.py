"""Data sources: what a dataset's name or path is, and which annotations are found there.

Every family and ``fukami doctor`` use :func:`identify_source`, so that a path means the same to all of them.
"""

import contextlib
import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fukami.data import archives, captions, cifar, coco, formats, locations, mnist, parsing, shards, voc, yolo
from fukami.data.formats import Kind, SourceFormat
from fukami.errors import Error, MissingPackageError, UsageError, suggest_names

ANNOTATION_SUFFIXES = (*captions.CAPTION_SUFFIXES, *yolo.DESCRIPTION_SUFFIXES, ".sgf")  # files that are no archives
MAX_SIBLINGS = 1000  # names beside a missing path that are compared with it


class KindDescription(NamedTuple):
    """Texts of messages for a kind of annotations, and two recipes of the family that uses it."""

    noun: str
    family: str
    recipes: tuple[str, str] | tuple[str]
    missing: str
    expected: str


KINDS: dict[Kind, KindDescription] = {
    "labels": KindDescription(
        "class labels",
        "classification",
        ("resnet18", "vgg16"),
        "contains no images in folders of classes",
        "one folder of images for each class, as in cats/1.jpg, a CSV file with the columns path and label, or "
        "WebDataset shards",
    ),
    "boxes": KindDescription(
        "bounding boxes",
        "detection",
        ("faster-rcnn-vgg16", "rcnn"),
        "contains no bounding boxes in a known format",
        "images with XML (VOC), text (YOLO) or JSON (labelme) of the same names in any folders, COCO's JSON, or a CSV "
        "file with the columns filename, class, xmin, ymin, xmax and ymax",
    ),
    "masks": KindDescription(
        "masks",
        "segmentation",
        ("fcn8s-vgg16", "segnet-basic"),
        "contains no images with masks",
        "a folder of images and one of masks with the same file names (also below train/ and val/), or polygons in the "
        "JSON of COCO or labelme or the text of YOLO",
    ),
    "captions": KindDescription(
        "captions", "captioning", ("show-and-tell",), "contains no captions", captions.EXPECTED_FILES
    ),
    "images": KindDescription(
        "images",
        "generation",
        ("dcgan",),
        "contains no images",
        "a folder or an archive of images, a CSV file with the columns path and label, or WebDataset shards",
    ),
    "games": KindDescription(
        "games",
        "self-play",
        ("alphago-policy",),
        "contains no games",
        "SGF files of games of Go, in a folder or an archive",
    ),
}
# by format; other formats are named with their kind, as in "VOC boxes"
FORMAT_NAMES = {
    "image folder": "class folders",
    "CSV": "CSV of labels",
    "box CSV": "CSV of boxes",
    "shards": "WebDataset shards",
    "mask folder": "masks in files",
    "caption files": "captions",
    "image files": "images without annotations",
    "SGF": "SGF",
}


@dataclass(frozen=True)
class DataSource:
    """A dataset by name or path.

    Args:
        spec: the name or path as given.
        locate: returns its folder, archive or file; None for shards, and for built-in datasets that are generated,
            bundled, or found by their reader.
        kinds: annotations of a built-in dataset; empty for a path, whose annotations are detected.
        images: folder of the images, if ``spec`` contains only their annotations.
    """

    spec: str
    locate: Callable[[], Path] | None = None
    kinds: tuple[Kind, ...] = ()
    images: Path | None = None

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
        """Return whether the dataset has annotations of a kind; false for an unreadable archive."""
        if self.kinds:
            return kind in self.kinds
        try:
            return self.find(kind) is not None
        except MissingPackageError:
            raise
        except Error:  # reading the archive reports the error
            return False

    def find(self, kind: Kind) -> SourceFormat | None:
        """Return the format of the annotations of a kind, None if there are none.

        Only names of files and a few files are read, but an archive is unpacked.

        Raises:
            Error: a built-in dataset is missing, or an archive cannot be unpacked.
        """
        if self.kinds and kind not in self.kinds:
            return None
        if self.locate is None:
            name = "built-in" if self.kinds else "shards"
            return SourceFormat(name, Path(self.spec)) if self.kinds or kind in ("labels", "images") else None
        return formats.find_format(kind, self.path, self.images)

    def require(self, kind: Kind) -> SourceFormat:
        """Return the format of the annotations of a kind.

        Raises:
            UsageError: there are annotations of another kind; the message describes them.
            Error: there are none. Also as :meth:`find`.
        """
        found = self.find(kind)
        if found is not None:
            return found
        noun, family, recipes, missing, expected = KINDS[kind]
        others = [other for other in KINDS if other not in (kind, "images") and self.has(other)]
        if kind in self.kinds or not others:
            raise Error(f"{self.location} {missing}; expected {expected}")
        if self.kinds:
            expected = f"{', '.join(list_names(kind))} or a path"
        actual = ". It also contains ".join(map(self._describe, others))
        needed = f"{family.capitalize()} recipes such as {recipes[0]} need {noun}: {expected}"
        raise UsageError(f"{self.spec} contains {actual}. {needed}")

    def describe(self) -> list[str]:
        """Describe what was found, as in ``VOC boxes: 164 images, 1 class; for faster-rcnn-vgg16, rcnn ...``.

        There is one sentence for each kind of annotations, or one about images without annotations; none if there are
        no images, or if an archive is unreadable.
        """
        found = list(filter(self.has, KINDS))
        return [self._describe(kind) for kind in found if kind != "images" or found == ["images"]]

    def get_title(self, kind: Kind) -> str:
        """Return what the annotations of a kind are, as in ``VOC boxes``; empty for a built-in dataset."""
        found = None if self.kinds else self.find(kind)
        return FORMAT_NAMES.get(found.name, f"{found.name} {kind}") if found else ""

    def _describe(self, kind: Kind) -> str:
        description, title = KINDS[kind], self.get_title(kind) or KINDS[kind].noun
        found = None if self.kinds else self.find(kind)
        if found:
            with contextlib.suppress(Error):  # reading the dataset reports the error
                counts = formats.count_contents(kind, found, self.images)
                title += f": {counts}" if counts else ""
        others = f" and other {description.family} recipes" if len(description.recipes) > 1 else ""
        return f"{title}; for {', '.join(description.recipes)}{others}"


def identify_source(spec: str, kind: Kind | None = None, images: str = "") -> DataSource:
    """Identify a dataset by its name or path.

    Args:
        spec: name of a built-in dataset; shards as for :func:`fukami.data.shards.load_shards`; the path of a folder,
            an archive or an annotation file; or the name of a folder or zip archive in a data folder.
        kind: annotations that the caller needs; the error of an unknown name suggests datasets that have them.
        images: folder of the images, if ``spec`` is the folder or the file of their annotations and these do not lie
            in a common layout; empty: ``spec`` contains both.

    Raises:
        UsageError: there is no such dataset.
    """
    if images:
        for name in (images, spec):
            if not parsing.exists(Path(name)):
                raise UsageError(f"there is no file or folder {name}; --images and --annotations name two paths")
        return DataSource(spec, partial(Path, spec), images=Path(images))
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


def needs_download(spec: str) -> bool:
    """Return whether the built-in dataset ``spec`` is not on this machine, and would be downloaded."""
    if spec in cifar.FOLDERS:
        return cifar.find_local_cifar(spec) is None
    return spec == "mnist" and mnist.find_local_mnist() is None


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
