"""Run fukami commands, and append results to ``results.csv`` with all information needed to reproduce them.

The environment variable ``FUKAMI_RESULTS`` is the path of another file.
"""

import csv
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch

FILE = Path(os.environ.get("FUKAMI_RESULTS") or Path(__file__).parents[1] / "results.csv")
FIELDS = [
    "date",
    "commit",
    "benchmark",
    "metric",
    "value",
    "seed",
    "seconds",
    "hardware",
    "versions",
    "command",
    "note",
]


def describe_hardware(device: str = "auto") -> str:
    """Return the name of the GPU, or, for the device ``cpu``, of the CPU with its cores and instruction set."""
    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    isa = torch.backends.cpu.get_cpu_capability()
    isa = "AMX" if torch.cpu._is_amx_tile_supported() else isa + "-BF16" * torch.cpu._is_avx512_bf16_supported()
    return f"{name}, {os.cpu_count()} cores, {isa}"


def get_commit() -> str:
    """Return the current commit; without git, the environment variable ``FUKAMI_COMMIT``."""
    override = os.environ.get("FUKAMI_COMMIT")
    command = ["git", "rev-parse", "--short", "HEAD"]
    return override or subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def run_command(command: str, *, cwd: Path | None = None, threads: int | None = None) -> tuple[dict, float]:
    """Run a command such as ``fukami eval RUN``; return the JSON object that it prints last, and its seconds.

    ``threads`` is the number of computation threads; None: one per processor.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    arguments = [sys.executable, "-m", *shlex.split(command)]
    start = time.monotonic()
    process = subprocess.run(arguments, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1]), time.monotonic() - start


def train_run(command: str, run: Path) -> tuple[dict, float]:
    """Train a run, or continue an interrupted one; return its result, and the seconds of the training and the test.

    The seconds are those of the logs, of the run and of the stages inside it; they exclude interruptions.
    """
    resume = ["--resume"] if (run / "recipe.json").is_file() else []
    result, _ = run_command(shlex.join([*shlex.split(command), "--out", str(run), *resume]))
    logs = [json.loads(log.read_text().splitlines()[-1]) for log in run.rglob("metrics.jsonl")]
    return result, sum(log["seconds"] for log in logs)


def train_seeds(line: str, options: Namespace) -> Iterator[tuple[int, dict, float, str]]:
    """Train with each of ``options.seeds``; yield the seed, the printed result, the seconds and the command.

    ``{weights}`` in the line is replaced by ``options.weights``; ``options.more`` contains additional arguments.
    ``options.out`` is a folder for the runs, in which interrupted ones continue; without it, a run is deleted when the
    next one starts.
    """
    for seed in options.seeds:
        arguments = [*line.format(weights=options.weights).split(), *options.more, "--seed", str(seed)]
        with tempfile.TemporaryDirectory() as folder:
            run = Path(options.out or folder) / f"{arguments[2]}-seed-{seed}"
            result, seconds = train_run(shlex.join(arguments), run)
            yield seed, result, seconds, strip_folders(arguments)


def strip_folders(arguments: list[str]) -> str:
    """Return the command with file names instead of paths."""
    return shlex.join(Path(argument).name if os.sep in argument else argument for argument in arguments)


def record(
    benchmark: str,
    metric: str,
    value: float,
    *,
    command: str,
    seed: int | str = "",
    seconds: float | str = "",
    note: str = "",
    device: str = "auto",
) -> None:
    """Append a row to the results, and print it.

    ``device`` is ``cpu`` if a GPU of the machine was not used, as in a command with ``--device cpu``.
    """
    row = {
        "date": datetime.date.today().isoformat(),
        "commit": get_commit(),
        "benchmark": benchmark,
        "metric": metric,
        "value": f"{value:.6g}",
        "seed": seed,
        "seconds": seconds if isinstance(seconds, str) else f"{seconds:.1f}",
        "hardware": describe_hardware("cpu" if "--device cpu" in command else device),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "command": command,
        "note": note,
    }
    new = not FILE.exists()
    with FILE.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print({name: row[name] for name in ("benchmark", "metric", "value", "seed", "seconds")}, flush=True)
