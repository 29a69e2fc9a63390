"""Figures of a captioning model's evaluation."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fukami.image.charts import BLUE
from fukami.image.io import UInt8Array

if TYPE_CHECKING:
    from fukami.engine.task import FigureContent

CaptionExample = tuple[UInt8Array, str, str]  # the image, the predicted caption and a reference caption
EXAMPLES_PER_FIGURE = 4  # number of best, median and worst images
NUM_COMMON_CAPTIONS = 12  # captions in the plot of the most common ones


def plot_evaluation(
    scores: Sequence[float], captions: Sequence[str], get_example: Callable[[int], CaptionExample]
) -> "Iterator[tuple[str, FigureContent]]":
    """Yield each figure of the report with its title.

    Args:
        scores: CIDEr-D of each image's caption.
        captions: the predicted captions.
        get_example: returns the example of an image index.
    """
    ranked = np.argsort(scores, kind="stable")[::-1].tolist()
    middle = max(0, len(ranked) // 2 - EXAMPLES_PER_FIGURE // 2)
    for name, indices in (
        ("Worst", ranked[-EXAMPLES_PER_FIGURE:]),
        ("Median", ranked[middle : middle + EXAMPLES_PER_FIGURE]),
        ("Best", ranked[:EXAMPLES_PER_FIGURE]),
    ):
        rows = [(f"CIDEr-D {scores[index]:.2f}", *get_example(index)) for index in indices]
        yield f"{name} captions", draw_examples(rows)
    yield "Most common captions", plot_common_captions(captions)


def draw_examples(rows: Sequence[tuple[str, UInt8Array, str, str]]) -> list[tuple[str, Image.Image]]:
    """Return images, each with its score, its predicted caption and a reference caption."""
    return [
        (f"{score}: {caption or '(empty)'}\nreference: {reference}", Image.fromarray(image))
        for score, image, caption, reference in rows
    ]


def plot_common_captions(captions: Sequence[str]) -> Figure:
    """Plot the number of images of each of the most common captions."""
    counts = Counter(captions).most_common(NUM_COMMON_CAPTIONS)
    figure = Figure(figsize=(8, 0.4 + 0.28 * len(counts)), layout="constrained")
    axes = figure.add_subplot(xlabel="images")
    bars = axes.barh([textwrap.shorten(text, 80) or "(empty)" for text, _ in counts][::-1],
                     [count for _, count in counts][::-1], color=BLUE)  # fmt: skip
    axes.bar_label(bars, fontsize=7, padding=2)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
