"""Read and write ``recipe.json``, the record of a run: recipe, fields, labels, versions and compute configuration."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Required, TypedDict

import torch

from fukami import atomic_file
from fukami.data.parsing import Json
from fukami.engine import precision as precisions
from fukami.engine.recipe import (
    MAX_RECIPE_BYTES,
    Recipe,
    build_recipe,
    check_data,
    get_recipe,
    identify_recipe,
    is_built_in,
    list_recipes,
    load_recipe_file,
)
from fukami.engine.runtime import PRECISIONS
from fukami.errors import Error, UsageError, build_unknown_error

MAX_THREADS = 1024  # maximum number of threads that a run may record
MAX_LABEL_LENGTH = 1000  # characters of the name of a class
RESUME_FIELDS = {"versions": dict, "device": str, "precision": str, "command": str, "processes": int, "compile": bool}
RecipeSource = str | os.PathLike[str] | type[Recipe]  # the file of a custom recipe, or its class


class RunRecord(TypedDict, total=False):
    """Content of ``recipe.json``; when it is read, only its recipe, fields and labels are checked."""

    recipe: Required[str]
    fields: Required[dict[str, Json]]
    labels: Required[list[str]]
    recipe_sha256: Json
    versions: Json
    exported: Json
    resumed: Json
    device: Json
    precision: Json
    compile: Json
    threads: Json


class ComputeConfig(NamedTuple):
    """Compute configuration of a training run; ``num_threads`` is None if not set yet."""

    device: str
    precision: str
    compile: bool
    num_threads: int | None


def read_recipe(folder: Path, recipe: RecipeSource | None = None) -> tuple[Recipe, tuple[str, ...]]:
    """Read the recipe and the labels from ``recipe.json``; ``recipe`` as for :func:`load`.

    Raises:
        UsageError: the run has a custom recipe and ``recipe`` is not it, or ``recipe`` is set for a built-in one.
        Error: the file is corrupted.
    """
    record = _read_record(folder)
    recipe_class = _resolve_recipe_class(folder, record, recipe)
    try:
        built = build_recipe(recipe_class, record["fields"])
        built.check_stored_fields()
        return built, tuple(record["labels"])
    except Error as error:
        raise type(error)(f"{error}{_describe_writer(record)}") from error


def read_resumed_recipe(runs: Sequence[Path], recipe: type[Recipe], *, check: bool) -> Recipe | None:
    """Read the recipe of the first run to resume that exists; None if there is none, or it has another recipe.

    Args:
        runs: folders of the runs.
        recipe: class of the recipe.
        check: check that the dataset is not on the web, since the run names it and not the user.
    """
    existing = [run for run in runs if (run / "recipe.json").is_file()]
    if not existing or read_recipe_name(existing[0]) != identify_recipe(recipe)["recipe"]:
        return None  # the training reports another recipe
    loaded, _ = read_recipe(existing[0], None if is_built_in(recipe) else recipe)
    if check:
        check_data(loaded)
    return loaded


def read_recipe_name(folder: Path) -> str:
    """Read the name of the recipe, or of its file, from ``recipe.json``."""
    return str(_read_record(folder)["recipe"])


def read_labels(folder: Path) -> tuple[str, ...]:
    """Read the labels from ``recipe.json``."""
    return tuple(_read_record(folder)["labels"])


def read_precision(folder: Path) -> str:
    """Read the precision that the run was exported to; float32 if it was not exported."""
    exported = _read_record(folder).get("exported")
    precision = exported.get("to") if isinstance(exported, dict) else "float32"
    if precision not in (*PRECISIONS, *precisions.CONVERTED_PRECISIONS):
        raise Error(f"{folder / 'recipe.json'} is corrupted: it was exported to {precision!r}; the run cannot be used")
    return str(precision)


def is_finished(folder: Path) -> bool:
    """Return whether the folder contains a run whose training is complete."""
    return (folder / "recipe.json").is_file() and "time" in _read_record(folder)


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Check that the run in the folder was started with this recipe.

    Raises:
        UsageError: the run was started with another recipe or other fields.
    """
    record, fields, identity = _read_record(folder), _fields_to_json(recipe), identify_recipe(type(recipe))
    if record["recipe"] != identity["recipe"]:
        raise UsageError(f"{folder} is a run of {record['recipe']}, not of {identity['recipe']}")
    if record.get("recipe_sha256") != identity.get("recipe_sha256"):
        raise UsageError(
            f"{folder} was started with {identity['recipe']} of the SHA-256 {record.get('recipe_sha256')}, not with "
            f"{identity.get('recipe_sha256')}: resume it with the original recipe, or use another --out"
        )
    differences = [
        f"{name} {record['fields'].get(name)!r}, not {fields.get(name)!r}"
        for name in sorted(record["fields"].keys() | fields.keys())
        if record["fields"].get(name) != fields.get(name)
        and not _is_moved_stage(record["fields"].get(name), fields.get(name), folder)
    ]
    if differences:
        raise UsageError(
            f"{folder} was started with {'; '.join(differences)}: resume it with the original values, or use another "
            "--out"
        )


