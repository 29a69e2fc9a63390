"""Plots of the evaluation of a detector."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.typing import LineStyleType
from PIL import Image

from fukami.detection.metrics import MISSED, OUTCOMES, DetectionResults, ErrorCase, FloatArray
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.image.charts import BLUE, PALE, RED, plot_class_bars, shorten_label

if TYPE_CHECKING:
    from fukami.engine.task import FigureContent

MAX_CURVES = 24  # maximum number of precision-recall curves
MAX_ERRORS_SHOWN = 15  # maximum number of false negatives, and of false positives
CROP_WIDTH = 1.7  # inches of the crop around an error
OUTCOME_COLORS = ("#6aa67c", "#e3b34c", "#b58fc4", "#d6723c", "#9a9a9a")  # of OUTCOMES
ERROR_CAPTIONS = {"localization": "poor localization", "duplicate": "duplicate", "background": "background"}


def plot_evaluation(
    results: DetectionResults, get_image: Callable[[int], Image.Image]
) -> "Iterator[tuple[str, FigureContent]]":
    """Yield the title and the figure of each plot of the evaluation, for the report of a run.

    Args:
        results: results with at least one object.
        get_image: returns the image of an index, in whose pixels its boxes are.
    """
    yield "Average precision by class", plot_class_ap(results.compute_class_metrics())
    yield "Precision-recall curves", plot_precision_recall(results)
    yield "Average precision by IoU threshold and object size", plot_ap_breakdown(results.coco_metrics[0])
    yield "Outcomes of the top detections by class", plot_outcomes(results)
    false_negatives = results.find_false_negatives(MAX_ERRORS_SHOWN)
    false_positives = results.find_false_positives(MAX_ERRORS_SHOWN)
    if false_negatives:
        yield "Worst false negatives", plot_errors(false_negatives, get_image, results.labels)
    if false_positives:
        yield "Worst false positives", plot_errors(false_positives, get_image, results.labels)


def plot_class_ap(classes: dict[str, dict[str, float]]) -> Figure:
    """Plot VOC's and COCO's average precision of each class, in descending order."""
    ranked = sorted(classes.items(), key=lambda item: -item[1]["ap"])
    names = [f"{shorten_label(label)}  ({metrics['objects']:,})" for label, metrics in ranked]
    voc, coco = ([metrics[name] for _, metrics in ranked] for name in ("ap", "coco_ap"))
    bars = {"at IoU 0.5 (VOC)": voc, "at IoU 0.5 to 0.95 (COCO)": coco}
    return plot_class_bars(names, bars, voc, "average precision, % (number of objects in brackets)")


def plot_precision_recall(results: DetectionResults) -> list[tuple[str, Figure]]:
    """Plot the precision-recall curve of each class, or of the ``MAX_CURVES`` classes with the lowest AP.

    The line is the measured precision, the area is the average precision (AP), and the point is the best threshold.
    """
    areas = {
        int(index): results.compute_average_precision(index)[0]
        for index in np.flatnonzero(results.num_objects).tolist()
    }
    curves = []
    for class_index in sorted(sorted(areas, key=areas.__getitem__)[:MAX_CURVES]):
        figure = Figure(figsize=(1.75, 1.7), layout="constrained")
        _plot_curve(figure.add_subplot(), results, class_index)
        curves.append((f"{shorten_label(results.labels[class_index])} {areas[class_index]:.1%}", figure))
    return curves


def _plot_curve(axes: Axes, results: DetectionResults, class_index: int) -> None:
    """Plot the precision-recall curve of one class."""
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
    axes.set_xlabel("recall", fontsize=8)
    axes.set_ylabel("precision", fontsize=8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=8)
    axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def plot_ap_breakdown(metrics: dict[str, float]) -> Figure:
    """Plot COCO's average precision over all IoU thresholds, at two of them, and by object size."""
    names = {
        "coco_ap": "all", "coco_ap50": "IoU 0.5", "coco_ap75": "IoU 0.75", "coco_ap_small": "small\nto 32² pixels",
        "coco_ap_medium": "medium\nto 96² pixels", "coco_ap_large": "large",
    }  # fmt: skip
    values = {text: 100 * metrics[name] for name, text in names.items() if name in metrics}
    figure = Figure(figsize=(1.6 + 0.95 * len(values), 2.8), layout="constrained")
    axes = figure.add_subplot(ylabel="average precision, %")
    bars = axes.bar(range(len(values)), list(values.values()), color=[BLUE] + [PALE] * 2 + [BLUE] * (len(values) - 3))
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(values)), list(values), fontsize=8)
    axes.set_ylim(0, max(1.0, 1.15 * max(values.values())))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_outcomes(results: DetectionResults) -> Figure:
    """Plot the outcomes of the top detections of each class, as many as it has objects."""
    counts = results.count_outcomes()
    present = np.flatnonzero(results.num_objects)
    percentages = 100 * counts[present] / results.num_objects[present, None]
    order = np.argsort(-percentages[:, 0], kind="stable")
    figure = Figure(figsize=(8, 1.1 + 0.27 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(order))
    for outcome, name in enumerate(OUTCOMES):
        widths = percentages[order, outcome]
        axes.barh(range(len(order)), widths, left=left, color=OUTCOME_COLORS[outcome], label=name)
        left += widths
    axes.set_yticks(range(len(order)), [shorten_label(results.labels[index]) for index in present[order]], fontsize=9)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the objects; blank: no detection")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(OUTCOMES), frameon=False, fontsize=8)
    return figure


def plot_errors(
    errors: Sequence[ErrorCase], get_image: Callable[[int], Image.Image], labels: Sequence[str]
) -> list[tuple[str, Figure]]:
    """Plot an image crop around each error; the object that a false positive overlaps is dashed."""
    crops = []
    for error in errors:
        image = get_image(error.image_index).convert("RGB")
        left, top, right, bottom = compute_crop(error, image.size)
        crop = image.crop((left, top, right, bottom))
        crop.thumbnail((400, 400))
        figure = Figure(figsize=(CROP_WIDTH, CROP_WIDTH * (bottom - top) / (right - left)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.asarray(crop), extent=(left, right, bottom, top))
        color = image_draw.get_class_color(labels.index(error.label))
        _draw_outline(axes, error.box, image_draw.choose_text_color(color), 3.2)
        _draw_outline(axes, error.box, color, 1.8)
        if error.related_box is not None:
            _draw_outline(axes, error.related_box, image_draw.BLACK, 1.2)
            _draw_outline(axes, error.related_box, image_io.WHITE, 1.2, (0, (3, 2)))
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.axis("off")
        crops.append((format_caption(error), figure))
    return crops


def compute_crop(error: ErrorCase, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Compute a square crop around the boxes, 1.8 times as large and at least 64 pixels, shifted into the image.

    Returns:
        Left, top, right and bottom in pixels.
    """
    boxes = np.array([error.box] if error.related_box is None else [error.box, error.related_box])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = max(64.0, 1.8 * float((high - low).max()))
    edges = []
    for center, length in zip((low + high) / 2, size, strict=True):
        start = min(max(center - side / 2, 0), max(length - side, 0))
        edges.append((round(start), max(round(min(start + side, length)), round(start) + 1)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def format_caption(error: ErrorCase) -> str:
    """Format the caption of an error."""
    label, confused_label = shorten_label(error.label), shorten_label(error.confused_label)
    if error.kind != MISSED:
        return f"{label} {error.score:.2f} → {confused_label or ERROR_CAPTIONS[error.kind]}"
    if error.score:
        return f"{label}, score only {error.score:.2g}"
    return f"{label} → {confused_label}" if confused_label else f"{label}, not detected"


def _draw_outline(
    axes: Axes, box: FloatArray, color: tuple[int, int, int], width: float, style: LineStyleType = "-"
) -> None:
    left, top, right, bottom = box
    shade = tuple(level / 255 for level in color)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=shade, lw=width, ls=style))
