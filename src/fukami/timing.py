"""Wall-clock time of each phase of a training run."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

STEP_PHASES = ("forward", "backward", "optimizer")  # phases that a GPU executes asynchronously
TRAINING_PHASES = ("data", "host to device", *STEP_PHASES, "waiting")  # phases of a training step
PHASES = (*TRAINING_PHASES, "evaluation", "checkpoint", "compilation", "other")


class PhaseTimer:
    """Timer of the seconds spent in each phase; a nested phase is not counted in the outer one.

    ``with clock("forward"):`` is a phase. A GPU executes kernels asynchronously, so CUDA events time the phases of a
    step there: those of the last step outside a CUDA graph.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.entry_counts: defaultdict[str, int] = defaultdict(int)
        self.events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}
        self.phase, self.phase_start = "other", time.monotonic()
        self.override = ""  # phase that all time counts for inside count_as()

    def __call__(self, phase: str) -> "TimedPhase":
        """Return a context whose time counts for the phase."""
        return TimedPhase(self, phase)

    def restart(self) -> None:
        """Do not count the time since the start, or the last change of the phase."""
        self.phase_start = time.monotonic()

    def switch(self, phase: str) -> str:
        """Count the time for this phase from now on, and return the previous phase."""
        now = time.monotonic()
        self.seconds[self.override or self.phase] += now - self.phase_start
        previous, self.phase, self.phase_start = self.phase, phase, now
        return previous

    @contextmanager
    def count_as(self, phase: str) -> Iterator[None]:
        """Count all time in the context for the phase, nested phases included; an empty name has no effect."""
        if not phase:
            yield
            return
        self.switch(self.phase)
        self.override = phase
        try:
            yield
        finally:
            self.switch(self.phase)
            self.override = ""

    def compute_seconds(self, num_steps: int) -> dict[str, float]:
        """Compute the seconds of each phase so far, in the order of :data:`PHASES`.

        On a GPU, the time of the steps and of waiting for them is distributed over the phases in proportion to their
        CUDA events. The time in which the GPU was idle stays in ``waiting``.

        Args:
            num_steps: number of training steps in that time.
        """
        self.switch(self.phase)
        seconds = dict(self.seconds)
        if self.events:
            for _, end in self.events.values():
                end.synchronize()  # the last step may still be running, and a pending event has no time
            busy = {
                phase: start.elapsed_time(end) / 1e3 * self.entry_counts[phase]
                for phase, (start, end) in self.events.items()
            }
            total = sum(seconds.get(phase, 0.0) for phase in (*STEP_PHASES, "waiting"))
            # a replayed CUDA graph enters no phase
            steps_per_entry = num_steps / max(self.entry_counts["optimizer"], 1)
            factor = min(steps_per_entry, total / max(sum(busy.values()), 1e-9))
            seconds |= {phase: factor * busy[phase] for phase in busy}
            seconds["waiting"] = total - sum(seconds[phase] for phase in busy)
        return {phase: seconds[phase] for phase in PHASES if seconds.get(phase, 0.0) > 0}

    def add(self, seconds: dict[str, float]) -> None:
        """Add seconds per phase, such as those measured before a run was resumed."""
        for phase, value in seconds.items():
            self.seconds[phase] += value


class TimedPhase:
    """Context of :class:`PhaseTimer`; a class, because a generator would slow down the steps of small networks."""

    def __init__(self, timer: PhaseTimer, phase: str) -> None:
        self.timer, self.phase = timer, phase

    def __enter__(self) -> None:
        timer = self.timer
        self.previous = timer.switch(self.phase)
        self.is_timed = timer.on_gpu and self.phase in STEP_PHASES and not torch.cuda.is_current_stream_capturing()
        if self.is_timed:
            timer.entry_counts[self.phase] += 1
            if self.phase not in timer.events:
                timer.events[self.phase] = (_create_event(), _create_event())
            timer.events[self.phase][0].record()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.is_timed:
            self.timer.events[self.phase][1].record()
        self.timer.switch(self.previous)


def _create_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
