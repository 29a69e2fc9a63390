"""Draw show-and-tell.webp of docs/landmarks/show-and-tell.md: correct and wrong captions of images of Flickr8k.

    python docs/figures/scripts/captions.py RUN [--ranks 9 13 95 97]

The script prints all captions in the order of their scores; two correct and two wrong ones are chosen by their ranks.
RUN is a run of this command, four minutes on two cores; flickr8k-1000 is in $FUKAMI_DATA, and FILE contains the
convolutions of VGG-16 (vgg16_features_imagenet.safetensors):

    fukami train show-and-tell --data flickr8k-1000 --encoder vgg16 --init FILE --epochs 10 --eval-every 10
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from images import create_parser, render_figure, save_image
from matplotlib.figure import Figure

from fukami.captioning import metrics as captioning_metrics
from fukami.captioning import tokenizer
from fukami.engine import run_record
from fukami.engine.load_run import load_task

LINE_LENGTH = 25  # characters per line below an image
CORRECT, WRONG, INK, GRAY = "#2b8a3e", "#c92a2a", "#23303d", "#5b6670"


def plot_captions(run: Path, ranks: Sequence[int]) -> Figure:
    """Plot two images with correct and two with wrong captions, with scores and human captions."""
    task = load_task(run, device="cpu")
    recipe, _ = run_record.read_recipe(run)
    eval_data = recipe.load_eval_data().eval_batches
    results = task.collect_results(eval_data)
    scores = np.array(captioning_metrics.compute_cider(results.tokenized_captions, results.matched_references))
    indices, captions = list(results.captions), list(results.captions.values())
    order = np.argsort(-scores, kind="stable")
    for rank, position in enumerate(order.tolist(), start=1):
        sys.stdout.write(f"{rank:3} {scores[position]:.2f} {captions[position]}\n")
    figure = Figure(figsize=(10, 4.3))
    for column, rank in enumerate(ranks):
        position = int(order[rank - 1])
        image = eval_data.images[indices[position]].permute(1, 2, 0).numpy()
        reference = tokenizer.detokenize(results.matched_references[position][0], results.tokenizer)
        is_correct = column < len(ranks) // 2
        left = 0.01 + 0.2475 * column
        axes = figure.add_axes((left, 0.35, 0.2375, 0.553))
        axes.imshow(image)
        axes.axis("off")
        axes.set_title(f"{'correct' if is_correct else 'wrong'}: CIDEr-D {scores[position]:.2f}", fontsize=12,
                       fontweight="bold", color=CORRECT if is_correct else WRONG)  # fmt: skip
        caption = textwrap.fill(captions[position] or "(empty)", LINE_LENGTH)
        human = textwrap.fill(f"human: {reference}", LINE_LENGTH)
        style = {"fontsize": 10.5, "va": "top", "linespacing": 1.25}
        text = figure.text(left, 0.322, caption, color=INK, fontweight="bold", **style)
        offset = 0.017 + 0.0439 * (text.get_text().count("\n") + 1)
        figure.text(left, 0.322 - offset, human, color=GRAY, **style)
    return figure


if __name__ == "__main__":
    parser = create_parser(__doc__)
    parser.add_argument("run", type=Path, help="Run on flickr8k-1000.")
    parser.add_argument(
        "--ranks", type=int, nargs=4, default=[9, 13, 95, 97], help="Two correct captions, and two wrong ones."
    )
    options = parser.parse_args()
    save_image(render_figure(plot_captions(options.run, options.ranks)), options.out / "show-and-tell.webp")
