"""Draw selective-search.svg, rcnn.svg and faster-rcnn.svg, the diagrams of these pages of docs/landmarks.

python docs/figures/scripts/detection_diagrams.py
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

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
    RULE,
    Point,
    create_axes,
    draw_arrow,
    draw_box,
    draw_grid,
    draw_maps,
    draw_note,
    draw_route,
    draw_text,
    save,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Polygon, Rectangle
from matplotlib.path import Path

Box = tuple[float, float, float, float]  # left, bottom, right, top


def compute_circle(center: Point, radius: float, num_points: int = 16) -> list[Point]:
    """Compute the corners of a regular polygon."""
    angles = [2 * math.pi * index / num_points for index in range(num_points)]
    return [(center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle)) for angle in angles]


SCENE = {  # regions of an image of 1000×600 pixels, y from the bottom, in drawing order: color and polygon
    "sky": ("#dbe6ef", [(0, 235), (1000, 235), (1000, 600), (0, 600)]),
    "ground": ("#d3d8c4", [(0, 0), (1000, 0), (1000, 235), (0, 235)]),
    "clothes": (
        "#6f86a6",
        [(105, 85), (112, 250), (92, 255), (92, 365), (120, 392), (190, 392), (218, 365), (218, 255), (198, 250),
         (205, 85), (165, 85), (155, 215), (145, 85)],
    ),
    "head": ("#e3bf9c", compute_circle((155, 432), 42)),
    "body": (
        "#bb5d54",
        [(305, 165), (305, 250), (345, 278), (435, 292), (525, 398), (740, 398), (828, 292), (890, 265), (900, 165)],
    ),
    "window": ("#eef3f6", [(468, 292), (540, 374), (728, 374), (794, 292)]),
    "front wheel": ("#3f474f", compute_circle((425, 165), 64)),
    "rear wheel": ("#3f474f", compute_circle((775, 165), 64)),
}  # fmt: skip
SCENE_VIEW = (0.0, 0.0, 1000.0, 600.0)
DETAILS = {  # lines of an image by color
    "#8c423b": [[(622, 292), (615, 150)], [(640, 262), (672, 262)], [(628, 374), (628, 292)]],
    "#4b5f7d": [[(118, 255), (118, 345)], [(192, 255), (192, 345)]],
    "white": [[(40, 40), (200, 40)], [(400, 40), (560, 40)], [(760, 40), (920, 40)]],
}
CLOUD = [(640, 470), (660, 492), (712, 500), (735, 526), (800, 532), (836, 508), (872, 492), (880, 470)]
BLANK, MEAN_COLOR = "#f0f0ee", "#a9adb1"
REGIONS = {"A": (270, 60, 860, 380), "B": (60, 60, 245, 500), "C": (605, 445, 915, 545)}  # proposals of R-CNN
CAR, PERSON = (300, 98, 905, 403), (88, 82, 222, 478)

LEAVES = ("head", "clothes", "front wheel", "window", "body", "rear wheel", "ground", "sky")
# indices of two regions each; the results are 8, 9, ... These are the merges of fukami.selective_search for the regions
# of SCENE, in HSV or Lab with T+S+F.
MERGES = ((0, 1), (3, 4), (2, 9), (5, 10), (6, 11), (8, 12), (7, 13))
RANDOM_NUMBERS = {11: 0.12, 14: 0.83, 8: 0.21, 4: 0.33}  # R of some regions


def compute_bounds(points: Collection[Point]) -> Box:
    """Compute the bounding box of points."""
    x, y = zip(*points, strict=True)
    return min(x), min(y), max(x), max(y)


def check_overlap(one: Box, other: Box) -> bool:
    """Return whether two boxes overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def snap_point(point: Point) -> Point:
    """Round a position to 1/400 inch: fewer digits keep the files small."""
    return round(400 * point[0]) / 400, round(400 * point[1]) / 400


