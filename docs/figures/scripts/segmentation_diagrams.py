"""Draw fcn.svg and segnet.svg, the diagrams of these pages of docs/landmarks.

python docs/figures/scripts/segmentation_diagrams.py
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from detection_diagrams import (
    SCENE,
    SCENE_VIEW,
    Box,
    Panel,
    draw_cells,
    draw_left_text,
    draw_vector,
    snap_point,
)
from drawing import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    LINE_ORANGE,
    ORANGE,
    PAPER,
    PURPLE,
    RULE,
    Point,
    create_axes,
    draw_arrow,
    draw_box,
    draw_grid,
    draw_route,
    draw_text,
    save,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, PathPatch, Rectangle
from matplotlib.path import Path

Array = npt.NDArray[np.float64]
CLASSES = {  # color and regions of the scene
    "car": ("#bb5d54", ("body", "window", "front wheel", "rear wheel")),
    "person": ("#6f86a6", ("clothes", "head")),
}
SAMPLES = 10  # points per cell along each axis


def compute_coverage(regions: Sequence[str], shape: tuple[int, int], view: Box = SCENE_VIEW) -> Array:
    """Compute the fraction of each cell of ``(rows, columns)`` that the regions cover, the lowest row first."""
    rows, columns = shape
    left, bottom, right, top = view
    x = left + (right - left) * (np.arange(columns * SAMPLES) + 0.5) / (columns * SAMPLES)
    y = bottom + (top - bottom) * (np.arange(rows * SAMPLES) + 0.5) / (rows * SAMPLES)
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    mask = np.any([Path(SCENE[name][1]).contains_points(points) for name in regions], axis=0)
    coverage: Array = mask.reshape(rows, SAMPLES, columns, SAMPLES).mean((1, 3))
    return coverage


def upsample_bilinear(values: Array, factor: int) -> Array:
    """Upsample a map by bilinear interpolation."""
    for axis in range(2):
        length = values.shape[axis]
        positions = (np.arange(length * factor) + 0.5) / factor - 0.5
        values = np.apply_along_axis(lambda line, p=positions, n=length: np.interp(p, np.arange(n), line), axis, values)
    return values


def draw_score_map(axes: Axes, corner: Point, cell: float, shape: tuple[int, int], view: Box = SCENE_VIEW) -> None:
    """Draw a score map: each cell in the color of its class, as far as the class covers it."""
    draw_cells(axes, corner, cell, shape, "white")
    for color, regions in CLASSES.values():
        levels = (4 * compute_coverage(regions, shape, view)).round() / 4
        for level in np.unique(levels[levels > 0]):
            lines = [  # a line as wide as the cell is shorter in the file than a square
                snap_point((corner[0] + (column + end) * cell, corner[1] + (row + 0.5) * cell))
                for row, column in np.argwhere(levels == level)
                for end in (0, 1)
            ]
            path = Path(lines, [Path.MOVETO, Path.LINETO] * (len(lines) // 2))
            style = {"ec": color, "lw": 72 * cell, "capstyle": "butt", "alpha": level}
            axes.add_patch(PathPatch(path, fc="none", zorder=3.05, **style))


def draw_prediction(axes: Axes, corner: Point, size: Point, shape: tuple[int, int]) -> None:
    """Draw the classes of a score map of ``(rows, columns)`` after bilinear upsampling."""
    axes.add_patch(Rectangle(corner, *size, fc="#f0f0ee", ec=INK, lw=0.8, zorder=3))
    factor = 60 // shape[1]
    scores = [upsample_bilinear(compute_coverage(regions, shape), factor) for _, regions in CLASSES.values()]
    scores.append(1 - np.sum(scores, axis=0))  # background
    x = corner[0] + size[0] * (np.arange(shape[1] * factor) + 0.5) / (shape[1] * factor)
    y = corner[1] + size[1] * (np.arange(shape[0] * factor) + 0.5) / (shape[0] * factor)
    for index, (color, _) in enumerate(CLASSES.values()):
        margin = scores[index] - np.max(scores[:index] + scores[index + 1 :], axis=0)
        if margin.max() > 0:
            contours = axes.contourf(x, y, margin, levels=[0, 2])
            contours.remove()
            for path in contours.get_paths():
                vertices = [snap_point(point) for point in path.vertices]
                axes.add_patch(PathPatch(Path(vertices, path.codes), fc=color, lw=0, zorder=3.1))


LAYER_COLUMNS = (0.85, 2.9, 4.9, 6.9, 8.87)  # x of the layers in the first part of the diagram of FCN


def draw_classifier(axes: Axes, y: float, view: Box) -> None:
    """Draw VGG-16 as a classifier of an image of 224×224 pixels."""
    cell = 0.08
    side = 7 * cell
    columns = LAYER_COLUMNS
    Panel(axes, (columns[0] - side / 2, y - side / 2), (side, side), view).draw_scene()
    draw_cells(axes, (columns[1] - side / 2, y - side / 2), cell, (7, 7))
    draw_text(axes, (columns[0], y - 0.41), "image, 224×224", size=8.5, color=GRAY)
    draw_text(axes, (columns[1], y - 0.41), "pool5, 512×7×7", size=8.5, color=GRAY)
    for x, length in zip(columns[2:], ("4,096", "4,096", "1,000 classes"), strict=True):
        draw_vector(axes, (x, y), 0.64, length)
    ends = [(columns[0] + 0.33, columns[1] - 0.33), (columns[1] + 0.33, columns[2] - 0.13)]
    ends += [(left + 0.13, right - 0.13) for left, right in itertools.pairwise(columns[2:])]
    texts = ("13 convolutions,\n5 poolings", *["fully connected"] * 3)
    for (start, end), text in zip(ends, texts, strict=True):
        draw_arrow(axes, (start, y), (end, y), text, offset=(0, 0.12 + 0.07 * text.count("\n")))


def draw_convolutional_classifier(axes: Axes, y: float, view: Box, window: Box) -> None:
    """Draw the same layers as convolutions over a larger image, with the window of one output position."""
    cell, columns, (rows, width) = 0.08, LAYER_COLUMNS, (11, 15)
    corners = [(x - width * cell / 2, y - rows * cell / 2) for x in columns]
    image = Panel(axes, corners[0], (width * cell, rows * cell), view)
    image.draw_scene(has_details=True)
    image.draw_box(window, LINE_ORANGE, width=1.8)
    for corner in corners[1:4]:
        draw_cells(axes, corner, cell, (rows, width))
    draw_score_map(axes, corners[4], cell, (rows, width), view)
    x, low = corners[1][0] + 6 * cell, corners[1][1] + 2 * cell
    axes.add_patch(Rectangle((x, low), 7 * cell, 7 * cell, fc=ORANGE, ec="none", alpha=0.8, zorder=3.05))
    axes.add_patch(Rectangle((x, low), 7 * cell, 7 * cell, fc="none", ec=LINE_ORANGE, lw=1.8, zorder=3.3))
    for corner, color in zip(corners[2:], (ORANGE, ORANGE, "none"), strict=True):
        position = corner[0] + 9 * cell, corner[1] + 5 * cell
        axes.add_patch(Rectangle(position, cell, cell, fc=color, ec=LINE_ORANGE, lw=1.8, zorder=3.3))
    texts = ("image, 352×480", "pool5, 512×11×15", "4,096×11×15", "4,096×11×15", "scores, 21×11×15")
    for x, text in zip(columns, texts, strict=True):
        draw_text(axes, (x, y - 0.57), text, size=8.5, color=GRAY)
    for x, text in zip(columns, ("", "conv 7×7", "conv 1×1", "conv 1×1"), strict=False):
        draw_arrow(axes, (x + 0.64, y), (x + 1.34, y), text)


def draw_encoder(axes: Axes, columns: Sequence[float], y: float, size: Point) -> None:
    """Draw the image and the pooled maps of VGG-16 up to pool5."""
    corners = [(x - size[0] / 2, y - size[1] / 2) for x in columns]
    Panel(axes, corners[0], size).draw_scene(has_details=True)
    for corner, scale in zip(corners[1:4], (4, 2, 1), strict=True):
        draw_cells(axes, corner, 0.22 / scale, (3 * scale, 5 * scale))
    titles = ("image", "pool3", "pool4", "pool5", "scores")
    details = ("", "256, stride 8", "512, stride 16", "512, stride 32", "21, stride 32")
    for x, title, detail in zip(columns, titles, details, strict=False):
        draw_text(axes, (x, y + (0.62 if detail else 0.45)), title, size=9.5)
        draw_text(axes, (x, y + 0.45), detail, size=8.5, color=GRAY)
    for left, right in itertools.pairwise(columns):
        draw_arrow(axes, (left + 0.59, y), (right - 0.59, y))
    draw_text(axes, ((columns[3] + columns[4]) / 2, y + 0.2), "conv 7×7,\n1×1, 1×1", size=8.5, color=GRAY)


def draw_skip_connections(axes: Axes) -> None:
    """Draw the score maps and the upsampling of FCN-32s, FCN-16s and FCN-8s."""
    columns, rows, size = (0.7, 2.2, 3.7, 5.2, 7.1, 8.9), (2.93, 1.67, 0.41), (1.1, 0.66)
    draw_encoder(axes, columns, rows[0], size)
    for y, scale, name in zip(rows, (1, 2, 4), ("FCN-32s", "FCN-16s", "FCN-8s"), strict=True):
        draw_score_map(axes, (columns[4] - size[0] / 2, y - size[1] / 2), 0.22 / scale, (3 * scale, 5 * scale))
        draw_prediction(axes, (columns[5] - size[0] / 2, y - size[1] / 2), size, (3 * scale, 5 * scale))
        draw_arrow(axes, (columns[4] + 0.59, y), (columns[5] - 0.59, y), f"×{32 // scale}")
        draw_text(axes, (columns[5], y + 0.45), name, size=9.5)
    for x, y, stride in ((columns[2], rows[1], 16), (columns[1], rows[2], 8)):
        plus = columns[4], y + 0.56
        draw_route(axes, [(x, rows[0] - 0.36), (x, plus[1]), (plus[0] - 0.1, plus[1])])
        draw_box(axes, (columns[3], plus[1]), (1.15, 0.26), "")
        draw_text(axes, (columns[3], plus[1]), "conv 1×1, 21")
        axes.add_patch(Circle(plus, 0.09, fc="white", ec=INK, lw=0.9, zorder=3))
        draw_text(axes, plus, "+", size=10)
        draw_arrow(axes, (plus[0], plus[1] + 0.36), (plus[0], plus[1] + 0.1), "×2", offset=(0.17, 0.03))
        draw_arrow(axes, (plus[0], plus[1] - 0.09), (plus[0], plus[1] - 0.22))
        draw_text(axes, (columns[4] - 0.92, y), f"stride {stride}", size=8.5, color=GRAY)


def draw_fcn() -> Figure:
    """Draw the conversion of fully connected layers, and the skip connections."""
    figure, axes = create_axes(9.6, 6.95)
    pixel = 600 / 352  # pixels of the scene per pixel of the larger image
    view = (92, 0, 92 + 480 * pixel, 600)
    left, bottom = view[0] + 192 * pixel, 64 * pixel
    window = (left, bottom, left + 224 * pixel, bottom + 224 * pixel)
    draw_left_text(axes, (0.15, 6.77), "Fully connected layers as convolutions", size=10.5, bold=True)
    draw_classifier(axes, 6.17, window)
    draw_convolutional_classifier(axes, 4.97, view, window)
    for x in (3.88, 5.9):
        style = "<|-|>,head_width=2.2,head_length=4.5"
        axes.add_patch(FancyArrowPatch((x, 6.12), (x, 5.2), arrowstyle=style, color=LINE_ORANGE, ls="--", lw=1.1))
        draw_left_text(axes, (x + 0.08, 5.62), "same\nweights", size=8.5, color=LINE_ORANGE)
    axes.plot([0.15, 9.45], [4.2, 4.2], color=RULE, lw=0.8)
    draw_left_text(axes, (0.15, 3.98), "Skip connections", size=10.5, bold=True)
    draw_left_text(axes, (1.85, 3.98), "×f: upsampling, a transposed convolution of stride f", color=GRAY)
    draw_skip_connections(axes)
    return figure


POOLED_MAP = np.array([[1, 4, 2, 0], [6, 3, 5, 8], [2, 0, 1, 3], [7, 1, 9, 4]])
DECODER_MAP = np.array([[5, 2], [1, 4]])
FILTER = np.array([[0, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 0]])
CELL = 0.34


def format_values(values: npt.NDArray[np.generic]) -> list[list[str]]:
    """Format the values of a matrix."""
    return [[f"{value:g}" for value in row] for row in values]


def draw_windows(axes: Axes, corner: Point) -> None:
    """Draw the borders of the four pooling windows of a 4×4 matrix."""
    for x in (0, 2):
        for y in (0, 2):
            window = Rectangle((corner[0] + x * CELL, corner[1] + y * CELL), 2 * CELL, 2 * CELL)
            window.set(fc="none", ec=INK, lw=1.8, zorder=4)
            axes.add_patch(window)


def draw_unpooling(axes: Axes, y: float) -> None:
    """Draw max pooling, unpooling with its indices and a convolution of a 4×4 matrix; ``y`` is the center."""
    windows = POOLED_MAP.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
    flat = np.arange(16).reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
    indices = flat[np.arange(4), windows.argmax(1)]
    unpooled = np.zeros(16, int)
    unpooled[indices] = DECODER_MAP.ravel()
    padded = np.pad(unpooled.reshape(4, 4), 1)
    dense = sum(FILTER[i, j] * padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3))
    positions = [divmod(int(index), 4) for index in indices]
    low, upper, lower = y - 2 * CELL, y, y - 2 * CELL - 0.26
    draw_grid(axes, (0.2, low), CELL, format_values(POOLED_MAP), colors=dict.fromkeys(positions, ORANGE))
    draw_grid(axes, (6.05, low), CELL, format_values(unpooled.reshape(4, 4)), colors=dict.fromkeys(positions, GREEN))
    draw_grid(axes, (8.08, low), CELL, format_values(np.asarray(dense)))
    for x in (0.2, 6.05):
        draw_windows(axes, (x, low))
    squares = [(row, column) for row in range(2) for column in range(2)]
    draw_grid(axes, (2.5, upper), CELL, format_values(windows.max(1).reshape(2, 2)),
              colors=dict.fromkeys(squares, ORANGE))  # fmt: skip
    draw_grid(axes, (2.5, lower), CELL, format_values(indices.reshape(2, 2)), colors=dict.fromkeys(squares, PAPER))
    draw_grid(axes, (4.4, upper), CELL, format_values(DECODER_MAP), colors=dict.fromkeys(squares, GREEN))
    draw_arrow(axes, (1.62, y), (2.42, upper + CELL))
    draw_arrow(axes, (1.62, y), (2.42, lower + CELL))
    draw_text(axes, (2.0, y + 0.52), "max\npooling", size=9, color=GRAY)
    draw_arrow(axes, (3.24, upper + CELL), (4.34, upper + CELL), dashed=True)
    draw_text(axes, (3.8, upper + CELL + 0.2), "further\nlayers", size=8.5, color=GRAY)
    draw_arrow(axes, (5.14, upper + CELL), (5.98, upper + CELL))
    draw_text(axes, (5.56, upper + CELL + 0.14), "unpooling", size=9, color=GRAY)
    draw_route(axes, [(3.24, lower + CELL), (5.56, lower + CELL), (5.56, upper + CELL - 0.04)], color=LINE_ORANGE)
    draw_text(axes, (4.4, lower + CELL + 0.12), "indices", size=9, color=LINE_ORANGE)
    draw_arrow(axes, (7.47, y), (8.02, y))
    draw_text(axes, (7.75, y + 0.16), "conv", size=9, color=GRAY)
    top = y + 2 * CELL + 0.16
    labels = [(0.88, "map of the encoder"), (2.84, "maxima"), (4.74, "map of the decoder"), (6.73, "sparse map")]
    for x, text in [*labels, (8.76, "dense map")]:
        draw_text(axes, (x, top), text)
    draw_text(axes, (2.84, lower - 0.15), "index = 4 · row + column", size=8.5, color=GRAY)
    draw_text(
        axes,
        (8.4, low - 0.22),
        "example filter: 1 in the center,\n0.5 above, below, left and right",
        size=8.5,
        color=GRAY,
    )


HEIGHTS = (1.8, 1.45, 1.12, 0.84, 0.6, 0.38)  # of the maps, by resolution
SCALES = ("H×W", "1/2", "1/4", "1/8", "1/16")  # sides of the maps relative to the image
ENCODER = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # output channels
DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, "K"))
BAR, STEP, GAP = 0.17, 0.19, 0.09


def draw_bar(axes: Axes, left: float, center: float, height: float, text: str, color: str) -> None:
    """Draw the output of a layer as a bar with its number of channels."""
    axes.add_patch(Rectangle((left, center - height / 2), BAR, height, fc=color, ec=INK, lw=0.8, zorder=3))
    axes.text(left + BAR / 2, center, text, rotation=90, ha="center", va="center", fontsize=8.5, color=INK, zorder=5)


def draw_encoder_decoder(axes: Axes, center: float) -> None:
    """Draw the layers of SegNet and the connections from each pooling to its unpooling."""
    size = (0.62, 0.372)
    Panel(axes, (0.15, center - size[1] / 2), size).draw_scene()
    draw_arrow(axes, (0.79, center), (1.0, center))
    x = 1.02
    label_y = center - HEIGHTS[0] / 2 - 0.15
    pools: list[float] = []
    for level, channels in enumerate(ENCODER):
        for width in channels:
            draw_bar(axes, x, center, HEIGHTS[level], str(width), BLUE)
            x += STEP
        draw_text(axes, (x - STEP * len(channels) / 2, label_y), SCALES[level], size=9, color=GRAY)
        draw_bar(axes, x, center, HEIGHTS[level + 1], "", ORANGE)
        pools.append(x + BAR / 2)
        x += STEP + GAP
    for level, outputs in zip(range(4, -1, -1), DECODER, strict=True):
        draw_bar(axes, x, center, HEIGHTS[level], "", GREEN)
        start, top = pools[level], center + HEIGHTS[level + 1] / 2
        draw_route(axes, [(start, top), (start, top + 0.1), (x, top + 0.1)], color=LINE_ORANGE)
        x += STEP
        draw_text(axes, (x + STEP * (len(outputs) - 1) / 2, label_y), SCALES[level], size=9, color=GRAY)
        for width in outputs:
            draw_bar(axes, x, center, HEIGHTS[level], str(width), PURPLE if width == "K" else BLUE)
            x += STEP
        x += GAP
    draw_arrow(axes, (x - 0.09, center), (x + 0.1, center))
    draw_prediction(axes, (x + 0.11, center - size[1] / 2), size, (24, 40))
    draw_text(axes, (0.46, center - 0.32), "image", color=GRAY)
    draw_text(axes, (x + 0.42, center - 0.32), "classes", color=GRAY)
    draw_text(axes, (pools[-1], label_y), "1/32", size=9, color=GRAY)
    draw_text(axes, (4.83, center + 1.0), "indices", size=9, color=LINE_ORANGE)
    legend = [(0.2, BLUE, "3×3 convolution, batch normalization, ReLU"), (3.75, ORANGE, "max pooling 2×2"),
              (5.3, GREEN, "unpooling 2×2"), (6.75, PURPLE, "3×3 convolution, K classes")]  # fmt: skip
    for left, color, text in legend:
        axes.add_patch(Rectangle((left, 0.12), 0.16, 0.16, fc=color, ec=INK, lw=0.8))
        draw_left_text(axes, (left + 0.24, 0.2), text, size=9)


def draw_segnet() -> Figure:
    """Draw an example of unpooling with indices, and the encoder and decoder."""
    figure, axes = create_axes(9.6, 5.68)
    draw_left_text(axes, (0.15, 5.5), "Max pooling with indices, and unpooling", size=10.5, bold=True)
    draw_unpooling(axes, 4.3)
    axes.plot([0.15, 9.45], [3.05, 3.05], color=RULE, lw=0.8)
    draw_left_text(axes, (0.15, 2.84), "Encoder and decoder", size=10.5, bold=True)
    draw_encoder_decoder(axes, 1.5)
    return figure


if __name__ == "__main__":
    save(draw_fcn(), "fcn")
    save(draw_segnet(), "segnet")
