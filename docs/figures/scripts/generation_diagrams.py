"""Draw the diagrams of Show and Tell, neural style transfer, DCGAN and DQN.

python docs/figures/scripts/generation_diagrams.py    writes show-and-tell.svg, gram-matrix.svg, dcgan.svg and dqn.svg
"""

import math
from collections import defaultdict
from functools import partial
from itertools import pairwise, product

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
    draw_box,
    draw_maps,
    draw_note,
    draw_route,
    draw_text,
    save,
)
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

VIOLET = "#8a6bb0"
PHOTO = [  # shapes of the photograph of a boat in the unit square: points, color, color after style transfer
    ([(0, 0), (1, 0), (1, 1), (0, 1)], BLUE, ORANGE),
    ([(0, 0), (1, 0), (1, 0.34), (0, 0.34)], LINE_BLUE, VIOLET),
    ([(0.5, 0.4), (0.5, 0.92), (0.16, 0.4)], "white", PAPER),
    ([(0.56, 0.4), (0.56, 0.8), (0.84, 0.4)], "white", PAPER),
    ([(0.12, 0.35), (0.88, 0.35), (0.74, 0.18), (0.28, 0.18)], INK, INK),
]
SWIRL = (0.4, 0.6)  # center of the strokes of the style image
STROKE_COLORS = [PAPER, LINE_ORANGE, VIOLET, PAPER, LINE_ORANGE, VIOLET, INK]  # from the center outwards

WORDS = ["<begin>", "a", "sailing", "boat", "<end>"]
STEPS = [4.15 + 1.25 * step for step in range(5)]  # x of the steps of the LSTM, the first with the image
CANDIDATES = [  # of beam search at each step: word, probability of the words so far, row of the parent, is it kept
    [("a", 0.60, 0, True), ("the", 0.30, 0, True), ("one", 0.05, 0, False)],
    [("sailing", 0.30, 0, True), ("boat", 0.18, 0, True), ("boat", 0.15, 1, False), ("sailing", 0.06, 1, False)],
    [("boat", 0.24, 0, True), ("ship", 0.03, 0, False), ("<end>", 0.09, 1, True), ("on", 0.05, 1, False)],
    [("<end>", 0.22, 0, True), ("on", 0.01, 0, False), ("<end>", 0.09, 2, True)],
]

MAPS = [[2, 0, 0, 0, 3, 0, 0, 0, 1], [1, 0, 0, 0, 2, 0, 1, 0, 1], [0, 0, 3, 0, 0, 0, 2, 1, 0]]  # three flattened maps
VGG_MAPS = [  # layer, x, side and depth of the block, channels, size for an image of 224×224
    ("conv1_1", 2.25, 0.9, 0.12, 64, 224),
    ("conv2_1", 3.5, 0.66, 0.2, 128, 112),
    ("conv3_1", 4.6, 0.48, 0.32, 256, 56),
    ("conv4_1", 5.62, 0.34, 0.45, 512, 28),
    ("conv4_2", 6.66, 0.34, 0.45, 512, 28),
    ("conv5_1", 7.68, 0.22, 0.45, 512, 14),
]

GENERATOR_MAPS = [  # left edge, side and depth of the block, label
    (0.95, 0.2, 0.6, "1024×4×4"),
    (1.72, 0.3, 0.42, "512×8×8"),
    (2.47, 0.42, 0.28, "256×16×16"),
    (3.27, 0.6, 0.18, "128×32×32"),
]
DISCRIMINATOR_MAPS = [
    (5.95, 0.6, 0.18, "128×32×32"),
    (6.92, 0.42, 0.28, "256×16×16"),
    (7.76, 0.3, 0.42, "512×8×8"),
    (8.52, 0.2, 0.6, "1024×4×4"),
]

