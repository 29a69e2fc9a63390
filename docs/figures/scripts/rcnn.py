"""Make the figures of ../rcnn.md, of a run of rcnn on scenes.

python docs/figures/scripts/rcnn.py RUN
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fukami
from fukami.data import scenes
from fukami.data.samples import PROPOSAL
from fukami.engine import checkpoint
from fukami.image import io as image_io
from fukami.layers import boxes
from fukami.layers.roi_warp import warp_regions
from fukami.selective_search import plots as selective_search_plots

HERE = Path(__file__).parents[1]
NUMBER = scenes.NUM_TRAIN + 58  # of the scene, which is none that was learned from
SIDE, EACH = 300, 72  # pixels of a panel, and of a warped region


def save(sheet: Image.Image, name: str) -> None:
    """Write a figure in few colours."""
    path = HERE / f"rcnn-{name}.png"
    sheet.convert("RGB").quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def warped(task: fukami.Task, batch: tuple, chosen: torch.Tensor) -> Image.Image:
    """Regions side by side, as the network sees them."""
    image = task.normalize_images(batch.images, batch.sizes)[0]
    seen = warp_regions(image, chosen, task.region_settings.size, task.region_settings.context_padding)
    seen = (seen * task.std + task.mean).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    tiles = [np.asarray(Image.fromarray(each).resize((EACH, EACH), Image.Resampling.NEAREST)) for each in seen]
    return Image.fromarray(
        np.concatenate([np.pad(each, ((3, 3), (3, 3), (0, 0)), constant_values=255) for each in tiles], 1)
    )


def main() -> None:
    """The four stages of one image."""
    run = Path(sys.argv[1])
    recipe, _ = checkpoint.read_recipe(run)
    task = fukami.load(run, device="cpu")
    samples = scenes.generate_box_samples(NUMBER, 1)
    batch = next(iter(recipe.build_loader(samples, task.labels, train=False)))
    proposals, objects = batch.boxes[0][batch.kinds[0] == PROPOSAL], batch.boxes[0][batch.classes[0] >= 0]
    image = Image.fromarray(samples[0].source)
    ratio = image.width / float(batch.sizes[0][1])
    own = proposals.numpy() * ratio
    drawn = selective_search_plots.draw_ranked_boxes(image, own, 100, SIDE)
    save(selective_search_plots.arrange_panels([(drawn, f"the first 100 of {len(own)} proposals")], 1), "proposals")

    overlap = boxes.compute_iou(proposals, objects).amax(1)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for which, name in ((overlap >= 0.5, "objects: IoU of at least 0.5"), (overlap < 0.5, "background")):
        some = proposals[which]
        some = some[torch.randperm(len(some), generator=generator)[:8]]
        rows.append((warped(task, batch, some), name))
    save(selective_search_plots.arrange_panels(rows, 1), "regions")

    with torch.inference_mode():
        seen = task.normalize_images(batch.images, batch.sizes)[0]
        best, classes = task.score_regions(task.get_features(seen, proposals).float()).max(1)
        found = task.detect_batch(batch)[0]
    likely = (best >= 0.5).nonzero().flatten()
    before = [
        {"label": task.labels[classes[i]], "score": float(best[i]), "box": (proposals[i] * ratio).tolist()}
        for i in likely[best[likely].argsort(descending=True)].tolist()
    ]
    after = [
        {"label": task.labels[number], "score": score, "box": [side * ratio for side in box]}
        for box, number, score in zip(found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True)
        if score >= 0.5
    ]
    panels = [
        (
            image_io.draw_boxes(image, before, task.labels),
            f"{len(before)} regions that a machine takes for an object",
        ),
        (image_io.draw_boxes(image, after, task.labels), f"suppressed and moved: {len(after)} are left"),
    ]
    save(
        selective_search_plots.arrange_panels(
            [(each.resize((SIDE, SIDE * each.height // each.width)), text) for each, text in panels], 2
        ),
        "found",
    )


if __name__ == "__main__":
    main()
