"""Figures of a captioning model's evaluation."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from fukami.image.io import UInt8Array

CaptionExample = tuple[UInt8Array, str, str]  # the image, the predicted caption and a reference caption
EXAMPLES_PER_FIGURE = 4  # number of best, median and worst images
NUM_COMMON_CAPTIONS = 12  # captions in the plot of the most common ones
LINE_LENGTH = 34  # characters per line below an image


def plot_evaluation(
    scores: Sequence[float], captions: Sequence[str], get_example: Callable[[int], CaptionExample]
) -> Iterator[tuple[str, Figure]]:
    """Yield each figure of the report with its title.

    Args:
        scores: CIDEr-D of each image's caption.
        captions: the predicted captions.
        get_example: returns the example of an image index.
    """
    ranked = np.argsort(scores, kind="stable")[::-1].tolist()
    middle = max(0, len(ranked) // 2 - EXAMPLES_PER_FIGURE // 2)
    for name, indices in (
        ("Best", ranked[:EXAMPLES_PER_FIGURE]),
        ("Median", ranked[middle : middle + EXAMPLES_PER_FIGURE]),
        ("Worst", ranked[-EXAMPLES_PER_FIGURE:]),
    ):
        rows = [(f"CIDEr-D {scores[index]:.2f}", *get_example(index)) for index in indices]
        yield f"{name} captions", plot_examples(rows)
    yield "Most common captions", plot_common_captions(captions)


def plot_examples(rows: Sequence[tuple[str, UInt8Array, str, str]]) -> Figure:
    """Plot images in a row, each with its predicted caption and a reference caption below."""
    figure = Figure(figsize=(2.9 * len(rows), 4.1), layout="constrained")
    all_axes = figure.subplots(1, len(rows), squeeze=False).flat
    for axes, (title, image, caption, reference) in zip(all_axes, rows, strict=True):
        axes.imshow(image)
        axes.set_title(title, fontsize=8, color="#666")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        caption_text = "\n".join(textwrap.wrap(caption, LINE_LENGTH) or ["(empty)"])
        reference_text = "\n".join(textwrap.wrap(f"reference: {reference}", LINE_LENGTH))
        axes.set_xlabel(f"{caption_text}\n\n{reference_text}", fontsize=8)
    return figure


def plot_common_captions(captions: Sequence[str]) -> Figure:
    """Plot the number of images of each of the most common captions."""
    counts = Counter(captions).most_common(NUM_COMMON_CAPTIONS)
    figure = Figure(figsize=(8, 0.4 + 0.28 * len(counts)), layout="constrained")
    axes = figure.add_subplot(xlabel="images")
    bars = axes.barh([textwrap.shorten(text, 80) or "(empty)" for text, _ in counts][::-1],
                     [count for _, count in counts][::-1], color="#4878a8")  # fmt: skip
    axes.bar_label(bars, fontsize=7, padding=2)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