LEFT, CENTER, RIGHT = 1.2, 5.15, 8.77  # x of the boxes of DQN
ACTING, LEARNING = 4.75, 2.6  # y of the boxes
DQN_BOXES = [  # center, size, title, details, color, font size
    ((LEFT, ACTING), (1.9, 1.4), "", "", PAPER, 10),
    ((3.18, ACTING - 0.35), (1.4, 0.64), "ε-greedy", "random action with\nprobability ε", PAPER, 10),
    ((CENTER, ACTING), (1.9, 1.4), "network", "$Q(s, a; \\theta)$", GREEN, 11),
    ((RIGHT, ACTING), (1.8, 0.9), "loss", "Huber loss of\n$y - Q(s, a; \\theta)$", ORANGE, 10.5),
    ((LEFT, LEARNING), (1.9, 0.8), "replay buffer", "the last 1,000,000\ntransitions", BLUE, 10.5),
    ((CENTER, LEARNING), (1.9, 0.8), "minibatch", "32 transitions,\nsampled uniformly", BLUE, 10.5),
    (
        (RIGHT, LEARNING), (2.1, 0.8), "target network", "$y = r + \\gamma\\,\\max_{a'}\\, Q(s', a'; \\theta^{-})$",
        PURPLE, 11,
    ),
]  # fmt: skip
Q_MAPS = [  # x, side and depth of the block, label, next layer
    (2.0, 0.8, 0.12, "4×84×84", "conv 8×8\nstride 4"),
    (3.6, 0.5, 0.25, "32×20×20", "conv 4×4\nstride 2"),
    (5.0, 0.34, 0.4, "64×9×9", "conv 3×3\nstride 1"),
    (6.3, 0.28, 0.4, "64×7×7", "fully\nconnected"),
]


write_note = partial(draw_note, size=8.5, vertical="top", spacing=1.4)


def draw_gradient(axes: Axes, start: Point, end: Point, text: str = "") -> None:
    """Draw the direction of a gradient as a dashed arrow."""
    draw_arrow(axes, start, end, text, color=LINE_ORANGE, dashed=True)


def draw_vector(axes: Axes, center: Point, height: float, color: str = BLUE) -> None:
    """Draw a vector as a narrow column."""
    axes.add_patch(
        Rectangle((center[0] - 0.06, center[1] - height / 2), 0.12, height, fc=color, ec=INK, lw=0.9, zorder=3)
    )


def draw_frame(axes: Axes, corner: Point, side: float, color: str) -> None:
    """Draw the background and the border of an image."""
    axes.add_patch(Rectangle(corner, side, side, fc=color, ec="none", zorder=3))
    axes.add_patch(Rectangle(corner, side, side, fill=False, ec=INK, lw=0.9, zorder=4.5))


def draw_photo(axes: Axes, center: Point, side: float, *, stylized: bool = False) -> None:
    """Draw the photograph of a boat, or its shapes in the colors of the style image."""
    x, y = center[0] - side / 2, center[1] - side / 2
    draw_frame(axes, (x, y), side, "white")
    for points, *colors in PHOTO:
        color = colors[stylized]
        axes.add_patch(Polygon([(x + side * u, y + side * v) for u, v in points], fc=color, ec="none", zorder=4))


def draw_segments(axes: Axes, segments: list[list[Point]], *, color: str, width: float, zorder: float) -> None:
    """Draw line segments as one path, which keeps the file small."""
    codes = [Path.MOVETO, Path.LINETO] * len(segments)
    path = Path([point for segment in segments for point in segment], codes)
    axes.add_patch(PathPatch(path, fill=False, ec=color, lw=width, capstyle="round", zorder=zorder))


def draw_strokes(axes: Axes, center: Point, side: float, *, has_content: bool) -> None:
    """Draw the strokes of the style image, or those around the boat of the generated image."""
    x, y = center[0] - side / 2, center[1] - side / 2
    draw_frame(axes, (x, y), side, ORANGE)
    if has_content:
        draw_photo(axes, center, side, stylized=True)
    strokes: dict[str, list[list[Point]]] = defaultdict(list)
    for row, column in product(range(8), repeat=2):
        u, v = (column + 0.5) / 8, (row + 0.5) / 8
        radius, angle = math.hypot(u - SWIRL[0], v - SWIRL[1]), math.atan2(v - SWIRL[1], u - SWIRL[0])
        color = STROKE_COLORS[int(8 * radius)]
        if has_content:
            shape = max(index for index, (points, *_) in enumerate(PHOTO) if Path(points).contains_point((u, v)))
            if shape > 1 or (row + column) % 2:
                continue
            color = (LINE_ORANGE, BLUE)[shape]
        du, dv = -0.075 * math.sin(angle), 0.075 * math.cos(angle)
        ends = [[min(max(value, 0.04), 0.96) for value in end] for end in ((u - du, v - dv), (u + du, v + dv))]
        strokes[color].append([(round(x + side * a, 2), round(y + side * b, 2)) for a, b in ends])
    for color, segments in strokes.items():
        draw_segments(axes, segments, color=color, width=4.4 * side, zorder=4.2)


