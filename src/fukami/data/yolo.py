"""Annotations in the text files of YOLO: a line ``CLASS X Y WIDTH HEIGHT`` for each box, in shares of the image.

The classes are named by a ``data.yaml`` (or another ``.yaml``) or Darknet's ``obj.data``, which have the parts, too, or
by a ``classes.txt`` beside the folders ``images`` and ``labels``, or among images that have their labels beside them.
A line of a class and the points of a polygon stands for the box around it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fukami.data import archives, image_folder
from fukami.data.annotations import (
    AnnotationProblem,
    Box,
    DatasetAnnotations,
    ImageAnnotation,
    is_outside_archive,
    keep_existing_images,
    list_images,
    parse_split,
)
from fukami.data.parsing import MAX_SMALL_FILE_BYTES, exists, is_file, read_text, to_number
from fukami.errors import Error

CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
DARKNET_SUFFIX = ".data"  # the suffix of the files by which Darknet describes data, and CVAT after it
MAX_YAML_BYTES = 2 << 20  # bytes; PyYAML reads a megabyte in ten seconds
NULL_VALUES = ("", "~", "null", "Null", "NULL", "none", "None")  # what YAML files write for no value
SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def is_yolo_dataset(root: Path) -> bool:
    """Whether a folder is in one of the layouts, or a file describes one."""
    if root.is_file():
        return bool(_has_class_names(root))
    both = (root / "images").is_dir() and (root / "labels").is_dir()
    return (
        both
        or bool(_find_split_folders(root))
        or any(map(_has_class_names, find_description_files(root)))
        or bool(_find_mixed_splits(root))
    )


def find_description_files(root: Path) -> list[Path]:
    """The files of a folder that may describe it, ``data.yaml`` first."""
    found = [path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml", DARKNET_SUFFIX)]
    return sorted(found, key=lambda path: (path.stem.lower() not in ("data", "dataset"), path))


def read_yolo(path: Path) -> DatasetAnnotations:
    """What the label files say that a folder holds or a YAML file describes.

    Raises:
        Error: the file that describes them is broken, or nothing names the classes.
    """
    sheets = DatasetAnnotations()
    files = [path] if path.is_file() else [file for file in find_description_files(path) if _has_class_names(file)]
    root = path.parent if path.is_file() else path
    if files:
        said = _read_description(files[0])
        numbers = _parse_class_names(files[0], said)
        inside = {part: list(_locate_paths(files[0], said, key)) for key, part in SPLIT_KEYS.items() if said.get(key)}
        inside = {part: places for part, places in inside.items() if places}
    else:
        numbers, inside = dict(enumerate(_read_class_names(root))), {}
    images = root / "images"
    inside = (
        inside
        or _find_split_folders(root)
        or ({"": [images]} if images.is_dir() else _find_mixed_splits(root) or {"": [root]})
    )
    sheets.labels = tuple(dict.fromkeys(numbers[number] for number in sorted(numbers)))
    for part, places in inside.items():
        every = [image for place in places for image in _list_split_images(place)]
        entries = [
            ImageAnnotation(image, path)
            if is_outside_archive(image, path)
            else _read_annotation(image, numbers, sheets)
            for image in every
        ]
        sheets.splits[part] = keep_existing_images(entries, sheets, part, path)
    _add_orphan_labels(sheets)
    return sheets


def find_label_file(image: Path) -> Path:
    """Where the boxes of an image stand: in ``labels`` where it lies in ``images``, otherwise beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[-2::-1].index("images")
        other = Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
        if is_file(other) or not is_file(image.with_suffix(".txt")):
            return other
    return image.with_suffix(".txt")


