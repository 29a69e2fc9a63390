"""Read and write run folders.

Files are replaced atomically, so a crash leaves no partial file, and reading never executes code.

A run is a folder with ``recipe.json`` (recipe, fields, labels, versions), ``weights.safetensors``, ``metrics.jsonl``,
``report.html``, and ``last.ckpt``, which only a resumed run reads.
"""

import contextlib
import dataclasses
import difflib
import json
import logging
import os
import platform
import stat
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Required, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as read_tensors
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fukami.data.loader import StateDict
from fukami.data.parsing import Json
from fukami.engine import precision as precisions
from fukami.engine.checkpoint_file import decode_checkpoint, encode_checkpoint, encode_tensors
from fukami.engine.ensemble import build_ensemble
from fukami.engine.locking import lock_folder
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
    parse_overrides,
)
from fukami.engine.runtime import PRECISIONS, Runtime
from fukami.engine.task import Task
from fukami.errors import Error, UsageError, WriteError, build_unknown_error, find_name
from fukami.layers.meta_device import use_meta_device

BUNDLED_WEIGHTS_DIR = Path(__file__).parents[1] / "weights"
RUN_FILES = (
    "recipe.json",
    "weights.safetensors",
    "best.safetensors",
    "last.ckpt",
    "manifest.jsonl",
    "preview.png",
    "report.html",
)  # files that are replaced atomically
MAX_THREADS = 1024  # maximum number of threads that a run may record
HALF_DTYPES = (torch.float16, torch.bfloat16)  # dtypes that may store float32 weights, for smaller files
MAX_MODEL_PARTS = 50_000  # layers and tensors of a network; ResNet-152 has about a thousand
MAX_LISTED_TENSORS = 20  # maximum number of tensors that a message names
RESUME_FIELDS = {"versions": dict, "device": str, "precision": str, "command": str, "processes": int, "compile": bool}
NONE_TYPE = type(None)
CHECKPOINT_FIELDS = {
    "format": (int,),
    "versions": (dict,),
    "threads": (int,),
    "manifest": (str, NONE_TYPE),
}  # types of the metadata of a checkpoint
RecipeSource = str | os.PathLike[str] | type[Recipe]  # the file of a custom recipe, or its class

MAX_LABEL_LENGTH = 1000  # characters of the name of a class
logger = logging.getLogger(__name__)


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


def load_task(
    *runs: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    vote: bool = False,
    overrides: Mapping[str, Any] | None = None,
    recipe: RecipeSource | None = None,
) -> Task:
    """Load the task of a run, ready to predict and evaluate; several runs form an ensemble.

    The arguments and the errors are those of :func:`fukami.load`.
    """
    if not runs:
        raise UsageError("specify at least one run: a folder, or the name of bundled weights")
    first, *others = (_load_run(locate_run(run), device, precision, overrides or {}, recipe) for run in runs)
    return build_ensemble([first, *others], vote=vote) if others or vote else first


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
        status = path.lstat()
        regular, linked = stat.S_ISREG(status.st_mode), for_writing and status.st_nlink > 1
        if not (stat.S_ISDIR(status.st_mode) or (regular and not linked)):
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "a hard link" if regular else "not a regular file"
            raise Error(
                f"{path} is {kind}, which a run may not contain; replace it by a copy of the file, or remove it"
            )


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


def _describe_writer(record: RunRecord) -> str:
    """Explain an error of ``recipe.json`` by the version of fukami that wrote it, if it is another one."""
    versions, installed = record.get("versions"), version("fukami")
    writer = versions.get("fukami") if isinstance(versions, dict) else None
    if writer == installed:
        return ""
    return f"; fukami {str(writer)[:50]} wrote the run, and this is fukami {installed}: train again with this version"


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


def read_recipe_name(folder: Path) -> str:
    """Read the name of the recipe, or of its file, from ``recipe.json``."""
    return str(_read_record(folder)["recipe"])