def draw_lines(
    axes: Axes, lines: Sequence[Sequence[Point]], *, color: str = GRAY, width: float = 1.2, zorder: float = 1
) -> PathPatch:
    """Draw lines of one style, each through several points."""
    codes = [code for line in lines for code in [Path.MOVETO] + [Path.LINETO] * (len(line) - 1)]
    path = Path([snap_point(point) for line in lines for point in line], codes)
    patch = PathPatch(path, fc="none", ec=color, lw=width, zorder=zorder, capstyle="round")
    return axes.add_patch(patch)


@dataclass(frozen=True)
class Panel:
    """Part of the scene in a rectangle of the figure.

    Attributes:
        axes: axes of the figure.
        corner, size: lower left corner, width and height in inches.
        view: visible part of the scene, in its pixels.
    """

    axes: Axes
    corner: Point
    size: Point
    view: Box = SCENE_VIEW

    def project(self, point: Point) -> Point:
        """Convert pixels of the scene to inches."""
        left, bottom, right, top = self.view
        x, y = (point[0] - left) / (right - left), (point[1] - bottom) / (top - bottom)
        return snap_point((self.corner[0] + x * self.size[0], self.corner[1] + y * self.size[1]))

    def draw_scene(
        self, regions: Collection[str] = tuple(SCENE), *, edge: str = "none", has_details: bool = False
    ) -> None:
        """Draw regions in their colors and the others in light gray."""
        is_complete = len(regions) == len(SCENE)
        frame = Rectangle(self.corner, *self.size, fc=MEAN_COLOR if is_complete else BLANK, ec=INK, lw=0.8, zorder=2.9)
        self.axes.add_patch(frame)
        clip = None if self.view == SCENE_VIEW else frame
        polygons = [(color if name in regions else BLANK, points) for name, (color, points) in SCENE.items()]
        if has_details:
            polygons.insert(1, ("white", CLOUD))
        drawn: list[Box] = []
        for color, points in polygons:
            box = compute_bounds(points)
            if color != BLANK or any(check_overlap(box, other) for other in drawn):
                patch = Polygon([self.project(point) for point in points], fc=color, ec=edge, lw=1.1, zorder=3)
                self.axes.add_patch(patch).set_clip_path(clip)
                drawn.append(box)
        for color, lines in DETAILS.items() if has_details else []:
            projected = [[self.project(point) for point in points] for points in lines]
            draw_lines(self.axes, projected, color=color, width=1.2, zorder=3.1).set_clip_path(clip)
        if is_complete:
            self.axes.add_patch(Rectangle(self.corner, *self.size, fc="none", ec=INK, lw=0.8, zorder=4))

    def draw_box(self, box: Box, color: str, *, width: float = 1.6, is_dashed: bool = False, text: str = "") -> None:
        """Draw a bounding box, and a text in its upper left corner."""
        (left, bottom), (right, top) = self.project(box[:2]), self.project(box[2:])
        style = "--" if is_dashed else "-"
        self.axes.add_patch(
            Rectangle((left, bottom), right - left, top - bottom, fc="none", ec=color, lw=width, ls=style, zorder=4.5)
        )
        if text:
            label = {"facecolor": color, "edgecolor": color, "pad": 1.2, "linewidth": 0}
            self.axes.text(left, top, text, fontsize=8.5, color="white", va="bottom", bbox=label, zorder=6)


draw_left_text = partial(draw_note, color=INK)


def draw_cells(axes: Axes, corner: Point, cell: float, shape: tuple[int, int], color: str = BLUE) -> None:
    """Draw a feature map as a grid of ``(rows, columns)``."""
    (x, y), (rows, columns) = corner, shape
    axes.add_patch(Rectangle(corner, columns * cell, rows * cell, fc=color, ec=INK, lw=0.9, zorder=3))
    lines = [[(x + index * cell, y), (x + index * cell, y + rows * cell)] for index in range(1, columns)]
    lines += [[(x, y + index * cell), (x + columns * cell, y + index * cell)] for index in range(1, rows)]
    draw_lines(axes, lines, color=INK, width=0.35, zorder=3.1)


