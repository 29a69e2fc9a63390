"""Figures that the judgement of a classifier is shown in."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

NUMBERED = 20  # up to this many classes the cells carry their counts


def confusion(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """True class by row, predicted class by column; colour is the share of the row, the diagonal left pale."""
    counts = matrix.numpy()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, share)
    side = 2.5 + 0.42 * min(len(labels), 30)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    axes.imshow(mistakes, cmap="Reds", vmax=max(float(mistakes.max()), 1e-9))
    if len(labels) <= NUMBERED:
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=0 if max(map(len, labels)) < 4 else 60)
        axes.set_yticks(ticks, labels)
        for row, column in np.argwhere(counts):
            heavy = mistakes[row, column] > 0.6 * mistakes.max() > 0
            axes.text(
                column, row, counts[row, column], ha="center", va="center", fontsize=8, color="w" if heavy else "k"
            )
    return figure


def per_class(matrix: Tensor, labels: Sequence[str]) -> Figure:
    """The share of each class that was recognised; the axis begins just below the worst."""
    counts = matrix.numpy()
    share = np.diag(counts) / np.maximum(counts.sum(1), 1)
    figure = Figure(figsize=(max(4.0, min(0.5 * len(labels), 14)), 3), layout="constrained")
    axes = figure.add_subplot(ylabel="accuracy, %")
    bars = axes.bar(range(len(labels)), 100 * share, color="#4878a8")
    low = 100 * share.min()
    axes.set_ylim(max(0.0, low - max(0.3, (100 - low) * 0.5)), 100)
    if len(labels) <= NUMBERED:
        axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 60)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def gallery(pictures: Tensor, captions: Sequence[str]) -> Figure:
    """Pictures ``(N, C, H, W)`` in 0..255 with a caption each."""
    columns = 5
    rows = -(-len(captions) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.9 * rows), layout="constrained")
    for place, (picture, caption) in enumerate(zip(pictures.numpy(), captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(picture.transpose(1, 2, 0).astype(np.uint8).squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=9)
        axes.axis("off")
    return figure
