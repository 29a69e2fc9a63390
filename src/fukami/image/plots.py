"""Figures of rows and grids of images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from fukami.image.channels import ArrayImage


def plot_variants(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Figure:
    """Plot a row for each label: the original image and its variants, ``(C, H, W)`` in 0..255.

    Of images with more than three channels, the first three are drawn.
    """
    columns = max(len(images) for _, images in rows)
    heights = [images[0].shape[1] / images[0].shape[2] for _, images in rows]
    figure = Figure(figsize=(1.3 * columns, 1.3 * sum(heights) + 0.15 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes_row, (name, images) in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            preview = ArrayImage(image.permute(1, 2, 0).numpy()).build_preview()
            axes.imshow(np.asarray(preview), cmap="gray", vmin=0, vmax=255)
            axes.axis("off")
        long = len(name) > 20
        axes_row[0].set_title(
            f"{name[:40]}..." if len(name) > 40 else name, fontsize=9, loc="left" if long else "center"
        )
    return figure


def plot_boxes(rows: Sequence[Sequence[tuple[Tensor, Sequence[tuple[Sequence[float], str]]]]]) -> Figure:
    """Plot a row for each image with boxes: the original and its variants.

    Each image is ``(3, H, W)`` in 0..255, with the corners (left, top, right, bottom) and the label of each box.
    """
    columns = max(map(len, rows))
    names = sorted({name for row in rows for _, boxes in row for _, name in boxes})
    heights = [row[0][0].shape[1] / row[0][0].shape[2] for row in rows]
    figure = Figure(figsize=(1.9 * columns, 2.0 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (image, boxes) in zip(axes_row, row, strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy().round().astype(np.uint8), aspect="equal")
            axes.axis("off")
            for (left, top, right, bottom), name in boxes:
                color = f"C{names.index(name) % 10}"
                axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, lw=1.2,
                                         color=color))  # fmt: skip
                axes.text(left, top, name, fontsize=5, color="w", va="top", clip_on=True,
                          bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    return figure
