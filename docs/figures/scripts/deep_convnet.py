"""Draw the architecture of DeepConvNet: its feature maps, to scale, and its layers.

python docs/figures/scripts/deep_convnet.py    writes docs/figures/deep-convnet.svg
"""

from pathlib import Path

import matplotlib
from digit import interpolate_strokes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

INK, GRAY, RULE = "#23303d", "#66727e", "#d5d9dd"
IMAGE, CONV, POOL, LINEAR = "#f1ecdd", "#8fb4d9", "#f2b880", "#a9cf9b"
# name, details, number of parameters, output channels, side of the output (0: a vector), color
LAYERS = [
    ("image", "in [0, 1]", 0, 1, 28, IMAGE),
    ("conv 3×3", "ReLU", 160, 16, 28, CONV),
    ("conv 3×3", "ReLU", 2_320, 16, 28, CONV),
    ("max pool", "2×2", 0, 16, 14, POOL),
    ("conv 3×3", "ReLU", 4_640, 32, 14, CONV),
    ("conv 3×3", "pad 2\nReLU", 9_248, 32, 16, CONV),
    ("max pool", "2×2", 0, 32, 8, POOL),
    ("conv 3×3", "ReLU", 18_496, 64, 8, CONV),
    ("conv 3×3", "ReLU", 36_928, 64, 8, CONV),
    ("max pool", "2×2", 0, 64, 4, POOL),
    ("FC", "ReLU\ndropout", 51_250, 50, 0, LINEAR),
    ("FC", "softmax", 510, 10, 0, LINEAR),
]
SLANT = (0.30, 0.24)  # offset on the page of one pixel of depth
CHANNEL = 0.12  # width of one channel, in pixels
UNIT = 0.34  # height of one unit of a vector
PITCH = 15.6  # minimum distance between the centers of two blocks
GAP = 5.0  # minimum gap between two blocks
ROWS = {"output": 22.0, "layer": -22.5, "detail": -24.6, "parameters": -34.6}


def scale_brightness(color: str, factor: float) -> tuple[float, ...]:
    """Return a darker or lighter color."""
    return tuple(min(1.0, value * factor) for value in matplotlib.colors.to_rgb(color))


def compute_block_size(channels: int, side: int) -> tuple[float, float, float]:
    """Compute the width, height and depth of the block of a layer's output."""
    return (max(CHANNEL * channels, 0.5), side, side) if side else (1.2, UNIT * channels, 1.2)


def draw_block(axes: Axes, center: float, size: tuple[float, float, float], color: str) -> None:
    """Draw a block in oblique projection around ``(center, 0)``."""
    width, height, depth = size
    dx, dy = SLANT[0] * depth, SLANT[1] * depth
    left, low = center - (width + dx) / 2, -(height + dy) / 2
    right, high = left + width, low + height
    faces = [
        ([(left, low), (right, low), (right, high), (left, high)], 1.0),
        ([(left, high), (right, high), (right + dx, high + dy), (left + dx, high + dy)], 1.12),
        ([(right, low), (right + dx, low + dy), (right + dx, high + dy), (right, high)], 0.87),
    ]
    if color == IMAGE:
        faces = [(corners, 1.0) for corners, _ in faces]
    for corners, brightness in faces:
        face_color = scale_brightness(color, brightness)
        axes.add_patch(Polygon(corners, facecolor=face_color, edgecolor=INK, lw=0.7, joinstyle="round"))
    if color == IMAGE:
        for path in interpolate_strokes():
            points = [(right + x * dx, low + x * dy + (1 - y) * height) for x, y in path]
            axes.plot(*zip(*points, strict=True), color=INK, lw=2.4, solid_capstyle="round", solid_joinstyle="round")


def draw() -> Figure:
    """Draw the figure."""
    figure = Figure(figsize=(11.5, 4.1), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_aspect("equal")
    center = edge = 0.0  # of the previous block
    for index, (name, detail, parameters, channels, side, color) in enumerate(LAYERS):
        size = compute_block_size(channels, side)
        half_width = (size[0] + SLANT[0] * size[2]) / 2
        if index:
            center = max(center + PITCH, edge + GAP + half_width)
            arrow = {"arrowstyle": "-|>,head_width=.16,head_length=.32", "color": GRAY, "lw": 0.9}
            axes.annotate("", (center - half_width - 0.5, 0), (edge + 0.5, 0), arrowprops=arrow)
        edge = center + half_width
        draw_block(axes, center, size, color)
        shape = f"{channels}×{side}×{side}" if side else f"{channels}"
        label = {"ha": "center", "va": "center", "fontsize": 10}
        axes.text(center, ROWS["output"], shape, color=INK, fontweight="bold", **label)
        axes.text(center, ROWS["layer"], name, color=INK, **label)
        axes.text(center, ROWS["detail"], detail, color=GRAY, **{**label, "fontsize": 9, "va": "top"})
        axes.text(center, ROWS["parameters"], f"{parameters:,}" if parameters else "–", color=INK, **label)
    left = -18.5
    for row in ("output", "layer", "parameters"):
        axes.text(left, ROWS[row], row, color=GRAY, fontsize=10, style="italic", va="center")
    total = sum(parameters for _, _, parameters, *_ in LAYERS)
    axes.plot([left, edge + 6], [ROWS["parameters"] + 3.0] * 2, color=RULE, lw=0.8)
    axes.text(left, ROWS["parameters"] - 4.0, f"{total:,} in total", color=GRAY, fontsize=9, va="center")
    axes.set_xlim(left - 1.5, edge + 7)
    axes.set_ylim(-40.5, 25)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    draw().savefig(Path(__file__).parents[1] / "deep-convnet.svg", metadata={"Date": None})
