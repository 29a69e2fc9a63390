"""Training rate compared with other training loops; and the time from the shell to the first step.

    python benchmarks/step_times.py deep-convnet|deep-convnet-augmented|resnet20|resnet56|resnet50 [--compile] [--trial]
    python benchmarks/step_times.py first-step [--rounds 5]

Ours is `fukami train` at its own precision. The others are in `benchmarks/peers/`: the plain eager loop, the step of
torchvision's reference script, Lightning and Accelerate, each in float32 and in the mixed precision that it recommends.
Those that are not installed are skipped: `pip install --group bench`.

Each runs in its own process, in turn. All train the same network (except ResNet-50, which is torchvision's in the
others) with the same optimizer and batch size, and torch's default number of threads. Speeds are measured in windows
with the number of steps of `metrics.jsonl`; the first tenth is warm-up. The median of the rest is the speed of a
process, and the median over the rounds that of a loop. The result is the ratio of ours to theirs.

- The data have the usual form for the users of each loop: see `peers/work.py`. DeepConvNet's MNIST is not augmented; in
  the workload deep-convnet-augmented it is rotated, shifted, scaled and sheared, as the recipe does by default.
  ResNet-20 and ResNet-56 have CIFAR-10 padded, cropped and flipped. The others augment in worker processes, one per
  processor. ResNet-50 has random images on the device, entire batches for the others, so that only the step is timed.
- The others do not log, evaluate or save while timed, except torchvision's, which fetches its metrics at each step.
  Ours logs, and saves checkpoints for resuming.
- Nothing is compiled without --compile; with it all are, or only ours with --compile ours. On a GPU, torch's default
  uses TF32 in the convolutions of the others, where ours in float32 does not.

The first step: from the start of the process to the end of the first optimizer step of `fukami train deep-convnet
--data mnist`, compared with `common/plain_loop.py`; on a GPU also with --compile and an empty compilation cache.

Results go to results.csv, except with --trial, which is short.
"""

import argparse
import csv
import importlib.util
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.record import record
from fukami.data import labeled_images
from fukami.engine.train import MAX_LOG_INTERVAL
from fukami.image.transform import SquareTransform

HERE = Path(__file__).parent
REFERENCE_LOOPS = {  # file in peers/, and required package
    "plain": ("plain.py", "torch"),
    "torchvision reference": ("reference.py", "torchvision"),
    "lightning": ("lightning_trainer.py", "lightning"),
    "accelerate": ("accelerate_loop.py", "accelerate"),
}
CUDA = torch.cuda.is_available()
BATCHES_PER_EPOCH = 50  # of random images
TIMEOUT = 3600  # seconds per process


@dataclass(frozen=True)
class Workload:
    """Arguments of `fukami train` without the dataset, the dataset, and the recipe's batch size."""

    arguments: tuple[str, ...]
    data: str
    batch_size: int


WORKLOADS = {
    "deep-convnet": Workload(("deep-convnet", "--augment"), "mnist", 100),
    "deep-convnet-augmented": Workload(("deep-convnet",), "mnist", 100),
    "resnet20": Workload(("resnet20",), "cifar10", 128),
    "resnet56": Workload(("resnet56",), "cifar10", 128),
    "resnet50": Workload((str(HERE / "common" / "random_images.py"), "--lr", "0.01"), "", 256 if CUDA else 16),
}


