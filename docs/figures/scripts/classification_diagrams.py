"""Draw inception-module.svg, residual-blocks.svg, alexnet.svg, stacked-convolutions.svg and binarized-block.svg.

python docs/figures/scripts/classification_diagrams.py
"""

import numpy as np
from drawing import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    LINE_BLUE,
    LINE_GREEN,
    LINE_ORANGE,
    ORANGE,
    PAPER,
    PURPLE,
    RULE,
    Point,
    create_axes,
    draw_arrow,
    draw_grid,
    draw_note,
    draw_route,
    draw_text,
    save,
)
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

BRANCHES = [  # y, first layer with its color and channels (0: as many as its input), last layer with the same
    (4.2, None, ("1×1 convolution", GREEN, 64)),
    (3.0, ("1×1 convolution", ORANGE, 96), ("3×3 convolution", GREEN, 128)),
    (1.95, ("1×1 convolution", ORANGE, 16), ("5×5 convolution", GREEN, 32)),
    (0.98, ("3×3 max pooling", PAPER, 0), ("1×1 convolution", ORANGE, 32)),
]
INCHES_PER_CHANNEL = 1 / 120
GOOGLENET_ROWS = [  # text and color, between the image and the scores
    ("convolutions, poolings", "white"), ("3a", "white"), ("3b", "white"),
    ("max pooling", PAPER), ("4a", "white"), ("4b", "white"), ("4c", "white"), ("4d", "white"), ("4e", "white"),
    ("max pooling", PAPER), ("5a", "white"), ("5b", "white"), ("average pooling", PAPER), ("fully connected", GREEN),
]  # fmt: skip
ALEXNET_MAPS = [  # side, channels, layer before it, and the text beside its arrow
    (55, 64, "convolution", "11×11\nstride 4"),
    (27, 64, "pooling", ""),
    (27, 192, "convolution", "5×5"),
    (13, 192, "pooling", ""),
    (13, 384, "convolution", "3×3"),
    (13, 256, "convolution", "3×3"),
    (13, 256, "convolution", "3×3"),
    (6, 256, "pooling", ""),
]
ALEXNET_COLORS = {"convolution": LINE_BLUE, "pooling": LINE_ORANGE, "fully connected": LINE_GREEN}
SIDE_SCALE, CHANNEL_SCALE, SLANT = 2.5 / 224, 1 / 570, 0.3  # inches per pixel and per channel; depth of the view
LATENT_WEIGHTS = np.array([0.6, -0.1, 0.3, -0.9, 0.2, -0.4, 0.8, -0.2])
INPUTS = np.array([1, -1, -1, -1, 1, -1, 1, 1])
MEAN, DEVIATION = 1, 2  # of the batch normalization in the example
CELL = 0.42


def draw_bar(axes: Axes, center: Point, size: Point, color: str = BLUE) -> None:
    """Draw a rectangle with square corners, such as feature maps seen from the side."""
    corner = center[0] - size[0] / 2, center[1] - size[1] / 2
    axes.add_patch(Rectangle(corner, *size, fc=color, ec=INK, lw=0.9, zorder=3))


def draw_layer(axes: Axes, center: Point, size: Point, text: str, *, color: str = PAPER, font: float = 9) -> None:
    """Draw a box with a text of normal weight."""
    corner = center[0] - size[0] / 2, center[1] - size[1] / 2
    axes.add_patch(FancyBboxPatch(corner, *size, "round,pad=0,rounding_size=.05", fc=color, ec=INK, lw=0.9, zorder=3))
    draw_text(axes, (center[0], center[1] - 0.01), text, size=font)


def draw_bracket(axes: Axes, start: Point, end: Point, depth: Point) -> None:
    """Draw a bracket between two points, which opens in the direction of ``depth``."""
    corners = [(x + depth[0], y + depth[1]) for x, y in (start, end)]
    axes.plot(*zip(corners[0], start, end, corners[1], strict=True), color=GRAY, lw=1, zorder=2)


