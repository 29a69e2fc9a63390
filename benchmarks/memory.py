"""Memory: what is kept for the backward pass with ``--activation-checkpointing``, and the peak of short trainings.

    python benchmarks/memory.py rematerialise [--batch 4]
    python benchmarks/memory.py peaks [NAME...]

``rematerialise`` counts the tensors that autograd saves, each storage once, the weights not, as a fraction of those
without. ``peaks`` trains each network as a user does, on a few embedded images at the size that its other benchmarks
have, each in a process of its own: the most that torch allocated on a GPU, or that the process took on a CPU. Results
go to results.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from common import few_scenes
from common.processes import resident
from common.record import record
from fukami import models
from fukami.layers.activation_checkpointing import enable_activation_checkpointing

SHAPES = {
    "resnet50": (3, 224, 224),
    "vgg16": (3, 224, 224),
    "googlenet": (3, 224, 224),
    "resnet20": (3, 32, 32),
    "deep_convnet": (1, 28, 28),
}


def kept(model: torch.nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass keeps."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)  # which holds what was kept until it is counted
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del output
    return sum(size for place, size in sizes.items() if place not in own)


def rematerialised(batch: int) -> None:
    """Measure what every network keeps."""
    for name, shape in SHAPES.items():
        model, images = getattr(models, name)(10), torch.randn(batch, *shape)
        plain = kept(model, images)
        enable_activation_checkpointing(model)
        again = kept(model, images)
        command = f"python benchmarks/memory.py rematerialise --batch {batch}"
        note = f"{plain / 1e6:.1f} MB, {again / 1e6:.1f} MB"
        record(f"rematerialise {name}", "kept for the backward pass, share", again / plain, command=command, note=note)


IMAGES = Path(__file__).parent / "common" / "random_images.py"
PEAKS = {
    "deep-convnet": "deep-convnet --batch-size 250 --epochs 1",
    "resnet50": f"{IMAGES} --batch-size 256 --images 1024 --epochs 1 --lr 0.01",
    "resnet20": "resnet20 --epochs 1",
    "resnet56": "resnet56 --epochs 1",
    "binary-convnet": "binary-convnet --epochs 1",
    "faster-rcnn-resnet50-fpn": "faster-rcnn-resnet50-fpn --min-size 800 --max-size 1066 --batch-size 8 --epochs 1",
    "rcnn-finetune": "rcnn-finetune --epochs 1",
    "fcn8s-vgg16": "fcn8s-vgg16 --min-size 360 --batch-size 4 --epochs 1",
    "segnet-vgg16": "segnet-vgg16 --min-size 360 --batch-size 4 --epochs 1",
    "show-and-tell": "show-and-tell --epochs 1",
    "dcgan": "dcgan --size 64 --epochs 1 --eval-samples 64",
    "dqn": "dqn --env pong --steps 4000 --buffer-size 20000 --learning-starts 1000 --eval-every 4000 --eval-episodes 1",
}


def peaks(names: list[str]) -> None:
    """Train each in a process of its own, and record its peak."""
    for name in names or PEAKS:
        with tempfile.TemporaryDirectory() as folder:
            words = ["train", *PEAKS[name].split(), "--out", f"{folder}/run"]
            done = subprocess.run([sys.executable, __file__, "peak", *words], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{name} failed and is left out", file=sys.stderr)
            continue
        taken, kind = json.loads(done.stdout.splitlines()[-1]), "GPU memory" if torch.cuda.is_available() else "memory"
        command = f"fukami train {PEAKS[name].replace(str(IMAGES), f'benchmarks/{IMAGES.name}')}"
        record(f"memory {name}", f"peak {kind}, GB", taken / 1e9, command=command,
               note="of a training on a few embedded images")  # fmt: skip


def peak(words: list[str]) -> None:
    """Run the command line in this process, and print the bytes that it took at most."""
    try:
        few_scenes.run(words)
    except SystemExit as end:
        if end.code:
            raise
    print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM"))


def main() -> None:
    """Measure what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["rematerialise", "peaks"])
    parser.add_argument("names", nargs="*", choices=[*PEAKS, []], default=[])
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    if options.part == "peaks":
        peaks(options.names)
    else:
        rematerialised(options.batch)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(sys.argv[2:])
    else:
        main()
