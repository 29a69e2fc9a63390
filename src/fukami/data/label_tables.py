"""CSV files of images and class labels."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from fukami.data import archives, box_tables
from fukami.data.annotations import check_splits
from fukami.data.files import list_files, locate_file
from fukami.data.image_folder import FolderSplit
from fukami.data.parsing import is_file, read_columns, read_text
from fukami.data.splits import SPLIT_NAMES, SPLITS, Split
from fukami.errors import Error

LABEL_COLUMNS = {"path", "label"}


def is_label_table(path: Path) -> bool:
    """Return whether a CSV file has the columns of an image and a class, and not of boxes."""
    return {*read_columns(path)} >= LABEL_COLUMNS and not box_tables.has_box_columns(path)


def find_label_tables(path: Path) -> list[tuple[str, Path]]:
    """Find the CSV files of class labels in a folder, and the split of each (empty without splits); or a file itself.

    Several files are splits if their names are such as ``train.csv``.
    """
    if is_file(path):
        return [("", path)]
    tables = list(filter(is_label_table, list_files(path, ".csv")))
    return [(box_tables.find_table_split(table) if len(tables) > 1 else "", table) for table in tables]


def read_csv(path: Path, images: Path | None = None) -> dict[Split, FolderSplit]:
    """Read the splits of a CSV file with columns ``path``, ``label`` and optionally ``split``, or those of a folder.

    Paths are relative to ``images``, or to the file's folder without it. A split is one of train, training, val, valid,
    validation, test, testing; a row without one belongs to the split of its file, or else to the training data.

    Raises:
        Error: a column is missing, a field is empty, a split has another name, a file is not in UTF-8, or several files
            have the same split.
    """
    tables = find_label_tables(path)
    check_splits(path, tables)
    splits: dict[Split, list[tuple[Path, str]]] = {split: [] for split in SPLITS}
    for table_split, table in tables:
        for file, label, split in _read_rows(table, images or table.parent):
            splits[SPLIT_NAMES.get(split.lower() or table_split, "train")].append((file, label))
    if not any(splits.values()):
        raise Error(f"{path} contains no image; expected a line for each, as in: cats/1.jpg,cat")
    return {split: FolderSplit(*map(tuple, zip(*rows, strict=True))) for split, rows in splits.items() if rows}


def _read_rows(path: Path, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Iterate over the image, the class and the split of each row of a CSV file; images are relative to ``folder``."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        if not {"path", "label"} <= set(columns):
            actual = ", ".join(columns)[:200] or "nothing"
            raise Error(
                f"{path}: the first line should name the columns path and label (and optionally split), not {actual}"
            )
        reader.fieldnames = columns
        for row in reader:
            name, label, split = ((row.get(column) or "").strip() for column in ("path", "label", "split"))
            if not name or not label or (split and split.lower() not in SPLIT_NAMES):
                raise Error(
                    f"{path}, line {reader.line_num}: expected a path, a label and train, val or test; got "
                    f"{str(row)[:200]}"
                )
            file = locate_file(folder, name)
            if archives.is_outside(file, path):
                raise Error(
                    f"{path}, line {reader.line_num}: {name[:200]} lies outside the archive; put the image there, or "
                    "unpack a trusted archive yourself"
                )
            yield file, label, split
    except csv.Error as error:
        raise Error(f"{path}, line {reader.line_num}: is not valid CSV ({error}); fix it") from None
