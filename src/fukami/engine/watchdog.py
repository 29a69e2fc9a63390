"""Watchdog of the processes of a training run: it reports a process that hangs and stops the others."""

import json
import logging
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import torch

from fukami.engine.runtime import Runtime
from fukami.timing import STEP_PHASES

logger = logging.getLogger(__name__)
PHASE_ORDER = ("data", "host to device", *STEP_PHASES, "compilation", "evaluation", "checkpoint", "other", "waiting")
UNTIMED_PHASES = ("compilation", "evaluation", "checkpoint", "other")  # phases without a time limit
HUNG_EXIT_STATUS = 75  # exit status after a timeout (EX_TEMPFAIL of sysexits.h)
CHECKS_PER_TIMEOUT = 20  # checks within the timeout
MAX_MISSED_CHECKS = 3  # checks without a new state after which a process counts as stopped


class Watchdog:
    """Watchdog that ends this process when one phase of a step exceeds the timeout, and reports which process hangs.

    There is no limit before the first step, since reading the data may take any time.

    A thread publishes the state of this process in torch's store at regular intervals. It does not run for a single
    process.

    Args:
        runtime: its clock has the current step and phase.
        timeout: seconds.
    """

    def __init__(self, runtime: Runtime, timeout: float) -> None:
        self.runtime, self.timeout = runtime, timeout
        self.stop_event = threading.Event()

    def __enter__(self) -> Self:
        if self.runtime.world_size > 1:
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            self.store = store.clone()  # a separate connection, which no collective operation blocks
            self.thread = threading.Thread(target=self._monitor, daemon=True, name="fukami watchdog")
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_event.set()
        if self.runtime.world_size > 1:
            self.thread.join()

    def _monitor(self) -> None:
        clock, pause, check_index = self.runtime.clock, self.timeout / CHECKS_PER_TIMEOUT, 0
        while not self.stop_event.wait(pause):
            phase, start, check_index = clock.phase, clock.phase_start, check_index + 1
            elapsed = time.monotonic() - start
            host = socket.gethostname()
            state = {"step": clock.step, "phase": phase, "host": host, "elapsed": elapsed, "check": check_index}
            try:
                self.store.set(f"fukami/{self.runtime.rank}", json.dumps(state))
                if clock.step >= 0 and elapsed > self.timeout and phase not in UNTIMED_PHASES:
                    self._abort()
            except RuntimeError:  # the store ended with another process, which the launcher reports
                return

    def _abort(self) -> None:
        """Report which processes keep the others waiting, and exit; a blocked thread would not get an exception."""
        previous = self._read_states()
        time.sleep(MAX_MISSED_CHECKS * self.timeout / CHECKS_PER_TIMEOUT)
        states = self._read_states()
        missing = [rank for rank in range(self.runtime.world_size) if rank not in states]
        stopped = [
            rank for rank in states if rank != self.runtime.rank and states[rank]["check"] == previous[rank]["check"]
        ]
        positions = {rank: (state["step"], PHASE_ORDER.index(state["phase"])) for rank, state in states.items()}
        behind = [rank for rank, position in positions.items() if position == min(positions.values())]
        for rank in missing or stopped or behind:
            state = states.get(rank)
            status = f"on {state['host']} in step {state['step'] + 1} ({state['phase']})" if state else "never reported"
            logger.error(
                f"fukami: rank {rank}, {status}, keeps the others waiting for more than {self.timeout:g} s "
                f"(--timeout); rank {self.runtime.rank} stops here: continue with --resume"
            )
        os._exit(HUNG_EXIT_STATUS)

    def _read_states(self) -> dict[int, Any]:
        """Return the last published state of each process by rank."""
        ranks = [rank for rank in range(self.runtime.world_size) if self.store.check([f"fukami/{rank}"])]
        return {rank: json.loads(self.store.get(f"fukami/{rank}")) for rank in ranks}
