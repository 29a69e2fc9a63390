"""What the kernels that are compiled on their first call say about it."""

import logging
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

MIN_COMPILE_SECONDS = 0.5  # seconds above which a first call has compiled, and says so
_called_kernels: set[Hashable] = set()


@contextmanager
def log_compile_time(kernel: Hashable, target: str) -> Iterator[None]:
    """Around a call of a kernel: the first, where it had to compile for the ``target``, says how long that took."""
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    if seconds > MIN_COMPILE_SECONDS and kernel not in _called_kernels:
        logging.getLogger("fukami").warning(
            "compiled a 1-bit kernel for this %s in %.1f s; later runs find it on the disk", target, seconds
        )
    _called_kernels.add(kernel)
