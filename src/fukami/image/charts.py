"""Colors and bars that the charts of several families share."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

BLUE, PALE, RED = "#4878a8", "#c3d3e6", "#c0392b"
GRAY, GRID = "#888888", "#dddddd"
MAX_LABEL_LENGTH = 20  # characters of a class name


def shorten_label(label: str) -> str:
    """Shorten a class name for an axis."""
    return label if len(label) <= MAX_LABEL_LENGTH else f"{label[: MAX_LABEL_LENGTH - 2]}..."


def plot_class_bars(
    names: Sequence[str], bars: Mapping[str, Sequence[float]], numbers: Sequence[float], xlabel: str
) -> Figure:
    """Plot two overlapping bars for each class.

    Args:
        names: names of the classes, from the top.
        bars: values of the pale and of the dark bars, 0 to 1, by their label in the legend.
        numbers: values, 0 to 1, that are written beside the bars in percent.
        xlabel: label of the axis in percent.
    """
    figure = Figure(figsize=(8, 1.1 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel)
    for color, (label, values) in zip((PALE, BLUE), bars.items(), strict=True):
        axes.barh(range(len(names)), [100 * value for value in values], color=color, label=label)
    for row, (ends, number) in enumerate(zip(zip(*bars.values(), strict=True), numbers, strict=True)):
        axes.text(100 * max(ends) + 0.8, row, f"{100 * number:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlim(0, 106)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure
