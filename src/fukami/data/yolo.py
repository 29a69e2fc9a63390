"""Annotations in YOLO text files: a line ``CLASS X Y WIDTH HEIGHT`` for each box, relative to the image size.

Class names and splits come from a ``data.yaml`` (or another ``.yaml``) or Darknet's ``obj.data``. Otherwise class names
come from a ``classes.txt`` next to the folders ``images`` and ``labels``, or in a folder of images and their labels.
Without any of them, a text file belongs to the image of the same stem, whatever their folders are called, and the
classes are named by their numbers. A line with a class and the points of a polygon is converted to its bounding box.
"""

import contextlib
import itertools
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.data import archives
from fukami.data.annotation_files import find_files_of_images, find_split, normalize_name, pair_with_images
from fukami.data.annotations import (
    AnnotationProblem,
    Box,
    Corners,
    DatasetAnnotations,
    ImageAnnotation,
    keep_existing_images,
    parse_split,
)
from fukami.data.files import list_files, list_folders, list_images, locate_file, walk_files, walk_images
from fukami.data.parsing import (
    MAX_FILE_BYTES,
    MAX_SMALL_FILE_BYTES,
    Json,
    contains_pattern,
    exists,
    is_file,
    read_text,
    to_number,
)
from fukami.errors import Error, MissingPackageError
from fukami.image import io as image_io

CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
DARKNET_SUFFIX = ".data"  # dataset descriptions of Darknet and CVAT
DESCRIPTION_SUFFIXES = (".yaml", ".yml", DARKNET_SUFFIX)
NAMES_KEY = re.compile(r"""^[ \t]*["']?names["']?[ \t]*[:=]""", re.MULTILINE)  # key of the class names
MAX_DESCRIPTION_BYTES = 2 << 20
MAX_DESCRIPTIONS = 4  # files of a folder that are parsed to find the class names
MAX_INSPECTED_FILES = 20  # text files that are read to detect the format
MAX_INSPECTED_IMAGES = 1000  # images whose text files are searched to detect the format
KEYPOINT_FIELD = "kpt_shape"  # of the description of a dataset of poses
KEYPOINT_TOLERANCE = 0.05  # of the image, by which a keypoint may be outside of its box
NUM_BOX_VALUES = 5  # of a line with a box: the class, and four numbers
SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


class Polygon(NamedTuple):
    """Polygon of a label file: class name, line number, and corners relative to the image size ``(N, 2)``."""

    label: str
    line: int
    corners: npt.NDArray[np.float64]


def is_yolo_dataset(root: Path) -> bool:
    """Return whether a folder is in one of the layouts, or a file describes one."""
    if root.is_file():
        return bool(_has_class_names(root))
    return (
        ((root / "images").is_dir() and _has_text_files(root / "labels"))
        or bool(_find_split_folders(root))
        or any(map(_has_class_names, find_description_files(root)))
        or bool(_find_mixed_splits(root))
    )


def has_box_files(root: Path, images: Path | None = None) -> bool:
    """Return whether a folder has a text file of boxes for an image; ``images`` as for :func:`read_yolo`."""
    files = find_files_of_images((root,), ".txt", images)
    return any(map(is_box_file, files[:MAX_INSPECTED_FILES]))


def is_box_file(path: Path) -> bool:
    """Return whether the first line of a text file is a box or a polygon of a class."""
    try:
        lines = _read_lines(path, max_bytes=MAX_SMALL_FILE_BYTES)
    except Error:
        return False
    class_index, corners = _parse_box_line(lines[0]) if lines else (None, (math.nan,) * 4)
    return class_index is not None and math.isfinite(corners[0])


def has_polygons(root: Path) -> bool:
    """Return whether one of the first label files of a dataset has a polygon, and not keypoints after a box."""
    folder = root.parent if root.is_file() else root
    images: Iterable[Path] = ()  # of the described splits, which may be elsewhere
    files: list[Path] = []
    with contextlib.suppress(Error):  # reading the dataset reports an invalid description
        files, description = _find_description(root)
        if KEYPOINT_FIELD in description:
            return False
        paths = itertools.chain.from_iterable(_find_described_splits(files, description).values())
        images = itertools.islice(itertools.chain.from_iterable(map(_list_split_images, paths)), MAX_INSPECTED_IMAGES)
        images = [image for image in images if image.name and not archives.is_outside(image, root)]
    label_files = itertools.chain(filter(is_file, map(find_label_file, images)), walk_files(folder, ".txt"))
    box_files = filter(is_box_file, (file for file in label_files if file.name not in CLASS_FILES))
    inspected = list(itertools.islice(box_files, MAX_INSPECTED_FILES))
    return any(map(_has_polygon, inspected)) and (bool(files) or not _are_poses(inspected))


