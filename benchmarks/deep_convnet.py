"""DeepConvNet on MNIST: accuracy over seeds, and time against the loop that most people write.

    python benchmarks/deep_convnet.py default --seeds 0 1 2 3 4   the recipe's default through the command line
    python benchmarks/deep_convnet.py summary                     mean, standard deviation and worst of these
    python benchmarks/deep_convnet.py race --seeds 0              seconds from process start to 99.35 %, both in turn
    python benchmarks/deep_convnet.py dropout --seeds 0           what dropping out the scores, too, costs
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

from common.processes import Apart
from common.record import FILE, record

DEFAULT = "deep-convnet mnist default"
GOAL = 0.9935  # 65 errors of 10,000: the note's result
LIGHT = ("shift=1", "rotate=5", "scale=0.05", "shear=0.05")  # augmentation where time is short
# the quickest way to the goal that we found: large steps on small batches, little augmentation
SPRINT = f"fukami train deep-convnet --data mnist --epochs 3 --batch-size 50 --lr 0.003 --augment {' '.join(LIGHT)}"
PLAIN = "python benchmarks/common/plain_loop.py"


def run(command):
    """Run a command of ours or a script; returns what it printed, line by line, and its seconds."""
    program, *words = shlex.split(command)
    began = time.monotonic()
    start = [sys.executable, "-m", "fukami"] if program == "fukami" else [sys.executable]
    done = subprocess.run([*start, *words], stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()], time.monotonic() - began


def default(options):
    """The recipe's default, a run for each seed."""
    for seed in options.seeds:
        command = f"fukami train deep-convnet --data mnist --seed {seed} --device {options.device}"
        with tempfile.TemporaryDirectory() as out:
            (result,), seconds = run(f"{command} --out {out}/run")
        record(DEFAULT, "test accuracy", result["accuracy"], command=command, seed=seed, seconds=seconds)


def summary(options):
    """Mean, standard deviation and worst of the default's seeds on record."""
    with FILE.open() as file:
        rows = [row for row in csv.DictReader(file) if (row["benchmark"], row["metric"]) == (DEFAULT, "test accuracy")]
    accuracies = [float(row["value"]) for row in rows]
    found = {"mean": mean(accuracies), "standard deviation": stdev(accuracies), "worst": min(accuracies)}
    for metric, value in found.items():
        seeds = " ".join(row["seed"] for row in rows)
        record(
            DEFAULT,
            f"{metric} of test accuracy",
            value,
            command="python benchmarks/deep_convnet.py summary",
            seed=seeds,
        )


def sprint(seed):
    """Seconds from the start of the process to the first evaluation at the goal, and the last accuracy."""
    command = f"{SPRINT} --seed {seed}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        began, reached = time.monotonic(), None
        process = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(command), "--out", out], stdout=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            time.sleep(0.1)
            log = out / "metrics.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            good = [line for line in lines if '"eval"' in line and json.loads(line)["accuracy"] >= GOAL]
            if good and reached is None:
                reached = time.monotonic() - began
        return command, reached, json.loads(process.stdout.read())["accuracy"]


def race(options):
    """Ours and the plain loop in turn, seed by seed."""
    ratios = []
    for seed in options.seeds:
        command, ours, accuracy = sprint(seed)
        record(
            "deep-convnet mnist sprint",
            "test accuracy",
            accuracy,
            command=command,
            seed=seed,
            seconds=ours or "not reached",
        )
        plain = f"{PLAIN} --epochs {options.epochs} --until {GOAL} --seed {seed}"
        lines, seconds = run(plain)
        best = max(line["accuracy"] for line in lines)
        note = f"{len(lines)} epochs" + ("" if best >= GOAL else f"; stopped there, {GOAL:.2%} not reached")
        record(
            "deep-convnet mnist plain loop",
            "best test accuracy",
            best,
            command=plain,
            seed=seed,
            seconds=seconds,
            note=note,
        )
        if ours:
            ratios.append(seconds / ours)
            bound = "" if best >= GOAL else "at least: the plain loop was stopped before it got there"
            record(
                "deep-convnet mnist race",
                "plain seconds / ours to 99.35 %",
                ratios[-1],
                command="python benchmarks/deep_convnet.py race",
                seed=seed,
                note=bound,
            )


