"""Launcher of several training processes on one machine, which restarts them when one is killed.

It uses torch's elastic launcher and hides its tracebacks.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fukami.engine import run_record
from fukami.engine.process_group import HUNG_EXIT_STATUS
from fukami.errors import Error, UsageError
from fukami.system import count_cpus

logger = logging.getLogger(__name__)
MAX_RESTARTS = 3  # of all processes, in one command
SHUTDOWN_TIMEOUT = 60  # seconds in which a process has to save after it is signaled to stop


def launch_processes(args: Sequence[str], num_processes: int, device: str, runs: Sequence[Path]) -> None:
    """Run ``fukami`` with ``args`` in ``num_processes`` processes that train together, and exit with their status.

    The number of threads per process is OMP_NUM_THREADS, else that of the first resumed run in ``runs``, else an equal
    part of the processors.

    If a process is killed or hangs, all processes are stopped and restarted with ``--resume``. A process that fails
    with an error prints it itself.

    Raises:
        UsageError: there are fewer GPUs than processes.
        Error: processes were killed more than :data:`MAX_RESTARTS` times.
    """
    gpus = torch.cuda.device_count()
    if gpus and num_processes > gpus and device in ("auto", "cuda"):
        raise UsageError(
            f"--processes {num_processes} needs a GPU per process, and there are {gpus}; use fewer, or --device cpu"
        )
    threads = [
        run_record.resolve_compute_config(run, "auto", "auto", False).num_threads for run in runs if "--resume" in args
    ]
    num_threads = next((number for number in threads if number), max(1, count_cpus() // num_processes))
    os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for restarts in range(MAX_RESTARTS + 1):
        has_run = any((run / "recipe.json").is_file() for run in runs)
        resume = ["--resume"] if restarts and has_run and "--resume" not in args else []
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=num_processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            run_id=str(uuid.uuid4()), max_restarts=0, local_addr="localhost",
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "fukami", *args, *resume)
            return
        except SignalException as error:
            sys.exit(128 + error.sigval)
        except ChildFailedError as error:
            failures = dict(error.failures)
        killed = [
            f"rank {rank} by {failure.signal_name()}" for rank, failure in failures.items() if failure.exitcode < 0
        ]
        if not killed and not any(failure.exitcode == HUNG_EXIT_STATUS for failure in failures.values()):
            # processes with SIGTERM's status were stopped because another one failed
            statuses = [failure.exitcode for failure in failures.values() if failure.exitcode != 128 + signal.SIGTERM]
            sys.exit(statuses[0] if statuses else 1)
        if killed:
            logger.warning(f"fukami: killed: {', '.join(killed)}")
        if restarts < MAX_RESTARTS:
            logger.warning("fukami: restarting all processes from the last checkpoint")
    raise Error(
        f"processes were killed or timed out {MAX_RESTARTS + 1} times; fix the cause, then continue with --resume"
    )