def resolve_compute_config(folder: Path, device: str, precision: str, compile: bool) -> ComputeConfig:
    """Return the compute configuration: that of the run in the folder if there is one, else the arguments.

    Raises:
        UsageError: the arguments differ from the configuration of the run.
        Error: ``recipe.json`` is corrupted.
    """
    if not (folder / "recipe.json").is_file():
        return ComputeConfig(device, precision, compile, None)
    record = _read_record(folder)
    if "exported" in record or "imported" in record:
        raise UsageError(
            f"{folder} was exported or imported, so there is no training to resume; resume the run that it was "
            "exported from, or use another --out"
        )
    for name, kind in RESUME_FIELDS.items():
        if type(record.get(name)) is not kind:
            raise Error(f"{folder / 'recipe.json'} is corrupted: {name!r} should be of type {kind.__name__}, not "
                        f"{record.get(name)!r:.100}; the run cannot be resumed")  # fmt: skip
    requested = {"device": device.partition(":")[0], "precision": precision, "compile": compile or "auto"}
    for name, value in requested.items():
        if value not in ("auto", record.get(name)):
            original = record.get(name)
            raise UsageError(
                f"{folder} was started with {name} {original!r}, not {value!r}: a resumed run has to keep it"
            )
    device = str(record["device"]) if device == "auto" else device
    threads = record.get("threads")
    if threads is not None and not (type(threads) is int and 1 <= threads <= MAX_THREADS):
        raise Error(f"{folder / 'recipe.json'} is corrupted: 'threads' should be 1 to {MAX_THREADS}, not {threads!r}")
    return ComputeConfig(device, str(record["precision"]), bool(record["compile"]), threads)


def write_recipe(folder: Path, recipe: Recipe, labels: tuple[str, ...], extra: Mapping[str, object]) -> None:
    """Write ``recipe.json``; ``extra`` is added to it.

    Raises:
        Error: a class name is too long or not valid UTF-8, or the file cannot be written.
    """
    for label in labels:
        if len(label) > MAX_LABEL_LENGTH:
            raise Error(
                f"the class name {label[:40]!r}... has {len(label):,} characters, more than the limit of "
                f"{MAX_LABEL_LENGTH:,}; shorten it"
            )
    record = {
        **identify_recipe(type(recipe)),
        "fields": recipe.get_stored_fields(),
        "labels": labels,
        "versions": get_versions(),
        **extra,
    }
    try:
        content = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        text = str(error.object)[max(error.start - 40, 0) : error.end + 40]
        raise Error(f"a path or the name of a class is not valid UTF-8: {text!a}; rename it") from None
    atomic_file.write_file(folder / "recipe.json", content)


