"""Figures that the judgement of sentences is shown in."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from fukami.image.io import UInt8Array

CaptionExample = tuple[UInt8Array, str, str]  # an image, what was said of it, and what a person says
EXAMPLES_PER_FIGURE = 4  # of the best, the median and the worst images
NUM_COMMON_CAPTIONS = 12  # sentences that are counted
LINE_LENGTH = 34  # letters in a line below an image


def plot_evaluation(
    scores: Sequence[float], captions: Sequence[str], get_example: Callable[[int], CaptionExample]
) -> Iterator[tuple[str, Figure]]:
    """Every figure with its title, for the report of a run.

    Args:
        scores: CIDEr-D of the sentence for each image.
        captions: the sentences.
        get_example: what there is to see of an image by its number.
    """
    ranked = np.argsort(scores, kind="stable")[::-1].tolist()
    middle = max(0, len(ranked) // 2 - EXAMPLES_PER_FIGURE // 2)
    for name, some in (
        ("best", ranked[:EXAMPLES_PER_FIGURE]),
        ("median", ranked[middle : middle + EXAMPLES_PER_FIGURE]),
        ("worst", ranked[-EXAMPLES_PER_FIGURE:]),
    ):
        yield f"The {name} sentences", plot_examples([(f"CIDEr-D {scores[at]:.2f}", *get_example(at)) for at in some])
    yield "The commonest sentences", plot_common_captions(captions)


def plot_examples(rows: Sequence[tuple[str, UInt8Array, str, str]]) -> Figure:
    """Images side by side, what was said of each, and below it what a person says."""
    figure = Figure(figsize=(2.9 * len(rows), 4.1), layout="constrained")
    for axes, (title, image, said, own) in zip(figure.subplots(1, len(rows), squeeze=False).flat, rows, strict=True):
        axes.imshow(image)
        axes.set_title(title, fontsize=8, color="#666")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
        lines = "\n".join(textwrap.wrap(said, LINE_LENGTH) or ["(nothing)"])
        person = "\n".join(textwrap.wrap(f"a person: {own}", LINE_LENGTH))
        axes.set_xlabel(f"{lines}\n\n{person}", fontsize=8)
    return figure


def plot_common_captions(captions: Sequence[str]) -> Figure:
    """How often the commonest sentences were said."""
    counts = Counter(captions).most_common(NUM_COMMON_CAPTIONS)
    figure = Figure(figsize=(8, 0.4 + 0.28 * len(counts)), layout="constrained")
    axes = figure.add_subplot(xlabel="images")
    bars = axes.barh([textwrap.shorten(text, 80) or "(nothing)" for text, _ in counts][::-1],
                     [number for _, number in counts][::-1], color="#4878a8")  # fmt: skip
    axes.bar_label(bars, fontsize=7, padding=2)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