def _read_annotation(image: Path, names: dict[int, str], sheets: DatasetAnnotations) -> ImageAnnotation:
    """The boxes of an image; none where there is no file, as YOLO has it."""
    path = find_label_file(image)
    boxes: list[Box] = []
    if not is_file(path):
        sheets.unannotated_images.append(image)
        return ImageAnnotation(image, path)
    for line, text in enumerate(read_text(path, max_bytes=MAX_SMALL_FILE_BYTES, errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        number, corners = _parse_box_line(text)
        if number is None or number not in names:
            given = text.split()[0][:50]
            detail = f"is of class {given}, and there are {len(names)}: 0 to {max(names, default=0)}"
            sheets.orphan_annotations.append(AnnotationProblem("no class", path, line, detail))
        boxes.append(Box("" if number is None else names.get(number, ""), corners, line=line))
    return ImageAnnotation(image, path, tuple(boxes), is_relative=True)


def _add_orphan_labels(sheets: DatasetAnnotations) -> None:
    """Note label files whose image is not there."""
    lying = {
        entry.image_path.parent: entry.annotation_path.parent for entries in sheets.splits.values() for entry in entries
    }
    for place, labels in sorted(lying.items()):
        if labels == place or not labels.is_dir():
            continue  # text beside images may be anything
        stems = {path.stem for path in list_images(place)}
        for path in sorted(labels.glob("*.txt")):
            if path.stem not in stems and path.name not in CLASS_FILES:
                detail = f"there is no image {path.stem} in {place}; put it there, or remove its labels"
                sheets.orphan_annotations.append(AnnotationProblem("missing", path, 0, detail))


def _parse_box_line(text: str) -> tuple[int | None, tuple[float, float, float, float]]:
    """The class and the corners of a line, in shares of the image."""
    first, *values = map(to_number, text.split())
    number = int(first) if first.is_integer() else None
    if not all(map(math.isfinite, values)):
        return number, (math.nan,) * 4
    if len(values) == 4:
        x, y, width, height = values
        return number, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(values) >= 6 and len(values) % 2 == 0:
        return number, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return number, (math.nan,) * 4


def _read_description(path: Path) -> dict[str, Any]:
    """What a YAML file says, or Darknet's ``key = value`` in each line.

    Raises:
        Error: it is no YAML.
    """
    if path.suffix.lower() == DARKNET_SUFFIX:
        pairs = (line.partition("=") for line in _read_lines(path))
        return {key.strip(): value.strip() for key, sign, value in pairs if sign}
    return load_yaml(path)


def load_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML file, each scalar as the text that it is written as, None where it has no value.

    Anchors are refused: a few lines of them can stand for a value of any size.

    Raises:
        Error: it is no YAML, nested too deeply, too large, or has anchors.
    """
    text = read_text(path, max_bytes=MAX_YAML_BYTES)
    try:
        found = yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise Error(f"{path}{where}: is no YAML ({getattr(error, 'problem', error)}); fix it") from None
    except RecursionError:
        raise Error(f"{path}: is no YAML of a data set (it is nested too deeply); fix it") from None
    if not isinstance(found, dict):
        return {}
    return {key: None if value in NULL_VALUES else value for key, value in found.items() if isinstance(key, str)}


class _PlainLoader(yaml.BaseLoader):
    """PyYAML's loader without types and anchors; the numbers of YAML 1.1 can take hours to compute."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not read", event.start_mark)
        return super().compose_node(parent, index)


def _has_class_names(path: Path) -> bool:
    """Whether a YAML file names classes; a broken one might, and is told when it is read."""
    try:
        return bool(_read_description(path).get("names"))
    except Error:
        return path.stem.lower() in ("data", "dataset")


def _parse_class_names(path: Path, said: dict[str, Any]) -> dict[int, str]:
    """The number and the name of each class.

    Raises:
        Error: there are none.
    """
    names: Any = said.get("names")
    if isinstance(names, str):
        names = (
            []
            if names.isdecimal()
            else [line for place in _locate_paths(path, said, "names") for line in _read_lines(place)]
        )
    try:
        numbers = dict(names.items() if isinstance(names, dict) else enumerate(names))
        found = {int(number): name for number, name in numbers.items()}
    except (TypeError, ValueError):
        found = {}
    if not found or not all(isinstance(name, str) for name in found.values()):
        raise Error(
            f"{path}: names should be a list, a name for each number, or a file with a name on each line; got "
            f"{str(said.get('names'))[:200]}"
        )
    return found


def _locate_paths(path: Path, said: dict[str, Any], key: str) -> Iterator[Path]:
    """The folders or lists of a part, which tools write relative to one place or another.

    Raises:
        Error: there is none.
    """
    base, given = Path(_check_text(path, said.get("path") or ".", "path")), said[key]
    for each in given if isinstance(given, list) else [given]:
        near = name = _check_text(path, each, key)
        while near.startswith("../"):  # Roboflow's files are written for a folder further down
            near = near[3:]
        tried = [path.parent / base / name, base / name, path.parent / name, path.parent / near]
        if path.suffix.lower() == DARKNET_SUFFIX:
            tried.append(path.parent / _strip_first_folder(name))
        within = path.parent if key == "names" else archives.find_archive_root(path)  # names become the labels of a run
        place = next((at for at in tried if exists(at) and (not within or archives.is_inside(at, within))), None)
        if place is None and key == "test":
            continue  # one that is named and not handed out
        if place is None:
            raise Error(f"{path} names {name}, and there is no {tried[0]}; put the images there, or mend the file")
        yield place


def _check_text(path: Path, value: Any, key: str) -> str:
    """A value that should be the name of a folder or a file."""
    if not isinstance(value, str):
        raise Error(f"{path}: {key} should be the name of a folder or a list, not {str(value)[:200]}")
    return value


def _list_split_images(place: Path) -> list[Path]:
    """The images of a folder, or those that a list names."""
    if place.is_file():
        named = ((place.parent / line, place.parent / _strip_first_folder(line)) for line in _read_lines(place))
        return [other if is_file(other) and not is_file(path) else path for path, other in named]
    return list_images(place / "images" if (place / "images").is_dir() else place, recursive=True)


def _strip_first_folder(name: str) -> Path:
    """A path without its first folder, which Darknet's files have where the program expects the data."""
    return Path(*Path(name).parts[1:])


def _read_lines(path: Path) -> list[str]:
    """The lines of a file that have something in them."""
    lines = read_text(path, errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _find_mixed_splits(root: Path) -> dict[str, list[Path]]:
    """The parts of a folder in which labels lie beside the images, and names in a file in it or in a part."""
    inside = {parse_split(each.name): [each] for each in image_folder.list_folders(root) if parse_split(each.name)}
    places = [place for each in (inside or {"": [root]}).values() for place in each]
    named = any((place / name).is_file() for place in (root, *places) for name in CLASS_FILES)
    if not named or not any(path.with_suffix(".txt").is_file() for place in places for path in list_images(place)):
        return {}
    return inside or {"": [root]}


def _find_split_folders(root: Path) -> dict[str, list[Path]]:
    """The parts of a folder without a YAML file: ``train/images`` or ``images/train``."""
    outer = {
        parse_split(each.name): [each / "images"]
        for each in image_folder.list_folders(root)
        if (each / "labels").is_dir()
    }
    outer = {part: places for part, places in outer.items() if part}
    images = root / "images"
    inner = [each for each in image_folder.list_folders(images) if parse_split(each.name)] if images.is_dir() else []
    if outer or not (root / "labels").is_dir():
        return outer
    return {parse_split(each.name): [each] for each in inner}


def _read_class_names(root: Path) -> list[str]:
    """The class names of a folder without a YAML file.

    Raises:
        Error: nothing names them.
    """
    for place in (root, root / "labels", *(each for each in image_folder.list_folders(root) if parse_split(each.name))):
        for name in CLASS_FILES:
            if (place / name).is_file():
                return _read_lines(place / name)
    raise Error(f"{root} has labels of YOLO and nothing that names the classes; add a classes.txt, a name on each line")