def draw_vector(axes: Axes, center: Point, height: float, text: str, *, color: str = GREEN) -> None:
    """Draw the output of a fully connected layer as a bar, with a text below."""
    x, y = center
    axes.add_patch(Rectangle((x - 0.08, y - height / 2), 0.16, height, fc=color, ec=INK, lw=0.9, zorder=3))
    draw_text(axes, (x, y - height / 2 - 0.14 - 0.07 * text.count("\n")), text, size=8.5, color=GRAY)


def compute_hierarchy() -> list[list[int]]:
    """Compute the initial regions that each region of the hierarchy consists of."""
    members = [[index] for index in range(len(LEAVES))]
    for first, second in MERGES:
        members.append(members[first] + members[second])
    return members


def compute_region_box(members: Collection[int]) -> Box:
    """Compute the bounding box of initial regions, in pixels of the scene."""
    return compute_bounds([point for index in members for point in SCENE[LEAVES[index]][1]])


def draw_region(axes: Axes, center: Point, members: Collection[int]) -> None:
    """Draw a region of the hierarchy and its bounding box."""
    width, height = 0.5, 0.3
    panel = Panel(axes, snap_point((center[0] - width / 2, center[1] - height / 2)), (width, height))
    panel.draw_scene({LEAVES[index] for index in members})
    panel.draw_box(compute_region_box(members), LINE_ORANGE, width=1.2)


def draw_hierarchy(axes: Axes, corner: Point) -> None:
    """Draw the regions of all merges as a tree, each with its position; ``corner`` is the first leaf."""
    members = compute_hierarchy()
    centers = [(corner[0] + 0.6 * index, corner[1]) for index in range(len(LEAVES))]
    lines: list[list[Point]] = []
    for level, (first, second) in enumerate(MERGES, 1):
        x, y = (centers[first][0] + centers[second][0]) / 2, corner[1] + 0.38 * level
        lines += [[(a, b), (a, y), (x, y)] for a, b in (centers[first], centers[second])]
        centers.append((x, y))
    draw_lines(axes, lines)
    for index, (x, y) in enumerate(centers):
        draw_region(axes, (x, y), members[index])
        position = len(members) - index
        offset = (0, -0.23) if index < len(LEAVES) else (0.37, 0.1)
        draw_text(axes, (x + offset[0], y + offset[1]), str(position), size=9, color=LINE_BLUE)


def draw_settings(axes: Axes, corner: Point) -> None:
    """Draw the settings of mode ``fast`` and a hierarchy for each combination."""
    x, y = corner
    rows = [("color space", ("HSV", "Lab")), ("scale k", ("50", "100")), ("similarity", ("C+T+S+F", "T+S+F"))]
    for index, (name, values) in enumerate(rows):
        row_y = y + 0.42 * (2 - index)
        draw_left_text(axes, (x, row_y), name)
        for column, value in enumerate(values):
            draw_box(axes, (x + 1.45 + 0.92 * column, row_y), (0.84, 0.3), "", color=PAPER)
            draw_text(axes, (x + 1.45 + 0.92 * column, row_y), value, size=9)
    draw_arrow(axes, (x + 2.9, y + 0.42), (x + 3.3, y + 0.42))
    lines = [[(0, 0), (0, 0.16), (0.2, 0.16), (0.2, 0)], [(0.1, 0.16), (0.1, 0.32), (0.4, 0.32), (0.4, 0)],
             [(0.25, 0.32), (0.25, 0.4)]]  # fmt: skip
    corners = [(x + 3.45 + 0.52 * column, y + 0.55 * row) for row in range(2) for column in range(4)]
    draw_lines(axes, [[(left + a, low + b) for a, b in line] for left, low in corners for line in lines])
    draw_text(axes, (x + 4.43, y - 0.22), "2 × 2 × 2 = 8 hierarchies", size=9)


