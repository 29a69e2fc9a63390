"""Small objects in large images: mean average precision of prediction in tiles, of whole images, and of larger inputs.

    python benchmarks/tiles.py [--run RUN] [--images 8] [--grid 4] [--tiles 160]

Each image is a grid of bundled scenes, 4 by 4 by default, on a gray background; an object's side is about a twelfth of
the image's. Without ``--run`` a small Faster R-CNN is trained on 400 single scenes first, in about 80 seconds. The same
weights predict each image resized as in the training, resized to the side of the image, in tiles resized as in the
training, and in tiles of 256 pixels that are not resized. Results go to results.csv.
"""

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fukami
from common.record import record
from fukami.data import scenes
from fukami.data.samples import REGULAR
from fukami.detection.metrics import DetectionResults, GroundTruth, Prediction

CELL = scenes.CROWDED.side_range[1]  # pixels, the longest side of a scene
FIRST_SCENE = 100_000  # none of the training or test scenes
GRAY = 128
LARGE_TILE = 256  # pixels, side of the tiles that are not resized
NUM_TRAIN, NUM_TEST = 400, 8
FIELDS = {
    "width_multiplier": 0.25, "hidden": 128, "batch_norm": True, "dropout": 0.1, "stride": 8, "min_size": 128,
    "max_size": 192, "anchor_sizes": (24.0, 40.0, 64.0), "batch_size": 4, "optimizer": "adamw", "lr": 1.5e-3,
    "weight_decay": 0.02, "schedule": "one-cycle", "warmup": 0.2, "clip_norm": 0.0, "epochs": 4, "eval_every": 4,
    "augment": ("flip", "brightness=0.2"),
}  # fmt: skip


def train_detector(folder: Path) -> Path:
    """Train a small detector on single scenes, and return its run."""
    scenes.NUM_TRAIN, scenes.NUM_TEST = NUM_TRAIN, NUM_TEST
    return fukami.train("faster-rcnn-vgg16", folder / "run", precision="float32", **FIELDS).folder


def build_image(index: int, grid: int) -> tuple[np.ndarray, GroundTruth]:
    """Build an image of ``grid`` by ``grid`` scenes, at random positions in their cells, and its objects."""
    random = np.random.default_rng(index)
    canvas = np.full((grid * CELL, grid * CELL, 3), GRAY, np.uint8)
    boxes, classes = [], []
    for cell in range(grid * grid):
        scene = scenes.generate_scene(0, FIRST_SCENE + index * grid * grid + cell)
        height, width = scene.image.shape[:2]
        top = cell // grid * CELL + random.integers(0, CELL - height + 1)
        left = cell % grid * CELL + random.integers(0, CELL - width + 1)
        canvas[top : top + height, left : left + width] = scene.image
        boxes.append(scene.boxes + np.array([left, top, left, top], np.float32))
        classes.append(scene.classes)
    labels = np.concatenate(classes)
    return canvas, GroundTruth(np.concatenate(boxes), labels, np.full(len(labels), REGULAR))


def evaluate(model: fukami.Model, images: list[tuple[np.ndarray, GroundTruth]]) -> tuple[dict[str, float], float]:
    """Evaluate the predicted boxes of the images; also return the seconds per image."""
    results, start = DetectionResults(model.labels), time.perf_counter()
    for index, (image, truth) in enumerate(images):
        found = model.predict(image)["boxes"]
        boxes = np.array([box["box"] for box in found]).reshape(-1, 4)
        classes = [model.labels.index(box["label"]) for box in found]
        results.update(index, Prediction(boxes, classes, [box["score"] for box in found]), truth)
    seconds = (time.perf_counter() - start) / len(images)
    return results.compute_metrics(), seconds


def main() -> None:
    """Evaluate the ways to predict the same images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="Run of a detector that was trained on scenes.")
    parser.add_argument("--images", type=int, default=8, help="Number of large images.")
    parser.add_argument("--grid", type=int, default=4, help="Number of scenes along each side of an image.")
    parser.add_argument("--tiles", type=int, default=160, help="Side of the resized tiles in pixels.")
    options = parser.parse_args()
    command = f"python benchmarks/tiles.py {shlex.join(sys.argv[1:])}".strip()
    side = options.grid * CELL
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or train_detector(Path(folder))
        images = [build_image(index, options.grid) for index in range(options.images)]
        for name, sizes, tile_size in [
            ("whole images", {}, 0),
            ("larger inputs", {"min_size": side, "max_size": side}, 0),
            ("tiles", {}, options.tiles),
            ("tiles of the input size", {"min_size": LARGE_TILE, "max_size": LARGE_TILE}, LARGE_TILE),
        ]:
            model = fukami.load(run, overrides={"confidence": 0.0, **sizes})
            model.task.tile_size = tile_size
            metrics, seconds = evaluate(model, images)
            note = f"{len(images)} images of {side}×{side}, {metrics['objects']} objects; {seconds:.2f} s per image"
            for metric in ("map", "coco_ap"):
                record(f"detection tiles: {name}", metric, metrics[metric], command=command, seconds=seconds, note=note)


if __name__ == "__main__":
    main()
