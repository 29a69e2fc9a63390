"""DeepConvNet on MNIST: accuracy over seeds, and training time compared with a plain loop.

    python benchmarks/deep_convnet.py default --seeds 0 1 2 3 4   the default recipe from the command line
    python benchmarks/deep_convnet.py summary                     mean, standard deviation and worst of these
    python benchmarks/deep_convnet.py race --seeds 0              seconds from process start to 99.35 %, both in turn
    python benchmarks/deep_convnet.py dropout --seeds 0           the effect of dropout on the scores
    python benchmarks/deep_convnet.py goal --seeds 0 1 2          seconds in the loop to 99.35 %, for a GPU

Needs MNIST in $FUKAMI_DATA. Results go to results.csv.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

from common.processes import Worker
from common.record import FILE, record

DEFAULT = "deep-convnet mnist default"
GOAL = 0.9935  # 65 errors of 10,000: the note's result
LIGHT = ("shift=1", "rotate=5", "scale=0.05", "shear=0.05")  # augmentation of the short training runs
# our fastest training run to the goal: high learning rate, small batches, little augmentation
SPRINT = f"fukami train deep-convnet --data mnist --epochs 3 --batch-size 50 --lr 0.003 --augment {' '.join(LIGHT)}"
ROOT = Path(__file__).parents[1]
TESTED = "benchmarks/common/tested_epochs.py"  # the recipe of the runs to an accuracy, in ROOT
PLAIN = "python benchmarks/common/plain_loop.py"


def run_script(command):
    """Run a fukami command or a script; return the JSON objects that it printed, and its seconds."""
    program, *arguments = shlex.split(command)
    start = time.monotonic()
    interpreter = [sys.executable, "-m", "fukami"] if program == "fukami" else [sys.executable]
    process = subprocess.run([*interpreter, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in process.stdout.splitlines()], time.monotonic() - start


def train_default(options):
    """Train the default recipe with each seed."""
    for seed in options.seeds:
        command = f"fukami train deep-convnet --data mnist --seed {seed} --device {options.device}"
        with tempfile.TemporaryDirectory() as out:
            (result,), seconds = run_script(f"{command} --out {out}/run")
        record(DEFAULT, "test accuracy", result["accuracy"], command=command, seed=seed, seconds=seconds,
               device=options.device)  # fmt: skip


def summarize_default(options):
    """Record mean, standard deviation and worst accuracy of the default recipe: the seeds of the newest commit."""
    with FILE.open() as file:
        rows = [row for row in csv.DictReader(file) if (row["benchmark"], row["metric"]) == (DEFAULT, "test accuracy")]
    newest = rows[-1]["commit"], rows[-1]["hardware"]
    rows = [*{row["seed"]: row for row in rows if (row["commit"], row["hardware"]) == newest}.values()]
    accuracies = [float(row["value"]) for row in rows]
    statistics = {"mean": mean(accuracies), "standard deviation": stdev(accuracies), "worst": min(accuracies)}
    for metric, value in statistics.items():
        seeds = " ".join(row["seed"] for row in rows)
        record(
            DEFAULT,
            f"{metric} of test accuracy",
            value,
            command="python benchmarks/deep_convnet.py summary",
            seed=seeds,
        )


def train_sprint(seed):
    """Train in float32, as the plain loop; return the command, the seconds to the goal, and the best accuracy."""
    command = f"{SPRINT} --precision float32 --seed {seed}".replace("deep-convnet", TESTED, 1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start, reached = time.monotonic(), None
        process = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(command), "--out", out], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            time.sleep(0.1)
            log = out / "metrics.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            lines_at_goal = [line for line in lines if '"eval"' in line and json.loads(line)["accuracy"] >= GOAL]
            if lines_at_goal and reached is None:
                reached = time.monotonic() - start
        return command, reached, json.loads(process.stdout.read())["accuracy"]


def race_plain_loop(options):
    """Train ours and the plain loop in turn with each seed."""
    ratios = []
    for seed in options.seeds:
        command, our_seconds, accuracy = train_sprint(seed)
        record(
            "deep-convnet mnist sprint",
            "best test accuracy",
            accuracy,
            command=command,
            seed=seed,
            seconds=our_seconds or "not reached",
        )
        plain_command = f"{PLAIN} --epochs {options.plain_epochs} --until {GOAL} --seed {seed}"
        lines, seconds = run_script(plain_command)
        best = max(line["accuracy"] for line in lines)
        note = f"{len(lines)} epochs" + ("" if best >= GOAL else f"; stopped, {GOAL:.2%} not reached")
        record(
            "deep-convnet mnist plain loop",
            "best test accuracy",
            best,
            command=plain_command,
            seed=seed,
            seconds=seconds,
            note=note,
        )
        if our_seconds:
            ratios.append(seconds / our_seconds)
            note_of_ratio = "" if best >= GOAL else "lower bound: the plain loop was stopped before the goal"
            record(
                "deep-convnet mnist race",
                "plain seconds / ours to 99.35 %",
                ratios[-1],
                command=f"python benchmarks/deep_convnet.py race --seeds {seed} --plain-epochs {options.plain_epochs}",
                seed=seed,
                note=note_of_ratio,
            )


def compare_dropout(options):
    """Train the race's run, in the default precision, with and without the note's dropout of the scores."""
    for seed in options.seeds:
        for recipe in ("deep-convnet", "benchmarks/common/dropped_scores.py"):
            command = f"{SPRINT.replace('deep-convnet', recipe)} --seed {seed} --device {options.device}"
            with tempfile.TemporaryDirectory() as out:
                (result,), seconds = run_script(f"{command} --out {out}/run")
            record("deep-convnet mnist dropped scores", "test accuracy", result["accuracy"], command=command, seed=seed,
                   seconds=seconds)  # fmt: skip


def measure_time_to_goal(options):
    """Measure the seconds to 99.35 % in a new process (cold), once more in it (warm), and of the plain loop."""
    command = f"python benchmarks/deep_convnet.py {shlex.join(sys.argv[1:])}"
    for seed in options.seeds:
        start, worker = time.monotonic(), Worker(train_to_goal, options, seed)
        ours = {"cold": worker.request(start), "warm": worker.request(time.monotonic())}
        worker.request(0)
        for kind, (seconds, accuracy, total_seconds) in ours.items():
            note = f"{shlex.join(build_goal_command(options, seed))}; {accuracy:.2%} in the best epoch; "
            note += (
                f"{total_seconds:.2f} s from the start of the {'process' if kind == 'cold' else 'second training run'}"
            )
            metric = f"seconds in the loop to {options.goal:.2%}, {kind}"
            if seconds is None:
                metric, seconds = f"best test accuracy, {kind}, below {options.goal:.2%}", accuracy
            record("deep-convnet mnist goal", metric, seconds, command=command, seed=seed, note=note)
        if options.plain_epochs:
            plain = [*PLAIN.split(), "--epochs", str(options.plain_epochs), "--until", str(options.goal)]
            lines, _ = run_script(shlex.join([*plain, "--data", options.data, "--seed", str(seed)]))
            record_plain_ratio(options, ours, lines, command, seed)


def record_plain_ratio(options, ours, lines, command, seed):
    """Record the ratio of the plain loop's seconds, from its printed lines, to ours, both in a new process."""
    best, plain_seconds = max(line["accuracy"] for line in lines), lines[-1]["seconds_in_loop"]
    bound = "" if best >= options.goal else f"; lower bound, since the plain loop only reached {best:.2%}"
    seconds, _, _ = ours["cold"]
    if seconds is not None:
        note = f"{plain_seconds:.2f} and {seconds:.2f} s in the loop, {len(lines)} and {options.epochs} epochs{bound}"
        record("deep-convnet mnist goal", "relative time of the plain loop", plain_seconds / seconds,
               command=command, seed=seed, note=note)  # fmt: skip


