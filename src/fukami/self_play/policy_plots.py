"""Figures of the evaluation of a policy network."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from fukami.self_play.policy_task import PolicyResults

BIN_SIZE = 20  # moves
MIN_POSITIONS = 50  # positions in a bin that is drawn
NAMES = {"games": "ordinary games", "test_players": "games of the test players"}


def plot_metrics(results: "PolicyResults") -> Figure:
    """Plot the top-1 accuracy and the error of the value by the number of the move."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    accuracy_axes, value_axes = figure.subplots(1, 2)
    for index, (name, part) in enumerate(results.separate().items()):
        bins = (part.numbers - 1) // BIN_SIZE
        chosen = [number for number in np.unique(bins) if (bins == number).sum() >= MIN_POSITIONS] or [*np.unique(bins)]
        centers = [BIN_SIZE * (number + 0.5) for number in chosen]
        parts = [part.select(bins == number).compute_part() for number in chosen]
        color = f"C{index}"
        accuracy_axes.plot(centers, [100 * metrics["top1"] for metrics in parts], color=color, label=NAMES[name])
        for metric, style in (("value_mse", "-"), ("constant_mse", ":")):
            errors = [metrics.get(metric, np.nan) for metrics in parts]
            label = {"value_mse": NAMES[name], "constant_mse": "best constant"}[metric]
            value_axes.plot(centers, errors, style, color=color, label=label)
    for axes, label in ((accuracy_axes, "top-1 accuracy in %"), (value_axes, "mean squared error of the value")):
        axes.set_ylabel(label, fontsize=8)
        axes.set_xlabel("move", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7)
    return figure
