"""Inputs and outputs that the commands share: lists of files, output paths and JSON lines."""

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.engine.task import Task

MAX_STEM_BYTES = 200  # of the name of an output, to which an ending and a suffix are added; 255 is the limit


def split_runs_and_files(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``inputs`` into the leading runs and the files after them; a folder expands to the files in it.

    Raises:
        UsageError: there is no run, or no file.
    """
    from fukami.data.files import list_inputs
    from fukami.engine import run_folder

    runs = list(itertools.takewhile(_is_run, inputs))
    if not runs and inputs:
        run_folder.locate_run(inputs[0])  # raises the error
    files = [file for source in inputs[len(runs) :] for file in list_inputs(source)]
    if not files:
        raise UsageError(f"specify the runs first and then the input files, not: {' '.join(inputs) or 'nothing'}")
    return runs, files


def _is_run(name: str) -> bool:
    from fukami.engine import run_folder

    try:
        run_folder.locate_run(name)
    except UsageError:
        return False
    return True


def load_predictor(
    runs: Sequence[str],
    device: str,
    precision: str,
    *,
    vote: bool,
    views: int,
    confidence: float | None,
    tiles: int,
    overrides: Sequence[str],
    recipe: Path | None,
) -> "Task":
    """Load the task of runs for predictions; the arguments are those of ``fukami predict`` and ``fukami serve``.

    Raises:
        UsageError: an option is invalid, or does not apply to the runs.
        Error: a run cannot be loaded.
    """
    from fukami.classification.task import set_num_views
    from fukami.detection.options import set_detection_options
    from fukami.engine.load_run import load_task, parse_run_overrides

    fields = parse_run_overrides(runs, overrides, recipe)
    task = load_task(*runs, device=device, precision=precision, vote=vote, overrides=fields, recipe=recipe)
    set_num_views(task, views)
    set_detection_options(task, confidence=confidence, tile_size=tiles)
    return task


class OutputFolder:
    """Output folder that assigns a unique path to each output and never overwrites an input.

    Args:
        folder: created if it does not exist.
        protected: input files.

    Raises:
        UsageError: the folder is a file, or the folder of a run.
    """

    def __init__(self, folder: Path, protected: Iterable[str]) -> None:
        create_output_folder(folder)
        self.folder = folder
        self.used_paths = set(map(_normalize_path, protected))
        self.next_numbers: dict[tuple[str, str], int] = {}  # after the last one of a name, so that few are compared

    def reserve_path(self, file: str, suffix: str, *, ending: str = "") -> Path:
        """Return a path for an output of the input ``file`` that no other file has; ``ending`` follows its stem."""
        stem = Path(file).stem
        if len(os.fsencode(stem)) > MAX_STEM_BYTES:
            stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="ignore")
        stem += ending
        key = stem.casefold(), suffix
        for number in itertools.count(self.next_numbers.get(key, 1)):
            path = self.folder / (f"{stem}.{suffix}" if number == 1 else f"{stem}-{number}.{suffix}")
            if _normalize_path(path) not in self.used_paths:
                break
        self.next_numbers[key] = number + 1
        self.used_paths.add(_normalize_path(path))
        return path


def create_output_folder(folder: Path) -> None:
    """Create the folder of ``--out``, unless it exists.

    Raises:
        UsageError: it is a file, a folder that is not writable, or that of a run, whose report would be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out should be a folder")
    if (folder / "recipe.json").exists():
        raise UsageError(f"{folder} is the folder of a run; use another --out")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder, before a computation whose result is written there.

    Raises:
        UsageError: the folder does not exist, or is not writable.
    """
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder} is not a writable folder; use another --out")


def is_same_file(path: Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same file, on a file system that ignores the case of names, too."""
    return _normalize_path(path) == _normalize_path(other)


def _normalize_path(path: str | Path) -> str:
    return str(Path(path).resolve()).casefold()


def format_json_line(prediction: Mapping[str, object]) -> str:
    """Format a prediction as a line of JSON, in ASCII if it has undecodable bytes or control characters."""
    text = json.dumps(prediction, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(prediction)
