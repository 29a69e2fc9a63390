"""Memory: activations stored with ``--activation-checkpointing``, and peak memory of short training runs.

    python benchmarks/memory.py activation-checkpointing [--batch-size 4]
    python benchmarks/memory.py peaks [NAME...]

``activation-checkpointing`` measures the tensors that autograd saves, without weights and each storage once, as a
fraction of those without checkpointing. ``peaks`` trains each network from the command line on a few bundled images,
at the size of its other benchmarks and in its own process. It records the peak memory that torch allocated on a GPU, or
the process used on a CPU. Results go to results.csv.
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
from common.processes import read_memory
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


def measure_saved_bytes(model: torch.nn.Module, images: Tensor) -> int:
    """Measure the bytes that a forward pass saves for the backward pass."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(images)  # keeps the saved tensors alive
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del output
    return sum(num_bytes for pointer, num_bytes in sizes.items() if pointer not in weights)


def measure_activation_checkpointing(batch_size: int) -> None:
    """Measure every network with and without activation checkpointing."""
    for name, shape in SHAPES.items():
        model, images = getattr(models, name)(10), torch.randn(batch_size, *shape)
        without = measure_saved_bytes(model, images)
        enable_activation_checkpointing(model)
        with_checkpointing = measure_saved_bytes(model, images)
        command = f"python benchmarks/memory.py activation-checkpointing --batch-size {batch_size}"
        note = f"{without / 1e6:.1f} MB, {with_checkpointing / 1e6:.1f} MB"
        record(f"activation checkpointing {name}", "kept for the backward pass, fraction", with_checkpointing / without,
               command=command, note=note, device="cpu")  # fmt: skip


IMAGES = Path(__file__).parent / "common" / "random_images.py"
PEAKS = {
    "deep-convnet": "deep-convnet --batch-size 250 --epochs 1",
    "resnet50": f"{IMAGES} --batch-size 256 --num-images 1024 --epochs 1 --lr 0.01",
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


def measure_peaks(names: list[str]) -> None:
    """Train each network in its own process, and record its peak memory."""
    for name in names or PEAKS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["train", *PEAKS[name].split(), "--out", f"{folder}/run"]
            process = subprocess.run([sys.executable, __file__, "peak", *arguments], stdout=subprocess.PIPE, text=True)
        if process.returncode:
            print(f"{name} failed; it is skipped", file=sys.stderr)
            continue
        num_bytes, kind = (
            json.loads(process.stdout.splitlines()[-1]),
            "GPU memory" if torch.cuda.is_available() else "memory",
        )
        command = f"fukami train {PEAKS[name].replace(str(IMAGES), f'benchmarks/common/{IMAGES.name}')}"
        record(f"memory {name}", f"peak {kind}, GB", num_bytes / 1e9, command=command,
               note="of a training run on a few bundled images")  # fmt: skip


def print_peak(arguments: list[str]) -> None:
    """Run the command line in this process, and print its peak memory in bytes."""
    try:
        few_scenes.run(arguments)
    except SystemExit as end:
        if end.code:
            raise
    print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else read_memory("VmHWM"))


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["activation-checkpointing", "peaks"])
    parser.add_argument("names", nargs="*", choices=[*PEAKS, []], default=[])
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    if options.benchmark == "peaks":
        measure_peaks(options.names)
    else:
        measure_activation_checkpointing(options.batch_size)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print_peak(sys.argv[2:])
    else:
        main()
