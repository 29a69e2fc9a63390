"""What each augmentation brings: ResNet-20 on 1,000 training pictures of CIFAR-10, judged on the 10,000 of the test.

    python benchmarks/ablation.py [--seeds 0 1 2] [--epochs 60] [--words flip trivial ...]

Each line of the table is a training that differs by --augment alone. Results go to results.csv, as the mean over the
seeds. Trainings this small are quicker one for each processor than one after another on all of them. Needs CIFAR-10 in
$FUKAMI_DATA as JPEG files by class.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fukami.data import cifar, folder
from fukami.data.stream import processors
from record import record

EACH = 100  # training pictures of a class
WORDS = [
    "", "rotate=15", "shift=4", "scale=0.2", "shear=0.2", "crop=0.4", "pad-crop=4", "flip", "brightness=0.4",
    "contrast=0.4", "saturation=0.4", "hue=0.1", "grey=0.2", "erase=0.5", "mixup=0.4", "cutmix=1", "trivial", "rand=9",
    "flip pad-crop=4", "flip pad-crop=4 trivial", "flip pad-crop=4 cutmix=1",
]  # fmt: skip


def table(path):
    """A CSV file that names the first pictures of each class for training, and all of the test part."""
    train, test = folder.scan(cifar.read("cifar10"))
    taken = dict.fromkeys(train.classes, 0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for name, label in zip(train.files, train.classes, strict=True):
            if taken[label] < EACH:
                taken[label] += 1
                writer.writerow((name, label, "train"))
        writer.writerows((name, label, "test") for name, label in zip(test.files, test.classes, strict=True))


def train(words, seeds, epochs, root):
    """Train with one augmentation; returns the command, the accuracy for each seed, and the seconds."""
    command = f"fukami train resnet20 --data cifar10-1000.csv --batch 50 --lr 0.1 --epochs {epochs}"
    command += f" --judge-every {epochs} --augment {words}".rstrip()
    accuracies, began = [], time.monotonic()
    for seed in seeds:
        start = [sys.executable, "-m", *shlex.split(command), "--seed", str(seed), "--out", f"{words or 'none'}-{seed}"]
        done = subprocess.run(start, cwd=root, stdout=subprocess.PIPE, text=True, check=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        accuracies.append(json.loads(done.stdout)["accuracy"])
    return command, accuracies, time.monotonic() - began


def main():
    """Train with each augmentation, and record the mean over the seeds."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=60)
    options.add_argument("--words", nargs="+", default=WORDS)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(processors()) as pool:
        root = Path(name)
        table(root / "cifar10-1000.csv")
        each = partial(train, seeds=options.seeds, epochs=options.epochs, root=root)
        for words, (command, accuracies, seconds) in zip(options.words, pool.map(each, options.words), strict=True):
            record("augmentation on 1,000 of cifar10", words or "none", statistics.mean(accuracies),
                   seed=" ".join(map(str, options.seeds)), command=command, seconds=seconds,
                   note="JPEG files; one thread each; " + ", ".join(f"{a:.4f}" for a in accuracies))  # fmt: skip


if __name__ == "__main__":
    main()
