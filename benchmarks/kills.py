"""Kill trainings with SIGKILL at random times after their first checkpoint, resume them, and compare bit for bit.

    python benchmarks/kills.py [deep-convnet dcgan dqn faster-rcnn show-and-tell neural-style] [--kills 20]
                               [--device cpu] [--record]

Each recipe is trained once without interruption; then again, killed at random times and resumed each time until it is
done, as often as it takes to reach the number of kills (100 for deep-convnet, 20 for each other by default). A training
in which all is over before the next kill is followed by another one. Equal have to be ``weights.safetensors`` and
``manifest.jsonl`` byte for byte, every tensor and number of ``last.ckpt`` but times, and ``metrics.jsonl`` but times.

The embedded scenes are few here. Trainings write a checkpoint at each look at the log, compute with one thread in
float32, and are forked from a process that has imported torch, but with ``--device cuda``: no fork can use CUDA. Half
of the kills come at a random time after the process has begun to go on, the others at a random time after its start, so
that reading the checkpoint is interrupted, too. A line of JSON for each recipe says how many kills there were and what
differs; the exit status is 1 if anything does. ``--record`` appends to results.csv.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ENTRIES = {
    "deep-convnet": "deep-convnet --epochs 12 --batch-size 50",
    "dcgan": "dcgan --base-channels 8 --size 28 --channels 1 --epochs 4 --eval-every 1 --eval-samples 50",
    "dqn": "dqn --steps 4000 --buffer-size 2000 --num-envs 4 --hidden 64 --eval-every 2000 --eval-episodes 4",
    "faster-rcnn": "faster-rcnn-vgg16 --min-size 64 --max-size 96 --width-multiplier 0.0625 --hidden 16 "
    "--anchor-sizes 24 48 --epochs 4 --eval-every 1 --batch-size 2",
    "show-and-tell": "show-and-tell --encoder resnet20 --size 32 --hidden 32 --batch-size 8 --epochs 8 "
    "--eval-every 4 --beam-size 2",
    "neural-style": "neural-style --size 128 --levels 2 --iterations 60 --eval-every 20",
}
KILLS = {"deep-convnet": 100}  # 20 for each other
STEPS_BETWEEN = 6  # kills that fall into a training on average
COMPARED = ("format", "versions", "threads", "manifest", "step", "task", "loader", "history", "random")


def train(words: list[str], log: str) -> None:
    """Run the command line in this process, a fork, with a checkpoint at each look."""
    import torch

    from common import few_scenes
    from fukami.engine import async_checkpoint

    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    async_checkpoint.MIN_CHECKPOINT_INTERVAL, async_checkpoint.MAX_CHECKPOINT_FRACTION = 0.0, math.inf
    few_scenes.run(words)


class Training:
    """How an entry is trained: in a process of its own, on a device."""

    def __init__(self, entry: str, device: str) -> None:
        self.entry, self.device = entry, device
        self.context = multiprocessing.get_context("spawn" if device.startswith("cuda") else "forkserver")
        preload = ["fukami.engine.train", "fukami.cli.main", "matplotlib.figure", "sklearn.datasets", "torchvision"]
        self.context.set_forkserver_preload(preload)

    def start(self, run: Path, log: Path, *more: str) -> BaseProcess:
        """The process that trains, started."""
        words = ["train", *ENTRIES[self.entry].split(), "--device", self.device, "--precision", "float32"]
        process = self.context.Process(target=train, args=([*words, "--out", str(run), *more], str(log)))
        process.start()
        return process


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def run_alone(training: Training, run: Path, log: Path) -> float:
    """Train without interruption; returns seconds from the first checkpoint on."""
    process = training.start(run, log)
    while process.is_alive() and not (run / "last.ckpt").exists():
        time.sleep(0.002)
    began = time.monotonic()
    process.join()
    if process.exitcode:
        sys.exit(f"{training.entry} failed:\n{log.read_text()[-2000:]}")
    return time.monotonic() - began


def run_killed(training: Training, run: Path, log: Path, rest: float, most: int, chance: random.Random) -> int:
    """Train and be killed at most so often; returns the number of kills."""
    kills = 0
    while True:
        more = ["--resume"] if kills else []
        before = (run / "last.ckpt").stat().st_mtime_ns if kills else 0
        began, process = time.monotonic(), training.start(run, log, *more)
        goes_on = kills == 0 or chance.random() < 0.5
        while goes_on and process.is_alive():
            if (run / "last.ckpt").exists() and (run / "last.ckpt").stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        delay = chance.uniform(0, 2 * rest / STEPS_BETWEEN) if goes_on else chance.uniform(0, 2.0)
        if kills < most:
            process.join(delay)
        else:
            process.join()
        if process.exitcode is not None:
            if process.exitcode:
                sys.exit(f"{training.entry} failed after {kills} kills:\n{log.read_text()[-2000:]}")
            return kills
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        print(f"{training.entry}: kill {kills} after {time.monotonic() - began:.2f} s", file=sys.stderr)


def differences(one: Path, other: Path) -> list[str]:
    """What of two runs differs."""
    import torch
    from torch.utils import _pytree as pytree

    from fukami.engine.state_file import load_state

    found = [
        name
        for name in ("weights.safetensors", "manifest.jsonl")
        if ((one / name).read_bytes() if (one / name).exists() else b"")
        != ((other / name).read_bytes() if (other / name).exists() else b"")
    ]
    states = [load_state(run / "last.ckpt", torch.device("cpu")) for run in (one, other)]
    for name in COMPARED:
        values, forms = zip(*(pytree.tree_flatten(state[name]) for state in states), strict=True)
        same = forms[0] == forms[1] and all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*values, strict=True)
        )
        found += [] if same else [f"last.ckpt: {name}"]
    return found + ([] if logged(one) == logged(other) else ["metrics.jsonl"])


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of the log without times."""
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "waiting", *_speeds(line))}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def _speeds(line: str) -> list[str]:
    return [key for key in json.loads(line) if key.endswith("_per_second")]