def draw_ranking(axes: Axes, corner: Point) -> None:
    """Draw some regions in the order of their products of position and random number."""
    x, y = corner
    members = compute_hierarchy()
    ranked = sorted(((len(members) - index) * number, index) for index, number in RANDOM_NUMBERS.items())
    columns = [x + 0.45, x + 1.05, x + 1.6, x + 2.35]
    for column, title in zip(columns, ("box", "i", "R", "v = R · i"), strict=True):
        draw_text(axes, (column, y + 0.29), title, size=9.5, color=LINE_BLUE if title == "i" else INK)
    for row, (value, index) in enumerate(ranked):
        row_y = y - 0.36 * row
        draw_region(axes, (columns[0], row_y), members[index])
        draw_text(axes, (columns[1], row_y), str(len(members) - index), color=LINE_BLUE)
        draw_text(axes, (columns[2], row_y), f"{RANDOM_NUMBERS[index]:.2f}")
        draw_text(axes, (columns[3], row_y), f"{value:.2f}")
    draw_text(axes, (x + 3.02, y), "first", color=GRAY)
    draw_arrow(axes, (x + 3.02, y - 0.12), (x + 3.02, y - 0.96))
    draw_text(axes, (x + 3.02, y - 1.08), "last", color=GRAY)


def draw_similarities(axes: Axes, corner: Point) -> None:
    """Draw the list of the four similarities; ``corner`` is the upper left one."""
    x, y = corner
    draw_left_text(axes, (x, y), "similarity: sum of", color=GRAY)
    for row, (letter, name) in enumerate(
        (("C", "color"), ("T", "texture"), ("S", "size, small first"), ("F", "fill of the common box"))
    ):
        draw_left_text(axes, (x, y - 0.22 * (row + 1)), letter, bold=True)
        draw_left_text(axes, (x + 0.2, y - 0.22 * (row + 1)), name, color=GRAY)


def draw_selective_search() -> Figure:
    """Draw the segmentation, the grouping of regions, its repetition with other settings, and the ranking."""
    figure, axes = create_axes(9.6, 5.85)
    draw_left_text(axes, (0.15, 5.67), "1  Segmentation", size=10.5, bold=True)
    Panel(axes, (0.15, 4.32), (1.9, 1.14)).draw_scene(has_details=True)
    draw_text(axes, (1.1, 4.18), "image", color=GRAY)
    draw_arrow(axes, (1.1, 4.07), (1.1, 3.77))
    Panel(axes, (0.15, 2.57), (1.9, 1.14)).draw_scene(edge="white")
    draw_text(axes, (1.1, 2.43), f"{len(LEAVES)} initial regions", color=GRAY)
    draw_left_text(axes, (2.5, 5.67), "2  Grouping", size=10.5, bold=True)
    draw_left_text(axes, (2.5, 5.38), "merges the two most\nsimilar neighbors", color=GRAY)
    draw_arrow(axes, (2.1, 2.82), (2.45, 2.82))
    draw_hierarchy(axes, (2.78, 2.82))
    draw_text(axes, (4.88, 2.35), "i: position in the hierarchy", size=9, color=LINE_BLUE)
    draw_arrow(axes, (7.2, 4.77), (7.55, 4.77))
    boxes = Panel(axes, (7.6, 4.22), (1.85, 1.11))
    boxes.draw_scene()
    for region in compute_hierarchy():
        boxes.draw_box(compute_region_box(region), LINE_ORANGE, width=1.1)
    draw_text(axes, (8.52, 5.48), "boxes of all regions", color=GRAY)
    draw_similarities(axes, (7.6, 3.64))
    axes.plot([0.15, 9.45], [2.2, 2.2], color=RULE, lw=0.8)
    draw_left_text(axes, (0.15, 1.98), "3  Diversity", size=10.5, bold=True)
    draw_left_text(axes, (1.32, 1.98), "steps 1 and 2 with each combination of settings", color=GRAY)
    draw_settings(axes, (0.15, 0.62))
    draw_arrow(axes, (5.72, 1.04), (6.1, 1.04))
    draw_left_text(axes, (6.15, 1.98), "4  Order", size=10.5, bold=True)
    draw_left_text(axes, (7.0, 1.98), "of the boxes of all hierarchies", color=GRAY)
    draw_ranking(axes, (6.15, 1.38))
    return figure


