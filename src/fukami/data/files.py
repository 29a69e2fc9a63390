"""Files and folders of a dataset or of inputs, without hidden ones and macOS metadata."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fukami.data.parsing import is_file
from fukami.image import io as image_io

MACOS_METADATA = "__MACOSX"


def walk_names(root: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the folder and the name of each file of :func:`walk_files`; strings are five times as fast."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield from ((folder, name) for name in sorted(names) if not is_hidden(name))


def walk_files(root: Path, suffix: str = "") -> Iterator[Path]:
    """Iterate over the files below a folder: the files of each folder in order, then those of its subfolders.

    Args:
        root: the folder; links to other folders below it are not followed.
        suffix: suffix of the files, in lower case; empty: any.
    """
    return (Path(folder, name) for folder, name in walk_names(root) if name.lower().endswith(suffix))


def list_inputs(source: str | os.PathLike[str]) -> list[str]:
    """Return the file itself, or all files below a folder, sorted."""
    path = Path(source)
    if not os.fspath(source) or not path.is_dir():  # an empty path would be the current folder
        return [os.fspath(source)]
    return sorted(str(file) for file in walk_files(path) if is_file(file))


def walk_images(root: Path) -> Iterator[Path]:
    """Iterate over the image files below a folder, in the order of :func:`walk_files`, and over dangling links."""
    suffixes = image_io.get_image_suffixes()
    return (path for path in walk_files(root) if path.suffix.lower() in suffixes)


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder, sorted."""
    suffixes = image_io.get_image_suffixes()
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and not is_hidden(path.name))


def list_files(folder: Path, suffix: str) -> list[Path]:
    """List the files in a folder with a suffix in lower case, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix and not is_hidden(path.name))


def list_folders(root: Path) -> list[Path]:
    """List the subfolders of a folder, sorted."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def locate_file(folder: Path, name: str) -> Path:
    r"""Return the path of a file that an annotation names; a ``\`` separates folders, unless it is part of the name.

    Composed and decomposed characters are equal: file names of macOS have the latter.
    """
    path = folder / name
    if ("\\" not in name and name.isascii()) or is_file(path):
        return path
    posix = name.replace("\\", "/")
    forms = [folder / posix, *(folder / unicodedata.normalize(form, posix) for form in ("NFC", "NFD"))]
    return next(filter(is_file, forms), forms[0])


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder is skipped: its name starts with a dot or is that of macOS metadata."""
    return name.startswith((".", MACOS_METADATA))
