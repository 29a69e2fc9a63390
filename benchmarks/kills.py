"""Kill training runs with SIGKILL at random times after their first checkpoint, resume them, and compare bit for bit.

    python benchmarks/kills.py [deep-convnet dcgan dqn faster-rcnn show-and-tell neural-style] [--kills 20]
                               [--device cpu] [--record]

Each recipe is trained once without interruption. Then it is trained again, killed at random times and resumed until its
end. Further training runs follow until the number of kills is reached (by default 100 for deep-convnet, 20 for the
others). ``weights.safetensors`` and ``manifest.jsonl`` must be byte-equal, ``last.ckpt`` and ``metrics.jsonl`` equal
except times.

The datasets are few bundled scenes. Training runs write a checkpoint at each log interval and compute with one thread
in float32. They are forked from a process that has imported torch, except with ``--device cuda``, since forks cannot
use CUDA. Half of the kills come at a random time after training has continued. The others come at a random time after
the start of the process, so that reading the checkpoint is interrupted, too. For each recipe a JSON line contains the
number of kills and the differences; the exit status is 1 if there are any. ``--record`` appends to results.csv.
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
NUM_KILLS = {"deep-convnet": 100}  # 20 for the others
KILLS_PER_RUN = 6  # on average
COMPARED_KEYS = ("format", "versions", "threads", "manifest", "step", "task", "loader", "metric_buffer", "random")


def train(arguments: list[str], log: str) -> None:
    """Run the command line in this process, with a checkpoint at each log interval."""
    import torch

    from common import few_scenes
    from fukami.engine import async_checkpoint

    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    async_checkpoint.MIN_CHECKPOINT_INTERVAL, async_checkpoint.MAX_CHECKPOINT_FRACTION = 0.0, math.inf
    few_scenes.run(arguments)


class Training:
    """Training run of an entry in a separate process on a device."""

    def __init__(self, entry: str, device: str) -> None:
        self.entry, self.device = entry, device
        self.context = multiprocessing.get_context("spawn" if device.startswith("cuda") else "forkserver")
        preload = ["fukami.engine.train", "fukami.cli.main", "matplotlib.figure", "sklearn.datasets", "torchvision"]
        self.context.set_forkserver_preload(preload)

    def start(self, run: Path, log: Path, *more: str) -> BaseProcess:
        """Start the training process."""
        arguments = ["train", *ENTRIES[self.entry].split(), "--device", self.device, "--precision", "float32"]
        process = self.context.Process(target=train, args=([*arguments, "--out", str(run), *more], str(log)))
        process.start()
        return process


def get_size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def run_uninterrupted(training: Training, run: Path, log: Path) -> float:
    """Train without interruption; return the seconds from the first checkpoint to the end."""
    process = training.start(run, log)
    while process.is_alive() and not (run / "last.ckpt").exists():
        time.sleep(0.002)
    start = time.monotonic()
    process.join()
    if process.exitcode:
        sys.exit(f"{training.entry} failed:\n{log.read_text()[-2000:]}")
    return time.monotonic() - start


def run_killed(
    training: Training, run: Path, log: Path, remaining_seconds: float, max_kills: int, rng: random.Random
) -> int:
    """Train with at most ``max_kills`` kills; return the number of kills."""
    kills = 0
    while True:
        flags = ["--resume"] if kills else []
        previous_mtime = (run / "last.ckpt").stat().st_mtime_ns if kills else 0
        start, process = time.monotonic(), training.start(run, log, *flags)
        wait_for_checkpoint = kills == 0 or rng.random() < 0.5
        while wait_for_checkpoint and process.is_alive():
            if (run / "last.ckpt").exists() and (run / "last.ckpt").stat().st_mtime_ns != previous_mtime:
                break
            time.sleep(0.002)
        delay = rng.uniform(0, 2 * remaining_seconds / KILLS_PER_RUN) if wait_for_checkpoint else rng.uniform(0, 2.0)
        if kills < max_kills:
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
        print(f"{training.entry}: kill {kills} after {time.monotonic() - start:.2f} s", file=sys.stderr)


def find_differences(one: Path, other: Path) -> list[str]:
    """Return the names of the files and checkpoint entries that differ between two runs."""
    import torch
    from torch.utils import _pytree as pytree

    from fukami.engine.checkpoint import decode_checkpoint

    different = [
        name
        for name in ("weights.safetensors", "manifest.jsonl")
        if ((one / name).read_bytes() if (one / name).exists() else b"")
        != ((other / name).read_bytes() if (other / name).exists() else b"")
    ]
    states = [decode_checkpoint(run / "last.ckpt", torch.device("cpu")) for run in (one, other)]
    for name in COMPARED_KEYS:
        values, structures = zip(*(pytree.tree_flatten(state[name]) for state in states), strict=True)
        equal = structures[0] == structures[1] and all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*values, strict=True)
        )
        different += [] if equal else [f"last.ckpt: {name}"]
    return different + ([] if read_log(one) == read_log(other) else ["metrics.jsonl"])


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the lines of the log without times."""
    return [
        {
            key: value
            for key, value in json.loads(line).items()
            if key not in ("seconds", "data_wait_fraction", *_list_rate_keys(line))
        }
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def _list_rate_keys(line: str) -> list[str]:
    return [key for key in json.loads(line) if key.endswith("_per_second")]


def measure(entry: str, kills: int, seed: int, device: str) -> dict[str, Any]:
    """Kill training runs of an entry ``kills`` times in total, and return the results."""
    rng, training = random.Random(f"{entry} {seed}"), Training(entry, device)
    start, num_kills, num_runs, differences = time.monotonic(), 0, 0, set()
    with tempfile.TemporaryDirectory() as folder:
        uninterrupted, log = Path(folder) / "uninterrupted", Path(folder) / "log"
        remaining_seconds = run_uninterrupted(training, uninterrupted, log)
        num_lines = len(read_log(uninterrupted))
        while num_kills < kills:
            run = Path(folder) / f"killed-{num_runs}"
            num_kills += run_killed(training, run, log, remaining_seconds, kills - num_kills, rng)
            num_runs += 1
            differences |= set(find_differences(uninterrupted, run))
    return {
        "entry": entry, "kills": num_kills, "runs": num_runs, "lines": num_lines,
        "different": sorted(differences), "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def main() -> None:
    """Measure the selected entries, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", choices=[*ENTRIES, []], default=[])
    parser.add_argument(
        "--kills", type=int, help="Kills per entry; by default 100 for deep-convnet, 20 for the others."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random times.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", action="store_true", help="Append to results.csv.")
    options = parser.parse_args()
    failed = False
    for entry in options.entries or ENTRIES:
        kills = options.kills or NUM_KILLS.get(entry, 20)
        result = measure(entry, kills, options.seed, options.device)
        print(json.dumps(result), flush=True)
        failed |= bool(result["different"])
        if options.record:
            from common.record import record

            note = f"{result['runs']} runs of: fukami train {ENTRIES[entry]}"
            command = f"python benchmarks/kills.py {entry} --kills {kills} --seed {options.seed}"
            command += f" --device {options.device}" if options.device != "cpu" else ""
            num_equal = 0 if result["different"] else result["kills"]
            name = f"kills {entry}" + (f" {options.device}" if options.device != "cpu" else "")
            record(name, "SIGKILLs after which the resumed run is byte-equal", num_equal, command=command,
                   seed=options.seed, seconds=result["seconds"], note=note, device=options.device)  # fmt: skip
    sys.exit(failed)


if __name__ == "__main__":
    main()
