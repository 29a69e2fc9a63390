"""Worker processes for benchmarks, so that thread and allocator settings of one candidate do not affect another."""

import importlib.util
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Worker:
    """Process that runs a function with ``arguments`` and a pipe for requests."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=function, args=(*arguments, child_pipe), daemon=True)
        self.process.start()
        child_pipe.close()  # so that recv fails if the process ends

    def request(self, message: Any) -> Any:
        """Send a message and return the response; a false message requests the final result and ends the process."""
        self.pipe.send(message)
        response = self.pipe.recv()
        if not message:
            self.process.join()
        return response


def measure_in_turn(workers: Sequence[Worker], message: Any, rounds: int, warmup_rounds: int) -> list[float]:
    """Request a measurement of the workers in turn, and return each worker's median after the warm-up rounds."""
    values = [[worker.request(message) for worker in workers] for _ in range(warmup_rounds + rounds)][warmup_rounds:]
    return [statistics.median(worker_values) for worker_values in zip(*values, strict=True)]


def read_memory(field: str) -> int:
    """Read the resident memory of this process from Linux, in bytes: current (VmRSS) or peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def check_installed(package: str, name: str) -> bool:
    """Return whether a package to compare with is installed, and print a message if it is not."""
    installed = importlib.util.find_spec(package) is not None
    if not installed:
        print(f"{name} needs the package {package}, which is not installed; only ours is measured", file=sys.stderr)
    return installed
