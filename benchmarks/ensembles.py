"""Five DeepConvNets on MNIST: each alone, and what they do together.

    python benchmarks/ensembles.py train OUT [--seeds 0 1 2 3 4]     a run for each seed
    python benchmarks/ensembles.py restart OUT [--seeds 0 1 2 3 4]   each goes on from its weights, in OUT/restarted
    python benchmarks/ensembles.py judge OUT                         together: averaged, by vote, and from several views

Needs MNIST in $FUKAMI_DATA. Results go to results.csv. In the literature 99.77 % (Ciresan et al. 2012), 99.79 % (Wan et
al. 2013) and 99.91 % (An et al. 2020) are ensembles of convolutional networks, too.
"""

import argparse
import json
import statistics
from pathlib import Path

from common.record import answer, record

COMMAND = (
    "fukami train deep-convnet --data mnist --weight-decay 0.05 --dropout 0.4 "
    "--augment shift=2 rotate=15 scale=0.15 shear=0.2"
)
TOGETHER = {"averaged": "", "vote": "--vote", "8 views": "--views 8"}


def train(options):
    """A run for each seed."""
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        answer(f"{COMMAND} --epochs 40 --eval-every 5 --seed {seed} --out seed-{seed}", cwd=options.out)


def restart(options):
    """A warm restart of each run (Loshchilov and Hutter 2017), at half the rate and for a quarter of the epochs."""
    for seed in options.seeds:
        flags = f"--epochs 10 --lr 0.001 --eval-every 5 --init seed-{seed}"
        answer(f"{COMMAND} {flags} --seed {seed} --out restarted/seed-{seed}", cwd=options.out)


def judge(options):
    """Record each run, and all of them together."""
    runs = sorted(path.parent for path in options.out.glob("*/report.html"))
    last = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    for run, line in zip(runs, last, strict=True):
        command = json.loads((run / "recipe.json").read_text())["command"]
        record("deep-convnet mnist member", "test accuracy", line["accuracy"], command=command,
               seed=run.name.removeprefix("seed-"), seconds=line["seconds"])  # fmt: skip
    mean = statistics.mean(line["accuracy"] for line in last)
    names = " ".join(f"{run.parent.name}/{run.name}" for run in runs)
    for way, flags in TOGETHER.items():
        found, _ = answer(f"fukami eval {' '.join(map(str, runs))} {flags}")
        note = f"{found['errors']} errors; members {mean:.4f} on average, disagreement {found['disagreement']:.4f}"
        record(f"deep-convnet mnist ensemble of {len(runs)}", f"test accuracy, {way}", found["accuracy"],
               command=f"fukami eval {names} {flags}".rstrip(), seed=f"0 to {len(runs) - 1}", note=note)  # fmt: skip


def main():
    """Train, restart or judge."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["train", "restart", "judge"])
    options.add_argument("out", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = options.parse_args()
    {"train": train, "restart": restart, "judge": judge}[options.action](options)


if __name__ == "__main__":
    main()