def draw_features(axes: Axes) -> None:
    """Draw the warped regions of R-CNN and the network that computes their features."""
    draw_left_text(axes, (2.75, 4.75), "2  Features", size=10.5, bold=True)
    draw_left_text(axes, (3.75, 4.75), "of each region", color=GRAY)
    for index, (name, (left, bottom, right, top)) in enumerate(REGIONS.items()):
        margin = 16 / 195  # context of 16 pixels around 227 - 2 × 16
        x_margin, y_margin = margin * (right - left), margin * (top - bottom)
        view = left - x_margin, bottom - y_margin, right + x_margin, top + y_margin
        panel = Panel(axes, (3.0, 3.75 - 0.74 * index), (0.68, 0.68), view)
        panel.draw_scene(has_details=True)
        panel.draw_box((left, bottom, right, top), LINE_ORANGE, width=1.1, is_dashed=True)
        draw_text(axes, (2.88, 4.09 - 0.74 * index), name, bold=True)
        draw_arrow(axes, (3.72, 4.09 - 0.74 * index), (4.02, 3.35 + 0.15 * (1 - index)))
    draw_arrow(axes, (2.38, 3.35), (2.74, 3.35))
    draw_text(axes, (3.34, 2.06), "warped to 227×227,\n16 pixels of context", size=8.5, color=GRAY)
    draw_box(axes, (4.57, 3.35), (1.08, 1.0), "AlexNet", color=BLUE, details="5 convolutions,\n3 poolings", font=10.5)
    draw_arrow(axes, (5.12, 3.35), (5.29, 3.35))
    draw_maps(axes, (5.54, 3.3), 0.46, 0.42)
    draw_text(axes, (5.6, 2.88), "pool5\n256×6×6", size=8.5, color=GRAY)
    draw_arrow(axes, (5.96, 3.35), (6.22, 3.35))
    for x, name in ((6.32, "fc6\n4,096"), (6.82, "fc7\n4,096")):
        draw_vector(axes, (x, 3.35), 1.3, name)
    draw_arrow(axes, (6.4, 3.35), (6.72, 3.35))
    draw_arrow(axes, (6.9, 3.35), (7.16, 3.35))


def draw_classification(axes: Axes) -> None:
    """Draw the SVMs of R-CNN and their scores of three regions."""
    draw_left_text(axes, (7.1, 4.75), "3  Classification", size=10.5, bold=True)
    draw_box(axes, (7.62, 3.35), (0.9, 1.0), "SVMs", color=PAPER, details="one for\neach class", font=10.5)
    draw_arrow(axes, (8.07, 3.35), (8.3, 3.35))
    values = [["1.6", "−1.9"], ["−1.7", "1.1"], ["−1.3", "−1.4"]]
    draw_grid(axes, (8.52, 2.85), 0.42, values, colors={(0, 0): ORANGE, (1, 1): ORANGE})
    for row, name in enumerate("ABC"):
        draw_text(axes, (8.4, 3.9 - 0.42 * row), name, bold=True)
    draw_text(axes, (8.73, 4.24), "car", size=8.5)
    draw_text(axes, (9.14, 4.24), "person", size=8.5)
    draw_text(axes, (8.93, 2.62), "a score per region\nand class", size=8.5, color=GRAY)


