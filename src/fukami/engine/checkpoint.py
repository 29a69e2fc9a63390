"""Runs on disk: written so that a crash at any instant loses nothing, read without ever executing code of theirs.

A run is a folder: ``recipe.json`` (recipe, fields, labels, versions), ``weights.safetensors``, ``metrics.jsonl``,
``report.html``, and ``last.ckpt``, which only a resumed training reads.
"""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import stat
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fukami.engine import precision as precisions
from fukami.engine.locking import lock_folder
from fukami.engine.recipe import (
    Recipe,
    build_recipe,
    get_recipe,
    identify_recipe,
    is_built_in,
    list_recipes,
    load_recipe_file,
    parse_overrides,
)
from fukami.engine.runtime import PRECISIONS, Runtime
from fukami.engine.state_file import encode_state, load_state
from fukami.engine.task import Task
from fukami.errors import Error, UsageError, WriteError, build_unknown_error

SHIPPED_WEIGHTS_DIR = Path(__file__).parents[1] / "weights"
RUN_FILES = (
    "recipe.json",
    "weights.safetensors",
    "last.ckpt",
    "preview.png",
    "report.html",
)  # that :func:`write_file` replaces
MAX_THREADS = 1024  # that a run can have been computed with
HALF_DTYPES = (torch.float16, torch.bfloat16)  # in which float32 weights may be stored, for smaller files
MAX_MODEL_PARTS = 50_000  # layers and tensors of a network; ResNet-152 has about a thousand
MAX_LISTED_TENSORS = 20  # tensors that a message names at most
RESUME_FIELDS = {"versions": dict, "device": str, "precision": str, "command": str, "processes": int, "compile": bool}
NONE_TYPE = type(None)
CHECKPOINT_FIELDS = {
    "format": (int,),
    "versions": (dict,),
    "threads": (int,),
    "manifest": (str, NONE_TYPE),
}  # of a checkpoint
MAX_RECIPE_BYTES = 64 << 20  # bytes of a recipe.json; one with a thousand classes has 30 kB
RecipeSource = str | os.PathLike[str] | type[Recipe]  # the file of a private recipe, or its class

logger = logging.getLogger(__name__)


class ComputeConfig(NamedTuple):
    """What a training computes with; ``num_threads`` is None where that is not decided yet."""

    device: str
    precision: str
    compile: bool
    num_threads: int | None


def load(
    *runs: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    vote: bool = False,
    overrides: Mapping[str, Any] | None = None,
    recipe: RecipeSource | None = None,
) -> Task:
    """The task of a finished run, ready to predict and evaluate; several runs answer together, as an ensemble.

    Args:
        runs: folders, or names of weights that ship with the package (``deep-convnet``).
        device: ``auto``, ``cpu``, ``cuda`` ...
        precision: ``float32``, ``bfloat16`` or ``float16``: the type of the weights and of the activations; ``int8``,
            ``binary`` or ``onnx``: as ``fukami export`` would convert them; ``auto``: float32, or as it was exported.
        vote: the majority of several runs decides, and not the average of their probabilities.
        overrides: fields of the recipe, by name, that have another value now, such as ``{"beam_size": 3}``.
        recipe: for runs of a private recipe, its file (or class): code is never taken from a run. Its SHA-256 has to
            be the one that the run recorded.

    Raises:
        UsageError: a run is not there, cannot be computed at this precision, or needs another ``recipe``.
        Error: a run is damaged, its parts do not fit together, or a layer of it cannot be converted.
    """
    if not runs:
        raise UsageError("give at least one run: a folder, or the name of weights that ship with the package")
    first, *others = (_load_run(locate_run(run), device, precision, overrides or {}, recipe) for run in runs)
    return first.ensemble_with(others, vote=vote) if others else first


def locate_run(run: str | os.PathLike[str]) -> Path:
    """The folder of a run, given as a folder or as the name of shipped weights.

    Raises:
        UsageError: it is neither.
        Error: the folder holds what leads out of it.
    """
    folder = Path(run)
    if (folder / "recipe.json").is_file():
        check_run_files(folder)
        return folder
    if (SHIPPED_WEIGHTS_DIR / folder.name / "recipe.json").is_file() and str(run) == folder.name:
        return SHIPPED_WEIGHTS_DIR / folder.name
    shipped = ", ".join(sorted(path.parent.name for path in SHIPPED_WEIGHTS_DIR.glob("*/recipe.json")))
    what = "is a folder without a recipe.json" if folder.is_dir() else "is neither a run's folder nor shipped weights"
    raise UsageError(f"{str(run)!r} {what}; give a folder that fukami train left, or one of: {shipped}")


