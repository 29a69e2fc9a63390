"""Figures of the evaluation of a classifier."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fukami.image.channels import ArrayImage
from fukami.image.charts import BLUE, GRAY, GRID, shorten_label

if TYPE_CHECKING:
    from fukami.classification.precision_comparison import PrecisionResult

MAX_ANNOTATED_CLASSES = 20  # maximum number of classes for which cells and bars are annotated


def plot_confusion_matrix(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """Plot a confusion matrix; the color of the errors is their fraction of the row."""
    counts = matrix.numpy()
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, fractions)
    names = [shorten_label(label) for label in labels]
    side = 1.6 + 0.09 * max(map(len, names)) + 0.42 * min(len(labels), 30)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    axes.imshow(mistakes, cmap="Reds", vmax=max(float(mistakes.max()), 1e-9))
    if len(labels) <= MAX_ANNOTATED_CLASSES:
        axes.set_xticks(range(len(labels)), names, rotation=0 if max(map(len, names)) < 4 else 90)
        axes.set_yticks(range(len(labels)), names)
        for row, column in np.argwhere(counts):
            is_dark = mistakes[row, column] > 0.6 * mistakes.max() > 0
            axes.text(
                column, row, counts[row, column], ha="center", va="center", fontsize=8, color="w" if is_dark else "k"
            )
    return figure


def plot_class_accuracy(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """Plot the accuracy of each class, or of the ``MAX_ANNOTATED_CLASSES`` classes with the lowest.

    Classes without images have none. The axis starts below the lowest: points and no bars, whose lengths would not be
    in proportion.
    """
    counts = matrix.numpy()
    (occurring,) = counts.sum(1).nonzero()
    counts, labels = counts[occurring], [labels[index] for index in occurring]
    accuracies = 100 * counts[np.arange(len(counts)), occurring] / counts.sum(1)
    shown = sorted(np.argsort(accuracies, kind="stable")[:MAX_ANNOTATED_CLASSES].tolist())
    figure = Figure(figsize=(5, 0.8 + 0.25 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(accuracies[shown], range(len(shown)), "o", color=BLUE, clip_on=False)
    for row, accuracy in enumerate(accuracies[shown]):
        axes.annotate(f"{accuracy:.1f}", (accuracy, row), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.grid(axis="y", color=GRID)
    axes.set_yticks(range(len(shown)), [shorten_label(labels[index]) for index in shown], fontsize=9)
    low = accuracies.min()
    axes.set_xlim(max(0.0, low - max(0.3, (100 - low) * 0.5)), 100)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    lowest = f" of the {len(shown)} of {len(labels):,} classes with the lowest" if len(shown) < len(labels) else ""
    axes.set_xlabel(f"accuracy{lowest}, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def convert_images(images: Tensor) -> list[Image.Image]:
    """Convert images ``(N, C, H, W)`` in 0..255; of more than three channels, the first three."""
    return [ArrayImage(image.transpose(1, 2, 0)).build_preview() for image in images.numpy()]


def plot_member_accuracies(
    accuracies: Tensor, ensemble_accuracy: float, disagreement: Tensor
) -> list[tuple[str, Figure]]:
    """Plot the accuracies of the members ``(M,)`` and of the ensemble, and the pairwise disagreements ``(M, M)``.

    The axis of the accuracies does not start at zero, so that their differences are visible: points and no bars.
    """
    names = [str(member) for member in range(1, len(accuracies) + 1)]
    heights = [100 * value for value in accuracies.tolist()]
    left_figure = Figure(figsize=(5, 3.2), layout="constrained")
    left = left_figure.add_subplot()
    left.plot(names, heights, "o", color=GRAY)
    left.plot(["ensemble"], [100 * ensemble_accuracy], "o", color=BLUE)
    for position, height in enumerate((*heights, 100 * ensemble_accuracy)):
        left.annotate(f"{height:.2f}", (position, height), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    low, high = min(*heights, 100 * ensemble_accuracy), max(*heights, 100 * ensemble_accuracy)
    left.set_ylim(max(0.0, low - max(0.05, high - low)), high + max(0.05, (high - low) / 2))
    left.margins(x=0.1)
    left.grid(axis="x", color=GRID)
    left.spines[["top", "right"]].set_visible(False)
    right_figure = Figure(figsize=(3.2, 3.2), layout="constrained")
    right = right_figure.add_subplot()
    values = 100 * disagreement.numpy()
    right.imshow(values, cmap="Purples", vmin=0)
    right.set_xticks(range(len(names)), names)
    right.set_yticks(range(len(names)), names)
    if len(names) <= MAX_ANNOTATED_CLASSES // 2:
        for row, column in np.ndindex(values.shape):
            is_dark = values[row, column] > 0.6 * values.max()
            right.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8,
                       color="w" if is_dark else "k")  # fmt: skip
    return [("accuracy, %", left_figure), ("disagreement of two members, %", right_figure)]


def plot_precisions(results: "Sequence[PrecisionResult]") -> list[tuple[str, Figure]]:
    """Plot the results of :func:`fukami.classification.precision_comparison.compare_precisions` as bars."""
    panels = (
        ("errors, %", [100 * (1 - result.metrics["accuracy"]) for result in results]),
        ("disagreement with float32, %", [100 * (1 - result.agreement) for result in results]),
        ("file, kB", [result.bytes / 1e3 for result in results]),
        ("memory, batch size 256, MB", [result.loaded.memory_256 / 1e6 for result in results]),
        ("latency, one image, ms", [1e3 * result.latency for result in results]),
        ("images / s, batch size 256", [result.throughput for result in results]),
    )
    charts: list[tuple[str, Figure]] = []
    for title, values in panels:
        figure = Figure(figsize=(3, 0.4 + 0.28 * len(results)), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh([result.precision for result in results], values, color=BLUE)
        axes.bar_label(
            bars, [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=3, fontsize=8
        )
        axes.set_xlim(0, 1.4 * max(*values, 1e-9))
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.invert_yaxis()
        charts.append((title, figure))
    return charts
