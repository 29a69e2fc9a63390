"""Comparison of a run at every precision: accuracy, size, memory and speed.

Each export is loaded in its own process, so that memory is measured separately. The timing alternates between the
processes, so that other load on the machine affects all of them equally.
"""

import importlib
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from fukami.classification.task import ClassificationTask
from fukami.data.parsing import Json
from fukami.engine import export as engine_export
from fukami.engine import precision, run_folder, run_record
from fukami.engine.load_run import load_task
from fukami.engine.recipe import check_data
from fukami.engine.runtime import Runtime
from fukami.engine.train import prepare_eval_data
from fukami.errors import Error, UsageError
from fukami.layers.meta_device import use_meta_device

COMPARED_PRECISIONS = ("float32", "bfloat16", "float16", "int8", "binary", "onnx")
BATCH_SIZE = 256  # batch size of the throughput; the latency is that of one image
NUM_ROUNDS = 5  # timings of each process
MIN_SECONDS = 0.2  # minimum duration of a timing


class LoadedRun(NamedTuple):
    """Measurements of loading a run.

    Attributes:
        memory_1, memory_256: peak memory in bytes for loading, and for prediction with batch size 1 or 256.
        dtypes: dtypes of the weights, activations and accumulators.
    """

    memory_1: int
    memory_256: int
    dtypes: dict[str, str]


@dataclass
class PrecisionResult:
    """Measurements of a run at one precision.

    Attributes:
        precision: name of the precision.
        bytes: size of the file.
        loaded: memory and dtypes.
        metrics: metrics of the evaluation.
        agreement: fraction of the predictions equal to those of float32.
        latency: median seconds for one image.
        throughput: images per second with batch size 256.
    """

    precision: str
    bytes: int
    loaded: LoadedRun
    metrics: Mapping[str, float] = field(default_factory=dict)
    agreement: float = 0.0
    latency: float = 0.0
    throughput: float = 0.0

    def to_json(self) -> dict[str, Json]:
        """Return all values by name."""
        return {
            "precision": self.precision, "bytes": self.bytes, **self.loaded._asdict(), **self.metrics,
            "agreement": self.agreement, "latency": self.latency, "throughput": self.throughput,
        }  # fmt: skip


_task: ClassificationTask  # set in each measuring process


def compare_precisions(
    run: str | Path, data: str | None = None, device: str = "auto", recipe_file: Path | None = None
) -> tuple[list[PrecisionResult], dict[str, str]]:
    """Measure a classifier's run at every supported precision.

    Args:
        run: folder of a run, or the name of bundled weights.
        data: dataset of the evaluation, a name or a path; by default the test split of the training dataset.
        device: ``auto``, ``cpu``, ``cuda`` ...
        recipe_file: file of the run's custom recipe.

    Returns:
        A result for each precision, and the reason why each of the others is unsupported.

    Raises:
        UsageError: the run is an export, or is not a classifier's.
        Error: the run is corrupted.
    """
    folder = run_folder.locate_unconverted_run(run)
    if data is None:
        check_data(run_record.read_recipe(folder, recipe_file)[0])
    results: list[PrecisionResult] = []
    unsupported: dict[str, str] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = []
        for name in COMPARED_PRECISIONS:
            try:
                precision.resolve_device_and_precision(device, name)
                export = engine_export.export_run(run, name, root / name, recipe=recipe_file)
            except Error as error:
                if not results:  # every valid run supports float32
                    raise
                unsupported[name] = str(error)
                continue
            process = stack.enter_context(_start_process())
            loaded = process.submit(_load_run, root / name, device, torch.get_num_threads(), recipe_file).result()
            results.append(PrecisionResult(name, export["bytes"], loaded))
            processes.append(process)
        predictions: list[Tensor] = []
        for result, process in zip(results, processes, strict=True):
            result.metrics, predicted = process.submit(_evaluate_run, folder, data, recipe_file).result()
            predictions.append(torch.tensor(predicted))
            result.agreement = float((predictions[-1] == predictions[0]).float().mean())
        latencies, batch_seconds = (_time_predictions(processes, count) for count in (1, BATCH_SIZE))
        for result, latency, seconds in zip(results, latencies, batch_seconds, strict=True):
            result.latency, result.throughput = latency, BATCH_SIZE / seconds
    return results, unsupported


