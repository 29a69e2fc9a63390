"""Draw DeepConvNet: what flows through it, to scale, and the layers between.

python docs/figures/scripts/deep_convnet.py    writes deep-convnet.svg beside this file
"""

from pathlib import Path

import matplotlib
from digit import strokes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

INK, GREY, RULE = "#23303d", "#66727e", "#d5d9dd"
IMAGE, CONV, POOL, AFFINE = "#f1ecdd", "#8fb4d9", "#f2b880", "#a9cf9b"
# the layer, what belongs to it, its parameters; what comes out of it: channels, side (0: a vector)
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
    ("affine", "ReLU\ndropout", 51_250, 50, 0, AFFINE),
    ("affine", "softmax", 510, 10, 0, AFFINE),
]
LEAN = (0.30, 0.24)  # where one pixel of depth goes on the page
CHANNEL = 0.12  # width of one channel, in pixels
UNIT = 0.34  # height of one unit of a vector
PITCH = 15.6  # least distance of two columns
GAP = 5.0  # least distance of two blocks
ROWS = {"values": 22.0, "layer": -22.5, "detail": -24.6, "parameters": -34.6}


def shade(colour: str, factor: float) -> tuple[float, ...]:
    """The colour, darker or lighter."""
    return tuple(min(1.0, part * factor) for part in matplotlib.colors.to_rgb(colour))


def sizes(channels: int, side: int) -> tuple[float, float, float]:
    """Width, height and depth of the block that stands for these values."""
    return (max(CHANNEL * channels, 0.5), side, side) if side else (1.2, UNIT * channels, 1.2)


def block(axes: Axes, middle: float, size: tuple[float, float, float], colour: str) -> None:
    """A box about ``(middle, 0)`` that leans back to the right."""
    width, height, depth = size
    dx, dy = LEAN[0] * depth, LEAN[1] * depth
    left, low = middle - (width + dx) / 2, -(height + dy) / 2
    right, high = left + width, low + height
    faces = [
        ([(left, low), (right, low), (right, high), (left, high)], 1.0),
        ([(left, high), (right, high), (right + dx, high + dy), (left + dx, high + dy)], 1.12),
        ([(right, low), (right + dx, low + dy), (right + dx, high + dy), (right, high)], 0.87),
    ]
    if colour == IMAGE:
        faces = [(corners, 1.0) for corners, _ in faces]
    for corners, light in faces:
        axes.add_patch(Polygon(corners, facecolor=shade(colour, light), edgecolor=INK, lw=0.7, joinstyle="round"))
    if colour == IMAGE:
        for path in strokes():
            points = [(right + x * dx, low + x * dy + (1 - y) * height) for x, y in path]
            axes.plot(*zip(*points, strict=True), color=INK, lw=2.4, solid_capstyle="round", solid_joinstyle="round")


def draw() -> Figure:
    """The figure."""
    figure = Figure(figsize=(11.5, 4.1), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_aspect("equal")
    middle = edge = 0.0  # of the block before
    for number, (name, detail, parameters, channels, side, colour) in enumerate(LAYERS):
        size = sizes(channels, side)
        half = (size[0] + LEAN[0] * size[2]) / 2
        before = middle
        if number:
            middle = max(before + PITCH, edge + GAP + half)
            arrow = {"arrowstyle": "-|>,head_width=.16,head_length=.32", "color": GREY, "lw": 0.9}
            axes.annotate("", (middle - half - 0.5, 0), (edge + 0.5, 0), arrowprops=arrow)
        edge = middle + half
        block(axes, middle, size, colour)
        shape = f"{channels}×{side}×{side}" if side else f"{channels}"
        label = {"ha": "center", "va": "center", "fontsize": 10}
        axes.text(middle, ROWS["values"], shape, color=INK, fontweight="bold", **label)
        axes.text(middle, ROWS["layer"], name, color=INK, **label)
        axes.text(middle, ROWS["detail"], detail, color=GREY, **{**label, "fontsize": 9, "va": "top"})
        axes.text(middle, ROWS["parameters"], f"{parameters:,}" if parameters else "–", color=INK, **label)
    left = -18.5
    for row, heading in (("values", "values"), ("layer", "layer"), ("parameters", "parameters")):
        axes.text(left, ROWS[row], heading, color=GREY, fontsize=10, style="italic", va="center")
    total = sum(parameters for _, _, parameters, *_ in LAYERS)
    axes.plot([left, edge + 6], [ROWS["parameters"] + 3.0] * 2, color=RULE, lw=0.8)
    axes.text(left, ROWS["parameters"] - 4.0, f"{total:,} in all", color=GREY, fontsize=9, va="center")
    axes.set_xlim(left - 1.5, edge + 7)
    axes.set_ylim(-40.5, 25)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    draw().savefig(Path(__file__).parents[1] / "deep-convnet.svg", metadata={"Date": None})