def draw_face(axes: Axes, center: Point, side: float, *, is_real: bool) -> None:
    """Draw the image of a face; a generated one is distorted."""
    x, y = center[0] - side / 2, center[1] - side / 2
    draw_frame(axes, (x, y), side, RULE)
    lean = 0 if is_real else 0.06
    circles = [
        (0.5 - lean, 0.6, 0.36, INK),  # hair
        (0.5 + lean, 0.47, 0.33, ORANGE),
        (0.38 + lean, 0.53, 0.045, INK),  # eyes
        (0.62 + lean, 0.53 - lean, 0.045 + 0.3 * lean, INK),
    ]
    for u, v, radius, color in circles:
        axes.add_patch(Circle((x + side * u, y + side * v), side * radius, fc=color, ec="none", zorder=4))
    mouth = x + side * (0.5 + lean), y + side * 0.39
    axes.add_patch(
        Arc(mouth, 0.32 * side, 0.24 * side, angle=250 * lean, theta1=200, theta2=340, ec=INK, lw=1.6, zorder=4.2)
    )


def get_right_edge(x: float, side: float, depth: float) -> float:
    """Return the right edge of feature maps at the height of their center."""
    return x + side / 2 + min(0.45 * depth, side / 2)


def get_middle(x: float, depth: float) -> float:
    """Return the horizontal middle of feature maps with their depth."""
    return x + 0.225 * depth


def draw_encoder(axes: Axes, y: float) -> None:
    """Draw the convolutional encoder of Show and Tell, from the image to the features."""
    draw_photo(axes, (0.5, y), 0.76)
    draw_text(axes, (0.5, y - 0.6), "3\n224×224", size=8, color=GRAY)
    start = 0.88
    for x, side, depth, label in (
        (1.46, 0.56, 0.1, "64\n112×112"),
        (2.2, 0.4, 0.25, "480\n28×28"),
        (2.85, 0.24, 0.45, "1024\n7×7"),
    ):
        draw_arrow(axes, (start, y), (x - side / 2, y))
        draw_maps(axes, (x, y), side, depth)
        draw_text(axes, (get_middle(x, depth), y - 0.6), label, size=8, color=GRAY)
        start = get_right_edge(x, side, depth)
    draw_arrow(axes, (start, y), (3.4, y))
    draw_vector(axes, (3.46, y), 0.72)
    draw_text(axes, (3.46, y - 0.54), "1024", size=8, color=GRAY)
    draw_arrow(axes, (3.52, y), (STEPS[0] - 0.4, y))
    draw_text(axes, (1.8, y + 0.66), "Encoder: GoogLeNet without its last layer", size=9, bold=True)


def draw_decoder(axes: Axes, bottom: float) -> None:
    """Draw the LSTM of Show and Tell, unrolled over the image and the tokens of a caption."""
    token, embedding, lstm, output, target = (bottom + offset for offset in (0, 0.7, 1.6, 2.45, 3.15))
    draw_box(axes, (STEPS[0], embedding), (0.8, 0.5), "fc 512", details="batch norm", color=BLUE, font=10)
    for step, x in enumerate(STEPS):
        draw_arrow(axes, (x, embedding + 0.25), (x, lstm - 0.22))
        draw_text(axes, (x + 0.22, embedding + 0.46), f"$x_{{{step - 1}}}$", size=9, color=GRAY)
        draw_box(axes, (x, lstm), (0.8, 0.44), "LSTM", color=ORANGE, font=10)
        if step == 0:
            continue
        draw_arrow(axes, (STEPS[step - 1] + 0.4, lstm), (x - 0.4, lstm), "state" if step == 1 else "")
        draw_box(axes, (x, token), (0.8, 0.3), WORDS[step - 1], font=9)
        draw_arrow(axes, (x, token + 0.15), (x, embedding - 0.25))
        draw_box(axes, (x, embedding), (1.0, 0.5), "embedding", details="$W_e$", color=GREEN, font=10)
        draw_arrow(axes, (x, lstm + 0.22), (x, output - 0.25))
        draw_box(axes, (x, output), (1.0, 0.5), "softmax", details=r"$W_e^{\top}$", color=GREEN, font=10)
        draw_arrow(axes, (x, output + 0.25), (x, target - 0.15))
        draw_text(axes, (x + 0.2, output + 0.4), f"$p_{step}$", size=9, color=GRAY)
        draw_box(axes, (x, target), (0.8, 0.3), WORDS[step], font=9)
    draw_text(axes, (STEPS[0], target), "next words $S_t$", size=8.5, color=GRAY)


