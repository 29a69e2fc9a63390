"""Draw rcnn-proposals.webp, rcnn-regions.webp and rcnn-detections.webp of docs/landmarks/rcnn.md.

    python docs/figures/scripts/rcnn.py RUN

RUN is a run of this command, 104 minutes on two cores beside small other work. bccd is in $FUKAMI_DATA, and FILE
contains the convolutions of VGG-16 (vgg16_features_imagenet.safetensors):

    fukami train rcnn --data bccd --backbone vgg16 --init FILE --min-size 320 --max-size 448 --size 64 \\
      --context-padding 5 --hidden 1024 --dropout 0.3 --regions-per-image 32 --batch-size 2 --lr 3e-3 --clip-norm 10 \\
      --epochs 5 --eval-every 5 --no-compile --augment flip flip-vertical brightness=0.2 contrast=0.2
"""

from pathlib import Path

import torch
from images import create_parser, draw_outlines, resize_to_width, save_image
from PIL import Image
from torch import Tensor

import fukami
from fukami.data.samples import PROPOSAL, PaddedBatch
from fukami.engine import run_record
from fukami.engine.load_run import load_task
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.layers import boxes
from fukami.layers.roi_warp import warp_regions
from fukami.selective_search.plots import arrange_panels

PANEL_WIDTH, TILE_SIZE, GAP = 482, 114, 8  # pixels of a panel, of a warped region and between two of them
NUM_TILES = 8  # warped regions in a row
NUM_PROPOSALS = 60
MIN_SCORE = 0.5  # decision boundary of the SVMs


def draw_warped_regions(task: fukami.Task, image: Tensor, regions: Tensor) -> Image.Image:
    """Draw the warped regions that are the network's input, in one row."""
    settings = task.region_settings
    inputs = warp_regions(image, regions, settings.size, settings.context_padding)
    pixels = (inputs * task.std + task.mean).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    row = Image.new("RGB", (NUM_TILES * (TILE_SIZE + GAP) - GAP, TILE_SIZE), "white")
    for index, region in enumerate(pixels):
        tile = Image.fromarray(region).resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC)
        row.paste(tile, (index * (TILE_SIZE + GAP), 0))
    return row


def draw_regions(task: fukami.Task, image: Tensor, proposals: Tensor, objects: Tensor) -> Image.Image:
    """Draw a row of regions that fine-tuning samples as objects, and a row of background."""
    overlaps = boxes.compute_iou(proposals, objects).amax(1)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for mask, title in ((overlaps >= 0.5, "objects: IoU of at least 0.5"), (overlaps < 0.5, "background")):
        regions = proposals[mask]
        selected = torch.randperm(len(regions), generator=generator)[:NUM_TILES]
        rows.append((draw_warped_regions(task, image, regions[selected]), title))
    return arrange_panels(rows, 1)


@torch.inference_mode()
def draw_detections(task: fukami.Task, photograph: Image.Image, batch: PaddedBatch, proposals: Tensor) -> Image.Image:
    """Draw the regions that are classified as objects, and the detections after suppression and box regression."""
    image = task.normalize_images(batch.images, batch.sizes)[0]
    scores, classes = task.score_regions(task.get_features(image, proposals).float()).max(1)
    positive = scores >= MIN_SCORE
    ratio = photograph.width / float(batch.sizes[0, 1])
    colors = [image_draw.get_class_color(index) for index in classes[positive].tolist()]
    candidates = draw_outlines(photograph, proposals[positive].numpy() * ratio, colors, PANEL_WIDTH)
    (results,) = task.detect_batch(batch)
    to_panel = PANEL_WIDTH / float(batch.sizes[0, 1])
    detections = [
        {"label": task.labels[index], "score": score, "box": [edge * to_panel for edge in box]}
        for box, index, score in zip(
            results.boxes.tolist(), results.classes.tolist(), results.scores.tolist(), strict=True
        )
        if score >= MIN_SCORE
    ]
    drawing = image_draw.draw_boxes(resize_to_width(photograph, PANEL_WIDTH), detections, task.labels)
    titles = f"{len(colors)} regions classified as objects", f"{len(detections)} detections"
    return arrange_panels([(candidates, titles[0]), (drawing, titles[1])], 2)


def main() -> None:
    """Draw the stages for a test photograph."""
    parser = create_parser(__doc__)
    parser.add_argument("run", type=Path, help="Run on bccd.")
    parser.add_argument("--index", type=int, default=45, help="Index of the test photograph.")
    options = parser.parse_args()
    recipe, _ = run_record.read_recipe(options.run)
    task = load_task(options.run, device="cpu")
    splits = recipe.load_splits(include_train=False)
    sample = (splits.test or splits.val)[options.index]
    photograph = image_io.read_image(sample.source).convert("RGB")
    batch = next(iter(recipe.build_loader((sample,), task.labels, train=False)))
    (proposals,) = task.iterate_proposals(batch)
    is_object = (batch.classes[0] >= 0) & (batch.kinds[0] != PROPOSAL)

    ratio = photograph.width / float(batch.sizes[0, 1])
    colors = [image_draw.get_class_color(index) for index in range(NUM_PROPOSALS)]
    annotated = draw_outlines(
        photograph, sample.boxes, [image_draw.get_class_color(index) for index in sample.classes.tolist()], PANEL_WIDTH
    )
    first = draw_outlines(photograph, proposals[:NUM_PROPOSALS].numpy() * ratio, colors, PANEL_WIDTH)
    panels = [
        (annotated, f"{len(sample.boxes)} annotated objects"),
        (first, f"the first {NUM_PROPOSALS} of {len(proposals):,} proposals"),
    ]
    save_image(arrange_panels(panels, 2), options.out / "rcnn-proposals.webp")
    image = task.normalize_images(batch.images, batch.sizes)[0]
    regions = draw_regions(task, image, proposals, batch.boxes[0][is_object])
    save_image(regions, options.out / "rcnn-regions.webp")
    save_image(draw_detections(task, photograph, batch, proposals), options.out / "rcnn-detections.webp")


if __name__ == "__main__":
    main()
