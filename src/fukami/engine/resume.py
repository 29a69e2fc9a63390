"""Exact resumption of a run: checkpoint metadata and signals."""

import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import torch

from fukami.data.manifest import Manifest
from fukami.engine import run_record
from fukami.errors import Error, UsageError

logger = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 4  # format version of last.ckpt
CheckpointMetadata = dict[str, int | str | dict[str, str] | None]


def get_checkpoint_metadata(manifest: str | None) -> CheckpointMetadata:
    """Return the metadata of a new checkpoint: format, versions, threads and manifest.

    Args:
        manifest: the digest of the data's manifest.
    """
    versions, threads = run_record.get_versions(), torch.get_num_threads()
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
        run_record.record_resumption(folder, {"step": state["step"], **changes})
    return current


def _format_versions(versions: object) -> str:
    """Format versions by name as text."""
    known = versions if isinstance(versions, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in known.items()) or "an unknown version"


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
            # the training failed before it could exit: the previous handler gets the signal
            signal.raise_signal(self.received_signal)
