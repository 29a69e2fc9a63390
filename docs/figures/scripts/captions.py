"""Draw show-and-tell.webp of docs/landmarks/show-and-tell.md: captions of Flickr8k images, from the best to the worst.

python docs/figures/scripts/captions.py RUN    RUN: run of show-and-tell --data flickr8k-1000
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fukami.captioning import metrics as captioning_metrics
from fukami.captioning import plots as captioning_plots
from fukami.captioning import tokenizer
from fukami.engine import checkpoint

HERE = Path(__file__).parents[1]
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
    return captioning_plots.plot_examples(rows)


if __name__ == "__main__":
    plot_gallery(sys.argv[1]).savefig(HERE / "show-and-tell.webp", dpi=90, pil_kwargs={"quality": 85})
