"""R-CNN: prediction time of an image, and mean average precision of each stage.

    python benchmarks/rcnn.py speed [--device cuda] [--backbones alexnet vgg16] [--precisions float32 bfloat16]
    python benchmarks/rcnn.py train OUT [--data bccd] [--seed 0]
    python benchmarks/rcnn.py proposals

`speed` times 2,000 regions of a 500×375 image, and Selective Search. The paper (section 2.2) reports 13 s on a GPU and
53 s on a CPU, including proposals. Regions and weights are random, which does not affect the time. The time includes
warping, features, scores, non-maximum suppression and bounding box regression. `train` trains the three stages on a
dataset that is small enough for a CPU, or continues an interrupted training in OUT. `proposals` computes upper bounds
of recall on BCCD's test split: the fraction of objects that a proposal covers, and the fraction that overlaps another
object of its class, so that suppression keeps only one of them. Results go to results.csv, except with --trial.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from common.record import record, train_run
from fukami.data import scenes
from fukami.data.samples import PROPOSAL, REGULAR
from fukami.detection.rcnn import RCNN
from fukami.detection.rcnn_task import RCNNTask
from fukami.engine.recipe import get_recipe
from fukami.engine.runtime import PRECISIONS, Runtime
from fukami.image.transform import ResizeTransform
from fukami.selective_search import search

WIDTH, HEIGHT = 500, 375
SIZES = {"alexnet": 227, "vgg16": 224}
PAPER = "the paper: 13 s on a GPU, 53 s on a CPU, proposals included"


SMALL = (
    "--backbone vgg16 --size 32 --context-padding 4 --width-multiplier 0.25 --hidden 256 --batch-norm --dropout 0.2 "
    "--regions-per-image 32 --optimizer adamw --lr 2e-3 --weight-decay 0.02 --schedule one-cycle --warmup 0.2 "
    "--svm-cost 1e-5"
)
FLAGS = {
    "scenes": f"--min-size 144 --max-size 216 {SMALL} --epochs 8 --eval-every 8 --augment",
    "bccd": "--backbone vgg16 --init {weights} --min-size 320 --max-size 448 --size 64 --context-padding 5 "
    "--hidden 1024 --dropout 0.3 --regions-per-image 32 --batch-size 2 --lr 3e-3 --clip-norm 10 --epochs 5 "
    "--eval-every 5 --no-compile --augment flip flip-vertical brightness=0.2 contrast=0.2",
}
STAGES = {"softmax": "finetune", "SVMs": "svm", "SVMs and boxes": "."}


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trial", action="store_true", help="Do not record the results.")
    subparsers = parser.add_subparsers(required=True)
    speed = subparsers.add_parser("speed")
    speed.add_argument("--device", default="auto")
    speed.add_argument("--backbones", nargs="+", choices=SIZES, default=list(SIZES))
    speed.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32", "bfloat16"])
    speed.add_argument("--regions", type=int, default=2000)
    speed.add_argument("--repeat", type=int, default=5)
    speed.set_defaults(measure=measure_speed)
    train = subparsers.add_parser("train")
    train.add_argument("out", type=Path)
    train.add_argument("--data", choices=FLAGS, default="scenes")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--weights", default="imagenet", help="File of VGG-16's convolutions, for bccd.")
    train.set_defaults(measure=train_stages)
    subparsers.add_parser("proposals").set_defaults(measure=measure_proposals)
    options = parser.parse_args()
    options.measure(options, print_value if options.trial else record)


def train_stages(options: argparse.Namespace, note: Callable[..., None]) -> None:
    """Train R-CNN, and record the mAP of each stage on the test split."""
    command = f"fukami train rcnn --data {options.data} {FLAGS[options.data]} --seed {options.seed}"
    recorded_command = command.format(weights=Path(options.weights).name)
    _, seconds = train_run(command.format(weights=options.weights), options.out)
    context = {"command": recorded_command, "seed": options.seed, "seconds": seconds}
    for name, folder in STAGES.items():
        metrics = json.loads((options.out / folder / "metrics.jsonl").read_text().splitlines()[-1])
        values = {"mAP": metrics["map"], "COCO AP": metrics["coco_ap"]}
        values |= {f"AP of {label}": part["ap"] for label, part in metrics["classes"].items()}
        for metric, value in values.items():
            note(f"rcnn {options.data}", f"{metric}, {name}", value, **context)


def measure_speed(options: argparse.Namespace, note: Callable[..., None]) -> None:
    """Time Selective Search and the regions of an image."""
    command = f"python benchmarks/rcnn.py speed --device {options.device} --regions {options.regions}"
    runtime = Runtime.start(options.device, "float32")
    search_seconds = statistics.median(time_searches(options.repeat))
    note("rcnn prediction", "seconds for the proposals, fast", search_seconds, command=command, device="cpu")
    for backbone in options.backbones:
        for precision in options.precisions:
            seconds = statistics.median(time_regions(backbone, precision, runtime, options.regions, options.repeat))
            metric = f"seconds for {options.regions} regions, {backbone} {SIZES[backbone]} {precision}"
            full_command = f"{command} --backbones {backbone} --precisions {precision}"
            note("rcnn prediction", metric, seconds, command=full_command, device=options.device)
            metric = f"seconds per image, {backbone} {SIZES[backbone]} {precision}"
            comment = (
                f"{options.regions} regions; {search_seconds:.2f} s of these for the proposals, on the CPU; {PAPER}"
            )
            note("rcnn prediction", metric, search_seconds + seconds, command=full_command, note=comment,
                 device=options.device)  # fmt: skip


def measure_proposals(options: argparse.Namespace, note: Callable[..., None]) -> None:
    """Record, for each class of BCCD, the fractions of objects covered by a proposal and overlapping another object."""
    data = (
        get_recipe("rcnn-finetune")(data="bccd", min_size=320, max_size=448, size=64, context_padding=5)
        .load_eval_data()
        .eval_batches
    )
    best_ious: dict[str, list[float]] = {label: [] for label in data.labels}
    object_ious: dict[str, list[float]] = {label: [] for label in data.labels}
    for sample in data.samples:
        boxes = torch.from_numpy(sample.boxes)
        regions = boxes[torch.from_numpy(sample.kinds == PROPOSAL)]
        for index, label in enumerate(data.labels):
            objects = boxes[torch.from_numpy((sample.kinds == REGULAR) & (sample.classes == index))]
            if len(objects):
                best_ious[label] += box_iou(objects, regions).amax(1).tolist()
                object_ious[label] += box_iou(objects, objects).fill_diagonal_(0).amax(1).tolist()
    command = "python benchmarks/rcnn.py proposals"
    for label in data.labels:
        for threshold in (0.5, 0.7):
            fraction = statistics.mean(overlap >= threshold for overlap in best_ious[label])
            note("rcnn bccd", f"fraction of {label} proposed by {threshold}", fraction, command=command, device="cpu")
        fraction = statistics.mean(overlap > 0.3 for overlap in object_ious[label])
        note("rcnn bccd", f"fraction of {label} that overlap another by 0.3", fraction, command=command, device="cpu")


@torch.inference_mode()
def time_regions(backbone: str, precision: str, runtime: Runtime, regions: int, repeat: int) -> list[float]:
    """Return the seconds of each repetition except the first."""
    torch.manual_seed(0)
    recipe = RCNN(backbone=backbone, size=SIZES[backbone], cache_limit=0.0)
    task = recipe.build_task(tuple(f"class {index}" for index in range(20)))
    task.setup(runtime)
    task.prepare_training()
    task.model.to(PRECISIONS[precision]).eval()
    task.model.svm.weight.normal_(std=0.01)
    top_left = torch.rand(regions, 2) * torch.tensor([WIDTH - 60, HEIGHT - 60])
    sides = 20 + torch.rand(regions, 2) * 200
    bottom_right = (top_left + sides).minimum(torch.tensor([WIDTH, HEIGHT]))
    boxes = torch.cat([top_left, bottom_right], 1).to(runtime.device)
    image = torch.randn(3, HEIGHT, WIDTH, device=runtime.device)
    return [time_image(task, image, boxes) for _ in range(repeat + 1)][1:]


def time_image(task: RCNNTask, image: torch.Tensor, boxes: torch.Tensor) -> float:
    """Return the seconds until the detections of an image are on the host."""
    start = time.perf_counter()
    size = torch.tensor([HEIGHT, WIDTH], device=image.device, dtype=torch.float32)
    task.detect_in_proposals(image, size, boxes, task.extract_features(image, boxes)).boxes.cpu()
    return time.perf_counter() - start


def time_searches(repeat: int) -> list[float]:
    """Return the seconds of each run of Selective Search on a scene resized to the paper's image size."""
    scene = torch.from_numpy(scenes.generate_scene(0, 0).image).permute(2, 0, 1)
    resized = ResizeTransform(min_size=HEIGHT, max_size=WIDTH)(scene).byte().permute(1, 2, 0)
    pixels = np.ascontiguousarray(resized.numpy())
    search.propose_regions(pixels)  # compiles the kernels
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        search.propose_regions(pixels)
        seconds.append(time.perf_counter() - start)
    return seconds


def print_value(
    benchmark: str,
    metric: str,
    value: float,
    *,
    command: str,
    seed: int = 0,
    seconds: float = 0.0,
    note: str = "",
    device: str = "auto",
) -> None:
    """Print a value without recording it."""
    print(f"{benchmark}: {metric} {value:.4g}")


if __name__ == "__main__":
    main()
