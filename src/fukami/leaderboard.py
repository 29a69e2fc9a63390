"""Leaderboard of the runs in a folder: ranks for each dataset and metric, with published results."""

import csv
import functools
import io
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from safetensors import safe_open

from fukami import atomic_file
from fukami.catalogue import RECIPES
from fukami.data.parsing import Json, exists
from fukami.data.sources import BUILT_IN
from fukami.engine import report, run_folder, run_weights
from fukami.engine.html import render_page
from fukami.engine.recipe import MAX_RECIPE_BYTES
from fukami.errors import Error, UsageError
from fukami.image.charts import GRAY

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
PERCENT_METRICS = ("accuracy", "map", "miou")  # metrics shown in percent
BUFFER_NAMES = ("running_mean", "running_var", "num_batches_tracked")  # saved tensors that are not parameters
NUM_COLORS = 10  # runs with their own color and legend entry in the figures; the others are gray
MISSING = "–"
MAX_CELL_LENGTH = 20_000  # characters of a cell, such as a command with many flags
MAX_METRICS_BYTES = 256 << 20  # maximum size of metrics.jsonl, whose lines have about 200 bytes
MAX_INTEGER = 1 << 62
MAX_NUMBER = 1e15  # of a metric
MAX_EVALUATIONS = 100_000
COLUMNS = ("#", "run", "recipe", "", "split", "parameters", "multiply-adds", "seconds", "epochs", "seed", "device")
TEXT_COLUMNS = {"run", "recipe", "split", "device"}  # left-aligned
REDUNDANT_COLUMNS = {"recipe", "seed", "device"}  # columns that the command also shows; omitted in a narrow terminal
COLUMN_KINDS = ("number", "name", "name", "number", "", *["number"] * 5, "")  # CSS classes of the columns on the page
MIN_NAME_WIDTH = 10  # minimum width of the names of runs in a narrow terminal
COST_LABELS = {"parameters": "parameters", "multiply_adds": "multiply-adds per image", "seconds": "seconds"}
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"  # escape codes of terminals
PUBLISHED_RESULTS = Path(__file__).with_name("published_results.csv")
SPLIT_YEAR = 2016  # the best result up to this year and the best later ones are shown
# value, dataset and remarks of a paper's result in the catalogue, such as 69.9 % mAP VOC 2007
PAPER_RESULT = re.compile(r"([\d.]+) (?:% )?(?:mAP |mIoU |AP |BLEU-4 )?(VOC \d+|[\w-]+)(.*)")


@dataclass(frozen=True)
class PublishedResult:
    """Test accuracy reported by a paper, as in a row of ``published_results.csv``.

    ``extra_data`` names training data beyond the standard ones, or is "none", "not verified" or empty (unknown).
    """

    dataset: str
    year: int
    method: str
    accuracy: float
    extra_data: str
    parameters: int | None
    source: str

    @property
    def uses_extra_data(self) -> bool:
        """Known use of training data beyond the standard ones."""
        return self.extra_data not in ("none", "not verified", "")

    @property
    def footnote(self) -> str:
        """Footnote: the method, its source and the extra training data."""
        extra = f"; extra training data: {self.extra_data}" if self.extra_data else ""
        return f"pub. {self.method}: {self.source}{extra}"


@functools.cache
def load_published_results() -> tuple[PublishedResult, ...]:
    """Load the rows of ``published_results.csv``."""
    with PUBLISHED_RESULTS.open(newline="", encoding="utf-8") as file:
        return tuple(
            PublishedResult(
                row["dataset"],
                int(row["year"]),
                row["method"],
                float(row["accuracy"]),
                row["extra_data"],
                int(row["parameters"]) if row["parameters"] else None,
                row["source"],
            )
            for row in csv.DictReader(file)
        )


