"""FCN and SegNet: how well they tell pixels apart, and how fast they are beside networks that people use instead.

    python benchmarks/segmentation.py scenes [--seeds 0 1 2]
    python benchmarks/segmentation.py camvid NETWORK [--full] [--weights FILE] [--seeds 0] [--out FOLDER] [OPTIONS]
    python benchmarks/segmentation.py rates [NETWORK ...] [--height 360] [--width 480] [--batch 4]
    python benchmarks/segmentation.py patches [--weights FILE] [--steps 6]
    python benchmarks/segmentation.py frames RUN|NETWORK [--frames 1200]

``camvid`` trains ``segnet-vgg16``, ``segnet-basic`` or ``fcn8s-vgg16`` on CamVid's 367 images and judges on its 233
test images at their own size: at half the size (180×240), for a CPU, or with ``--full`` at 360×480, for a GPU;
``--weights`` is a file of VGG-16's convolutions. ``rates`` times training steps of ours and of torchvision's
FCN-ResNet50, and of ours on VGG-16 and segmentation-models-pytorch's U-Net on VGG-16, in turn on the same images, and
compares what memory they take; what counts are the ratios. ``patches`` slides a classifier over an image, and lets it
pass over all of it at once. ``frames`` predicts CamVid's test images as a video. Results go to results.csv.
"""

import argparse
import contextlib
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
from common.processes import Apart, ask_in_turn, installed, resident
from common.record import anywhere, each_seed, record
from fukami.data import scenes
from fukami.data.image_folder import unpack_archive
from fukami.engine.recipe import list_recipes
from fukami.errors import Error
from fukami.segmentation import data as segmentation_data

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CLASSES = 11
WARMING = 2  # updates before those that are timed
PATCH = 404  # pixels that a place of VGG-16's first affine layer sees
DRIVING = 30  # frames a second
METRICS = ("miou", "accuracy", "class_accuracy", "fw_iou", "boundary_f1")


def trainings(benchmark: str, line: str, options: argparse.Namespace, note: str) -> None:
    """Train with each seed from the command line, and record the metrics."""
    for seed, result, seconds, command in each_seed(line, options):
        each = ", ".join(f"{label} {own['iou']:.3f}" for label, own in result["classes"].items())
        for metric in METRICS:
            record(benchmark, metric, result[metric], seed=seed, seconds=seconds, command=command,
                   note=f"{note}; IoU of each class: {each}" if metric == "miou" else note)  # fmt: skip


def camvid(options: argparse.Namespace) -> None:
    """The training of a network on CamVid."""
    kind = "full" if options.full else "half"
    size = "360×480" if options.full else "180×240"
    note = f"trained at {size} on 367 images, judged at 360×480 on 233, 11 classes, unlabelled ignored"
    trainings(f"{options.names[0]} camvid {kind}", CAMVID[options.names[0]][options.full], options, note)


# rates


def build_fcn_resnet50() -> nn.Module:
    """torchvision's network."""
    from torchvision.models.segmentation import fcn_resnet50

    return fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)


def build_unet() -> nn.Module:
    """The U-Net of segmentation-models-pytorch."""
    import segmentation_models_pytorch as smp

    return smp.Unet("vgg16", encoder_weights=None, classes=CLASSES)


PEERS = {  # the package that each needs, and what builds it
    "torchvision FCN-ResNet50": ("torchvision", build_fcn_resnet50),
    "U-Net VGG16": ("segmentation_models_pytorch", build_unet),
}


PAIRS = (
    ("fcn-resnet50", "torchvision FCN-ResNet50"),
    ("segnet-vgg16", "U-Net VGG16"),
    ("fcn8s-vgg16", "U-Net VGG16"),
)
FIELDS = {"fcn8s-vgg16": {"hidden": 512}}  # as it is trained where there are no affine layers to begin with


def drawn(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Images of noise ``(N, 3, H, W)`` uint8 and maps ``(N, H, W)`` of which some pixels are unlabelled, 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, 3, options.height, options.width)
    images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    return images, torch.randint(0, CLASSES + 1, (shape[0], *shape[2:]), generator=generator).to(torch.uint8)


class Ours:
    """The task as a training has it."""

    def __init__(self, name: str, options: argparse.Namespace, precision: str) -> None:
        from fukami.data.samples import PaddedBatch
        from fukami.engine.recipe import get_recipe
        from fukami.engine.runtime import Runtime

        torch.manual_seed(0)
        self.task = get_recipe(name)(balance="none", **FIELDS.get(name, {})).build_task(tuple(map(str, range(CLASSES))))
        self.task.setup(Runtime.start(DEVICE, precision))
        self.task.model.train()
        self.task.schedule(0.5)
        images, masks = drawn(options)
        bottom, right = -options.height % 32, -options.width % 32
        sizes = torch.tensor([[options.height, options.width]] * options.batch).float()
        nothing = torch.zeros(options.batch)
        frames = F.pad(images, (0, right, 0, bottom))
        batch = frames, sizes, sizes, *[nothing] * 5, F.pad(masks, (0, right, 0, bottom))
        self.batch = PaddedBatch(*(value.to(DEVICE) for value in batch))

    def train(self) -> None:
        """An update."""
        self.task.step(self.batch)


