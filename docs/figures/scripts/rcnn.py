"""Draw the figures of docs/landmarks/rcnn.md.

python docs/figures/scripts/rcnn.py RUN    RUN: run of rcnn --data scenes
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
SCENE = scenes.NUM_TRAIN + 58  # a test scene
PANEL_SIZE, REGION_SIZE = 300, 72  # sides of a panel and of a warped region, in pixels


def save(sheet: Image.Image, name: str) -> None:
    """Save a figure with a palette of 128 colors."""
    path = HERE / f"rcnn-{name}.png"
    sheet.convert("RGB").quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def draw_warped_regions(task: fukami.Task, batch: tuple, regions: torch.Tensor) -> Image.Image:
    """Draw the warped regions that are the network's input, in one row."""
    image = task.normalize_images(batch.images, batch.sizes)[0]
    inputs = warp_regions(image, regions, task.region_settings.size, task.region_settings.context_padding)
    inputs = (inputs * task.std + task.mean).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    size = (REGION_SIZE, REGION_SIZE)
    tiles = [np.asarray(Image.fromarray(region).resize(size, Image.Resampling.NEAREST)) for region in inputs]
    return Image.fromarray(
        np.concatenate([np.pad(tile, ((3, 3), (3, 3), (0, 0)), constant_values=255) for tile in tiles], 1)
    )


def main() -> None:
    """Draw the stages for one image."""
    run = Path(sys.argv[1])
    recipe, _ = checkpoint.read_recipe(run)
    task = checkpoint.load_task(run, device="cpu")
    samples = scenes.generate_box_samples(SCENE, 1)
    batch = next(iter(recipe.build_loader(samples, task.labels, train=False)))
    proposals, objects = batch.boxes[0][batch.kinds[0] == PROPOSAL], batch.boxes[0][batch.classes[0] >= 0]
    image = Image.fromarray(samples[0].source)
    ratio = image.width / float(batch.sizes[0][1])
    proposals_in_pixels = proposals.numpy() * ratio
    panel = selective_search_plots.draw_ranked_boxes(image, proposals_in_pixels, 100, PANEL_SIZE)
    title = f"the first 100 of {len(proposals)} proposals"
    save(selective_search_plots.arrange_panels([(panel, title)], 1), "proposals")

    overlaps = boxes.compute_iou(proposals, objects).amax(1)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for mask, title in ((overlaps >= 0.5, "objects: IoU of at least 0.5"), (overlaps < 0.5, "background")):
        regions = proposals[mask]
        regions = regions[torch.randperm(len(regions), generator=generator)[:8]]
        rows.append((draw_warped_regions(task, batch, regions), title))
    save(selective_search_plots.arrange_panels(rows, 1), "regions")

    with torch.inference_mode():
        normalized = task.normalize_images(batch.images, batch.sizes)[0]
        scores, classes = task.score_regions(task.get_features(normalized, proposals).float()).max(1)
        results = task.detect_batch(batch)[0]
    positives = (scores >= 0.5).nonzero().flatten()
    candidates = [
        {"label": task.labels[classes[i]], "score": float(scores[i]), "box": (proposals[i] * ratio).tolist()}
        for i in positives[scores[positives].argsort(descending=True)].tolist()
    ]
    detections = [
        {"label": task.labels[index], "score": score, "box": [coordinate * ratio for coordinate in box]}
        for box, index, score in zip(
            results.boxes.tolist(), results.classes.tolist(), results.scores.tolist(), strict=True
        )
        if score >= 0.5
    ]
    panels = [
        (image_io.draw_boxes(image, candidates, task.labels), f"{len(candidates)} regions classified as objects"),
        (image_io.draw_boxes(image, detections, task.labels), f"{len(detections)} detections after NMS and regression"),
    ]
    save(
        selective_search_plots.arrange_panels(
            [(panel.resize((PANEL_SIZE, PANEL_SIZE * panel.height // panel.width)), title) for panel, title in panels],
            2,
        ),
        "detections",
    )


if __name__ == "__main__":
    main()
