"""FCN and SegNet: mean IoU, and speed compared with common alternatives.

    python benchmarks/segmentation.py scenes [--seeds 0 1 2]
    python benchmarks/segmentation.py camvid NETWORK [--full] [--weights FILE] [--seeds 0] [--out FOLDER] [OPTIONS]
    python benchmarks/segmentation.py rates [NETWORK ...] [--height 360] [--width 480] [--batch-size 4]
    python benchmarks/segmentation.py patches [--weights FILE] [--steps 6]
    python benchmarks/segmentation.py frames RUN|NETWORK [--frames 1200]

``camvid`` trains ``segnet-vgg16``, ``segnet-basic`` or ``fcn8s-vgg16`` on CamVid's 367 images and evaluates on its 233
test images at full size. It trains at half the size (180×240), for a CPU, or with ``--full`` at 360×480, for a GPU;
``--weights`` is a file of VGG-16's convolutions. ``rates`` compares training throughput and memory of ours and
torchvision's FCN-ResNet50, and of ours and segmentation-models-pytorch's U-Net on VGG-16, in turn on the same images.
``patches`` compares a classifier that slides over an image with one convolution over the entire image. ``frames`` runs
inference on CamVid's test images as a video. Results go to results.csv.
"""

import argparse
import contextlib
import importlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from common import few_scenes
from common.processes import Worker, check_installed, measure_in_turn, read_memory
from common.record import record, strip_folders, train_seeds
from fukami.data import scenes
from fukami.data.sources import identify_source
from fukami.engine.recipe import list_recipes
from fukami.errors import Error

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NUM_CLASSES = 11
WARMUP_ROUNDS = 2
PATCH_SIZE = 404  # receptive field of VGG-16's first fully connected layer
REAL_TIME_FPS = 30
METRICS = ("miou", "accuracy", "class_accuracy", "fw_iou", "boundary_f1")


def train_and_record(benchmark: str, line: str, options: argparse.Namespace, note: str) -> None:
    """Train with each seed from the command line, and record the metrics."""
    for seed, result, seconds, command in train_seeds(line, options):
        class_iou = ", ".join(f"{label} {metrics['iou']:.3f}" for label, metrics in result["classes"].items())
        for metric in METRICS:
            record(benchmark, metric, result[metric], seed=seed, seconds=seconds, command=command,
                   note=f"{note}; IoU of each class: {class_iou}" if metric == "miou" else note)  # fmt: skip


def train_on_camvid(options: argparse.Namespace) -> None:
    """Train a network on CamVid."""
    kind = "full" if options.full else "half"
    size = "360×480" if options.full else "180×240"
    note = f"trained at {size} on 367 images, evaluated at 360×480 on 233, 11 classes, unlabeled ignored"
    train_and_record(f"{options.names[0]} camvid {kind}", CAMVID[options.names[0]][options.full], options, note)


# throughput


def build_fcn_resnet50() -> nn.Module:
    """Build torchvision's network."""
    from torchvision.models.segmentation import fcn_resnet50

    return fcn_resnet50(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True)


def build_unet() -> nn.Module:
    """Build the U-Net of segmentation-models-pytorch."""
    import segmentation_models_pytorch as smp

    return smp.Unet("vgg16", encoder_weights=None, classes=NUM_CLASSES)


REFERENCE_MODELS = {  # required package, and build function
    "torchvision FCN-ResNet50": ("torchvision", build_fcn_resnet50),
    "U-Net VGG16": ("segmentation_models_pytorch", build_unet),
}


PAIRS = (
    ("fcn-resnet50", "torchvision FCN-ResNet50"),
    ("segnet-vgg16", "U-Net VGG16"),
    ("fcn8s-vgg16", "U-Net VGG16"),
)
FIELDS = {"fcn8s-vgg16": {"hidden": 512}}  # without pretrained fully connected layers


