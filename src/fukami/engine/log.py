"""Log of a run: metrics in ``metrics.jsonl``, progress on stderr, and the final report."""

import contextlib
import io
import json
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.contrib.logging import logging_redirect_tqdm

from fukami import atomic_file
from fukami.data import sources
from fukami.data.loader import StateDict, check_counts
from fukami.engine import run_record
from fukami.engine.recipe import Data, Recipe, build_resume_command, build_train_command, get_recipe_name, has_batches
from fukami.engine.resumable_loader import wrap_batches
from fukami.engine.runtime import Runtime
from fukami.engine.task import Metrics, Task
from fukami.errors import Error, WriteError
from fukami.explain.summary import count_costs
from fukami.image.transform import SquareTransform
from fukami.progress import MIN_SECONDS, ProgressBar, format_count, format_duration, print_line
from fukami.timing import TRAINING_PHASES

if TYPE_CHECKING:
    from PIL.Image import Image

    from fukami.engine.task import FigureContent


FIRST_LINE_SECONDS = 10.0  # seconds until the first plain line, if no step is logged before


class TrainingBar(ProgressBar):
    """Progress of the training steps.

    Args:
        num_steps: steps of the whole run.
        steps_per_epoch: steps per epoch.
    """

    bar_delay = 0.0

    def __init__(self, num_steps: int, steps_per_epoch: int) -> None:
        self.num_steps, self.steps_per_epoch = num_steps, steps_per_epoch
        self.summary = ""  # metrics and speed of the last log line
        self.first_step: tuple[int, float] | None = None  # first step of this process, and the time of its end
        super().__init__("", num_steps, "steps", "{position} {percentage:3.0f}% |{bar:12}| {remaining}{postfix}")

    @property
    def first_line(self) -> float:  # type: ignore[override]
        """Seconds until the first plain line: earlier if it has metrics and the remaining time."""
        return MIN_SECONDS if self.summary and self.format_remaining() else FIRST_LINE_SECONDS

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        """Values of the bar format."""
        return {**super().format_dict, "position": self.format_position(int(self.n))}

    def update(self, n: float | None = 1) -> bool | None:
        """Count a step."""
        is_shown = super().update(n)
        if self.first_step is None:
            self.first_step = int(self.n), self.clock()
        return is_shown

    def format_position(self, step: int) -> str:
        """Format the position in the training: the step, and the epoch if it has several steps."""
        epochs = (
            f"epoch {-(-step // self.steps_per_epoch)}/{-(-self.num_steps // self.steps_per_epoch)}  "
            if self.steps_per_epoch > 1
            else ""
        )
        return f"{epochs}step {step}/{self.num_steps}"

    def format_line(self) -> str:
        """Format the plain line: position, metrics and speed of the last log line, and the remaining time."""
        return "  ".join(filter(None, (self.format_position(int(self.n)), self.summary, self.format_remaining())))

    def format_remaining(self) -> str:
        """Format the estimate of the remaining time; empty before the second step.

        It excludes the first step, which includes the start of worker processes and the choice of kernels.
        """
        if self.first_step is None or self.n == self.first_step[0]:
            return ""
        step, time_of_step = self.first_step
        seconds = (self.clock() - time_of_step) / (self.n - step) * (self.num_steps - self.n)
        return f"{format_duration(seconds)} left"


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
        self.step = 0  # of the last log line, or of the checkpoint of a resumed run
        self.bar = TrainingBar(num_steps, steps_per_epoch)
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
            run_record.write_recipe(self.folder, self.recipe, labels, extra)
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
        self.bar.summary = f"{values}  lr {lr:.2e}  {speed:,.0f} {unit}/s"
        if not self.bar.disable:
            name, first = next(iter(metrics.items()))  # the bar has one terminal line: the loss and the speed
            self.bar.set_postfix_str(f"{name} {first:.4f} · {speed:,.0f} {unit}/s")

    def log_evaluation(self, step: int, metrics: Metrics, preview: "Image | None" = None) -> None:
        """Log an evaluation, print its overall metrics, and save its image as ``preview.png``."""
        self.last_metrics = metrics
        self.last_log_time = time.monotonic()  # the training speed excludes the time of the evaluation
        elapsed = self.get_elapsed_seconds()
        self._write_line({"step": step, "phase": "eval", "split": "val", **metrics, "seconds": round(elapsed, 3)})
        if preview is not None and self.runtime.is_main:
            buffer = io.BytesIO()
            preview.save(buffer, "PNG")
            atomic_file.write_file(self.folder / "preview.png", buffer.getvalue())
        self._print(f"{self.format_progress()}  |  {_format_metrics(metrics)}")

    def print_start(self, task: Task, data: Data) -> None:
        """Print the data, the network and the length of the training, and from where a resumed run continues."""
        if not self.runtime.is_main:
            return
        contents = describe_data(self.recipe, task, data)
        if contents:
            self._print(f"data: {contents}")
        self._print(f"network: {describe_networks(task)}")
        self._print(f"training: {describe_training(self.recipe, self.num_steps, self.steps_per_epoch)}")
        if self.step:
            self._print(f"resumed after {self.bar.format_position(self.step)}")

    def print_progress(self) -> None:
        """Print the progress at the end of an evaluation interval without validation data."""
        self._print(self.format_progress())

    def format_progress(self) -> str:
        """Format the progress for a line of its own; the remaining time is on the bar if there is one."""
        if self.bar.is_plain:
            return self.bar.format_line()
        return f"{self.bar.format_position(self.step)}  {self.bar.summary}"

    def log_best(self, step: int, metrics: Metrics) -> None:
        """Print at which step the best weights were evaluated."""
        self._print(f"best weights: {self.bar.format_position(step)}  |  {_format_metrics(metrics)}")

    def log_test(self, metrics: Metrics) -> None:
        """Log the evaluation on the test data, which ends the run, and print its overall metrics."""
        seconds = round(self.get_elapsed_seconds(), 3)
        self._write_line({"step": self.step, "phase": "test", "split": "test", **metrics, "seconds": seconds})
        self._print(f"test  {_format_metrics(metrics)}")

    def log_stop(self, step: int, resume_command: str) -> None:
        """Print the command that resumes the run: ``resume_command``, or if it is empty that of ``fukami train``."""
        command = resume_command or build_resume_command(self.recipe, self.folder)
        self._print(f"stopped at step {step} of {self.num_steps}; resume with: {command}")

    def finish(self, figures: "list[tuple[str, FigureContent]]", metrics: Metrics, split: str) -> Metrics:
        """Write the report, and return the metrics of the final result with the name of its split."""
        from fukami.engine import report

        result: Metrics = {**metrics, "split": split} if metrics else {}
        if self.runtime.is_main:
            run_record.record_value(self.folder, "time", self.summarize_time())
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

    def state_dict(self, step: int) -> StateDict:
        """Return the state of the log for a checkpoint after a step."""
        clock = self.runtime.clock.compute_seconds(step)
        with self._check_write_errors():
            size = self.path.stat().st_size
        state = {"step": step, "bytes": size, "seconds": self.get_elapsed_seconds(), "last": self.last_metrics}
        return state | {"clock": clock, "multiply_adds": self.multiply_adds}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state and truncate the log to it: the steps after the checkpoint run again."""
        self.previous_seconds, self.last_metrics = float(state["seconds"]), dict(state["last"])
        if not all(isinstance(value, int | float | dict) for value in self.last_metrics.values()):
            raise TypeError("the last evaluation has a value that is not a number")
        json.dumps(self.last_metrics)
        check_counts(state, "step")
        self.step, self.last_log_time = state["step"], time.monotonic()
        self.bar.n = self.bar.initial = self.step
        self.multiply_adds = int(state.get("multiply_adds", 0))
        self.runtime.clock.add(state.get("clock", {}))
        if self.runtime.is_main:
            with self._check_write_errors(), self.path.open("ab") as file:
                file.truncate(min(file.tell(), max(0, state["bytes"])))  # never extend a log that has become shorter

    def _print(self, text: str) -> None:
        if self.runtime.is_main:
            print_line(text)

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
            raise WriteError(self.path, error, can_resume=True) from error


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


def describe_run(recipe: Recipe, folder: Path, runtime: Runtime) -> str:
    """Describe a run before its data are loaded, as in ``vgg16 on cpu, 2 threads, float32, in runs/vgg16``."""
    device = str(runtime.device)
    if runtime.device.type == "cpu":
        device += f", {format_count(torch.get_num_threads(), 'thread')}"
    if runtime.world_size > 1:
        device = f"{runtime.world_size} processes, {device}"
    return f"{get_recipe_name(type(recipe))} on {device}, {runtime.precision}, in {folder}"


def describe_data(recipe: Recipe, task: Task, data: Data) -> str:
    """Describe the data, as in ``flowers (class folders), train 2,934 · val 736 · test 736, 5 classes``."""
    name = next(filter(None, (getattr(recipe, field, "") for field in ("annotations", "data", "env", "content"))), "")
    title = find_data_title(recipe)
    name += f" ({title})" if title else ""
    loaders = {"train": data.train, "val": data.val, "test": data.test}
    sizes = {split: wrap_batches(batches).describe_size() for split, batches in loaders.items() if has_batches(batches)}
    splits = " · ".join(f"{split} {size}" for split, size in sizes.items() if size)
    labels = format_count(len(task.labels), task.label_noun) if task.labels else ""
    return ", ".join(filter(None, (name, splits, labels)))


def find_data_title(recipe: Recipe) -> str:
    """Find what the annotations of a recipe's dataset are, as in ``VOC boxes``; empty if it is unknown."""
    data, annotations, images = (getattr(recipe, field, "") for field in ("data", "annotations", "images"))
    packages = {cls.__module__.split(".")[1] for cls in type(recipe).__mro__ if cls.__module__.startswith("fukami.")}
    packages = {name.replace("_", "-") for name in packages}
    kinds = [kind for kind, description in sources.KINDS.items() if description.family in packages]
    spec = annotations or data
    with contextlib.suppress(Error):  # a custom recipe may name other data
        if spec and kinds:
            return sources.identify_source(spec, images=images).get_title(kinds[0])
    return ""


