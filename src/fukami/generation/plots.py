"""Figures of what a generator made."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

IMAGE_INCHES = 0.9  # inches of an image


def plot_latent_arithmetic(columns: Sequence[tuple[int, Tensor, Tensor]], neighbors: Tensor) -> Figure:
    """Terms of a sum, each a column of samples with what their mean looks like below; and nine images at the sum.

    Args:
        columns: the sign, the samples ``(n, C, H, W)`` and the image of the mean ``(C, H, W)`` of each term.
        neighbors: ``(9, C, H, W)``, that of the sum itself in the middle.
    """
    most = max(len(samples) for _, samples, _ in columns)
    rows, across = max(most + 1, 3), len(columns) + 4
    figure = Figure(figsize=(IMAGE_INCHES * 1.25 * across, IMAGE_INCHES * 1.15 * rows + 0.2), layout="constrained")
    every = figure.subplots(rows, across, squeeze=False)
    for axes in every.flat:
        axes.axis("off")
    for number, (sign, samples, mean) in enumerate(columns):
        for row, image in enumerate(samples):
            _show_image(every[rows - 1 - len(samples) + row, number], image)
        _show_image(every[rows - 1, number], mean)
        mark = "−" if sign < 0 else "+" if number else ""
        every[rows - 1, number].text(-0.2, 0.5, mark, transform=every[rows - 1, number].transAxes, fontsize=16,
                                     ha="center", va="center")  # fmt: skip
    every[rows - 1, len(columns)].text(0.5, 0.5, "=", fontsize=20, ha="center", va="center")
    for number, image in enumerate(neighbors):
        axes = every[rows - 3 + number // 3, len(columns) + 1 + number % 3]
        _show_image(axes, image)
        if number == 4:
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color="#d1495b", linewidth=2.5)
    return figure


def plot_nearest_images(rows: Sequence[Tensor]) -> Figure:
    """Each made image, and beside it the nearest real ones, from ``(1 + n, C, H, W)`` for each row."""
    across = len(rows[0])
    figure = Figure(figsize=(IMAGE_INCHES * across, IMAGE_INCHES * len(rows) + 0.3), layout="constrained")
    every = figure.subplots(len(rows), across, squeeze=False)
    for line, images in zip(every, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.axis("off")
            _show_image(axes, image)
    every[0, 0].set_title("made", fontsize=9)
    every[0, 1].set_title("nearest real", fontsize=9)
    return figure


def _show_image(axes: Axes, image: Tensor) -> None:
    """An image ``(C, H, W)`` uint8."""
    axes.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