def build_goal_command(options, seed):
    """Build the command line of our fastest training run on a GPU."""
    command = f"fukami train {TESTED} --data {options.data} --epochs {options.epochs}"
    command = f"{command} --batch-size {options.batch_size} --lr {options.lr} --augment"
    return [*command.split(), *LIGHT, "--seed", str(seed)]


def train_to_goal(options, seed, pipe):
    """Train in a worker at each request, which is a start time.

    Sends the seconds in the loop to the goal, the best accuracy, and the seconds since the start time.
    """
    import fukami

    recipe = fukami.get_recipe(str(ROOT / TESTED))(
        data=options.data, epochs=options.epochs, batch_size=options.batch_size, lr=options.lr, augment=LIGHT, seed=seed
    )
    while start := pipe.recv():
        with tempfile.TemporaryDirectory() as out:
            accuracy = fukami.train(recipe, f"{out}/run").metrics["accuracy"]
            total_seconds = time.monotonic() - start
            lines = map(json.loads, Path(out, "run", "metrics.jsonl").read_text().splitlines())
            at_goal = [line for line in lines if line["phase"] == "eval" and line["accuracy"] >= options.goal]
        pipe.send((at_goal[0]["seconds"] if at_goal else None, accuracy, total_seconds))
    pipe.send(None)


def main():
    """Run the selected benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("benchmark", choices=["default", "summary", "race", "dropout", "goal"])
    options.add_argument("--device", default="auto")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument(
        "--plain-epochs", type=int, default=20, help="Maximum epochs of the plain loop; 0: goal without it."
    )
    options.add_argument("--goal", type=float, default=GOAL)
    options.add_argument(
        "--data", default="mnist", choices=["mnist", "digits"], help="Dataset of goal; digits for a test."
    )
    options.add_argument("--epochs", type=int, default=4, help="Epochs of ours in goal.")
    options.add_argument("--batch-size", type=int, default=250, help="Batch size of goal.")
    options.add_argument("--lr", type=float, default=0.008, help="Learning rate of goal.")
    options = options.parse_args()
    benchmarks = {
        "default": train_default,
        "summary": summarize_default,
        "race": race_plain_loop,
        "dropout": compare_dropout,
        "goal": measure_time_to_goal,
    }
    benchmarks[options.benchmark](options)


if __name__ == "__main__":
    main()
