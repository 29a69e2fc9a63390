"""Leaderboards of the runs in a folder: ranks for each dataset and metric, with published results."""

import functools
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fukami.catalogue import RECIPES
from fukami.data.parsing import Json, exists
from fukami.data.sources import BUILT_IN
from fukami.engine import report, run_folder, run_weights
from fukami.engine.recipe import MAX_RECIPE_BYTES
from fukami.errors import Error, UsageError
from fukami.leaderboard.published_results import PublishedResult, load_published_results, select_best_results

# metrics for which lower is better
LOWER_IS_BETTER = {
    "loss",
    "errors",
    "error",
    "fid",
    "kid",
    "frechet",
    "kernel",
    "duplicate",
    "perplexity",
    "mse",
    "mae",
    "rmse",
    "distance",
}
SECONDARY_METRICS = ("loss", "errors", "content_loss", "style_loss", "variation")  # main only without other metrics
BUFFER_NAMES = ("running_mean", "running_var", "num_batches_tracked")  # saved tensors that are not parameters
MISSING = "–"
MAX_CELL_LENGTH = 20_000  # characters of a cell, such as a command with many flags
MAX_METRICS_BYTES = 64 << 20  # maximum size of metrics.jsonl, whose lines have about 200 bytes
MAX_LINE_BYTES = 1 << 20  # with the metrics of a thousand classes
MAX_LINE_METRICS = 1000
MAX_INTEGER = 1 << 62
MAX_NUMBER = 1e15  # of a metric
MAX_EVALUATIONS = 100_000
# value, dataset and remarks of a paper's result in the catalogue, such as 69.9 % mAP VOC 2007
PAPER_RESULT = re.compile(r"([\d.]+) (?:% )?(?:mAP |mIoU |AP |BLEU-4 )?(VOC \d+|[\w-]+)(.*)")


@dataclass(frozen=True)
class RankedRun:
    """Metrics and configuration of one run, read from its folder; unknown values are None or –."""

    name: str
    recipe: str
    data: str
    evaluations: tuple[dict[str, float], ...]
    test: dict[str, float]
    has_best_weights: bool
    steps_per_epoch: float
    parameters: int | None
    multiply_adds: int | None
    epochs: str
    seed: str
    device: str
    command: str

    @property
    def last_evaluation(self) -> dict[str, float]:
        """Metrics of the last evaluation, on the test data if there are any; empty before the first one."""
        return self.test or (self.evaluations[-1] if self.evaluations else {})

    @functools.cached_property
    def metric(self) -> str:
        """Main metric: the first that is not a count, an error or a loss; empty before the first evaluation."""
        names = [name for name in self.last_evaluation if name not in report.NON_METRIC_KEYS]
        return next((name for name in names if name not in SECONDARY_METRICS), names[0] if names else "")

    @property
    def split(self) -> str:
        """Split of the result: test, or val without test data."""
        return "test" if self.metric in self.test else "val"

    @functools.cached_property
    def result(self) -> float:
        """Main metric of the saved weights: on the test data, or at the best evaluation, or at the last one."""
        if self.metric in self.test:
            return float(self.test[self.metric])
        values = [float(line[self.metric]) for line in self.evaluations if self.metric in line]
        return (
            min(values, key=functools.partial(compute_sort_key, self.metric)) if self.has_best_weights else values[-1]
        )

    @property
    def seconds(self) -> float | None:
        """Training time up to the last evaluation, in seconds."""
        return self.last_evaluation.get("seconds")


@dataclass
class Leaderboard:
    """Runs on one dataset, ranked by one metric, with published results."""

    data: str
    metric: str
    runs: list[RankedRun] = field(default_factory=list)
    unfinished: list[RankedRun] = field(default_factory=list)
    published: list[PublishedResult] = field(default_factory=list)
    # results of the recipes' papers on this dataset by another metric or protocol
    claims: list[str] = field(default_factory=list)

    def compute_rank(self, run: RankedRun) -> int:
        """Compute the rank of a run, starting at 1; ties share a rank."""
        return 1 + sum(
            compute_sort_key(self.metric, other.result) < compute_sort_key(self.metric, run.result)
            for other in self.runs
        )

    @property
    def title(self) -> str:
        """Title: the dataset and the metric."""
        return f"{self.data}: {self.metric or 'no evaluation yet'}"

    @property
    def notes(self) -> list[str]:
        """Notes on the comparison: evaluation data, direction of the metric, published results and their sources."""
        splits = sorted({(run.split, int(run.last_evaluation.get("count", 0))) for run in self.runs})
        names = ", ".join(f"{split} with {count} items" for split, count in splits)
        different = f"evaluated on different data ({names}): compare with care" if len(splits) > 1 else ""
        lower = f"lower {self.metric} is better" if is_lower_better(self.metric) else ""
        sources = [result.footnote for result in self.published]
        return [note for note in (different, lower, *sources, *self.claims) if note]