def read_labels(folder: Path) -> tuple[str, ...]:
    """Read the labels from ``recipe.json``."""
    return tuple(_read_record(folder)["labels"])


def parse_run_overrides(
    runs: Sequence[str], overrides: Sequence[str], recipe: RecipeSource | None = None
) -> dict[str, Any]:
    """Parse overrides such as ``beam_size=3`` into values of the fields of the first run's recipe.

    Raises the errors of :func:`load`.
    """
    return parse_overrides(type(read_recipe(locate_run(runs[0]), recipe)[0]), overrides) if runs and overrides else {}


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


def _fields_to_json(recipe: Recipe) -> dict[str, Json]:
    """Return the fields after a round trip through JSON, which turns tuples into lists."""
    return dict(json.loads(json.dumps(recipe.get_stored_fields())))


def read_precision(folder: Path) -> str:
    """Read the precision that the run was exported to; float32 if it was not exported."""
    exported = _read_record(folder).get("exported")
    precision = exported.get("to") if isinstance(exported, dict) else "float32"
    if precision not in (*PRECISIONS, *precisions.CONVERTED_PRECISIONS):
        raise Error(f"{folder / 'recipe.json'} is corrupted: it was exported to {precision!r}; the run cannot be used")
    return str(precision)


def locate_unconverted_run(run: str | os.PathLike[str]) -> Path:
    """Return the folder of a run that still has its original layers.

    Raises:
        UsageError: there is no such run, or its layers were converted by an export.
    """
    folder = locate_run(run)
    precision = read_precision(folder)
    if precision in precisions.CONVERTED_PRECISIONS:
        raise UsageError(
            f"{run} was exported to {precision} already, which replaced its layers; use the run that it was exported "
            "from"
        )
    return folder


def _load_run(
    folder: Path, device: str, precision: str, overrides: Mapping[str, Any], source: RecipeSource | None
) -> Task:
    recipe, labels = read_recipe(folder, source)
    recipe.check_overrides(overrides)
    recipe = dataclasses.replace(recipe, **overrides)
    stored_precision = read_precision(folder)
    precision = precisions.resolve_precision(precision, stored_precision, folder)
    built_in = is_built_in(type(recipe))  # tasks of built-in recipes have no tensors outside of their networks
    with use_meta_device() if built_in else contextlib.nullcontext():
        task = _build_task(folder, recipe, labels)
        modules = task.get_modules()
        if stored_precision == "binary":
            from fukami.quantization.binary_layers import pack_model

            modules = {name: pack_model(module) for name, module in modules.items()}
    if stored_precision in precisions.ONNX_PRECISIONS:
        from fukami.quantization.onnx_export import OnnxNetwork

        modules = {name: OnnxNetwork(_read_file(folder / f"{name}.onnx")) for name in modules}
    else:
        load_weights(modules, folder)
    if built_in or stored_precision in precisions.CONVERTED_PRECISIONS:
        task.replace_modules(modules)
    task.setup(Runtime.start(*precisions.resolve_device_and_precision(device, precision)))
    for module in modules.values():
        module.to(PRECISIONS.get(precision, torch.float32)).eval()
    if precision in precisions.CONVERTED_PRECISIONS and precision != stored_precision:
        task.replace_modules(precisions.convert_task(task, precision, recipe))
    return task


