"""Object detection: speed and mean average precision compared with torchvision.

    python benchmarks/detection.py rates [--height 800] [--width 1066] [--batch-size 8]
    python benchmarks/detection.py loop [--data bccd] [--height 800] [--width 1066] [--batch-size 8]
    python benchmarks/detection.py scenes | bccd | animals [--seeds 0 1 2] [--out FOLDER] ...

``rates`` times training steps and inference of Faster R-CNN on ResNet-50 with a feature pyramid. Ours and torchvision's
run in turn on the same images; their ratio is recorded. The default sizes are for a GPU; use smaller ones on a CPU.
``loop`` trains for 20 epochs from the command line, including decoding and augmentation. ``animals`` trains both on the
same images, from the same backbone, for the same number of steps, and evaluates both with the same code; ``--weights``
is a file of VGG-16's convolutions. Results go to results.csv.
"""

import argparse
import contextlib
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from common.record import record, strip_folders, train_seeds
from fukami.data.samples import PaddedBatch
from fukami.detection import metrics as detection_metrics
from fukami.engine.recipe import get_recipe
from fukami.engine.runtime import Runtime
from fukami.timing import TRAINING_PHASES
from peers.detect import build_detector

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NUM_OBJECTS = 8  # in each image of rates
WARMUP_ROUNDS = 3


def measure_throughput(options: argparse.Namespace) -> None:
    """Measure images per second in training and inference, in float32 and mixed precision."""
    command = f"python benchmarks/detection.py {shlex.join(sys.argv[1:])}"
    size = f"{options.height}×{options.width}, batch {options.batch_size}"
    for precision in options.precisions:
        candidates = {
            "ours": FukamiCandidate(options, precision),
            "torchvision": TorchvisionCandidate(options, precision == "bfloat16"),
        }
        for mode in ("train", "infer"):
            rates: dict[str, list[float]] = {name: [] for name in candidates}
            for round_index in range(WARMUP_ROUNDS + options.rounds):
                for name, candidate in candidates.items():
                    seconds = time_call(getattr(candidate, mode))
                    if round_index >= WARMUP_ROUNDS:
                        rates[name].append(options.batch_size / seconds)
            ours, theirs = (statistics.median(rates[name]) for name in candidates)
            benchmark = f"faster-rcnn-resnet50-fpn {mode} {precision}"
            note = f"{size}; {ours:.3g} and {theirs:.3g} images per second, in turn, medians of {options.rounds}"
            record(benchmark, "relative throughput vs. torchvision", ours / theirs, command=command, note=note)


def measure_training_loop(options: argparse.Namespace) -> None:
    """Measure images per second of a training run from the command line, and the fraction of its time spent on data."""
    size = f"--min-size {min(options.height, options.width)} --max-size {max(options.height, options.width)}"
    line = f"fukami train faster-rcnn-resnet50-fpn --data {options.data} {size} --epochs 20"
    line += f" --batch-size {options.batch_size}"
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*line.split()[1:], "--eval-every", "20", "--out", f"{folder}/run"]
        subprocess.run(
            [sys.executable, "-m", "fukami", *arguments, *options.more], check=True, stdout=subprocess.DEVNULL
        )
        lines = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
        seconds = json.loads(Path(folder, "run", "recipe.json").read_text())["time"]["seconds"]
    rates = [entry["images_per_second"] for entry in lines if entry["phase"] == "train"]
    phase_seconds = {phase: seconds.get(phase, 0.0) for phase in TRAINING_PHASES}
    data_fraction = phase_seconds["data"] / sum(phase_seconds.values())
    record("faster-rcnn-resnet50-fpn loop", "images per second", statistics.median(rates[len(rates) // 10 :]),
           command=line, note=f"{data_fraction:.0%} of the training time is spent on data")  # fmt: skip


def time_call(function) -> float:
    """Measure the seconds of a call, including the work on the device."""
    start = time.monotonic()
    function()
    if CUDA:
        torch.cuda.synchronize()
    return time.monotonic() - start


def create_random_data(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Create random images, boxes and classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.batch_size, 3, options.height, options.width), generator=generator)
    corners = torch.rand(options.batch_size, NUM_OBJECTS, 2, generator=generator) * 0.6
    sides = 0.05 + 0.3 * torch.rand(options.batch_size, NUM_OBJECTS, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], 2) * torch.tensor([options.width, options.height] * 2)
    return images.to(torch.uint8), boxes, torch.randint(0, 90, (options.batch_size, NUM_OBJECTS), generator=generator)


