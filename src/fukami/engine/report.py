"""HTML report of a run: ``report.html``, a self-contained page."""

import io
import json
import shlex
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from PIL.Image import Image

from fukami import atomic_file
from fukami.catalogue import RECIPES
from fukami.engine.html import build_data_url, render_page
from fukami.engine.task import Metrics
from fukami.errors import Error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fukami.engine.task import FigureContent

FRAME_MS, LAST_FRAME_MS = 250, 3000  # duration of each frame of an animation and of the last one, in milliseconds
DPI = 144  # pixels per inch of the images in a figure
CSS_DPI = 96  # CSS pixels per inch
CURVE_SIZE = (3.1, 2.4)  # inches of a figure in a grid
WIDE_CHAR_INCHES = 0.06  # margin for each East Asian character of a text
MAX_IMAGE_SIDE = 640  # pixels of an image in a grid
MIN_CELL_WIDTH, MAX_CELL_WIDTH = 128, 298  # CSS pixels of an image in a grid; three of the largest are in a row
WEBP_QUALITY = 85  # 0 to 100
RESULT_NAMES = {"val": "validation result", "test": "test result"}
# keys of a log line that are no metrics
NON_METRIC_KEYS = {"step", "phase", "split", "seconds", "count", "objects", "pixels"}
COMMANDS = ("eval {run}", "predict {run} IMAGE --out predictions", "serve {run}")  # those that use a run
# the same of tasks whose input is not an image
TASK_COMMANDS = {
    "generation": ("eval {run}", "predict {run} --num-samples 64 --out samples"),
    "reinforcement": ("eval {run}", "play {run} --out episode.gif"),
    "self-play": ("eval {run}", "play {run}", "predict {run} FILE", "serve {run}"),
}


class EncodedImage(NamedTuple):
    """Image of a page as a data URL, with its caption; a chart has no background and follows the color scheme."""

    url: str
    caption: str
    is_chart: bool


class EncodedFigure(NamedTuple):
    """Figure of a page: its title, and one image or a grid of images of this width in CSS pixels."""

    title: str
    images: list[EncodedImage]
    width: int
    is_grid: bool