class Theirs:
    """Another network in the loop that its users write."""

    def __init__(self, name: str, options: argparse.Namespace, precision: str) -> None:
        torch.manual_seed(0)
        self.mixed = precision == "bfloat16"
        self.model = PEERS[name][1]().to(DEVICE).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        images, masks = drawn(options)
        # to the multiple of 32 that the U-Net asks for; ours is given the same
        images = F.pad(images, (0, -options.width % 32, 0, -options.height % 32))
        masks = F.pad(masks, (0, -options.width % 32, 0, -options.height % 32))
        self.images, self.targets = (images.float() / 255).to(DEVICE), masks.long().to(DEVICE) - 1

    def train(self) -> None:
        """An update."""
        context = torch.autocast(DEVICE, torch.bfloat16) if self.mixed else contextlib.nullcontext()
        with context:
            found = self.model(self.images)
            scores, second = (found["out"], found["aux"]) if isinstance(found, dict) else (found, None)
            loss = F.cross_entropy(scores, self.targets, ignore_index=-1)
            if second is not None:
                loss = loss + 0.5 * F.cross_entropy(second, self.targets, ignore_index=-1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def contestant(name: str, options: argparse.Namespace, precision: str) -> "Ours | Theirs":
    """One of ours, or another."""
    return (Ours if "-" in name and name == name.lower() else Theirs)(name, options, precision)


def trained(name: str, options: argparse.Namespace, precision: str, asked) -> None:
    """Make an update and tell its images a second as often as asked to; then tell the bytes taken at most."""
    before = resident("VmRSS")
    network = contestant(name, options, precision)
    while asked.recv():
        began = time.monotonic()
        network.train()
        if CUDA:
            torch.cuda.synchronize()
        asked.send(options.batch / (time.monotonic() - began))
    asked.send(torch.cuda.max_memory_allocated() if CUDA else resident("VmHWM") - before)


def rates(options: argparse.Namespace) -> None:
    """Images a second in training, and memory, at float32 and in mixed precision."""
    command = f"python benchmarks/segmentation.py {shlex.join(sys.argv[1:])}"
    for precision in options.precisions:
        for ours, theirs in (pair for pair in PAIRS if not options.names or pair[0] in options.names):
            names = [ours, theirs] if installed(PEERS[theirs][0], theirs) else [ours]
            processes = [Apart(trained, name, options, precision) for name in names]
            rate = ask_in_turn(processes, True, options.rounds, WARMING)
            taken = [each.ask(False) for each in processes]
            what = f"{ours} train {precision}"
            note = f"{options.height}×{options.width}, batch {options.batch}"
            note += "".join(f", {field} {value}" for field, value in FIELDS.get(ours, {}).items())
            note += f"; {' and '.join(f'{each:.3g}' for each in rate)} images per second, "
            memory = " and ".join(f"{each / 1e9:.2f}" for each in taken)
            note += f"medians of {options.rounds} in turn; {memory} GB at most"
            note += "; theirs with convolutions in TF32, torch's default" if CUDA and precision != "bfloat16" else ""
            if len(names) == 1:
                record(what, "images per second", rate[0], command=command, note=note)
                continue
            record(what, f"rate over that of {theirs}", rate[0] / rate[1], command=command, note=note)
            record(what, f"memory over that of {theirs}", taken[0] / taken[1], command=command, note=note)


# one pass, or many


def patches(options: argparse.Namespace) -> None:
    """The answers of a classifier at every 32nd pixel: patch by patch, and in one pass over the whole image."""
    from fukami import models
    from fukami.engine import pretrained

    torch.manual_seed(0)
    network = models.fcn32s_vgg16(CLASSES).eval()
    if options.weights != "imagenet":
        pretrained.initialize_segmenter(network, "vgg16", options.weights)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)  # zeros around a patch are not what lies around it in the image
    network = network.to(DEVICE).to(memory_format=torch.channels_last)
    side = PATCH + 32 * options.steps
    image = torch.rand(1, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
    places = [(top, left) for top in range(0, side - PATCH + 1, 32) for left in range(0, side - PATCH + 1, 32)]

    def classify(images: Tensor) -> Tensor:
        return network.head(network.features(images))

    def slid() -> Tensor:
        every = [classify(image[..., top : top + PATCH, left : left + PATCH]) for top, left in places]
        return torch.cat(every, 0).flatten(1).T.reshape(1, CLASSES, options.steps + 1, -1)

    command = f"python benchmarks/segmentation.py {anywhere(sys.argv[1:])}"
    with torch.inference_mode():
        seconds = []
        for function in (lambda: classify(image), slid):
            function() if function is not slid else None
            began = time.monotonic()
            found = function()
            if CUDA:
                torch.cuda.synchronize()
            seconds.append((time.monotonic() - began, found))
    (once, whole), (many, parts) = seconds
    apart = float((whole - parts).abs().max() / whole.abs().max())
    note = f"VGG-16 without padding over {side}×{side} pixels, {len(places)} patches of {PATCH}×{PATCH}"
    record("fcn patches", "time of patches over that of one pass", many / once, command=command, note=note)
    record("fcn patches", "largest difference of scores by the largest score", apart, command=command, note=note)


def frames(options: argparse.Namespace) -> None:
    """Frames per second at 360×480 of a run, as ``fukami predict`` reports them.

    The name of a network instead of a run is trained for one epoch first: what it predicts does not change the time.
    """
    (run,) = options.names
    command = f"python benchmarks/segmentation.py {anywhere(sys.argv[1:])}"
    with tempfile.TemporaryDirectory() as name:
        images, what = driving(Path(name))
        video = Path(name) / "frames"
        video.mkdir()
        for number in range(options.frames):
            (video / f"{number:06}{images[0].suffix}").symlink_to(images[number % len(images)].resolve())
        if run in list_recipes():
            run, script = f"{name}/run", str(Path(few_scenes.__file__))
            words = ["train", *options.names, "--min-size", "360", "--epochs", "1", "--out", run, *options.more]
            subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.DEVNULL)
        for drawing in (False, True):
            words = ["fukami", "predict", run, str(video), "--fps", "30", *["--out", f"{name}/out"] * drawing]
            done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=True)
            *_, rates = done.stderr.strip().splitlines()
            predicted, whole = map(float, re.findall(r"(\d+\.\d) ", rates))
            metric, value = ("rate with drawing", whole) if drawing else ("rate", predicted)
            record(f"{Path(options.names[0]).name} film", f"{metric} over {DRIVING} frames a second", value / DRIVING,
                   command=command, note=f"{rates.partition(': ')[2]}; {what}")  # fmt: skip


