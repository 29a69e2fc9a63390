"""Log of a run: metrics in ``metrics.jsonl``, progress on stderr, and the final report."""

import io
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.contrib.logging import logging_redirect_tqdm

from fukami.data.loader import StateDict
from fukami.engine import checkpoint
from fukami.engine.recipe import Recipe, build_train_command
from fukami.engine.runtime import Runtime
from fukami.engine.task import Metrics, Task
from fukami.errors import WriteError
from fukami.explain.summary import count_costs
from fukami.image.transform import SquareTransform
from fukami.progress import ProgressBar
from fukami.timing import TRAINING_PHASES

if TYPE_CHECKING:
    from PIL.Image import Image

    from fukami.engine.task import FigureContent


BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar:12}| {remaining}{postfix}"


class TrainingLogger:
    """Logger of metrics and progress; only the first process writes.

    Args:
        folder: the run's folder.
        recipe, runtime: the recipe that is trained, and its runtime.
        num_steps: steps of the whole run.
        steps_per_epoch: steps per epoch.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        runtime: Runtime,
        num_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self.folder, self.recipe, self.runtime, self.clock = folder, recipe, runtime, runtime.clock
        self.num_steps, self.steps_per_epoch = num_steps, steps_per_epoch
        self.path = folder / "metrics.jsonl"
        self.last_metrics: Metrics = {}
        self.multiply_adds = 0  # per step, over all processes
        self.previous_seconds = 0.0  # seconds of training before the resumption
        self.start_time = self.last_log_time = time.monotonic()
        self.step = 0
        self.bar = ProgressBar(self._format_position(0), num_steps, BAR_FORMAT, disable=not runtime.is_main)
        self.contexts = ExitStack()

    def __enter__(self) -> Self:
        self.contexts.enter_context(self.bar)
        if not self.bar.disable:
            self.contexts.enter_context(logging_redirect_tqdm(tqdm_class=ProgressBar))  # warnings above the bar
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.contexts.close()

    def start_run(self, labels: tuple[str, ...], compile: bool, task: Task) -> None:
        """Write ``recipe.json`` with the costs of the networks, which ``fukami board`` shows, and an empty log."""
        if self.runtime.is_main:
            shape = None
            if isinstance(task.transform, SquareTransform):
                shape = (task.transform.channels, task.transform.size, task.transform.size)
            costs = count_costs(list(task.get_modules().values()), shape)
            extra = {**costs, **describe_compute_config(self.recipe, self.runtime, compile)}
            checkpoint.write_recipe(self.folder, self.recipe, labels, extra)
            with self._check_write_errors():
                self.path.write_bytes(b"")

    @contextmanager
    def count_multiply_adds(self, step: int) -> Iterator[None]:
        """Count the multiply-adds within the context, at the first step of the run only."""
        if step > 0:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.multiply_adds = counter.get_total_flops() // 2 * self.runtime.world_size

    def log_training(self, step: int, metrics: dict[str, float], lr: float, samples_per_step: int, unit: str) -> None:
        """Log the mean metrics of the last steps.

        Args:
            step: number of steps so far.
            metrics: the means by name; the first one is the loss.
            lr: the learning rate.
            samples_per_step: samples per step, over all processes.
            unit: name of the samples, such as ``images``.
        """
        now = time.monotonic()
        speed = (step - self.step) * samples_per_step / max(now - self.last_log_time, 1e-9)
        self.step, self.last_log_time = step, now
        self._write_line({"step": step, "phase": "train", **metrics, "lr": lr, f"{unit}_per_second": round(speed, 1)})
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.last_summary = f"{values}  lr {lr:.2e}  {speed:,.0f} {unit}/s"
        name, first = next(iter(metrics.items()))  # the bar has one terminal line: the loss and the speed
        self.bar.set_description_str(self._format_position(step), refresh=False)
        self.bar.set_postfix_str(f"{name} {first:.4f} · {speed:,.0f} {unit}/s", refresh=False)
        self.bar.update(step - self.bar.n)

    def log_evaluation(self, step: int, metrics: Metrics, preview: "Image | None" = None) -> None:
        """Log an evaluation, print its overall metrics, and save its image as ``preview.png``."""
        self.last_metrics = metrics
        self.last_log_time = time.monotonic()  # the training speed excludes the time of the evaluation
        elapsed = self.get_elapsed_seconds()
        self._write_line({"step": step, "phase": "eval", "split": "val", **metrics, "seconds": round(elapsed, 3)})
        if preview is not None and self.runtime.is_main:
            buffer = io.BytesIO()
            preview.save(buffer, "PNG")
            checkpoint.write_file(self.folder / "preview.png", buffer.getvalue())
        remaining = (
            "" if not self.bar.disable else f"  {_format_duration(elapsed / step * (self.num_steps - step))} left"
        )
        self._print(f"{self._format_position(step)}  {self.last_summary}{remaining}  |  {_format_metrics(metrics)}")

    def log_best(self, step: int, metrics: Metrics) -> None:
        """Print at which step the best weights were evaluated."""
        self._print(f"best weights: {self._format_position(step)}  |  {_format_metrics(metrics)}")

    def log_test(self, metrics: Metrics) -> None:
        """Log the evaluation on the test data, which ends the run, and print its overall metrics."""
        seconds = round(self.get_elapsed_seconds(), 3)
        self._write_line({"step": self.step, "phase": "test", "split": "test", **metrics, "seconds": seconds})
        self._print(f"test  {_format_metrics(metrics)}")

    def log_stop(self, step: int) -> None:
        """Print the command that resumes the run."""
        command = f"{build_train_command(self.recipe)} --out {self.folder} --resume"
        self._print(f"stopped at step {step} of {self.num_steps}; resume with: {command}")

    def finish(self, figures: "list[tuple[str, FigureContent]]", metrics: Metrics, split: str) -> Metrics:
        """Write the report, and return the metrics of the final result with the name of its split."""
        from fukami.engine import report

        result: Metrics = {**metrics, "split": split} if metrics else {}
        if self.runtime.is_main:
            checkpoint.record_value(self.folder, "time", self.summarize_time())
            report.write_report(self.folder, figures, result, self.get_elapsed_seconds())
        return result

    def summarize_time(self) -> dict[str, dict[str, float] | float]:
        """Return the seconds of each phase and the multiply-adds per second of the training steps."""
        seconds = self.runtime.clock.compute_seconds(self.step)
        training = sum(seconds.get(phase, 0.0) for phase in TRAINING_PHASES)
        rate = self.multiply_adds * self.step / max(training, 1e-9)
        rounded = {phase: round(value, 3) for phase, value in seconds.items()}
        return {"seconds": rounded, "multiply_adds_per_second": rate}

    def get_elapsed_seconds(self) -> float:
        """Return the seconds of training so far, including those before a resumption."""
        return self.previous_seconds + time.monotonic() - self.start_time

    def state_dict(self) -> StateDict:
        """Return the state of the log for a checkpoint."""
        clock = self.runtime.clock.compute_seconds(self.step)
        with self._check_write_errors():
            size = self.path.stat().st_size
        state = {"step": self.step, "bytes": size, "seconds": self.get_elapsed_seconds(), "last": self.last_metrics}
        return state | {"clock": clock, "multiply_adds": self.multiply_adds}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state and truncate the log to it: the steps after the checkpoint run again."""
        self.previous_seconds, self.last_metrics = float(state["seconds"]), dict(state["last"])
        if not all(isinstance(value, int | float | dict) for value in self.last_metrics.values()):
            raise TypeError("the last evaluation has a value that is not a number")
        json.dumps(self.last_metrics)
        self.step, self.last_log_time = state.get("step", 0), time.monotonic()
        self.bar.n = self.bar.initial = self.step
        self.multiply_adds = int(state.get("multiply_adds", 0))
        self.runtime.clock.add(state.get("clock", {}))
        if self.runtime.is_main:
            with self._check_write_errors(), self.path.open("ab") as file:
                file.truncate(min(file.tell(), max(0, state["bytes"])))  # never extend a log that has become shorter

    def _print(self, text: str) -> None:
        if self.runtime.is_main:
            self.bar.write(text, file=sys.stderr)

    def _write_line(self, line: Mapping[str, object]) -> None:
        if self.runtime.is_main:
            with self._check_write_errors(), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    @contextmanager
    def _check_write_errors(self) -> Iterator[None]:
        """Turn an OSError within the context into a WriteError of the log."""
        try:
            yield
        except OSError as error:
            raise WriteError(self.path, error) from error

    def _format_position(self, step: int) -> str:
        """Format the position in the training: the step, and the epoch if it has several steps."""
        epochs = (
            f"epoch {-(-step // self.steps_per_epoch)}/{-(-self.num_steps // self.steps_per_epoch)}  "
            if self.steps_per_epoch > 1
            else ""
        )
        return f"{epochs}step {step}/{self.num_steps}"


def describe_compute_config(recipe: Recipe, runtime: Runtime, compile: bool) -> dict[str, str | int]:
    """Return the compute configuration of a run and the command that repeats it, for ``recipe.json``."""
    device, precision = runtime.device.type, runtime.precision
    return {
        "device": device,
        "precision": precision,
        "processes": runtime.world_size,
        "threads": torch.get_num_threads(),
        "compile": compile,
        "command": f"{build_train_command(recipe)} --device {device} --precision {precision}" + " --compile" * compile,
    }


def _format_metrics(metrics: Metrics) -> str:
    """Format the metrics that are numbers."""
    numbers = {name: value for name, value in metrics.items() if not isinstance(value, dict)}
    return "  ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items()
    )


def _format_duration(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    return f"{minutes}:{seconds_left:02d}"
