"""Available CPU cores and memory."""

import contextlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MAX_DECODING_THREADS = 8


def count_cpus(limit_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the CPU cores that this process may use, within its affinity mask and its container's cgroup limit."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    allowed, _, period = limit_file.read_text().partition(" ") if limit_file.is_file() else ("max", "", "")
    return count if allowed == "max" else max(1, min(count, math.ceil(int(allowed) / int(period))))


def start_decoding_threads() -> ThreadPoolExecutor:
    """Start threads that decode images: few, since each may hold an image of 100 million pixels."""
    return ThreadPoolExecutor(min(count_cpus(), MAX_DECODING_THREADS))


def get_total_memory(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the bytes of memory of this machine, or of the limit of its container; 0 if they are not known."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # on Windows
        return 0
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        total = min(total, int(limit_file.read_text()))
    return total
