"""Training loop of all recipes."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fukami.data.loader import Loader, StateDict
from fukami.data.manifest import Manifest
from fukami.data.random_states import get_random_states, set_random_seed, set_random_states
from fukami.engine import checkpoint, run_folder, run_record, run_weights
from fukami.engine.async_checkpoint import CheckpointWriter, sync_file
from fukami.engine.best_weights import BestWeights
from fukami.engine.log import TrainingLogger, describe_compute_config, describe_run
from fukami.engine.process_group import report_timeout
from fukami.engine.recipe import Data, Recipe, build_resume_command, has_batches
from fukami.engine.resumable_loader import wrap_batches
from fukami.engine.resume import SignalHandler, check_checkpoint_metadata, get_checkpoint_metadata
from fukami.engine.runtime import DEFAULT_TIMEOUT, Runtime
from fukami.engine.schedules import ReduceOnPlateau
from fukami.engine.task import Batch, Metrics, Task
from fukami.errors import Error, UsageError
from fukami.progress import print_line

if TYPE_CHECKING:
    from fukami.engine.task import FigureContent

SIGNAL_SECONDS = 5.0  # after which several processes handle a signal at the latest
MAX_LOG_INTERVAL = 100  # maximum number of steps until the loop waits for the device, logs, and checks the losses


@dataclass(frozen=True)
class RunOptions:
    """Options of a training run; see :func:`fukami.train`."""

    device: str
    precision: str
    compile: bool
    resume: bool
    allow_changed_data: bool = False
    timeout: float = DEFAULT_TIMEOUT
    num_threads: int | None = None  # for a stage, that of its run
    needs_val: bool = False  # whether a stage needs validation data, because its run has --patience
    resume_command: str = ""  # command to resume the run, for the message of a stop; by default fukami train


def run_training(recipe: Recipe, folder: Path, options: RunOptions) -> Metrics:
    """Train the recipe, write the run to the folder, and return the metrics of the last evaluation.

    Raises:
        UsageError: the folder is not empty or another run is writing to it; or, to resume, it contains no run, or one
            with another recipe, precision, device or data.
        Error: the loss or the weights are not finite, or a file cannot be written; the last valid checkpoint is kept.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after a checkpoint is written.
    """
    with (
        prepare_run(recipe, folder, options) as (runtime, compile, last_stage),
        SignalHandler() as signals,
        report_timeout(runtime, options.timeout),
        CheckpointWriter(folder, runtime.is_main) as writer,
    ):
        set_random_seed(recipe.seed)
        data, loader = prepare_data(recipe, runtime, folder)
        splits = {"train": loader, "val": wrap_batches(data.val), "test": wrap_batches(data.test)}
        manifest = Manifest(splits, data.labels)
        set_random_seed(recipe.seed)
        task = recipe.build_task(data.labels)
        task.setup(runtime)
        task.prepare_training()
        check_evaluation(task, data, options.needs_val)
        steps, interval = count_steps(task, loader)
        with TrainingLogger(folder, recipe, runtime, steps, len(loader)) as log:
            progress = TrainingProgress(task, loader, log)
            step = progress.restore(folder, manifest, options.allow_changed_data)
            check_same_step(step, runtime)
            if step == 0:
                recipe.initialize_task(task) if last_stage is None else recipe.continue_from_stage(task, last_stage)
                log.start_run(data.labels, compile, task)
                progress.start_run(folder, manifest)
            log.print_start(task, data)
            if progress.best.is_patience_exhausted:
                steps = step
            batches = iter(task.iterate_batches(loader))
            run_step = runtime.capture(task.step, task.supports_cuda_graph)
            log_interval = max(1, min(interval // 10, MAX_LOG_INTERVAL))
            signal_interval = 1  # in steps, of several processes, which check for signals together
            last_step, last_time = step, time.monotonic()
            while step < steps:
                lr = task.schedule(step / steps)
                with log.clock("data"):
                    batch = next(batches)
                should_compile = compile and step > 0  # not the first step of a run, which counts the multiply-adds
                if should_compile:
                    task.compile()
                    run_step, compile = runtime.capture(task.step, task.supports_cuda_graph), False
                phase = "compilation" if should_compile else ""
                with explain_batch_norm_error(), log.count_multiply_adds(step), log.clock.count_as(phase):
                    progress.metric_buffer.add(run_step(batch))
                step += 1
                log.bar.update()
                should_evaluate = step % interval == 0 or step == steps
                should_log = should_evaluate or step % log_interval == 0
                is_signal_due = signals.received_signal if runtime.world_size == 1 else step % signal_interval == 0
                if not (should_log or loader.needs_checkpoint or is_signal_due):
                    continue
                if should_log:
                    progress.log_steps(step, lr, batch)
                    seconds = (time.monotonic() - last_time) / (step - last_step)
                    signal_interval = choose_signal_interval(seconds, runtime)
                    last_step, last_time = step, time.monotonic()
                if should_evaluate:
                    progress.evaluate(step, data.val)
                    if progress.best.is_patience_exhausted:
                        steps = step
                # one value for both decisions: a signal that arrives between them is handled at a later step
                is_signaled = runtime.all_reduce_any(signals.received_signal > 0)
                if is_signaled or step == steps or runtime.all_reduce_any(writer.is_due or loader.needs_checkpoint):
                    progress.save(writer, step)
                if is_signaled:
                    writer.wait()
                    log.log_stop(step, options.resume_command)
                    signals.exit()
            return progress.finish(writer, folder, data)


def choose_signal_interval(seconds: float, runtime: Runtime) -> int:
    """Choose the interval in steps of this duration at which several processes check for signals; equal in all."""
    total = runtime.all_reduce_sum(torch.tensor(seconds, device=runtime.device))
    return max(1, int(SIGNAL_SECONDS * runtime.world_size / max(float(total), 1e-6)))


@contextlib.contextmanager
def explain_batch_norm_error() -> Iterator[None]:
    """Explain the error of batch normalization of a single value.

    Raises:
        UsageError: it occurred.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise UsageError(
            "batch normalization needs more than one value per channel in each part of a batch; raise --batch-size, or "
            "lower --accumulate"
        ) from error