def check_run_files(folder: Path, *, for_writing: bool = False) -> None:
    """Refuse a run's folder with links, pipes or devices in it: nothing outside of it may be read or written.

    Args:
        folder: of the run.
        for_writing: files will be written: check the folders in it, too, and refuse hard links, such as ``cp -l``
            makes, by which the run that was copied would change.

    Raises:
        Error: there is such an entry; it is named.
    """
    for path in sorted(folder.rglob("*") if for_writing else folder.iterdir()):
        facts = path.lstat()
        regular, linked = stat.S_ISREG(facts.st_mode), for_writing and facts.st_nlink > 1
        if not (stat.S_ISDIR(facts.st_mode) or (regular and not linked)):
            what = "a link" if stat.S_ISLNK(facts.st_mode) else "a hard link" if regular else "no regular file"
            raise Error(f"{path} is {what}, which a run may not hold; replace it by a copy of the file, or remove it")


def read_recipe(folder: Path, recipe: RecipeSource | None = None) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe and the labels that ``recipe.json`` records; ``recipe`` as for :func:`load`.

    Raises:
        UsageError: the run is of a private recipe and ``recipe`` is not the one, or of another one and it is given.
        Error: the file is damaged.
    """
    record = _read_record(folder)
    return build_recipe(_resolve_recipe_class(folder, record, recipe), record["fields"]), tuple(record["labels"])


def _resolve_recipe_class(folder: Path, record: dict[str, Any], given: RecipeSource | None) -> type[Recipe]:
    """The class of a run's recipe: one that comes with fukami, or the one ``given`` if it is the same as recorded."""
    name = record["recipe"]
    if "recipe_sha256" not in record:
        if given is not None:
            raise UsageError(f"{folder} is a run of {name!r}, which is not a private recipe: leave out the recipe file")
        if name not in list_recipes():
            raise Error(f"{folder / 'recipe.json'} is damaged or of another version of fukami: "
                        f"{build_unknown_error('recipe', name, list_recipes())}")  # fmt: skip
        return get_recipe(name)
    digest = record["recipe_sha256"]
    if not (isinstance(digest, str) or digest is None):
        raise Error(f"{folder / 'recipe.json'} is damaged: 'recipe_sha256' should be text, not {digest!r:.100}")
    if given is None:
        raise UsageError(
            f"{folder} is a run of the private recipe {name}, and code is never taken from a run: give the recipe "
            f"file, --recipe {name} (in Python: recipe={name!r})"
        )
    if not isinstance(given, type):
        if digest is None:
            raise UsageError(f"{folder} is a run of {name}, which was defined in no file: in Python, give the class")
        return load_recipe_file(Path(given), digest)
    own = identify_recipe(given)
    if own != {"recipe": name, "recipe_sha256": digest}:
        raise UsageError(
            f"{folder} is a run of {name} with the SHA-256 {digest}, not of {own['recipe']} with "
            f"{own.get('recipe_sha256')}: give the recipe as it was"
        )
    return given


def read_recipe_name(folder: Path) -> str:
    """The name of the recipe, or of its file, that ``recipe.json`` records."""
    return str(_read_record(folder)["recipe"])


def read_labels(folder: Path) -> tuple[str, ...]:
    """The labels that ``recipe.json`` records."""
    return tuple(_read_record(folder)["labels"])


def parse_run_overrides(
    runs: Sequence[str], overrides: Sequence[str], recipe: RecipeSource | None = None
) -> dict[str, Any]:
    """Values of fields of the first run's recipe by name, from words such as ``beam_size=3``.

    Raises as :func:`load`.
    """
    return parse_overrides(type(read_recipe(locate_run(runs[0]), recipe)[0]), overrides) if runs and overrides else {}


def _read_record(folder: Path) -> dict[str, Any]:
    """What ``recipe.json`` holds, of the right types."""
    path = folder / "recipe.json"
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise ValueError(f"it has more than {MAX_RECIPE_BYTES:,} bytes")
        record = json.loads(path.read_bytes())
        name, fields, labels = record["recipe"], record["fields"], record["labels"]
        json.dumps(record, ensure_ascii=False).encode()  # what a file is written from has no lone surrogates
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Error(f"{path} is damaged ({type(error).__name__}: {error}); the run cannot be used") from error
    texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not (isinstance(name, str) and isinstance(fields, dict) and texts):
        raise Error(f"{path} is damaged: 'recipe' should be text, 'fields' an object, 'labels' a list of texts")
    return dict(record)


