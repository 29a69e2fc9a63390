"""What the values of a mask mean: legends of well-known data sets, and those that a class table tells."""

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

Colour = tuple[int, int, int]
IGNORED_NAMES = {"void", "unlabelled", "unlabeled", "ignore", "ignored"}  # names that stand for no class
IGNORE_INDEX = 255  # the value that stands for no class in most data sets
TABLE_FILES = (
    "classes.txt", "classes.csv", "class_dict.csv", "_classes.csv", "labels.txt", "codes.txt", "label_colors.txt",
    "labelmap.txt", "class_names.txt",
)  # fmt: skip


@dataclass(frozen=True)
class ClassTable:
    """The classes of masks, and which value or colour of a pixel stands for which.

    Attributes:
        labels: what the classes are called.
        value_to_class: class by value, -1 for what is unlabelled; of masks in shades of grey or with a palette.
        color_to_class: class by colour, -1 likewise; of masks in colour. Empty where they are by value.
    """

    labels: tuple[str, ...]
    value_to_class: dict[int, int] = field(default_factory=dict)
    color_to_class: dict[Colour, int] = field(default_factory=dict)

    @cached_property
    def digest(self) -> bytes:
        """Hash of all of it."""
        return hashlib.blake2b(
            repr((self.labels, self.value_to_class, self.color_to_class)).encode(), digest_size=16
        ).digest()

    def with_ignore_index(self, value: int) -> "ClassTable":
        """The same in which a value stands for no class, unless it stands for one."""
        return ClassTable(
            self.labels, {value: -1, **self.value_to_class} if self.value_to_class else {}, self.color_to_class
        )


def build_class_table(labels: Sequence[str], ignored_values: Iterable[int] = ()) -> ClassTable:
    """Classes that are numbered from 0 on; one that is called nothing is unlabelled."""
    kept = tuple(label for label in labels if label.lower() not in IGNORED_NAMES)
    values = {number: kept.index(label) if label in kept else -1 for number, label in enumerate(labels)}
    return ClassTable(kept, {**dict.fromkeys(ignored_values, -1), **values})


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


def compute_voc_color(number: int) -> Colour:
    """The colour of a number in VOC's palette, whose bits are dealt out to red, green and blue in turn."""
    levels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            levels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return levels[0], levels[1], levels[2]


VOC = build_class_table(VOC_LABELS, (IGNORE_INDEX,))
VOC_COLOURED = ClassTable(
    VOC_LABELS,
    color_to_class={compute_voc_color(number): number for number in range(21)} | {compute_voc_color(IGNORE_INDEX): -1},
)
CAMVID = build_class_table(CAMVID_LABELS, (11, IGNORE_INDEX))
CITYSCAPES = ClassTable(
    CITYSCAPES_LABELS,
    dict.fromkeys((*range(34), IGNORE_INDEX), -1) | {value: n for n, value in enumerate(CITYSCAPES_IDS)},
)
CITYSCAPES_TRAIN_IDS = build_class_table(CITYSCAPES_LABELS, (IGNORE_INDEX,))


def find_class_table(root: Path) -> ClassTable | None:
    """What the class table in a folder says; None where there is none."""
    here = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
    table = next((here[name] for name in TABLE_FILES if name in here), None)
    return read_class_table(table) if table else None


def read_class_table(path: Path) -> ClassTable:
    """What a class table says: a line for each class, with its name alone, its value, or its red, green and blue.

    Names without numbers count from 0. The lines may be those of CSV, ``name: r, g, b`` (CVAT) or ``r g b name``; a
    class that is called void, unlabelled or ignore is none.

    Raises:
        Error: a line is none of these, two classes have one value or name, or there is no class.
    """
    lines = read_text(path, max_bytes=MAX_SMALL_FILE_BYTES).splitlines()
    rows = [
        _parse_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip() and line[0] not in "#;"
    ]
    if rows and path.suffix.lower() == ".csv" and not rows[0][1]:
        rows = rows[1:]  # the names of the columns
    if not rows:
        raise Error(f"{path} names no class; write a line for each, such as road 128 64 128, or its name alone")
    kinds = {len(numbers) for _, numbers in rows}
    if len(kinds) > 1:
        raise Error(f"{path} gives some classes a colour or a value and others none; give each of them the same")
    names = [name for name, _ in rows]
    labels = tuple(name for name in dict.fromkeys(names) if name.lower() not in IGNORED_NAMES)
    number = {**dict.fromkeys(names, -1), **{name: at for at, name in enumerate(labels)}}
    keys = [numbers or (at,) for at, (_, numbers) in enumerate(rows)]
    twice = next((key for key, count in Counter(keys).items() if count > 1), None)
    if twice is not None or not labels:
        what = f"two classes with {' '.join(map(str, twice))}" if twice else "no class but what stands for none"
        raise Error(f"{path} has {what}; give each class a value of its own")
    classes = [number[name] for name in names]
    if kinds == {3}:
        return ClassTable(labels, color_to_class=dict(zip(keys, classes, strict=True)))  # type: ignore[arg-type]
    return ClassTable(labels, {key[0]: each for key, each in zip(keys, classes, strict=True)})


def _parse_row(path: Path, number: int, line: str) -> tuple[str, tuple[int, ...]]:
    """The name in a line, and the numbers in it: none, a value, or a colour."""
    try:
        separated = next(csv.reader([line], skipinitialspace=True)) if "," in line and ":" not in line else None
    except csv.Error as error:
        raise Error(f"{path}, line {number}: is no CSV ({error}); expected a name and perhaps numbers") from None
    cells = [cell.strip() for cell in separated or re.split(r"[\s,:;]+", line.strip()) if cell.strip()]
    numbers = tuple(int(cell) for cell in cells if re.fullmatch(r"\d{1,5}", cell))
    words = [cell for cell in cells if not re.fullmatch(r"\d{1,5}", cell)]
    good = len(numbers) in (0, 1, 3) and words and (len(numbers) < 3 or max(numbers) < 256)
    if not good:
        raise Error(
            f"{path}, line {number}: {line.strip()[:200]!r} is no class; expected its name, and perhaps its value or "
            "its red, green and blue from 0 to 255"
        )
    return " ".join(words), numbers


def encode_colors(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Colours ``(..., 3)`` as one number each."""
    wide = colours.astype(np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])
