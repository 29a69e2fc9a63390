"""The time of a training step, ours beside that of other loops; and the time from the shell to the first step.

    python benchmarks/step_times.py deep-convnet|deep-convnet-augmented|resnet20|resnet56|resnet50 [--compile] [--trial]
    python benchmarks/step_times.py first-step [--rounds 5]

Ours is `fukami train` as a user runs it, at its own precision. The others lie in `benchmarks/peers/`: the plain eager
loop, the step of torchvision's reference script, Lightning and Accelerate, each in float32 and in the mixed precision
that it recommends. Of them, those that are not installed are left out: `pip install --group bench`.

Each is a process of its own, and they take turns. All train the same network (but ResNet-50, which is torchvision's in
the others) with the same optimizer and batch, on as many threads as torch takes by default. Of the speeds in windows
of so many steps as `metrics.jsonl` has, the first tenth is warming up; the median of the rest is a process's, the
median over the rounds a loop's. What counts is the ratio, ours over theirs.

- The data are in the form that each loop's users would have them in: see `peers/work.py`. DeepConvNet sees MNIST as it
  is; in the load deep-convnet-augmented it is turned, shifted, scaled and slanted, as the recipe does by default, and
  ResNet-20 and ResNet-56 see CIFAR-10 padded, cropped and mirrored. The others do that in worker processes, as many as
  there are processors. ResNet-50 sees random images on the device, whole batches for the others, so that nothing but
  the step is timed.
- None of the others logs, judges or saves while it is timed, but for torchvision's, which fetches its metrics at each
  step. Ours logs, and saves what a resumed run needs.
- Nothing is compiled, unless with --compile; then all are, or ours alone with --compile ours. On a GPU, torch's default
  lets the convolutions of the others compute in TF32 where ours in float32 would not.

The first step: from the start of the process to the end of the first optimizer step of
`fukami train deep-convnet --data mnist`, beside `common/plain_loop.py`; on a GPU also with
--compile, whose cache is empty.

Results go to results.csv; with --trial, which is short, they do not.
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
from fukami.data import labelled_images
from fukami.engine.train import MAX_LOG_INTERVAL
from fukami.image.transform import SquareTransform

HERE = Path(__file__).parent
PEERS = {  # the file in peers/, and the package that it takes
    "plain": ("plain.py", "torch"),
    "torchvision reference": ("reference.py", "torchvision"),
    "lightning": ("lightning_trainer.py", "lightning"),
    "accelerate": ("accelerate_loop.py", "accelerate"),
}
CUDA = torch.cuda.is_available()
PASS = 50  # batches of random images in a pass
LONGEST = 3600  # seconds that a process may take


@dataclass(frozen=True)
class Load:
    """What is trained: the words after `fukami train` but the data set, the data set and the batch of the recipe."""

    words: tuple[str, ...]
    data: str
    batch: int


LOADS = {
    "deep-convnet": Load(("deep-convnet", "--augment"), "mnist", 100),
    "deep-convnet-augmented": Load(("deep-convnet",), "mnist", 100),
    "resnet20": Load(("resnet20",), "cifar10", 128),
    "resnet56": Load(("resnet56",), "cifar10", 128),
    "resnet50": Load((str(HERE / "common" / "random_images.py"), "--lr", "0.01"), "", 256 if CUDA else 16),
}


def typical(speeds):
    """The median, once the first tenth is over."""
    return statistics.median(speeds[max(1, len(speeds) // 10) :])


def keep(options, folder):
    """The images of a load for the others, in two files; returns how many there are."""
    colour = not options.load.startswith("deep-convnet")
    (train, *_) = labelled_images.load_labelled_images(options.data, 0.2)
    found = train.decode(SquareTransform(channels=3 if colour else 1, size=32 if colour else 28))
    images = found.images.permute(0, 2, 3, 1) if colour else found.images[:, 0]
    np.save(folder / "images.npy", np.ascontiguousarray(images))
    np.save(folder / "targets.npy", found.targets)
    return len(images)


def write_repeated(options, folder):
    """List each training image of the data set ``--repeat`` times in a CSV file, so that few make a usual epoch."""
    train, _, labels = labelled_images.load_labelled_images(options.data, 0.2)
    rows = [(path, labels[target]) for path, target in zip(train.items, train.targets, strict=True)]
    with (folder / "repeated.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows * options.repeat])
    return str(folder / "repeated.csv")


def ours(options, load, folder):
    """The speeds in metrics.jsonl, and the settings; stopped as soon as there are enough."""
    words = [sys.executable, "-m", "fukami", "train", *load.words, "--batch-size", str(options.batch)]
    words += ["--data", options.data] if options.data else []
    if options.load == "resnet50":
        words += ["--size", str(options.size), "--images", str(PASS * options.batch)]
    words += ["--precision", options.precision, *["--compile"] * bool(options.compile), "--out", str(folder / "run")]
    lines = folder / "run" / "metrics.jsonl"
    with (folder / "messages").open("w+") as messages:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=messages)
        try:
            while process.poll() is None and len(trained(lines)) < options.windows:
                time.sleep(0.2)
            if process.poll() is None:
                process.terminate()  # it saves first
            process.wait(LONGEST)
        finally:
            process.kill()
        messages.seek(0)
        if process.returncode not in (0, 128 + signal.SIGTERM):
            raise RuntimeError(messages.read())
    about = json.loads((folder / "run" / "recipe.json").read_text())
    return trained(lines)[: options.windows], {"precision": about["precision"], "threads": about["threads"]}


def trained(path):
    """The speeds that are logged so far."""
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    lines = map(json.loads, filter(None, whole.split("\n")))
    return [line["images_per_second"] for line in lines if line["phase"] == "train"]


def theirs(options, file, mixed, data):
    """The speeds of another loop, and its settings."""
    words = [sys.executable, str(HERE / "peers" / file), options.load, "--data", str(data)]
    for knob in ("batch", "size", "steps", "windows", "workers"):
        words += [f"--{knob}", str(getattr(options, knob))]
    words += ["--mixed"] * mixed + ["--compile"] * (options.compile == "all")
    done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST)
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer.pop("speeds"), answer


def installed(names):
    """The others that are there; those that are not are named."""
    for name in names:
        if importlib.util.find_spec(PEERS[name][1]) is None:
            print(f"{name} is not installed and is left out; pip install --group bench", file=sys.stderr)
        else:
            yield name


def compare(options):
    """Time all in turn; a table, and a row for each of the others."""
    load, command = LOADS[options.load], shlex.join(["python", "benchmarks/step_times.py", *sys.argv[1:]])
    options.batch, options.data = options.batch or load.batch, load.data and (options.data or load.data)
    turns = [("ours", None), *((name, kind == "mixed") for name in installed(options.only) for kind in options.theirs)]
    found, settings = {}, {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        if options.repeat > 1:
            options.data = write_repeated(options, data)
        count = keep(options, data) if load.data else PASS * options.batch
        options.steps = max(1, min(count // options.batch // 10, MAX_LOG_INTERVAL))  # as the loop has it
        for turn in range(options.rounds):
            for who, mixed in turns:
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        if who == "ours":
                            speeds, about = ours(options, load, Path(folder))
                        else:
                            speeds, about = theirs(options, PEERS[who][0], mixed, data)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    if who == "ours":
                        raise
                    print(f"{who} failed and is left out:\n{error}", file=sys.stderr)
                    continue
                found.setdefault((who, mixed), []).append(typical(speeds))
                settings[who, mixed] = about
                print(f"round {turn + 1}: {who} {said(about)}: {typical(speeds):.0f}/s", file=sys.stderr, flush=True)
    show(options, found, settings)
    if not options.trial:
        write(options, found, settings, command)


def said(about):
    """Settings as words."""
    return ", ".join(value if name == "precision" else f"{name} {value}" for name, value in about.items())


def show(options, found, settings):
    """The table."""
    print(f"{options.load}, batches of {options.batch}{', compiled' * bool(options.compile)}")
    print(f"{'loop':<22}  {'images/s':>10}  {'ours/theirs':>11}  settings")
    mine = statistics.median(found["ours", None])
    for who, speeds in found.items():
        speed = statistics.median(speeds)
        print(f"{who[0]:<22}  {speed:>10,.0f}  {mine / speed:>11.2f}  {said(settings[who])}")


def write(options, found, settings, command):
    """The rows."""
    mine = statistics.median(found["ours", None])
    about = said(settings["ours", None]) + ", compiled" * bool(options.compile)
    record(f"step times {options.load}", f"images per second, {about}", mine, command=command, seed=0,
           note=f"batches of {options.batch}")  # fmt: skip
    for who, speeds in found.items():
        if who[0] != "ours":
            kind = ("mixed" if who[1] else "float32") + ", compiled" * (options.compile == "all")
            speed = statistics.median(speeds)
            note = (
                f"ours {mine:.0f}/s ({said(settings['ours', None])}), theirs {speed:.0f}/s ({said(settings[who])}); "
                f"batches of {options.batch}, {len(speeds)} times {options.windows} windows of {options.steps} steps"
            )
            own = "ours" + ", compiled," * (options.compile == "ours")
            metric = f"images per second, {own} / {who[0]} {kind}"
            record(f"step times {options.load}", metric, mine / speed, command=command, seed=0, note=note)


def first_step(options):
    """Seconds to the first step, ours and the plain loop's in turn."""
    program = ("fukami", "train", "deep-convnet", "--data", "mnist")
    programs = {"ours": program, "plain": (str(HERE / "common" / "plain_loop.py"),)}
    if CUDA:
        programs["ours compiled"] = (*program, "--compile")
    found = {who: [] for who in programs}
    for _ in range(options.rounds):
        for who, words in programs.items():
            with tempfile.TemporaryDirectory() as folder:
                out = () if who == "plain" else ("--out", f"{folder}/run")
                words = (sys.executable, str(HERE / "peers" / "first_step.py"), *words, *out)
                environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
                began = time.monotonic()
                done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=LONGEST)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                found[who].append(float(done.stdout.splitlines()[-1]) - began)
    middle = {who: statistics.median(seconds) for who, seconds in found.items()}
    for who, seconds in found.items():
        print(f"{who:<14}  {middle[who]:6.2f} s  ({', '.join(f'{value:.2f}' for value in seconds)})")
    if options.trial:
        return
    command = shlex.join(["python", "benchmarks/step_times.py", *sys.argv[1:]])
    note = "; ".join(f"{who} {', '.join(f'{value:.2f}' for value in seconds)} s" for who, seconds in found.items())
    rows = {
        "seconds to the first step": middle["ours"],
        "seconds to the first step, ours / plain loop": middle["ours"] / middle["plain"],
    }
    if CUDA:
        rows["seconds that --compile adds to the first step"] = middle["ours compiled"] - middle["ours"]
    for metric, value in rows.items():
        record("first step deep-convnet mnist", metric, value, command=command, seed=0, note=note)


