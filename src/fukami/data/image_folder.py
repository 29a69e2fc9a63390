"""A folder of images by class, the user's own; an archive of one is unpacked into the cache folder first."""

import csv
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.data import archives
from fukami.data.parsing import read_text
from fukami.errors import Error
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform

logger = logging.getLogger(__name__)
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "testing", "val", "valid", "validation")
MAX_LISTED = 5  # broken images that a message names
MAX_BROKEN = 100  # images of a part that may be broken

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FolderSplit:
    """The files of one part of a folder, in order, with the name of the class of each."""

    files: tuple[Path, ...]
    class_names: tuple[str, ...]


def scan_folder(path: Path) -> tuple[FolderSplit, FolderSplit | None]:
    """The training part and the test part (None where the folder has no parts of its own) of a folder or an archive.

    ``PATH/train/CLASS/...`` and ``PATH/test/CLASS/...`` (or ``val``) are parts; otherwise ``PATH/CLASS/...`` is all
    there is. Whatever lies deeper belongs to the class. Hidden files and files that are no images by name are passed
    over.

    Raises:
        Error: there are no folders of images at the path.
    """
    root = unpack_archive(path) if path.is_file() else path
    while len(inside := list_folders(root)) == 1 and len(list_folders(inside[0])) > 1:
        root = inside[0]  # the one folder that an archive packs everything into
    if not inside:
        raise Error(f"{path} has no folders in it; expected one folder of images for each class")
    by_name = {folder.name.lower(): folder for folder in inside}
    train = next((by_name[name] for name in TRAIN_NAMES if name in by_name), None)
    test = next((by_name[name] for name in TEST_NAMES if name in by_name), None)
    if test is None and train is None:
        return _scan_split(path, root), None
    return _scan_split(path, train) if train else FolderSplit((), ()), _scan_split(path, test) if test else None


def read_csv(path: Path) -> tuple[FolderSplit, FolderSplit | None]:
    """The training part and the test part of a CSV file with the columns ``path``, ``label`` and perhaps ``split``.

    Paths are relative to the file's folder. A split is one of train, training, test, testing, val, valid, validation.

    Raises:
        Error: a column is missing, a field is empty, or a split has another name; the line is named. Or the file is no
            text in UTF-8.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    parts: dict[bool, list[tuple[Path, str]]] = {False: [], True: []}
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        if not {"path", "label"} <= set(columns):
            found = ", ".join(columns)[:200] or "nothing"
            raise Error(
                f"{path}: the first line should name the columns path and label (and perhaps split), not {found}"
            )
        reader.fieldnames = columns
        for row in reader:
            name, label, split = ((row.get(column) or "").strip() for column in ("path", "label", "split"))
            if not name or not label or (split and split.lower() not in TRAIN_NAMES + TEST_NAMES):
                raise Error(
                    f"{path}, line {reader.line_num}: expected a path, a label and train, val or test; got "
                    f"{str(row)[:200]}"
                )
            parts[split.lower() in TEST_NAMES].append((path.parent / name, label))
    except csv.Error as error:
        raise Error(f"{path}, line {reader.line_num}: is no CSV ({error}); fix it") from None
    if not any(parts.values()):
        raise Error(f"{path} names no image; expected a line for each, as in: cats/1.jpg,cat")
    train, test = (
        FolderSplit(*map(tuple, zip(*part, strict=True))) if part else FolderSplit((), ()) for part in parts.values()
    )
    return train, test if test.files else None


def stack_images(
    results: Iterable["UInt8Array | Error"], count: int, prepare: SquareTransform, max_broken: int = MAX_BROKEN
) -> tuple[list[int], UInt8Array]:
    """Which of the images could be read, and what is in them ``(N, H, W, C)``, each as the network is to see it.

    Those that could not are left out and named.

    Args:
        results: each image, or what is wrong with it.
        count: how many there are.
        prepare: what their size comes from.
        max_broken: images that may be broken.

    Raises:
        Error: more are, or not one image can be read.
    """
    images = np.zeros((count, prepare.size, prepare.size, prepare.channels), np.uint8)
    good: list[int] = []
    broken: list[str] = []
    for number, result in enumerate(results):
        if isinstance(result, Error):
            broken.append(str(result))
        else:
            images[len(good)] = result
            good.append(number)
    if broken and not good:
        raise Error(f"not one of the {count} images can be read; the first: {broken[0]}")
    if broken:
        logger.warning(f"{len(broken)} of {count} images are left out:\n{format_errors(broken)}")
    check_broken(broken, max_broken)
    return good, images[: len(good)]


def check_broken(errors: Sequence[str], max_broken: int) -> None:
    """Refuse more broken images than are allowed.

    Raises:
        Error: there are more; the first are named.
    """
    if len(errors) > max_broken:
        raise Error(
            f"{len(errors)} images are broken, and --max-broken allows {max_broken}; mend them or allow more. "
            f"The first:\n{format_errors(errors)}"
        )


def format_errors(errors: Sequence[str]) -> str:
    """The first of them, a line each, and how many more there are."""
    more = f"\n  ... and {len(errors) - MAX_LISTED} more" if len(errors) > MAX_LISTED else ""
    return "  " + "\n  ".join(errors[:MAX_LISTED]) + more


def select_holdout(classes: npt.ArrayLike, fraction: float) -> npt.NDArray[np.bool_]:
    """Which members are held out for testing: the same ones each time, ``fraction`` of each class, at least one of two.

    The choice depends on the data alone, not on a run's seed, so that runs can be compared and answer together.
    """
    labels = np.asarray(classes)
    held = np.zeros(len(labels), bool)
    generator = np.random.default_rng(0)
    for name in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == name))
        count = round(fraction * len(members))
        if 0 < fraction < 1 and len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        held[members[:count]] = True
    return held


def _scan_split(path: Path, root: Path) -> FolderSplit:
    found = [(file, folder.name) for folder in list_folders(root) for file in find_images(folder)]
    if not found:
        raise Error(f"{path}: no images in the folders of {root}; expected {root.name}/CLASS/image.png")
    files, classes = zip(*found, strict=True)
    return FolderSplit(files, classes)


def list_folders(root: Path) -> list[Path]:
    """The folders in a folder, in order, without hidden ones and what macOS adds to archives."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def descend_single_folders(path: Path) -> Iterator[Path]:
    """A folder, and as long as it holds just one, that one: an archive may pack everything into a folder of its own."""
    inside = [path]
    while len(inside) == 1:
        yield inside[0]
        inside = list_folders(inside[0])


def find_images(root: Path) -> list[Path]:
    """The files below a folder that are images by name, in order, without hidden ones and what macOS adds."""
    kinds = image_io.get_image_suffixes()
    return [
        file
        for file in sorted(root.rglob("*"))
        if file.suffix.lower() in kinds
        and not file.name.startswith(".")
        and "__MACOSX" not in file.relative_to(root).parts
        and file.is_file()
    ]


def walk_images(root: Path) -> Iterator[Path]:
    """The same files in no order, each as soon as it is found."""
    kinds = image_io.get_image_suffixes()
    for at, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith((".", "__MACOSX"))]
        yield from (Path(at, name) for name in files if Path(name).suffix.lower() in kinds and name[0] != ".")


def unpack_archive(archive: Path) -> Path:
    """The folder that the archive was unpacked into, now or earlier."""
    return archives.unpack(archive)
