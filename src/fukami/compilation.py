"""When a network is compiled: as asked, or where trying it out shows that it pays."""

import logging
from collections.abc import Callable
from pathlib import Path

from fukami import checkpoint
from fukami.clock import TRAINING
from fukami.errors import UsageError
from fukami.runtime import Runtime

logger = logging.getLogger(__name__)
TRY = 600.0  # seconds that the rest of a training must last for a compilation of a minute or two to be worth a try
GAIN = 0.97  # of the time of a step, at most, for a compiled network to stay
WARM = 2  # looks before the time of a step means something


class Compilation:
    """Switches between the network as it is and compiled, at steps that the run's folder remembers.

    The first step of a run is never compiled, so that its multiply-adds can be counted. Whoever resumes the run
    switches at the same steps, since compiled networks round otherwise.

    Args:
        folder: of the run.
        runtime: its clock tells how long steps take.
        compile: makes the steps from now on compiled, or not.
        asked: always, never, or (None) where it pays.

    Raises:
        UsageError: it was asked for, and nothing here can compile.
    """

    def __init__(self, folder: Path, runtime: Runtime, compile: Callable[[bool], None], asked: bool | None) -> None:
        self.folder, self.runtime, self.compile = folder, runtime, compile
        self.switches: list[tuple[int, bool]] = [(1, True)] if asked else checkpoint.switches(folder)
        self.decided = asked is not None or bool(self.switches) or not runtime.can_compile()
        self.on, self.looks = False, 0
        self.seen = (0, 0.0)  # step and seconds of training at the last look
        self.plain = 0.0  # seconds of a step that is not compiled
        if asked and not runtime.can_compile():
            what = "Triton" if runtime.device.type == "cuda" else "a C++ compiler such as g++"
            raise UsageError(f"--compile needs {what}, and there is none here; install it, or leave --compile out")

    def switched(self, step: int) -> bool:
        """Whether the steps from here on are computed otherwise than those before; makes it so."""
        clock = self.runtime.clock
        clock.instead = ""
        wanted = next((on for at, on in reversed(self.switches) if at <= step), False)
        if wanted == self.on:
            return False
        self.on = wanted
        self.compile(wanted)
        clock.instead = "compilation" if wanted else ""
        return True

    def look(self, step: int, steps: int) -> None:
        """Decide what to do with the rest of the steps, now that nothing is left to wait for."""
        if self.decided:
            return
        clock = self.runtime.clock
        clock.turn(clock.phase)
        spent = sum(clock.seconds[phase] for phase in TRAINING)
        each = (spent - self.seen[1]) / max(step - self.seen[0], 1)
        self.seen, self.looks = (step, spent), self.looks + 1
        if self.looks < WARM:
            return
        if not self.on:
            self.plain = each
            if self.runtime.any(self.runtime.main and each * (steps - step) > TRY):
                self._switch(step, True, "compiling the network, to see whether its steps get faster")
        else:
            self.decided = True
            share = f"a step takes {each / self.plain:.0%} of the time it took"
            if self.runtime.any(self.runtime.main and each > GAIN * self.plain):
                self._switch(step, False, f"compiled, {share}: the network stays as it is")
            elif self.runtime.main:
                logger.warning(f"compiled, {share}: it stays so")

    def _switch(self, step: int, on: bool, what: str) -> None:
        self.looks = 0
        self.switches.append((step, on))
        if self.runtime.main:
            checkpoint.note(self.folder, "switches", self.switches)
            logger.warning(what)