def _has_polygon(path: Path) -> bool:
    lengths = (len(line.split()) for line in _read_lines(path, max_bytes=MAX_SMALL_FILE_BYTES))
    return any(length > NUM_BOX_VALUES and length % 2 for length in lengths)  # a class and pairs of numbers


def find_description_files(root: Path) -> list[Path]:
    """Return the files that may describe a folder, at most four: ``data.yaml`` first, and others with class names."""
    files = [path for path in root.iterdir() if path.suffix.lower() in DESCRIPTION_SUFFIXES]
    files.sort(key=lambda path: (not _has_usual_name(path), path))
    described = (path for path in files if _has_usual_name(path) or contains_pattern(path, NAMES_KEY))
    return list(itertools.islice(described, MAX_DESCRIPTIONS))


def _has_usual_name(path: Path) -> bool:
    return path.stem.lower() in ("data", "dataset")


def _find_description(path: Path) -> tuple[list[Path], dict[str, Json]]:
    """Return the files that describe a dataset, a folder or such a file, and the content of the first one.

    Raises:
        Error: it is not valid YAML.
    """
    files = [path] if path.is_file() else [file for file in find_description_files(path) if _has_class_names(file)]
    return files, _read_description(files[0]) if files else {}


def read_yolo(
    path: Path,
    images: Path | None = None,
    on_polygons: Callable[[ImageAnnotation, list[Polygon]], None] | None = None,
) -> DatasetAnnotations:
    """Read the annotations of a folder of label files, or of those that a YAML file describes.

    Args:
        path: the folder or the file.
        images: folder of the images; None: where the description or the layout has them.
        on_polygons: called for each image with its annotation and the polygons or boxes of its classes.

    Raises:
        Error: the description is invalid.
    """
    dataset = DatasetAnnotations()
    root = path.parent if path.is_file() else path
    files, description = _find_description(path)
    splits = _group_images(images) if images else _find_described_splits(files, description) or _find_splits(root)
    split_images = {
        split: [*dict.fromkeys(itertools.chain(*map(_list_split_images, paths)))] for split, paths in splits.items()
    }
    label_files = _find_label_files(path, root, split_images, images is not None and path.is_dir())
    has_keypoints = KEYPOINT_FIELD in description or (not files and _are_poses(label_files.values()))
    if files:
        class_names = _parse_class_names(files[0], description)
    else:
        folders = dict.fromkeys(file.parent for file in label_files.values() if archives.is_inside(file, root))
        class_names = dict(enumerate(_read_class_names(root, folders))) or _number_classes(label_files.values())
    dataset.labels = tuple(dict.fromkeys(class_names[index] for index in sorted(class_names)))
    for split, image_paths in split_images.items():
        entries = [
            ImageAnnotation(image, path)
            if archives.is_outside(image, path)
            else _read_annotation(image, label_files.get(image), class_names, dataset, on_polygons, has_keypoints)
            for image in image_paths
        ]
        dataset.splits[split] = keep_existing_images(entries, dataset, split, path)
    _add_orphan_labels(dataset)
    return dataset


def _find_label_files(
    path: Path, root: Path, split_images: dict[str, list[Path]], is_separate: bool
) -> dict[Path, Path]:
    """Find the text file of each image that has one.

    In a split without any text file in the usual places, it is the one of the image's stem that is not in these places.
    With ``is_separate``, the images have a folder of their own, and the text files are below ``root``.
    """
    label_files: dict[Path, Path] = {}
    others: list[Path] = []
    for images in split_images.values():
        inside = (image for image in images if image.name and not archives.is_outside(image, path))
        usual = {image: file for image in inside if is_file(file := find_label_file(image))}
        if is_separate:
            usual = {image: file for image, file in usual.items() if archives.is_inside(file, root)}
        label_files |= usual
        others += [] if usual else images
    if others:
        used = {*label_files.values()}
        files = (file for file in walk_files(root, ".txt") if file.name not in CLASS_FILES)
        pairs = pair_with_images([file for file in files if file not in used], others)
        label_files |= {image: file for file, image in pairs.items()}
    return label_files