def measure(entry: str, kills: int, seed: int, device: str) -> dict[str, Any]:
    """Kill trainings of an entry so often in all; what there is to say."""
    chance, training = random.Random(f"{entry} {seed}"), Training(entry, device)
    began, done, trainings, found = time.monotonic(), 0, 0, set()
    with tempfile.TemporaryDirectory() as folder:
        alone, log = Path(folder) / "alone", Path(folder) / "log"
        rest = run_alone(training, alone, log)
        checkpoints = len(logged(alone))
        while done < kills:
            run = Path(folder) / f"killed-{trainings}"
            done += run_killed(training, run, log, rest, kills - done, chance)
            trainings += 1
            found |= set(differences(alone, run))
    return {
        "entry": entry, "kills": done, "trainings": trainings, "lines": checkpoints, "different": sorted(found),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def main() -> None:
    """Measure the entries that are named, or all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("entries", nargs="*", choices=[*ENTRIES, []], default=[])
    options.add_argument("--kills", type=int, help="of each entry; by default 100 of deep-convnet, 20 of the others")
    options.add_argument("--seed", type=int, default=0, help="of the random times")
    options.add_argument("--device", default="cpu")
    options.add_argument("--record", action="store_true", help="append to results.csv")
    given = options.parse_args()
    failed = False
    for entry in given.entries or ENTRIES:
        kills = given.kills or KILLS.get(entry, 20)
        found = measure(entry, kills, given.seed, given.device)
        print(json.dumps(found), flush=True)
        failed |= bool(found["different"])
        if given.record:
            from record import record

            note = f"{found['trainings']} trainings of: fukami train {ENTRIES[entry]}"
            line = f"python benchmarks/kills.py {entry} --kills {kills} --seed {given.seed}"
            line += f" --device {given.device}" if given.device != "cpu" else ""
            equal = 0 if found["different"] else found["kills"]
            name = f"kills {entry}" + (f" {given.device}" if given.device != "cpu" else "")
            record(name, "SIGKILLs after which the resumed run is byte-equal", equal, command=line,
                   seed=given.seed, seconds=found["seconds"], note=note)  # fmt: skip
    sys.exit(failed)


if __name__ == "__main__":
    main()
