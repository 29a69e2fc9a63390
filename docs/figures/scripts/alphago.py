"""Draw alphago-search.svg, a simulation of the tree search, alphago-training.svg, the training loop, and
alphago-curves.svg, the learning curves of benchmarks/results.csv.

python docs/figures/scripts/alphago.py
"""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

INK, GRAY, RULE = "#23303d", "#66727e", "#c3c9ce"
NODE, PATH, NEW, TARGET = "#f1ecdd", "#2f6fae", "#f2b880", "#a9cf9b"
TREE = {"root": (0, 3), "a": (-1.3, 2), "b": (0, 2), "c": (1.3, 2), "d": (-0.6, 1), "e": (0.6, 1), "leaf": (0.6, 0)}
EDGES = [("root", "a"), ("root", "b"), ("root", "c"), ("b", "d"), ("b", "e"), ("e", "leaf")]
SELECTED = EDGES[1], EDGES[4], EDGES[5]
VISITS, POLICY = (3, 8, 5), (0.05, 0.8, 0.15)  # of the moves of the root in the last panel
RADIUS = 0.2
BOXES = {  # center, title, details and color
    "network": ((0, 2.2), "network", "policy p, value v", NEW),
    "search": ((5.2, 2.2), "tree search", "512 games, a move in each:\nimproved policy, value", NODE),
    "games": ((10.4, 2.2), "finished games", "value targets from the outcome\nand the values of the search", TARGET),
    "window": ((10.4, 0), "replay window", "the last half of the positions;\nequal ones are averaged", NODE),
    "batch": ((5.2, 0), "batch", "128 positions,\neach in a random symmetry", NODE),
    "step": ((0, 0), "optimizer step", "cross entropy of the policy,\nsquared error of the value", TARGET),
}
ARROWS = [
    ("network", "search", "evaluates\nleaves"),
    ("search", "games", "plays\nmoves"),
    ("games", "window", ""),
    ("window", "batch", "samples"),
    ("batch", "step", ""),
    ("step", "network", "moving average of the weights"),
]
BOX_WIDTH, BOX_HEIGHT = 3.9, 1.25
CURVE_COLORS = ["#2f6fae", "#c0662b", "#4f8a3f", "#7a4fa0", "#a03d4f", "#3d8a8a"]
GO_LABELS = {"go5": "5×5", "go7": "7×7", "go9": "9×9"}
DEFAULT_POSITIONS = 160_000  # of Connect Four
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results.csv"


def draw_tree(axes: Axes, *, has_leaf: bool, is_selected: bool) -> None:
    """Draw the tree, with the new leaf and the path of the simulation."""
    for edge in EDGES if has_leaf else EDGES[:-1]:
        (x1, y1), (x2, y2) = (TREE[name] for name in edge)
        is_path = is_selected and edge in SELECTED
        axes.plot([x1, x2], [y1, y2], color=PATH if is_path else RULE, lw=2.4 if is_path else 1.2, zorder=1)
    for name, center in TREE.items():
        if name != "leaf" or has_leaf:
            axes.add_patch(Circle(center, RADIUS, facecolor=NEW if name == "leaf" else NODE, edgecolor=INK, lw=0.9))


