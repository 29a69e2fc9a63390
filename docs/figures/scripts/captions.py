"""Draw show-and-tell.webp of docs/landmarks/show-and-tell.md: captions of Flickr8k images, from the best to the worst.

python docs/figures/scripts/captions.py RUN    RUN: run of show-and-tell --data flickr8k-1000
"""

import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fukami.captioning import metrics as captioning_metrics
from fukami.captioning import tokenizer
from fukami.engine import checkpoint

HERE = Path(__file__).parents[1]
LINE_LENGTH = 34  # characters per line below an image
RANKS = (0.02, 0.2, 0.5, 0.95)  # of the captions by CIDEr-D, the best first


def plot_gallery(run: str) -> Figure:
    """Plot the images at some ranks with the generated caption and a reference caption."""
    task = checkpoint.load_task(run)
    recipe, _ = checkpoint.read_recipe(Path(run))
    eval_data = recipe.load_eval_data().eval_batches
    results = task.collect_results(eval_data)
    scores = captioning_metrics.compute_cider(results.tokenized_captions, results.matched_references)
    order = np.argsort(scores)[::-1]
    captions = list(results.captions.values())
    rows = []
    for rank in RANKS:
        index = int(order[int(rank * len(order))])
        image = eval_data.images[index].permute(1, 2, 0).numpy()
        reference = tokenizer.detokenize(eval_data.references[index][0], task.decoding_config.tokenizer)
        rows.append((f"better than {1 - rank:.0%}", image, captions[index], reference))
    return plot_examples(rows)


def plot_examples(rows: list[tuple[str, np.ndarray, str, str]]) -> Figure:
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


if __name__ == "__main__":
    plot_gallery(sys.argv[1]).savefig(HERE / "show-and-tell.webp", dpi=90, pil_kwargs={"quality": 85})