def _find_described_splits(files: Sequence[Path], description: dict[str, Json]) -> dict[str, list[Path]]:
    """Find the folders and lists of the splits in a description; none without a description."""
    splits = {
        split: list(_locate_paths(files[0], description, key))
        for key, split in SPLIT_KEYS.items()
        if description.get(key)
    }
    return {split: paths for split, paths in splits.items() if paths}


def _find_splits(root: Path) -> dict[str, list[Path]]:
    """Find the folders or the images of the splits of a folder without a description."""
    images = root / "images"
    named = _find_split_folders(root) or ({"": [images]} if images.is_dir() else _find_mixed_splits(root))
    return named or _group_images(root)


def _group_images(root: Path) -> dict[str, list[Path]]:
    """Group the images below a folder by the split that the name of one of their folders denotes."""
    splits: dict[str, list[Path]] = {}
    for image in sorted(walk_images(root)):
        splits.setdefault(find_split(image, root), []).append(image)
    return splits


def _number_classes(files: Iterable[Path]) -> dict[int, str]:
    """Name each class of label files by its number."""
    numbers = set()
    for path in files:
        for line in _read_lines(path, max_bytes=MAX_SMALL_FILE_BYTES):
            class_index, corners = _parse_box_line(line)
            if class_index is not None and math.isfinite(corners[0]):
                numbers.add(class_index)
    return {number: str(number) for number in sorted(numbers)}


def find_label_file(image: Path) -> Path:
    """Return the label file of an image: in ``labels`` for an image in ``images``, otherwise next to it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        images_index = len(parts) - 2 - parts[-2::-1].index("images")
        label_file = Path(*parts[:images_index], "labels", *parts[images_index + 1 :]).with_suffix(".txt")
        if is_file(label_file) or not is_file(image.with_suffix(".txt")):
            return label_file
    return image.with_suffix(".txt")


def _read_annotation(
    image: Path,
    path: Path | None,
    names: dict[int, str],
    dataset: DatasetAnnotations,
    on_polygons: Callable[[ImageAnnotation, list[Polygon]], None] | None,
    has_keypoints: bool,
) -> ImageAnnotation:
    """Read the boxes of an image from its text file; none without one, as in YOLO.

    With ``has_keypoints``, a line has keypoints after the box, which are skipped.
    """
    boxes: list[Box] = []
    polygons: list[Polygon] = []
    if path is None:
        dataset.unannotated_images.append(image)
        return ImageAnnotation(image, find_label_file(image) if image.name else image)
    for line, text in enumerate(read_text(path, max_bytes=MAX_SMALL_FILE_BYTES, errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        if has_keypoints:
            text = " ".join(text.split()[:NUM_BOX_VALUES])
        class_index, corners = _parse_box_line(text)
        if class_index is None or class_index not in names:
            word = text.split()[0][:50]
            detail = f"has class {word}, but there are {len(names)} classes: 0 to {max(names, default=0)}"
            dataset.orphan_annotations.append(AnnotationProblem("no class", path, line, detail))
        box = Box("" if class_index is None else names.get(class_index, ""), corners, line=line)
        boxes.append(box)
        if on_polygons and box.label and math.isfinite(corners[0]):
            polygons.append(Polygon(box.label, line, _parse_polygon(text, corners)))
    annotation = ImageAnnotation(image, path, tuple(boxes), is_relative=True)
    if on_polygons:
        on_polygons(annotation, polygons)
    return annotation


def _add_orphan_labels(dataset: DatasetAnnotations) -> None:
    """Record the label files without an image."""
    label_folders = {
        entry.image_path.parent: entry.annotation_path.parent
        for entries in dataset.splits.values()
        for entry in entries
    }
    for folder, labels in sorted(label_folders.items()):
        if labels == folder or not labels.is_dir():
            continue  # text files next to images may be anything
        stems = {normalize_name(path.stem) for path in list_images(folder)}
        for path in list_files(labels, ".txt"):
            if normalize_name(path.stem) not in stems and path.name not in CLASS_FILES:
                detail = f"there is no image {path.stem} in {folder}; put it there, or remove its labels"
                dataset.orphan_annotations.append(AnnotationProblem("missing", path, 0, detail))


def _parse_box_line(text: str) -> tuple[int | None, tuple[float, float, float, float]]:
    """Parse the class and the corners of a line, relative to the image size."""
    first, *values = map(to_number, text.split())
    class_index = int(first) if first.is_integer() else None
    if not all(map(math.isfinite, values)):
        return class_index, (math.nan,) * 4
    if len(values) % 2 and _has_keypoints(values):  # an odd number cannot be a polygon
        values = values[: NUM_BOX_VALUES - 1]
    if len(values) == 4:
        x, y, width, height = values
        return class_index, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(values) >= 6 and len(values) % 2 == 0:
        return class_index, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return class_index, (math.nan,) * 4


def _are_poses(files: Iterable[Path]) -> bool:
    """Return whether all lines of the first files are boxes with the same number of keypoints, ``x y visibility``."""
    lines = [
        list(map(to_number, line.split()))
        for file in itertools.islice(files, MAX_INSPECTED_FILES)
        for line in _read_lines(file, max_bytes=MAX_SMALL_FILE_BYTES)
    ]
    has_one_length = len({len(line) for line in lines}) == 1 and len(lines[0]) > NUM_BOX_VALUES
    return has_one_length and all(_has_keypoints(line[1:]) for line in lines)


def _has_keypoints(values: Sequence[float]) -> bool:
    """Return whether the numbers of a line are a box and keypoints in it, whose visibility is 0, 1 or 2."""
    keypoints = values[NUM_BOX_VALUES - 1 :]
    if len(keypoints) % 3 or not {*keypoints[2::3]} <= {0, 1, 2} or not any(keypoints[2::3]):
        return False
    x, y, width, height = values[: NUM_BOX_VALUES - 1]
    points = zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=True)
    return all(
        not visibility
        or (abs(column - x) <= width / 2 + KEYPOINT_TOLERANCE and abs(row - y) <= height / 2 + KEYPOINT_TOLERANCE)
        for column, row, visibility in points
    )


def _parse_polygon(text: str, corners: Corners) -> npt.NDArray[np.float64]:
    """Parse the corners of a line's polygon or box, relative to the image size, ``(N, 2)``."""
    values = [to_number(word) for word in text.split()[1:]]
    if len(values) == NUM_BOX_VALUES - 1 or len(values) % 2:  # a box, alone or before keypoints
        left, top, right, bottom = corners
        values = [left, top, right, top, right, bottom, left, bottom]
    return np.array(values, np.float64).reshape(-1, 2)