def draw_inception() -> None:
    """Draw the Inception module 3a, and beside it the network with the auxiliary classifiers."""
    figure, axes = create_axes(9.8, 5.4)
    frame = FancyBboxPatch((0.08, 0.12), 6.42, 5.16, "round,pad=0,rounding_size=.08", fc="white", ec=LINE_BLUE, lw=1.2)
    axes.add_patch(frame)
    draw_text(axes, (3.3, 5.03), "Inception module 3a", size=11, bold=True)
    draw_text(axes, (5.75, 4.62), "concatenation", color=GRAY)
    draw_bar(axes, (0.5, 2.6), (0.16, 192 * INCHES_PER_CHANNEL))
    draw_text(axes, (0.5, 3.63), "input\n192")
    axes.plot([0.58, 0.95], [2.6, 2.6], color=GRAY, lw=1.3)
    axes.plot([0.95, 0.95], [BRANCHES[0][0], BRANCHES[-1][0]], color=GRAY, lw=1.3)
    top = 2.6 + 128 * INCHES_PER_CHANNEL
    for y, first, (text, color, channels) in BRANCHES:
        start = 0.95
        if first:
            draw_arrow(axes, (0.95, y), (1.32, y))
            draw_layer(axes, (1.97, y), (1.3, 0.46), first[0], color=first[1])
            start = 2.62
            if first[2]:
                height = first[2] * INCHES_PER_CHANNEL
                draw_arrow(axes, (2.62, y), (2.92, y))
                draw_bar(axes, (3.0, y), (0.16, height))
                draw_text(axes, (3.0, y + height / 2 + 0.12), str(first[2]))
                start = 3.08
        draw_arrow(axes, (start, y), (3.42, y))
        draw_layer(axes, (4.07, y), (1.3, 0.46), text, color=color)
        draw_arrow(axes, (4.72, y), (5.02, y))
        height = channels * INCHES_PER_CHANNEL
        draw_bar(axes, (5.1, y), (0.16, height))
        draw_text(axes, (5.1, y + height / 2 + 0.12), str(channels))
        ends = [(5.18, y + height / 2), (6.0, top), (6.0, top - height), (5.18, y - height / 2)]
        axes.add_patch(Polygon(ends, fc=BLUE, ec="none", alpha=0.4, zorder=1))
        draw_bar(axes, (6.08, top - height / 2), (0.16, height))
        top -= height
    draw_text(axes, (6.08, 3.93), "output\n256")
    draw_text(
        axes, (2.9, 1.53), "12 million multiply-adds (120 million without the reduction)", size=8.5, color=LINE_ORANGE
    )
    for x, color, text in (
        (0.4, ORANGE, "reduces the channels"),
        (2.62, BLUE, "feature maps of 28×28, height: number of channels"),
    ):
        draw_bar(axes, (x, 0.36), (0.16, 0.16), color)
        draw_note(axes, (x + 0.16, 0.35), text, size=8.5)
    draw_googlenet(axes)
    save(figure, "inception-module")


