"""Five DeepConvNets on MNIST, each alone and together; and what one training of ResNet-20 gains by answering otherwise.

    python benchmarks/ensembles.py train OUT [--seeds 0 1 2 3 4]   a DeepConvNet for each seed
    python benchmarks/ensembles.py judge OUT                       together: averaged, by vote, and from several views
    python benchmarks/ensembles.py one OUT                         on CIFAR-10: snapshots, averaged weights, views

Needs MNIST and CIFAR-10 in $FUKAMI_DATA. Results go to results.csv. In the literature 99.77 % (Ciresan et al. 2012) and
99.79 % (Wan et al. 2013) on MNIST are ensembles of convolutional networks, too.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from record import record

COMMAND = (
    "fukami train deep-convnet --data mnist --epochs 40 --weight-decay 0.05 --dropout 0.4 "
    "--augment shift=2 rotate=15 scale=0.15 shear=0.2"
)
TOGETHER = {"averaged": "", "vote": "--vote", "8 views": "--views 8"}
ONE = "fukami train resnet20 --data cifar10 --epochs 12 --judge-every 12"
WAYS = {"plain": "", "four snapshots": "--cycles 4", "averaged weights": "--ema 0.999"}


def run(command):
    """What a command prints."""
    words = [sys.executable, "-m", *shlex.split(command)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def train(options):
    """A run for each seed."""
    for seed in options.seeds:
        run(f"{COMMAND} --judge-every 5 --seed {seed} --out {options.out}/seed-{seed}")


def judge(options):
    """Record each run, and all of them together."""
    runs = sorted(path.parent for path in options.out.glob("*/report.html"))
    last = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    for path, line in zip(runs, last, strict=True):
        seed = path.name.removeprefix("seed-")
        record("deep-convnet mnist member", "test accuracy", line["accuracy"], command=f"{COMMAND} --seed {seed}",
               seed=seed, seconds=line["seconds"])  # fmt: skip
    mean = statistics.mean(line["accuracy"] for line in last)
    names = " ".join(f"seed-{n}" for n in range(len(runs)))
    for way, flags in TOGETHER.items():
        found = run(f"fukami eval {' '.join(map(str, runs))} {flags}")
        note = f"{found['errors']} errors; members {mean:.4f} on average, disagreement {found['disagreement']:.4f}"
        record(f"deep-convnet mnist ensemble of {len(runs)}", f"test accuracy, {way}", found["accuracy"],
               command=f"fukami eval {names} {flags}".rstrip(), seed=f"0 to {len(runs) - 1}", note=note)  # fmt: skip


def one(options):
    """Record what trainings of the same length reach, and the first one's answers from several views."""
    for way, flags in WAYS.items():
        command = f"{ONE} {flags}".rstrip()
        found = run(f"{command} --out {options.out}/{way.replace(' ', '-')}")
        members = f"; members {found['member_accuracy']:.4f} on average" if "members" in found else ""
        record("resnet20 cifar10 answering", f"test accuracy, {way}", found["accuracy"], command=command, seed=0,
               note=f"CIFAR-10 as JPEG files{members}")  # fmt: skip
    for views in (2, 8):
        found = run(f"fukami eval {options.out}/plain --views {views}")
        record("resnet20 cifar10 answering", f"test accuracy, {views} views", found["accuracy"], seed=0,
               command=f"fukami eval plain --views {views}", note="CIFAR-10 as JPEG files; the plain run")  # fmt: skip


def main():
    """Train or judge."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["train", "judge", "one"])
    options.add_argument("out", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = options.parse_args()
    {"train": train, "judge": judge, "one": one}[options.action](options)


if __name__ == "__main__":
    main()
