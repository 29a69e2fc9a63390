"""Ablation study of augmentations and of averaging methods: ResNet-20 on 1,000 training images of CIFAR-10.

    python benchmarks/ablation.py augmentation [--seeds 0 1 2] [--augmentations flip trivial ...]
    python benchmarks/ablation.py averaging [--seeds 0 1 2]

Training runs differ by one flag and are evaluated on the 10,000 test images. Results go to results.csv, as the mean
over the seeds. For such small training runs, one single-threaded process per processor is faster than one
multi-threaded process. Needs CIFAR-10 in $FUKAMI_DATA as JPEG files by class.
"""

import argparse
import csv
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from common.record import record, run_command
from fukami.data import cifar, image_folder
from fukami.data.streaming import count_workers

BASE = (
    "fukami train resnet20 --data cifar10-1000.csv --val-fraction 0 --batch-size 50 --lr 0.1 --epochs 60 "
    "--eval-every 60"
)
IMAGES_PER_CLASS = 100  # training images per class
AUGMENTATIONS = [
    "", "rotate=15", "shift=4", "scale=0.2", "shear=0.2", "crop=0.4", "pad-crop=4", "flip", "brightness=0.4",
    "contrast=0.4", "saturation=0.4", "hue=0.1", "grayscale=0.2", "erase=0.5", "mixup=0.4", "cutmix=1", "trivial",
    "rand=9",
    "flip pad-crop=4", "flip pad-crop=4 trivial", "flip pad-crop=4 cutmix=1",
]  # fmt: skip
VARIANTS = ["", "--ema-decay 0.99", "--cycles 4", "--label-smoothing 0.1"]  # of training


def write_subset(path):
    """Write a CSV file with the first training images of each class and all test images."""
    splits = image_folder.scan_folder(cifar.load_cifar("cifar10"))
    train, test = splits["train"], splits["test"]
    counts = dict.fromkeys(train.class_names, 0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for name, label in zip(train.files, train.class_names, strict=True):
            if counts[label] < IMAGES_PER_CLASS:
                counts[label] += 1
                writer.writerow((name, label, "train"))
        writer.writerows((name, label, "test") for name, label in zip(test.files, test.class_names, strict=True))


def record_mean(metric, command, results, seeds):
    """Record the mean accuracy over the seeds."""
    accuracies = [result["accuracy"] for result, _ in results]
    record("resnet20 on 1,000 of cifar10", metric, statistics.mean(accuracies), command=command,
           seed=" ".join(map(str, seeds)), seconds=sum(seconds for _, seconds in results),
           note="JPEG files; one thread each; " + ", ".join(f"{a:.4f}" for a in accuracies))  # fmt: skip


def train_variants(submit, rows, seeds):
    """Train with each of the flags and seeds, one process per processor, and record the means."""
    jobs = {}
    for metric, flags in rows.items():
        command = f"{BASE} {flags}".rstrip()
        futures = [submit(f"{command} --seed {seed} --out './{metric} {seed}'") for seed in seeds]
        jobs[metric, command] = futures
    for (metric, command), futures in jobs.items():
        record_mean(metric, command, [future.result() for future in futures], seeds)


def main():
    """Train with each augmentation, or evaluate each averaging method."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["augmentation", "averaging"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--augmentations", nargs="+", default=AUGMENTATIONS)
    options = options.parse_args()
    seeds = options.seeds
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(count_workers()) as pool:
        root = Path(folder)
        write_subset(root / "cifar10-1000.csv")
        submit = partial(pool.submit, run_command, cwd=root, threads=1)
        if options.action == "augmentation":
            train_variants(
                submit, {operations or "none": f"--augment {operations}" for operations in options.augmentations}, seeds
            )
            return
        train_variants(submit, {flags or "plain": flags for flags in VARIANTS}, seeds)
        for flags in ("--views 2", "--views 8"):
            futures = [submit(f"fukami eval 'plain {seed}' {flags}") for seed in seeds]
            record_mean(flags, f"fukami eval plain {flags}", [future.result() for future in futures], seeds)
        for flags in ("", "--vote"):
            runs = " ".join(f"'plain {seed}'" for seed in seeds)
            result = submit(f"fukami eval {runs} {flags}").result()
            record_mean(
                f"{len(seeds)} seeds {flags}".rstrip(), f"fukami eval plain ... {flags}".rstrip(), [result], seeds
            )


if __name__ == "__main__":
    main()
