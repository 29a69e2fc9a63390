"""What the commands that answer for files share: which files these are, where an answer is drawn, and its line."""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fukami.errors import UsageError


def list_files(given: str | Path) -> list[str]:
    """The file that was given, or all files in a folder."""
    path = Path(given)
    if not path.is_dir():
        return [str(given)]
    return sorted(str(each) for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))


def split_runs_and_files(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs at the beginning of ``inputs`` and the files after them; a folder among the files stands for all in it.

    Raises:
        UsageError: there is no run, or no file.
    """
    from fukami.engine import checkpoint

    runs = list(itertools.takewhile(_is_run, inputs))
    if not runs and inputs:
        checkpoint.locate_run(inputs[0])  # says what is wrong with it
    found = [file for given in inputs[len(runs) :] for file in list_files(given)]
    if not found:
        raise UsageError(
            f"give the runs first and then the files to answer for; given were: {' '.join(inputs) or 'none'}"
        )
    return runs, found


def _is_run(name: str) -> bool:
    from fukami.engine import checkpoint

    try:
        checkpoint.locate_run(name)
    except UsageError:
        return False
    return True


class OutputFolder:
    """Names in a folder for what is drawn of files, none of which is overwritten.

    Args:
        folder: is made where there is none.
        protected: the files.

    Raises:
        UsageError: the folder is a file.
    """

    def __init__(self, folder: Path, protected: Iterable[str]) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file; --out should be a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.used_paths = {Path(file).resolve() for file in protected}

    def reserve_path(self, file: str, suffix: str) -> Path:
        """Where an answer for a file goes; no other one does."""
        stem = Path(file).stem
        names = itertools.chain([f"{stem}.{suffix}"], (f"{stem}-{n}.{suffix}" for n in itertools.count(2)))
        place = next(self.folder / name for name in names if (self.folder / name).resolve() not in self.used_paths)
        self.used_paths.add(place.resolve())
        return place


def format_json_line(prediction: dict[str, Any]) -> str:
    """The answer as a line of JSON; in ASCII where it has bytes that are no text, or what would control a terminal."""
    text = json.dumps(prediction, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(prediction)
