"""Append measurements to ``results.csv``, each with what it takes to measure it again."""

import csv
import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

FILE = Path(__file__).parent / "results.csv"
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
    isa = "AMX" if torch.cpu._is_amx_tile_supported() else torch.backends.cpu.get_cpu_capability()
    return f"{name}, {os.cpu_count()} cores, {isa}"


def commit() -> str:
    """The commit that is measured; ``FUKAMI_COMMIT`` where there is no git."""
    given = os.environ.get("FUKAMI_COMMIT")
    words = ["git", "rev-parse", "--short", "HEAD"]
    return given or subprocess.run(words, cwd=FILE.parent, capture_output=True, text=True).stdout.strip()


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
