"""Locations of built-in datasets: the data folder and the cache folder."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from fukami.data.parsing import exists
from fukami.errors import Error


def list_data_folders() -> list[Path]:
    """List the folders that are searched, in order: ``$FUKAMI_DATA`` if it is set, then the cache folder."""
    data_folder = os.environ.get("FUKAMI_DATA")
    return [*([Path(data_folder)] if data_folder else []), get_cache_folder()]


def find_dataset(name: str, description: str) -> Path:
    """Find the folder or the zip archive of a built-in dataset.

    Raises:
        Error: no data folder contains it; the message contains ``description``.
    """
    for folder in list_data_folders():
        for path in (folder / name, folder / f"{name}.zip"):
            if path.exists():
                return path
    paths = " or ".join(str(folder / name) for folder in list_data_folders())
    raise Error(f"{name} was not found: there is no {paths}, nor {name}.zip; put {description} there")


def is_known_dataset(spec: str, names: Collection[str], detect_layout: Callable[[Path], object]) -> bool:
    """Return whether ``spec`` is a built-in dataset, or a path with a layout that ``detect_layout`` recognizes.

    An archive is unpacked for this.
    """
    path = Path(spec)
    if spec in names or not exists(path) or path.suffix.lower() == ".csv":
        return spec in names
    try:
        return detect_layout(path) is not None
    except Error:  # reading the archive reports the error
        return False


def get_cache_folder() -> Path:
    """Return the cache folder, ``$XDG_CACHE_HOME/fukami`` or ``~/.cache/fukami``, without creating it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fukami"
