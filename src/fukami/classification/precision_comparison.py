"""The ladder of precisions: a run at each of them, measured side by side.

Each step is exported, and loaded by a process of its own, so that its memory is its own. The processes take turns in
being timed, so that whatever else the machine does in the meantime falls on all of them.
"""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from fukami.classification.task import ClassificationTask
from fukami.engine import checkpoint, precision
from fukami.engine import export as engine_export
from fukami.engine.recipe import check_data
from fukami.engine.runtime import Runtime
from fukami.errors import Error, UsageError

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "binary", "onnx")
BATCH_SIZE = 256  # images at once for the throughput; the latency is that of one
NUM_ROUNDS = 5  # turns of each process
MIN_SECONDS = 0.2  # of each turn, at least

_task: ClassificationTask  # of a process that measures


def compare_precisions(
    run: str | Path, data: str | None = None, device: str = "auto", recipe_file: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure a run at every precision that it can be computed at.

    Args:
        run: a folder, or the name of weights that ship with the package; a classifier's.
        data: what is judged, a name or a path; by default the test part of what the run was trained on.
        device: ``auto``, ``cpu``, ``cuda`` ...
        recipe_file: file of the private recipe that the run was trained with.

    Returns:
        The steps, each with its ``precision``, the metrics, ``agreement`` (share of the answers that are those of
        float32), ``bytes`` of the file, ``memory_1`` and ``memory_256`` (bytes that loading it and answering so many
        images at once took at most), ``latency`` (seconds for one image, the median), ``throughput`` (images per
        second, 256 at once), and in which types it is ``computed``; and why each of the others is left out.

    Raises:
        UsageError: the run was exported already, or is no classifier's.
        Error: the run is damaged.
    """
    folder = checkpoint.locate_unconverted_run(run)
    where = str(Runtime.start(device, "float32").device)
    if data is None:
        check_data(checkpoint.read_recipe(folder, recipe_file)[0])
    steps: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = []
        for name in PRECISIONS:
            try:
                precision.resolve_device_and_precision(where, name)
                written = engine_export.export_run(run, name, root / name, recipe=recipe_file)
            except Error as error:
                if not steps:  # what cannot be computed in float32 is no run
                    raise
                left_out[name] = str(error)
                continue
            process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            found = process.submit(_load_run, root / name, device, torch.get_num_threads(), recipe_file).result()
            steps.append({"precision": name, "bytes": written["bytes"], **found})
            processes.append(process)
        answers: list[Tensor] = []
        for step, process in zip(steps, processes, strict=True):
            metrics, predicted = process.submit(_evaluate_run, folder, data, recipe_file).result()
            answers.append(torch.tensor(predicted))
            step |= metrics | {"agreement": float((answers[-1] == answers[0]).float().mean())}
        for count, name in ((1, "latency"), (BATCH_SIZE, "throughput")):
            turns = [
                [process.submit(_time_prediction, count).result() for process in processes] for _ in range(NUM_ROUNDS)
            ]
            for step, seconds in zip(steps, torch.tensor(turns).median(0).values.tolist(), strict=True):
                step[name] = seconds if count == 1 else count / seconds
    return steps, left_out


def _load_run(folder: Path, device: str, threads: int, recipe: Path | None) -> dict[str, Any]:
    """Load a run in this process; what memory that and the first answers took."""
    global _task
    torch.set_num_threads(threads)
    own = checkpoint.read_precision(folder)
    where = Runtime.start(*precision.resolve_device_and_precision(device, own)).device
    computed = precision.describe_dtypes(own, where)
    _import_libraries(folder, own, where, recipe)
    before = _measure_peak_memory()
    task = checkpoint.load(folder, device=device, recipe=recipe)
    if not isinstance(task, ClassificationTask):
        raise UsageError(f"the precisions of classifiers are compared; this is a run of {type(task).__name__}")
    _task = task
    memory = {}
    for count in (1, BATCH_SIZE):
        _build_predictor(count)()
        memory[f"memory_{count}"] = _measure_peak_memory() - before
    return memory | {"computed": computed}


def _import_libraries(folder: Path, own: str, where: torch.device, source: Path | None) -> None:
    """Have every library at hand before memory is counted, the run built once without numbers."""
    recipe, labels = checkpoint.read_recipe(folder, source)
    with torch.device("meta"):
        recipe.build_task(labels)
    if own in precision.ONNX_PRECISIONS:
        importlib.import_module("fukami.quantization.onnx_export")
    elif own == "binary":
        from fukami.quantization.binary_layers import get_kernels

        get_kernels(where)


def _measure_peak_memory() -> int:
    """The most memory that this process has held so far, in bytes: on a GPU the tensors, else all of it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # of this process alone, where getrusage counts the one that started it, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@torch.inference_mode()
def _evaluate_run(folder: Path, data: str | None, source: Path | None) -> tuple[dict[str, float], list[int]]:
    """The metrics of the test data, and every answer."""
    recipe, _ = checkpoint.read_recipe(folder, source)
    recipe = recipe if data is None else recipe.with_data(data)
    found = _task.collect_results(recipe.load_eval_data())
    return found.compute_metrics(), torch.cat(found.predictions).tolist()


def _build_predictor(count: int) -> Callable[[], Tensor]:
    """What answers for so many images of noise, already on the device."""
    shape = _task.get_signature().input_shape
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, device=_task.runtime.device)
    return torch.inference_mode()(lambda: _task.predict_scores(images))


def _time_prediction(count: int) -> float:
    """Seconds that an answer for so many images takes."""
    timer = Timer("answer()", globals={"answer": _build_predictor(count)}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=MIN_SECONDS).median


COLUMNS = (
    "precision", "accuracy", "as float32", "kB", "MB for 256", "ms for 1", "×", "256, /s", "×", "MB for 1",
    "weights, activations, accumulators",
)  # fmt: skip
NUM_TERMINAL_COLUMNS = 9  # columns that a terminal has room for


def format_rows(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of each step, as in :data:`COLUMNS`: times, too, as how many times faster than the first."""
    first = results[0]
    return [
        (
            step["precision"],
            f"{step['accuracy']:.2%}",
            f"{step['agreement']:.2%}",
            f"{step['bytes'] / 1e3:,.1f}",
            f"{step['memory_256'] / 1e6:,.1f}",
            f"{1e3 * step['latency']:.3f}",
            f"{first['latency'] / step['latency']:.2f}",
            f"{step['throughput']:,.0f}",
            f"{step['throughput'] / first['throughput']:.2f}",
            f"{step['memory_1'] / 1e6:,.1f}",
            ", ".join(step["computed"][part] for part in ("weights", "activations", "accumulators")),
        )
        for step in results
    ]