def draw_detections(axes: Axes) -> None:
    """Draw the non-maximum suppression and the box regression of R-CNN, from right to left."""
    size, y = (1.8, 1.08), 0.89
    corners = [(left, y - size[1] / 2) for left in (7.65, 3.95, 0.15)]
    scored, kept, refined = (Panel(axes, corner, size) for corner in corners)
    candidates = {"1.6": REGIONS["A"], "0.9": (400, 120, 985, 440), "1.1": REGIONS["B"]}
    hidden = [(235, 100, 790, 350), (30, 60, 190, 430)]
    for panel in (scored, kept, refined):
        panel.draw_scene(has_details=True)
    for box in hidden:
        scored.draw_box(box, LINE_ORANGE, width=1.1)
    for text, box in candidates.items():
        scored.draw_box(box, LINE_ORANGE, width=1.1, text=text)
    for text, box in (("1.6", candidates["1.6"]), ("1.1", candidates["1.1"])):
        kept.draw_box(box, LINE_ORANGE, text=text)
    refined.draw_box(CAR, LINE_GREEN, text="car")
    refined.draw_box(PERSON, LINE_GREEN, text="person")
    for x, text in ((8.55, "regions with high scores"), (4.85, "one box for each object"), (1.05, "detections")):
        draw_text(axes, (x, 0.2), text, color=GRAY)
    draw_box(axes, (6.7, y), (1.34, 0.86), "NMS", details="per class, removes\nIoU > 0.3", font=10.5)
    draw_box(axes, (2.95, y), (1.24, 0.86), "regression", details="4 offsets for\neach class", font=10.5)
    for start, end in ((7.6, 7.4), (6.0, 5.8), (3.9, 3.61), (2.31, 2.0)):
        draw_arrow(axes, (start, y), (end, y))


def draw_rcnn() -> Figure:
    """Draw the steps of R-CNN: proposals, features of warped regions, SVMs with suppression, box regression."""
    figure, axes = create_axes(9.6, 4.95)
    draw_left_text(axes, (0.15, 4.75), "1  Region proposals", size=10.5, bold=True)
    image = Panel(axes, (0.15, 2.68), (2.2, 1.32))
    image.draw_scene(has_details=True)
    others = [
        (30, 250, 560, 590), (60, 60, 300, 540), (420, 60, 990, 330), (520, 280, 850, 420), (350, 90, 510, 250),
        (700, 90, 860, 250), (85, 380, 230, 490), (90, 240, 225, 400), (10, 10, 620, 300), (250, 60, 960, 470),
    ]  # fmt: skip
    for box in others:
        image.draw_box(box, GRAY, width=0.7)
    for name, box in REGIONS.items():
        image.draw_box(box, LINE_ORANGE, text=name)
    draw_text(axes, (1.25, 2.43), "about 2,000 boxes\nof Selective Search", color=GRAY)
    draw_features(axes)
    draw_classification(axes)
    draw_arrow(axes, (8.93, 2.42), (8.93, 1.49))
    draw_left_text(axes, (0.15, 1.66), "4  Bounding-box regression", size=10.5, bold=True)
    draw_route(axes, [(5.6, 2.66), (5.6, 1.86), (2.95, 1.86), (2.95, 1.34)])
    draw_text(axes, (5.0, 1.97), "pool5 features", size=8.5, color=GRAY)
    draw_detections(axes)
    return figure


ANCHOR_SIZES, ANCHOR_RATIOS = (128, 256, 512), (0.5, 1.0, 2.0)  # pixels, height over width
ANCHOR_COLORS = ("#6aa5dc", LINE_BLUE, "#153a60")


def draw_band(axes: Axes, corner: Point, size: Point, title: str, *, indent: float = 0.2) -> None:
    """Draw the background and the title of a stage."""
    axes.add_patch(Rectangle(corner, *size, fc="#f5f6f7", ec=RULE, lw=0.8, zorder=0))
    draw_left_text(axes, (corner[0] + indent, corner[1] + size[1] - 0.17), title, size=10.5, bold=True)


