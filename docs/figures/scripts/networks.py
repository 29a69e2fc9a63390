"""Draw what the landmarks for photographs cost: the figures of ../vgg.md, ../googlenet.md and ../resnet.md.

python docs/figures/scripts/networks.py    writes vgg.svg, googlenet.svg and resnet.svg beside this file

All numbers come from fukami.explain.summary, which fukami explain prints.
"""

from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fukami import models
from fukami.explain.summary import LayerInfo, summarize_layers

HERE = Path(__file__).parents[1]
INK, GREY = "#23303d", "#66727e"
STAGES = ["#d8e5f2", "#b3cde8", "#8fb4d9", "#5f8fc0", "#3c6a9c", "#a9cf9b"]  # five resolutions, and vectors
LINES = ["#3c6a9c", "#d08a3e", "#5b9a45", "#8a4fa3"]
BRANCHES = {  # of an inception module: its prefix, its name, its colour
    "branch1.": ("1×1", "#b3cde8"),
    "branch2.0": ("1×1 before 3×3", "#f7d9b5"),
    "branch2.1": ("3×3", "#f2b880"),
    "branch3.0": ("1×1 before “5×5”", "#d3e8cb"),
    "branch3.1": ("“5×5”, here 3×3", "#a9cf9b"),
    "branch4.1": ("1×1 after pooling", "#d5d9dd"),
}
SIZE = (3, 224, 224)


def plain(axes: Axes) -> None:
    """No frame but where the values are."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def vgg() -> Figure:
    """VGG-16, layer by layer: where the computation, the parameters and the memory are."""
    weighted = [layer for layer in summarize_layers(models.vgg16(), SIZE) if layer.num_parameters]
    sides = sorted({layer.output_shape[1] for layer in weighted if len(layer.output_shape) == 3}, reverse=True)
    colours = [
        STAGES[sides.index(layer.output_shape[1])] if len(layer.output_shape) == 3 else STAGES[-1] for layer in weighted
    ]
    names = [
        f"3×3, {layer.output_shape[0]}" if len(layer.output_shape) == 3 else f"affine {layer.output_shape[0]}"
        for layer in weighted
    ]
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    panels = [
        ("multiply-adds, billions", [layer.multiply_adds / 1e9 for layer in weighted], "%.3g"),
        ("parameters, millions", [layer.num_parameters / 1e6 for layer in weighted], "%.3g"),
        ("output, megabytes", [layer.output_bytes / 1e6 for layer in weighted], "%.3g"),
    ]
    every = figure.subplots(1, 3, sharey=True)
    for axes, (title, values, form) in zip(every, panels, strict=True):
        bars = axes.barh(range(len(values)), values, color=colours, edgecolor=INK, linewidth=0.4)
        axes.bar_label(bars, fmt=form, fontsize=7, padding=2, color=GREY)
        axes.set_title(title, fontsize=10, color=INK)
        axes.margins(x=0.14)
        plain(axes)
    every[0].set_yticks(range(len(names)), names)
    every[0].invert_yaxis()
    return figure


def googlenet() -> Figure:
    """GoogLeNet, module by module: what each filter size costs, with and without the 1×1 convolutions before it."""
    costs: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    steps = summarize_layers(models.googlenet(), SIZE)
    for layer in steps:
        part, _, inside = layer.name.partition(".")
        for prefix in BRANCHES:
            if part.startswith("inception") and inside.startswith(prefix):
                costs[part][prefix] += layer.multiply_adds
    names = list(costs)
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    bottom = [0.0] * len(names)
    for prefix, (label, colour) in BRANCHES.items():
        values = [costs[name][prefix] / 1e6 for name in names]
        left.bar(range(len(names)), values, bottom=bottom, color=colour, edgecolor=INK, linewidth=0.4, label=label)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    left.set_xticks(range(len(names)), [name.removeprefix("inception") for name in names])
    left.set_title("multiply-adds of the inception modules, millions", fontsize=10, color=INK)
    left.legend(frameon=False, fontsize=8, ncols=2)
    fields(right, {"GoogLeNet": steps, "VGG-16": summarize_layers(models.vgg16(), SIZE)})
    plain(left)
    return figure


def fields(axes: Axes, networks: dict[str, list[LayerInfo]]) -> None:
    """The receptive field over the depth."""
    for (name, steps), colour in zip(networks.items(), LINES, strict=False):
        known = [(layer.depth, layer.receptive_field[0]) for layer in steps if layer.receptive_field]
        deepest = sorted({depth: max(side for at, side in known if at == depth) for depth, _ in known}.items())
        axes.plot(*zip(*deepest, strict=True), color=colour, label=name, lw=1.6)
    axes.set_title("receptive field, pixels", fontsize=10, color=INK)
    axes.set_xlabel("layers with weights so far", fontsize=9, color=GREY)
    axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)


def resnet() -> Figure:
    """The five networks of table 1: the cost of each stage; and how the receptive field of the small ones grows."""
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    depths = (18, 34, 50, 101, 152)
    for place, depth in enumerate(depths):
        found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for layer in summarize_layers(getattr(models, f"resnet{depth}")(), SIZE):
            part = layer.name.partition(".")[0]
            stage = {"bn1": "conv1"}.get(part, part)
            found[stage][0] += layer.multiply_adds / 1e9
            found[stage][1] += layer.num_parameters / 1e6
        stages = ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
        words = ["conv1", "conv2", "conv3", "conv4", "conv5", "affine"]
        for number, axes in enumerate((left, middle)):
            low = 0.0
            for stage, word, colour in zip(stages, words, STAGES, strict=True):
                axes.bar(place, found[stage][number], bottom=low, color=colour, edgecolor=INK, linewidth=0.4,
                         label=word if place == 0 else None)  # fmt: skip
                low += found[stage][number]
            axes.text(place, low, f"{low:.1f}", ha="center", va="bottom", fontsize=8, color=GREY)
    for axes, title in ((left, "multiply-adds, billions"), (middle, "parameters, millions")):
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        axes.margins(y=0.08)
        plain(axes)
    left.legend(frameon=False, fontsize=8, reverse=True)
    small = {f"ResNet-{n}": summarize_layers(getattr(models, f"resnet{n}")(), (3, 32, 32)) for n in (20, 32, 56, 110)}
    fields(right, small)
    right.axhline(32, color=GREY, lw=0.8, ls=":")
    right.text(110, 34, "the image, 32", fontsize=8, color=GREY, ha="right", va="bottom")
    right.set_title("CIFAR: receptive field, pixels", fontsize=10, color=INK)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    for name, draw in {"vgg": vgg, "googlenet": googlenet, "resnet": resnet}.items():
        draw().savefig(HERE / f"{name}.svg", metadata={"Date": None})