@contextlib.contextmanager
def prepare_run(recipe: Recipe, folder: Path, options: RunOptions) -> Iterator[tuple[Runtime, bool, Path | None]]:
    """Lock the folder, start the runtime, train the preceding stages, and print what is trained next.

    Yields the runtime, whether to compile, and the folder of the last stage.
    """
    with run_folder.lock_run(folder, recipe, options.resume):
        config = run_record.resolve_compute_config(folder, options.device, options.precision, options.compile)
        threads = config.num_threads or options.num_threads
        runtime = Runtime.start(config.device, config.precision, timeout=options.timeout, num_threads=threads)
        if config.compile:
            runtime.check_compiler()
        last_stage = train_stages(recipe, folder, runtime, replace(options, compile=config.compile))
        runtime.clock.restart()  # the stages have their own times
        if runtime.is_main:
            print_line(describe_run(recipe, folder, runtime))
        yield runtime, config.compile, last_stage


def prepare_data(recipe: Recipe, runtime: Runtime, folder: Path | None = None) -> tuple[Data, Loader]:
    """Load the recipe's data and move it to the device; also return the loader of the training batches.

    Args:
        recipe: the recipe.
        runtime: device and processes.
        folder: the run's folder, for the files of a loader.
    """
    with runtime.clock("data"):
        data = recipe.load_data()
        loader = wrap_batches(data.train)
        if folder:
            loader.open_files(folder)
        for part in (loader, wrap_batches(data.val), wrap_batches(data.test)):
            part.setup(runtime)
    return data, loader


