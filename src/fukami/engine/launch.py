"""Several processes on this machine, started again when one is killed: torch's own launcher, without its tracebacks."""

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

from fukami.engine import checkpoint
from fukami.engine.watchdog import HUNG_EXIT_STATUS
from fukami.errors import Error, UsageError
from fukami.system import count_cpus

logger = logging.getLogger(__name__)
MAX_RESTARTS = 3  # in a row
SHUTDOWN_TIMEOUT = 60  # seconds that a process has to save when it is asked to stop


def launch_processes(args: Sequence[str], num_processes: int, device: str, runs: Sequence[Path]) -> None:
    """Run ``fukami`` with these words in so many processes that train together, and leave with their exit status.

    They compute with as many threads as the first of the ``runs`` that they resume was begun with, or else share the
    processors, unless OMP_NUM_THREADS says otherwise.

    A process that is killed, or hangs, takes the others with it, and all are started again with ``--resume``; one that
    ends with an error of its own has said what it is.

    Raises:
        UsageError: there are fewer GPUs.
        Error: processes were killed again and again.
    """
    gpus = torch.cuda.device_count()
    if gpus and num_processes > gpus and device in ("auto", "cuda"):
        raise UsageError(
            f"--processes {num_processes} need a GPU each, and there are {gpus}; give fewer, or --device cpu"
        )
    threads = [
        checkpoint.resolve_compute_config(run, "auto", "auto", False).num_threads for run in runs if "--resume" in args
    ]
    begun = next((number for number in threads if number), max(1, count_cpus() // num_processes))
    os.environ.setdefault("OMP_NUM_THREADS", str(begun))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for restarts in range(MAX_RESTARTS + 1):
        begun_there = any((run / "recipe.json").is_file() for run in runs)
        again = ["--resume"] if restarts and begun_there and "--resume" not in args else []
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=num_processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            run_id=str(uuid.uuid4()), max_restarts=0, local_addr="localhost",
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "fukami", *args, *again)
            return
        except SignalException as error:
            sys.exit(128 + error.sigval)
        except ChildFailedError as error:
            failed = dict(error.failures)
        killed = [f"rank {rank} by {failure.signal_name()}" for rank, failure in failed.items() if failure.exitcode < 0]
        if not killed and not any(failure.exitcode == HUNG_EXIT_STATUS for failure in failed.values()):
            own = [failure.exitcode for failure in failed.values() if failure.exitcode != 128 + signal.SIGTERM]
            sys.exit(own[0] if own else 1)  # the others were ended because of it
        if killed:
            logger.warning(f"fukami: killed: {', '.join(killed)}")
        if restarts < MAX_RESTARTS:
            logger.warning("fukami: all processes start again from the last checkpoint")
    raise Error(
        f"processes were killed or cut off {MAX_RESTARTS + 1} times; go on with --resume once the reason is mended"
    )