def draw_googlenet(axes: Axes) -> None:
    """Draw the layers of GoogLeNet and the two auxiliary classifiers in a column."""
    x, top, step = 7.62, 4.43, 0.295
    draw_text(axes, (8.2, 5.03), "GoogLeNet", size=11, bold=True)
    rows = {}
    draw_text(axes, (x, top + step - 0.01), "image, 224×224", size=8.5)
    for index, (text, color) in enumerate(GOOGLENET_ROWS):
        rows[text] = y = top - index * step
        draw_layer(axes, (x, y), (1.5, 0.21), f"Inception {text}" if len(text) == 2 else text, color=color, font=8.5)
        draw_arrow(axes, (x, y + step - 0.105), (x, y + 0.105))
    for y in (5.2, 0.2):
        axes.plot([6.5, x - 0.75], [y, rows["3a"]], color=LINE_BLUE, lw=0.9, ls=":", zorder=1)
    axes.add_patch(Rectangle((x - 0.75, rows["3a"] - 0.105), 1.5, 0.21, fc="none", ec=LINE_BLUE, lw=2, zorder=4))
    for first, last, text in (("3a", "3b", "28×28"), ("4b", "4c", "14×14"), ("5a", "5b", "7×7")):
        draw_bracket(axes, (8.46, rows[first] + 0.1), (8.46, rows[last] - 0.1), (-0.06, 0))
        draw_note(axes, (8.54, (rows[first] + rows[last]) / 2), text, size=8.5)
    for index, module in enumerate(("4a", "4d"), start=1):
        draw_arrow(axes, (x + 0.75, rows[module]), (8.62, rows[module]), dashed=True)
        draw_layer(
            axes, (9.16, rows[module]), (1.08, 0.44), f"auxiliary\nclassifier, $L_{index}$", color=PURPLE, font=8.5
        )
    draw_text(axes, (9.16, rows["4e"] - 0.06), "only in training", size=8.5, color=GRAY)
    end = top - len(GOOGLENET_ROWS) * step
    draw_arrow(axes, (x, end + step - 0.105), (x, end + 0.1))
    draw_text(axes, (x, end), "scores, $L_0$", size=9)
    draw_note(axes, (9.7, end - 0.03), "training loss:\n$L_0 + 0.3\\,(L_1 + L_2)$", size=9, color=INK, align="right")


def draw_block(axes: Axes, x: float, outer: int, layers: list[tuple[str, str, int, float]], shortcut: float) -> None:
    """Draw a residual block from top to bottom; ``layers`` are titles, details, output channels and heights."""
    scale = 1 / 128  # inches per channel
    draw_bar(axes, (x, 4.62), (outer * scale, 0.1))
    previous = 4.57
    for index, (title, details, channels, y) in enumerate(layers):
        draw_arrow(axes, (x, previous), (x, y + 0.24))
        draw_layer(axes, (x, y), (1.75, 0.48), "", color=GREEN)
        draw_text(axes, (x, y + 0.1), title, size=9.5, bold=True)
        draw_text(axes, (x, y - 0.11), details)
        previous = y - 0.24
        if index < len(layers) - 1:
            following = layers[index + 1][3]
            middle = (y + following) / 2
            draw_arrow(axes, (x, previous), (x, middle + 0.05))
            draw_bar(axes, (x, middle), (channels * scale, 0.1))
            draw_note(axes, (x + channels * scale / 2 + 0.08, middle), str(channels))
            previous = middle - 0.05
    draw_arrow(axes, (x, previous), (x, 1.78))
    axes.add_patch(Circle((x, 1.65), 0.13, fc="white", ec=INK, lw=1.1, zorder=3))
    draw_text(axes, (x, 1.645), "+", size=12, bold=True)
    draw_arrow(axes, (x, 1.52), (x, 1.32))
    draw_layer(axes, (x, 1.18), (0.7, 0.27), "ReLU")
    draw_arrow(axes, (x, 1.04), (x, 0.83))
    draw_bar(axes, (x, 0.78), (outer * scale, 0.1))
    draw_text(axes, (x, 0.56), f"{outer}×56×56", color=GRAY)
    side = x + shortcut
    draw_route(axes, [(x, 4.47), (side, 4.47), (side, 1.65), (x + 0.13, 1.65)], color=LINE_BLUE)