def prepare_eval_data(recipe: Recipe, runtime: Runtime) -> Data:
    """Load the batches of the final result, and move them to the device."""
    data = recipe.load_eval_data()
    wrap_batches(data.eval_batches).setup(runtime)
    return data


def check_evaluation(task: Task, data: Data, needs_val: bool = False) -> None:
    """Check that the options that need evaluations during the training have them.

    Raises:
        UsageError: early stopping (with ``needs_val``, after this stage) or a plateau schedule, without validation data
            or without a metric to compare.
    """
    has_plateau = isinstance(task.lr_schedule, ReduceOnPlateau)
    if (task.patience or needs_val or has_plateau) and not has_batches(data.val):
        option = "--patience" if task.patience or needs_val else "--schedule plateau"
        raise UsageError(
            f"{option} needs validation data, and there are none; set --val-fraction, such as 0.1, to use a part of "
            "the training data"
        )
    if task.patience and task.metric_mode is None:
        raise UsageError("--patience is not for this recipe, whose last weights are its result; remove it")


def count_steps(task: Task, loader: Loader) -> tuple[int, int]:
    """Return the number of optimizer steps of the training, and the evaluation interval in steps.

    Raises:
        UsageError: there are fewer steps than the task needs, or the learning rate is 0 in all of them.
    """
    steps = task.epochs * len(loader)
    if steps < task.min_steps:
        raise UsageError(
            f"the training needs {task.min_steps} optimizer steps, and {task.epochs} epochs have {steps}; raise "
            "--epochs, or lower --batch-size"
        )
    if not any(task.lr_schedule(step / steps) for step in range(steps)):
        raise UsageError(
            f"the learning rate is 0 in all {steps} optimizer steps of the training, because of the warm-up; raise "
            "--epochs, or lower --batch-size or --warmup"
        )
    return steps, task.eval_every * len(loader)


def train_stages(recipe: Recipe, folder: Path, runtime: Runtime, options: RunOptions) -> Path | None:
    """Train the unfinished stages that precede the recipe, and return the folder of the last one."""
    stages = recipe.stages(folder)
    is_new = bool(stages) and runtime.is_main and not (folder / "recipe.json").is_file()
    if is_new:  # so that the run can be resumed
        run_record.write_recipe(folder, recipe, (), describe_compute_config(recipe, runtime, options.compile))
    for number, (name, stage) in enumerate(stages.items(), 1):
        if runtime.is_main:
            print_line(f"stage {number} of {len(stages) + 1}: {name}")
        if run_record.is_finished(folder / name):
            run_record.check_same_recipe(folder / name, stage)
            continue
        resume = (folder / name / "recipe.json").is_file()
        stage_options = replace(
            options, device=str(runtime.device), precision=runtime.precision, num_threads=torch.get_num_threads(),
            needs_val=options.needs_val or (type(stage) is type(recipe) and bool(getattr(recipe, "patience", 0))),
            resume_command=options.resume_command or build_resume_command(recipe, folder),
        )  # fmt: skip
        try:
            run_training(stage, folder / name, replace(stage_options, resume=resume))
        finally:
            if is_new and number == 1 and not (folder / name / "recipe.json").exists():  # it has not started
                (folder / "recipe.json").unlink()
    if stages and runtime.is_main:
        print_line(f"stage {len(stages) + 1} of {len(stages) + 1}")
    return folder / list(stages)[-1] if stages else None


