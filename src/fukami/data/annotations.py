"""What an annotation file says of its images, before it is checked, and what of it can be learned from.

The readers of the formats yield an :class:`Entry` for each image; :func:`settle` makes what a loader takes of them.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from fukami.data import archives, image_folder
from fukami.data.parsing import is_file
from fukami.data.samples import REGULAR, Sample
from fukami.errors import Error
from fukami.image import io as image_io

logger = logging.getLogger(__name__)
MIN_BOX_SIDE = 0.01  # pixels; a side below is none
SPLIT_NAMES = (
    {"trainval": "trainval"}
    | dict.fromkeys(image_folder.TRAIN_NAMES, "train")
    | dict.fromkeys(image_folder.TEST_NAMES, "val")
)
SPLIT_NAMES |= {"test": "test", "testing": "test"}

Corners = tuple[float, float, float, float]


class Box(NamedTuple):
    """A box as its file has it.

    Attributes:
        label: the class; empty: none is given.
        corners: left, top, right, bottom as the edges of pixels, counted from 0, or shares of the image where the
            entry is ``relative``; nan where no number is given.
        kind: as in :mod:`fukami.data.samples`.
        line: where the file has it, from 1.
        identifier: how the file tells it apart, such as ``annotation 17``.
        starts_at_zero: it begins at 0 in a format that counts from 1.
    """

    label: str
    corners: Corners
    kind: int = REGULAR
    line: int = 0
    identifier: str = ""
    starts_at_zero: bool = False


@dataclass(frozen=True)
class ImageAnnotation:
    """An image as its annotation has it: ``size`` is the width and height that are stated, None where none are."""

    image_path: Path
    annotation_path: Path
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None
    line: int = 0
    is_relative: bool = False


class AnnotationProblem(NamedTuple):
    """What a reader passed over: the kind of problem as the doctor calls it, file, line, the words, and the part."""

    kind: str
    file: Path
    line: int
    detail: str
    split: str = ""


@dataclass
class DatasetAnnotations:
    """What the annotations of a data set say.

    Attributes:
        labels: the classes in their order.
        splits: the entries of ``train``, ``val``, ``trainval`` and ``test``, or of an empty name where all are one
            part.
        unusable_images: images that cannot be learned from, since their annotation is broken or they are not there.
        orphan_annotations: annotations that belong to no image or class.
        unannotated_images: images without an annotation.
    """

    labels: tuple[str, ...] = ()
    splits: dict[str, list[ImageAnnotation]] = field(default_factory=dict)
    unusable_images: list[AnnotationProblem] = field(default_factory=list)
    orphan_annotations: list[AnnotationProblem] = field(default_factory=list)
    unannotated_images: list[Path] = field(default_factory=list)


class ImageHeader(NamedTuple):
    """What an image file says of itself: width and height as stored, and how it is turned (EXIF, 1: not at all)."""

    width: int
    height: int
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height once it is upright."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


def read_header(path: Path) -> ImageHeader | Error:
    """The header of an image, which is not decoded, or what is wrong with it."""
    try:
        with image_io.open_image(path) as image:
            how = read_orientation(image)
            if image.format == "TIFF" and how > 4:  # whose size Pillow has turned already
                return ImageHeader(image.height, image.width, how)
            return ImageHeader(*image.size, how)
    except Error as error:
        return error


def read_orientation(image: Image.Image) -> int:
    """How an image is turned, from 1 to 8 as EXIF has it."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & {*image.info}:
        return 1  # Pillow would decode the whole file in search of it
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def read_headers(paths: Sequence[Path]) -> Iterator[ImageHeader | Error]:
    """The header of each image, read in threads."""
    with ThreadPoolExecutor() as threads:
        yield from threads.map(read_header, paths)


def orient_corners(corners: Corners, header: ImageHeader) -> Corners:
    """Corners in an image as stored, in the upright one."""
    (left, top, right, bottom), (width, height, how) = corners, header
    if how in (2, 3, 7, 8):
        left, right = width - right, width - left
    if how in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if how > 4 else (left, top, right, bottom)


def compute_pixel_corners(annotation: ImageAnnotation, header: ImageHeader) -> list[Corners]:
    """The corners of an entry's boxes in pixels of the upright image, neither checked nor cut.

    Boxes belong to the image as stored where the stated size is that of the stored one, and otherwise, as in programs
    that state no size, to the upright one.
    """
    width, height = header.upright_size
    if annotation.is_relative:
        return [(b[0] * width, b[1] * height, b[2] * width, b[3] * height) for _, b, *_ in annotation.boxes]
    stored = annotation.size == (header.width, header.height)
    return [orient_corners(box.corners, header) if stored else box.corners for box in annotation.boxes]


def find_box_problem(corners: Corners, size: tuple[int, int]) -> str:
    """Why a box cannot be learned from, in the doctor's words; empty where it can."""
    left, top, right, bottom = corners
    if not all(map(math.isfinite, corners)):
        return "not a number"
    if right < left or bottom < top:
        return "inverted box"
    if min(right - left, bottom - top) < MIN_BOX_SIDE:
        return "empty box"
    if min(right, bottom, size[0] - left, size[1] - top) < MIN_BOX_SIDE:
        return "outside"
    return ""


