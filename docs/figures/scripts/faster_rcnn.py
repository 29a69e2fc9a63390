"""Draw faster-rcnn-cells.webp and faster-rcnn-animals.webp of docs/landmarks/faster-rcnn.md.

    python docs/figures/scripts/faster_rcnn.py CELLS ANIMALS

CELLS is a run of this command, 42 minutes on two cores, and ANIMALS of the next one, 50 minutes; both datasets are in
$FUKAMI_DATA, and FILE contains the convolutions of VGG-16 (vgg16_features_imagenet.safetensors):

    fukami train faster-rcnn-vgg16 --data bccd --init FILE --min-size 320 --max-size 448 --stride 8 --hidden 1024 \\
      --dropout 0 --anchor-sizes 24 48 80 144 --batch-size 1 --lr 3e-3 --schedule cosine --epochs 12 --eval-every 3 \\
      --no-compile --augment flip flip-vertical brightness=0.2 contrast=0.2
    fukami train faster-rcnn-vgg16 --data voc-animals --init FILE --min-size 256 --epochs 12 --eval-every 12 \\
      --no-compile
"""

from pathlib import Path

import numpy as np
import torch
from images import Color, create_parser, draw_outlines, resize_to_width, save_image
from matplotlib import colormaps
from PIL import Image, ImageOps
from torch.nn import functional as F

import fukami
from fukami.data.samples import Sample
from fukami.engine import padded_images, run_record
from fukami.engine.load_run import load_task
from fukami.engine.prediction import Prediction
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.layers import boxes
from fukami.selective_search.plots import arrange_panels

PANEL_SIZE = (482, 362)  # pixels of a panel; two fit into 1,000
NUM_PROPOSALS = 60
PROPOSAL_COLOR: Color = "#1864ab"


def load_run(run: str) -> tuple[fukami.Task, tuple[Sample, ...]]:
    """Load a run, and the samples of its test split, or else of its validation split."""
    recipe, _ = run_record.read_recipe(Path(run))
    splits = recipe.load_splits(include_train=False)
    task = load_task(run, device="cpu")
    task.model.eval()
    return task, splits.test or splits.val


@torch.inference_mode()
def compute_first_stage(task: fukami.Task, photograph: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Compute the objectness map ``(h, w)``, the maximum of all anchors, and the proposals ``(n, 4)`` of an image."""
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None]
    padded, sizes = padded_images.resize_and_pad(pixels, task.transform)
    images, padded_size = task.normalize_images(padded, sizes), (padded.shape[-2], padded.shape[-1])
    logits = task.model.rpn(task.model.backbone(images), padded_size).logits
    stride = task.model.roi_heads.strides[0]
    objectness = logits.view(1, padded_size[0] // stride, padded_size[1] // stride, -1).amax(3).sigmoid()
    enlarged = F.interpolate(objectness[:, None], padded_size, mode="bilinear", align_corners=False)[0, 0]
    height, width = (int(side) for side in sizes[0])
    proposals, _ = task.model.propose(images, sizes)
    return enlarged[:height, :width].numpy(), proposals[0].numpy() * (photograph.width / width)


def draw_detections(task: fukami.Task, photograph: Image.Image, prediction: Prediction) -> Image.Image:
    """Draw the detections on a photograph that first gets the size of a panel, so that the labels are readable."""
    ratio = min(panel / side for panel, side in zip(PANEL_SIZE, photograph.size, strict=True))
    margins = [(panel - side * ratio) / 2 for panel, side in zip(PANEL_SIZE, photograph.size, strict=True)]
    padded = ImageOps.pad(photograph.convert("RGB"), PANEL_SIZE, Image.Resampling.LANCZOS, "white")
    detections = [
        {**box, "box": [edge * ratio + margins[index % 2] for index, edge in enumerate(box["box"])]}
        for box in prediction["boxes"]
    ]
    return image_draw.draw_boxes(padded, detections, task.labels)


def draw_stages(run: str, index: int) -> Image.Image:
    """Draw a test photograph, its objectness, its proposals and its detections."""
    task, samples = load_run(run)
    photograph = image_io.read_image(samples[index].source).convert("RGB")
    objectness, proposals = compute_first_stage(task, photograph)
    width = PANEL_SIZE[0]
    gray = resize_to_width(photograph.convert("L"), width)
    heat = np.asarray(Image.fromarray(objectness).resize(gray.size, Image.Resampling.BILINEAR))[..., None]
    colors = 255 * colormaps["inferno"](heat[..., 0])[..., :3]
    overlay = np.asarray(gray) * (1 - 0.75 * heat) + colors * 0.75 * heat
    outlines = draw_outlines(photograph, proposals[:NUM_PROPOSALS], [PROPOSAL_COLOR] * NUM_PROPOSALS, width)
    (prediction,) = task.predict([photograph])
    panels = [
        (resize_to_width(photograph, width), "photograph"),
        (Image.fromarray(overlay.round().astype(np.uint8)), "objectness, the maximum of all anchors"),
        (outlines, f"the first {NUM_PROPOSALS} proposals"),
        (draw_detections(task, photograph, prediction), f"{len(prediction['boxes'])} detections"),
    ]
    return arrange_panels(panels, 2)


def count_correct(task: fukami.Task, sample: Sample, prediction: Prediction) -> int:
    """Count the detections that match an object of their class by an IoU of at least 0.5, minus all errors."""
    detections = prediction["boxes"]
    if not detections or not len(sample.boxes):
        return -len(detections) - len(sample.boxes)
    overlaps = boxes.compute_iou(torch.tensor([box["box"] for box in detections]), torch.from_numpy(sample.boxes))
    classes = torch.tensor([task.labels.index(box["label"]) for box in detections])
    is_match = (overlaps >= 0.5) & (classes[:, None] == torch.from_numpy(sample.classes))
    num_correct = min(int(is_match.any(1).sum()), int(is_match.any(0).sum()))
    return 3 * num_correct - len(detections) - len(sample.boxes)


def draw_animals(run: str) -> Image.Image:
    """Draw the detections in the photograph with the most correct and the fewest wrong ones of each of four classes."""
    task, samples = load_run(run)
    scored = []
    for sample, prediction in zip(samples, task.predict([sample.source for sample in samples]), strict=True):
        label = task.labels[np.bincount(sample.classes).argmax()]
        scored.append((count_correct(task, sample, prediction), label, sample, prediction))
    best: dict[str, tuple[Sample, Prediction]] = {}
    for _, label, sample, prediction in sorted(scored, key=lambda entry: -entry[0]):
        if label != "person":
            best.setdefault(label, (sample, prediction))
    panels = []
    for sample, prediction in list(best.values())[:4]:
        drawing = draw_detections(task, image_io.read_image(sample.source), prediction)
        annotated = ", ".join(task.labels[index] for index in sorted(sample.classes.tolist()))
        panels.append((drawing, f"annotated: {annotated}"))
    return arrange_panels(panels, 2)


if __name__ == "__main__":
    parser = create_parser(__doc__)
    parser.add_argument("cells", help="Run on bccd.")
    parser.add_argument("animals", nargs="?", help="Run on voc-animals.")
    parser.add_argument("--index", type=int, default=3, help="Index of the test photograph of cells.")
    options = parser.parse_args()
    save_image(draw_stages(options.cells, options.index), options.out / "faster-rcnn-cells.webp")
    if options.animals:
        save_image(draw_animals(options.animals), options.out / "faster-rcnn-animals.webp")
