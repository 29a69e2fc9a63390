"""Checkpoints that are written while the training goes on."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fukami.engine import checkpoint
from fukami.errors import Error, WriteError

MIN_CHECKPOINT_INTERVAL, MAX_CHECKPOINT_FRACTION = (
    1.0,
    0.02,
)  # a checkpoint this often, unless writing would take more than this share of the time


class CheckpointWriter:
    """Writes the run's checkpoint and weights in another thread, one after another; silent in all processes but one.

    What is written is a copy from the moment of the call, so that the training goes on at once.

    Args:
        folder: of the run.
        is_writer: whether this process is the one that writes.
    """

    def __init__(self, folder: Path, is_writer: bool) -> None:
        self.folder, self.is_writer = folder, is_writer
        self.next_save_time = time.monotonic() + MIN_CHECKPOINT_INTERVAL
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.thread is not None:
            self.thread.join()

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one, and the last one is written."""
        return (
            self.is_writer and time.monotonic() > self.next_save_time and not (self.thread and self.thread.is_alive())
        )

    def save(self, state: dict[str, Any], weights: dict[str, Tensor], files: Sequence[Path] = ()) -> None:
        """Write the weights and the state, once the last ones are written.

        Args:
            state: what ``last.ckpt`` holds.
            weights: what ``weights.safetensors`` holds.
            files: which the state refers to, so that they have to be on the disk before it.

        Raises:
            Error: the last ones could not be written, or held numbers that are not finite.
        """
        self.wait()
        if self.is_writer:
            copied = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), (state, weights))
            ready = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
            self.thread = threading.Thread(target=self._write, args=(*copied, files, ready), name="fukami checkpoint")
            self.thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk.

        Raises:
            Error: it is not; the one before stays.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error

    def _write(
        self,
        state: dict[str, Any],
        weights: dict[str, Tensor],
        files: Sequence[Path],
        ready: "torch.cuda.Event | None",
    ) -> None:
        began = time.monotonic()
        try:
            with _use_copy_stream(ready):
                unfit = [name for name, value in weights.items() if not value.isfinite().all()]
                state, weights = pytree.tree_map_only(Tensor, lambda value: value.cpu(), (state, weights))
            if unfit:
                raise Error(
                    f"the weights {unfit[0]} are no longer finite at step {state['step']}; the run stops here and its "
                    "last good checkpoint stays: try a lower learning rate, or --precision float32"
                )
            for file in files:
                _sync_file(file)
            # the state last: with an older one the training goes on and writes the weights again
            checkpoint.write_weights(self.folder, {name: value.contiguous() for name, value in weights.items()})
            checkpoint.write_state(self.folder, state)
        except WriteError as error:
            self.error = Error(f"the checkpoint of step {state['step']} is not written: {error}")
        except Exception as error:
            self.error = error
        ended = time.monotonic()
        self.next_save_time = ended + max(MIN_CHECKPOINT_INTERVAL, (ended - began) / MAX_CHECKPOINT_FRACTION)


def _sync_file(path: Path) -> None:
    """Bring what was written to a file, or to the memory that it is mapped to, to the disk."""
    try:
        file = os.open(path, os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise WriteError(path, error) from error


def _use_copy_stream(ready: "torch.cuda.Event | None") -> contextlib.AbstractContextManager[Any]:
    """On a stream of its own once the copies are made, so that no training step waits behind them."""
    if ready is None:
        return contextlib.nullcontext()
    # a new thread's own GPU is the first one, wherever the training is
    stream = torch.cuda.Stream(ready.device)  # type: ignore[no-untyped-call]
    stream.wait_event(ready)
    return torch.cuda.stream(stream)
