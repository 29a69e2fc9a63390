"""Make show-and-tell.webp of ../show-and-tell.md: images of Flickr8k's sample from the best sentence to the worst.

python docs/figures/scripts/captions.py RUN   # of show-and-tell --data flickr8k-1000
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import fukami
from fukami.captioning import metrics as captioning_metrics
from fukami.captioning import plots as captioning_plots
from fukami.captioning import tokenizer
from fukami.engine import checkpoint

HERE = Path(__file__).parents[1]
RANKS = (0.02, 0.2, 0.5, 0.95)  # of the sentences by CIDEr-D, the best first


def gallery(run: str) -> Figure:
    """Images at some ranks, what was said of each, and what a person says."""
    task = fukami.load(run)
    recipe, _ = checkpoint.read_recipe(Path(run))
    judged = recipe.load_eval_data()
    found = task.collect_results(judged)
    scores = captioning_metrics.compute_cider(found.tokenized_captions, found.matched_references)
    order = np.argsort(scores)[::-1]
    said = list(found.captions.values())
    rows = []
    for rank in RANKS:
        at = int(order[int(rank * len(order))])
        image = judged.images[at].permute(1, 2, 0).numpy()
        own = tokenizer.detokenize(judged.references[at][0], task.decoding.tokenizer)
        rows.append((f"better than {1 - rank:.0%}", image, said[at], own))
    return captioning_plots.plot_examples(rows)


if __name__ == "__main__":
    gallery(sys.argv[1]).savefig(HERE / "show-and-tell.webp", dpi=90, pil_kwargs={"quality": 85})
