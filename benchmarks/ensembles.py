"""Ensemble of five DeepConvNets on MNIST: accuracy of the members and of the ensemble.

    python benchmarks/ensembles.py train OUT [--seeds 0 1 2 3 4]     one run per seed
    python benchmarks/ensembles.py restart OUT [--seeds 0 1 2 3 4]   a warm restart of each run, in OUT/restarted
    python benchmarks/ensembles.py evaluate OUT                      averaging, voting and test-time augmentation

Needs MNIST in $FUKAMI_DATA. Results go to results.csv. Published results of ensembles of convolutional networks: 99.77
% (Ciresan et al. 2012), 99.79 % (Wan et al. 2013) and 99.91 % (An et al. 2020).
"""

import argparse
import json
import statistics
from pathlib import Path

from common.record import record, run_command

COMMAND = (
    "fukami train deep-convnet --data mnist --weight-decay 0.05 --dropout 0.4 "
    "--augment shift=2 rotate=15 scale=0.15 shear=0.2"
)
VARIANTS = {"averaged": "", "vote": "--vote", "8 views": "--views 8"}


def train(options):
    """Train a run for each seed."""
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        run_command(f"{COMMAND} --epochs 40 --eval-every 5 --seed {seed} --out seed-{seed}", cwd=options.out)


def restart(options):
    """Restart each run from its weights (Loshchilov and Hutter 2017), at half the rate and 1/4 of the epochs."""
    for seed in options.seeds:
        flags = f"--init seed-{seed} --head-epochs 0 --clip-norm 0 --epochs 10 --lr 0.001 --eval-every 5"
        run_command(f"{COMMAND} {flags} --seed {seed} --out restarted/seed-{seed}", cwd=options.out)


def evaluate(options):
    """Evaluate and record each run and the ensemble."""
    runs = sorted(path.parent for path in options.out.glob("*/report.html"))
    last_lines = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    for run, line in zip(runs, last_lines, strict=True):
        command = json.loads((run / "recipe.json").read_text())["command"]
        record("deep-convnet mnist member", "test accuracy", line["accuracy"], command=command,
               seed=run.name.removeprefix("seed-"), seconds=line["seconds"])  # fmt: skip
    mean = statistics.mean(line["accuracy"] for line in last_lines)
    names = " ".join(f"{run.parent.name}/{run.name}" for run in runs)
    for variant, flags in VARIANTS.items():
        result, _ = run_command(f"fukami eval {' '.join(map(str, runs))} {flags}")
        note = f"{result['errors']} errors; members {mean:.4f} on average, disagreement {result['disagreement']:.4f}"
        seeds = " ".join(run.name.removeprefix("seed-") for run in runs)
        record(f"deep-convnet mnist ensemble of {len(runs)}", f"test accuracy, {variant}", result["accuracy"],
               command=f"fukami eval {names} {flags}".rstrip(), seed=seeds, note=note)  # fmt: skip


def main():
    """Train, restart or evaluate."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["train", "restart", "evaluate"])
    options.add_argument("out", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = options.parse_args()
    {"train": train, "restart": restart, "evaluate": evaluate}[options.action](options)


if __name__ == "__main__":
    main()
