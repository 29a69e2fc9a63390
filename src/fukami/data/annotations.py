"""Annotations as the files state them, and their validation.

The readers of the formats yield an :class:`ImageAnnotation` for each image; :func:`build_samples` validates them and
builds the samples of a loader.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fukami.data import archives, image_folder
from fukami.data.parsing import is_file, to_number
from fukami.data.samples import REGULAR, Sample
from fukami.data.splits import SPLIT_NAMES, Splits, select_validation
from fukami.errors import Error, MissingPackageError
from fukami.image import io as image_io
from fukami.image import tiff
from fukami.progress import track

logger = logging.getLogger(__name__)
Entry = TypeVar("Entry")  # an image with its annotation or mask
MIN_BOX_SIDE = 0.01  # pixels; a box with a shorter side counts as empty
ANNOTATION_SPLITS: dict[str, str] = {"trainval": "trainval", **SPLIT_NAMES}  # names of folders and lists

Corners = tuple[float, float, float, float]
Samples = tuple[Sample, ...]


class Box(NamedTuple):
    """Bounding box as stated in an annotation file.

    Attributes:
        label: class name; empty if the file names none.
        corners: left, top, right, bottom as pixel edges, counted from 0, or as fractions of the image if the
            annotation ``is_relative``; nan for a missing number.
        kind: as in :mod:`fukami.data.samples`.
        line: line number in the file, from 1.
        identifier: name of the box in messages, such as ``annotation 17``.
        starts_at_zero: whether a coordinate is 0 in a format that counts from 1.
    """

    label: str
    corners: Corners
    kind: int = REGULAR
    line: int = 0
    identifier: str = ""
    starts_at_zero: bool = False


@dataclass(frozen=True)
class ImageAnnotation:
    """Annotation of one image; ``size`` is the stated width and height, None if the file states none."""

    image_path: Path
    annotation_path: Path
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None
    line: int = 0
    is_relative: bool = False


class AnnotationProblem(NamedTuple):
    """Problem that made a reader skip an item: kind as in ``fukami doctor``, file, line, description and split."""

    kind: str
    file: Path
    line: int
    detail: str
    split: str = ""


@dataclass
class DatasetAnnotations:
    """Annotations of a dataset.

    Attributes:
        labels: class names, in order.
        splits: annotations of ``train``, ``val``, ``trainval`` and ``test``; the key is empty if the dataset has no
            splits.
        unreadable_images: images that are missing or whose annotation is unreadable.
        orphan_annotations: annotations without an image or a class.
        unannotated_images: images without an annotation.
    """

    labels: tuple[str, ...] = ()
    splits: dict[str, list[ImageAnnotation]] = field(default_factory=dict)
    unreadable_images: list[AnnotationProblem] = field(default_factory=list)
    orphan_annotations: list[AnnotationProblem] = field(default_factory=list)
    unannotated_images: list[Path] = field(default_factory=list)


class ImageHeader(NamedTuple):
    """Header of an image file: stored width and height, and EXIF orientation (1: upright)."""

    width: int
    height: int
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)

    def is_stored_size(self, size: tuple[int, int] | None) -> bool:
        """Return whether a stated size is that of the stored image and not that of the upright one."""
        return size == (self.width, self.height) != self.upright_size


def read_header(path: Path) -> ImageHeader | Error:
    """Return the header of an image without decoding it, or the error if it cannot be read."""
    try:
        with image_io.open_image(path) as image:
            orientation = read_orientation(image)
            if image.format == "TIFF" and orientation > 4:  # Pillow has already swapped the sides of a TIFF
                return ImageHeader(image.height, image.width, orientation)
            return ImageHeader(*image.size, orientation)
    except Error as error:
        if not tiff.is_tiff(path):
            return error
    try:
        header = tiff.read_tiff_header(path)
        return ImageHeader(header.width, header.height, header.orientation)
    except MissingPackageError:
        raise
    except Error as error:
        return error


def get_upright_size(header: ImageHeader | Error) -> tuple[int, int]:
    """Return the width and height of an upright image, 0 and 0 if its header cannot be read."""
    return (0, 0) if isinstance(header, Error) else header.upright_size


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if it is missing or invalid."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & {*image.info}:
        return 1  # Pillow would decode the whole file to search for EXIF
    return image_io.get_orientation(image)


def read_headers(paths: Sequence[Path]) -> Iterator[ImageHeader | Error]:
    """Read the headers of images in parallel threads, in order."""
    with ThreadPoolExecutor() as threads:
        yield from track(threads.map(read_header, paths), "reading image sizes", len(paths))


def orient_corners(corners: Corners, header: ImageHeader) -> Corners:
    """Convert box corners from the stored image to the upright image."""
    (left, top, right, bottom), (width, height, orientation) = corners, header
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation > 4 else (left, top, right, bottom)


def compute_pixel_corners(annotation: ImageAnnotation, header: ImageHeader) -> list[Corners]:
    """Compute the corners of an image's boxes in pixels of the upright image, neither validated nor clipped.

    If the stated size equals the stored size and not the upright one, the boxes refer to the stored image. Otherwise
    they refer to the upright image, which annotation tools show.
    """
    width, height = header.upright_size
    if annotation.is_relative:
        return [(b[0] * width, b[1] * height, b[2] * width, b[3] * height) for _, b, *_ in annotation.boxes]
    is_stored_size = header.is_stored_size(annotation.size)
    return [orient_corners(box.corners, header) if is_stored_size else box.corners for box in annotation.boxes]


def find_box_problem(corners: Corners, size: tuple[int, int]) -> str:
    """Return the problem of an invalid box, as in ``fukami doctor``; empty if the box is valid."""
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
    unreadable_images: Sequence[AnnotationProblem],
    max_unreadable: int,
) -> list[Sample]:
    """Build the samples of a split, in order; unreadable images and invalid boxes are skipped and reported.

    Raises:
        Error: more than ``max_unreadable`` images are missing or unreadable.
    """
    class_indices = {label: i for i, label in enumerate(labels)}
    samples: list[Sample] = []
    errors = [
        f"{problem.file}{f', line {problem.line}' if problem.line else ''}: {problem.detail}"
        for problem in unreadable_images
    ]
    num_dropped = 0
    annotations = merge_annotations(annotations)
    for annotation, header in zip(annotations, read_headers([item.image_path for item in annotations]), strict=True):
        if isinstance(header, Error):
            errors.append(str(header))
            continue
        size = header.upright_size
        boxes = [
            (corners, class_indices[box.label], box.kind)
            for box, corners in zip(annotation.boxes, compute_pixel_corners(annotation, header), strict=True)
            if box.label in class_indices and not find_box_problem(corners, size)
        ]
        num_dropped += len(annotation.boxes) - len(boxes)
        samples.append(_build_sample(annotation.image_path, size, boxes))
    if errors:
        logger.warning(
            f"{len(errors)} of {len(samples) + len(errors)} images are skipped:\n{image_folder.format_errors(errors)}"
        )
    if num_dropped:
        logger.warning(
            f"{num_dropped} of {num_dropped + sum(len(sample.classes) for sample in samples)} boxes are skipped: "
            "empty, inverted, outside their image or of an unknown class; fukami doctor lists them"
        )
    image_folder.check_unreadable(errors, max_unreadable)
    return samples


def merge_annotations(annotations: Sequence[ImageAnnotation]) -> list[ImageAnnotation]:
    """Merge the annotations of each image into one.

    Otherwise, each entry of an image would use the boxes of the other as background.
    """
    groups: dict[Path, list[ImageAnnotation]] = {}
    for annotation in annotations:
        group = groups.setdefault(annotation.image_path, [])
        if annotation not in group[:1]:
            group.append(annotation)
    return [
        group[0] if len(group) == 1 else replace(group[0], boxes=tuple(box for item in group for box in item.boxes))
        for group in groups.values()
    ]


def _build_sample(image: Path, size: tuple[int, int], boxes: Sequence[tuple[Corners, int, int]]) -> Sample:
    corners = np.array([box[0] for box in boxes], np.float64).reshape(-1, 4)
    clipped = np.clip(corners, 0, np.array([*size, *size])).astype(np.float32)
    return Sample(
        image,
        size,
        clipped,
        np.array([box[1] for box in boxes], np.int64),
        np.array([box[2] for box in boxes], np.uint8),
        str(image),
    )


def load_splits(
    dataset: DatasetAnnotations,
    load: Callable[[Sequence[str]], Samples],
    val_fraction: float | None,
    *,
    include_train: bool,
) -> Splits[Samples]:
    """Load the splits of a dataset; without a validation split, some training samples are used for validation.

    Images without a split are training data, and so are those of ``trainval`` without a validation split. A validation
    or test split without boxes is not used.

    Args:
        dataset: annotations.
        load: returns the samples of splits.
        val_fraction: fraction of the training samples used for validation, stratified by the rarest class of an image,
            as for :func:`fukami.data.splits.select_validation`.
        include_train: whether to load the training samples where the evaluation does not need them.
    """
    names = {name for name, images in dataset.splits.items() if images} | {
        problem.split for problem in dataset.unreadable_images
    }
    has_split = {name: any(image.boxes for image in dataset.splits.get(name, ())) for name in ("val", "test")}
    for name in sorted(names & has_split.keys()):
        if not has_split[name]:
            logger.warning(f"the {name} split has no box and is not used for evaluation; annotate its images")
    val, test = (keep_if_counted(load((name,)), name) if has_split[name] else () for name in ("val", "test"))
    train_names = tuple(sorted(names & ({"", "trainval"} if "trainval" in names and not val else {"", "train"})))
    if not include_train and (val or test):
        return Splits((), val, test, dataset.labels)
    train = load(train_names)
    if not val:
        kept, val = split_off_validation(train, val_fraction)
        val = keep_if_counted(val, "val")
        train = kept if val else train
    return Splits(train, val, test, dataset.labels)


def keep_if_counted(samples: Samples, split: str) -> Samples:
    """Return the samples of a split, none if they have no object that an evaluation counts."""
    if not samples or any((sample.kinds == REGULAR).any() for sample in samples):
        return samples
    logger.warning(
        f"the {split} split has no object that is counted and is not used for evaluation; annotate its images"
    )
    return ()


def split_off_validation(samples: Samples, val_fraction: float | None) -> tuple[Samples, Samples]:
    """Split samples into training and validation samples, stratified by the rarest class of an image."""
    is_selected = select_validation(find_rarest_classes(samples), val_fraction).tolist()
    train, val = (
        tuple(sample for sample, selected in zip(samples, is_selected, strict=True) if selected == part)
        for part in (False, True)
    )
    return train, val


def separate_trainval(
    splits: dict[str, list[Entry]], get_path: Callable[[Entry], Path], problems: list[AnnotationProblem]
) -> None:
    """Replace ``trainval`` by the missing one of train and val, in place, if the dataset has only the other.

    Args:
        splits: entries of each split.
        get_path: returns the path of an entry's image.
        problems: problems of images of the splits.
    """
    for half, other in (("train", "val"), ("val", "train")):
        if {"trainval", half, other} & splits.keys() == {"trainval", half}:
            paths = set(map(get_path, splits[half]))
            splits[other] = [entry for entry in splits.pop("trainval") if get_path(entry) not in paths]
            keys = {_get_problem_key(problem) for problem in problems if problem.split == half}
            problems[:] = [
                problem._replace(split=other) if problem.split == "trainval" else problem
                for problem in problems
                if problem.split != "trainval" or _get_problem_key(problem) not in keys
            ]


def _get_problem_key(problem: AnnotationProblem) -> object:
    """Return what two splits have in common of a problem: of a missing image its name, and otherwise the file."""
    if problem.kind != "missing":
        return problem.file
    return " ".join(word.rpartition("/")[2] for word in problem.detail.split(" "))


def check_splits(root: Path, files: Sequence[tuple[str, Path]]) -> None:
    """Check that each of several annotation files below a folder has a split of its own; "" is none.

    Raises:
        Error: two files have the same split, or one has none.
    """
    splits = [split for split, _ in files]
    if len(files) > 1 and not (all(splits) and len({*splits}) == len(splits)):
        names = ", ".join(f"{path.relative_to(root)} ({split or 'no split'})" for split, path in files)
        suffix = files[0][1].suffix
        raise Error(
            f"{root} has several annotation files of the same split, or without one: {names[:500]}; keep one file per "
            f"split, and name it after the split: train{suffix}, val{suffix}, test{suffix}"
        )


def parse_split(name: str) -> str:
    """Return the split that the name of a folder or a list denotes; empty if it denotes none."""
    return ANNOTATION_SPLITS.get(name.lower(), "")


def find_split_word(name: str) -> str:
    """Return the split that a word of a name denotes, such as ``instances_val2017``; empty if none does."""
    return next(filter(None, map(parse_split, re.findall("[a-z]+", name.lower()))), "")


def keep_existing_images(
    annotations: Iterable[ImageAnnotation], dataset: DatasetAnnotations, split: str, source: Path
) -> list[ImageAnnotation]:
    """Return the annotations of a split whose image exists; the others are added to ``dataset.unreadable_images``.

    ``source`` is the file that the annotations come from.
    """
    existing = []
    for annotation in annotations:
        path = annotation.image_path
        if archives.is_outside(path, source):
            detail = f"the image {path} lies outside the archive; put it there, or remove its annotation"
        elif is_file(path):
            existing.append(annotation)
            continue
        else:
            detail = f"the image {path} does not exist; put it there, or remove its annotation"
        dataset.unreadable_images.append(
            AnnotationProblem("missing", annotation.annotation_path, annotation.line, detail, split)
        )
    return existing


def find_rarest_classes(samples: Sequence[Sample]) -> npt.NDArray[np.int64]:
    """Return the rarest class of each image ``(N,)``, -1 without boxes; validation samples are stratified by it."""
    classes = np.concatenate([sample.classes for sample in samples] or [np.zeros(0, np.int64)])
    counts = np.bincount(classes, minlength=1)
    return np.array([min(sample.classes, key=lambda c: counts[c], default=-1) for sample in samples], np.int64)


def parse_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Parse the width and the height of an image that an annotation states; None if they are not finite numbers."""
    sides = to_number(width), to_number(height)
    return (int(sides[0]), int(sides[1])) if all(map(math.isfinite, sides)) else None