def draw_beam_search(axes: Axes, top: float) -> None:
    """Draw a beam search with a beam size of 2, aligned with the steps of the LSTM."""
    parents = [(STEPS[0], top)]
    draw_box(axes, parents[0], (0.84, 0.28), "<begin>", font=8.5)
    for x, candidates in zip(STEPS[1:], CANDIDATES, strict=True):
        centers = [(x, top - 0.37 * row) for row in range(len(candidates))]
        for center, (word, probability, parent, is_kept) in zip(centers, candidates, strict=True):
            start = parents[parent][0] + 0.42, parents[parent][1]
            line = [start[0], center[0] - 0.46], [start[1], center[1]]
            axes.plot(*line, color=INK if is_kept else RULE, lw=1.3 if is_kept else 1, zorder=2)
            fill, edge = (PURPLE, INK) if is_kept else ("white", RULE)
            corner = (center[0] - 0.46, center[1] - 0.14)
            axes.add_patch(Rectangle(corner, 0.92, 0.28, fc=fill, ec=edge, lw=0.9, zorder=3))
            draw_text(axes, center, f"{word}  {probability:.2f}", size=8, color=INK if is_kept else GRAY)
        parents = centers


def draw_show_and_tell() -> Figure:
    """Draw Show and Tell: encoder, LSTM over a caption with its loss, and beam search."""
    figure, axes = create_axes(9.8, 6.05)
    draw_encoder(axes, 3.2)
    draw_decoder(axes, 2.5)
    write_note(axes, (0.12, 5.8), "Training", size=10, color=INK, bold=True)
    write_note(
        axes,
        (0.12, 5.5),
        "The inputs after the image are\nthe words of a reference caption.\n"
        r"Loss: $-\Sigma\,\log\,p_t(S_t)$" + ", $p_t$ over 8,791 words.",
    )
    axes.plot([0.12, 9.68], [2.08, 2.08], color=RULE, lw=1)
    write_note(axes, (0.12, 1.8), "Inference: beam search", size=10, color=INK, bold=True)
    write_note(
        axes,
        (0.12, 1.5),
        "Each step extends the partial captions\nand keeps the two most probable (purple).\n"
        "The numbers are their probabilities.",
    )
    draw_beam_search(axes, 1.6)
    return figure


def shade(color: str, fraction: float) -> str:
    """Mix a color with white; a ``fraction`` of 1 is the color."""
    return to_hex([1 - fraction * (1 - value) for value in to_rgb(color)])


def draw_matrix(axes: Axes, corner: Point, values: list[list[int]], color: str) -> None:
    """Draw a matrix of numbers whose cells are darker for larger ones; cells of feature maps with 0 are empty."""
    rows, columns, maximum = len(values), len(values[0]), max(map(max, values))
    (x, y), cell = corner, 0.25
    axes.add_patch(Rectangle(corner, cell * columns, cell * rows, fc="white", ec=INK, lw=0.9, zorder=3))
    for row, column in product(range(rows), range(columns)):
        left, bottom, value = x + cell * column, y + cell * (rows - 1 - row), values[row][column]
        if value:
            fill = shade(color, value / maximum)
            axes.add_patch(Rectangle((left, bottom), cell, cell, fc=fill, ec=INK, lw=0.8, zorder=3))
        if value or color == ORANGE:
            draw_text(axes, (left + cell / 2, bottom + cell / 2), str(value), size=8.5)
    vertical = [[(x + cell * index, y), (x + cell * index, y + cell * rows)] for index in range(1, columns)]
    horizontal = [[(x, y + cell * index), (x + cell * columns, y + cell * index)] for index in range(1, rows)]
    draw_segments(axes, vertical + horizontal, color=INK, width=0.8, zorder=3)


