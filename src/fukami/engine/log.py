"""The log of a run: lines in ``metrics.jsonl``, progress on stderr, and at the end the report."""

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.flop_counter import FlopCounterMode

from fukami.engine import checkpoint
from fukami.engine.recipe import Recipe, build_train_command
from fukami.engine.runtime import Runtime
from fukami.engine.task import Task
from fukami.errors import WriteError
from fukami.explain.summary import count_costs
from fukami.timing import TRAINING_PHASES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


class TrainingLogger:
    """Writes what happens in a training; silent in all processes but the first.

    Args:
        folder: of the run.
        recipe, runtime: what is trained, and where.
        steps: updates in the whole training.
        epoch: updates in a pass over the data.
        work: how much there is before a step, by which the time that is left is told.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, runtime: Runtime, steps: int, epoch: int, work: Callable[[int], float]
    ) -> None:
        self.folder, self.recipe, self.runtime = folder, recipe, runtime
        self.steps, self.epoch, self.work, self.clock = steps, epoch, work, runtime.clock
        self.path = folder / "metrics.jsonl"
        self.last: dict[str, Any] = {}
        self.multiply_adds = 0  # of a step, over all processes
        self.before = 0.0  # seconds spent before this process took over
        self.began = self.looked = time.monotonic()
        self.step = 0
        self.console = Console(stderr=True, quiet=not runtime.main)
        self.progress = Progress(
            TextColumn("{task.fields[place]}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not (runtime.main and self.console.is_terminal),
        )
        self.bar = self.progress.add_task("", total=work(steps), place=self._place(0), values="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def begin(self, labels: tuple[str, ...], compile: bool, task: Task) -> None:
        """A run's first step: write down what it is and what its networks cost, which ``fukami board`` shows."""
        if self.runtime.main:
            prepare: Any = getattr(task, "prepare", None)
            square = hasattr(prepare, "channels") and hasattr(prepare, "size")
            shape = (prepare.channels, prepare.size, prepare.size) if square else None
            costs = count_costs(list(task.modules().values()), shape)
            note = {**costs, **describe_compute_config(self.recipe, self.runtime, compile)}
            checkpoint.write_recipe(self.folder, self.recipe, labels, note)
            with self._writing():
                self.path.write_bytes(b"")

    @contextmanager
    def counting(self, step: int) -> Iterator[None]:
        """Count the multiply-adds of what is computed in here, if it is the first step of the run."""
        if step > 0:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.multiply_adds = counter.get_total_flops() // 2 * self.runtime.world

    def trained(self, step: int, metrics: dict[str, float], rate: float, count: int, kind: str) -> None:
        """Log the means of the last steps; ``rate`` is the learning rate, ``count`` what a step sees of a ``kind``."""
        now = time.monotonic()
        speed = (step - self.step) * count / max(now - self.looked, 1e-9)
        self.step, self.looked = step, now
        self._write({"step": step, "phase": "train", **metrics, "lr": rate, f"{kind}_per_second": round(speed, 1)})
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.values = f"{values}  lr {rate:.2e}  {speed:,.0f} {kind}/s"
        name, first = next(iter(metrics.items()))  # the bar has one line of the terminal: the loss, and how fast
        self.progress.update(
            self.bar,
            completed=self.work(step),
            place=self._place(step),
            values=f"{name} {first:.4f} · {speed:,.0f} {kind}/s",
        )

    def evaluated(self, step: int, metrics: dict[str, Any], preview: "Image | None" = None) -> None:
        """Log an evaluation, say what it found over all, and keep the picture of it in ``preview.png``."""
        self.last = metrics
        self.looked = time.monotonic()  # the time of the evaluation is not the training's
        spent = self.seconds()
        self._write({"step": step, "phase": "eval", **metrics, "seconds": round(spent, 3)})
        if preview is not None and self.runtime.main:
            buffer = io.BytesIO()
            preview.save(buffer, "PNG")
            checkpoint.write_file(self.folder / "preview.png", buffer.getvalue())
        done, whole = self.work(step), self.work(self.steps)
        left = "" if self.progress.disable is False else f"  {_format_duration(spent / done * (whole - done))} left"
        answer = "  ".join(
            f"{name} {_format_number(value)}" for name, value in metrics.items() if not isinstance(value, dict)
        )
        self.console.print(
            f"{self._place(step)}  {self.values}{left}  |  {answer}",
            soft_wrap=True,
            highlight=False,
        )

    def stopped(self, step: int) -> None:
        """Say how to go on."""
        self.console.print(
            f"stopped at step {step} of {self.steps}; go on with: {build_train_command(self.recipe)} --out {self.folder} --resume",
            soft_wrap=True,
            highlight=False,
        )

    def finish(self, figures: "list[tuple[str, Figure | Sequence[Image]]]") -> dict[str, Any]:
        """Write the report; returns the last evaluation."""
        from fukami.engine import report

        if self.runtime.main:
            checkpoint.record_value(self.folder, "time", self.spent())
            report.write_report(self.folder, figures, self.seconds())
        return self.last

    def spent(self) -> dict[str, Any]:
        """Seconds by phase, and the multiply-adds per second of the training steps."""
        seconds = self.runtime.clock.spent(self.steps)
        training = sum(seconds.get(phase, 0.0) for phase in TRAINING_PHASES)
        rate = self.multiply_adds * self.steps / max(training, 1e-9)
        rounded = {phase: round(value, 3) for phase, value in seconds.items()}
        return {"seconds": rounded, "multiply_adds_per_second": rate}

    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self.before + time.monotonic() - self.began

    def state_dict(self) -> dict[str, Any]:
        """How far the log had come, for a resumed run."""
        clock = self.runtime.clock.spent(self.step)
        with self._writing():
            size = self.path.stat().st_size
        found = {"step": self.step, "bytes": size, "seconds": self.seconds(), "last": self.last}
        return found | {"clock": clock, "multiply_adds": self.multiply_adds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget what was logged after the checkpoint: it will happen again."""
        self.before, self.last = float(state["seconds"]), dict(state["last"])
        if not all(isinstance(value, int | float | dict) for value in self.last.values()):
            raise TypeError("the last evaluation has a value that is no number")
        json.dumps(self.last)
        self.step, self.looked = state.get("step", 0), time.monotonic()
        self.multiply_adds = int(state.get("multiply_adds", 0))
        self.runtime.clock.add(state.get("clock", {}))
        if self.runtime.main:
            with self._writing(), self.path.open("ab") as file:
                file.truncate(min(file.tell(), max(0, state["bytes"])))  # not longer, if it was cut meanwhile

    def _write(self, line: dict[str, Any]) -> None:
        if self.runtime.main:
            with self._writing(), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what to do if the log cannot be written."""
        try:
            yield
        except OSError as error:
            raise WriteError(self.path, error) from error

    def _place(self, step: int) -> str:
        """How far the training is: passes over the data, where one has several steps, and steps."""
        passes = f"epoch {-(-step // self.epoch)}/{-(-self.steps // self.epoch)}  " if self.epoch > 1 else ""
        return f"{passes}step {step}/{self.steps}"


def describe_compute_config(recipe: Recipe, runtime: Runtime, compile: bool) -> dict[str, Any]:
    """What a run is computed with, and the command that repeats it, for ``recipe.json``."""
    device, precision = runtime.device.type, runtime.precision
    return {
        "device": device,
        "precision": precision,
        "processes": runtime.world,
        "threads": torch.get_num_threads(),
        "compile": compile,
        "command": f"{build_train_command(recipe)} --device {device} --precision {precision}" + " --compile" * compile,
    }


def _format_number(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