def draw_anchors(axes: Axes) -> None:
    """Draw a position of the maps and its nine anchors in an image of 1000×600 pixels, to scale."""
    corner, cell = (2.7, 4.3), 0.17
    draw_cells(axes, corner, cell, (6, 8))
    x, y = corner[0] + 2 * cell, corner[1] + 2 * cell
    axes.add_patch(Rectangle((x, y), 3 * cell, 3 * cell, fc=ANCHOR_COLORS[0], ec=INK, lw=0.8, zorder=3.2))
    axes.add_patch(Rectangle((x + cell, y + cell), cell, cell, fc=ANCHOR_COLORS[2], ec=INK, lw=0.8, zorder=3.3))
    draw_text(axes, (corner[0] + 4 * cell, 5.5), "3×3 window\nat each position", size=9, color=GRAY)
    scale, center = 0.0021, (6.0, corner[1] + 3.5 * cell)
    panel = Panel(axes, (center[0] - 500 * scale, center[1] - 300 * scale), (1000 * scale, 600 * scale))
    panel.draw_scene(has_details=True)
    draw_arrow(axes, (corner[0] + 8 * cell + 0.05, center[1]), (panel.corner[0] - 0.05, center[1]), "anchors")
    for size, color in zip(ANCHOR_SIZES, ANCHOR_COLORS, strict=True):
        for ratio in ANCHOR_RATIOS:
            half_width, half_height = round(size / math.sqrt(ratio) / 2), round(size * math.sqrt(ratio) / 2)
            box = 500 - half_width, 300 - half_height, 500 + half_width, 300 + half_height
            panel.draw_box(box, color, width=1.6)
    draw_left_text(axes, (7.3, 5.62), "9 anchors at each position", bold=True)
    draw_left_text(axes, (7.3, 5.41), "to scale; image: 1000×600 pixels", color=GRAY)
    for row, (size, color) in enumerate(zip(ANCHOR_SIZES, ANCHOR_COLORS, strict=True)):
        axes.plot([7.33, 7.63], [5.15 - 0.21 * row] * 2, color=color, lw=2)
        draw_left_text(axes, (7.73, 5.15 - 0.21 * row), f"size {size} pixels")
    draw_left_text(axes, (7.3, 4.42), "aspect ratios 0.5, 1 and 2\n(height over width)")


def draw_proposal_network(axes: Axes) -> None:
    """Draw the layers of the region proposal network."""
    draw_band(axes, (2.5, 2.6), (7.0, 3.5), "1  Region proposal network")
    draw_anchors(axes)
    y = 3.24
    draw_box(axes, (3.25, y), (1.1, 0.72), "3×3 conv", color=BLUE, details="512, ReLU", font=10.5)
    for branch_y, name, details in (
        (y + 0.31, "objectness", "1×1 conv, 9"),
        (y - 0.31, "box offsets", "1×1 conv, 4 · 9"),
    ):
        draw_box(axes, (4.95, branch_y), (1.3, 0.54), name, color=BLUE, details=details, font=10.5)
        draw_arrow(axes, (3.82, y), (4.28, branch_y))
        draw_arrow(axes, (5.62, branch_y), (5.96, y))
    draw_box(axes, (6.65, y), (1.32, 0.86), "NMS", details="anchors + offsets,\nremoves IoU > 0.7", font=10.5)
    draw_arrow(axes, (6.65, 4.21), (6.65, y + 0.45))
    draw_arrow(axes, (7.33, y), (7.65, y))
    panel = Panel(axes, (7.7, y - 0.48), (1.6, 0.96))
    panel.draw_scene(has_details=True)
    for box in [
        (270, 60, 860, 380), (60, 120, 245, 500), (320, 100, 930, 420), (90, 60, 215, 460), (600, 90, 880, 300),
        (340, 260, 850, 420), (620, 450, 900, 550),
    ]:  # fmt: skip
        panel.draw_box(box, LINE_ORANGE, width=1.1)
    draw_text(axes, (8.5, y + 0.6), "300 proposals", color=GRAY)


