"""Figures of a segmentation's evaluation."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.image.charts import plot_class_bars, shorten_label
from fukami.image.io import UInt8Array
from fukami.segmentation.metrics import SegmentationResults

if TYPE_CHECKING:
    from fukami.engine.task import FigureContent

# the image, and its true and its predicted map of class index + 1
SegmentationExample = tuple[Image.Image, UInt8Array, UInt8Array]
IMAGES_PER_GROUP = 2  # number of best, median and worst images
MAX_ANNOTATED_CLASSES = 25  # maximum number of classes for numbers in the cells


def plot_evaluation(
    results: SegmentationResults, get_example: Callable[[int], SegmentationExample]
) -> "Iterator[tuple[str, FigureContent]]":
    """Yield each figure of the report with its title.

    Args:
        results: the evaluation results.
        get_example: returns the example of an image index.
    """
    yield "Intersection over union by class", plot_class_iou(results)
    yield "Confusion matrix", plot_confusion_matrix(results)
    for name, indices in reversed(select_images(results).items()):
        rows = [(f"{name}: mIoU {results.image_scores[index][0]:.1%}", *get_example(index)) for index in indices]
        yield f"{name.capitalize()} images", draw_examples(rows, results.labels)


def select_images(results: SegmentationResults) -> dict[str, list[int]]:
    """Select the indices of the best, the median and the worst images, without duplicates."""
    ranked = results.rank_images()
    middle = max(0, len(ranked) // 2 - IMAGES_PER_GROUP // 2)
    groups = {
        "best": ranked[:IMAGES_PER_GROUP],
        "median": ranked[middle : middle + IMAGES_PER_GROUP],
        "worst": ranked[::-1][:IMAGES_PER_GROUP],
    }
    selected: set[int] = set()
    for name, indices in groups.items():
        groups[name] = [index for index in indices if index not in selected]
        selected |= {*indices}
    return {name: indices for name, indices in groups.items() if indices}


def plot_class_iou(results: SegmentationResults) -> Figure:
    """Plot the IoU and the accuracy of each class that occurs, highest IoU first."""
    classes = results.compute_class_metrics()
    ranked = sorted(classes.items(), key=lambda item: -item[1]["iou"])
    total_pixels = sum(metrics["pixels"] for metrics in classes.values())
    names = [f"{shorten_label(label)}  ({metrics['pixels'] / total_pixels:.1%})" for label, metrics in ranked]
    accuracy, iou = ([metrics[name] for _, metrics in ranked] for name in ("accuracy", "iou"))
    xlabel = "%; in brackets the fraction of all labeled pixels; numbers: IoU"
    return plot_class_bars(names, {"accuracy": accuracy, "IoU": iou}, iou, xlabel)


def plot_confusion_matrix(results: SegmentationResults) -> Figure:
    """Plot the confusion matrix in % of each true class (row), without the classes that do not occur."""
    occurring = np.flatnonzero(results.confusion_matrix.sum(0) + results.confusion_matrix.sum(1))
    counts = results.confusion_matrix[np.ix_(occurring, occurring)]
    percentages = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.8 + 0.45 * min(len(occurring), 30)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    axes.imshow(percentages, cmap="Blues", vmin=0, vmax=100)
    if len(occurring) <= MAX_ANNOTATED_CLASSES:
        names = [shorten_label(results.labels[index]) for index in occurring]
        axes.set_xticks(range(len(occurring)), names, rotation=90)
        axes.set_yticks(range(len(occurring)), names)
        for row, column in np.argwhere(percentages >= 0.5):
            axes.text(column, row, f"{percentages[row, column]:.0f}", ha="center", va="center", fontsize=8,
                      color="w" if percentages[row, column] > 55 else "k")  # fmt: skip
    return figure


def draw_examples(
    rows: Sequence[tuple[str, Image.Image, UInt8Array, UInt8Array]], labels: Sequence[str]
) -> list[tuple[str, Image.Image | Figure]]:
    """Draw images, each followed by its true and its predicted mask, and a legend of the classes that occur."""
    colors = [image_io.WHITE, *image_draw.get_class_colors(labels)]
    occurring = sorted({int(value) for _, _, *maps in rows for pixels in maps for value in np.unique(pixels)} - {0})
    grid: list[tuple[str, Image.Image | Figure]] = []
    for name, image, truth, prediction in rows:
        grid += [
            (name, image.convert("RGB")),
            ("truth", image_draw.overlay_mask(image, truth, colors)),
            ("prediction", image_draw.overlay_mask(image, prediction, colors)),
        ]
    legend = Figure(figsize=(3, 0.2 + 0.25 * len(occurring)), layout="constrained")
    axes = legend.add_subplot()
    axes.imshow(np.array([[colors[value]] for value in occurring], np.uint8))
    axes.set_xticks([])
    axes.set_yticks(range(len(occurring)), [labels[value - 1][:20] for value in occurring], fontsize=9)
    return [*grid, ("classes", legend)]
