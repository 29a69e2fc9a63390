"""Where data sets with a known name are looked for."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from fukami.data.parsing import exists
from fukami.errors import Error


def list_data_folders() -> list[Path]:
    """The folders that are searched, in order: ``$FUKAMI_DATA`` where it is set, then the cache folder."""
    given = os.environ.get("FUKAMI_DATA")
    return [*([Path(given)] if given else []), get_cache_folder()]


def find_dataset(name: str, description: str) -> Path:
    """The folder or the zip archive of a name.

    Raises:
        Error: it is in none of the places; ``description`` should lie there is said.
    """
    for place in list_data_folders():
        for path in (place / name, place / f"{name}.zip"):
            if path.exists():
                return path
    places = " or ".join(str(place / name) for place in list_data_folders())
    raise Error(f"{name} was not found: there is no {places}, nor {name}.zip; put {description} there")


def is_known_dataset(spec: str, names: Collection[str], detect_layout: Callable[[Path], object]) -> bool:
    """Whether it is one of the names, or a path where ``detect_layout`` finds a layout; an archive is unpacked."""
    path = Path(spec)
    if spec in names or not exists(path) or path.suffix.lower() == ".csv":
        return spec in names
    try:
        return detect_layout(path) is not None
    except Error:  # which whoever reads the archive tells
        return False


def get_cache_folder() -> Path:
    """The cache folder, ``~/.cache/fukami`` unless ``$XDG_CACHE_HOME`` says otherwise; it is not created here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fukami"