def _fields_to_json(recipe: Recipe) -> dict[str, Any]:
    """The fields as JSON gives them back: tuples are lists there."""
    return dict(json.loads(json.dumps(dataclasses.asdict(recipe))))


def read_precision(folder: Path) -> str:
    """What the run was exported to; float32 where it is as its training left it."""
    exported = _read_record(folder).get("exported")
    own = exported.get("to") if isinstance(exported, dict) else "float32"
    if own not in (*PRECISIONS, *precisions.CONVERTED_PRECISIONS):
        raise Error(f"{folder / 'recipe.json'} is damaged: it was exported to {own!r}; the run cannot be used")
    return str(own)


def locate_unconverted_run(run: str | os.PathLike[str]) -> Path:
    """The folder of a run that has the layers it was trained with.

    Raises:
        UsageError: there is no such run, or it was exported to other layers.
    """
    folder = locate_run(run)
    own = read_precision(folder)
    if own in precisions.CONVERTED_PRECISIONS:
        raise UsageError(f"{run} was exported to {own} already, which has other layers; give the run it is of")
    return folder


def _load_run(
    folder: Path, device: str, precision: str, overrides: Mapping[str, Any], source: RecipeSource | None
) -> Task:
    recipe, labels = read_recipe(folder, source)
    recipe = dataclasses.replace(recipe, **overrides)
    own = read_precision(folder)
    precision = precisions.resolve_precision(precision, own, folder)
    ours = is_built_in(type(recipe))  # whose tasks have no numbers but those of their networks
    with torch.device("meta") if ours else contextlib.nullcontext():
        task = _build_task(folder, recipe, labels)
        modules = task.get_modules()
        if own == "binary":
            from fukami.quantization.binary_layers import pack_model

            modules = {name: pack_model(module) for name, module in modules.items()}
    if own in precisions.ONNX_PRECISIONS:
        from fukami.quantization.onnx_export import OnnxNetwork

        modules = {name: OnnxNetwork(_read_file(folder / f"{name}.onnx")) for name in modules}
    else:
        assign_weights(modules, read_weights(folder), folder / "weights.safetensors")
    if ours or own in precisions.CONVERTED_PRECISIONS:
        task.replace_modules(modules)
    task.setup(Runtime.start(*precisions.resolve_device_and_precision(device, precision)))
    for module in modules.values():
        module.to(PRECISIONS.get(precision, torch.float32)).eval()
    if precision in precisions.CONVERTED_PRECISIONS and precision != own:
        task.replace_modules(precisions.convert_task(task, precision, recipe))
    return task