def create_random_data(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Create random images ``(N, 3, H, W)`` uint8 and masks ``(N, H, W)`` with some unlabeled pixels (0)."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, 3, options.height, options.width)
    images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    return images, torch.randint(0, NUM_CLASSES + 1, (shape[0], *shape[2:]), generator=generator).to(torch.uint8)


class FukamiTrainer:
    """Our task, as in a training run."""

    def __init__(self, name: str, options: argparse.Namespace, precision: str) -> None:
        from fukami.data.samples import PaddedBatch
        from fukami.engine.recipe import get_recipe
        from fukami.engine.runtime import Runtime

        torch.manual_seed(0)
        self.task = get_recipe(name)(balance="none", **FIELDS.get(name, {})).build_task(
            tuple(map(str, range(NUM_CLASSES)))
        )
        self.task.setup(Runtime.start(DEVICE, precision))
        self.task.prepare_training()
        self.task.model.train()
        self.task.schedule(0.5)
        images, masks = create_random_data(options)
        bottom, right = -options.height % 32, -options.width % 32
        sizes = torch.tensor([[options.height, options.width]] * options.batch_size).float()
        unused = torch.zeros(options.batch_size)
        frames = F.pad(images, (0, right, 0, bottom))
        batch = frames, sizes, sizes, *[unused] * 5, F.pad(masks, (0, right, 0, bottom))
        self.batch = PaddedBatch(*(value.to(DEVICE) for value in batch))

    def train(self) -> None:
        """Run a training step."""
        self.task.step(self.batch)


class ReferenceTrainer:
    """Network of another package in a plain loop."""

    def __init__(self, name: str, options: argparse.Namespace, precision: str) -> None:
        torch.manual_seed(0)
        self.mixed = precision == "bfloat16"
        # the memory format that is faster for convolutions, as ours
        self.model = REFERENCE_MODELS[name][1]().to(DEVICE, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        images, masks = create_random_data(options)
        # the U-Net requires multiples of 32; ours has the same padding
        images = F.pad(images, (0, -options.width % 32, 0, -options.height % 32))
        masks = F.pad(masks, (0, -options.width % 32, 0, -options.height % 32))
        self.images = (images.float() / 255).to(DEVICE, memory_format=torch.channels_last)
        self.targets = masks.long().to(DEVICE) - 1

    def train(self) -> None:
        """Run a training step."""
        context = torch.autocast(DEVICE, torch.bfloat16) if self.mixed else contextlib.nullcontext()
        with context:
            output = self.model(self.images)
            scores, aux_scores = (output["out"], output["aux"]) if isinstance(output, dict) else (output, None)
            loss = F.cross_entropy(scores, self.targets, ignore_index=-1)
            if aux_scores is not None:
                loss = loss + 0.5 * F.cross_entropy(aux_scores, self.targets, ignore_index=-1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def build_trainer(name: str, options: argparse.Namespace, precision: str) -> "FukamiTrainer | ReferenceTrainer":
    """Build our network or that of another package."""
    return (FukamiTrainer if "-" in name and name == name.lower() else ReferenceTrainer)(name, options, precision)


def run_steps(name: str, options: argparse.Namespace, precision: str, pipe) -> None:
    """Run a training step at each request and send its images per second; finally send the peak memory in bytes."""
    importlib.import_module(REFERENCE_MODELS[name][0] if name in REFERENCE_MODELS else "fukami.segmentation.task")
    before = read_memory("VmRSS")  # without that of imported packages
    trainer = build_trainer(name, options, precision)
    while pipe.recv():
        start = time.monotonic()
        trainer.train()
        if CUDA:
            torch.cuda.synchronize()
        pipe.send(options.batch_size / (time.monotonic() - start))
    pipe.send(torch.cuda.max_memory_allocated() if CUDA else read_memory("VmHWM") - before)


def measure_throughput(options: argparse.Namespace) -> None:
    """Measure images per second and memory of training, in float32 and mixed precision."""
    command = f"python benchmarks/segmentation.py {shlex.join(sys.argv[1:])}"
    for precision in options.precisions:
        for ours, theirs in (pair for pair in PAIRS if not options.names or pair[0] in options.names):
            names = [ours, theirs] if check_installed(REFERENCE_MODELS[theirs][0], theirs) else [ours]
            workers = [Worker(run_steps, name, options, precision) for name in names]
            rates = measure_in_turn(workers, True, options.rounds, WARMUP_ROUNDS)
            num_bytes = [worker.request(False) for worker in workers]
            benchmark = f"{ours} train {precision}"
            note = f"{options.height}×{options.width}, batch {options.batch_size}"
            note += "".join(f", {field} {value}" for field, value in FIELDS.get(ours, {}).items())
            note += f"; {' and '.join(f'{value:.3g}' for value in rates)} images per second, "
            memory = " and ".join(f"{value / 1e9:.2f}" for value in num_bytes)
            note += f"medians of {options.rounds} in turn; {memory} GB at most"
            note += "; theirs with convolutions in TF32, torch's default" if CUDA and precision != "bfloat16" else ""
            if len(names) == 1:
                record(benchmark, "images per second", rates[0], command=command, note=note)
                continue
            record(benchmark, f"relative throughput vs. {theirs}", rates[0] / rates[1], command=command, note=note)
            record(benchmark, f"relative memory vs. {theirs}", num_bytes[0] / num_bytes[1], command=command, note=note)


# patches


def compare_patches(options: argparse.Namespace) -> None:
    """Compare the scores of a classifier at every 32nd pixel, by patches and by one forward pass over the image."""
    from fukami import models
    from fukami.engine import pretrained

    torch.manual_seed(0)
    network = models.fcn32s_vgg16(NUM_CLASSES).eval()
    if options.weights != "imagenet":
        pretrained.initialize_segmenter(network, "vgg16", options.weights)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)  # zero padding would differ from the image around a patch
    network = network.to(DEVICE).to(memory_format=torch.channels_last)
    side = PATCH_SIZE + 32 * options.steps
    image = torch.rand(1, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
    corners = [
        (top, left) for top in range(0, side - PATCH_SIZE + 1, 32) for left in range(0, side - PATCH_SIZE + 1, 32)
    ]

    def classify(images: Tensor) -> Tensor:
        return network.head(network.features(images))

    def classify_patches() -> Tensor:
        scores = [classify(image[..., top : top + PATCH_SIZE, left : left + PATCH_SIZE]) for top, left in corners]
        return torch.cat(scores, 0).flatten(1).T.reshape(1, NUM_CLASSES, options.steps + 1, -1)

    command = f"python benchmarks/segmentation.py {strip_folders(sys.argv[1:])}"
    with torch.inference_mode():
        seconds = []
        patch = image[..., :PATCH_SIZE, :PATCH_SIZE]
        for function, warmup in ((lambda: classify(image), image), (classify_patches, patch)):
            classify(warmup)
            start = time.monotonic()
            result = function()
            if CUDA:
                torch.cuda.synchronize()
            seconds.append((time.monotonic() - start, result))
    (image_seconds, image_scores), (patch_seconds, patch_scores) = seconds
    difference = float((image_scores - patch_scores).abs().max() / image_scores.abs().max())
    note = f"VGG-16 without padding over {side}×{side} pixels, {len(corners)} patches of {PATCH_SIZE}×{PATCH_SIZE}"
    record(
        "fcn patches",
        "relative time of patches vs. one forward pass",
        patch_seconds / image_seconds,
        command=command,
        note=note,
    )
    record("fcn patches", "maximum relative score difference", difference, command=command, note=note)


def measure_video_throughput(options: argparse.Namespace) -> None:
    """Measure frames per second of a run at 360×480, as reported by ``fukami predict``.

    A recipe instead of a run is trained for one epoch first: the predictions do not affect the time.
    """
    (run,) = options.names
    command = f"python benchmarks/segmentation.py {strip_folders(sys.argv[1:])}"
    with tempfile.TemporaryDirectory() as folder:
        images, source = find_video_frames(Path(folder))
        video = Path(folder) / "frames"
        video.mkdir()
        for index in range(options.frames):
            (video / f"{index:06}{images[0].suffix}").symlink_to(images[index % len(images)].resolve())
        if run in list_recipes():
            run, script = f"{folder}/run", str(Path(few_scenes.__file__))
            arguments = ["train", *options.names, "--min-size", "360", "--epochs", "1", "--out", run, *options.more]
            subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.DEVNULL)
        for drawing in (False, True):
            arguments = ["fukami", "predict", run, str(video), "--fps", "30", *["--out", f"{folder}/out"] * drawing]
            process = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=True)
            *_, rates = process.stderr.strip().splitlines()
            predicted, with_drawing = map(float, re.findall(r"(\d+\.\d) ", rates))
            metric = "relative throughput" + " with drawing" * drawing
            value = with_drawing if drawing else predicted
            record(f"{Path(options.names[0]).name} video", f"{metric} vs. {REAL_TIME_FPS} frames per second",
                   value / REAL_TIME_FPS, command=command, note=f"{rates.partition(': ')[2]}; {source}")  # fmt: skip


def find_video_frames(folder: Path) -> tuple[list[Path], str]:
    """Return CamVid's test images, or bundled scenes of that size if CamVid is missing, and the name of the source."""
    try:
        root = identify_source("camvid").path
        return sorted(next(path for path in root.rglob("test") if path.is_dir()).iterdir()), "CamVid's test images"
    except Error:
        files = [folder / f"{index}.png" for index in range(2)]
        for index, file in enumerate(files):
            Image.fromarray(scenes.generate_scene(0, index).image).resize((480, 360)).save(file)
        return files, "bundled scenes"


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["scenes", "camvid", "rates", "patches", "frames"])
    parser.add_argument("names", nargs="*", help="Networks, or a run.")
    parser.add_argument("--full", action="store_true", help="Train at 360×480, for a GPU.")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--batch-size", type=int, help="Default: 4 in rates, the recipe's in training.")
    parser.add_argument("--rounds", type=int, default=7, help="Number of timed steps in rates.")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--frames", type=int, default=1200, help="Number of video frames; the images are repeated.")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--weights", default="imagenet", help="File of VGG-16's convolutions.")
    parser.add_argument("--out", help="Folder for the runs; temporary by default.")
    options, options.more = parser.parse_known_args()
    if options.more and options.benchmark in ("rates", "patches"):
        parser.error(f"unknown arguments: {shlex.join(options.more)}")
    if options.benchmark == "rates":
        options.batch_size = options.batch_size or 4
    elif options.batch_size:
        options.more += ["--batch-size", str(options.batch_size)]
    if options.benchmark == "scenes":
        train_and_record("segmentation scenes", SCENES, options, "2,000 scenes to train on, 200 to evaluate on")
    elif options.benchmark == "camvid":
        if options.names not in [[name] for name in CAMVID]:
            parser.error(f"specify one of {', '.join(CAMVID)}")
        train_on_camvid(options)
    elif options.benchmark == "frames" and len(options.names) != 1:
        parser.error("specify a run")
    else:
        functions = {"rates": measure_throughput, "patches": compare_patches, "frames": measure_video_throughput}
        functions[options.benchmark](options)


