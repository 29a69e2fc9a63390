"""Figures that the judgement of a detector is shown in."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from fukami.detection.metrics import MISSED, OUTCOMES, DetectionResults, ErrorCase
from fukami.image import io as image_io

MAX_CURVES = 24  # curves that are drawn, each in an axes of its own
MAX_ERRORS_SHOWN = 15  # misses and false alarms that are shown
NUM_COLUMNS = 5  # panels and images in a row
BLUE, PALE, RED = "#4878a8", "#c3d3e6", "#c0392b"
OUTCOME_COLORS = ("#6aa67c", "#e3b34c", "#b58fc4", "#d6723c", "#9a9a9a")  # of KINDS
ERROR_CAPTIONS = {"localisation": "badly placed", "duplicate": "found before", "background": "background"}


def plot_evaluation(results: DetectionResults, get_image: Callable[[int], Image.Image]) -> Iterator[tuple[str, Figure]]:
    """Every figure with its title, for the report of a run.

    Args:
        results: what was judged; with an object in it.
        get_image: the image of a number, in the pixels that its boxes are in.
    """
    metrics = results.compute_metrics()
    yield "Average precision by class", plot_class_ap(metrics["classes"])
    yield "Precision and recall", plot_precision_recall(results)
    yield "By strictness and by size", plot_ap_breakdown(metrics)
    yield "What the strongest detections of each class are", plot_outcomes(results)
    misses, alarms = results.find_false_negatives(MAX_ERRORS_SHOWN), results.find_false_positives(MAX_ERRORS_SHOWN)
    if misses:
        yield "Worst misses", plot_errors(misses, get_image, results.labels)
    if alarms:
        yield "Worst false alarms", plot_errors(alarms, get_image, results.labels)


def plot_class_ap(classes: dict[str, dict[str, Any]]) -> Figure:
    """VOC's and COCO's average precision of each class, the best class first."""
    ranked = sorted(classes.items(), key=lambda item: -item[1]["ap"])
    figure = Figure(figsize=(8, 1.1 + 0.27 * len(ranked)), layout="constrained")
    axes = figure.add_subplot()
    for name, colour, label in (("ap", PALE, "at IoU 0.5 (VOC)"), ("coco_ap", BLUE, "at IoU 0.5 to 0.95 (COCO)")):
        axes.barh(range(len(ranked)), [100 * each[name] for _, each in ranked], color=colour, label=label)
    for row, (_, each) in enumerate(ranked):
        axes.text(100 * each["ap"] + 0.8, row, f"{100 * each['ap']:.1f}", va="center", fontsize=8)
    names = [f"{_shorten_label(label)}  ({each['objects']:,})" for label, each in ranked]
    axes.set_yticks(range(len(ranked)), names, fontsize=9)
    axes.set_xlim(0, 106)
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.set_xlabel("average precision, %; in brackets the number of objects")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_precision_recall(results: DetectionResults) -> Figure:
    """Precision over recall of each class; of many classes, those of the least average precision.

    The line is what was found, the area below is what average precision counts, and the point is the best threshold.
    """
    present = np.flatnonzero(results.num_objects).tolist()
    shown = sorted(sorted(present, key=lambda number: results.compute_average_precision(number)[0])[:MAX_CURVES])
    across = min(NUM_COLUMNS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(max(3.4, 2 * across), 0.5 + 1.9 * down), layout="constrained")
    every = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, number in zip(every.flat, shown, strict=False):
        _plot_curve(axes, results, number)
    for axes in every.flat[len(shown) :]:
        axes.axis("off")
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    if len(shown) < len(present):
        figure.suptitle(f"the {len(shown)} of {len(present)} classes that are found worst", fontsize=9)
    return figure


def _plot_curve(axes: Axes, results: DetectionResults, class_index: int) -> None:
    """The curve of one class."""
    recall, precision, scores = results.compute_curve(class_index)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.concatenate([[0.0], recall])
    axes.fill_between(steps, np.concatenate([monotone[:1], monotone]), step="pre", color=PALE, lw=0)
    axes.plot(recall, precision, color=BLUE, lw=1.1)
    threshold = results.find_best_threshold(class_index)
    best = int(np.count_nonzero(scores >= threshold)) - 1
    if best >= 0:
        x, y = recall[best], precision[best]
        axes.plot(x, y, "o", color=RED, ms=4)
        offset, side = (-5 if x > 0.5 else 5, -11 if y > 0.2 else 5), "right" if x > 0.5 else "left"
        axes.annotate(f"{threshold:.2f}", (x, y), offset, textcoords="offset points", fontsize=7, color=RED, ha=side)
    area = results.compute_average_precision(class_index)[0]
    axes.set_title(f"{_shorten_label(results.labels[class_index])}  {100 * area:.1f} %", fontsize=9)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=8)
    axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def plot_ap_breakdown(metrics: dict[str, Any]) -> Figure:
    """COCO's average precision: over all IoUs, at two of them, and of small, medium and large objects."""
    names = {
        "coco_ap": "all", "coco_ap50": "IoU 0.5", "coco_ap75": "IoU 0.75", "coco_ap_small": "small\nto 32² pixels",
        "coco_ap_medium": "medium\nto 96² pixels", "coco_ap_large": "large",
    }  # fmt: skip
    known = {text: 100 * metrics[name] for name, text in names.items() if name in metrics}
    figure = Figure(figsize=(1.6 + 0.95 * len(known), 2.8), layout="constrained")
    axes = figure.add_subplot(ylabel="average precision, %")
    bars = axes.bar(range(len(known)), list(known.values()), color=[BLUE] + [PALE] * 2 + [BLUE] * (len(known) - 3))
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(known)), list(known), fontsize=8)
    axes.set_ylim(0, max(1.0, 1.15 * max(known.values())))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_outcomes(results: DetectionResults) -> Figure:
    """Right and wrong by kind among the strongest detections of each class, as many as it has objects."""
    counts = results.count_outcomes()
    present = np.flatnonzero(results.num_objects)
    share = 100 * counts[present] / results.num_objects[present, None]
    order = np.argsort(-share[:, 0], kind="stable")
    figure = Figure(figsize=(8, 1.1 + 0.27 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(order))
    for kind, name in enumerate(OUTCOMES):
        axes.barh(range(len(order)), share[order, kind], left=left, color=OUTCOME_COLORS[kind], label=name)
        left += share[order, kind]
    axes.set_yticks(
        range(len(order)), [_shorten_label(results.labels[number]) for number in present[order]], fontsize=9
    )
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the objects; what is empty has no detection")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(OUTCOMES), frameon=False, fontsize=8)
    return figure


def plot_errors(errors: Sequence[ErrorCase], get_image: Callable[[int], Image.Image], labels: Sequence[str]) -> Figure:
    """A part of the image around each mistake; dashed, the object that a false alarm has to do with."""
    rows = -(-len(errors) // NUM_COLUMNS)
    figure = Figure(figsize=(2 * NUM_COLUMNS, 2.25 * rows), layout="constrained")
    for place, mistake in enumerate(errors, start=1):
        axes = figure.add_subplot(rows, NUM_COLUMNS, place)
        whole = get_image(mistake.image_index).convert("RGB")
        left, top, right, bottom = compute_crop(mistake, whole.size)
        part = whole.crop((left, top, right, bottom))
        part.thumbnail((400, 400))
        axes.imshow(np.asarray(part), extent=(left, right, bottom, top))
        shade = image_io.get_class_color(labels.index(mistake.label))
        _draw_outline(axes, mistake.box, image_io.choose_text_color(shade), 3.2)
        _draw_outline(axes, mistake.box, shade, 1.8)
        if mistake.related_box is not None:
            _draw_outline(axes, mistake.related_box, image_io.BLACK, 1.2)
            _draw_outline(axes, mistake.related_box, image_io.WHITE, 1.2, (0, (3, 2)))
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_title(format_caption(mistake), fontsize=8)
        axes.axis("off")
    return figure


def compute_crop(error: ErrorCase, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square around the box with as much again on every side, at least 64 pixels, shifted into the image."""
    boxes = np.array([error.box] if error.related_box is None else [error.box, error.related_box])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = max(64.0, 1.8 * float((high - low).max()))
    edges = []
    for middle, length in zip((low + high) / 2, size, strict=True):
        first = min(max(middle - side / 2, 0), max(length - side, 0))
        edges.append((round(first), max(round(min(first + side, length)), round(first) + 1)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def format_caption(error: ErrorCase) -> str:
    """What went wrong, in a few words."""
    label, other = _shorten_label(error.label), _shorten_label(error.confused_label)
    if error.kind != MISSED:
        return f"{label} {error.score:.2f} → {other or ERROR_CAPTIONS[error.kind]}"
    if error.score:
        return f"{label}, at {error.score:.2g} only"
    return f"{label} → {other}" if other else f"{label}, not found"


def _draw_outline(axes: Axes, box: Any, colour: tuple[int, int, int], width: float, style: Any = "-") -> None:
    left, top, right, bottom = box
    shade = tuple(level / 255 for level in colour)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=shade, lw=width, ls=style))


def _shorten_label(label: str) -> str:
    return label if len(label) <= 20 else f"{label[:18]}..."
