"""Training on one's own data: from a folder to the result, beside a plain torchvision script of the same settings.

    python benchmarks/own_data.py OUT --weights vgg16_features_imagenet.safetensors [--family classify] [--seeds 0]

For each family, a folder is written to OUT from samples of the datasets in $FUKAMI_DATA, in the layout of the page in
``docs/guides``. Its command trains on the folder; then the script of the family in ``peers`` trains with the settings
of that run, on the same machine, images and splits. The time of both is that of the process, from the start of Python
to the result on the test images. WEIGHTS contains the 13 convolutions of VGG-16 with torchvision's names. Further
options, such as ``--epochs 1``, are passed to ``fukami train``. Results go to results.csv.
"""

import argparse
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from common.datasets import ANIMALS, write_animal_crops, write_boxes, write_captions, write_cifar, write_masks
from common.record import record, run_command, strip_folders


@dataclass(frozen=True)
class Case:
    """A family, a folder, and the command of the family's page for it."""

    family: str
    name: str
    data: str
    write_data: Callable[[Path], None]
    recipe: str
    metric: str


CASES = (
    Case("classify", "3,000 images, frozen", "cifar", write_cifar, "vgg16 --size 64 --freeze", "accuracy"),
    Case("classify", "3,000 images", "cifar", write_cifar, "vgg16 --size 64", "accuracy"),
    Case("classify", "315 crops, frozen", "crops", write_animal_crops, "vgg16 --size 128 --freeze", "accuracy"),
    Case("classify", "315 crops", "crops", write_animal_crops, "vgg16 --size 128", "accuracy"),
    Case("detect", "100 images of cells", "cells", lambda root: write_boxes(root, "bccd", "test"),
         "faster-rcnn-vgg16 --min-size 320", "map"),
    Case("detect", "100 images of animals", "animals", lambda root: write_boxes(root, "voc-animals", "val", ANIMALS),
         "faster-rcnn-vgg16 --min-size 320", "map"),
    Case("segment", "100 images of roads", "roads", write_masks, "fcn8s-vgg16 --min-size 180", "miou"),
    Case("caption", "900 photographs", "photographs", write_captions, "show-and-tell --encoder vgg16", "bleu4"),
)  # fmt: skip


def measure(case: Case, seed: int, options: argparse.Namespace) -> None:
    """Train ours, then the plain script with the settings of that run, and record both."""
    data, run = options.out / case.data, options.out / f"{case.name.replace(',', '').replace(' ', '-')}-seed-{seed}"
    if not data.exists():
        case.write_data(data)
    arguments = ["fukami", "train", *case.recipe.split(), "--data", str(data), "--init", str(options.weights.resolve())]
    arguments += ["--seed", str(seed), *options.more]
    # an empty cache folder, since an earlier run may have cached its features
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, XDG_CACHE_HOME=cache):
        ours, our_seconds = run_command(shlex.join([*arguments, "--out", str(run)]))
    script = shlex.join([f"peers.{case.family}", str(data), str(run)])
    theirs, their_seconds = run_command(script, cwd=Path(__file__).parent)
    benchmark, command = f"own data, {case.family}, {case.name}", strip_folders(arguments)
    note = f"{ours['count']} test images"
    record(benchmark, "seconds, torchvision / ours", their_seconds / our_seconds, seed=seed, command=command, note=note)
    for name, result, seconds in (("", ours, our_seconds), (", torchvision", theirs, their_seconds)):
        record(benchmark + name, case.metric, result[case.metric], seed=seed, seconds=seconds, command=command,
               note=note)  # fmt: skip


def main() -> None:
    """Measure the families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="File of VGG-16's convolutions.")
    parser.add_argument("--family", choices=sorted({case.family for case in CASES}), help="Default: all.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options, options.more = parser.parse_known_args()
    options.out = options.out.resolve()
    for seed in options.seeds:
        for case in CASES:
            if options.family in (None, case.family):
                measure(case, seed, options)


if __name__ == "__main__":
    main()