def draw_sheets(axes: Axes, corner: Point, fills: list[str], *, every_second: bool = False) -> None:
    """Draw channels as sheets, the last one behind: 2×2 cells, or 4×4 of which every second one has the color."""
    cell, shift, count = 0.17, 0.13, 4 if every_second else 2
    for depth, fill in enumerate(fills):
        x, y = corner[0] + depth * shift, corner[1] + depth * shift
        zorder = 4 - depth / 8
        axes.add_patch(Rectangle((x, y), count * cell, count * cell, fc="white", ec="none", zorder=zorder))
        step = count // 2
        positions = [(x + cell * step * i, y + cell * (step * j + step - 1)) for i in range(2) for j in range(2)]
        squares = [Path.unit_rectangle().transformed(Affine2D().scale(cell).translate(*place)) for place in positions]
        axes.add_patch(PathPatch(Path.make_compound_path(*squares), fc=fill, ec="none", zorder=zorder))
        lines = [[(x + cell * i, y), (x + cell * i, y + count * cell)] for i in range(count + 1)]
        lines += [[(x, y + cell * i), (x + count * cell, y + cell * i)] for i in range(count + 1)]
        grid = Path.make_compound_path(*(Path(line) for line in lines))
        axes.add_patch(PathPatch(grid, fc="none", ec=INK, lw=0.7, zorder=zorder))
        if fill == "white":
            for place in positions:
                center = place[0] + cell / 2, place[1] + cell / 2 - 0.01
                axes.text(*center, "0", ha="center", va="center", fontsize=8, color=GRAY, zorder=zorder + 0.01)


def draw_shortcuts(axes: Axes) -> None:
    """Draw the shortcuts of blocks that change the shape: option B, a projection, and option A, zero padding."""
    center = 7.92
    draw_text(axes, (center, 5.2), "Shortcuts where the shape changes", size=11, bold=True)
    draw_text(axes, (center, 4.93), "here half the resolution, twice the channels", color=GRAY)
    y = 3.55
    draw_text(axes, (center, 4.56), "Option B: projection $W_s x$", size=10, bold=True)
    draw_sheets(axes, (6.1, y), [BLUE] * 2, every_second=True)
    draw_arrow(axes, (7.0, y + 0.38), (7.22, y + 0.38))
    draw_layer(axes, (7.97, y + 0.38), (1.5, 0.5), "", color=GREEN)
    draw_text(axes, (7.97, y + 0.48), "1×1 convolution", size=9.5, bold=True)
    draw_text(axes, (7.97, y + 0.27), "stride 2, BN")
    draw_arrow(axes, (8.72, y + 0.38), (8.97, y + 0.38))
    draw_sheets(axes, (9.07, y), [ORANGE] * 4)
    draw_text(axes, (6.5, y - 0.2), "64×56×56")
    draw_text(axes, (9.37, y - 0.2), "128×28×28")
    draw_text(axes, (center, y - 0.48), "orange: weighted sums of the 64 channels", size=8.5, color=GRAY)
    axes.plot([5.95, 9.9], [2.79, 2.79], color=RULE, lw=1)
    y = 1.32
    draw_text(axes, (center, 2.5), "Option A: zero padding, no parameters", size=10, bold=True)
    draw_sheets(axes, (6.1, y), [BLUE] * 2, every_second=True)
    draw_arrow(axes, (7.0, y + 0.38), (7.62, y + 0.38), "subsample", offset=(0, 0.13))
    draw_sheets(axes, (7.72, y + 0.13), [BLUE] * 2)
    draw_arrow(axes, (8.3, y + 0.38), (8.97, y + 0.38), "add zeros", offset=(0, 0.13))
    draw_sheets(axes, (9.07, y), ["white", BLUE, BLUE, "white"])
    draw_text(axes, (6.5, y - 0.2), "16×32×32")
    draw_text(axes, (7.95, y - 0.2), "16×16×16")
    draw_text(axes, (9.37, y - 0.2), "32×16×16")
    draw_text(axes, (center, y - 0.48), "8 zero channels before and 8 after those of $x$", size=8.5, color=GRAY)
    draw_text(axes, (center, 0.2), "blue: values of $x$, at one position in four", size=8.5, color=GRAY)