@dataclass(frozen=True)
class Run:
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

    @property
    def metric(self) -> str:
        """Main metric: the first that is not a count, an error or a loss; empty before the first evaluation."""
        names = [name for name in self.last_evaluation if name not in report.NON_METRIC_KEYS]
        return next((name for name in names if name not in SECONDARY_METRICS), names[0] if names else "")

    @property
    def split(self) -> str:
        """Split of the result: test, or val without test data."""
        return "test" if self.metric in self.test else "val"

    @property
    def result(self) -> float:
        """Main metric of the saved weights: on the test data, or at the best evaluation, or at the last one."""
        if self.metric in self.test:
            return float(self.test[self.metric])
        values = [float(line[self.metric]) for line in self.evaluations if self.metric in line]
        return (
            min(values, key=functools.partial(_compute_sort_key, self.metric)) if self.has_best_weights else values[-1]
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
    runs: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    published: list[PublishedResult] = field(default_factory=list)
    # results of the recipes' papers on this dataset by another metric or protocol
    claims: list[str] = field(default_factory=list)

    def compute_rank(self, run: Run) -> int:
        """Compute the rank of a run, starting at 1; ties share a rank."""
        return 1 + sum(
            _compute_sort_key(self.metric, other.result) < _compute_sort_key(self.metric, run.result)
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
        board.runs.sort(key=lambda run: (_compute_sort_key(run.metric, run.result), run.seconds or math.inf, run.name))
        _add_published_results(board)
    return [boards[key] for key in sorted(boards)], dict(reasons)


# reading runs


def _read_run(path: Path, folder: Path, reasons: dict[str, list[str]]) -> Run:
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
    return Run(
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
    step, seconds = numbers["step"], numbers.get("seconds", 0)
    if not (numbers.keys() - report.NON_METRIC_KEYS and type(step) is int and step > 0 and 0 <= seconds < math.inf):
        raise ValueError("not an evaluation")
    if any(MAX_NUMBER < abs(value) < math.inf for value in numbers.values()) or not numbers.get("count", 0) < math.inf:
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


# comparison


def _resolve_dataset(data: str) -> str:
    """Return one identifier for all names of a dataset: its known name, or the resolved path."""
    return str(Path(data).resolve()) if data not in BUILT_IN and exists(Path(data)) else data


def is_lower_better(metric: str) -> bool:
    """Return whether lower is better; a distance such as ``frechet_vgg16`` ends with the name of a network."""
    return metric.partition("_")[0] in LOWER_IS_BETTER


def _compute_sort_key(metric: str, value: float) -> float:
    """Compute the sort key of a value: lower is better, and values that are not finite come last."""
    return (value if is_lower_better(metric) else -value) if math.isfinite(value) else math.inf


def _add_published_results(board: Leaderboard) -> None:
    """Add the published results on the board's dataset: the best ones, and those of the papers of the runs' recipes."""
    dataset = _normalize_name(Path(board.data).name.partition(".")[0])
    results = [result for result in load_published_results() if _normalize_name(result.dataset) == dataset]
    board.published += _select_best_results(results) if board.metric == "accuracy" else []
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


def _select_best_results(results: Sequence[PublishedResult]) -> list[PublishedResult]:
    """Select the best result up to ``SPLIT_YEAR``, and the best later ones without and with extra training data."""
    groups: dict[tuple[bool, bool], list[PublishedResult]] = defaultdict(list)
    for result in results:
        is_later = result.year > SPLIT_YEAR
        groups[is_later, is_later and result.uses_extra_data].append(result)
    return [max(group, key=lambda result: result.accuracy) for group in groups.values()]


def _normalize_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# table


def build_rows(board: Leaderboard) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the kind of each row (run, published or unfinished) and its cells, best first, ordered as ``COLUMNS``."""
    entries: list[tuple[float, int, Run | PublishedResult]] = [
        *((_compute_sort_key(board.metric, run.result), 0, run) for run in board.runs),
        *((_compute_sort_key(board.metric, result.accuracy), 1, result) for result in board.published),
    ]
    for _, _, entry in sorted(entries, key=lambda entry: entry[:2]):
        if isinstance(entry, PublishedResult):
            extra, value = "extra data" if entry.uses_extra_data else "", _format_metric(board.metric, entry.accuracy)
            parameters = _format_count(entry.parameters) if entry.parameters else ""
            yield "published", (f"pub. {entry.year}", entry.method, extra, value, "", parameters, *("",) * 5)
        else:
            yield (
                "run",
                (
                    str(board.compute_rank(entry)),
                    *_format_cells(entry, _format_metric(board.metric, entry.result), entry.split),
                ),
            )
    for run in board.unfinished:
        yield "unfinished", (MISSING, *_format_cells(run, "unfinished", ""))


def _format_cells(run: Run, value: str, split: str) -> tuple[str, ...]:
    seconds = MISSING if run.seconds is None else f"{run.seconds:,.0f}" if run.seconds >= 10 else f"{run.seconds:.1f}"
    cost = (_format_count(run.parameters), _format_count(run.multiply_adds), seconds)
    return run.name, run.recipe, value, split, *cost, run.epochs, run.seed, run.device


def format_table(board: Leaderboard, width: int | None = None) -> list[str]:
    """Format the table as lines of text; published results have no rank.

    Args:
        board: the leaderboard.
        width: columns of the terminal, in which headings are bold and published results dim. If the table is wider,
            columns are omitted and the names of runs are wrapped. Default: no terminal.
    """
    headings = {"": board.metric, "parameters": "params", "multiply-adds": "mult-adds"}
    rows = [("heading", tuple(headings.get(name, name) for name in COLUMNS)), *build_rows(board)]
    columns = zip(COLUMNS, zip(*(cells for _, cells in rows), strict=True), strict=True)
    widths = {name: max(map(_measure_width, cells)) for name, cells in columns}
    if width and sum(widths.values()) + 2 * (len(widths) - 1) > width:
        widths = {name: value for name, value in widths.items() if name not in REDUNDANT_COLUMNS}
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - width
        widths["run"] = min(widths["run"], max(MIN_NAME_WIDTH, widths["run"] - excess))
    lines = [("heading", board.title)]
    for kind, cells in rows:
        first, *others = _wrap_text(cells[1], widths["run"])
        shown = dict(zip(COLUMNS, cells, strict=True)) | {"run": first}
        lines.append((kind, "  ".join(_pad_cell(name, shown[name], widths[name]) for name in widths)))
        lines += [(kind, " " * (widths["#"] + 2) + part) for part in others]
    styles = {"heading": BOLD, "published": DIM, "unfinished": DIM} if width else {}
    return [f"{styles[kind]}{line.rstrip()}{PLAIN}" if kind in styles else line.rstrip() for kind, line in lines]


def _pad_cell(column: str, cell: str, width: int) -> str:
    padding = " " * (width - _measure_width(cell))
    return cell + padding if column in TEXT_COLUMNS else padding + cell


def _wrap_text(text: str, width: int) -> list[str]:
    """Split a text into parts of this width at most, at any letter."""
    parts = [""]
    for letter in text:
        if _measure_width(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _measure_width(text: str) -> int:
    """Return the width of a text in a terminal, where East Asian characters take two columns."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def list_commands(board: Leaderboard) -> list[tuple[str, str]]:
    """List the rank (– for unfinished runs) and the command of each run."""
    ranked = [(str(board.compute_rank(run)), run.command) for run in board.runs]
    return ranked + [(MISSING, run.command) for run in board.unfinished]


def _format_metric(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric in PERCENT_METRICS else f"{value:,.4f}" if value < 1000 else f"{value:,.0f}"


def _format_count(count: int | None) -> str:
    """Format a count with three digits: 124 k, 1.24 M."""
    if count is None:
        return MISSING
    scaled, powers = float(count), iter(" kMGT")
    unit = next(powers)
    while scaled >= 999.5 and (larger := next(powers, "")):
        scaled, unit = scaled / 1000, larger
    return f"{scaled:.3g} {unit}".strip()


# page


def write_page(boards: Sequence[Leaderboard], folder: Path, out: Path) -> None:
    """Write the leaderboards as one self-contained HTML page."""
    page = render_page(
        "leaderboard.html", folder=folder.resolve().name, boards=[_build_section(board) for board in boards]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_file.write_file(out, page)


def _build_section(board: Leaderboard) -> dict[str, object]:
    """Build the values of a leaderboard's section of the page."""
    figures = [("Training curves", plot_curves(board)), ("Cost", plot_costs(board))]
    return {
        "title": board.title,
        "columns": [(name or board.metric, kind) for name, kind in zip(COLUMNS, COLUMN_KINDS, strict=True)],
        "rows": [*build_rows(board)],
        "notes": board.notes,
        "figures": [report.encode_figure(title, panels) for title, panels in figures if panels],
        "commands": list_commands(board),
    }


def plot_curves(board: Leaderboard) -> list[tuple[str, Figure]]:
    """Plot the metric at each evaluation over epochs and over seconds, and a legend.

    Without a run of two evaluations there is no curve, and the list is empty.
    """
    if not any(sum(board.metric in line for line in run.evaluations) > 1 for run in board.runs):
        return []
    panels = []
    for x in ("epoch", "seconds"):
        figure = Figure(figsize=report.CURVE_SIZE, layout="constrained")
        draw_curves(figure.add_subplot(), board, x)
        panels.append((f"{board.metric} by {x}", figure))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = Figure(figsize=(report.CURVE_SIZE[0], 0.2 + 0.2 * len(handles)))
    legend.legend(handles, labels, loc="upper left", frameon=False, fontsize=9)
    return [*panels, ("rank and run", legend)]


def draw_curves(axes: Axes, board: Leaderboard, x: str) -> None:
    """Draw the metric at each evaluation of each run over the epoch or the seconds, with labels for a legend."""
    for index, run in enumerate(board.runs):
        lines = [line for line in run.evaluations if board.metric in line]
        axes.plot(
            [line["step"] / run.steps_per_epoch if x == "epoch" else line.get("seconds", math.nan) for line in lines],
            [line[board.metric] for line in lines],
            label=f"{board.compute_rank(run)}  {_shorten_name(run.name)}" if index < NUM_COLORS else None,
            marker="o",
            ms=3,
            lw=1.2,
            **_choose_style(index),
        )
    evaluations = [line for run in board.runs for line in run.evaluations]
    _set_axes(axes, board, [line[board.metric] for line in evaluations if board.metric in line])
    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=x == "epoch"))
    if axes.lines[len(board.runs) :]:
        axes.lines[-1].set_label("published")


def plot_costs(board: Leaderboard) -> list[tuple[str, Figure]]:
    """Plot the final metric by parameters, multiply-adds and seconds; without two known points there is no panel."""
    panels = []
    for name in ("parameters", "multiply_adds", "seconds"):
        published = board.published if name == "parameters" else []
        if sum(bool(getattr(entry, name)) for entry in [*board.runs, *published]) > 1:
            figure = Figure(figsize=report.CURVE_SIZE, layout="constrained")
            _draw_costs(figure.add_subplot(), board, name)
            panels.append((f"{board.metric} by {COST_LABELS[name]}", figure))
    return panels


def _draw_costs(axes: Axes, board: Leaderboard, name: str) -> None:
    """Draw the final metric of each run by a cost; the number of a point is the rank, a cross is published."""
    costs = []
    for index, run in reversed([*enumerate(board.runs)]):
        if cost := getattr(run, name):
            costs.append(cost)
            axes.plot(cost, run.result, "o", **_choose_style(index))
            rank = board.compute_rank(run)
            axes.annotate(
                str(rank),
                (cost, run.result),
                (5, 3) if rank % 2 else (-5, 3),  # neighbors of similar cost and result are apart
                textcoords="offset points",
                ha="left" if rank % 2 else "right",
                fontsize=8,
                clip_on=True,
            )
    for entry in board.published if name == "parameters" else ():
        if entry.parameters:
            costs.append(entry.parameters)
            axes.plot(entry.parameters, entry.accuracy, "x", color=GRAY)
    _set_axes(axes, board, [run.result for run in board.runs], show_all=True)
    axes.set_xscale("log")
    axes.set_xticks([step * 10.0**power for power in range(-2, 13) for step in (1, 3)])
    axes.set_xlim(min(costs) / 3, max(costs) * 3)  # a non-empty range even if all costs are equal
    axes.xaxis.set_major_formatter(lambda cost, _: f"{cost:g}" if cost < 1000 else _format_count(round(cost)))
    axes.minorticks_off()
    axes.set_xlabel(COST_LABELS[name])


def _set_axes(axes: Axes, board: Leaderboard, values: Iterable[float], show_all: bool = False) -> None:
    """Set the limits to all values or to the better half of them; draw published results within them as lines."""
    finite = sorted(value for value in values if math.isfinite(value))
    if finite:
        worst, best = (finite[-1], finite[0]) if is_lower_better(board.metric) else (finite[0], finite[-1])
        span = abs(best - worst) or 0.02 * abs(best) or 1.0
        extent = span if show_all else min(span, 3 * abs(best - finite[len(finite) // 2]) or span)
        offset = extent if is_lower_better(board.metric) else -extent
        low, high = sorted((best + 1.15 * offset, best - 0.15 * offset))
        axes.set_ylim(low, min(high, 1 + 0.03 * (1 - low)) if board.metric in PERCENT_METRICS else high)
        for entry in board.published:
            if axes.get_ylim()[0] < entry.accuracy < axes.get_ylim()[1]:
                axes.axhline(entry.accuracy, color="#777777", lw=1, ls=":")
    if board.metric in PERCENT_METRICS:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.spines[["top", "right"]].set_visible(False)


def _choose_style(index: int) -> dict[str, Any]:
    """Choose the plot style of a run: the best runs have their own color."""
    return {"color": f"C{index}"} if index < NUM_COLORS else {"color": "#cccccc", "zorder": 1}


def _shorten_name(name: str) -> str:
    return name if len(name) <= 28 else f"...{name[-25:]}"
