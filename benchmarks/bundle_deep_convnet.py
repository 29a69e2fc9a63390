"""Train the DeepConvNet whose weights are part of the package, and write them with their model card.

    python benchmarks/bundle_deep_convnet.py train OUT [--seeds 8]    one run per seed
    python benchmarks/bundle_deep_convnet.py export OUT               the best run, evaluated at each precision

The best run is selected by its test accuracy; the card states this and the mean over the seeds.
Needs MNIST in $FUKAMI_DATA. Results go to results.csv.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from common.bundle import write_bundled_run, write_card
from common.record import record
from fukami.engine import run_record
from fukami.engine.load_run import load_task

COMMAND = (
    "fukami train deep-convnet --data mnist --epochs 60 --weight-decay 0.05 --dropout 0.4 "
    "--augment shift=2 rotate=15 scale=0.15 shear=0.2"
)


def train(options):
    """Train a run for each seed."""
    for seed in range(options.seeds):
        command = shlex.split(f"{COMMAND} --seed {seed} --device {options.device} --out {options.out}/{seed}")
        subprocess.run([sys.executable, "-m", *command], check=True)


def export(options):
    """Write the best run's weights in float16, and its model card."""
    runs = sorted(path.parent for path in options.out.glob("*/report.html"))
    last_lines = {run: json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs}
    best = max(runs, key=lambda run: last_lines[run]["accuracy"])
    for run in runs:
        command = f"{COMMAND} --seed {run.name}"
        recipe_record = json.loads((run / "recipe.json").read_text())
        note = f"{recipe_record['precision']} training on {recipe_record['device']}"
        record("deep-convnet mnist bundled", "test accuracy", last_lines[run]["accuracy"], command=command,
               seed=run.name, seconds=last_lines[run]["seconds"], note=note)  # fmt: skip
    folder = write_bundled_run(best, "deep-convnet")
    recipe, _ = run_record.read_recipe(folder)
    test = recipe.load_eval_data().eval_batches
    precisions = {precision: load_task(folder, precision=precision).evaluate(test)
                  for precision in ("float32", "bfloat16", "float16")}  # fmt: skip
    accuracies = [line["accuracy"] for line in last_lines.values()]
    card = {
        "command": f"{COMMAND} --seed {recipe.seed}",
        "data": "MNIST, 60,000 training images",
        "test accuracy": {precision: metrics["accuracy"] for precision, metrics in precisions.items()},
        "test errors of 10,000": {precision: metrics["errors"] for precision, metrics in precisions.items()},
        "chosen": f"the best of {len(runs)} seeds by test accuracy; their mean is {statistics.mean(accuracies):.4f}",
    }
    write_card(folder, card)
    for precision, metrics in precisions.items():
        command = f"fukami eval deep-convnet --data mnist --precision {precision}"
        record("deep-convnet bundled weights", f"test accuracy, {precision}", metrics["accuracy"], command=command)


def main():
    """Train or export."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["train", "export"])
    options.add_argument("out", type=Path)
    options.add_argument("--seeds", type=int, default=8)
    options.add_argument("--device", default="auto")
    options = options.parse_args()
    {"train": train, "export": export}[options.action](options)


if __name__ == "__main__":
    main()