def draw_search() -> Figure:
    """Draw the three phases of a simulation, and the result of the search."""
    figure = Figure(figsize=(11.5, 3.9), facecolor="white")
    titles = ("1  selection", "2  expansion, evaluation", "3  backup", "result of all simulations")
    panels = [figure.add_axes((index / 4, 0, 1 / 4, 1)) for index in range(4)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_axis_off()
        axes.set_xlim(-2.1, 2.1)
        axes.set_ylim(-1.35, 4.1)
        axes.set_aspect("equal")
        axes.text(0, 3.75, title, ha="center", va="center", fontsize=11, fontweight="bold", color=INK)
    label = {"ha": "center", "va": "top", "fontsize": 9.5, "color": GRAY}
    draw_tree(panels[0], has_leaf=False, is_selected=True)
    panels[0].text(0, 0.55, "from the root, one move per node,\nuntil a move without a node", **label)
    draw_tree(panels[1], has_leaf=True, is_selected=False)
    panels[1].text(0, -0.5, "the network predicts the policy p\nand the value v of the new node", **label)
    draw_tree(panels[2], has_leaf=True, is_selected=True)
    for (start, end), sign in zip(SELECTED, ("−v", "+v", "−v"), strict=True):
        x, y = ((TREE[start][axis] + TREE[end][axis]) / 2 for axis in range(2))
        panels[2].text(x + 0.18, y, sign, ha="left", va="center", fontsize=10, color=PATH)
    panels[2].text(0, -0.5, "the value changes its sign\nfrom one side to the other", **label)
    draw_result(panels[3])
    panels[3].text(0, -0.5, "completed values of the moves\ngive the improved policy", **label)
    return figure


def draw_result(axes: Axes) -> None:
    """Draw the moves of the root with their visits and the improved policy."""
    for name, visits, probability in zip("abc", VISITS, POLICY, strict=True):
        (x, y), (root_x, root_y) = TREE[name], TREE["root"]
        axes.plot([root_x, x], [root_y, y], color=RULE, lw=1.2, zorder=1)
        axes.add_patch(Circle((x, y), RADIUS, facecolor=NODE, edgecolor=INK, lw=0.9))
        axes.text(x, 1.55, f"{visits} visits", ha="center", va="center", fontsize=9, color=INK)
        axes.add_patch(Rectangle((x - 0.3, 0.1), 0.6, 1.1 * probability, facecolor=PATH))
        axes.text(x, -0.12, f"{probability:.2f}", ha="center", va="center", fontsize=9, color=INK)
    axes.plot([-2, 2], [0.1, 0.1], color=INK, lw=0.8)
    axes.add_patch(Circle(TREE["root"], RADIUS, facecolor=NODE, edgecolor=INK, lw=0.9))


def draw_training() -> Figure:
    """Draw the training loop."""
    figure = Figure(figsize=(11.5, 3.6), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-2.3, 12.7)
    axes.set_ylim(-1.1, 3.3)
    style = {"ha": "center", "va": "center"}
    for (x, y), title, details, color in BOXES.values():
        corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
        axes.add_patch(
            FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, "round,pad=0,rounding_size=.12", fc=color, ec=INK, lw=0.9)
        )
        axes.text(x, y + 0.34, title, fontsize=11, fontweight="bold", color=INK, **style)
        axes.text(x, y - 0.2, details, fontsize=9, color=INK, **style)
    arrow = {"arrowstyle": "-|>,head_width=.2,head_length=.4", "color": GRAY, "lw": 1.2}
    for start, end, text in ARROWS:
        (x1, y1), (x2, y2) = BOXES[start][0], BOXES[end][0]
        dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
        tail = (x1 + dx * BOX_WIDTH / 2, y1 + dy * BOX_HEIGHT / 2)
        head = (x2 - dx * BOX_WIDTH / 2, y2 - dy * BOX_HEIGHT / 2)
        axes.annotate("", head, tail, arrowprops=arrow)
        offset = (0, 0.3) if dx else (0.15, 0)
        middle = ((tail[0] + head[0]) / 2 + offset[0], (tail[1] + head[1]) / 2 + offset[1])
        axes.text(*middle, text, fontsize=9, color=GRAY, va="center", ha="center" if dx else "left")
    return figure


def read_curves(game: str) -> Iterator[tuple[str, list[float], list[float]]]:
    """Read the latest learning curves of a game: the label, the minutes and the values in percent."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["benchmark"].startswith(f"alphago-zero {game} ")]
    rows = [row for row in rows if row["benchmark"].endswith("learning curve")]
    runs = itertools.groupby(rows, lambda row: (row["benchmark"], row["seed"], row["commit"]))
    curves = {key[:2]: list(part) for key, part in runs}  # of the latest commit
    for part in curves.values():
        positions = re.search(r"--positions (\d+)", part[0]["command"])
        label = GO_LABELS.get(game, f"{int(positions[1]) if positions else DEFAULT_POSITIONS:,} positions")
        yield label, [float(row["seconds"]) / 60 for row in part], [100 * float(row["value"]) for row in part]


def draw_curves() -> Figure:
    """Draw the strength over the minutes of training, in a panel for Connect Four and one for Go."""
    panels = ("Connect Four: optimal moves, %", ["connect4"]), ("Go: score against GNU Go level 1, %", list(GO_LABELS))
    figure = Figure(figsize=(5.4 * len(panels), 3.6), facecolor="white", layout="constrained")
    for axes, (title, games) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        colors: dict[str, str] = {}
        for label, minutes, values in (curve for game in games for curve in read_curves(game)):
            is_first = label not in colors
            color = colors.setdefault(label, CURVE_COLORS[len(colors)])
            axes.plot(minutes, values, color=color, marker="o", ms=3, lw=1.4, label=label if is_first else None)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("minutes of training")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=RULE, lw=0.5)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    folder = Path(__file__).parents[1]
    draw_search().savefig(folder / "alphago-search.svg", metadata={"Date": None})
    draw_training().savefig(folder / "alphago-training.svg", metadata={"Date": None})
    draw_curves().savefig(folder / "alphago-curves.svg", metadata={"Date": None})