def driving(folder: Path) -> tuple[list[Path], str]:
    """CamVid's test images, or embedded scenes of their size where it is absent; and which of these."""
    try:
        root = unpack_archive(segmentation_data.find_dataset("camvid"))
        return sorted(next(path for path in root.rglob("test") if path.is_dir()).iterdir()), "CamVid's test images"
    except Error:
        files = [folder / f"{number}.png" for number in range(2)]
        for number, file in enumerate(files):
            Image.fromarray(scenes.generate_scene(0, number).image).resize((480, 360)).save(file)
        return files, "embedded scenes"


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["scenes", "camvid", "rates", "patches", "frames"])
    parser.add_argument("names", nargs="*", help="of a network, or a run")
    parser.add_argument("--full", action="store_true", help="at 360×480, for a GPU")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7, help="updates of rates that are timed")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--frames", type=int, default=1200, help="of the video, the same images again and again")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--weights", default="imagenet", help="a file of VGG-16's convolutions")
    parser.add_argument("--out", help="a folder where the runs stay")
    options, options.more = parser.parse_known_args()
    if options.part == "scenes":
        trainings("segmentation scenes", SCENES, options, "2,000 scenes to train on, 200 to judge on")
    elif options.part == "camvid":
        if options.names not in [[name] for name in CAMVID]:
            parser.error(f"name one of {', '.join(CAMVID)}")
        camvid(options)
    elif options.part == "frames" and len(options.names) != 1:
        parser.error("name a run")
    else:
        {"rates": rates, "patches": patches, "frames": frames}[options.part](options)


SCENES = (
    "fukami train fcn8s-vgg16 --batch-norm --width-multiplier 0.25 --hidden 256 --dropout 0.1 --min-size 112 "
    "--augment flip crop=0.7 --lr 3e-3 --schedule one-cycle --epochs 8 --batch-size 4 --eval-every 8 --no-compile"
)
COMMON = "--data camvid --augment flip crop=0.5 brightness=0.3 --balance root --eval-every 10"
TUNED = {  # so that what has learned already goes on slowly
    "segnet-vgg16": "--init {weights} --lr 3e-3 --backbone-lr-factor 0.08",
    "segnet-basic": "--lr 2e-3",
    "fcn8s-vgg16": "--init {weights} --batch-norm --hidden 512 --lr 2e-3 --backbone-lr-factor 0.1",
}
# passes at half the size, for which a CPU has time in two hours
HALF = {"segnet-vgg16": 36, "segnet-basic": 40, "fcn8s-vgg16": 16}
CAMVID = {  # at half the size, and at full size
    name: (
        f"fukami train {name} {COMMON} {tuned} --min-size 180 --epochs {HALF[name]} --batch-size 2 --no-compile",
        f"fukami train {name} {COMMON} {tuned} --epochs 150 --batch-size 4",
    )
    for name, tuned in TUNED.items()
}


if __name__ == "__main__":
    main()
