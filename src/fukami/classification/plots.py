"""Figures of the evaluation of a classifier."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from fukami.classification.precision_comparison import PrecisionResult

MAX_ANNOTATED_CLASSES = 20  # maximum number of classes for which cells and bars are annotated


def plot_confusion_matrix(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """Plot a confusion matrix; the color of the errors is their fraction of the row."""
    counts = matrix.numpy()
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, fractions)
    side = 2.5 + 0.42 * min(len(labels), 30)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    axes.imshow(mistakes, cmap="Reds", vmax=max(float(mistakes.max()), 1e-9))
    if len(labels) <= MAX_ANNOTATED_CLASSES:
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=0 if max(map(len, labels)) < 4 else 60)
        axes.set_yticks(ticks, labels)
        for row, column in np.argwhere(counts):
            is_dark = mistakes[row, column] > 0.6 * mistakes.max() > 0
            axes.text(
                column, row, counts[row, column], ha="center", va="center", fontsize=8, color="w" if is_dark else "k"
            )
    return figure


def plot_class_accuracy(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """Plot the accuracy of each class; the axis starts just below the lowest."""
    counts = matrix.numpy()
    accuracies = np.diag(counts) / np.maximum(counts.sum(1), 1)
    figure = Figure(figsize=(max(4.0, min(0.5 * len(labels), 14)), 3), layout="constrained")
    axes = figure.add_subplot(ylabel="accuracy, %")
    bars = axes.bar(range(len(labels)), 100 * accuracies, color="#4878a8")
    low = 100 * accuracies.min()
    axes.set_ylim(max(0.0, low - max(0.3, (100 - low) * 0.5)), 100)
    if len(labels) <= MAX_ANNOTATED_CLASSES:
        axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 60)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_images(images: Tensor, captions: Sequence[str]) -> Figure:
    """Plot images ``(N, C, H, W)`` in 0..255 with their captions."""
    columns = 5
    rows = -(-len(captions) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.9 * rows), layout="constrained")
    for position, (image, caption) in enumerate(zip(images.numpy(), captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(image.transpose(1, 2, 0).astype(np.uint8).squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=9)
        axes.axis("off")
    return figure


def plot_member_accuracies(accuracies: Tensor, ensemble_accuracy: float, disagreement: Tensor) -> Figure:
    """Plot the accuracies of the members ``(M,)`` and of the ensemble, and the pairwise disagreements ``(M, M)``."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    names = [str(member) for member in range(1, len(accuracies) + 1)]
    heights = [100 * value for value in accuracies.tolist()]
    bars = left.bar(
        [*names, "ensemble"], [*heights, 100 * ensemble_accuracy], color=[*["#b9cbe0"] * len(names), "#4878a8"]
    )
    low, high = min(*heights, 100 * ensemble_accuracy), max(*heights, 100 * ensemble_accuracy)
    left.set_ylim(max(0.0, low - max(0.05, high - low)), min(100.0, high + max(0.05, (high - low) / 2)))
    left.bar_label(bars, fmt="%.2f", fontsize=8)
    left.set_ylabel("accuracy, %")
    left.spines[["top", "right"]].set_visible(False)
    values = 100 * disagreement.numpy()
    right.imshow(values, cmap="Purples", vmin=0)
    right.set_xticks(range(len(names)), names)
    right.set_yticks(range(len(names)), names)
    right.set_title("disagreement, %", fontsize=10)
    if len(names) <= MAX_ANNOTATED_CLASSES // 2:
        for row, column in np.ndindex(values.shape):
            is_dark = values[row, column] > 0.6 * values.max()
            right.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8,
                       color="w" if is_dark else "k")  # fmt: skip
    return figure


def plot_precisions(results: "Sequence[PrecisionResult]") -> Figure:
    """Plot the results of :func:`fukami.classification.precision_comparison.compare_precisions` as bars."""
    panels = (
        ("errors, %", [100 * (1 - result.metrics["accuracy"]) for result in results]),
        ("disagreement with float32, %", [100 * (1 - result.agreement) for result in results]),
        ("file, kB", [result.bytes / 1e3 for result in results]),
        ("memory, batch size 256, MB", [result.loaded.memory_256 / 1e6 for result in results]),
        ("latency, one image, ms", [1e3 * result.latency for result in results]),
        ("images / s, batch size 256", [result.throughput for result in results]),
    )
    figure = Figure(figsize=(2.2 * len(panels) + 0.8, 0.9 + 0.34 * len(results)), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        bars = axes.barh([result.precision for result in results], values, color="#4878a8")
        axes.bar_label(
            bars, [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=3, fontsize=8
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, 1.4 * max(*values, 1e-9))
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.invert_yaxis()
    return figure