def dropout(options):
    """The race's run with and without the note's dropout of the scores."""
    for seed in options.seeds:
        for recipe in ("deep-convnet", "benchmarks/common/dropped_scores.py"):
            command = f"{SPRINT.replace('deep-convnet', recipe)} --seed {seed} --device {options.device}"
            with tempfile.TemporaryDirectory() as out:
                (result,), seconds = run(f"{command} --out {out}/run")
            record("deep-convnet mnist dropped scores", "test accuracy", result["accuracy"], command=command, seed=seed,
                   seconds=seconds)  # fmt: skip


def goal(options):
    """Seconds to 99.35 %: in a new process (cold), once more in it (warm), and of the plain loop, each in turn."""
    command = f"python benchmarks/deep_convnet.py {shlex.join(sys.argv[1:])}"
    for seed in options.seeds:
        began, process = time.monotonic(), Apart(train_to_goal, options, seed)
        ours = {"cold": process.ask(began), "warm": process.ask(time.monotonic())}
        process.ask(0)
        for kind, (seconds, accuracy, whole) in ours.items():
            note = f"{shlex.join(goal_words(options, seed))}; {accuracy:.2%} at the end; "
            note += f"{whole:.2f} s from the start of {'the process' if kind == 'cold' else 'the second training'}"
            metric = f"seconds in the loop to {options.goal:.2%}, {kind}"
            if seconds is None:
                metric, seconds = f"test accuracy, {kind}, below {options.goal:.2%}", accuracy
            record("deep-convnet mnist goal", metric, seconds, command=command, seed=seed, note=note)
        if options.epochs:
            plain = [*PLAIN.split(), "--epochs", str(options.epochs), "--until", str(options.goal)]
            lines, _ = run(shlex.join([*plain, "--data", options.data, "--seed", str(seed)]))
            beside_plain(options, ours, lines, command, seed)


def beside_plain(options, ours, lines, command, seed):
    """Record how many times longer the plain loop takes, of which the lines are."""
    best, theirs = max(line["accuracy"] for line in lines), lines[-1]["seconds_in_loop"]
    at_least = "" if best >= options.goal else f"; at least, since the plain loop reached {best:.2%} at most"
    for kind, (seconds, _, _) in ours.items():
        if seconds is not None:
            note = f"{theirs:.2f} and {seconds:.2f} s in the loop, {len(lines)} and {options.passes} epochs{at_least}"
            record("deep-convnet mnist goal", f"plain loop's seconds over ours, {kind}", theirs / seconds,
                   command=command, seed=seed, note=note)  # fmt: skip


def goal_words(options, seed):
    """The command line of the quickest training on a GPU."""
    words = f"fukami train deep-convnet --data {options.data} --epochs {options.passes} --batch-size {options.batch}"
    return [*f"{words} --lr {options.lr} --augment".split(), *LIGHT, "--seed", str(seed)]


def train_to_goal(options, seed, pipe):
    """Train whenever asked: seconds in the loop to the goal, the last accuracy, and seconds since the moment given."""
    import fukami

    recipe = fukami.get_recipe("deep-convnet")(
        data=options.data, epochs=options.passes, batch_size=options.batch, lr=options.lr, augment=LIGHT, seed=seed
    )
    while began := pipe.recv():
        with tempfile.TemporaryDirectory() as out:
            accuracy = fukami.train(recipe, f"{out}/run")["accuracy"]
            whole = time.monotonic() - began
            lines = map(json.loads, Path(out, "run", "metrics.jsonl").read_text().splitlines())
            good = [line for line in lines if line["phase"] == "eval" and line["accuracy"] >= options.goal]
        pipe.send((good[0]["seconds"] if good else None, accuracy, whole))
    pipe.send(None)


def main():
    """Choose the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("benchmark", choices=["default", "summary", "race", "dropout", "goal"])
    options.add_argument("--device", default="auto")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--epochs", type=int, default=20, help="of the plain loop, at most; 0: goal without it")
    options.add_argument("--goal", type=float, default=GOAL)
    options.add_argument("--data", default="mnist", choices=["mnist", "digits"], help="of goal; digits for a trial")
    options.add_argument("--passes", type=int, default=4, help="epochs of ours in goal")
    options.add_argument("--batch", type=int, default=250, help="of goal")
    options.add_argument("--lr", type=float, default=0.008, help="of goal")
    options = options.parse_args()
    benchmarks = {"default": default, "summary": summary, "race": race, "dropout": dropout, "goal": goal}
    benchmarks[options.benchmark](options)


if __name__ == "__main__":
    main()
