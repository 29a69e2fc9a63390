"""Where the time of a training goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

STEP_PHASES = ("forward", "backward", "optimizer")  # the phases that a GPU computes while the processor is ahead of it
TRAINING_PHASES = ("data", "host to device", *STEP_PHASES, "waiting")  # what steps consist of
PHASES = (*TRAINING_PHASES, "evaluation", "checkpoint", "compilation", "other")


class PhaseTimer:
    """Seconds by phase; a phase inside another one is not counted in the outer one.

    ``with clock("forward"):`` is a phase. On a GPU the processor only launches what the GPU computes later, so events
    of the GPU time the phases of a step there, those of its last uncaptured step.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.entry_counts: defaultdict[str, int] = defaultdict(int)
        self.events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}
        self.phase, self.phase_start = "other", time.monotonic()
        self.override = ""  # the phase that everything counts for while it lasts, whatever is entered
        self.step = -1  # the training's, once it steps, for whoever asks what this process is doing

    def __call__(self, phase: str) -> "TimedPhase":
        """A context in which the time counts for the phase."""
        return TimedPhase(self, phase)

    def switch(self, phase: str) -> str:
        """From now on the time counts for this phase; returns the one before."""
        now = time.monotonic()
        self.seconds[self.override or self.phase] += now - self.phase_start
        before, self.phase, self.phase_start = self.phase, phase, now
        return before

    @contextmanager
    def count_as(self, phase: str) -> Iterator[None]:
        """Count all time in the context for the phase, whatever is entered there; an empty name changes nothing."""
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
        """Seconds of each phase so far, in the order of :data:`PHASES`, of which ``num_steps`` training steps are part.

        On a GPU the time that steps took and were waited for is shared out among their phases as its events say; what
        the GPU did not compute in is still waiting.
        """
        self.switch(self.phase)
        seconds = dict(self.seconds)
        if self.events:
            for _, ended in self.events.values():
                ended.synchronize()  # a step may have been launched just now, and what is computed still is not timed
            busy = {
                phase: begun.elapsed_time(ended) / 1e3 * self.entry_counts[phase]
                for phase, (begun, ended) in self.events.items()
            }
            whole = sum(seconds.get(phase, 0.0) for phase in (*STEP_PHASES, "waiting"))
            captured = num_steps / max(self.entry_counts["optimizer"], 1)  # replays of a captured step enter no phase
            factor = min(captured, whole / max(sum(busy.values()), 1e-9))
            seconds |= {phase: factor * busy[phase] for phase in busy}
            seconds["waiting"] = whole - sum(seconds[phase] for phase in busy)
        return {phase: seconds[phase] for phase in PHASES if seconds.get(phase, 0.0) > 0}

    def add(self, seconds: dict[str, float]) -> None:
        """Count what was spent before this process took over."""
        for phase, value in seconds.items():
            self.seconds[phase] += value


class TimedPhase:
    """A context of :class:`PhaseTimer`; a class, since a generator would cost a step of a small network its time."""

    def __init__(self, timer: PhaseTimer, phase: str) -> None:
        self.timer, self.phase = timer, phase

    def __enter__(self) -> None:
        clock = self.timer
        self.previous = clock.switch(self.phase)
        self.is_timed = clock.on_gpu and self.phase in STEP_PHASES and not torch.cuda.is_current_stream_capturing()
        if self.is_timed:
            clock.entry_counts[self.phase] += 1
            if self.phase not in clock.events:
                clock.events[self.phase] = (_create_event(), _create_event())
            clock.events[self.phase][0].record()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.is_timed:
            self.timer.events[self.phase][1].record()
        self.timer.switch(self.previous)


def _create_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
