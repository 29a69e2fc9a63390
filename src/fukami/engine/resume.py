"""What a training needs to be stopped anywhere and go on as if it had not been."""

import logging
import random
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch

from fukami.data.manifest import Manifest
from fukami.engine import checkpoint
from fukami.errors import Error, UsageError

logger = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 1  # of what last.ckpt holds


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Raises:
        UsageError: it has more than 64 bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"seed should have at most 64 bits, not be {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_states() -> dict[str, Any]:
    """The states of every random generator, in values that a checkpoint can hold."""
    numpy_state = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set every random generator as :func:`get_random_states` found it."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"].cpu())


def get_checkpoint_metadata(manifest: str | None) -> dict[str, Any]:
    """What a checkpoint holds of the conditions that it was written under.

    Args:
        manifest: the digest of the data.
    """
    versions, threads = checkpoint.get_versions(), torch.get_num_threads()
    return {"format": CHECKPOINT_FORMAT, "versions": versions, "threads": threads, "manifest": manifest}


def check_checkpoint_metadata(
    folder: Path, state: dict[str, Any], manifest: Manifest, allow_changed_data: bool
) -> dict[str, Any]:
    """Refuse a checkpoint of an unknown format or of other data; say and record what else is otherwise than it was.

    Returns the conditions under which the run goes on.

    Args:
        folder: of the run.
        state: what the checkpoint holds.
        manifest: what the run would go on with.
        allow_changed_data: say and record it if the data are others, too.

    Raises:
        UsageError: the data are others.
        Error: the format is unknown.
    """
    now = get_checkpoint_metadata(manifest.compute_digest())
    before = {name: state.get(name) for name in now}
    if before["format"] != CHECKPOINT_FORMAT:
        raise Error(
            f"{folder / 'last.ckpt'} has the format {before['format']!r} and was written by "
            f"{_format_versions(before['versions'])}; this is {_format_versions(now['versions'])}, which reads the "
            f"format {CHECKPOINT_FORMAT}: resume the run with the version that it was begun with, or begin it again in "
            "another --out"
        )
    facts = {name: now[name] for name in ("versions", "threads") if now[name] != before[name]}
    if now["manifest"] != before["manifest"]:
        found = manifest.compare(folder, before["manifest"])
        if not allow_changed_data:
            raise UsageError(
                f"the data of {folder} have changed since its checkpoint: {found}; put them back as they were, or go "
                "on with --allow-changed-data, which the run then records"
            )
        logger.warning(f"the data have changed since the checkpoint: {found}; the run goes on with them as they are")
        facts["data"] = found
        manifest.write(folder)
    if "versions" in facts:
        logger.warning(
            f"the checkpoint is of {_format_versions(before['versions'])}, and this is "
            f"{_format_versions(now['versions'])}: equal numbers are not promised"
        )
    if "threads" in facts:
        logger.warning(
            f"the checkpoint was computed with {before['threads']} threads, and OMP_NUM_THREADS says {now['threads']}: "
            "sums may be rounded otherwise"
        )
    if facts:
        checkpoint.record_resumption(folder, {"step": state["step"], **facts})
    return now


def _format_versions(versions: Any) -> str:
    """Versions by name in words."""
    known = versions if isinstance(versions, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in known.items()) or "an unknown version"


class ResumableLoader:
    """Any other iterable of batches, made resumable: a pass cut off is begun again with the random states it had then,
    and the batches already seen are drawn and dropped.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.position = self.num_skip = 0
        self.start_states: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        skip, self.num_skip = self.num_skip, 0
        now = get_random_states()
        if skip and self.start_states is not None:
            set_random_states(self.start_states)
        self.start_states = get_random_states()
        batches = iter(self.batches)
        for _ in range(skip):
            next(batches, None)  # there may be fewer than there were
        if skip:
            set_random_states(now)
        self.position = skip
        for batch in batches:
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, and the random states at the beginning of the pass."""
        return {"position": self.position, "begun": self.start_states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.num_skip, self.start_states = state["position"], state["begun"]


class SignalHandler:
    """Ctrl-C and SIGTERM ask the loop to save and leave; a second signal leaves at once."""

    received_signal = 0

    def __enter__(self) -> Self:
        self.previous_handlers: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous_handlers[number] = signal.signal(number, self.handle)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                break
        return self

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal."""
        again, self.received_signal = self.received_signal > 0, number
        if again:
            self.exit()

    def exit(self) -> None:
        """Raise what Python raises for the signal: the exit status becomes 130 or 143."""
        if self.received_signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        if self.received_signal and kind is None:
            self.exit()  # asked while the report was made: whatever would come next does not begin
        if self.received_signal and kind is not None and issubclass(kind, Exception):
            signal.raise_signal(
                self.received_signal
            )  # we failed before we could leave: whoever else handles it does so
