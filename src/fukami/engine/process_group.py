"""Process group of a training run: joining it, and reporting a process that hangs."""

import datetime
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fukami.errors import Error

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

logger = logging.getLogger(__name__)
HUNG_EXIT_STATUS = 75  # exit status after a timeout (EX_TEMPFAIL of sysexits.h)
REPORT_FRACTION = 0.15  # of the timeout, in which the processes that wait report it


def init_process_group(backend: str, timeout: float) -> None:
    """Join the process group of ``torchrun``; each operation of it fails after ``timeout`` seconds.

    Raises:
        Error: the other processes did not join in time.
    """
    try:
        torch.distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise Error(
            f"the {os.environ['WORLD_SIZE']} processes did not connect to each other ({first_line}); start them again"
        ) from None


@contextmanager
def report_timeout(runtime: "Runtime", timeout: float) -> Iterator[None]:
    """Within the context, name the processes that do not respond within the timeout, and end this one.

    The exit status is :data:`HUNG_EXIT_STATUS`, after which the launcher restarts all processes. On GPUs, torch ends
    a process that waits for too long itself.

    Args:
        runtime: the runtime.
        timeout: seconds, as for :func:`init_process_group`.
    """
    if runtime.world_size == 1:
        yield
        return
    hosts = runtime.all_gather(socket.gethostname())
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistBackendError) and "Timed out waiting" not in str(error):
            raise
        logger.error(f"fukami: rank {runtime.rank}: {str(error).partition(chr(10))[0]}")
        for rank in _list_silent_ranks(runtime, timeout):
            logger.error(
                f"fukami: rank {rank}, on {hosts[rank]}, did not respond within {timeout:g} s (--timeout); rank "
                f"{runtime.rank} stops here: continue with --resume"
            )
        sys.stderr.flush()
        os._exit(HUNG_EXIT_STATUS)  # torch's threads would wait for the other processes


def _list_silent_ranks(runtime: "Runtime", timeout: float) -> list[int]:
    """List the processes that do not report a timeout; none if the store has ended with its process."""
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        store.set(f"fukami/timeout/{runtime.rank}", "")
        time.sleep(REPORT_FRACTION * timeout)
        return [rank for rank in range(runtime.world_size) if not store.check([f"fukami/timeout/{rank}"])]
    except RuntimeError:
        return []