def draw_residual_blocks() -> None:
    """Draw the basic block, the bottleneck block and the shortcuts."""
    figure, axes = create_axes(10, 5.45)
    for x, title, outer in ((1.45, "Basic block", 64), (4.15, "Bottleneck block", 256)):
        draw_text(axes, (x, 5.2), title, size=11, bold=True)
        draw_text(axes, (x, 4.86), f"input $x$: {outer}×56×56", color=GRAY)
    norm, activation = "BN", "BN, ReLU"
    basic = [("3×3 convolution", activation, 64, 3.75), ("3×3 convolution", norm, 64, 2.65)]
    draw_block(axes, 1.45, 64, basic, 1.05)
    bottleneck = [
        ("1×1 convolution", activation, 64, 4.03),
        ("3×3 convolution", activation, 64, 3.21),
        ("1×1 convolution", norm, 256, 2.39),
    ]
    draw_block(axes, 4.15, 256, bottleneck, 1.15)
    for x, text_x in ((0.42, 0.25), (3.1, 2.93)):
        draw_bracket(axes, (x, 4.25), (x, 2.15), (0.07, 0))
        axes.text(text_x, 3.2, "residual function $F$", rotation=90, ha="center", va="center", fontsize=9, color=INK)
    for x in (2.5, 5.3):
        axes.text(x + 0.12, 3.05, "identity $x$", rotation=270, ha="center", va="center", fontsize=9, color=LINE_BLUE)
    for x in (1.45, 4.15):
        draw_note(axes, (x + 0.2, 1.42), "$F + x$")
    axes.plot([5.78, 5.78], [0.4, 5.3], color=RULE, lw=1)
    draw_shortcuts(axes)
    draw_text(axes, (2.8, 0.2), "BN: batch normalization; width of the bars: channels", size=8.5, color=GRAY)
    save(figure, "residual-blocks")


def draw_volume(axes: Axes, left: float, middle: float, side: float, width: float, color: str) -> float:
    """Draw feature maps as a block, the channels to the right; return its right end."""
    shift = SLANT * side
    x, y = left, middle - (side + shift) / 2
    top = [(x, y + side), (x + shift, y + side + shift), (x + width + shift, y + side + shift), (x + width, y + side)]
    face = [
        (x + width, y),
        (x + width + shift, y + shift),
        (x + width + shift, y + side + shift),
        (x + width, y + side),
    ]
    axes.add_patch(Rectangle((x, y), width, side, fc=color, ec=INK, lw=0.8, zorder=3))
    axes.add_patch(Polygon(top, fc="white", ec=INK, lw=0.8, zorder=3))
    axes.add_patch(Polygon(face, fc=PAPER if width < 0.01 else RULE, ec=INK, lw=0.8, zorder=3))
    return left + width + shift


def draw_window(axes: Axes, left: float, middle: float, target: Point) -> None:
    """Draw the 11×11 window of the first convolution on the image, and lines to one position of its output."""
    side, window = 224 * SIDE_SCALE, 11 * SIDE_SCALE
    x = left + 3 * CHANNEL_SCALE + 0.55 * SLANT * side
    y = middle - (side + SLANT * side) / 2 + (0.55 * SLANT + 0.68) * side
    near, far = (x, y), (x + SLANT * window, y + SLANT * window)
    corners = [near, far, (far[0], far[1] + window), (near[0], near[1] + window)]
    axes.add_patch(Polygon(corners, fc=LINE_BLUE, ec=INK, lw=0.7, zorder=4))
    for corner in (corners[1], corners[2]):
        axes.plot([corner[0], target[0]], [corner[1], target[1]], color=GRAY, lw=0.7, zorder=4)


def draw_classifier(axes: Axes, left: float, middle: float) -> float:
    """Draw the three fully connected layers of AlexNet; return the right end."""
    color = ALEXNET_COLORS["fully connected"]
    for units, label, text in ((4096, "flatten,\ndropout", "units"), (4096, "dropout", "units"), (1000, "", "scores")):
        draw_arrow(axes, (left + 0.05, middle), (left + 0.52, middle), color=color)
        draw_text(axes, (left + 0.29, middle + (0.25 if "\n" in label else 0.15)), label, size=8, color=color)
        height = units / 4096 * 1.7
        draw_bar(axes, (left + 0.63, middle), (0.12, height), GREEN)
        draw_text(axes, (left + 0.63, middle - height / 2 - 0.13), str(units), bold=True)
        draw_text(axes, (left + 0.63, middle - height / 2 - 0.3), text)
        left += 0.69
    return left


