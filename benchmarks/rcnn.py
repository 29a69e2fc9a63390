"""R-CNN measured: how long it takes for an image, and what each of its stages finds.

    python benchmarks/rcnn.py speed [--device cuda] [--backbones alexnet vgg16] [--precisions float32 bfloat16]
    python benchmarks/rcnn.py train OUT [--data bccd] [--seed 0]
    python benchmarks/rcnn.py proposed

`speed`: 2,000 regions of an image of 500×375 through the network, and the search for them. The paper (section 2.2) has
13 s on a GPU and 53 s on a CPU, proposals included. The regions lie in the image at random, the weights are random:
none of it changes the time. What is timed is all that prediction does with the regions: warping, features, scores,
suppression and the boxes of what is left. `train`: the three stages on a data set, small enough for a CPU; the seconds
are those of the whole command, and those that its processors worked. `proposed`: which objects of the blood cells' test
part R-CNN could find at all: those that a proposal covers, and those that no other of their class overlaps so much that
suppression leaves one of both. Results go to results.csv; with --trial, they do not.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from common.record import answer, record
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
    """Measure what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trial", action="store_true")
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--device", default="auto")
    speed.add_argument("--backbones", nargs="+", choices=SIZES, default=list(SIZES))
    speed.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32", "bfloat16"])
    speed.add_argument("--regions", type=int, default=2000)
    speed.add_argument("--repeat", type=int, default=5)
    speed.set_defaults(measure=speeds)
    train = commands.add_parser("train")
    train.add_argument("out", type=Path)
    train.add_argument("--data", choices=FLAGS, default="scenes")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--weights", default="imagenet", help="a file of VGG-16's convolutions, for bccd")
    train.set_defaults(measure=stages)
    commands.add_parser("proposed").set_defaults(measure=proposed)
    given = parser.parse_args()
    given.measure(given, tried if given.trial else record)


def stages(given: argparse.Namespace, note: Callable[..., None]) -> None:
    """Train R-CNN, and note what each stage finds in the test part."""
    command = f"fukami train rcnn --data {given.data} {FLAGS[given.data]} --seed {given.seed}"
    own = command.format(weights=Path(given.weights).name)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, seconds = answer(f"{command.format(weights=given.weights)} --out {given.out}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for name, folder in STAGES.items():
        lines = (given.out / folder / "metrics.jsonl").read_text().splitlines()
        found = json.loads(lines[-1])
        note(f"rcnn {given.data}", f"mAP, {name}", found["map"], command=own, seed=given.seed, seconds=seconds)
        note(f"rcnn {given.data}", f"COCO AP, {name}", found["coco_ap"], command=own, seed=given.seed)
    note(f"rcnn {given.data}", "processor seconds", worked, command=own, seed=given.seed, seconds=seconds)


def speeds(given: argparse.Namespace, note: Callable[..., None]) -> None:
    """Time the regions of an image, and the search for them."""
    own = f"python benchmarks/rcnn.py speed --device {given.device} --regions {given.regions}"
    runtime = Runtime.start(given.device, "float32")
    proposing = statistics.median(searches(given.repeat))
    note("rcnn prediction", "seconds for the proposals, fast", proposing, command=own)
    for backbone in given.backbones:
        for precision in given.precisions:
            seconds = statistics.median(times(backbone, precision, runtime, given.regions, given.repeat))
            what = f"seconds for {given.regions} regions, {backbone} {SIZES[backbone]} {precision}"
            command = f"{own} --backbones {backbone} --precisions {precision}"
            note("rcnn prediction", what, seconds, command=command)
            what = f"seconds an image, {backbone} {SIZES[backbone]} {precision}"
            about = f"{given.regions} regions; {proposing:.2f} s of these for the proposals, on the CPU; {PAPER}"
            note("rcnn prediction", what, proposing + seconds, command=command, note=about)


def proposed(given: argparse.Namespace, note: Callable[..., None]) -> None:
    """How many blood cells of each class a proposal covers, and how many overlap another of their class."""
    data = get_recipe("rcnn-finetune")(
        data="bccd", min_size=320, max_size=448, size=64, context_padding=5
    ).load_eval_data()
    covered: dict[str, list[float]] = {label: [] for label in data.labels}
    crowded: dict[str, list[float]] = {label: [] for label in data.labels}
    for sample in data.samples:
        boxes = torch.from_numpy(sample.boxes)
        regions = boxes[torch.from_numpy(sample.kinds == PROPOSAL)]
        for number, label in enumerate(data.labels):
            objects = boxes[torch.from_numpy((sample.kinds == REGULAR) & (sample.classes == number))]
            if len(objects):
                covered[label] += box_iou(objects, regions).amax(1).tolist()
                crowded[label] += box_iou(objects, objects).fill_diagonal_(0).amax(1).tolist()
    command = "python benchmarks/rcnn.py proposed"
    for label in data.labels:
        for least in (0.5, 0.7):
            share = statistics.mean(overlap >= least for overlap in covered[label])
            note("rcnn bccd", f"share of {label} proposed by {least}", share, command=command)
        share = statistics.mean(overlap > 0.3 for overlap in crowded[label])
        note("rcnn bccd", f"share of {label} that overlap another by 0.3", share, command=command)


@torch.inference_mode()
def times(backbone: str, precision: str, runtime: Runtime, regions: int, repeat: int) -> list[float]:
    """Seconds of each repetition but the first."""
    torch.manual_seed(0)
    recipe = RCNN(backbone=backbone, size=SIZES[backbone], cache_limit=0.0)
    task = recipe.build_task(tuple(f"class {number}" for number in range(20)))
    task.setup(runtime)
    task.model.to(PRECISIONS[precision]).eval()
    task.model.svm.weight.normal_(std=0.01)
    corner = torch.rand(regions, 2) * torch.tensor([WIDTH - 60, HEIGHT - 60])
    side = 20 + torch.rand(regions, 2) * 200
    end = (corner + side).minimum(torch.tensor([WIDTH, HEIGHT]))
    boxes = torch.cat([corner, end], 1).to(runtime.device)
    image = torch.randn(3, HEIGHT, WIDTH, device=runtime.device)
    return [once(task, image, boxes) for _ in range(repeat + 1)][1:]


def once(task: RCNNTask, image: torch.Tensor, boxes: torch.Tensor) -> float:
    """Seconds until what was found in an image is on the host."""
    began = time.perf_counter()
    size = torch.tensor([HEIGHT, WIDTH], device=image.device, dtype=torch.float32)
    task.detect_in_proposals(image, size, boxes, task.extract_features(image, boxes)).boxes.cpu()
    return time.perf_counter() - began


def searches(repeat: int) -> list[float]:
    """Seconds of Selective Search, each time, in a scene enlarged to the size of the paper's images."""
    scene = torch.from_numpy(scenes.generate_scene(0, 0).image).permute(2, 0, 1)
    resized = ResizeTransform(min_size=HEIGHT, max_size=WIDTH)(scene).byte().permute(1, 2, 0)
    pixels = np.ascontiguousarray(resized.numpy())
    search.propose_regions(pixels)  # compiles
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        search.propose_regions(pixels)
        seconds.append(time.perf_counter() - began)
    return seconds


def tried(
    benchmark: str, metric: str, value: float, *, command: str, seed: int = 0, seconds: float = 0.0, note: str = ""
) -> None:
    """Say a number that is not kept."""
    print(f"{benchmark}: {metric} {value:.4g}")


if __name__ == "__main__":
    main()
