"""Log messages about the compilation of kernels."""

import logging
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

MIN_COMPILE_SECONDS = 0.5  # seconds; a slower first call has compiled, and is logged
_called_kernels: set[Hashable] = set()


@contextmanager
def log_compile_time(kernel: Hashable, target: str) -> Iterator[None]:
    """Time a kernel call, and log the compilation for the ``target`` on a slow first call."""
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    if seconds > MIN_COMPILE_SECONDS and kernel not in _called_kernels:
        logging.getLogger("fukami").warning(
            "compiled a 1-bit kernel for this %s in %.1f s; later runs load it from disk", target, seconds
        )
    _called_kernels.add(kernel)