def load_leaderboards(folder: Path) -> tuple[list[Leaderboard], dict[str, list[str]]]:
    """Load the leaderboards of all runs in ``folder`` and its subfolders.

    Returns:
        The leaderboards, and the names of the runs with unknown values by the reason for it.

    Raises:
        UsageError: the folder does not exist.
        Error: the folder contains no runs.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; specify the folder that contains your runs, such as runs/")
    paths = sorted(path.parent for path in folder.rglob("recipe.json") if path.with_name("metrics.jsonl").is_file())
    if not paths:
        raise Error(
            f"there are no runs in {folder}: a run is a folder written by fukami train, with recipe.json and "
            "metrics.jsonl; specify the folder that contains your runs"
        )
    reasons: dict[str, list[str]] = defaultdict(list)
    boards: dict[tuple[str, str], Leaderboard] = {}
    runs = [(_resolve_dataset(run.data), run) for run in (_read_run(path, folder, reasons) for path in paths)]
    for dataset, run in sorted(runs, key=lambda pair: not pair[1].metric):  # unfinished runs join an existing board
        first = next((key for key in boards if key[0] == dataset), (dataset, ""))
        board = boards.setdefault((dataset, run.metric) if run.metric else first, Leaderboard(run.data, run.metric))
        (board.runs if run.metric else board.unfinished).append(run)
    for board in boards.values():
        board.runs.sort(key=lambda run: (compute_sort_key(run.metric, run.result), run.seconds or math.inf, run.name))
        _add_published_results(board)
    return [boards[key] for key in sorted(boards)], dict(reasons)


def _read_run(path: Path, folder: Path, reasons: dict[str, list[str]]) -> RankedRun:
    """Read the run in a folder; unreadable values are skipped, and the reason is added to ``reasons``."""
    name = _sanitize_text(path.relative_to(folder).as_posix() if path != folder else path.resolve().name)
    record: dict[str, Json] = {}
    lines: Iterable[bytes] = ()
    saved_parameters: int | None = None
    try:
        run_folder.check_run_files(path)
        record, lines, saved_parameters = _read_record(path), _read_metrics_lines(path), _count_saved_parameters(path)
        if not record:
            reasons["recipe.json is corrupted"].append(name)
    except (Error, OSError) as error:
        reasons[_sanitize_text(str(error))].append(name)
    evaluations, test, is_readable = [], {}, True
    for line in lines:
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError("the line is too long")
            entry = json.loads(line)
            if entry["phase"] == "eval":
                evaluations.append(_parse_evaluation(entry))
            elif entry["phase"] == "test":
                test = _parse_evaluation(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_readable = False
        if len(evaluations) == MAX_EVALUATIONS:
            break
    if not is_readable:
        reasons["metrics.jsonl has a line that cannot be read"].append(name)
    fields = record.get("fields")
    fields = fields if isinstance(fields, dict) else {}
    steps_per_epoch = _estimate_epoch_steps(fields, evaluations, test)
    last_step = max((line["step"] for line in (*evaluations, test) if line), default=0)
    recipe = _sanitize_text(record.get("recipe", MISSING))
    processes = record.get("processes", 1)
    device = _sanitize_text(f"{record.get('device', MISSING)} {record.get('precision', '')}")
    return RankedRun(
        name=name,
        recipe=recipe,
        data=_name_data(fields, recipe) if record else "unknown data",
        evaluations=tuple(evaluations),
        test=test,
        has_best_weights=run_weights.locate_weights(path).name == "best.safetensors",
        steps_per_epoch=steps_per_epoch,
        parameters=_get_count(record, "parameters") or saved_parameters,
        multiply_adds=_get_count(record, "multiply_adds"),
        epochs=_format_epochs(path, fields.get("epochs"), round(last_step / steps_per_epoch)),
        seed=_sanitize_text(fields.get("seed", MISSING)),
        device=device.strip() + (_sanitize_text(f" ×{processes}") if processes != 1 else ""),
        command=_sanitize_text(record.get("command", MISSING)),
    )


def _name_data(fields: Mapping[str, Any], recipe: str) -> str:
    """Return the dataset of a run, or the environment or the games that it learned."""
    names = ("annotations", "data", "env", "game")
    data = next((fields[name] for name in names if fields.get(name)), f"no dataset ({recipe})")
    return _sanitize_text(", ".join(map(str, data[:MAX_CELL_LENGTH])) if isinstance(data, list) else data)


def _sanitize_text(value: object) -> str:
    """Convert a value to text for the table and the page, without terminal control characters."""
    return "".join(char if char.isprintable() else "�" for char in str(value)[:MAX_CELL_LENGTH])


def _read_metrics_lines(path: Path) -> Iterable[bytes]:
    """Read the lines of ``metrics.jsonl``, without empty ones.

    Raises:
        Error: the file is larger than any run writes.
    """
    file = path / "metrics.jsonl"
    if file.stat().st_size > MAX_METRICS_BYTES:
        raise Error(f"metrics.jsonl has more than {MAX_METRICS_BYTES:,} bytes")
    return (line for line in io.BytesIO(file.read_bytes()) if line.strip())


def _parse_evaluation(entry: dict[str, Json]) -> dict[str, float]:
    """Parse the metrics of an evaluation.

    Raises:
        ValueError: the step or the metric is missing, or a number is out of range.
    """
    numbers = {
        _sanitize_text(name): value for name, value in entry.items() if type(value) is int or type(value) is float
    }
    if len(numbers) > MAX_LINE_METRICS:
        raise ValueError("too many metrics")
    step, seconds = numbers["step"], numbers.get("seconds", 0)
    if not (numbers.keys() - report.NON_METRIC_KEYS and type(step) is int and step > 0 and 0 <= seconds < math.inf):
        raise ValueError("not an evaluation")
    if any(MAX_NUMBER < abs(value) < math.inf for value in numbers.values()) or not (
        0 <= numbers.get("count", 0) < math.inf
    ):
        raise ValueError("a number is out of range")
    return numbers


def _read_record(path: Path) -> dict[str, Json]:
    """Read ``recipe.json``; return an empty dict if it is corrupted."""
    try:
        if (path / "recipe.json").stat().st_size > MAX_RECIPE_BYTES:
            return {}
        record = json.loads((path / "recipe.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    valid = isinstance(record, dict) and isinstance(record.get("fields"), dict)
    return dict(record) if valid else {}


def _estimate_epoch_steps(
    fields: Mapping[str, Json], evaluations: Sequence[Mapping[str, float]], test: Mapping[str, float]
) -> float:
    """Estimate the steps of an epoch: the first evaluation follows ``eval_every`` epochs, or the last one."""
    counts = [fields.get("eval_every", 1) if evaluations else None, fields.get("epochs")]
    first = evaluations[0]["step"] if evaluations else test.get("step", 1)
    return first / min((count for count in counts if type(count) is int and 0 < count < MAX_NUMBER), default=1) or 1


def _format_epochs(path: Path, planned: object, reached: int) -> str:
    """Format the epochs of the recipe, or those reached by an interrupted run: the report is written last."""
    if not isinstance(planned, int):
        return MISSING
    return str(planned) if (path / "report.html").is_file() or reached >= planned else f"{reached} of {planned}"


def _get_count(record: Mapping[str, Json], name: str) -> int | None:
    """Return an integer recorded by the run, or None if it is missing or out of range."""
    value = record.get(name)
    return value if type(value) is int and 0 <= value <= MAX_INTEGER else None


def _count_saved_parameters(path: Path) -> int | None:
    """Count the parameters in the header of the saved weights, for runs without a recorded number."""
    try:
        with safe_open(run_weights.locate_weights(path), "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a mapping
    except Exception:  # not written yet, or corrupted: fukami eval reports the reason
        return None
    return sum(int(math.prod(shape)) for name, shape in shapes.items() if not name.endswith(BUFFER_NAMES))


def _resolve_dataset(data: str) -> str:
    """Return one identifier for all names of a dataset: its known name, or the resolved path."""
    return str(Path(data).resolve()) if data not in BUILT_IN and exists(Path(data)) else data


def is_lower_better(metric: str) -> bool:
    """Return whether lower is better; a distance such as ``frechet_vgg16`` ends with the name of a network."""
    return metric.partition("_")[0] in LOWER_IS_BETTER


def compute_sort_key(metric: str, value: float) -> float:
    """Compute the sort key of a value: lower is better, and values that are not finite come last."""
    return (value if is_lower_better(metric) else -value) if math.isfinite(value) else math.inf


def _add_published_results(board: Leaderboard) -> None:
    """Add the published results on the board's dataset: the best ones, and those of the papers of the runs' recipes."""
    dataset = _normalize_name(Path(board.data).name.partition(".")[0])
    results = [result for result in load_published_results() if _normalize_name(result.dataset) == dataset]
    board.published += select_best_results(results) if board.metric == "accuracy" else []
    for name in sorted({run.recipe for run in board.runs} & set(RECIPES)):
        entry = RECIPES[name]
        source = f"{entry.paper} {entry.year}"
        match = PAPER_RESULT.fullmatch(entry.paper_result)
        if not match or _normalize_name(match[2]) != dataset:
            continue
        if board.metric == "accuracy" and not match[3]:
            accuracy = round(float(match[1]) / 100, 6)
            known = [result for result in results if (result.year, result.accuracy) == (entry.year, accuracy)]
            own = known or [PublishedResult(match[2], entry.year, name, accuracy, "", None, source)]
            board.published += [result for result in own if result not in board.published]
        else:
            board.claims.append(f"the paper of {name} reports {entry.paper_result} ({source})")
    board.published.sort(key=lambda result: -result.accuracy)


def _normalize_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
