"""Class tables, which map mask values or colors to classes: those of common datasets, and readers of files."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.data.parsing import MAX_SMALL_FILE_BYTES, read_text
from fukami.errors import Error

Color = tuple[int, int, int]
IGNORED_NAMES = {"void", "unlabelled", "unlabeled", "ignore", "ignored"}  # names of unlabeled pixels
IGNORE_INDEX = 255  # mask value of unlabeled pixels in most datasets
LABEL_MAP_LINE = re.compile(r"([^:]*:\s*\d+\s*,\s*\d+\s*,\s*\d+)\s*:")  # of CVAT: name, color, parts, actions
HEADERS = {
    "name", "names", "class", "classes", "class_name", "class_names", "label", "labels", "category", "categories",
}  # fmt: skip
TABLE_FILES = (
    "classes.txt", "classes.csv", "class_dict.csv", "_classes.csv", "labels.txt", "codes.txt", "label_colors.txt",
    "labelmap.txt", "class_names.txt",
)  # fmt: skip


@dataclass(frozen=True)
class ClassTable:
    """Class names of masks, and the mapping from pixel values or colors to classes.

    Attributes:
        labels: class names.
        value_to_class: class index by value, -1 for unlabeled; for grayscale and palette masks.
        color_to_class: class index by color, -1 for unlabeled; for color masks, otherwise empty.
    """

    labels: tuple[str, ...]
    value_to_class: dict[int, int] = field(default_factory=dict)
    color_to_class: dict[Color, int] = field(default_factory=dict)

    @cached_property
    def digest(self) -> bytes:
        """Hash of the whole table."""
        return hashlib.blake2b(
            repr((self.labels, self.value_to_class, self.color_to_class)).encode(), digest_size=16
        ).digest()

    def with_ignore_index(self, value: int) -> "ClassTable":
        """Return a copy that maps a value to unlabeled; the default, 255, only if it has no class (binary masks)."""
        if not self.value_to_class:
            return self
        values = {value: -1, **self.value_to_class} if value == IGNORE_INDEX else {**self.value_to_class, value: -1}
        kept = sorted({*values.values()} - {-1})
        indices = {old: new for new, old in enumerate(kept)} | {-1: -1}
        labels = tuple(self.labels[index] for index in kept)
        return ClassTable(labels, {key: indices[index] for key, index in values.items()}, self.color_to_class)


def build_class_table(labels: Sequence[str], ignored_values: Iterable[int] = ()) -> ClassTable:
    """Build a table of classes whose mask values count from 0; ``IGNORED_NAMES`` become unlabeled."""
    class_labels = tuple(label for label in labels if label.lower() not in IGNORED_NAMES)
    values = {value: class_labels.index(label) if label in class_labels else -1 for value, label in enumerate(labels)}
    return ClassTable(class_labels, {**dict.fromkeys(ignored_values, -1), **values})


VOC_LABELS = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CAMVID_LABELS = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CITYSCAPES_LABELS = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def compute_voc_color(index: int) -> Color:
    """Compute a color of the VOC palette; the bits of ``index`` alternate between red, green and blue."""
    levels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            levels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return levels[0], levels[1], levels[2]


VOC = build_class_table(VOC_LABELS, (IGNORE_INDEX,))
VOC_COLORED = ClassTable(
    VOC_LABELS,
    color_to_class={compute_voc_color(index): index for index in range(21)} | {compute_voc_color(IGNORE_INDEX): -1},
)
CAMVID = build_class_table(CAMVID_LABELS, (11, IGNORE_INDEX))
CITYSCAPES = ClassTable(
    CITYSCAPES_LABELS,
    dict.fromkeys((*range(34), IGNORE_INDEX), -1) | {value: index for index, value in enumerate(CITYSCAPES_IDS)},
)
CITYSCAPES_TRAIN_IDS = build_class_table(CITYSCAPES_LABELS, (IGNORE_INDEX,))


def find_class_table(root: Path) -> ClassTable | None:
    """Read the class table in a folder; None if the folder has none."""
    files = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
    table = next((files[name] for name in TABLE_FILES if name in files), None)
    return read_class_table(table) if table else None


def read_class_table(path: Path) -> ClassTable:
    """Read a class table: one line per class, with its name only, or with its value or its red, green and blue.

    Values of names without numbers count from 0. Supported formats are CSV, ``name: r, g, b`` (CVAT) and ``r g b
    name``. The names void, unlabeled and ignore denote unlabeled pixels.

    Raises:
        Error: a line is invalid, two classes share a value, or there is no class.
    """
    numbered = enumerate(read_text(path, max_bytes=MAX_SMALL_FILE_BYTES).splitlines(), 1)
    lines = [(number, line) for number, line in numbered if line.strip() and line[0] not in "#;"]
    rows = [_parse_row(path, number, line) for number, line in lines]
    if rows and path.suffix.lower() == ".csv" and not rows[0][1]:
        first_column = lines[0][1].partition(",")[0].strip().strip('"').lower()
        if first_column in HEADERS or any(numbers for _, numbers in rows):
            rows = rows[1:]  # column names
    if not rows:
        raise Error(f"{path} contains no class; write a line for each, such as road 128 64 128, or its name only")
    num_values = {len(numbers) for _, numbers in rows}
    if len(num_values) > 1:
        raise Error(f"{path} contains classes with and without a value or color; use one format for all")
    names = [name for name, _ in rows]
    labels = tuple(name for name in dict.fromkeys(names) if name.lower() not in IGNORED_NAMES)
    class_indices = {**dict.fromkeys(names, -1), **{name: index for index, name in enumerate(labels)}}
    keys = [numbers or (index,) for index, (_, numbers) in enumerate(rows)]
    duplicate = next((key for key, count in Counter(keys).items() if count > 1), None)
    if duplicate is not None or not labels:
        problem = f"two classes with {' '.join(map(str, duplicate))}" if duplicate else "no class except unlabeled ones"
        raise Error(f"{path} has {problem}; use a different value for each class")
    classes = [class_indices[name] for name in names]
    if num_values == {3}:
        colors = {(red, green, blue): index for (red, green, blue), index in zip(keys, classes, strict=True)}
        return ClassTable(labels, color_to_class=colors)
    return ClassTable(labels, {key[0]: index for key, index in zip(keys, classes, strict=True)})


def _parse_row(path: Path, line_number: int, line: str) -> tuple[str, tuple[int, ...]]:
    """Parse the class name and the numbers of a line: none, a value, or a color."""
    if label_map := LABEL_MAP_LINE.match(line):
        line = label_map[1]  # without parts and actions
    try:
        separated = next(csv.reader([line], skipinitialspace=True)) if "," in line and ":" not in line else None
    except csv.Error as error:
        raise Error(
            f"{path}, line {line_number}: is not valid CSV ({error}); expected a name and optional numbers"
        ) from None
    cells = [cell.strip() for cell in separated or re.split(r"[\s,:;]+", line.strip()) if cell.strip()]
    numbers = tuple(int(cell) for cell in cells if re.fullmatch(r"\d{1,5}", cell))
    name_parts = [cell for cell in cells if not re.fullmatch(r"\d{1,5}", cell)]
    is_valid = len(numbers) in (0, 1, 3) and name_parts and (len(numbers) < 3 or max(numbers) < 256)
    if not is_valid:
        raise Error(
            f"{path}, line {line_number}: {line.strip()[:200]!r} is not a class; expected its name and optionally its "
            "value, or its red, green and blue from 0 to 255"
        )
    return " ".join(name_parts), numbers


def encode_colors(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Encode colors ``(..., 3)`` as integers, ``0xRRGGBB``."""
    rgb = colors.astype(np.int32)
    return np.asarray(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])
