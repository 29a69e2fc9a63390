"""A watch over the processes of a training: one that hangs is named, and the others do not wait for it for ever."""

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
UNTIMED_PHASES = ("compilation", "evaluation", "checkpoint", "other")  # phases that take as long as they take
HUNG_EXIT_STATUS = 75  # the exit status of processes that were cut off (sysexits: try again)
CHECKS_PER_TIMEOUT = 20  # in the time limit
MAX_MISSED_CHECKS = 3  # looks after which a process that says nothing is thought to be stopped


class Watchdog:
    """Cuts this process off when it has been in one phase of a step for longer than the limit, and says who hangs.

    How long it takes to read the data before the first step is nobody's fault.

    A thread tells the others now and then, through torch's store, what this process is doing. It is idle where there is
    one process.

    Args:
        runtime: its clock tells the phase.
        timeout: seconds.
    """

    def __init__(self, runtime: Runtime, timeout: float) -> None:
        self.runtime, self.timeout = runtime, timeout
        self.stop_event = threading.Event()

    def __enter__(self) -> Self:
        if self.runtime.world_size > 1:
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            self.store = store.clone()  # a connection of its own, on which nobody waits
            self.thread = threading.Thread(target=self._monitor, daemon=True, name="fukami watch")
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_event.set()
        if self.runtime.world_size > 1:
            self.thread.join()

    def _monitor(self) -> None:
        clock, pause, number = self.runtime.clock, self.timeout / CHECKS_PER_TIMEOUT, 0
        while not self.stop_event.wait(pause):
            phase, since, number = clock.phase, clock.phase_start, number + 1
            held = time.monotonic() - since
            own = {"step": clock.step, "phase": phase, "machine": socket.gethostname(), "held": held, "look": number}
            try:
                self.store.set(f"fukami/{self.runtime.rank}", json.dumps(own))
                if clock.step >= 0 and held > self.timeout and phase not in UNTIMED_PHASES:
                    self._abort()
            except RuntimeError:  # the store went with another process, whose end is the launcher's to tell
                return

    def _abort(self) -> None:
        """Say who keeps the others waiting, and leave; no exception would get through to a thread that waits."""
        first = self._read_states()
        time.sleep(MAX_MISSED_CHECKS * self.timeout / CHECKS_PER_TIMEOUT)
        found = self._read_states()
        missing = [rank for rank in range(self.runtime.world_size) if rank not in found]
        asleep = [rank for rank in found if rank != self.runtime.rank and found[rank]["look"] == first[rank]["look"]]
        places = {rank: (state["step"], PHASE_ORDER.index(state["phase"])) for rank, state in found.items()}
        behind = [rank for rank, place in places.items() if place == min(places.values())]
        for rank in missing or asleep or behind:
            state = found.get(rank)
            what = f"on {state['machine']} in step {state['step'] + 1} ({state['phase']})" if state else "never seen"
            logger.error(
                f"fukami: rank {rank}, {what}, keeps the others waiting for more than {self.timeout:g} s (--timeout); "
                f"rank {self.runtime.rank} stops here: go on with --resume"
            )
        os._exit(HUNG_EXIT_STATUS)

    def _read_states(self) -> dict[int, Any]:
        """What every process that was ever seen last said of itself, by rank."""
        ranks = [rank for rank in range(self.runtime.world_size) if self.store.check([f"fukami/{rank}"])]
        return {rank: json.loads(self.store.get(f"fukami/{rank}")) for rank in ranks}