def _build_task(folder: Path, recipe: Recipe, labels: tuple[str, ...]) -> Task:
    """The task of a run's recipe; fields that no network can have are an Error."""
    count = 0

    def limit(*parts: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODEL_PARTS:
            raise Error(
                f"{folder / 'recipe.json'} describes a network of more than {MAX_MODEL_PARTS:,} layers and tensors"
            )

    hooks = (register_module_parameter_registration_hook(limit), register_module_module_registration_hook(limit))
    try:
        return recipe.build_task(labels)
    except (Error, MemoryError):
        raise
    except Exception as error:
        raise Error(
            f"{folder / 'recipe.json'} describes no network that can be built ({type(error).__name__}: {error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """What ``weights.safetensors`` holds."""
    path = folder / "weights.safetensors"
    try:
        return read_tensors(path)  # not read yet: the file is mapped into memory
    except FileNotFoundError:
        raise Error(
            f"{folder} has no weights.safetensors yet; its training has to reach its first evaluation"
        ) from None
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:  # the last two where it is too large to map
        raise Error(f"{path} is damaged ({error}); the run cannot be used") from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Error(f"{path} cannot be read ({error.strerror}); the run cannot be used") from error


def copy_tensors_to_cpu(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every parameter and buffer of the modules, named ``module.parameter``, on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in collect_tensors(modules).items()}


def collect_tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every parameter and buffer of the modules, where it is, named ``module.parameter``."""
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def assign_weights(modules: dict[str, nn.Module], tensors: dict[str, Tensor], source: Path) -> None:
    """Make ``tensors`` the modules' own, all of them, in the precision in which they are stored.

    Args:
        modules: by name, with tensors that may be on the meta device.
        tensors: named ``module.parameter``.
        source: the file that they are from, for messages.

    Raises:
        Error: as for :func:`check_tensors`.
    """
    check_tensors(modules, tensors, source)
    for name, module in modules.items():
        prefix = f"{name}."
        # copied, since they are else the file itself, mapped into memory, and end with it
        own = {key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(own, assign=True)
        for key, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_meta:
                raise Error(f"{source} lacks {name}.{key}, which the network keeps out of its state_dict; put it in")


def check_tensors(modules: dict[str, nn.Module], tensors: dict[str, Tensor], source: Path) -> None:
    """Refuse tensors that are not exactly those of the modules; arguments as for :func:`assign_weights`.

    Raises:
        Error: a tensor is missing, left over, of another shape or type, or not finite; all such are listed.
    """
    expected = collect_tensors(modules)
    wrong = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    wrong += [f"{name} is not known" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        found, wanted = tensors[name], expected[name]
        stored = HALF_DTYPES if wanted.dtype == torch.float32 else ()
        if found.shape != wanted.shape:
            wrong.append(f"{name} is {tuple(found.shape)} instead of {tuple(wanted.shape)}")
        elif found.dtype not in (wanted.dtype, *stored):
            wrong.append(f"{name} is of {found.dtype} instead of {wanted.dtype}")
        elif not found.isfinite().all():
            wrong.append(f"{name} has values that are not finite")
    if wrong:
        listed = "; ".join(sorted(wrong)[:MAX_LISTED_TENSORS]) + (
            f"; and {len(wrong) - MAX_LISTED_TENSORS} more" if wrong[MAX_LISTED_TENSORS:] else ""
        )
        raise Error(f"{source} does not fit its recipe: {listed}")


@contextlib.contextmanager
def lock_run(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Hold the folder for a run of this recipe; in a group of processes the first one does.

    Nobody else writes to it meanwhile. A folder that was not there and in which nothing was written is removed again.

    Raises:
        UsageError: the folder is in use or holds the run of another recipe, another process writes there, or there is
            nothing to resume.
        Error: the folder cannot be written.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out should be a new or empty folder")
    new = not folder.exists()
    if resume:
        check_run_exists(folder)
    if os.path.lexists(folder / ".lock"):  # which would be opened, if it is a link, before anything is checked
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
            _remove_temporaries(folder)
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_run_exists(folder: Path) -> None:
    """Refuse to resume where there is no run.

    Raises:
        UsageError: the folder is not there, or has no ``recipe.json``.
    """
    if not (folder / "recipe.json").is_file():
        what = "holds no run (it has no recipe.json)" if folder.is_dir() else "does not exist"
        raise UsageError(
            f"nothing to resume in {folder}, which {what}; give the folder of a run with --out, or leave --resume out "
            "to begin one"
        )


def check_folder_unused(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds more than hidden files and stages of the recipe.

    Raises:
        UsageError: it does.
    """
    stages = recipe.stages(folder)
    if any(not path.name.startswith(".") and path.name not in stages for path in folder.iterdir()):
        raise UsageError(
            f"{folder} exists and is not empty; give another --out, or --resume to go on with the run in it"
        )


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to go on with the run in the folder as one of another recipe.

    Raises:
        UsageError: it was begun with another recipe, or with other fields.
    """
    begun, asked, own = _read_record(folder), _fields_to_json(recipe), identify_recipe(type(recipe))
    if begun["recipe"] != own["recipe"]:
        raise UsageError(f"{folder} is a run of {begun['recipe']}, not of {own['recipe']}")
    if begun.get("recipe_sha256") != own.get("recipe_sha256"):
        raise UsageError(
            f"{folder} was begun with {own['recipe']} of the SHA-256 {begun.get('recipe_sha256')}, not with "
            f"{own.get('recipe_sha256')}: resume it with the recipe as it was, or choose another --out"
        )
    differ = [
        f"{name} {begun['fields'].get(name)!r}, not {asked.get(name)!r}"
        for name in sorted(begun["fields"].keys() | asked.keys())
        if begun["fields"].get(name) != asked.get(name)
        and not _is_moved_stage(begun["fields"].get(name), asked.get(name), folder)
    ]
    if differ:
        raise UsageError(f"{folder} was begun with {'; '.join(differ)}: resume it as it was, or choose another --out")


def _remove_temporaries(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for name in RUN_FILES:
        with contextlib.suppress(OSError):
            _get_temporary_path(folder / name).unlink()


def _is_moved_stage(begun: Any, asked: Any, folder: Path) -> bool:
    """Whether two paths are of the same stage of the run that has a stage in ``folder``, which was moved meanwhile."""
    if not (isinstance(begun, str) and isinstance(asked, str)):
        return False
    return Path(asked).parent == folder.resolve().parent and Path(asked).name == Path(begun).name


def is_finished(folder: Path) -> bool:
    """Whether the training of the run in a folder, if there is one, came to its end."""
    return (folder / "recipe.json").is_file() and "time" in _read_record(folder)


def resolve_compute_config(folder: Path, device: str, precision: str, compile: bool) -> ComputeConfig:
    """What to compute with: as asked, or as the run in the folder was begun, where it has one.

    Raises:
        UsageError: something else was asked for than the run was begun with.
        Error: ``recipe.json`` is damaged.
    """
    if not (folder / "recipe.json").is_file():
        return ComputeConfig(device, precision, compile, None)
    record = _read_record(folder)
    for name, kind in RESUME_FIELDS.items():
        if type(record.get(name)) is not kind:
            raise Error(f"{folder / 'recipe.json'} is damaged: {name!r} should be of type {kind.__name__}, not "
                        f"{record.get(name)!r:.100}; the run cannot be resumed")  # fmt: skip
    asked = {"device": device.partition(":")[0], "precision": precision, "compile": compile or "auto"}
    for what, value in asked.items():
        if value not in ("auto", record.get(what)):
            begun = record.get(what)
            raise UsageError(
                f"{folder} was begun with {what} {begun!r}, not {value!r}: only the same gives the same run"
            )
    device = record.get("device", device) if device == "auto" else device
    threads = record.get("threads")
    if threads is not None and not (type(threads) is int and 1 <= threads <= MAX_THREADS):
        raise Error(f"{folder / 'recipe.json'} is damaged: 'threads' should be 1 to {MAX_THREADS}, not {threads!r}")
    return ComputeConfig(device, record.get("precision", precision), bool(record.get("compile", compile)), threads)


def _get_temporary_path(path: Path) -> Path:
    """The file that becomes ``path`` once it is written."""
    return path.with_name(f".{path.name}.tmp")


def write_file(path: Path, content: bytes) -> None:
    """Replace the file in one step: after a crash it holds either the old content or the new.

    Raises:
        WriteError: it cannot be written; the old content stays.
    """
    temporary = _get_temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)  # left by a crash
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive, too
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise WriteError(path, error) from error


def write_recipe(folder: Path, recipe: Recipe, labels: tuple[str, ...], extra: dict[str, Any]) -> None:
    """Write ``recipe.json``; ``extra`` is added to it for the reader."""
    record = {
        **identify_recipe(type(recipe)),
        "fields": dataclasses.asdict(recipe),
        "labels": labels,
        "versions": get_versions(),
        **extra,
    }
    write_file(folder / "recipe.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def record_value(folder: Path, name: str, value: Any) -> None:
    """Add a fact to ``recipe.json``."""
    record = _read_record(folder) | {name: value}
    write_file(folder / "recipe.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def record_resumption(folder: Path, facts: dict[str, Any]) -> None:
    """Add to ``recipe.json`` what is otherwise since the run was resumed."""
    before = _read_record(folder).get("resumed")
    record_value(folder, "resumed", [*(before if isinstance(before, list) else ()), facts])


def get_versions() -> dict[str, str]:
    """What computes here."""
    return {"fukami": version("fukami"), "torch": str(torch.__version__), "python": platform.python_version()}


def write_weights(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write ``weights.safetensors`` from what :func:`copy_tensors_to_cpu` gave.

    ``dtype`` stores floating ones in another type.
    """
    if dtype is not None:
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    write_file(folder / "weights.safetensors", write_tensors(tensors))


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``last.ckpt``: tensors and plain values only."""
    write_file(folder / "last.ckpt", encode_state(state))


def read_state(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """What ``last.ckpt`` holds, or None where the run never got that far; nothing in the file is executed.

    Raises:
        Error: the file is damaged, or no checkpoint of fukami.
    """
    path = folder / "last.ckpt"
    if not path.exists():
        return None
    try:
        state = load_state(path, device)
        if not isinstance(state, dict) or type(state["step"]) is not int or state["step"] < 0:
            raise ValueError("it names no step")
        for name, kinds in CHECKPOINT_FIELDS.items():
            if name in state and type(state[name]) not in kinds:
                raise ValueError(f"its {name} is of type {type(state[name]).__name__}")
    except Exception as error:  # a damaged file can fail in any way
        raise Error(
            f"{path} is damaged, or no checkpoint of this version of fukami ({type(error).__name__}: {error}); nothing "
            "of it was used: remove it to start the run again from its first step"
        ) from error
    return state