def record_value(folder: Path, name: str, value: object) -> None:
    """Set a value in ``recipe.json``."""
    record = {**_read_record(folder), name: value}
    atomic_file.write_file(folder / "recipe.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def record_resumption(folder: Path, changes: Mapping[str, object]) -> None:
    """Append the changes at a resumption to ``recipe.json``."""
    previous = _read_record(folder).get("resumed")
    record_value(folder, "resumed", [*(previous if isinstance(previous, list) else ()), changes])


def get_versions() -> dict[str, str]:
    """Return the versions of fukami, torch and Python."""
    return {"fukami": version("fukami"), "torch": str(torch.__version__), "python": platform.python_version()}


def _read_record(folder: Path) -> RunRecord:
    """Read ``recipe.json`` and check its types."""
    path = folder / "recipe.json"
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise ValueError(f"it has more than {MAX_RECIPE_BYTES:,} bytes")
        record: RunRecord = json.loads(path.read_bytes())
        name, fields, labels = record["recipe"], record["fields"], record["labels"]
        json.dumps(record, ensure_ascii=False).encode()  # reject lone surrogates, which cannot be written again
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Error(f"{path} is corrupted ({type(error).__name__}: {error}); the run cannot be used") from error
    are_strings = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not (isinstance(name, str) and isinstance(fields, dict) and are_strings):
        raise Error(f"{path} is corrupted: 'recipe' should be a string, 'fields' an object, 'labels' a list of strings")
    if any(len(label) > MAX_LABEL_LENGTH for label in labels):
        raise Error(f"{path} has a class name of more than {MAX_LABEL_LENGTH:,} characters; the run cannot be used")
    return record


def _resolve_recipe_class(folder: Path, record: RunRecord, source: RecipeSource | None) -> type[Recipe]:
    """Return the class of a run's recipe: a built-in one, or that of ``source`` if it matches the record."""
    name = record["recipe"]
    if "recipe_sha256" not in record:
        if source is not None:
            raise UsageError(f"{folder} is a run of {name!r}, which is not a custom recipe: omit the recipe file")
        if name not in list_recipes():
            problem = build_unknown_error("recipe", name, list_recipes())
            raise Error(f"{folder / 'recipe.json'} cannot be read: {problem}{_describe_writer(record)}")
        return get_recipe(name)
    digest = record["recipe_sha256"]
    if not (isinstance(digest, str) or digest is None):
        raise Error(f"{folder / 'recipe.json'} is corrupted: 'recipe_sha256' should be a string, not {digest!r:.100}")
    if source is None:
        raise UsageError(
            f"{folder} is a run of the custom recipe {name}, and code is never loaded from a run; specify the "
            f"recipe file with --recipe {name} (in Python: recipe={name!r})"
        )
    if not isinstance(source, type):
        if digest is None:
            raise UsageError(f"{folder} is a run of {name}, which is not defined in a file: in Python, pass the class")
        return load_recipe_file(Path(source), digest)
    identity = identify_recipe(source)
    if identity != {"recipe": name, "recipe_sha256": digest}:
        raise UsageError(
            f"{folder} is a run of {name} with the SHA-256 {digest}, not of {identity['recipe']} with "
            f"{identity.get('recipe_sha256')}: use the original recipe"
        )
    return source


def _describe_writer(record: RunRecord) -> str:
    """Explain an error of ``recipe.json`` by the version of fukami that wrote it, if it is another one."""
    versions, installed = record.get("versions"), version("fukami")
    writer = versions.get("fukami") if isinstance(versions, dict) else None
    if writer == installed:
        return ""
    return f"; fukami {str(writer)[:50]} wrote the run, and this is fukami {installed}: train again with this version"


def _fields_to_json(recipe: Recipe) -> dict[str, Json]:
    """Return the fields after a round trip through JSON, which turns tuples into lists."""
    return dict(json.loads(json.dumps(recipe.get_stored_fields())))


def _is_moved_stage(old: Json, new: Json, folder: Path) -> bool:
    """Return whether two paths are the same stage of a run that was moved; ``folder`` is a stage of that run."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    return Path(new).parent == folder.resolve().parent and Path(new).name == Path(old).name