def build_samples(
    annotations: Sequence[ImageAnnotation],
    labels: Sequence[str],
    unusable_images: Sequence[AnnotationProblem],
    max_broken: int,
) -> list[Sample]:
    """What can be learned from the entries of a part, in their order; the rest is left out and summed up.

    Raises:
        Error: more images than ``max_broken`` are missing or broken.
    """
    number = {label: i for i, label in enumerate(labels)}
    kept: list[Sample] = []
    wrong = [f"{flaw.file}{f', line {flaw.line}' if flaw.line else ''}: {flaw.detail}" for flaw in unusable_images]
    dropped = 0
    annotations = merge_annotations(annotations)
    for entry, found in zip(annotations, read_headers([entry.image_path for entry in annotations]), strict=True):
        if isinstance(found, Error):
            wrong.append(str(found))
            continue
        size = found.upright_size
        good = [
            (corners, number[box.label], box.kind)
            for box, corners in zip(entry.boxes, compute_pixel_corners(entry, found), strict=True)
            if box.label in number and not find_box_problem(corners, size)
        ]
        dropped += len(entry.boxes) - len(good)
        kept.append(_build_sample(entry.image_path, size, good))
    if wrong:
        logger.warning(
            f"{len(wrong)} of {len(kept) + len(wrong)} images are left out:\n{image_folder.format_errors(wrong)}"
        )
    if dropped:
        logger.warning(
            f"{dropped} of {dropped + sum(len(each.classes) for each in kept)} boxes are left out: empty, inverted, "
            "outside of their image or of no known class; fukami doctor names each"
        )
    image_folder.check_broken(wrong, max_broken)
    return kept


def merge_annotations(annotations: Sequence[ImageAnnotation]) -> list[ImageAnnotation]:
    """Each image once, with the boxes of all its entries: what one of them has is no background in another."""
    found: dict[Path, ImageAnnotation] = {}
    for entry in annotations:
        other = found.setdefault(entry.image_path, entry)
        if other != entry:
            found[entry.image_path] = replace(other, boxes=(*other.boxes, *entry.boxes))
    return list(found.values())


def _build_sample(image: Path, size: tuple[int, int], boxes: Sequence[tuple[Corners, int, int]]) -> Sample:
    corners = np.array([each[0] for each in boxes], np.float64).reshape(-1, 4)
    inside = np.clip(corners, 0, np.array([*size, *size])).astype(np.float32)
    return Sample(
        image,
        size,
        inside,
        np.array([each[1] for each in boxes], np.int64),
        np.array([each[2] for each in boxes], np.uint8),
        str(image),
    )


def select_splits(annotations: DatasetAnnotations) -> tuple[tuple[str, ...], str | None]:
    """The names of the parts to train on, and of the one to judge on (None where the data have none).

    Where there is a test part, it is judged on, and all else is trained on; otherwise the validation part is. One
    without a single box can be no judge.
    """
    found = {name for name, entries in annotations.splits.items() if entries} | {
        flaw.split for flaw in annotations.unusable_images
    }
    for name in sorted(found & {"test", "val"}):
        if not any(entry.boxes for entry in annotations.splits.get(name, ())):
            logger.warning(f"the {name} part has no box, and is not judged on; annotate its images")
            found.remove(name)
    judged = next((name for name in ("test", "val") if name in found), None)
    every = {"trainval"} if "trainval" in found and judged != "val" else {"", "train", "val"} - {judged}
    return tuple(sorted(every & found)), judged


def separate_trainval(annotations: DatasetAnnotations) -> None:
    """Where ``trainval`` stands beside one of its halves alone, the other half is what is left of it."""
    for half, other in (("train", "val"), ("val", "train")):
        if {"trainval", half, other} & annotations.splits.keys() == {"trainval", half}:
            there = {entry.image_path for entry in annotations.splits[half]}
            annotations.splits[other] = [
                each for each in annotations.splits.pop("trainval") if each.image_path not in there
            ]
            lost = {flaw.file for flaw in annotations.unusable_images if flaw.split == half}
            annotations.unusable_images = [
                flaw._replace(split=other) if flaw.split == "trainval" else flaw
                for flaw in annotations.unusable_images
                if flaw.split != "trainval" or flaw.file not in lost
            ]


def parse_split(name: str) -> str:
    """The part that a folder or a list is, by its name; empty where it is none."""
    return SPLIT_NAMES.get(name.lower(), "")


def list_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files in a folder, in order; with ``recursive`` also those further down."""
    endings = image_io.get_image_suffixes()
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in endings and not path.name.startswith("."))


def is_outside_archive(image: Path, source: Path) -> bool:
    """Whether annotations in an archive name an image outside of it; the user's own may name images anywhere."""
    root = archives.find_archive_root(source)
    return root is not None and not archives.is_inside(image, root)


def keep_existing_images(
    annotations: Iterable[ImageAnnotation], dataset: DatasetAnnotations, split: str, source: Path
) -> list[ImageAnnotation]:
    """The entries of a part whose image is there, as ``source`` names them; what the others lack is noted as lost."""
    here = []
    for entry in annotations:
        if is_outside_archive(entry.image_path, source):
            detail = f"the image {entry.image_path} lies outside of the archive; put it there, or remove its annotation"
        elif is_file(entry.image_path):
            here.append(entry)
            continue
        else:
            detail = f"the image {entry.image_path} does not exist; put it there, or remove its annotation"
        dataset.unusable_images.append(AnnotationProblem("missing", entry.annotation_path, entry.line, detail, split))
    return here


def find_rarest_classes(samples: Sequence[Sample]) -> npt.NDArray[np.int64]:
    """The rarest class of each image ``(N,)``, -1 where there is none: what a part is held out by."""
    every = np.concatenate([each.classes for each in samples] or [np.zeros(0, np.int64)])
    counts = np.bincount(every, minlength=1)
    return np.array([min(each.classes, key=lambda c: counts[c], default=-1) for each in samples], np.int64)
