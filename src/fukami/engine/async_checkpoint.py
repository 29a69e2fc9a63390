"""Asynchronous checkpoints: a background thread writes them while the training continues."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fukami.engine import checkpoint, run_weights
from fukami.errors import RESUME_HINT, Error, WriteError

MIN_CHECKPOINT_INTERVAL = 1.0  # seconds between two checkpoints
MAX_CHECKPOINT_FRACTION = 0.02  # maximum fraction of the time in which checkpoints are written


class CheckpointWriter:
    """Writer of the run's checkpoint and weights in a background thread, one save at a time.

    Each save writes a copy made at the call, so the training continues at once. Only one process writes.

    Args:
        folder: the run's folder.
        is_writer: whether this process writes.
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
        """True if the next save is due and the last one has ended."""
        return (
            self.is_writer and time.monotonic() > self.next_save_time and not (self.thread and self.thread.is_alive())
        )

    def save(
        self,
        state: dict[str, object],
        weights: dict[str, Tensor],
        files: Sequence[Path] = (),
        best_weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Start to write the weights and the state, after the previous save has ended.

        Args:
            state: the content of ``last.ckpt``.
            weights: the content of ``weights.safetensors``.
            files: files that the state refers to; they are synced to disk before it is written.
            best_weights: the new content of ``best.safetensors``, on the CPU; it is not copied.

        Raises:
            Error: the previous save failed, or its weights were not finite.
        """
        self.wait()
        if self.is_writer:
            copies = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), (state, weights))
            on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            ready = torch.cuda.current_stream().record_event() if on_gpu else None
            self.thread = threading.Thread(
                target=self._write, args=(*copies, files, best_weights, ready), name="fukami checkpoint"
            )
            self.thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            Error: it could not be written; the previous checkpoint is kept.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error

    def _write(
        self,
        state: dict[str, object],
        weights: dict[str, Tensor],
        files: Sequence[Path],
        best_weights: dict[str, Tensor] | None,
        ready: "torch.cuda.Event | None",
    ) -> None:
        start = time.monotonic()
        try:
            with _use_copy_stream(ready):
                non_finite = [name for name, value in weights.items() if not value.isfinite().all()]
                state, weights = pytree.tree_map_only(Tensor, lambda value: value.cpu(), (state, weights))
            if non_finite:
                raise Error(
                    f"the weights {non_finite[0]} are not finite at step {state['step']}; the run stops here and keeps "
                    "its last valid checkpoint: try a lower learning rate, or --precision float32"
                )
            for file in files:
                sync_file(file)
            # the state last: a run that resumes from an older state writes the weights again
            run_weights.write_weights(self.folder, weights)
            if best_weights is not None:
                run_weights.write_weights(self.folder, best_weights, name="best.safetensors")
            checkpoint.write_checkpoint(self.folder, state)
        except WriteError as error:
            self.error = Error(f"cannot write the checkpoint of step {state['step']}: {error}. {RESUME_HINT}")
        except Exception as error:
            self.error = error
        end = time.monotonic()
        self.next_save_time = end + max(MIN_CHECKPOINT_INTERVAL, (end - start) / MAX_CHECKPOINT_FRACTION)


def sync_file(path: Path) -> None:
    """Sync a file, or the memory that maps it, to disk."""
    try:
        file = os.open(path, os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise WriteError(path, error) from error


def _use_copy_stream(ready: "torch.cuda.Event | None") -> contextlib.AbstractContextManager[object]:
    """Enter a separate CUDA stream that waits for the copies, so that training steps do not wait for the transfer."""
    if ready is None:
        return contextlib.nullcontext()
    # the default device of a new thread is the first GPU, which may not be the run's device
    stream = torch.cuda.Stream(ready.device)  # type: ignore[no-untyped-call]
    stream.wait_event(ready)
    return torch.cuda.stream(stream)