def _start_process() -> ProcessPoolExecutor:
    """Start a process that ignores Ctrl-C, which this process handles."""
    return ProcessPoolExecutor(
        1, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )


def _load_run(folder: Path, device: str, threads: int, recipe: Path | None) -> LoadedRun:
    """Load a run in this process; return the peak memory of loading and first predictions, and the dtypes."""
    global _task
    torch.set_num_threads(threads)
    run_precision = run_record.read_precision(folder)
    resolved_device = Runtime.start(*precision.resolve_device_and_precision(device, run_precision)).device
    dtypes = precision.describe_dtypes(run_precision, resolved_device)
    _import_libraries(folder, run_precision, resolved_device, recipe)
    before = _measure_peak_memory()
    task = load_task(folder, device=device, recipe=recipe)
    if not isinstance(task, ClassificationTask):
        raise UsageError(
            f"only the precisions of a classifier can be compared, and the run is a {type(task).__name__}; specify a "
            "classifier's run"
        )
    _task = task

    def measure_memory(count: int) -> int:
        _build_predictor(count)()
        return _measure_peak_memory() - before

    return LoadedRun(measure_memory(1), measure_memory(BATCH_SIZE), dtypes)


def _import_libraries(folder: Path, run_precision: str, device: torch.device, source: Path | None) -> None:
    """Import all libraries before memory is measured, by building the task once on the meta device."""
    recipe, labels = run_record.read_recipe(folder, source)
    with use_meta_device():
        recipe.build_task(labels)
    if run_precision in precision.ONNX_PRECISIONS:
        importlib.import_module("fukami.quantization.onnx_export")
    elif run_precision == "binary":
        from fukami.quantization.binary_layers import get_kernels

        get_kernels(device)


def _measure_peak_memory() -> int:
    """Return the peak memory of this process in bytes: of the tensors on a GPU, else of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the peak of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@torch.inference_mode()
def _evaluate_run(folder: Path, data: str | None, source: Path | None) -> tuple[dict[str, float], list[int]]:
    """Evaluate the run; return the metrics and the predicted classes."""
    recipe, _ = run_record.read_recipe(folder, source)
    recipe = recipe if data is None else recipe.with_data(data)
    results = _task.collect_results(prepare_eval_data(recipe, _task.runtime).eval_batches)
    return results.compute_metrics(), torch.cat(results.predictions).tolist()


def _build_predictor(count: int) -> Callable[[], Tensor]:
    """Return a function that predicts ``count`` random images, already on the device."""
    shape = _task.get_signature().input_shape
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, device=_task.runtime.device)
    return torch.inference_mode()(lambda: _task.predict_log_probabilities(images))


def _time_predictions(processes: Sequence[ProcessPoolExecutor], count: int) -> list[float]:
    """Measure the median seconds of a prediction of ``count`` images in each process, in alternation."""
    rounds = [[process.submit(_time_prediction, count).result() for process in processes] for _ in range(NUM_ROUNDS)]
    medians: list[float] = torch.tensor(rounds).median(0).values.tolist()
    return medians


def _time_prediction(count: int) -> float:
    """Measure the median seconds of a prediction of ``count`` images."""
    timer = Timer("predict()", globals={"predict": _build_predictor(count)}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=MIN_SECONDS).median


COLUMNS = (
    "precision", "accuracy", "as float32", "kB", "MB for 256", "ms for 1", "×", "256, /s", "×", "MB for 1",
    "weights, activations, accumulators",
)  # fmt: skip
NUM_TERMINAL_COLUMNS = 9  # columns shown in a terminal


def format_rows(results: Sequence[PrecisionResult]) -> list[tuple[str, ...]]:
    """Format the results as rows with :data:`COLUMNS`; × is the speed relative to the first result."""
    first = results[0]
    return [
        (
            result.precision,
            f"{result.metrics['accuracy']:.2%}",
            f"{result.agreement:.2%}",
            f"{result.bytes / 1e3:,.1f}",
            f"{result.loaded.memory_256 / 1e6:,.1f}",
            f"{1e3 * result.latency:.3f}",
            f"{first.latency / result.latency:.2f}",
            f"{result.throughput:,.0f}",
            f"{result.throughput / first.throughput:.2f}",
            f"{result.loaded.memory_1 / 1e6:,.1f}",
            ", ".join(result.loaded.dtypes[name] for name in ("weights", "activations", "accumulators")),
        )
        for result in results
    ]