SCENES = (
    "fukami train fcn8s-vgg16 --batch-norm --width-multiplier 0.25 --hidden 256 --dropout 0.1 --min-size 112 "
    "--augment flip crop=0.7 --lr 3e-3 --schedule one-cycle --epochs 8 --batch-size 4 --eval-every 8 --no-compile"
)
COMMON_FLAGS = "--data camvid --augment flip crop=0.5 brightness=0.3 --balance root --eval-every 10"
NETWORK_FLAGS = {  # pretrained layers have a lower learning rate
    "segnet-vgg16": "--init {weights} --lr 3e-3 --backbone-lr-factor 0.08",
    "segnet-basic": "--lr 2e-3",
    "fcn8s-vgg16": "--init {weights} --batch-norm --hidden 512 --lr 2e-3 --backbone-lr-factor 0.1",
}
# epochs at half the size, within two hours on a CPU
HALF_SIZE_EPOCHS = {"segnet-vgg16": 36, "segnet-basic": 40, "fcn8s-vgg16": 16}
CAMVID = {  # commands at half and at full size
    name: (
        f"fukami train {name} {COMMON_FLAGS} {flags} --min-size 180 --epochs {HALF_SIZE_EPOCHS[name]} --batch-size 2 "
        "--no-compile",
        f"fukami train {name} {COMMON_FLAGS} {flags} --epochs 150 --batch-size 4",
    )
    for name, flags in NETWORK_FLAGS.items()
}


if __name__ == "__main__":
    main()