def write_report(folder: Path, figures: "Sequence[tuple[str, FigureContent]]", result: Metrics, seconds: float) -> Path:
    """Write the report of a run.

    Args:
        folder: the run's folder, whose recipe and log are read.
        figures: titles and content of the task's figures.
        result: metrics of the result and their split; empty if nothing was evaluated.
        seconds: time of the training.
    """
    record = json.loads((folder / "recipe.json").read_bytes())
    lines = _read_log(folder / "metrics.jsonl")
    train_lines = [line for line in lines if line["phase"] == "train"]
    eval_lines = [line for line in lines if line["phase"] == "eval"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    device = f"{record['device']}, {record['precision']}, {record.get('threads', '?')} threads"
    device += f", {record['processes']} process(es)"
    last_line = {
        name: value for line in train_lines[-1:] for name, value in line.items() if name not in ("step", "phase")
    }
    seconds_by_phase = record["time"]["seconds"]
    total = sum(seconds_by_phase.values())
    rate = record["time"]["multiply_adds_per_second"]
    page = render_page(
        "report.html",
        recipe=record["recipe"],
        metrics=format_metrics(result or last_line),
        figures=[encode_figure(title, figure) for title, figure in figures],
        curves=encode_figure("Training curves", plot_curves(train_lines, eval_lines)),
        usage=list_usage_commands(folder, record),
        command=record["command"],
        configuration={**record["fields"], "versions": versions, "device": device},
        seconds=seconds,
        phases=[(phase, value, value / total) for phase, value in seconds_by_phase.items()],
        multiply_adds=_format_large_number(rate) if rate else "",
    )
    return _write_page(folder, page)


def list_usage_commands(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """List the commands that use the run in ``folder``, which ``recipe.json`` describes."""
    name = record["recipe"]
    commands = TASK_COMMANDS.get(RECIPES[name].task, COMMANDS) if name in RECIPES else COMMANDS
    option = f" --recipe {shlex.quote(name)}" if "recipe_sha256" in record else ""
    return [f"fukami {command.format(run=shlex.quote(str(folder)))}{option}" for command in commands]


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
        kinds_by_name: dict[str, bool] = {}
        for line in lines:
            for name, value in line.items():
                if kinds_by_name.setdefault(name, isinstance(value, dict)) != isinstance(value, dict):
                    raise ValueError(f"{name} is a number in one line and an object in another")
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
    figures: "Sequence[tuple[str, FigureContent]]",
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
    figure: "FigureContent",
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
    atomic_file.write_file(path, page)
    return path


def format_metrics(metrics: Metrics) -> str:
    """Format the overall metrics in one line, such as ``test result: accuracy 0.9750 · errors 9``."""
    values = [
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in metrics.items()
        if not isinstance(value, dict) and name != "split"
    ]
    prefix = f"{RESULT_NAMES[str(metrics['split'])]}: " if "split" in metrics else ""
    return prefix + " · ".join(values).replace("_", " ")


def _format_large_number(value: float) -> str:
    """Format a large number in words, such as 1.2 billion."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:,.3g} {name}"
    return f"{value:,.0f}"


def encode_figure(title: str, content: "FigureContent") -> EncodedFigure:
    """Encode a figure, an animation of several images, or a grid of captioned images and figures, with its title."""
    from matplotlib.figure import Figure

    if isinstance(content, Figure):
        return EncodedFigure(title, [_encode_plot(content, title)], _get_width(content), is_grid=False)
    if isinstance(content[0], Image):
        frames = cast("Sequence[Image]", content)
        return EncodedFigure(title, [_encode_animation(frames, title)], _get_width(frames[0]), is_grid=False)
    grid = cast("Sequence[tuple[str, Figure | Image]]", content)
    images = [
        _encode_plot(item, caption) if isinstance(item, Figure) else _encode_image(item, caption)
        for caption, item in grid
    ]
    width = min(max(MIN_CELL_WIDTH, *(_get_width(item) for _, item in grid)), MAX_CELL_WIDTH)
    return EncodedFigure(title, images, width, is_grid=True)


def _get_width(item: "Figure | Image") -> int:
    """Return the width of a figure or an image on the page, in CSS pixels."""
    return min(item.width, MAX_IMAGE_SIDE) if isinstance(item, Image) else round(CSS_DPI * item.get_figwidth())


def _encode_plot(figure: "Figure", caption: str) -> EncodedImage:
    """Encode a figure as SVG with text in the fonts of the browser; with images inside, its background is white."""
    from matplotlib import rc_context

    is_chart = not any(axes.images for axes in figure.axes)
    sanitize_texts(figure)
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fukami"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib's font lacks it, the browser's fonts have it
        figure.savefig(buffer, format="svg", dpi=DPI, transparent=is_chart, metadata={"Date": None})
    return EncodedImage(build_data_url(buffer.getvalue(), "svg+xml"), caption, is_chart)


def _encode_image(image: Image, caption: str) -> EncodedImage:
    copy = image.copy()
    copy.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    return _encode_animation([copy], caption)


def _encode_animation(frames: Sequence[Image], caption: str) -> EncodedImage:
    buffer = io.BytesIO()
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(
        buffer,
        "webp",
        save_all=True,
        append_images=frames[1:],
        duration=times,
        loop=0,
        quality=WEBP_QUALITY,
        method=6,
    )
    return EncodedImage(build_data_url(buffer.getvalue(), "webp"), caption, is_chart=False)


def sanitize_texts(figure: "Figure") -> None:
    """Draw dollar signs in the text of a figure literally, and control characters, which SVG excludes, as �.

    Names of classes, metrics and runs may contain them. The tick labels of logarithmic axes, in which matplotlib uses
    mathtext itself, are unchanged. The margins grow by the East Asian characters, whose width matplotlib's font lacks.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    tick_labels = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for label in axis.get_ticklabels(which="both")
    }
    num_wide = 0
    for text in figure.findobj(Text):
        if id(text) not in tick_labels:
            content = text.get_text()
            text.set_parse_math(False)
            text.set_text("".join(char if char.isprintable() or char == "\n" else "�" for char in content))
            num_wide = max(num_wide, sum(unicodedata.east_asian_width(char) in "WF" for char in content))
    if num_wide and isinstance(layout := figure.get_layout_engine(), ConstrainedLayoutEngine):
        layout.set(w_pad=WIDE_CHAR_INCHES * num_wide, h_pad=WIDE_CHAR_INCHES * num_wide)


def plot_curves(train_lines: Sequence[Metrics], eval_lines: Sequence[Metrics]) -> "list[tuple[str, Figure]]":
    """Plot each metric of training and evaluation over the steps, and the learning rate, as figures with captions."""
    from matplotlib.figure import Figure

    curves = []
    for name in list_curves(train_lines, eval_lines):
        figure = Figure(figsize=CURVE_SIZE, layout="constrained")
        draw_curve(figure.add_subplot(), name, train_lines, eval_lines)
        curves.append(("learning rate" if name == "lr" else name.replace("_", " "), figure))
    return curves


def list_curves(train_lines: Sequence[Metrics], eval_lines: Sequence[Metrics]) -> list[str]:
    """List the metrics of the training curves, and the learning rate."""
    # metrics that have another figure or repeat another metric
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
    }
    numbers = (
        key for line in [*train_lines, *eval_lines] for key, value in line.items() if isinstance(value, int | float)
    )
    return [*(name for name in dict.fromkeys(numbers) if name not in unplotted), "lr"]


def draw_curve(axes: "Axes", name: str, train_lines: Sequence[Metrics], eval_lines: Sequence[Metrics]) -> None:
    """Draw a metric of training and evaluation over the steps."""
    for label, lines, style in (
        ("training", train_lines, {"lw": 1}),
        ("evaluation", eval_lines, {"marker": "o", "ms": 3}),
    ):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set_xlabel("step")
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
    if name == "loss":
        axes.set_yscale("log")
    if name == "accuracy":
        axes.set_ylim(*_compute_accuracy_limits([line[name] for line in [*train_lines, *eval_lines] if name in line]))
    if name != "lr":
        axes.legend(frameon=False, fontsize=8)


def _compute_accuracy_limits(values: Sequence[float]) -> tuple[float, float]:
    """Compute the limits of an accuracy axis: up to 1, from three times the distance of the median below 1."""
    median = sorted(values)[len(values) // 2]
    return max(0.0, 1 - 3 * max(1 - median, 0.001)), 1.0
