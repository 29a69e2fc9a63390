"""Inputs and outputs that the commands share: lists of files, output paths and JSON lines."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fukami.errors import UsageError


def split_runs_and_files(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``inputs`` into the leading runs and the files after them; a folder expands to the files in it.

    Raises:
        UsageError: there is no run, or no file.
    """
    from fukami.engine import checkpoint
    from fukami.image.io import list_files

    runs = list(itertools.takewhile(_is_run, inputs))
    if not runs and inputs:
        checkpoint.locate_run(inputs[0])  # raises the error
    files = [file for source in inputs[len(runs) :] for file in list_files(source)]
    if not files:
        raise UsageError(f"specify the runs first and then the input files, not: {' '.join(inputs) or 'nothing'}")
    return runs, files


def _is_run(name: str) -> bool:
    from fukami.engine import checkpoint

    try:
        checkpoint.locate_run(name)
    except UsageError:
        return False
    return True


class OutputFolder:
    """Output folder that assigns a unique path to each output and never overwrites an input.

    Args:
        folder: created if it does not exist.
        protected: input files.

    Raises:
        UsageError: the folder is a file.
    """

    def __init__(self, folder: Path, protected: Iterable[str]) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file; --out should be a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.used_paths = {Path(file).resolve() for file in protected}
        self.next_numbers: dict[tuple[str, str], int] = {}  # after the last one of a name, so that few are compared

    def reserve_path(self, file: str, suffix: str) -> Path:
        """Return a path for an output of the input ``file`` that no other file has."""
        stem = Path(file).stem
        for number in itertools.count(self.next_numbers.get((stem, suffix), 1)):
            path = self.folder / (f"{stem}.{suffix}" if number == 1 else f"{stem}-{number}.{suffix}")
            if path.resolve() not in self.used_paths:
                break
        self.next_numbers[stem, suffix] = number + 1
        self.used_paths.add(path.resolve())
        return path


def format_json_line(prediction: Mapping[str, object]) -> str:
    """Format a prediction as a line of JSON, in ASCII if it has undecodable bytes or control characters."""
    text = json.dumps(prediction, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(prediction)
