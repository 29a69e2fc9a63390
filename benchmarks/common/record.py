"""Run the product's commands, and append measurements to ``results.csv`` with what it takes to measure them again.

``FUKAMI_RESULTS`` names another file than ``results.csv``.
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


def hardware() -> str:
    """The GPU where there is one, else the processor and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    isa = torch.backends.cpu.get_cpu_capability()
    isa = "AMX" if torch.cpu._is_amx_tile_supported() else isa + "-BF16" * torch.cpu._is_avx512_bf16_supported()
    return f"{name}, {os.cpu_count()} cores, {isa}"


def commit() -> str:
    """The commit that is measured; ``FUKAMI_COMMIT`` where there is no git."""
    given = os.environ.get("FUKAMI_COMMIT")
    words = ["git", "rev-parse", "--short", "HEAD"]
    return given or subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def answer(command: str, *, cwd: Path | None = None, threads: int | None = None) -> tuple[dict, float]:
    """The object that a command such as ``fukami eval RUN`` prints last, and its seconds from the start of the process.

    ``threads`` are those of its computation; by default one for each processor.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = [sys.executable, "-m", *shlex.split(command)]
    began = time.monotonic()
    done = subprocess.run(words, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - began


def each_seed(line: str, options: Namespace) -> Iterator[tuple[int, dict, float, str]]:
    """Train with each of ``options.seeds``: the seed, what the command printed, its seconds, and the command.

    ``{weights}`` in the line is the file ``options.weights``, ``options.more`` are words to add, and ``options.out`` a
    folder where the runs stay; without it ``result["run"]`` is there until the next one begins.
    """
    for seed in options.seeds:
        words = [*line.format(weights=options.weights).split(), *options.more, "--seed", str(seed)]
        with tempfile.TemporaryDirectory() as folder:
            out = f"{options.out or folder}/{words[2]}-seed-{seed}"
            result, seconds = answer(shlex.join([*words, "--out", out]))
            yield seed, result, seconds, anywhere(words)


def anywhere(words: list[str]) -> str:
    """The command with files and folders by their names alone, wherever they lie."""
    return shlex.join(Path(word).name if os.sep in word else word for word in words)


def record(
    benchmark: str,
    metric: str,
    value: float,
    *,
    command: str,
    seed: int | str = "",
    seconds: float | str = "",
    note: str = "",
) -> None:
    """Append a row, and print it."""
    row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "benchmark": benchmark,
        "metric": metric,
        "value": f"{value:.6g}",
        "seed": seed,
        "seconds": seconds if isinstance(seconds, str) else f"{seconds:.1f}",
        "hardware": hardware(),
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