def draw_alexnet() -> None:
    """Draw the feature maps and the fully connected layers of AlexNet."""
    figure, axes = create_axes(10.4, 4)
    middle, first = 2.25, 0.2
    right = draw_volume(axes, first, middle, 224 * SIDE_SCALE, 3 * CHANNEL_SCALE, PAPER)
    draw_text(axes, ((first + right) / 2, middle - 0.4), "image")
    draw_text(axes, ((first + right) / 2, 0.5), "3 channels", bold=True)
    draw_text(axes, ((first + right) / 2, 0.33), "224×224")
    starts = []
    for side, channels, kind, text in ALEXNET_MAPS:
        gap = 0.39 if starts else 0.72
        left, color = right + gap, ALEXNET_COLORS[kind]
        draw_arrow(axes, (right + 0.04, middle), (left - 0.04, middle), color=color)
        draw_text(axes, (right + gap / 2, middle + (0.12 if starts else -0.2)), text, size=8, color=color)
        starts.append(left)
        right = draw_volume(axes, left, middle, side * SIDE_SCALE, channels * CHANNEL_SCALE, BLUE)
        draw_text(axes, ((left + right) / 2, 1.72), str(channels), bold=True)
        draw_text(axes, ((left + right) / 2, 1.55), f"{side}×{side}")
    draw_window(axes, first, middle, (starts[0], middle + 0.08))
    end = draw_classifier(axes, right, middle)
    draw_legend(axes)
    for start, stop, text in (
        (starts[0], right, "5 convolutions:\n2.5 million parameters"),
        (right + 0.1, end, "3 fully connected layers:\n58.6 million parameters"),
    ):
        draw_bracket(axes, (start, 0.77), (stop, 0.77), (0, 0.08))
        draw_text(axes, ((start + stop) / 2, 0.52), text)
    save(figure, "alexnet")


def draw_legend(axes: Axes) -> None:
    """Draw the legend of the arrows of AlexNet."""
    texts = {
        "convolution": "convolution, ReLU",
        "pooling": "max pooling 3×3, stride 2",
        "fully connected": "fully connected layer, ReLU (not after the last)",
    }
    for index, (kind, text) in enumerate(texts.items()):
        y = 3.75 - 0.25 * index
        draw_arrow(axes, (2.6, y), (3.0, y), color=ALEXNET_COLORS[kind])
        draw_note(axes, (3.1, y), text, size=9, color=INK)


def draw_stacked_convolutions() -> None:
    """Draw three 3×3 convolutions and one 7×7 convolution, with the positions that determine one output."""
    figure, axes = create_axes(9.4, 4.5)
    cell, step = 0.2, 2.6
    for middle, kernel, sides, title, weights in (
        (3.2, 3, (7, 5, 3, 1), "Three 3×3 convolutions", "$3\\,(3^2 C^2) = 27\\,C^2$ weights, three ReLUs"),
        (0.95, 7, (7, 1), "One 7×7 convolution", "$7^2 C^2 = 49\\,C^2$ weights, one ReLU"),
    ):
        draw_note(axes, (0.3, middle + 1.1), title, size=11, color=INK, bold=True)
        draw_note(axes, (9.1, middle + 1.1), weights, size=10, color=INK, align="right")
        end, window = 0.0, list[Point]()  # right side of the previous grid, right corners of the window in it
        for index, side in enumerate(sides):
            left, bottom = 0.3 + index * step * 3 / (len(sides) - 1), middle - side * cell / 2
            top = bottom + side * cell
            colors = {(row, column): BLUE for row in range(min(kernel, side)) for column in range(min(kernel, side))}
            if window:
                colors[0, 0] = ORANGE
                for (x, y), corner in zip(window, (top, top - cell), strict=True):
                    axes.plot([x, left], [y, corner], color=LINE_BLUE, lw=0.9, zorder=4)
                center = ((end + left) / 2, middle - 0.5 if kernel == 3 else middle)
                draw_text(axes, center, f"{kernel}×{kernel} convolution,\nReLU", size=8.5, color=GRAY)
            draw_grid(axes, (left, bottom), cell, [[""] * side] * side, colors=colors)
            draw_text(axes, (left + side * cell / 2, bottom - 0.14), f"{side}×{side}")
            end = left + side * cell
            window = [(left + min(kernel, side) * cell, top), (left + min(kernel, side) * cell, top - kernel * cell)]
    save(figure, "stacked-convolutions")


