"""Transfer learning from VGG16's ImageNet features: from scratch, frozen features, and fine-tuning.

    python benchmarks/transfer.py OUT --weights vgg16_features_imagenet.safetensors [--seeds 0]

Datasets and runs are written to OUT: crops of the animals and people in voc-animals, crops of the cells in BCCD, and
3,000 images of CIFAR-10. WEIGHTS contains the 13 convolutions with torchvision's names. Results go to results.csv.
"""

import argparse
import shlex
from pathlib import Path

from common.datasets import write_animal_crops, write_cell_crops, write_cifar
from common.record import record, run_command

DATA = {
    "animals": (write_animal_crops, "--size 96", "255 test images cut out of voc-animals"),
    "cells": (write_cell_crops, "--size 64", "945 test images cut out of BCCD"),
    "cifar10-3000": (write_cifar, "--size 64", "300 training and 100 test images of each class, JPEG files"),
}
METHODS = {
    "scratch": "--hidden 0 --epochs 20 --batch-norm",
    "linear probe": "--hidden 0 --freeze --init {weights}",
    "frozen features": "--freeze --init {weights}",
    "fine-tuned": "--init {weights}",
}


def main():
    """Train by each method on each dataset, and record the accuracy."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = options.parse_args()
    for name in options.data:
        write_data, flags, note = DATA[name]
        if not (options.out / name).exists():
            write_data(options.out / name)
        for seed in options.seeds:
            for method in options.methods:
                command = f"fukami train vgg16 --data {name} {flags} {METHODS[method]} --seed {seed}"
                out = f"{name}-{method.replace(' ', '-')}-{seed}"
                weights = shlex.quote(str(options.weights.resolve()))
                result, seconds = run_command(f"{command.format(weights=weights)} --out {out}", cwd=options.out)
                record(f"transfer {name} {method}", "test accuracy", result["accuracy"], seed=seed,
                       command=command.format(weights=options.weights.name), seconds=seconds, note=note)  # fmt: skip


if __name__ == "__main__":
    main()