def main():
    """Time what is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("load", choices=[*LOADS, "first-step"])
    options.add_argument("--rounds", type=int, help="3; 5 for the first step")
    options.add_argument("--windows", type=int, default=30 if CUDA else 10, help="in a round")
    options.add_argument("--batch", type=int, help="by default the recipe's; 256 for ResNet-50 on a GPU, else 16")
    options.add_argument("--data", help="another data set than the recipe's")
    options.add_argument("--repeat", type=int, default=1, help="of each image, where there are few files")
    options.add_argument("--size", type=int, default=224, help="of the images for ResNet-50")
    options.add_argument("--precision", default="auto", help="ours")
    options.add_argument("--theirs", nargs="+", choices=["float32", "mixed"], default=["float32", "mixed"])
    options.add_argument("--workers", type=int, default=min(16, os.cpu_count()), help="of the others' loaders")
    options.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), help="some of the others")
    options.add_argument("--compile", nargs="?", const="all", default="", choices=["all", "ours"])
    options.add_argument("--trial", action="store_true", help="one short round, nothing recorded")
    options = options.parse_args()
    options.rounds = options.rounds or (5 if options.load == "first-step" else 3)
    if options.trial:
        options.rounds, options.windows = 1, 2
    if options.load == "first-step":
        first_step(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