def _read_description(path: Path) -> dict[str, Json]:
    """Read a YAML file, or a Darknet file with ``key = value`` in each line.

    Raises:
        Error: the file is not valid YAML.
    """
    if path.suffix.lower() == DARKNET_SUFFIX:
        pairs = (line.partition("=") for line in _read_lines(path, max_bytes=MAX_DESCRIPTION_BYTES))
        return {key.strip(): value.strip() for key, sign, value in pairs if sign}
    from fukami.data.yaml_file import load_yaml

    return load_yaml(path)


def _has_class_names(path: Path) -> bool:
    """Return whether a YAML file has class names; assumed for an invalid ``data.yaml``, which raises an error later."""
    try:
        return bool(_read_description(path).get("names"))
    except MissingPackageError:
        raise
    except Error:
        return _has_usual_name(path)


def _parse_class_names(path: Path, description: dict[str, Json]) -> dict[int, str]:
    """Parse the index and the name of each class.

    Raises:
        Error: there are none.
    """
    names = description.get("names")
    if isinstance(names, str):
        names = (
            []
            if names.isdecimal()
            else [line for file in _locate_paths(path, description, "names") for line in _read_lines(file)]
        )
    try:
        entries = dict(
            names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else ())
        )
        class_names = {int(index): name for index, name in entries.items()}
    except (TypeError, ValueError):
        class_names = {}
    if not class_names or not all(isinstance(name, str) for name in class_names.values()):
        raise Error(
            f"{path}: names must be a list, a name for each index, or a file with a name on each line; got "
            f"{str(description.get('names'))[:200]}"
        )
    return class_names