def outline(axes: Axes, corner: Point, size: Point) -> None:
    """Outline cells of a matrix."""
    axes.add_patch(Rectangle(corner, *size, fill=False, ec=LINE_BLUE, lw=2.2, zorder=6))


def draw_gram_symbol(axes: Axes, center: Point) -> None:
    """Draw a small matrix as the symbol of a Gram matrix."""
    x, y = center[0] - 0.15, center[1] - 0.15
    axes.add_patch(Rectangle((x, y), 0.3, 0.3, fc=shade(ORANGE, 0.4), ec=INK, lw=0.9, zorder=3))
    lines = [[(x + offset, y), (x + offset, y + 0.3)] for offset in (0.1, 0.2)]
    lines += [[(x, y + offset), (x + 0.3, y + offset)] for offset in (0.1, 0.2)]
    draw_segments(axes, lines, color=INK, width=0.6, zorder=3)


def draw_gram_matrix(axes: Axes, y: float) -> None:
    """Draw three feature maps, the matrix F of their values, and its Gram matrix; ``y`` is their lower edge."""
    gram = [[sum(a * b for a, b in zip(first, second, strict=True)) for second in MAPS] for first in MAPS]
    for index, values in enumerate(MAPS):
        corner = 0.3 + 0.92 * index, y
        draw_matrix(axes, corner, [values[start : start + 3] for start in (0, 3, 6)], BLUE)
        draw_text(axes, (corner[0] + 0.375, y + 0.89), f"map {index + 1}", size=8, color=GRAY)
        if index < 2:
            outline(axes, corner, (0.75, 0.75))
    draw_text(axes, (1.6, y - 0.16), "N = 3 feature maps of 3×3 positions", size=8.5, color=GRAY)
    draw_arrow(axes, (3.0, y + 0.375), (3.62, y + 0.375), "flatten")
    draw_matrix(axes, (3.75, y), MAPS, BLUE)
    outline(axes, (3.75, y + 0.5), (2.25, 0.25))
    outline(axes, (3.75, y + 0.25), (2.25, 0.25))
    draw_text(axes, (4.875, y + 0.89), "$F$:  N rows, one per map", size=8.5, color=GRAY)
    draw_text(axes, (4.875, y - 0.16), "M = 9 columns, one per position", size=8.5, color=GRAY)
    draw_arrow(axes, (6.12, y + 0.375), (6.72, y + 0.375), r"$F F^{\top}$")
    draw_matrix(axes, (6.85, y), gram, ORANGE)
    outline(axes, (7.1, y + 0.5), (0.25, 0.25))
    draw_text(axes, (7.225, y + 0.89), "$G$:  N×N", size=8.5, color=GRAY)
    terms = " + ".join(f"{a}·{b}" for a, b in zip(*MAPS[:2], strict=True) if a * b)
    draw_text(axes, (8.75, y + 0.625), f"$G_{{12}}$ = {terms} = {gram[0][1]}", size=8.5, color=GRAY)


def draw_vgg_losses(axes: Axes, y: float) -> None:
    """Draw the maps of VGG-19 for the generated image, the Gram matrices, and the gradients; ``y`` is their center."""
    end = 1.15
    for name, x, side, depth, channels, size in VGG_MAPS:
        draw_arrow(axes, (end, y + 0.07), (x - side / 2, y + 0.07))
        end = get_right_edge(x, side, depth)
        draw_maps(axes, (x, y), side, depth)
        top, middle = y + side / 2 + 0.45 * depth, get_middle(x, depth)
        is_content = name == "conv4_2"
        label = middle, (top + 0.2 if is_content else y - side / 2 - 0.22)
        draw_text(axes, label, f"{name}\n{channels}×{size}×{size}", size=8, color=GRAY)
        if is_content:
            draw_arrow(axes, (x, y - side / 2), (x, y - 1.08))
            continue
        draw_arrow(axes, (middle, top), (middle, y + 0.83))
        draw_gram_symbol(axes, (middle, y + 0.98))
        draw_text(axes, (middle + 0.48, y + 0.98), f"$G^{name[4]}$\n{channels}×{channels}", size=8, color=GRAY)
        draw_arrow(axes, (middle, y + 1.13), (middle, y + 1.45))
        draw_text(axes, (middle, y + 1.65), f"$E_{name[4]}$", size=9.5)
        draw_arrow(axes, (middle, y + 2.16), (middle, y + 1.85), f"$A^{name[4]}$", offset=(0.18, 0))
    draw_gradient(axes, (8.57, y - 0.07), (1.15, y - 0.07))
    draw_text(axes, (8.3, y + 0.07), "gradient", size=8, color=GRAY)


