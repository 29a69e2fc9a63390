"""Draw scenes.png of docs/reference/data.md: bundled scenes with their boxes, instance masks and captions.

python docs/figures/scripts/scenes.py
"""

import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from fukami.data import scenes

SCENES = (4, 11, 13, 20, 12)
HERE = Path(__file__).parents[1]


def draw() -> Figure:
    """Draw the scenes, one column each."""
    figure = Figure(figsize=(11, 5.1), layout="constrained")
    rows = figure.subplots(2, len(SCENES))
    colors = (255 * colormaps["tab10"](np.arange(len(scenes.LABELS)))[:, :3]).astype(np.uint8)
    for upper, lower, index in zip(*rows, SCENES, strict=True):
        scene = scenes.generate_scene(0, index)
        upper.imshow(scene.image)
        upper.set_title("\n".join(textwrap.wrap(scene.caption, 30)), fontsize=8)
        for (left, top, right, bottom), label in zip(scene.boxes, scene.classes, strict=True):
            color = tuple(colors[label] / 255)
            upper.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=color))
            upper.text(left, top, scenes.LABELS[label], fontsize=6, color="w", va="top", clip_on=True,
                       bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8})  # fmt: skip
        lower.imshow(np.vstack([np.full((1, 3), 235, np.uint8), colors[scene.classes]])[scene.instances])
        edges = [np.abs(np.diff(scene.instances.astype(int), axis=axis)) > 0 for axis in (0, 1)]
        border = np.zeros((*scene.instances.shape, 4))
        border[:-1][edges[0]] = border[:, :-1][edges[1]] = (0, 0, 0, 0.6)
        lower.imshow(border)
        for axes in (upper, lower):
            axes.axis("off")
            axes.set_anchor("N")
    return figure


if __name__ == "__main__":
    path = HERE / "scenes.png"
    draw().savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")