class FukamiCandidate:
    """Our task, as in a training run."""

    def __init__(self, options: argparse.Namespace, precision: str) -> None:
        size = options.height, options.width
        recipe = get_recipe("faster-rcnn-resnet50-fpn")(min_size=min(size), max_size=max(size))
        torch.manual_seed(0)
        self.task = recipe.build_task(tuple(map(str, range(90))))
        self.task.setup(Runtime.start(DEVICE, precision))
        self.task.prepare_training()
        images, boxes, classes = (value.to(DEVICE) for value in create_random_data(options))
        height, width = (-(-side // 32) * 32 for side in (options.height, options.width))
        padded = torch.zeros(options.batch_size, 3, height, width, dtype=torch.uint8, device=DEVICE)
        padded[:, :, : options.height, : options.width] = images
        sizes = torch.tensor([[options.height, options.width]] * options.batch_size, device=DEVICE).float()
        indices = torch.arange(options.batch_size, device=DEVICE)
        kinds = torch.zeros(classes.shape, dtype=torch.uint8, device=DEVICE)
        self.batch = PaddedBatch(
            padded, sizes, sizes, boxes, classes, kinds, indices, indices, padded.new_zeros(len(padded), 0, 0)
        )
        self.task.schedule(0.5)

    def train(self) -> None:
        """Run a training step."""
        self.task.model.train()
        self.task.step(self.batch)

    def infer(self) -> None:
        """Detect objects in the batch."""
        self.task.model.eval()
        with torch.inference_mode(), self.task.runtime.autocast():
            self.task.detect(self.batch.images, self.batch.sizes)


class TorchvisionCandidate:
    """torchvision's network in a plain loop."""

    def __init__(self, options: argparse.Namespace, mixed: bool) -> None:
        self.mixed = mixed
        torch.manual_seed(0)
        size = options.height, options.width
        sizes = {"min_size": min(size), "max_size": max(size)}
        self.model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91, **sizes).to(DEVICE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0025, momentum=0.9, weight_decay=1e-4)
        images, boxes, classes = (value.to(DEVICE) for value in create_random_data(options))
        self.images = [image / 255 for image in images]
        self.targets = [{"boxes": box, "labels": kind + 1} for box, kind in zip(boxes, classes, strict=True)]

    def allow_all_kernels(self) -> contextlib.AbstractContextManager[None]:
        """Allow nondeterministic cuDNN kernels, which ours disables in the same process."""
        return torch.backends.cudnn.flags(enabled=True, deterministic=False, allow_tf32=self.mixed)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Enable mixed precision if requested."""
        precision = torch.autocast(DEVICE, torch.bfloat16) if self.mixed else contextlib.nullcontext()
        with self.allow_all_kernels(), precision:
            yield

    def train(self) -> None:
        """Run a training step."""
        self.model.train()
        with self.autocast():
            loss = sum(self.model(self.images, self.targets).values())
        self.optimizer.zero_grad()
        with self.allow_all_kernels():
            loss.backward()
        self.optimizer.step()

    def infer(self) -> None:
        """Detect objects in the batch."""
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            self.model(self.images)


def train_and_record(name: str, line: str, options: argparse.Namespace) -> None:
    """Train with each seed from the command line, and record the metrics."""
    for seed, result, seconds, command in train_seeds(line, options):
        values = {metric: result[metric] for metric in ("map", "coco_ap")}
        values |= {f"AP of {label}": metrics["ap"] for label, metrics in result["classes"].items()}
        for metric, value in values.items():
            record(f"faster-rcnn-vgg16 {name}", metric, value, seed=seed, seconds=seconds, command=command)


def compare_on_animals(options: argparse.Namespace) -> None:
    """Train ours and torchvision's on a sample of VOC's images, from the same backbone and for the same steps."""
    note = "500 photographs of VOC 2012 to train on, 250 to evaluate on: a sample, not the benchmark"
    for seed in options.seeds:
        recipe = get_recipe("faster-rcnn-vgg16")(
            data="voc-animals", min_size=options.side, max_size=2 * options.side, hidden=options.hidden, dropout=0.0,
            anchor_sizes=tuple(scale * options.side / 600 for scale in (64.0, 128.0, 256.0, 512.0)),
            epochs=options.epochs, init=options.weights, seed=seed, eval_every=options.epochs,
            batch_size=1, schedule="cosine",
        )  # fmt: skip
        for name, run in (("ours", train_ours), ("torchvision", train_torchvision)):
            start = time.monotonic()
            mean_ap = run(recipe)
            command = f"python benchmarks/detection.py {strip_folders(sys.argv[1:])}"
            record(f"faster-rcnn-vgg16 voc-animals {name}", "map", mean_ap, seed=seed, command=command,
                   seconds=time.monotonic() - start, note=note)  # fmt: skip


def train_ours(recipe) -> float:
    """Train ours with the function of the command line, and return its mAP."""
    import fukami

    with tempfile.TemporaryDirectory() as folder:
        return fukami.train(recipe, f"{folder}/run", compile=False).metrics["map"]


def train_torchvision(recipe) -> float:
    """Train torchvision's network on our batches with our optimizer and schedule, and return its mAP by our code."""
    data = recipe.load_data()
    runtime = Runtime.start(DEVICE, "auto")
    torch.manual_seed(recipe.seed)
    model = build_detector(recipe, len(data.labels)).to(DEVICE)
    optimizer = recipe.get_optimizer_factory()([p for p in model.parameters() if p.requires_grad])
    num_steps, schedule, step = recipe.epochs * len(data.train), recipe.build_schedule(), 0
    model.train()
    for _ in range(recipe.epochs):
        for batch in data.train:
            for group in optimizer.param_groups:
                group["lr"] = recipe.peak_lr * schedule(step / num_steps)
            images, targets = convert_batch(batch)
            with runtime.autocast():
                loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            step += 1
    model.eval()
    results = detection_metrics.DetectionResults(data.labels)
    for batch in data.val:
        images, targets = convert_batch(batch)
        with torch.inference_mode():
            outputs = model(images)
        for i, (output, target) in enumerate(zip(outputs, targets, strict=True)):
            prediction = (
                output["boxes"].cpu().numpy(), output["labels"].cpu().numpy() - 1, output["scores"].cpu().numpy()
            )  # fmt: skip
            kinds = batch.kinds[i][batch.classes[i] >= 0].numpy()
            ground_truth = (target["all_boxes"].numpy(), target["classes"].numpy(), kinds)
            results.update(
                int(batch.indices[i]),
                detection_metrics.Prediction(*prediction),
                detection_metrics.GroundTruth(*ground_truth),
            )
    return results.compute_metrics()["map"]


def convert_batch(batch: PaddedBatch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Convert a batch to torchvision's format: images without padding, and their regular objects."""
    images, targets = [], []
    for i, (height, width) in enumerate(batch.sizes.int().tolist()):
        images.append((batch.images[i, :, :height, :width].float() / 255).to(DEVICE))
        is_object = batch.classes[i] >= 0
        regular = is_object & (batch.kinds[i] == 0)
        boxes, labels = batch.boxes[i][regular].to(DEVICE), batch.classes[i][regular].to(DEVICE) + 1
        all_objects = {"all_boxes": batch.boxes[i][is_object].cpu(), "classes": batch.classes[i][is_object].cpu()}
        targets.append({"boxes": boxes, "labels": labels, **all_objects})
    return images, targets


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["rates", "loop", "scenes", "bccd", "animals"])
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--batch-size", type=int, help="Default: 8 in rates and loop, the recipe's otherwise.")
    parser.add_argument("--data", default="bccd", help="Dataset of loop.")
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7, help="Number of timed rounds in rates.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--side", type=int, default=320, help="Shorter side of the images of animals.")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--weights", default="imagenet", help="File of VGG-16's convolutions.")
    parser.add_argument("--out", help="Folder for the runs of scenes and bccd; temporary by default.")
    options, options.more = parser.parse_known_args()
    if options.benchmark in ("rates", "loop"):
        options.batch_size = options.batch_size or 8
    elif options.batch_size:
        options.more += ["--batch-size", str(options.batch_size)]
    if options.more and options.benchmark in ("rates", "animals"):
        parser.error(f"{options.benchmark} has no option {' '.join(options.more)}")
    if options.benchmark == "rates":
        measure_throughput(options)
    elif options.benchmark == "loop":
        measure_training_loop(options)
    elif options.benchmark == "animals":
        compare_on_animals(options)
    elif options.benchmark == "bccd":
        train_and_record("bccd", BCCD, options)
    else:
        train_and_record("scenes", SCENES, options)


SCENES = (
    "fukami train faster-rcnn-vgg16 --width-multiplier 0.25 --hidden 256 --batch-norm --dropout 0.1 --stride 8 "
    "--min-size 128 --max-size 192 --anchor-sizes 24 40 64 --batch-size 4 --optimizer adamw --lr 1.5e-3 "
    "--weight-decay 0.02 --schedule one-cycle --warmup 0.2 --clip-norm 0 --augment flip brightness=0.2 "
    "--epochs 6 --eval-every 6 --no-compile"
)
BCCD = (
    "fukami train faster-rcnn-vgg16 --data bccd --init {weights} --min-size 320 --max-size 448 --stride 8 "
    "--hidden 1024 --dropout 0 --anchor-sizes 24 48 80 144 --batch-size 1 --lr 3e-3 --schedule cosine --epochs 12 "
    "--eval-every 3 --no-compile --augment flip flip-vertical brightness=0.2 contrast=0.2"
)


if __name__ == "__main__":
    main()