def describe_networks(task: Task) -> str:
    """Describe the number of parameters, and how many of them are trained if some are frozen."""
    parameters = [parameter for module in task.get_modules().values() for parameter in module.parameters()]
    count = sum(parameter.numel() for parameter in parameters)
    num_trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    trained = f", {num_trained:,} trained" if num_trained < count else ""
    return f"{format_count(count, 'parameter')}{trained}"


def describe_training(recipe: Recipe, num_steps: int, steps_per_epoch: int) -> str:
    """Describe the number of steps, the batch size and the optimizer."""
    length = format_count(num_steps, "step")
    if steps_per_epoch > 1:
        epochs = format_count(num_steps // steps_per_epoch, "epoch")
        length = f"{epochs} of {format_count(steps_per_epoch, 'step')}"
    batch_size, optimizer, lr = (getattr(recipe, name, None) for name in ("batch_size", "optimizer", "lr"))
    options = (
        f"batch size {batch_size}" if batch_size else "",
        str(optimizer or ""),
        f"learning rate {getattr(recipe, 'peak_lr', lr):g}" if lr else "",
    )
    return ", ".join(filter(None, (length, *options)))


def _format_metrics(metrics: Metrics) -> str:
    """Format the metrics that are numbers."""
    numbers = {name: value for name, value in metrics.items() if not isinstance(value, dict)}
    return "  ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items()
    )
