"""What each augmentation brings, and each way to answer: ResNet-20 on 1,000 training images of CIFAR-10.

    python benchmarks/ablation.py augmentation [--seeds 0 1 2] [--words flip trivial ...]
    python benchmarks/ablation.py answers [--seeds 0 1 2]

Trainings differ by one flag and are judged on the 10,000 images of the test part. Results go to results.csv, as the
mean over the seeds. Trainings this small are quicker one for each processor than one after another on all of them.
Needs CIFAR-10 in $FUKAMI_DATA as JPEG files by class.
"""

import argparse
import csv
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from common.record import answer, record
from fukami.data import cifar, image_folder
from fukami.data.streaming import count_workers

BASE = "fukami train resnet20 --data cifar10-1000.csv --batch-size 50 --lr 0.1 --epochs 60 --eval-every 60"
EACH = 100  # training images of a class
WORDS = [
    "", "rotate=15", "shift=4", "scale=0.2", "shear=0.2", "crop=0.4", "pad-crop=4", "flip", "brightness=0.4",
    "contrast=0.4", "saturation=0.4", "hue=0.1", "grey=0.2", "erase=0.5", "mixup=0.4", "cutmix=1", "trivial", "rand=9",
    "flip pad-crop=4", "flip pad-crop=4 trivial", "flip pad-crop=4 cutmix=1",
]  # fmt: skip
WAYS = ["", "--ema-decay 0.99", "--cycles 4", "--label-smoothing 0.1"]  # of training, for an answer


def table(path):
    """A CSV file that names the first images of each class for training, and all of the test part."""
    train, test = image_folder.scan_folder(cifar.load_cifar("cifar10"))
    taken = dict.fromkeys(train.class_names, 0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for name, label in zip(train.files, train.class_names, strict=True):
            if taken[label] < EACH:
                taken[label] += 1
                writer.writerow((name, label, "train"))
        writer.writerows((name, label, "test") for name, label in zip(test.files, test.class_names, strict=True))


def note(metric, command, answers, seeds):
    """Record the mean accuracy of what was answered for each of the seeds."""
    accuracies = [found["accuracy"] for found, _ in answers]
    record("resnet20 on 1,000 of cifar10", metric, statistics.mean(accuracies), command=command,
           seed=" ".join(map(str, seeds)), seconds=sum(seconds for _, seconds in answers),
           note="JPEG files; one thread each; " + ", ".join(f"{a:.4f}" for a in accuracies))  # fmt: skip


def train(submit, rows, seeds):
    """Train with each of the flags and seeds, as many at a time as there are processors, and record the means."""
    jobs = {}
    for metric, flags in rows.items():
        command = f"{BASE} {flags}".rstrip()
        each = [submit(f"{command} --seed {seed} --out './{metric} {seed}'") for seed in seeds]
        jobs[metric, command] = each
    for (metric, command), each in jobs.items():
        note(metric, command, [job.result() for job in each], seeds)


def main():
    """Train with each augmentation, or judge each way to answer."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["augmentation", "answers"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--words", nargs="+", default=WORDS)
    options = options.parse_args()
    seeds = options.seeds
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(count_workers()) as pool:
        root = Path(name)
        table(root / "cifar10-1000.csv")
        submit = partial(pool.submit, answer, cwd=root, threads=1)
        if options.action == "augmentation":
            train(submit, {words or "none": f"--augment {words}" for words in options.words}, seeds)
            return
        train(submit, {flags or "plain": flags for flags in WAYS}, seeds)
        for flags in ("--views 2", "--views 8"):
            jobs = [submit(f"fukami eval 'plain {seed}' {flags}") for seed in seeds]
            note(flags, f"fukami eval plain {flags}", [job.result() for job in jobs], seeds)
        for flags in ("", "--vote"):
            runs = " ".join(f"'plain {seed}'" for seed in seeds)
            found = submit(f"fukami eval {runs} {flags}").result()
            note(f"{len(seeds)} seeds {flags}".rstrip(), f"fukami eval plain ... {flags}".rstrip(), [found], seeds)


if __name__ == "__main__":
    main()