def draw_neural_style() -> Figure:
    """Draw the Gram matrix, and the losses of neural style transfer with the gradient to the image."""
    figure, axes = create_axes(10, 6.85)
    write_note(axes, (0.25, 6.78), "Gram matrix of a layer", size=10, color=INK, bold=True)
    draw_gram_matrix(axes, 5.45)
    axes.plot([0.2, 9.8], [5.08, 5.08], color=RULE, lw=1)
    write_note(axes, (0.25, 4.98), "Losses", size=10, color=INK, bold=True)
    y = 1.95
    draw_strokes(axes, (0.7, y + 2.35), 0.72, has_content=False)
    draw_strokes(axes, (0.7, y), 0.9, has_content=True)
    draw_photo(axes, (0.7, y - 1.35), 0.72)
    for offset, text in ((1.86, "style image"), (-0.6, "generated image"), (-1.84, "content image")):
        draw_text(axes, (0.7, y + offset), text, size=8.5)
    draw_arrow(axes, (1.1, y + 2.35), (1.7, y + 2.35))
    draw_box(axes, (4.98, y + 2.35), (6.56, 0.38), "")
    draw_text(axes, (4.98, y + 2.35), "Gram matrices $A^l$ of the style image, same network", size=9.5)
    draw_box(axes, (4.98, y + 1.65), (6.56, 0.4), "", color=ORANGE)
    styles = [get_middle(x, depth) for name, x, _, depth, *_ in VGG_MAPS if name != "conv4_2"]
    for first, second in pairwise(styles):
        draw_text(axes, ((first + second) / 2, y + 1.65), "+", size=9.5)
    draw_text(axes, (0.9, y + 1.4), "$E_l$: squared differences", size=8, color=GRAY)
    draw_vgg_losses(axes, y)
    draw_arrow(axes, (1.1, y - 1.35), (1.7, y - 1.35))
    draw_box(axes, (3.6, y - 1.35), (3.8, 0.38), "")
    draw_text(axes, (3.6, y - 1.35), "Maps $P$ of the content image", size=9.5)
    draw_arrow(axes, (5.5, y - 1.35), (5.96, y - 1.35))
    draw_box(
        axes, (6.76, y - 1.35), (1.6, 0.54), "content loss", details="½ $\\Sigma\\,(F - P)^2$", color=GREEN, font=10.5
    )
    draw_box(
        axes, (9.22, y), (1.3, 0.62), "total loss", details=r"$\alpha$ content + $\beta$ style", color="white", font=10
    )
    draw_route(axes, [(8.26, y + 1.65), (9.22, y + 1.65), (9.22, y + 0.31)])
    draw_text(axes, (8.75, y + 1.8), "style loss", size=8.5, color=GRAY)
    draw_text(axes, (8.73, y + 1.5), "weights 1/5", size=8, color=GRAY)
    draw_route(axes, [(7.56, y - 1.35), (9.22, y - 1.35), (9.22, y - 0.31)])
    return figure


def draw_chain(axes: Axes, start: float, blocks: list[tuple[float, float, float, str]], y: float) -> float:
    """Draw feature maps, each with an arrow from the previous ones, and return the right edge of the last."""
    for left, side, depth, label in blocks:
        draw_arrow(axes, (start, y), (left, y))
        draw_maps(axes, (left + side / 2, y), side, depth)
        draw_text(axes, (get_middle(left + side / 2, depth), y - 0.6), label, size=8, color=GRAY)
        start = get_right_edge(left + side / 2, side, depth)
    return start


