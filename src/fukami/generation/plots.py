"""Figures of generated images."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

IMAGE_INCHES = 0.9  # side of an image in inches


def plot_latent_arithmetic(columns: Sequence[tuple[int, Tensor, Tensor]], neighbors: Tensor) -> Figure:
    """Plot latent-space arithmetic: a column per term, and the images at and around the result.

    Args:
        columns: for each term the sign, the samples ``(n, C, H, W)`` and the image of their mean ``(C, H, W)``.
        neighbors: images ``(9, C, H, W)`` of the result, in the middle, and of latent vectors near it.
    """
    max_samples = max(len(samples) for _, samples, _ in columns)
    rows, num_columns = max(max_samples + 1, 3), len(columns) + 4
    figure = Figure(figsize=(IMAGE_INCHES * 1.25 * num_columns, IMAGE_INCHES * 1.15 * rows + 0.2), layout="constrained")
    grid = figure.subplots(rows, num_columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for column, (sign, samples, mean) in enumerate(columns):
        for row, image in enumerate(samples):
            _show_image(grid[rows - 1 - len(samples) + row, column], image)
        _show_image(grid[rows - 1, column], mean)
        mark = "−" if sign < 0 else "+" if column else ""
        grid[rows - 1, column].text(-0.2, 0.5, mark, transform=grid[rows - 1, column].transAxes, fontsize=16,
                                     ha="center", va="center")  # fmt: skip
    grid[rows - 1, len(columns)].text(0.5, 0.5, "=", fontsize=20, ha="center", va="center")
    for index, image in enumerate(neighbors):
        axes = grid[rows - 3 + index // 3, len(columns) + 1 + index % 3]
        _show_image(axes, image)
        if index == 4:
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color="#d1495b", linewidth=2.5)
    return figure


def plot_nearest_images(rows: Sequence[Tensor]) -> Figure:
    """Plot each generated image next to its nearest real images; each row is ``(1 + n, C, H, W)``."""
    num_columns = len(rows[0])
    figure = Figure(figsize=(IMAGE_INCHES * num_columns, IMAGE_INCHES * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), num_columns, squeeze=False)
    for axes_row, images in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.axis("off")
            _show_image(axes, image)
    grid[0, 0].set_title("generated", fontsize=9)
    grid[0, 1].set_title("nearest real", fontsize=9)
    return figure


def _show_image(axes: Axes, image: Tensor) -> None:
    """Draw an image ``(C, H, W)`` uint8."""
    axes.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
