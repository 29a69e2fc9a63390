"""Contestants in processes of their own, where what one of them tells the processor and the allocator is its alone."""

import importlib.util
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Apart:
    """A function in a process of its own, called with ``arguments`` and a pipe on which it is asked."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        spawned = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawned.Pipe()
        self.process = spawned.Process(target=function, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that one that ends is noticed

    def ask(self, more: Any) -> Any:
        """What it answers to ``more``; to something false its last word."""
        self.pipe.send(more)
        found = self.pipe.recv()
        if not more:
            self.process.join()
        return found


def ask_in_turn(processes: Sequence[Apart], question: Any, rounds: int, warming: int) -> list[float]:
    """The median of what each answers, asked in turn so many rounds, after others in which they warm up."""
    answers = [[each.ask(question) for each in processes] for _ in range(warming + rounds)][warming:]
    return [statistics.median(own) for own in zip(*answers, strict=True)]


def resident(what: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM), as Linux tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def installed(package: str, name: str) -> bool:
    """Whether the package of a peer is installed; where it is not, stderr says that the peer is left out."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{name} needs the package {package}, which is not installed; ours is measured alone", file=sys.stderr)
    return found