def draw_rows(axes: Axes, left: float, rows: list[tuple[str, float, list[str], str]]) -> None:
    """Draw rows of eight cells; each is a label, its y, the values and a color."""
    for label, y, values, color in rows:
        draw_grid(axes, (left, y), CELL, [values], colors={(0, column): color for column in range(len(values))})
        draw_note(axes, (left - 0.12, y + CELL / 2), label, color=INK, align="right")


def draw_sign_plots(axes: Axes) -> None:
    """Draw the sign function and the gradient that replaces its derivative."""
    middle, unit = 4.4, 0.32
    draw_note(axes, (5.6, 5.38), "Sign of a value $r$", size=10, color=INK, bold=True)
    for x, title, color in ((6.45, "forward", INK), (8.5, "backward: factor of the gradient", LINE_ORANGE)):
        draw_text(axes, (x, 5.05), title, color=color)
        draw_arrow(axes, (x - 0.8, middle), (x + 0.85, middle), color=RULE)
        draw_arrow(axes, (x, middle - 0.42), (x, middle + 0.48), color=RULE)
        draw_note(axes, (x + 0.92, middle), "$r$")
    axes.plot([5.7, 6.45], [middle - unit] * 2, color=INK, lw=2)
    axes.plot([6.45, 7.2], [middle + unit] * 2, color=INK, lw=2)
    for x, y, text in (
        (6.3, unit, "+1"),
        (6.6, -unit, "−1"),
        (8.18, -0.13, "−1"),
        (8.82, -0.13, "+1"),
        (8.6, 0.44, "1"),
    ):
        draw_text(axes, (x, middle + y), text, size=8.5, color=GRAY)
    levels = [middle, middle, middle + unit, middle + unit, middle, middle]
    axes.plot([7.75, 8.18, 8.18, 8.82, 8.82, 9.25], levels, color=LINE_ORANGE, lw=2)


def draw_binary_training(axes: Axes) -> None:
    """Draw a binarized layer in training, with its latent weights and the gradient."""
    left, weights = 1.6, np.where(LATENT_WEIGHTS >= 0, 1, -1)
    products = weights * INPUTS
    total = products.sum()
    normalized = (total - MEAN) / DEVIATION
    rows = [
        ("latent weights $w$", 4.55, [f"{value}".replace("-", "−") for value in LATENT_WEIGHTS], PAPER),
        *(
            (label, y, [f"{value:+d}".replace("-", "−") for value in values], color)
            for label, y, values, color in (
                ("weights sign($w$)", 3.6, weights, GREEN),
                ("inputs $a$", 3.1, INPUTS, BLUE),
                ("products", 2.55, products, "white"),
            )
        ),
    ]
    draw_note(axes, (0.2, 5.38), "Training: floating-point arithmetic", size=11, color=INK, bold=True)
    draw_note(axes, (left, 5.1), "updated by the optimizer and clipped to [−1, 1]", size=8.5)
    draw_rows(axes, left, rows)
    draw_arrow(axes, (2.4, 4.53), (2.4, 4.04))
    draw_text(axes, (2.15, 4.28), "sign")
    draw_arrow(axes, (3.2, 4.04), (3.2, 4.53), color=LINE_ORANGE, dashed=True)
    draw_note(axes, (3.3, 4.28), "straight-through gradient", color=LINE_ORANGE)
    y = 2.55 + CELL / 2
    boxes = [
        (5.87, 0.75, "sum", f"{total}"),
        (7.42, 1.55, "batch normalization", f"({total} − {MEAN}) / {DEVIATION} = {normalized}"),
        (9.0, 0.7, "sign", f"{1 if normalized >= 0 else -1:+d}"),
    ]
    end = left + 8 * CELL
    for x, width, title, details in boxes:
        start = x - width / 2
        draw_arrow(axes, (end, y - 0.1), (start, y - 0.1))
        if title == "sum":
            draw_route(
                axes, [(start, y + 0.1), (5.22, y + 0.1), (5.22, 3.81), (end, 3.81)], color=LINE_ORANGE, dashed=True
            )
            draw_arrow(axes, (5.22, 3.31), (end, 3.31), color=LINE_ORANGE, dashed=True)
        else:
            draw_arrow(axes, (start, y + 0.1), (end, y + 0.1), color=LINE_ORANGE, dashed=True)
        draw_step(axes, (x, y), width, title, details)
        end = x + width / 2
    draw_arrow(axes, (end, y - 0.1), (end + 0.3, y - 0.1))
    draw_arrow(axes, (end + 0.3, y + 0.1), (end, y + 0.1), color=LINE_ORANGE, dashed=True)
    draw_sign_plots(axes)