def draw_networks(axes: Axes, y: float) -> None:
    """Draw the generator and the discriminator of DCGAN side by side."""
    draw_vector(axes, (0.36, y), 0.9, PAPER)
    draw_text(axes, (0.36, y - 0.66), "$z$\n100", size=8, color=GRAY)
    draw_arrow(axes, (draw_chain(axes, 0.42, GENERATOR_MAPS, y), y), (4.22, y))
    draw_arrow(axes, (draw_chain(axes, 5.12, DISCRIMINATOR_MAPS, y), y), (9.36, y))
    draw_face(axes, (4.67, y), 0.9, is_real=False)
    draw_text(axes, (4.67, y - 0.66), "generated image\n$G(z)$, 3×64×64", size=8, color=GRAY)
    draw_face(axes, (4.67, y + 1.45), 0.9, is_real=True)
    draw_text(axes, (4.67, y + 2.05), "real image $x$", size=8, color=GRAY)
    draw_arrow(axes, (5.12, y + 1.2), (5.95, y + 0.2))
    draw_box(axes, (9.76, y), (0.8, 0.56), "score", details="fc", font=10)
    draw_text(axes, (9.22, y - 0.9), "sigmoid:\nprobability $D$", size=8, color=GRAY)
    write_note(axes, (0.25, y + 1.75), "Generator G", size=10.5, color=INK, bold=True)
    write_note(
        axes,
        (0.25, y + 1.45),
        "fully connected, then transposed convolutions\n"
        "5×5 with stride 2; batch normalization and\n"
        "ReLU, in the last layer only tanh",
    )
    write_note(axes, (5.95, y + 1.75), "Discriminator D", size=10.5, color=INK, bold=True)
    write_note(
        axes,
        (5.95, y + 1.45),
        "convolutions 5×5 with stride 2; batch normalization\n(not in the first layer) and LeakyReLU",
    )


def draw_dcgan() -> Figure:
    """Draw the generator, the discriminator, the two losses and their gradients."""
    figure, axes = create_axes(10.4, 5.6)
    y = 3.3
    draw_networks(axes, y)
    for row, title, formula in (
        (1.8, "1  Discriminator step", r"$L_D = -$𝔼$\,[\log D(x)] - $𝔼$\,[\log(1 - D(G(z)))]$"),
        (0.7, "2  Generator step", r"$L_G = -$𝔼$\,[\log D(G(z))]$"),
    ):
        write_note(axes, (0.25, row + 0.55), title, size=10, color=INK, bold=True)
        draw_text(axes, (7.5, row - 0.4), formula, size=9)
    middle, width = (5.95 + 8.99) / 2, 8.99 - 5.95
    draw_box(axes, (2.68, 1.8), (4.88, 0.4), "not updated", color="white", font=9)
    draw_box(axes, (middle, 1.8), (width, 0.4), "updated", color=GREEN, font=9)
    draw_box(axes, (middle, 0.7), (width, 0.4), "passes the gradient, not updated", color="white", font=9)
    draw_box(axes, (2.68, 0.7), (4.88, 0.4), "updated", color=GREEN, font=9)
    draw_box(axes, (9.76, 1.8), (0.8, 0.44), "$L_D$", color=ORANGE, font=11)
    draw_box(axes, (9.76, 0.7), (0.8, 0.44), "$L_G$", color=ORANGE, font=11)
    for start, end, text in ((9.36, 8.99, ""), (5.95, 5.12, "gradient")):
        draw_gradient(axes, (start, 0.7), (end, 0.7), text)
    draw_gradient(axes, (9.36, 1.8), (8.99, 1.8))
    draw_arrow(axes, (9.76, y - 0.28), (9.76, 2.02))
    draw_route(axes, [(10.16, y), (10.29, y), (10.29, 0.7), (10.16, 0.7)])
    return figure


def draw_game(axes: Axes, center: Point) -> None:
    """Draw the four last frames of a game with two paddles and a ball."""
    for index in range(4):
        x, y = center[0] - 0.5 + 0.09 * index, center[1] - 0.15 - 0.05 * index
        axes.add_patch(Rectangle((x, y), 0.72, 0.5, fc=GRAY, ec="white", lw=0.9, zorder=4))
    for left, bottom, width, height in ((0.05, 0.1, 0.04, 0.16), (0.63, 0.26, 0.04, 0.16), (0.42, 0.27, 0.05, 0.05)):
        axes.add_patch(Rectangle((x + left, y + bottom), width, height, fc="white", zorder=4.5))


