"""What a training needs to be stopped anywhere and go on as if it had not been."""

import random
import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch


def seed(number: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def random_states() -> dict[str, Any]:
    """The states of every random generator, in values that ``torch.load(weights_only=True)`` reads."""
    numpy_state = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set every random generator as :func:`random_states` found it."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"].cpu())


class Replayed:
    """Any other iterable of batches, made resumable: a pass cut off is begun again with the random states it had then,
    and the batches already seen are drawn and dropped.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.position = self.skip = 0
        self.begun: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        skip, self.skip = self.skip, 0
        now = random_states()
        if skip and self.begun is not None:
            set_random_states(self.begun)
        self.begun = random_states()
        batches = iter(self.batches)
        for _ in range(skip):
            next(batches)
        if skip:
            set_random_states(now)
        self.position = skip
        for batch in batches:
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, and the random states at the beginning of the pass."""
        return {"position": self.position, "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.skip, self.begun = state["position"], state["begun"]


class Stop:
    """Ctrl-C and SIGTERM ask the loop to save and leave; a second signal leaves at once."""

    asked = 0

    def __enter__(self) -> Self:
        self.previous: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self.handle)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                break
        return self

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal."""
        again, self.asked = self.asked > 0, number
        if again:
            self.leave()

    def leave(self) -> None:
        """Raise what Python raises for the signal: the exit status becomes 130 or 143."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.asked and kind is None:
            self.leave()  # asked while the report was made: whatever would come next does not begin
        if self.asked and kind is not None and issubclass(kind, Exception):
            signal.raise_signal(self.asked)  # we failed before we could leave: whoever else handles it does so