def _build_task(folder: Path, recipe: Recipe, labels: tuple[str, ...]) -> Task:
    """Build the task of a run's recipe; raise an Error if its fields describe no valid network."""
    count = 0

    def check_count(*parts: object) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODEL_PARTS:
            raise Error(
                f"{folder / 'recipe.json'} describes a network of more than {MAX_MODEL_PARTS:,} layers and tensors"
            )

    hooks = (
        register_module_parameter_registration_hook(check_count),
        register_module_module_registration_hook(check_count),
    )
    try:
        return recipe.build_task(labels)
    except (Error, MemoryError):
        raise
    except Exception as error:
        raise Error(
            f"{folder / 'recipe.json'} describes a network that cannot be built ({type(error).__name__}: {error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def locate_weights(folder: Path) -> Path:
    """Return the file of a run's weights: the best ones if there are any, else the last ones."""
    best = folder / "best.safetensors"
    return best if best.is_file() else folder / "weights.safetensors"


def load_weights(modules: dict[str, nn.Module], folder: Path) -> None:
    """Load a run's weights, the best ones if there are any, into modules; see :func:`assign_weights`."""
    assign_weights(modules, read_weights(folder), locate_weights(folder))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read a run's weights, the best ones if there are any; the tensors are mapped from the file."""
    path = locate_weights(folder)
    try:
        return read_tensors(path)
    except FileNotFoundError:
        raise Error(
            f"{folder} has no weights.safetensors yet; its training has not reached the first checkpoint"
        ) from None
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:  # the last two if it is too large to map
        raise Error(f"{path} is corrupted ({error}); the run cannot be used") from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Error(f"{path} cannot be read ({error.strerror}); the run cannot be used") from error


def copy_tensors_to_cpu(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Copy every parameter and buffer of the modules, named ``module.parameter``, to the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in collect_tensors(modules).items()}


def collect_tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return every parameter and buffer of the modules, named ``module.parameter``, on its device."""
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def assign_weights(modules: dict[str, nn.Module], tensors: dict[str, Tensor], source: Path) -> None:
    """Replace all tensors of the modules by copies of ``tensors``, in the dtype in which they are stored.

    Args:
        modules: modules by name, whose tensors may be on the meta device.
        tensors: tensors named ``module.parameter``.
        source: the file of the tensors, for messages.

    Raises:
        Error: as for :func:`check_tensors`.
    """
    check_tensors(modules, tensors, source)
    for name, module in modules.items():
        prefix = f"{name}."
        # cloned: the tensors are mapped from the file and would change with it
        state = {key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(state, assign=True)
        for key, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_meta:
                raise Error(
                    f"{source} lacks {name}.{key}, which is not in the network's state_dict; register it with "
                    "persistent=True"
                )


def check_tensors(modules: dict[str, nn.Module], tensors: dict[str, Tensor], source: Path) -> None:
    """Check that tensors match those of the modules; arguments as for :func:`assign_weights`.

    Raises:
        Error: tensors are missing, unexpected, of another shape or dtype, or not finite; the message lists them.
    """
    expected = collect_tensors(modules)
    mismatches = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    mismatches += [f"{name} is unexpected" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        tensor, target = tensors[name], expected[name]
        half_dtypes = HALF_DTYPES if target.dtype == torch.float32 else ()
        if tensor.shape != target.shape:
            mismatches.append(f"{name} is {tuple(tensor.shape)} instead of {tuple(target.shape)}")
        elif tensor.dtype not in (target.dtype, *half_dtypes):
            mismatches.append(f"{name} is of {tensor.dtype} instead of {target.dtype}")
        elif not tensor.isfinite().all():
            mismatches.append(f"{name} has values that are not finite")
    if mismatches:
        listed = "; ".join(sorted(mismatches)[:MAX_LISTED_TENSORS]) + (
            f"; and {len(mismatches) - MAX_LISTED_TENSORS} more" if mismatches[MAX_LISTED_TENSORS:] else ""
        )
        raise Error(f"{source} does not match its recipe: {listed}")


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
    if os.path.lexists(folder / ".lock"):  # the lock could be a link, which would be opened before any other check
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
                check_same_recipe(folder, recipe)
            _remove_temporary_files(folder)
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in new_folders:
                path.rmdir()


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


def _remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while writing."""
    for name in RUN_FILES:
        with contextlib.suppress(OSError):
            _get_temporary_path(folder / name).unlink()


def _is_moved_stage(old: Json, new: Json, folder: Path) -> bool:
    """Return whether two paths are the same stage of a run that was moved; ``folder`` is a stage of that run."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    return Path(new).parent == folder.resolve().parent and Path(new).name == Path(old).name


def is_finished(folder: Path) -> bool:
    """Return whether the folder contains a run whose training is complete."""
    return (folder / "recipe.json").is_file() and "time" in _read_record(folder)


def resolve_compute_config(folder: Path, device: str, precision: str, compile: bool) -> ComputeConfig:
    """Return the compute configuration: that of the run in the folder if there is one, else the arguments.

    Raises:
        UsageError: the arguments differ from the configuration of the run.
        Error: ``recipe.json`` is corrupted.
    """
    if not (folder / "recipe.json").is_file():
        return ComputeConfig(device, precision, compile, None)
    record = _read_record(folder)
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


def _get_temporary_path(path: Path) -> Path:
    """Return the temporary file that is renamed to ``path`` when it is complete."""
    return path.with_name(f".{path.name}.tmp")


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file atomically: after a crash it has either the old content or the new, which consists of ``parts``.

    Raises:
        WriteError: the file cannot be written; the old content is kept.
    """
    temporary = _get_temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)  # left by a crash
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":  # Windows cannot open a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the rename must survive a crash, too
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise WriteError(path, error) from error


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
    write_file(folder / "recipe.json", content)


