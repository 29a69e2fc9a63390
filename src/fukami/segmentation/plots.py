"""Figures that the judgement of a segmentation is shown in."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from fukami.image import io as image_io
from fukami.image.io import UInt8Array
from fukami.segmentation.metrics import SegmentationResults

SegmentationExample = tuple[
    Image.Image, UInt8Array, UInt8Array
]  # an image, and the class and 1 of its pixels in truth and as answered
IMAGES_PER_GROUP = 2  # of the best, the median and the worst images
MAX_ANNOTATED_CLASSES = 25  # classes up to which the cells carry numbers
BLUE, PALE = "#4878a8", "#c3d3e6"


def plot_evaluation(
    results: SegmentationResults, get_example: Callable[[int], SegmentationExample]
) -> Iterator[tuple[str, Figure]]:
    """Every figure with its title, for the report of a run.

    Args:
        results: what was judged.
        get_example: what there is to see of an image by its number.
    """
    yield "Intersection over union by class", plot_class_iou(results)
    yield "What was taken for what", plot_confusion_matrix(results)
    for name, numbers in select_images(results).items():
        rows = [(f"{name}: mIoU {results.image_scores[number][0]:.1%}", *get_example(number)) for number in numbers]
        yield f"The {name} images", plot_examples(rows, results.labels)


def select_images(results: SegmentationResults) -> dict[str, list[int]]:
    """The numbers of the best, the median and the worst images; no image twice."""
    ranked = results.rank_images()
    middle = max(0, len(ranked) // 2 - IMAGES_PER_GROUP // 2)
    cuts = {
        "best": ranked[:IMAGES_PER_GROUP],
        "median": ranked[middle : middle + IMAGES_PER_GROUP],
        "worst": ranked[::-1][:IMAGES_PER_GROUP],
    }
    taken: set[int] = set()
    for name, numbers in cuts.items():
        cuts[name] = [number for number in numbers if number not in taken]
        taken |= {*numbers}
    return {name: numbers for name, numbers in cuts.items() if numbers}


def plot_class_iou(results: SegmentationResults) -> Figure:
    """IoU and the share of the pixels that was found, of each class that occurs, the best first."""
    classes = results.compute_metrics()["classes"]
    ranked = sorted(classes.items(), key=lambda item: -item[1]["iou"])
    whole = sum(each["pixels"] for each in classes.values())
    figure = Figure(figsize=(8, 1.1 + 0.3 * len(ranked)), layout="constrained")
    axes = figure.add_subplot()
    for name, colour, label in (("accuracy", PALE, "share of its pixels that was found"), ("iou", BLUE, "IoU")):
        axes.barh(range(len(ranked)), [100 * each[name] for _, each in ranked], color=colour, label=label)
    for row, (_, each) in enumerate(ranked):
        axes.text(100 * max(each["iou"], each["accuracy"]) + 0.8, row, f"{100 * each['iou']:.1f}", va="center",
                  fontsize=8)  # fmt: skip
    names = [f"{label[:24]}  ({each['pixels'] / whole:.1%})" for label, each in ranked]
    axes.set_yticks(range(len(ranked)), names, fontsize=9)
    axes.set_xlim(0, 106)
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.set_xlabel("%; in brackets the share of all labelled pixels; the number is the IoU")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_confusion_matrix(results: SegmentationResults) -> Figure:
    """True class by row, answer by column, in % of the row's pixels; classes that do not occur are left out."""
    there = np.flatnonzero(results.confusion_matrix.sum(0) + results.confusion_matrix.sum(1))
    counts = results.confusion_matrix[np.ix_(there, there)]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.8 + 0.45 * min(len(there), 30)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="answer", ylabel="true")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(there) <= MAX_ANNOTATED_CLASSES:
        names = [results.labels[number][:20] for number in there]
        axes.set_xticks(range(len(there)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(there)), names)
        for row, column in np.argwhere(share >= 0.5):
            axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=8,
                      color="w" if share[row, column] > 55 else "k")  # fmt: skip
    return figure


def plot_examples(rows: Sequence[tuple[str, Image.Image, UInt8Array, UInt8Array]], labels: Sequence[str]) -> Figure:
    """Images beside what is true and what was answered, and the colours of the classes that occur."""
    shades = [image_io.WHITE, *image_io.get_class_colors(labels)]
    heights = [image.height / image.width for _, image, _, _ in rows]
    seen = sorted({int(number) for _, _, *maps in rows for pixels in maps for number in np.unique(pixels)} - {0})
    lines = -(-len(seen) // 6)
    figure = Figure(figsize=(10.5, 3.4 * sum(heights) + 0.3 * len(rows) + 0.25 * lines), layout="constrained")
    every = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for line, (name, image, truth, answer) in zip(every, rows, strict=True):
        overlay = image_io.overlay_mask(image, answer, shades)
        columns = ((name, image), ("truth", image_io.overlay_mask(image, truth, shades)), ("answer", overlay))
        for axes, (title, shown) in zip(line, columns, strict=True):
            axes.imshow(np.asarray(shown.convert("RGB")))
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    patches = [
        Patch(fc=[level / 255 for level in shades[number]], ec="#888888", label=labels[number - 1]) for number in seen
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure
