"""Bounding boxes in CSV files, with a row for each box, as written by Roboflow, VoTT and many scripts.

The columns are an image, a class, and two opposite corners; also the width and the height of the image, and its split.
An image without objects has a row without a class. Coordinates of at most 1 are fractions of the image.
"""

import csv
import io
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fukami.data.annotation_files import ImageIndex
from fukami.data.annotations import (
    ANNOTATION_SPLITS,
    AnnotationProblem,
    Box,
    Corners,
    DatasetAnnotations,
    ImageAnnotation,
    check_splits,
    keep_existing_images,
    parse_size,
    parse_split,
)
from fukami.data.files import list_files, list_folders, locate_file, walk_files
from fukami.data.parsing import is_file, read_columns, read_text, to_number
from fukami.errors import Error

IMAGE_COLUMNS = ("filename", "image", "path", "file", "image_name", "image_path", "file_name")
CLASS_COLUMNS = ("class", "label", "class_name", "name", "category")
CORNER_COLUMNS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)


class _Columns(NamedTuple):
    """Names of the columns of a table."""

    image: str
    label: str
    corners: tuple[str, str, str, str]


class _Row(NamedTuple):
    """A row: the name and the stated size of an image, a box (None: no object), and the split (empty: unknown)."""

    line: int
    image: str
    size: tuple[int, int] | None
    box: Box | None
    split: str


def has_box_columns(path: Path) -> bool:
    """Return whether a CSV file has the columns of an image, a class and two corners."""
    return _find_columns(read_columns(path)) is not None


def find_box_tables(root: Path) -> list[tuple[str, Path]]:
    """Find the tables of boxes in a folder, and the split of each (empty without splits), as in ``train.csv``.

    They are in the folder, or in the folders ``train``, ``val`` and ``test``.
    """
    tables = list(filter(has_box_columns, list_files(root, ".csv")))
    if tables:
        return [(find_table_split(table) if len(tables) > 1 else "", table) for table in tables]
    folders = [folder for folder in list_folders(root) if parse_split(folder.name)]
    return [
        (parse_split(folder.name), table)
        for folder in folders
        for table in filter(has_box_columns, list_files(folder, ".csv"))
    ]


def read_box_tables(path: Path, images: Path | None = None) -> DatasetAnnotations:
    """Read a table of boxes, or those of a folder; without ``images``, the images are below the same folder.

    Raises:
        Error: a table is not valid CSV, or not in UTF-8, or several tables have the same split.
    """
    dataset = DatasetAnnotations()
    tables = [("", path)] if is_file(path) else find_box_tables(path)
    check_splits(path, tables)
    root = images or (path.parent if is_file(path) else path)
    labels: set[str] = set()

    @cache
    def build_index() -> ImageIndex:  # only if it is needed: the folder of a single file may have millions of others
        return ImageIndex(root, walk_files(root))

    for table_split, table in tables:
        grouped: dict[tuple[str, Path], list[_Row]] = {}
        for row in _read_rows(table):
            split = row.split or table_split
            if split and split not in ANNOTATION_SPLITS.values():
                detail = f"has the split {row.split[:50]!r}; expected train, val or test"
                dataset.orphan_annotations.append(AnnotationProblem("no split", table, row.line, detail))
                continue
            image = locate_file(root, row.image)
            if not is_file(image):
                image = build_index().find(row.image, table, split) or image
            grouped.setdefault((split, image), []).append(row)
            if row.box and not row.box.label:
                detail = "the box has no class, and is skipped"
                dataset.orphan_annotations.append(AnnotationProblem("no class", table, row.line, detail, split))
            labels.update([row.box.label] if row.box and row.box.label else [])
        is_relative = _are_relative([row.box for rows in grouped.values() for row in rows if row.box])
        for split in dict.fromkeys(split for split, _ in grouped):
            entries = [
                ImageAnnotation(
                    image, table, tuple(row.box for row in rows if row.box), rows[0].size, rows[0].line, is_relative
                )
                for (image_split, image), rows in grouped.items()
                if image_split == split
            ]
            dataset.splits.setdefault(split, []).extend(keep_existing_images(entries, dataset, split, table))
    if images or not is_file(path):
        listed = {entry.image_path for entries in dataset.splits.values() for entry in entries}
        dataset.unannotated_images = [image for image in build_index().images if image not in listed]
    dataset.labels = tuple(sorted(labels))
    return dataset


def _find_columns(names: list[str]) -> _Columns | None:
    """Find the columns of images, classes and corners among the names; None if some are missing."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    label = next((name for name in CLASS_COLUMNS if name in names), None)
    corners = next((columns for columns in CORNER_COLUMNS if {*columns} <= {*names}), None)
    return _Columns(image, label, corners) if image and label and corners else None


def find_table_split(table: Path) -> str:
    """Return the split that the name of a table denotes, as in ``train_labels.csv``; empty if it denotes none."""
    return next(filter(None, map(parse_split, table.stem.lower().replace("-", "_").split("_"))), "")


def _read_rows(path: Path) -> Iterator[_Row]:
    """Yield the rows of a table.

    Raises:
        Error: the table is not valid CSV, a row names no image, or the file is not in UTF-8.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        columns = _find_columns([*reader.fieldnames])
        if columns is None:
            raise Error(
                f"{path}: the first line should name columns such as filename, class, xmin, ymin, xmax and ymax, not "
                f"{', '.join(reader.fieldnames)[:200] or 'nothing'}"
            )
        for fields in reader:
            values = {name: (value or "").strip() for name, value in fields.items() if isinstance(value, str | None)}
            if not values.get(columns.image):
                raise Error(f"{path}, line {reader.line_num}: names no image; got {str(fields)[:200]}")
            yield _parse_row(values, columns, reader.line_num)
    except csv.Error as error:
        raise Error(f"{path}, line {reader.line_num}: is not valid CSV ({error}); fix it") from None


def _parse_row(values: dict[str, str], columns: _Columns, line: int) -> _Row:
    label, texts = values.get(columns.label, ""), [values.get(name, "") for name in columns.corners]
    left, top, right, bottom = map(to_number, texts)
    box = Box(label, (left, top, right, bottom), line=line) if label or any(texts) else None
    split = values.get("split", "")
    return _Row(
        line,
        values[columns.image],
        parse_size(values.get("width"), values.get("height")),
        box,
        ANNOTATION_SPLITS.get(split.lower(), split),
    )


def _are_relative(boxes: list[Box]) -> bool:
    """Return whether all coordinates are fractions of the image."""
    corners: list[Corners] = [box.corners for box in boxes if all(map(math.isfinite, box.corners))]
    return bool(corners) and max(map(max, corners)) <= 1