def record_value(folder: Path, name: str, value: object) -> None:
    """Set a value in ``recipe.json``."""
    record = {**_read_record(folder), name: value}
    write_file(folder / "recipe.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def record_resumption(folder: Path, changes: Mapping[str, object]) -> None:
    """Append the changes at a resumption to ``recipe.json``."""
    previous = _read_record(folder).get("resumed")
    record_value(folder, "resumed", [*(previous if isinstance(previous, list) else ()), changes])


def get_versions() -> dict[str, str]:
    """Return the versions of fukami, torch and Python."""
    return {"fukami": version("fukami"), "torch": str(torch.__version__), "python": platform.python_version()}


def write_weights(
    folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None, name: str = "weights.safetensors"
) -> None:
    """Write the result of :func:`copy_tensors_to_cpu` to a file of the folder.

    Floating-point tensors are stored as ``dtype`` unless it is None.

    Raises:
        Error: a value is out of the range of ``dtype``, or the file cannot be written.
    """
    if dtype is not None:
        converted = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        for tensor_name, value in converted.items():
            if value.is_floating_point() and not bool((value.isfinite() | ~tensors[tensor_name].isfinite()).all()):
                raise Error(
                    f"{tensor_name} has values above {torch.finfo(dtype).max:,.0f}, the limit of "
                    f"{str(dtype).removeprefix('torch.')}; use another precision"
                )
        tensors = converted
    write_file(folder / name, *encode_tensors(tensors))


def write_checkpoint(folder: Path, state: StateDict) -> None:
    """Write ``last.ckpt``, which contains only tensors and plain values."""
    write_file(folder / "last.ckpt", *encode_checkpoint(state))


def read_checkpoint(folder: Path, device: torch.device) -> StateDict | None:
    """Read ``last.ckpt``, or return None if it does not exist; nothing in the file is executed.

    Raises:
        Error: the file is corrupted, or is not a checkpoint of fukami.
    """
    path = folder / "last.ckpt"
    if not path.exists():
        return None
    try:
        state = decode_checkpoint(path, device)
        if not isinstance(state, dict) or type(state["step"]) is not int or state["step"] < 0:
            raise ValueError("it has no valid step")
        for name, kinds in CHECKPOINT_FIELDS.items():
            if name in state and type(state[name]) not in kinds:
                raise ValueError(f"its {name} is of type {type(state[name]).__name__}")
    except Exception as error:  # a corrupted file can fail in any way
        raise Error(
            f"{path} is corrupted, or not a checkpoint of this version of fukami ({type(error).__name__}: {error}); "
            "it was not loaded; delete it to restart the run from step 0"
        ) from error
    return state
