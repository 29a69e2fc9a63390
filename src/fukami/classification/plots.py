"""Figures that the judgement of a classifier is shown in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

MAX_ANNOTATED_CLASSES = 20  # up to this many classes the cells carry their counts


def plot_confusion_matrix(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """True class by row, predicted class by column; colour is the share of the row, the diagonal left pale."""
    counts = matrix.numpy()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, share)
    side = 2.5 + 0.42 * min(len(labels), 30)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    axes.imshow(mistakes, cmap="Reds", vmax=max(float(mistakes.max()), 1e-9))
    if len(labels) <= MAX_ANNOTATED_CLASSES:
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=0 if max(map(len, labels)) < 4 else 60)
        axes.set_yticks(ticks, labels)
        for row, column in np.argwhere(counts):
            heavy = mistakes[row, column] > 0.6 * mistakes.max() > 0
            axes.text(
                column, row, counts[row, column], ha="center", va="center", fontsize=8, color="w" if heavy else "k"
            )
    return figure


def plot_class_accuracy(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """The share of each class that was recognised; the axis begins just below the worst."""
    counts = matrix.numpy()
    share = np.diag(counts) / np.maximum(counts.sum(1), 1)
    figure = Figure(figsize=(max(4.0, min(0.5 * len(labels), 14)), 3), layout="constrained")
    axes = figure.add_subplot(ylabel="accuracy, %")
    bars = axes.bar(range(len(labels)), 100 * share, color="#4878a8")
    low = 100 * share.min()
    axes.set_ylim(max(0.0, low - max(0.3, (100 - low) * 0.5)), 100)
    if len(labels) <= MAX_ANNOTATED_CLASSES:
        axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 60)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_images(images: Tensor, captions: Sequence[str]) -> Figure:
    """Images ``(N, C, H, W)`` in 0..255 with a caption each."""
    columns = 5
    rows = -(-len(captions) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.9 * rows), layout="constrained")
    for place, (image, caption) in enumerate(zip(images.numpy(), captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image.transpose(1, 2, 0).astype(np.uint8).squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=9)
        axes.axis("off")
    return figure


def plot_member_accuracies(accuracies: Tensor, ensemble_accuracy: float, disagreement: Tensor) -> Figure:
    """The accuracy of each member ``(M,)`` and of all together, and the share ``(M, M)`` on which two differ."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    names = [str(number) for number in range(1, len(accuracies) + 1)]
    heights = [100 * value for value in accuracies.tolist()]
    bars = left.bar(
        [*names, "together"], [*heights, 100 * ensemble_accuracy], color=[*["#b9cbe0"] * len(names), "#4878a8"]
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
    right.set_title("differ on, %", fontsize=10)
    if len(names) <= MAX_ANNOTATED_CLASSES // 2:
        for row, column in np.ndindex(values.shape):
            dark = values[row, column] > 0.6 * values.max()
            right.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8,
                       color="w" if dark else "k")  # fmt: skip
    return figure


def plot_precisions(results: Sequence[Mapping[str, Any]]) -> Figure:
    """The steps of ``precision_ladder.climb``: a bar for each in errors, size, memory, latency and throughput."""
    panels = (
        ("errors, %", [100 * (1 - step["accuracy"]) for step in results]),
        ("answers unlike float32's, %", [100 * (1 - step["agreement"]) for step in results]),
        ("file, kB", [step["bytes"] / 1e3 for step in results]),
        ("memory for 256 images, MB", [step["memory_256"] / 1e6 for step in results]),
        ("one image, ms", [1e3 * step["latency"] for step in results]),
        ("images / s, 256 at once", [step["throughput"] for step in results]),
    )
    figure = Figure(figsize=(2.2 * len(panels) + 0.8, 0.9 + 0.34 * len(results)), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        bars = axes.barh([step["precision"] for step in results], values, color="#4878a8")
        axes.bar_label(
            bars, [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=3, fontsize=8
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, 1.4 * max(*values, 1e-9))
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.invert_yaxis()
    return figure
