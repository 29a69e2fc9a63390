"""Locations of built-in datasets: the data folder and the cache folder."""

import contextlib
import os
from collections.abc import Iterator
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
    path = find_dataset_path(name)
    if path is not None:
        return path
    paths = " or ".join(str(folder / name) for folder in list_data_folders())
    raise Error(f"{name} was not found: there is no {paths}, nor {name}.zip; put {description} there")


def find_dataset_path(name: str) -> Path | None:
    """Find the folder or the zip archive of a name in the data folders; None if there is none."""
    paths = (folder / f"{name}{suffix}" for folder in list_data_folders() for suffix in ("", ".zip"))
    return next(filter(exists, paths), None)


def get_cache_folder() -> Path:
    """Return the cache folder, ``$XDG_CACHE_HOME/fukami`` or ``~/.cache/fukami``, without creating it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fukami"


@contextlib.contextmanager
def lock_folder(folder: Path, name: str) -> Iterator[None]:
    """Lock a folder by a file in it, so that one process at a time writes into it or reads what another may write."""
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):  # nothing is written into a folder without locks
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / name, thread_local=False, fallback_to_soft=False))
        yield


def lock_downloads() -> contextlib.AbstractContextManager[None]:
    """Lock the cache folder, so that one process at a time downloads into it or reads what another may download."""
    return lock_folder(get_cache_folder(), ".downloads.lock")