def draw_step(axes: Axes, center: Point, width: float, title: str, value: str) -> None:
    """Draw a step of the computation with the value of the example."""
    draw_layer(axes, center, (width, 0.56), "", color="white")
    draw_text(axes, (center[0], center[1] + 0.12), title, size=9)
    draw_text(axes, (center[0], center[1] - 0.12), value, size=9, bold=True)


def draw_binary_inference(axes: Axes) -> None:
    """Draw the same layer in inference, with bits."""
    left = 1.6
    weights, inputs = LATENT_WEIGHTS >= 0, INPUTS > 0
    differing = weights ^ inputs
    count, length = differing.sum(), len(inputs)
    threshold = int((length - MEAN) // 2)  # the largest count with a sum of at least MEAN
    draw_note(axes, (0.2, 1.95), "Inference: one bit per value", size=11, color=INK, bold=True)
    total = length - 2 * count
    draw_text(axes, (5.87, 1.05), f"sum = {length} − 2·{count}\n= {total}", color=GRAY)
    draw_text(axes, (7.42, 1.05), f"sign = +1 if sum ≥ {MEAN},\nthat is, bit count ≤ {threshold}", color=GRAY)
    draw_note(axes, (2.95, 1.94), "1 for +1 and 0 for −1; a word of 64 bits at a time")
    rows = [
        ("weight bits", 1.3, weights, GREEN),
        ("input bits", 0.8, inputs, BLUE),
        ("XOR", 0.25, differing, "white"),
    ]
    draw_rows(axes, left, [(label, y, [str(int(bit)) for bit in bits], color) for label, y, bits, color in rows])
    y, end = 0.25 + CELL / 2, left + length * CELL
    for x, width, title, value in (
        (5.87, 0.75, "bit count", f"{count}"),
        (7.42, 1.55, "threshold", f"{count} ≤ {threshold}"),
        (9.0, 0.7, "bit", f"{int(count <= threshold)}"),
    ):
        draw_arrow(axes, (end, y), (x - width / 2, y))
        draw_step(axes, (x, y), width, title, value)
        end = x + width / 2
    draw_arrow(axes, (end, y), (end + 0.3, y))


def draw_binarized() -> None:
    """Draw a binarized layer in training and in inference."""
    figure, axes = create_axes(9.8, 5.6)
    draw_binary_training(axes)
    axes.plot([0.15, 9.65], [2.2, 2.2], color=RULE, lw=1)
    draw_binary_inference(axes)
    save(figure, "binarized-block")


if __name__ == "__main__":
    draw_inception()
    draw_residual_blocks()
    draw_alexnet()
    draw_stacked_convolutions()
    draw_binarized()
