"""Boxes, arrows and stacks of feature maps for the diagrams of the landmarks; all in one style."""

import pathlib
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.path import Path

FIGURES = pathlib.Path(__file__).parents[1]
INK, GRAY, RULE = "#23303d", "#66727e", "#c3c9ce"
PAPER, BLUE, GREEN, ORANGE, PURPLE = "#f1ecdd", "#b3cde8", "#a9cf9b", "#f2b880", "#cdb9e0"  # fills
LINE_BLUE, LINE_GREEN, LINE_ORANGE = "#2f6fae", "#4f8a3f", "#c0662b"
Point = tuple[float, float]


def create_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure of ``width × height`` inches; the coordinates are inches, y from the bottom."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    return figure, axes


def draw_text(axes: Axes, center: Point, text: str, *, size: float = 9, color: str = INK, bold: bool = False) -> None:
    """Draw a centered text; lines are separated by newlines."""
    draw_note(axes, center, text, size=size, color=color, bold=bold, align="center")


def draw_note(
    axes: Axes, position: Point, text: str, *, size: float = 9, color: str = GRAY, bold: bool = False,
    align: str = "left", vertical: str = "center", spacing: float = 1.2,
) -> None:  # fmt: skip
    """Draw a text that is aligned to a side of its position."""
    weight = "bold" if bold else "normal"
    style = {"fontsize": size, "color": color, "fontweight": weight, "linespacing": spacing}
    axes.text(*position, text, ha=align, va=vertical, zorder=5, **style)


def draw_box(
    axes: Axes, center: Point, size: Point, text: str, *, color: str = PAPER, details: str = "", font: float = 9.5
) -> None:
    """Draw a box with a title, and smaller details below it."""
    (x, y), (width, height) = center, size
    corner = x - width / 2, y - height / 2
    axes.add_patch(
        FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=.06", fc=color, ec=INK, lw=0.9, zorder=3)
    )
    offset = 0.05 + 0.06 * details.count("\n") if details else 0
    draw_text(axes, (x, y + offset + (0.05 if details else 0)), text, size=font, bold=True)
    if details:
        draw_text(axes, (x, y - 0.13), details, size=font - 2, color=GRAY)


def draw_arrow(
    axes: Axes, start: Point, end: Point, text: str = "", *, color: str = GRAY, curve: float = 0, dashed: bool = False,
    offset: Point = (0, 0.12),
) -> None:  # fmt: skip
    """Draw an arrow, and a text beside its middle; ``curve`` bends it to the right of its direction."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>,head_width=2.2,head_length=4.5", connectionstyle=f"arc3,rad={curve}",
            color=color, lw=1.3, linestyle="--" if dashed else "-", shrinkA=0, shrinkB=0, zorder=2,
        )
    )  # fmt: skip
    if text:
        middle = (start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1]
        draw_text(axes, middle, text, size=8, color=GRAY)


def draw_route(axes: Axes, points: Sequence[Point], *, color: str = GRAY, dashed: bool = False) -> None:
    """Draw an arrow along straight lines between the points."""
    axes.add_patch(
        FancyArrowPatch(
            path=Path(list(points)), arrowstyle="-|>,head_width=2.2,head_length=4.5", color=color, lw=1.3,
            linestyle="--" if dashed else "-", joinstyle="round", zorder=2,
        )
    )  # fmt: skip


def draw_maps(axes: Axes, center: Point, side: float, depth: float, text: str = "", *, color: str = BLUE) -> None:
    """Draw feature maps as a block: a square of ``side`` with a ``depth`` to the right, and a text below."""
    x, y = center[0] - side / 2, center[1] - side / 2
    shift = 0.45 * depth
    axes.add_patch(Rectangle((x, y), side, side, fc=color, ec=INK, lw=0.9, zorder=3))
    top = [(x, y + side), (x + shift, y + side + shift), (x + side + shift, y + side + shift), (x + side, y + side)]
    right = [(x + side, y), (x + side + shift, y + shift), (x + side + shift, y + side + shift), (x + side, y + side)]
    axes.add_patch(Polygon(top, fc="white", ec=INK, lw=0.9, zorder=3))
    axes.add_patch(Polygon(right, fc=RULE, ec=INK, lw=0.9, zorder=3))
    if text:
        draw_text(axes, (center[0] + shift / 2, y - 0.16), text, size=8, color=GRAY)


def draw_grid(
    axes: Axes, corner: Point, cell: float, values: list[list[str]], *, colors: dict[Point, str] | None = None
) -> None:
    """Draw a matrix of cells, the first row on top; ``colors`` are those of cells (row, column)."""
    rows = len(values)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            x, y = corner[0] + column * cell, corner[1] + (rows - 1 - row) * cell
            fill = (colors or {}).get((row, column), "white")
            axes.add_patch(Rectangle((x, y), cell, cell, fc=fill, ec=INK, lw=0.8, zorder=3))
            draw_text(axes, (x + cell / 2, y + cell / 2), value, size=8.5)


def save(figure: Figure, name: str) -> None:
    """Write ``docs/figures/NAME.svg``, the same bytes each time, without references to axes that clip nothing."""
    for axes in figure.axes:
        for artist in (*axes.patches, *axes.lines, *axes.collections):
            if artist.clipbox is not None and artist.clipbox.bounds == axes.bbox.bounds:
                artist.set_clip_on(False)
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