class MetricBuffer:
    """Buffer of the metrics since the last log line, kept on the device so that no step waits for them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.names: list[str] = []
        self.rows: list[Tensor] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the scalars of a step."""
        self.names = list(metrics)
        self.rows.append(torch.stack([value.float() for value in metrics.values()]).to(self.runtime.device))

    def state_dict(self) -> StateDict:
        """Return the buffered metrics of all processes for a checkpoint."""
        rows = list(self.rows) if self.runtime.world_size == 1 else [row.cpu() for row in self.rows]
        return {"names": self.names, "processes": self.runtime.all_gather(rows)}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the buffered metrics of this process.

        Raises:
            ValueError: the metrics are invalid.
        """
        processes = state["processes"]
        rows = processes[self.runtime.rank % len(processes)]  # another number of processes may resume the run
        if any(row.shape != (len(state["names"]),) for row in rows):
            raise ValueError("the metrics since the last log line are invalid")
        self.names, self.rows = list(state["names"]), [row.to(self.runtime.device) for row in rows]

    def compute_means(self, step: int, loader: Loader) -> dict[str, float]:
        """Compute the mean of each scalar over the steps since the last call, and clear the buffer.

        Raises:
            Error: a scalar is not finite; the message names the step and its batch.
        """
        rows = self.runtime.all_reduce_sum(torch.stack(self.rows)) / self.runtime.world_size
        self.rows = []
        with self.runtime.clock("waiting"):
            rows = rows.cpu()
        for offset, row in enumerate(rows.tolist()):
            for name, value in zip(self.names, row, strict=True):
                if not math.isfinite(value):
                    step_index = step - len(rows) + offset
                    where = loader.describe_batch(step_index)
                    raise Error(
                        f"the {name} became {value} at step {step_index + 1}, on {where}; the run stops here and keeps "
                        "its last valid checkpoint: try a lower learning rate, or --precision float32"
                    )
        return dict(zip(self.names, rows.mean(0).tolist(), strict=True))


class TrainingProgress:
    """Progress of a training run: logging, evaluation, and saving and restoring of checkpoints."""

    def __init__(self, task: Task, loader: Loader, log: TrainingLogger) -> None:
        self.task, self.loader, self.log = task, loader, log
        self.metric_buffer = MetricBuffer(log.runtime)
        self.best = BestWeights(task, log.runtime.is_main)
        self.checkpoint_metadata: StateDict = {}

    def log_steps(self, step: int, lr: float, batch: Batch) -> None:
        """Log the mean metrics of the steps since the last log line."""
        metrics = self.metric_buffer.compute_means(step, self.loader)
        wait_fraction = self.loader.compute_wait_fraction()
        if wait_fraction is not None:
            metrics["data_wait_fraction"] = wait_fraction
        count, unit = self.loader.count_samples(batch)
        self.log.log_training(step, metrics, lr, count * self.log.runtime.world_size, unit)

    def evaluate(self, step: int, val: Iterable[Batch]) -> None:
        """Evaluate the task and log the metrics; without validation data, print the progress."""
        if not has_batches(val):
            self.log.print_progress()
            return
        with self.log.clock("evaluation"), self.task.evaluation_mode():
            metrics = self.task.evaluate(val)
        if isinstance(self.task.lr_schedule, ReduceOnPlateau):
            self.task.lr_schedule.on_evaluation(metrics, self.task.metric_mode)
        preview = self.task.on_evaluation(metrics)  # may set a buffer of the network
        self.best.update(step, metrics)
        self.log.log_evaluation(step, metrics, preview)

    def finish(self, writer: CheckpointWriter, folder: Path, data: Data) -> Metrics:
        """Evaluate the best weights on the test data, if there are any; write the report and return the metrics.

        Without test data they are the metrics of the best evaluation, or of the last one without best weights.
        """
        with self.log.clock("checkpoint"):
            writer.wait()
            self.log.runtime.all_reduce_any(False)  # the others read the best weights when the first has written them
        self.loader.delete_files()
        if 0 < self.best.step < self.log.step:
            self.best.load(folder)
            self.log.log_best(self.best.step, self.best.metrics)
        metrics = self.best.metrics or self.log.last_metrics
        batches = data.eval_batches
        with self.log.clock("evaluation"):
            if has_batches(data.test):
                with self.task.evaluation_mode():
                    metrics = self.task.evaluate(data.test)
                self.log.log_test(metrics)
            figures = self.plot_evaluation(batches)
        return self.log.finish(figures, metrics, data.eval_split if has_batches(batches) else "")

    def plot_evaluation(self, batches: Iterable[Batch]) -> "list[tuple[str, FigureContent]]":
        """Return the figures of the report."""
        return list(self.task.plot_evaluation(batches)) if has_batches(batches) else []

    def start_run(self, folder: Path, manifest: Manifest) -> None:
        """Write the data manifest of a new run, and set the metadata of its checkpoints."""
        if self.log.runtime.is_main:
            self.checkpoint_metadata = get_checkpoint_metadata(manifest.write(folder))

    def save(self, writer: CheckpointWriter, step: int) -> None:
        """Start to save the checkpoint and the weights of this step."""
        with self.log.clock("checkpoint"):
            if not writer.is_writer:  # the writer syncs those of its own process
                for path in self.loader.checkpoint_files:
                    sync_file(path)
            loader_state = self.loader.state_dict()  # this and the next one may gather those of all processes
            metric_buffer_state = self.metric_buffer.state_dict()
            if not writer.is_writer:
                return
            state = {
                **self.checkpoint_metadata,
                "step": step,
                "task": {name: value.state_dict() for name, value in self.task.state.items()},
                "loader": loader_state,
                "log": self.log.state_dict(step),
                "metric_buffer": metric_buffer_state,
                "best": self.best.state_dict(),
                "random": get_random_states(),
            }
            files = [self.log.path, *self.loader.checkpoint_files]
            writer.save(state, run_weights.collect_tensors(self.task.get_modules()), files, self.best.unsaved)
            self.best.unsaved = None

    def restore(self, folder: Path, manifest: Manifest, allow_changed_data: bool) -> int:
        """Restore the last checkpoint and return its step, or 0 if there is none.

        Raises:
            UsageError: the data have changed.
            Error: the checkpoint is corrupted, of an unknown format, or of another network.
        """
        runtime = self.log.runtime
        state = checkpoint.read_checkpoint(folder, runtime.device)
        if state is None:
            return 0
        if runtime.is_main:
            self.checkpoint_metadata = check_checkpoint_metadata(folder, state, manifest, allow_changed_data)
        try:
            if state["step"] > self.log.num_steps and not allow_changed_data:
                raise ValueError(f"it is of step {state['step']}, and the run has {self.log.num_steps} steps")
            step = min(int(state["step"]), self.log.num_steps)  # there are fewer steps if images were removed
            for name, value in self.task.state.items():
                value.load_state_dict(state["task"][name])
            for group in (group for optimizer in self.task.optimizers for group in optimizer.param_groups):
                if not (isinstance(group["lr"], Tensor) and math.isfinite(group["initial_lr"])):
                    raise ValueError("the learning rate is invalid")
            self.loader.load_state_dict(state["loader"])
            self.log.load_state_dict(state["log"])
            self.metric_buffer.load_state_dict(state["metric_buffer"])
            self.best.load_state_dict(state["best"])
            set_random_states(state["random"])
            return step
        except Error:
            raise
        except Exception as error:  # load_state_dict may raise anything for a state of another object
            first_line, _, _ = str(error).partition("\n")
            raise Error(
                f"{folder / 'last.ckpt'} does not match the run ({type(error).__name__}: {first_line}); delete it to "
                "restart the run from step 0"
            ) from error


def check_same_step(step: int, runtime: Runtime) -> None:
    """Check that all processes continue from the same step.

    Raises:
        Error: the steps differ, because the processes have different folders.
    """
    local_step = torch.zeros(runtime.world_size, dtype=torch.int64, device=runtime.device)
    local_step[runtime.rank] = step
    steps = runtime.all_reduce_sum(local_step).tolist()
    if any(other != step for other in steps):
        raise Error(
            f"the processes continue from different steps ({', '.join(map(str, steps))}): --out should be a folder "
            "that is shared by all machines"
        )