def draw_detection_head(axes: Axes) -> None:
    """Draw RoIAlign and the layers of the detection head."""
    draw_band(axes, (2.5, 0.12), (7.0, 2.13), "2  Detection head, for each proposal", indent=1.05)
    y, cell = 1.13, 0.155
    corner = (2.7, y - 3 * cell)
    draw_cells(axes, corner, cell, (6, 8))
    left, low, width, height = corner[0] + 0.2, corner[1] + 0.19, 0.87, 0.58
    right, top = left + width, low + height
    lines = [[(left + width * index / 7, low), (left + width * index / 7, top)] for index in range(8)]
    lines += [[(left, low + height * index / 7), (right, low + height * index / 7)] for index in range(8)]
    draw_lines(axes, lines, color=LINE_ORANGE, width=1, zorder=4)
    draw_text(axes, (3.32, 0.42), "RoIAlign:\n7×7 bins", size=9, color=GRAY)
    draw_arrow(axes, (3.99, y), (4.22, y))
    draw_maps(axes, (4.48, y - 0.05), 0.44, 0.4, "512×7×7")
    draw_arrow(axes, (4.92, y), (5.12, y))
    for x, name in ((5.22, "fc6\n4,096"), (5.72, "fc7\n4,096")):
        draw_vector(axes, (x, y), 1.0, name)
    draw_arrow(axes, (5.3, y), (5.62, y))
    for branch_y, name, details in ((y + 0.34, "classes", "K + 1, softmax"), (y - 0.34, "box offsets", "4 · (K + 1)")):
        draw_box(axes, (6.61, branch_y), (1.14, 0.54), name, color=GREEN, details=details, font=10.5)
        draw_arrow(axes, (5.8, y), (6.03, branch_y))
        draw_arrow(axes, (7.2, branch_y), (7.38, y))
    draw_box(axes, (7.78, y), (0.76, 0.86), "NMS", details="removes\nIoU > 0.5", font=10.5)
    draw_arrow(axes, (8.17, y), (8.3, y))
    panel = Panel(axes, (8.32, y - 0.33), (1.1, 0.66))
    panel.draw_scene(has_details=True)
    panel.draw_box(CAR, LINE_GREEN)
    panel.draw_box(PERSON, LINE_GREEN)
    draw_text(axes, (8.87, y - 0.47), "detections", color=GRAY)


def draw_faster_rcnn() -> Figure:
    """Draw the shared convolutions of Faster R-CNN and its two stages."""
    figure, axes = create_axes(9.6, 6.22)
    Panel(axes, (0.2, 4.72), (1.9, 1.14)).draw_scene(has_details=True)
    draw_text(axes, (1.15, 6.0), "image, H×W", color=GRAY)
    draw_arrow(axes, (1.15, 4.66), (1.15, 4.3))
    draw_box(axes, (1.15, 3.9), (1.7, 0.76), "VGG-16", color=BLUE, details="13 convolutions,\n4 poolings", font=10.5)
    draw_arrow(axes, (1.15, 3.5), (1.15, 3.18))
    draw_maps(axes, (1.0, 2.36), 1.05, 0.6)
    draw_text(axes, (1.15, 1.57), "shared maps\n512 × H/16 × W/16", color=GRAY)
    for y in (3.24, 1.13):
        draw_route(axes, [(1.8, 2.43), (2.25, 2.43), (2.25, y), (2.66, y)])
    draw_route(axes, [(8.5, 2.74), (8.5, 2.43), (3.33, 2.43), (3.33, 1.62)], color=LINE_ORANGE)
    draw_proposal_network(axes)
    draw_detection_head(axes)
    return figure


if __name__ == "__main__":
    save(draw_selective_search(), "selective-search")
    save(draw_rcnn(), "rcnn")
    save(draw_faster_rcnn(), "faster-rcnn")
