"""The loop; there is one. (Not ``train.py``: a module of that name would hide the function ``fukami.train``.)"""

import contextlib
import math
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fukami.data.manifest import Manifest
from fukami.engine import checkpoint
from fukami.engine.async_checkpoint import CheckpointWriter
from fukami.engine.log import TrainingLogger, describe_compute_config
from fukami.engine.recipe import Data, Recipe
from fukami.engine.resume import (
    ResumableLoader,
    SignalHandler,
    check_checkpoint_metadata,
    get_checkpoint_metadata,
    get_random_states,
    set_random_seed,
    set_random_states,
)
from fukami.engine.runtime import DEFAULT_TIMEOUT, Runtime
from fukami.engine.task import Task
from fukami.engine.watchdog import Watchdog
from fukami.errors import Error

MAX_LOG_INTERVAL = 100  # the loop waits for the device, to log and to check the losses, after at most so many steps


@dataclass(frozen=True)
class RunOptions:
    """What a training was asked for; see :func:`train`."""

    device: str
    precision: str
    compile: bool
    resume: bool
    allow_changed_data: bool = False
    timeout: float = DEFAULT_TIMEOUT
    num_threads: int | None = None  # of a stage: those of the run that it belongs to


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    resume: bool = False,
    allow_changed_data: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
) -> dict[str, float]:
    """Train the recipe and leave a run in the folder ``out``; returns the last evaluation.

    Args:
        recipe: the experiment, for example ``DeepConvNet(data="mnist")``.
        out: a new or empty folder; with ``resume`` the folder of a run that was cut off.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``mps``.
        precision: ``auto`` (bfloat16 where it is faster), ``float32``, ``tf32``, ``bfloat16``, ``float16``.
        compile: compile the network (``torch.compile``) from the second step on, which takes a minute or two, for
            faster steps; a resumed run is compiled if it was begun so.
        resume: go on from the last checkpoint; the result is that of a run never cut off, bit for bit.
        allow_changed_data: resume although the data have changed since the checkpoint; the run records it.
        timeout: seconds that one process may keep others waiting before the run is cut off.

    Raises:
        UsageError: ``out`` is in use, also by another training at this moment; or ``resume`` was asked where there is
            no run, or with another recipe, precision, device or data than the run's.
        Error: the loss or the weights are no longer finite, or something cannot be written; the last good checkpoint
            stays.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    settings = RunOptions(device, precision, compile, resume, allow_changed_data, timeout)
    return run_training(recipe, Path(out), settings)


def run_training(recipe: Recipe, folder: Path, settings: RunOptions) -> dict[str, float]:
    """Train as :func:`train` says."""
    with (
        open_run(recipe, folder, settings) as (runtime, compile, before),
        SignalHandler() as stop,
        Watchdog(runtime, settings.timeout),
        CheckpointWriter(folder, runtime.is_main) as saver,
    ):
        set_random_seed(recipe.seed)
        data, loader = prepare_data(recipe, folder, runtime)
        manifest = Manifest(data.train, data.val, data.labels)
        set_random_seed(recipe.seed)
        task = recipe.build_task(data.labels)
        task.setup(runtime)
        steps, interval = task.count_steps(loader)
        with TrainingLogger(
            folder, recipe, runtime, steps, operator.length_hint(loader, interval), task.count_work
        ) as log:
            progress = TrainingProgress(task, loader, log)
            step = progress.restore(folder, manifest, settings.allow_changed_data)
            check_same_step(step, runtime)
            if step == 0:
                recipe.initialize_task(task) if before is None else recipe.continue_from_stage(task, before)
                log.start_run(data.labels, compile, task)
                progress.start_run(folder, manifest)
            batches = iter(task.iterate_batches(loader))
            update = runtime.capture(task.step, task.supports_cuda_graph)
            look = max(1, min(interval // 10, MAX_LOG_INTERVAL))
            while step < steps:
                log.clock.step = step
                rate = task.schedule(step / steps)
                with log.clock("data"):
                    batch = next(batches)
                first = compile and step > 0  # the first step of a run, whose multiply-adds are counted, never is
                if first:
                    task.compile()
                    update, compile = runtime.capture(task.step, task.supports_cuda_graph), False
                with log.count_multiply_adds(step), log.clock.count_as("compilation" if first else ""):
                    progress.add_metrics(update(batch))
                step += 1
                ended = step % interval == 0 or step == steps
                looks = ended or step % look == 0
                pressing = getattr(loader, "needs_checkpoint", False)
                if not (looks or pressing or (stop.received_signal and runtime.world_size == 1)):
                    continue
                if looks:
                    progress.log_steps(step, rate, batch)
                if ended and data.val:
                    progress.evaluate(step, data.val)
                if runtime.all_reduce_any(stop.received_signal > 0 or saver.is_due or pressing) or step == steps:
                    progress.save(saver, step)
                if runtime.all_reduce_any(stop.received_signal > 0):
                    saver.wait()
                    log.log_stop(step)
                    stop.exit()
            return progress.finish(saver, data.val)


@contextlib.contextmanager
def open_run(recipe: Recipe, folder: Path, settings: RunOptions) -> Iterator[tuple[Runtime, bool, Path | None]]:
    """Hold the folder, start computing as asked or as the run in it was begun, and train the stages before.

    Yields the runtime, whether to compile, and the folder of the last stage.
    """
    with checkpoint.lock_run(folder, recipe, settings.resume):
        found = checkpoint.resolve_compute_config(folder, settings.device, settings.precision, settings.compile)
        threads = found.num_threads or settings.num_threads
        runtime = Runtime.start(found.device, found.precision, timeout=settings.timeout, num_threads=threads)
        if found.compile:
            runtime.check_compiler()
        yield runtime, found.compile, train_stages(recipe, folder, runtime, replace(settings, compile=found.compile))


def prepare_data(recipe: Recipe, folder: Path, runtime: Runtime) -> tuple[Data, Any]:
    """The data of the recipe on their device, and what gives the batches to train on, which can be resumed."""
    with runtime.clock("data"):
        data = recipe.load_data()
        loader = data.train if hasattr(data.train, "state_dict") else ResumableLoader(data.train)
        if hasattr(loader, "open_files"):  # what is too much for a checkpoint
            loader.open_files(folder)
        for part in (loader, data.val):
            if hasattr(part, "setup"):
                part.setup(runtime)
    return data, loader


def train_stages(recipe: Recipe, folder: Path, runtime: Runtime, settings: RunOptions) -> Path | None:
    """Train the stages that come before the recipe, where they are not trained yet; returns the last one's folder."""
    stages = recipe.stages(folder)
    if stages and runtime.is_main and not (folder / "recipe.json").is_file():  # so that the whole can be resumed
        checkpoint.write_recipe(folder, recipe, (), describe_compute_config(recipe, runtime, settings.compile))
    for name, stage in stages.items():
        if checkpoint.is_finished(folder / name):
            checkpoint.check_same_recipe(folder / name, stage)
            continue
        begun = (folder / name / "recipe.json").is_file()
        same = replace(
            settings, device=str(runtime.device), precision=runtime.precision, num_threads=torch.get_num_threads()
        )
        run_training(stage, folder / name, replace(same, resume=begun))
    return folder / list(stages)[-1] if stages else None


