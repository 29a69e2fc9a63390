"""Leaderboards as an HTML page, with training curves and costs."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fukami import atomic_file
from fukami.engine import report
from fukami.engine.html import render_page
from fukami.image.charts import GRAY
from fukami.leaderboard.runs import Leaderboard, is_lower_better
from fukami.leaderboard.table import COLUMNS, PERCENT_METRICS, abbreviate_count, build_rows, list_commands

NUM_COLORS = 10  # runs with their own color and legend entry in the figures; the others are gray
COLUMN_KINDS = ("number", "name", "name", "number", "", *["number"] * 5, "")  # CSS classes of the columns on the page
COST_LABELS = {"parameters": "parameters", "multiply_adds": "multiply-adds per image", "seconds": "seconds"}


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
    axes.xaxis.set_major_formatter(lambda cost, _: f"{cost:g}" if cost < 1000 else abbreviate_count(round(cost)))
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
