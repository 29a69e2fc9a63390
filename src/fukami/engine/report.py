"""HTML report of a run: ``report.html``, a self-contained page."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL.Image import Image

from fukami.engine import checkpoint
from fukami.engine.html import build_data_url, render_page
from fukami.engine.task import Metrics
from fukami.errors import Error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES_PER_ROW = 3
FRAME_MS, LAST_FRAME_MS = 250, 3000  # duration of each frame of an animation and of the last one, in milliseconds
DPI = 110
MIN_WIDE_WIDTH = 9  # inches from which a figure scrolls on a narrow screen, where its text would be too small
WEBP_QUALITY = 85  # 0 to 100
NON_METRIC_KEYS = {
    "step",
    "phase",
    "split",
    "seconds",
    "count",
    "objects",
    "pixels",
}  # keys of a log line that are no metrics


class EncodedFigure(NamedTuple):
    """Figure or animation of a page: its title, its image as a data URL, and whether it scrolls on a narrow screen."""

    title: str
    url: str
    is_wide: bool


def write_report(
    folder: Path, figures: "Sequence[tuple[str, Figure | Sequence[Image]]]", metrics: Metrics, seconds: float
) -> Path:
    """Write the report of the run in ``folder`` from its files, the task's figures and the metrics of the result."""
    record = json.loads((folder / "recipe.json").read_bytes())
    lines = _read_log(folder / "metrics.jsonl")
    train_lines = [line for line in lines if line["phase"] == "train"]
    eval_lines = [line for line in lines if line["phase"] == "eval"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    device = (
        f"{record['device']}, {record['precision']}, {record['threads']} threads, {record['processes']} process(es)"
    )
    configuration = {**record["fields"], "versions": versions, "device": device, "time": f"{seconds:,.0f} s"}
    last_line = {name: value for name, value in train_lines[-1].items() if name not in ("step", "phase")}
    seconds_by_phase = record["time"]["seconds"]
    total = sum(seconds_by_phase.values())
    rate = record["time"]["multiply_adds_per_second"]
    page = render_page(
        "report.html",
        recipe=record["recipe"],
        metrics=format_metrics(metrics or last_line),
        command=record["command"],
        curves=encode_figure("Training curves", plot_curves(train_lines, eval_lines)),
        phases=[(phase, value, value / total) for phase, value in seconds_by_phase.items()],
        multiply_adds=_format_large_number(rate) if rate else "",
        figures=[encode_figure(title, figure) for title, figure in figures],
        configuration=configuration,
    )
    return _write_page(folder, page)


def _read_log(path: Path) -> list[Metrics]:
    """Read the lines of ``metrics.jsonl``, at least one.

    Raises:
        Error: the file is empty, or has an invalid line.
    """
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        for line in lines:
            kinds = (int, float, dict)
            if line["phase"] not in ("train", "eval", "test") or type(line["step"]) is not int:
                raise ValueError("a line has no valid phase or step")
            if not all(isinstance(value, kinds) for name, value in line.items() if name not in ("phase", "split")):
                raise ValueError("a line has a value that is not a number")
        if not lines:
            raise ValueError("it is empty")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Error(
            f"{path} is corrupted ({type(error).__name__}: {error}), so the report cannot be written; the weights of "
            "the run are complete"
        ) from error
    return lines


def write_evaluation_report(
    folder: Path,
    result: Metrics,
    configuration: Mapping[str, object],
    figures: "Sequence[tuple[str, Figure | Sequence[Image]]]",
    command: str,
) -> Path:
    """Write the report of an evaluation, such as of an ensemble, into ``folder``, and return its path."""
    page = render_page(
        "evaluation.html",
        metrics=format_metrics(result),
        command=command,
        figures=[encode_figure(title, figure) for title, figure in figures],
        configuration=configuration,
    )
    return _write_page(folder, page)


def write_precision_report(
    folder: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    figure: "Figure",
    skipped: Mapping[str, str],
    configuration: Mapping[str, object],
    command: str,
) -> Path:
    """Write the report that compares a run at every precision into ``folder``, and return its path."""
    kinds = ("name", *["number"] * (len(columns) - 2), "")
    page = render_page(
        "precision.html",
        command=command,
        columns=list(zip(columns, kinds, strict=True)),
        rows=[("", row) for row in rows],
        figure=encode_figure("Comparison", figure),
        skipped=skipped,
        configuration=configuration,
    )
    return _write_page(folder, page)


def _write_page(folder: Path, page: bytes) -> Path:
    """Write ``report.html`` into the folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    checkpoint.write_file(path, page)
    return path


def format_metrics(metrics: Metrics) -> str:
    """Format the overall metrics of an evaluation in one line."""
    return " · ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in metrics.items()
        if not isinstance(value, dict)
    ).replace("_", " ")


def _format_large_number(value: float) -> str:
    """Format a large number in words, such as 1.2 billion."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:,.3g} {name}"
    return f"{value:,.0f}"


def encode_figure(title: str, figure: "Figure | Sequence[Image]") -> EncodedFigure:
    """Encode a figure, or an animation of several images, with its title."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    if isinstance(figure, Figure):
        disable_mathtext(figure)
        figure.savefig(buffer, format="png", dpi=DPI)
        is_wide = figure.get_figwidth() >= MIN_WIDE_WIDTH
        return EncodedFigure(title, build_data_url(buffer.getvalue(), "png"), is_wide)
    times = [FRAME_MS] * (len(figure) - 1) + [LAST_FRAME_MS]
    figure[0].save(
        buffer,
        "webp",
        save_all=True,
        append_images=figure[1:],
        duration=times,
        loop=0,
        quality=WEBP_QUALITY,
        method=6,
    )
    return EncodedFigure(title, build_data_url(buffer.getvalue(), "webp"), is_wide=False)


def disable_mathtext(figure: "Figure") -> None:
    """Draw dollar signs in the text of a figure literally, since names of classes, metrics and runs may contain them.

    The tick labels of logarithmic axes, in which matplotlib uses mathtext itself, are unchanged.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    tick_labels = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for label in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if id(text) not in tick_labels:
            text.set_parse_math(False)


def plot_curves(train_lines: Sequence[Metrics], eval_lines: Sequence[Metrics]) -> "Figure":
    """Plot every metric of training and evaluation over the steps, and the learning rate."""
    from matplotlib.figure import Figure

    unplotted = NON_METRIC_KEYS | {
        "images_per_second",
        "lr",
        "errors",
        "members",
        "member_accuracy",
        "best_member",
        "gain",
        "disagreement",
        "map_11",
        "coco_ap50",
    }  # metrics that have another figure or repeat another metric
    numbers = (
        key for line in [*train_lines, *eval_lines] for key, value in line.items() if isinstance(value, int | float)
    )
    names = [*(name for name in dict.fromkeys(numbers) if name not in unplotted), "lr"]
    columns = min(len(names), CURVES_PER_ROW)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flat
    for axes in all_axes[len(names) :]:
        axes.axis("off")
    for axes, name in zip(all_axes, names, strict=False):
        for label, lines, style in (
            ("training", train_lines, {"lw": 1}),
            ("evaluation", eval_lines, {"marker": "o", "ms": 3}),
        ):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        axes.set_title({"lr": "learning rate"}.get(name, name), fontsize=10)
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
        if name == "loss":
            axes.set_yscale("log")
        if name == "accuracy":
            axes.set_ylim(
                *_compute_accuracy_limits([line[name] for line in [*train_lines, *eval_lines] if name in line])
            )
        if name != "lr":
            axes.legend(frameon=False, fontsize=8)
    return figure


def _compute_accuracy_limits(values: Sequence[float]) -> tuple[float, float]:
    """Compute the limits of an accuracy axis: up to 1, from three times the distance of the median below 1."""
    median = sorted(values)[len(values) // 2]
    return max(0.0, 1 - 3 * max(1 - median, 0.001)), 1.0