class MetricBuffer:
    """What the steps returned since the last look, kept on the device so that no step waits for it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.names: list[str] = []
        self.rows: list[Tensor] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Remember the scalars of a step."""
        self.names = list(metrics)
        self.rows.append(torch.stack([value.float() for value in metrics.values()]).to(self.runtime.device))

    def state_dict(self) -> dict[str, Any]:
        """What was not looked at yet."""
        return {"names": self.names, "rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.names, self.rows = list(state["names"]), [row.to(self.runtime.device) for row in state["rows"]]

    def compute_means(self, step: int, loader: Any) -> dict[str, float]:
        """The mean of each scalar over the steps up to ``step`` since the last call.

        Raises:
            Error: a scalar was not finite; the step and its batch are named.
        """
        rows = self.runtime.all_reduce_sum(torch.stack(self.rows)) / self.runtime.world_size
        self.rows = []
        with self.runtime.clock("waiting"):
            rows = rows.cpu()
        for offset, row in enumerate(rows.tolist()):
            for name, value in zip(self.names, row, strict=True):
                if not math.isfinite(value):
                    number = step - len(rows) + offset
                    where = (
                        loader.describe_batch(number)
                        if hasattr(loader, "describe_batch")
                        else f"batch {number % len(loader) + 1}"
                    )
                    raise Error(
                        f"the {name} became {value} at step {number + 1}, on {where}; the run stops here and its last "
                        "good checkpoint stays: try a lower learning rate, or --precision float32"
                    )
        return dict(zip(self.names, rows.mean(0).tolist(), strict=True))


class TrainingProgress:
    """How far a training is: what it writes into the log and the checkpoints, and what it takes from one."""

    def __init__(self, task: Task, loader: Any, log: TrainingLogger) -> None:
        self.task, self.loader, self.log = task, loader, log
        self.metric_buffer = MetricBuffer(log.runtime)
        self.checkpoint_metadata: dict[str, Any] = {}

    def add_metrics(self, metrics: dict[str, Tensor]) -> None:
        """Remember what a step returned, until it is looked at."""
        self.metric_buffer.add(metrics)

    def log_steps(self, step: int, lr: float, batch: Any) -> None:
        """Log the steps since the last time."""
        metrics = self.metric_buffer.compute_means(step, self.loader)
        if hasattr(self.loader, "compute_wait_fraction"):
            metrics["waiting"] = self.loader.compute_wait_fraction()
        pace = getattr(self.loader, "items_per_step", (self.log.runtime.count_samples(batch), "images"))
        self.log.log_training(step, metrics, lr, *pace)

    def evaluate(self, step: int, val: Any) -> None:
        """Evaluate the task and log what is found."""
        with self.log.clock("evaluation"):
            found = self.task.evaluate(val)
        self.task.on_evaluation(found)
        self.log.log_evaluation(step, found, self.task.preview())

    def finish(self, saver: CheckpointWriter, val: Any) -> dict[str, float]:
        """Wait for the last checkpoint, and write the report; returns the last evaluation."""
        with self.log.clock("checkpoint"):
            saver.wait()
        if hasattr(self.loader, "delete_files"):
            self.loader.delete_files()
        with self.log.clock("evaluation"):
            figures = list(self.task.plot_evaluation(val)) if val else []
        return self.log.finish(figures)

    def start_run(self, folder: Path, manifest: Manifest) -> None:
        """Note what a new run is computed on and with."""
        if self.log.runtime.is_main:
            self.checkpoint_metadata = get_checkpoint_metadata(manifest.write(folder))

    def save(self, saver: CheckpointWriter, step: int) -> None:
        """Let the checkpoint and the weights be written, of what they are now."""
        if not saver.is_writer:
            return
        with self.log.clock("checkpoint"):
            state = {
                **self.checkpoint_metadata,
                "step": step,
                "task": {name: part.state_dict() for name, part in self.task.get_stateful_objects().items()},
                "loader": self.loader.state_dict(),
                "log": self.log.state_dict(),
                "history": self.metric_buffer.state_dict(),
                "random": get_random_states(),
            }
            files = [self.log.path, *getattr(self.loader, "checkpoint_files", ())]
            saver.save(state, checkpoint.collect_tensors(self.task.get_modules()), files)

    def restore(self, folder: Path, manifest: Manifest, allow_changed_data: bool) -> int:
        """Put everything back as :meth:`save` found it; returns the step, 0 where nothing was saved yet.

        Raises:
            UsageError: the data have changed.
            Error: the checkpoint is damaged, of an unknown format, or of another network.
        """
        runtime = self.log.runtime
        state = checkpoint.read_state(folder, runtime.device)
        if state is None:
            return 0
        if runtime.is_main:
            self.checkpoint_metadata = check_checkpoint_metadata(folder, state, manifest, allow_changed_data)
        try:
            if state["step"] > self.log.num_steps:
                raise ValueError(f"it is of step {state['step']}, and the training has {self.log.num_steps}")
            for name, part in self.task.get_stateful_objects().items():
                part.load_state_dict(state["task"][name])
            self.loader.load_state_dict(state["loader"])
            self.log.load_state_dict(state["log"])
            self.metric_buffer.load_state_dict(state["history"])
            set_random_states(state["random"])
            return int(state["step"])
        except Error:
            raise
        except Exception as error:  # whatever a part says to values that are not its own
            first, _, _ = str(error).partition("\n")
            raise Error(
                f"{folder / 'last.ckpt'} does not fit the run ({type(error).__name__}: {first}); remove it to start "
                "the run again from its first step"
            ) from error


def check_same_step(step: int, runtime: Runtime) -> None:
    """Make sure that all processes go on from the same step.

    Raises:
        Error: they do not, since they see different folders.
    """
    steps = torch.zeros(runtime.world_size, device=runtime.device)
    steps[runtime.rank] = step
    found = runtime.all_reduce_sum(steps).int().tolist()
    if any(other != step for other in found):
        raise Error(
            f"the processes go on from steps {', '.join(map(str, found))}, and not from the same one: --out should be "
            "a folder that all machines share"
        )
