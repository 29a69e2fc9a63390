"""Draw the computation, parameters and memory of VGG, GoogLeNet and ResNet by layer.

python docs/figures/scripts/networks.py    writes docs/figures/vgg.svg, googlenet.svg and resnet.svg

All numbers are those of ``fukami explain`` (fukami.explain.summary).
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
INK, GRAY = "#23303d", "#66727e"
STAGE_COLORS = ["#d8e5f2", "#b3cde8", "#8fb4d9", "#5f8fc0", "#3c6a9c", "#a9cf9b"]  # five resolutions and vectors
LINE_COLORS = ["#3c6a9c", "#d08a3e", "#5b9a45", "#8a4fa3"]
BRANCHES = {  # branches of an inception module: prefix of the layers, label, color
    "branch1.": ("1×1", "#b3cde8"),
    "branch2.0": ("1×1 before 3×3", "#f7d9b5"),
    "branch2.1": ("3×3", "#f2b880"),
    "branch3.0": ("1×1 before “5×5”", "#d3e8cb"),
    "branch3.1": ("“5×5”, here 3×3", "#a9cf9b"),
    "branch4.1": ("1×1 after pooling", "#d5d9dd"),
}
INPUT_SHAPE = (3, 224, 224)


def style_axes(axes: Axes) -> None:
    """Hide the upper and right spines and set the size of the tick labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def plot_vgg() -> Figure:
    """Plot the computation, parameters and memory of each layer of VGG-16."""
    layers = [layer for layer in summarize_layers(models.vgg16(), INPUT_SHAPE) if layer.num_parameters]
    sides = sorted({layer.output_shape[1] for layer in layers if len(layer.output_shape) == 3}, reverse=True)
    colors = [
        STAGE_COLORS[sides.index(layer.output_shape[1])] if len(layer.output_shape) == 3 else STAGE_COLORS[-1]
        for layer in layers
    ]
    names = [
        f"3×3, {layer.output_shape[0]}" if len(layer.output_shape) == 3 else f"fully connected, {layer.output_shape[0]}"
        for layer in layers
    ]
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    panels = [
        ("multiply-adds, billions", [layer.multiply_adds / 1e9 for layer in layers], "%.3g"),
        ("parameters, millions", [layer.num_parameters / 1e6 for layer in layers], "%.3g"),
        ("output, megabytes", [layer.output_bytes / 1e6 for layer in layers], "%.3g"),
    ]
    all_axes = figure.subplots(1, 3, sharey=True)
    for axes, (title, values, label_format) in zip(all_axes, panels, strict=True):
        bars = axes.barh(range(len(values)), values, color=colors, edgecolor=INK, linewidth=0.4)
        axes.bar_label(bars, fmt=label_format, fontsize=7, padding=2, color=GRAY)
        axes.set_title(title, fontsize=10, color=INK)
        axes.margins(x=0.14)
        style_axes(axes)
    all_axes[0].set_yticks(range(len(names)), names)
    all_axes[0].invert_yaxis()
    return figure


def plot_googlenet() -> Figure:
    """Plot the computation of each branch of GoogLeNet's inception modules, and its receptive field."""
    costs: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    layers = summarize_layers(models.googlenet(), INPUT_SHAPE)
    for layer in layers:
        module, _, name = layer.name.partition(".")
        for prefix in BRANCHES:
            if module.startswith("inception") and name.startswith(prefix):
                costs[module][prefix] += layer.multiply_adds
    names = list(costs)
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    bottom = [0.0] * len(names)
    for prefix, (label, color) in BRANCHES.items():
        values = [costs[name][prefix] / 1e6 for name in names]
        left.bar(range(len(names)), values, bottom=bottom, color=color, edgecolor=INK, linewidth=0.4, label=label)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    left.set_xticks(range(len(names)), [name.removeprefix("inception") for name in names])
    left.set_title("multiply-adds of the inception modules, millions", fontsize=10, color=INK)
    left.legend(frameon=False, fontsize=8, ncols=2)
    plot_receptive_fields(right, {"GoogLeNet": layers, "VGG-16": summarize_layers(models.vgg16(), INPUT_SHAPE)})
    style_axes(left)
    return figure


def plot_receptive_fields(axes: Axes, networks: dict[str, list[LayerInfo]]) -> None:
    """Plot the maximum receptive field at each depth."""
    for (name, layers), color in zip(networks.items(), LINE_COLORS, strict=False):
        max_sides: dict[int, int] = {}
        for layer in layers:
            if layer.receptive_field:
                max_sides[layer.depth] = max(layer.receptive_field[0], max_sides.get(layer.depth, 0))
        axes.plot(*zip(*sorted(max_sides.items()), strict=True), color=color, label=name, lw=1.6)
    axes.set_title("receptive field, pixels", fontsize=10, color=INK)
    axes.set_xlabel("depth in layers with weights", fontsize=9, color=GRAY)
    axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)


def plot_resnet() -> Figure:
    """Plot the cost of each stage of the networks of table 1, and the receptive fields of the CIFAR networks."""
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    depths = (18, 34, 50, 101, 152)
    for position, depth in enumerate(depths):
        costs: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for layer in summarize_layers(getattr(models, f"resnet{depth}")(), INPUT_SHAPE):
            module = layer.name.partition(".")[0]
            stage = {"bn1": "conv1"}.get(module, module)
            costs[stage][0] += layer.multiply_adds / 1e9
            costs[stage][1] += layer.num_parameters / 1e6
        stages = ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
        labels = ["conv1", "conv2", "conv3", "conv4", "conv5", "fully connected"]
        for kind, axes in enumerate((left, middle)):
            bottom = 0.0
            for stage, label, color in zip(stages, labels, STAGE_COLORS, strict=True):
                axes.bar(position, costs[stage][kind], bottom=bottom, color=color, edgecolor=INK, linewidth=0.4,
                         label=label if position == 0 else None)  # fmt: skip
                bottom += costs[stage][kind]
            axes.text(position, bottom, f"{bottom:.1f}", ha="center", va="bottom", fontsize=8, color=GRAY)
    for axes, title in ((left, "multiply-adds, billions"), (middle, "parameters, millions")):
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        axes.margins(y=0.08)
        style_axes(axes)
    left.legend(frameon=False, fontsize=8, reverse=True)
    small = {f"ResNet-{n}": summarize_layers(getattr(models, f"resnet{n}")(), (3, 32, 32)) for n in (20, 32, 56, 110)}
    plot_receptive_fields(right, small)
    right.axhline(32, color=GRAY, lw=0.8, ls=":")
    right.text(110, 34, "input size, 32", fontsize=8, color=GRAY, ha="right", va="bottom")
    right.set_title("CIFAR: receptive field, pixels", fontsize=10, color=INK)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    for name, plot in {"vgg": plot_vgg, "googlenet": plot_googlenet, "resnet": plot_resnet}.items():
        plot().savefig(HERE / f"{name}.svg", metadata={"Date": None})