def draw_q_network(axes: Axes, y: float) -> None:
    """Draw the layers of the network for four frames of 84×84 pixels."""
    write_note(axes, (0.2, y + 0.62), "Layers of Q", size=10, color=INK, bold=True)
    write_note(axes, (0.2, y + 0.32), "ReLU after each,\nbut the last")
    lefts = [x - side / 2 for x, side, *_ in Q_MAPS] + [7.44]
    for (x, side, depth, label, layer), end in zip(Q_MAPS, lefts[1:], strict=True):
        draw_maps(axes, (x, y), side, depth)
        draw_text(axes, (get_middle(x, depth), y - 0.55), label, size=8, color=GRAY)
        draw_arrow(axes, (get_right_edge(x, side, depth), y), (end, y), layer, offset=(0, 0.22))
    draw_vector(axes, (7.5, y), 0.8)
    draw_text(axes, (7.5, y - 0.55), "512", size=8, color=GRAY)
    draw_arrow(axes, (7.56, y), (8.94, y), "fully\nconnected", offset=(0, 0.22))
    draw_vector(axes, (9.0, y), 0.5)
    draw_text(axes, (9.0, y - 0.55), "18 action values", size=8, color=GRAY)


def draw_loops(axes: Axes) -> None:
    """Draw the boxes of DQN and the arrows between them: blue for acting, gray for learning."""
    for center, size, title, details, color, font in DQN_BOXES:
        draw_box(axes, center, size, title, details=details, color=color, font=font)
    draw_game(axes, (LEFT, ACTING + 0.18))
    draw_text(axes, (LEFT, ACTING - 0.48), "environment", size=10, bold=True)
    draw_arrow(axes, (2.15, ACTING + 0.45), (4.2, ACTING + 0.45), "state $s$: the last four frames", color=LINE_BLUE)
    draw_arrow(axes, (4.2, ACTING - 0.35), (3.88, ACTING - 0.35), "$Q$", color=LINE_BLUE)
    draw_arrow(axes, (2.48, ACTING - 0.35), (2.15, ACTING - 0.35), "$a$", color=LINE_BLUE)
    draw_arrow(axes, (LEFT, ACTING - 0.7), (LEFT, LEARNING + 0.4), color=LINE_BLUE)
    write_note(axes, (LEFT + 0.12, 3.73), "transition $(s, a, r, s')$:\nstate, action, reward, next state", size=8)
    draw_arrow(axes, (2.15, LEARNING), (4.2, LEARNING))
    draw_arrow(axes, (CENTER, LEARNING + 0.4), (CENTER, ACTING - 0.7), "$s, a$", offset=(0.25, 0))
    draw_arrow(axes, (6.1, LEARNING), (7.72, LEARNING), "$r, s'$")
    draw_arrow(axes, (RIGHT, LEARNING + 0.4), (RIGHT, ACTING - 0.45), "target $y$", offset=(0.38, 0))
    draw_arrow(axes, (6.1, ACTING + 0.25), (7.87, ACTING + 0.25), "$Q(s, a; \\theta)$")
    draw_gradient(axes, (7.87, ACTING - 0.25), (6.1, ACTING - 0.25), "gradient")
    draw_route(axes, [(5.8, ACTING - 0.7), (5.8, 3.5), (8.2, 3.5), (8.2, LEARNING + 0.4)], color=LINE_GREEN)
    draw_text(axes, (7, 3.73), "copy of the weights\nevery 10,000 updates", size=8, color=LINE_GREEN)


def draw_dqn() -> Figure:
    """Draw the loops of acting and of learning of DQN, and the layers of the network."""
    figure, axes = create_axes(10, 6.05)
    draw_loops(axes)
    draw_text(axes, (2.7, 5.8), "Acting, at each step", size=10, color=LINE_BLUE, bold=True)
    draw_text(axes, (7, 5.8), "Learning, every four steps", size=10, color=GRAY, bold=True)
    axes.plot([0.2, 9.8], [1.8, 1.8], color=RULE, lw=1)
    draw_q_network(axes, 0.82)
    return figure


if __name__ == "__main__":
    save(draw_show_and_tell(), "show-and-tell")
    save(draw_neural_style(), "gram-matrix")
    save(draw_dcgan(), "dcgan")
    save(draw_dqn(), "dqn")
