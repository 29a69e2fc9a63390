"""Exact resumption of a run: random states, checkpoint metadata, loader position and signals."""

import logging
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypedDict

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fukami.data.loader import Loader, StateDict
from fukami.data.manifest import Manifest, ManifestItem, hash_tensors
from fukami.engine import checkpoint
from fukami.errors import Error, UsageError

logger = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 3  # format version of last.ckpt
CheckpointMetadata = dict[str, int | str | dict[str, str] | None]


class RandomStates(TypedDict):
    """States of all random generators, in values that a checkpoint can contain."""

    python: tuple[int | tuple[int, ...] | float | None, ...]
    numpy: list[Any]  # kind of generator, list of integers, two integers and a float
    torch: torch.Tensor
    cuda: torch.Tensor | None


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Raises:
        UsageError: the seed has more than 64 bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"--seed should have at most 64 bits, not be {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_states() -> RandomStates:
    """Return the state of every random generator."""
    numpy_state = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: RandomStates) -> None:
    """Restore the states that :func:`get_random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"].cpu())


def get_checkpoint_metadata(manifest: str | None) -> CheckpointMetadata:
    """Return the metadata of a new checkpoint: format, versions, threads and manifest.

    Args:
        manifest: the digest of the data's manifest.
    """
    versions, threads = checkpoint.get_versions(), torch.get_num_threads()
    return {"format": CHECKPOINT_FORMAT, "versions": versions, "threads": threads, "manifest": manifest}


def check_checkpoint_metadata(
    folder: Path, state: Mapping[str, object], manifest: Manifest, allow_changed_data: bool
) -> CheckpointMetadata:
    """Check the metadata of a checkpoint; warn about other versions or threads, and record them in ``recipe.json``.

    Returns the metadata of the resumed run.

    Args:
        folder: the run's folder.
        state: the content of the checkpoint.
        manifest: the manifest of the current data.
        allow_changed_data: only warn and record if the data have changed.

    Raises:
        UsageError: the data have changed.
        Error: the format of the checkpoint is unknown.
    """
    current = get_checkpoint_metadata(manifest.compute_digest())
    previous = {name: state.get(name) for name in current}
    if previous["format"] != CHECKPOINT_FORMAT:
        raise Error(
            f"{folder / 'last.ckpt'} has the format {previous['format']!r} and was written by "
            f"{_format_versions(previous['versions'])}; this is {_format_versions(current['versions'])}, which reads "
            f"the format {CHECKPOINT_FORMAT}: resume the run with its original version, or start it again in another "
            "--out"
        )
    changes = {name: current[name] for name in ("versions", "threads") if current[name] != previous[name]}
    digest = previous["manifest"]
    if current["manifest"] != digest:
        data_changes = manifest.compare(folder, digest if isinstance(digest, str) else None)
        if not allow_changed_data:
            raise UsageError(
                f"the data of {folder} have changed since its checkpoint: {data_changes}; restore them, or continue "
                "with --allow-changed-data, which the run records"
            )
        logger.warning(
            f"the data have changed since the checkpoint: {data_changes}; the run continues with the new data"
        )
        changes["data"] = data_changes
        manifest.write(folder)
    if "versions" in changes:
        logger.warning(
            f"the checkpoint is of {_format_versions(previous['versions'])}, and this is "
            f"{_format_versions(current['versions'])}: equal numbers are not guaranteed"
        )
    if "threads" in changes:
        logger.warning(
            f"the checkpoint was computed with {previous['threads']} threads, and this process has "
            f"{current['threads']} (OMP_NUM_THREADS): sums may be rounded differently"
        )
    if changes:
        checkpoint.record_resumption(folder, {"step": state["step"], **changes})
    return current


def _format_versions(versions: object) -> str:
    """Format versions by name as text."""
    known = versions if isinstance(versions, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in known.items()) or "an unknown version"


class ResumableLoader(Loader):
    """Loader of any iterable of batches.

    An interrupted epoch is restarted with its initial random states, and the batches already used are skipped.
    """

    def __init__(self, batches: Iterable[object]) -> None:
        self.batches = batches
        self.position = self.num_skip = 0
        self.start_states: RandomStates | None = None

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        if not isinstance(self.batches, Sized):
            raise TypeError("the training batches have no length")
        return len(self.batches)

    def __iter__(self) -> Iterator[object]:
        """Iterate over one epoch."""
        skip, self.num_skip = self.num_skip, 0
        current_states = get_random_states()
        if skip and self.start_states is not None:
            set_random_states(self.start_states)
        self.start_states = get_random_states()
        batches = iter(self.batches)
        for _ in range(skip):
            next(batches, None)  # there may be fewer batches than before
        if skip:
            set_random_states(current_states)
        self.position = skip
        for batch in batches:
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> StateDict:
        """Return the position in the epoch and the random states at its start."""
        return {"position": self.position, "start_states": self.start_states}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the position; the next epoch skips the batches before it."""
        self.num_skip, self.start_states = state["position"], state["start_states"]

    def iterate_items(self) -> Iterator[ManifestItem] | None:
        """Iterate over the only item, the tensors of a list or tuple of batches; other batches are not listed."""
        if not isinstance(self.batches, list | tuple) or not self.batches:
            return None
        tensors = [leaf for leaf in pytree.tree_leaves(self.batches) if isinstance(leaf, torch.Tensor)]
        return (ManifestItem("batches in memory", *hash_tensors(*part)) for part in (tensors,))


def wrap_batches(batches: Iterable[object]) -> Loader:
    """Return a loader unchanged, and any other iterable of batches as a loader."""
    return batches if isinstance(batches, Loader) else ResumableLoader(batches)


class SignalHandler:
    """Handler of Ctrl-C and SIGTERM: the training loop saves and exits; a second signal exits at once."""

    received_signal = 0

    def __enter__(self) -> Self:
        self.previous_handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous_handlers[signal_number] = signal.signal(signal_number, self.handle)
            except ValueError:  # outside the main thread, the caller handles signals
                break
        return self

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """Record the signal; exit if it is the second one."""
        is_second, self.received_signal = self.received_signal > 0, signal_number
        if is_second:
            self.exit()

    def exit(self) -> None:
        """Raise the exception of the signal, for the exit status 130 or 143."""
        if self.received_signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signal_number, handler in self.previous_handlers.items():
            signal.signal(signal_number, handler)
        if self.received_signal and kind is None:
            self.exit()  # the signal arrived after the last step, such as during the report: run nothing after it
        if self.received_signal and kind is not None and issubclass(kind, Exception):
            signal.raise_signal(
                self.received_signal
            )  # the training failed before it could exit: the previous handler gets the signal
