"""Locate, check and lock the folders of runs.

A run is a folder with ``recipe.json`` (recipe, fields, labels, versions), ``weights.safetensors``, ``metrics.jsonl``,
``report.html``, and ``last.ckpt``, which only a resumed run reads.
"""

import contextlib
import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fukami.engine import precision as precisions
from fukami.engine import run_record
from fukami.engine.locking import LOCK_FILENAME, lock_folder
from fukami.engine.recipe import Recipe
from fukami.errors import Error, UsageError, WriteError, find_name

BUNDLED_WEIGHTS_DIR = Path(__file__).parents[1] / "weights"
# files that are replaced atomically
RUN_FILES = (
    "recipe.json",
    "weights.safetensors",
    "best.safetensors",
    "last.ckpt",
    "manifest.jsonl",
    "preview.png",
    "report.html",
)


def locate_run(run: str | os.PathLike[str]) -> Path:
    """Return the folder of a run, specified as a folder or as the name of bundled weights.

    Raises:
        UsageError: it is neither.
        Error: the folder contains links, pipes or devices.
    """
    folder = Path(run)
    if (folder / "recipe.json").is_file():
        check_run_files(folder)
        return folder
    if (BUNDLED_WEIGHTS_DIR / folder.name / "recipe.json").is_file() and str(run) == folder.name:
        return BUNDLED_WEIGHTS_DIR / folder.name
    bundled = ", ".join(sorted(path.parent.name for path in BUNDLED_WEIGHTS_DIR.glob("*/recipe.json")))
    reason = "is a folder without a recipe.json" if folder.is_dir() else "is neither a run's folder nor bundled weights"
    runs = {path.parent.name: path.parent for path in Path("runs").glob("*/recipe.json")}
    similar = find_name(folder.name, runs) or next(iter(difflib.get_close_matches(folder.name[:100], runs)), None)
    hint = f"did you mean {runs[similar]}?" if similar else f"specify a run of fukami train, or one of: {bundled}"
    raise UsageError(f"{str(run)[:200]!r} {reason}; {hint}")


def locate_unconverted_run(run: str | os.PathLike[str]) -> Path:
    """Return the folder of a run that still has its original layers.

    Raises:
        UsageError: there is no such run, or its layers were converted by an export.
    """
    folder = locate_run(run)
    precision = run_record.read_precision(folder)
    if precision in precisions.CONVERTED_PRECISIONS:
        raise UsageError(
            f"{run} was exported to {precision} already, which replaced its layers; use the run that it was exported "
            "from"
        )
    return folder


def choose_run_folder(recipe: str, resume: bool) -> Path:
    """Return a new folder ``runs/RECIPE``, ``runs/RECIPE-2`` ...; with ``resume`` the last one that exists.

    ``recipe`` is the name of the recipe, or the path of a custom recipe's file.

    Raises:
        UsageError: this is one of several processes, which would choose different folders.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("the processes of a training run need the same folder; specify it with --out")
    base = Path("runs") / Path(recipe).stem.replace("_", "-")
    candidates = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, 10**6))
    latest = base
    for folder in candidates:
        if not folder.exists():
            return latest if resume else folder
        latest = folder
    raise Error(f"there are a million runs beside {base}; specify --out")


def check_run_files(folder: Path, *, for_writing: bool = False) -> None:
    """Check that a run's folder contains no links, pipes or devices: nothing outside of it may be read or written.

    Args:
        folder: the run's folder.
        for_writing: whether files will be written: also check subfolders, and reject hard links, such as those of
            ``cp -l``, through which the original run would change.

    Raises:
        Error: there is such an entry; the message names it.
    """
    for path in sorted(folder.rglob("*") if for_writing else folder.iterdir()):
        try:
            status = path.lstat()
        except FileNotFoundError:  # a temporary file of a training that runs now
            continue
        regular, linked = stat.S_ISREG(status.st_mode), for_writing and status.st_nlink > 1
        if not (stat.S_ISDIR(status.st_mode) or (regular and not linked)):
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "a hard link" if regular else "not a regular file"
            raise Error(
                f"{path} is {kind}, which a run may not contain; replace it by a copy of the file, or remove it"
            )


def check_run_exists(folder: Path) -> None:
    """Check that a folder contains a run to resume.

    Raises:
        UsageError: the folder does not exist, or has no ``recipe.json``.
    """
    if not (folder / "recipe.json").is_file():
        reason = "contains no run (it has no recipe.json)" if folder.is_dir() else "does not exist"
        raise UsageError(
            f"nothing to resume in {folder}, which {reason}; specify the folder of a run with --out, or omit --resume "
            "to start one"
        )


def check_folder_unused(folder: Path, recipe: Recipe) -> None:
    """Check that a folder contains nothing but hidden files and stages of the recipe.

    Raises:
        UsageError: the folder contains other files.
    """
    stages = recipe.stages(folder)
    if any(not path.name.startswith(".") and path.name not in stages for path in folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty; use another --out, or --resume to continue the run in it")


@contextlib.contextmanager
def lock_run(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Lock the folder for a run of this recipe within the context; of several processes only the first locks it.

    New folders are removed again if they are empty at the end.

    Raises:
        UsageError: the folder is not empty, contains a run of another recipe or no run to resume, or another process
            writes to it.
        Error: the folder cannot be written.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out should be a new or empty folder")
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    if resume:
        check_run_exists(folder)
    # the lock could be a link, which would be opened before any other check
    if os.path.lexists(folder / LOCK_FILENAME):
        check_run_files(folder, for_writing=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from None
    try:
        with lock_folder(folder):
            if not resume:
                check_folder_unused(folder, recipe)
            check_run_files(folder, for_writing=True)
            if resume:
                run_record.check_same_recipe(folder, recipe)
            _remove_temporary_files(folder)
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in new_folders:
                path.rmdir()


def _remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while writing."""
    for name in RUN_FILES:
        for path in folder.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()