def compute_median(speeds):
    """Compute the median without the first tenth."""
    return statistics.median(speeds[max(1, len(speeds) // 10) :])


def save_images(options, folder):
    """Save the images and targets of a workload for the others, and return the number of images."""
    color = not options.workload.startswith("deep-convnet")
    (train, *_) = labeled_images.load_labeled_images(options.data, 0.0)
    decoded = train.decode(SquareTransform(channels=3 if color else 1, size=32 if color else 28))
    images = decoded.images.permute(0, 2, 3, 1) if color else decoded.images[:, 0]
    np.save(folder / "images.npy", np.ascontiguousarray(images))
    np.save(folder / "targets.npy", decoded.targets)
    return len(images)


def write_repeated(options, folder):
    """Write a CSV file with each training image ``--repeat`` times, so that epochs of a small dataset are longer."""
    train, _, _, labels = labeled_images.load_labeled_images(options.data, 0.0)
    rows = [(path, labels[target]) for path, target in zip(train.items, train.targets, strict=True)]
    with (folder / "repeated.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows * options.repeat])
    return str(folder / "repeated.csv")


def run_ours(options, workload, folder):
    """Train until enough speeds are logged in metrics.jsonl; return them and the settings."""
    command = [sys.executable, "-m", "fukami", "train", *workload.arguments, "--batch-size", str(options.batch_size)]
    command += ["--data", options.data, "--val-fraction", "0"] if options.data else []
    if options.workload == "resnet50":
        command += ["--size", str(options.size), "--num-images", str(BATCHES_PER_EPOCH * options.batch_size)]
    command += ["--precision", options.precision, *["--compile"] * bool(options.compile), "--out", str(folder / "run")]
    log = folder / "run" / "metrics.jsonl"
    with (folder / "messages").open("w+") as messages:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages)
        try:
            while process.poll() is None and len(read_speeds(log)) < options.windows:
                time.sleep(0.2)
            if process.poll() is None:
                process.terminate()  # writes a checkpoint first
            process.wait(TIMEOUT)
        finally:
            process.kill()
        messages.seek(0)
        if process.returncode not in (0, 128 + signal.SIGTERM):
            raise RuntimeError(messages.read())
    recipe = json.loads((folder / "run" / "recipe.json").read_text())
    return read_speeds(log)[: options.windows], {"precision": recipe["precision"], "threads": recipe["threads"]}


def read_speeds(path):
    """Read the speeds logged so far."""
    complete_lines = path.read_text().rpartition("\n")[0] if path.exists() else ""
    lines = map(json.loads, filter(None, complete_lines.split("\n")))
    return [line["images_per_second"] for line in lines if line["phase"] == "train"]


def run_reference(options, file, mixed, data):
    """Run another loop; return its speeds and settings."""
    command = [sys.executable, str(HERE / "peers" / file), options.workload, "--data", str(data)]
    for flag in ("batch_size", "size", "steps", "windows", "workers"):
        command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    command += ["--mixed"] * mixed + ["--compile"] * (options.compile == "all")
    process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if process.returncode:
        raise RuntimeError(process.stderr)
    result = json.loads(process.stdout.splitlines()[-1])
    return result.pop("speeds"), result


def filter_installed(names):
    """Yield the installed loops, and print a message for the others."""
    for name in names:
        if importlib.util.find_spec(REFERENCE_LOOPS[name][1]) is None:
            print(f"{name} is not installed and is skipped; pip install --group bench", file=sys.stderr)
        else:
            yield name


def compare(options):
    """Measure all loops in turn, print a table, and record a row for each of the others."""
    workload, command = WORKLOADS[options.workload], shlex.join(["python", "benchmarks/step_times.py", *sys.argv[1:]])
    options.batch_size, options.data = (
        options.batch_size or workload.batch_size,
        workload.data and (options.data or workload.data),
    )
    loops = [
        ("ours", None),
        *((name, kind == "mixed") for name in filter_installed(options.only) for kind in options.theirs),
    ]
    speeds_by_loop, settings = {}, {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        if options.repeat > 1:
            options.data = write_repeated(options, data)
        num_images = save_images(options, data) if workload.data else BATCHES_PER_EPOCH * options.batch_size
        # as in fukami's training loop
        options.steps = max(1, min(num_images // options.batch_size // 10, MAX_LOG_INTERVAL))
        for round_index in range(options.rounds):
            for loop, mixed in loops:
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        if loop == "ours":
                            speeds, loop_settings = run_ours(options, workload, Path(folder))
                        else:
                            speeds, loop_settings = run_reference(options, REFERENCE_LOOPS[loop][0], mixed, data)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    if loop == "ours":
                        raise
                    print(f"{loop} failed and is skipped:\n{error}", file=sys.stderr)
                    continue
                speeds_by_loop.setdefault((loop, mixed), []).append(compute_median(speeds))
                settings[loop, mixed] = loop_settings
                print(
                    f"round {round_index + 1}: {loop} {format_settings(loop_settings)}: {compute_median(speeds):.0f}/s",
                    file=sys.stderr,
                    flush=True,
                )
    print_table(options, speeds_by_loop, settings)
    if not options.trial:
        record_rows(options, speeds_by_loop, settings, command)


def format_settings(settings):
    """Format settings as text."""
    return ", ".join(value if name == "precision" else f"{name} {value}" for name, value in settings.items())


def print_table(options, speeds_by_loop, settings):
    """Print the table of the loops."""
    print(f"{options.workload}, batches of {options.batch_size}{', compiled' * bool(options.compile)}")
    print(f"{'loop':<22}  {'images/s':>10}  {'ours/theirs':>11}  settings")
    our_speed = statistics.median(speeds_by_loop["ours", None])
    for loop, speeds in speeds_by_loop.items():
        speed = statistics.median(speeds)
        print(f"{loop[0]:<22}  {speed:>10,.0f}  {our_speed / speed:>11.2f}  {format_settings(settings[loop])}")


def record_rows(options, speeds_by_loop, settings, command):
    """Record the results."""
    our_speed = statistics.median(speeds_by_loop["ours", None])
    our_settings = format_settings(settings["ours", None]) + ", compiled" * bool(options.compile)
    record(f"step times {options.workload}", f"images per second, {our_settings}", our_speed, command=command, seed=0,
           note=f"batches of {options.batch_size}")  # fmt: skip
    for loop, speeds in speeds_by_loop.items():
        if loop[0] != "ours":
            reference_kind = ("mixed" if loop[1] else "float32") + ", compiled" * (options.compile == "all")
            speed = statistics.median(speeds)
            note = (
                f"ours {our_speed:.0f}/s ({format_settings(settings['ours', None])}), "
                f"theirs {speed:.0f}/s ({format_settings(settings[loop])}); "
                f"batches of {options.batch_size}, "
                f"{len(speeds)} times {options.windows} windows of {options.steps} steps"
            )
            our_name = "ours" + ", compiled," * (options.compile == "ours")
            metric = f"images per second, {our_name} / {loop[0]} {reference_kind}"
            record(f"step times {options.workload}", metric, our_speed / speed, command=command, seed=0, note=note)


def first_step(options):
    """Measure the seconds to the first step of ours and of the plain loop in turn."""
    program = ("fukami", "train", "deep-convnet", "--data", "mnist")
    programs = {"ours": program, "plain": (str(HERE / "common" / "plain_loop.py"),)}
    if CUDA:
        programs["ours compiled"] = (*program, "--compile")
    seconds_by_program = {program_name: [] for program_name in programs}
    for _ in range(options.rounds):
        for program_name, command_line in programs.items():
            with tempfile.TemporaryDirectory() as folder:
                out = () if program_name == "plain" else ("--out", f"{folder}/run")
                command_line = (sys.executable, str(HERE / "peers" / "first_step.py"), *command_line, *out)
                environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
                start = time.monotonic()
                process = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
                if process.returncode:
                    raise RuntimeError(process.stderr)
                seconds_by_program[program_name].append(float(process.stdout.splitlines()[-1]) - start)
    medians = {program_name: statistics.median(seconds) for program_name, seconds in seconds_by_program.items()}
    for program_name, seconds in seconds_by_program.items():
        print(f"{program_name:<14}  {medians[program_name]:6.2f} s  ({', '.join(f'{value:.2f}' for value in seconds)})")
    if options.trial:
        return
    command = shlex.join(["python", "benchmarks/step_times.py", *sys.argv[1:]])
    note = "; ".join(
        f"{program_name} {', '.join(f'{value:.2f}' for value in seconds)} s"
        for program_name, seconds in seconds_by_program.items()
    )
    rows = {
        "seconds to the first step": medians["ours"],
        "seconds to the first step, ours / plain loop": medians["ours"] / medians["plain"],
    }
    if CUDA:
        rows["seconds that --compile adds to the first step"] = medians["ours compiled"] - medians["ours"]
    for metric, value in rows.items():
        record("first step deep-convnet mnist", metric, value, command=command, seed=0, note=note)


def main():
    """Run the selected benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("workload", choices=[*WORKLOADS, "first-step"])
    options.add_argument("--rounds", type=int, help="Number of rounds: by default 3; 5 for first-step.")
    options.add_argument("--windows", type=int, default=30 if CUDA else 10, help="Windows per round.")
    options.add_argument(
        "--batch-size", type=int, help="Batch size: by default the recipe's; for ResNet-50 256 on a GPU, 16 on a CPU."
    )
    options.add_argument("--data", help="Dataset instead of the recipe's.")
    options.add_argument("--repeat", type=int, default=1, help="Repetitions of each image, for a small dataset.")
    options.add_argument("--size", type=int, default=224, help="Image size of ResNet-50.")
    options.add_argument("--precision", default="auto", help="Precision of ours.")
    options.add_argument("--theirs", nargs="+", choices=["float32", "mixed"], default=["float32", "mixed"])
    options.add_argument(
        "--workers", type=int, default=min(16, os.cpu_count()), help="Worker processes of the other loops."
    )
    options.add_argument(
        "--only", nargs="+", choices=REFERENCE_LOOPS, default=list(REFERENCE_LOOPS), help="Other loops to measure."
    )
    options.add_argument("--compile", nargs="?", const="all", default="", choices=["all", "ours"])
    options.add_argument("--trial", action="store_true", help="Run one short round and record nothing.")
    options = options.parse_args()
    options.rounds = options.rounds or (5 if options.workload == "first-step" else 3)
    if options.trial:
        options.rounds, options.windows = 1, 2
    if options.workload == "first-step":
        first_step(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