def _locate_paths(path: Path, description: dict[str, Json], key: str) -> Iterator[Path]:
    """Locate the folders or lists of a split, relative to any of the base folders that tools use.

    Raises:
        Error: a folder or list does not exist.
    """
    base = Path(_use_slashes(_check_text(path, description.get("path") or ".", "path"), path.parent))
    values = description[key]
    for value in values if isinstance(values, list) else [values]:
        stripped = name = _use_slashes(_check_text(path, value, key), path.parent / base, path.parent)
        while stripped.startswith("../"):  # Roboflow's paths are relative to a folder further down
            stripped = stripped[3:]
        candidates = [path.parent / base / name, base / name, path.parent / name, path.parent / stripped]
        if path.suffix.lower() == DARKNET_SUFFIX:
            candidates.append(path.parent / _strip_first_folder(name))
        # class names become the labels of a run
        archive_root = path.parent if key == "names" else archives.find_archive_root(path)
        location = next(
            (
                candidate
                for candidate in candidates
                if exists(candidate) and (not archive_root or archives.is_inside(candidate, archive_root))
            ),
            None,
        )
        if location is None and key == "test":
            continue  # test splits are often listed but not distributed
        if location is None:
            raise Error(
                f"{path} refers to {name}, but there is no {candidates[0]}; put the images there, or fix the file"
            )
        yield location


def _use_slashes(name: str, *folders: Path) -> str:
    r"""Replace each ``\`` of a path by a slash, as written on Windows, unless one of the folders has such a name."""
    return name if any(exists(folder / name) for folder in folders) else name.replace("\\", "/")


def _check_text(path: Path, value: Json, key: str) -> str:
    """Check that a value is the name of a folder or a file."""
    if not isinstance(value, str):
        raise Error(f"{path}: {key} must be the name of a folder or a list, not {str(value)[:200]}")
    return value


def _list_split_images(path: Path) -> list[Path]:
    """List the images of a folder or of a list file; an image is a list of its own."""
    if path.suffix.lower() in image_io.get_image_suffixes() and is_file(path):
        return [path]
    if path.is_file():
        named = (
            (locate_file(path.parent, line), locate_file(path.parent, _strip_first_folder(line)))
            for line in _read_lines(path)
        )
        return [other if is_file(other) and not is_file(image) else image for image, other in named]
    return sorted(walk_images(path / "images" if (path / "images").is_dir() else path))


def _strip_first_folder(name: str) -> str:
    """Remove the first folder of a path; Darknet's paths start with the folder in which it expects the data."""
    return str(Path(*Path(name.replace("\\", "/")).parts[1:]))


def _read_lines(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> list[str]:
    """Read the non-empty lines of a file."""
    lines = read_text(path, max_bytes=max_bytes, errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _find_mixed_splits(root: Path) -> dict[str, list[Path]]:
    """Find the splits of a folder with labels next to the images, and a file of class names."""
    splits = {parse_split(child.name): [child] for child in list_folders(root) if parse_split(child.name)}
    folders = [folder for child in (splits or {"": [root]}).values() for folder in child]
    has_names = any((folder / name).is_file() for folder in (root, *folders) for name in CLASS_FILES)
    if not has_names or not any(
        path.with_suffix(".txt").is_file() for folder in folders for path in list_images(folder)
    ):
        return {}
    return splits or {"": [root]}


def _find_split_folders(root: Path) -> dict[str, list[Path]]:
    """Find the splits of a folder without a YAML file: ``train/images`` or ``images/train``."""
    outer = _group_by_split(list_folders(root))
    outer = {
        split: [folder / "images" for folder in folders if _has_text_files(folder / "labels")]
        for split, folders in outer.items()
    }
    outer = {split: folders for split, folders in outer.items() if folders}
    images = root / "images"
    if outer or not _has_text_files(root / "labels"):
        return outer
    return _group_by_split(list_folders(images)) if images.is_dir() else {}


def _group_by_split(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Group folders by the split that their name denotes, which may end with a year, such as ``train2017``."""
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        if split := parse_split(folder.name.rstrip(string.digits)):
            splits.setdefault(split, []).append(folder)
    return splits


def _has_text_files(folder: Path) -> bool:
    """Return whether there is a text file below a folder."""
    return next(walk_files(folder, ".txt"), None) is not None


def _read_class_names(root: Path, label_folders: Iterable[Path]) -> list[str]:
    """Read the class names of a folder without a YAML file; empty if no file has them."""
    for folder in (
        root,
        root / "labels",
        *(child for child in list_folders(root) if parse_split(child.name)),
        *label_folders,
    ):
        for name in CLASS_FILES:
            if (folder / name).is_file():
                return _read_lines(folder / name)
    return []
