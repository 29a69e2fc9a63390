"""The loop; there is one. (Not ``train.py``: a module of that name would hide the function ``fukami.train``.)"""

import math
import operator
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fukami import checkpoint
from fukami.compilation import Compilation
from fukami.errors import Error
from fukami.log import Log
from fukami.recipe import Recipe
from fukami.resuming import Replayed, Stop, random_states, seed, set_random_states
from fukami.runtime import TIMEOUT, Runtime
from fukami.saving import Saver
from fukami.task import Task
from fukami.watch import Watch

LOOK = 100  # the loop waits for the device, to log and to check the losses, after at most so many steps


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool | None = None,
    resume: bool = False,
    timeout: float = TIMEOUT,
) -> dict[str, float]:
    """Train the recipe and leave a run in the folder ``out``; returns the last evaluation.

    Args:
        recipe: the experiment, for example ``DeepConvNet(dataset="mnist")``.
        out: a new or empty folder; with ``resume`` the folder of a run that was cut off (or never begun).
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``mps``.
        precision: ``auto`` (bfloat16 where it is faster), ``float32``, ``tf32``, ``bfloat16``, ``float16``.
        compile: compile the network (``torch.compile``), which takes a minute or two, for faster steps; None: where a
            long training tried it and found that it pays.
        resume: go on from the last checkpoint; the result is that of a run never cut off, bit for bit.
        timeout: seconds that one process may keep others waiting before the run is cut off.

    Raises:
        UsageError: ``out`` is in use, or ``resume`` was asked with another recipe, precision or device than the run's.
        Error: the loss or the weights are no longer finite; the last good checkpoint stays.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    folder = Path(out)
    checkpoint.claim(folder, recipe, resume)
    device, precision, compile = checkpoint.conditions(folder, device, precision, compile)
    runtime = Runtime.start(device, precision, timeout=timeout)
    before = earlier(recipe, folder, runtime, compile, timeout)
    clock = runtime.clock
    with Stop() as stop, Watch(runtime, timeout), Saver(folder, runtime.main) as saver:
        seed(recipe.seed)
        with clock("data"):
            data = recipe.data()
            loader = data.train if hasattr(data.train, "state_dict") else Replayed(data.train)
            if hasattr(loader, "keep"):  # what is too much for a checkpoint
                loader.keep(folder)
            for part in (loader, data.val):
                if hasattr(part, "place"):
                    part.place(runtime)
        seed(recipe.seed)
        task = recipe.task(data.labels)
        task.setup(runtime)
        compilation = Compilation(folder, runtime, task.compile, compile)
        steps, interval = task.duration(loader)
        with Log(folder, recipe, runtime, steps, operator.length_hint(loader, interval), task.work) as log:
            step = restore(folder, task, loader, log)
            together(step, runtime)
            if step == 0:
                recipe.begin(task) if before is None else recipe.follow(task, before)
                log.begin(data.labels, compile, task)
            batches = iter(task.batches(loader))
            update = runtime.fast(task.step, task.static)
            history = History(runtime)
            look = max(1, min(interval // 10, LOOK))
            while step < steps:
                clock.step = step
                rate = task.schedule(step / steps)
                with clock("data"):
                    batch = next(batches)
                if compilation.switched(step):
                    update = runtime.fast(task.step, task.static)
                with log.counting(step):
                    history.add(update(batch))
                step += 1
                ended = step % interval == 0 or step == steps
                if not (ended or step % look == 0 or (stop.asked and runtime.world == 1)):
                    continue
                metrics = history.read(step, loader)
                if hasattr(loader, "waiting"):
                    metrics["waiting"] = loader.waiting()
                log.trained(step, metrics, rate, *getattr(loader, "pace", (runtime.count(batch), "pictures")))
                compilation.look(step, steps)
                if ended and data.val:
                    with clock("evaluation"):
                        found = task.evaluate(data.val)
                    task.judged(found)
                    log.evaluated(step, found, task.preview())
                due = saver.due or getattr(loader, "pressing", False)
                if runtime.any(stop.asked > 0 or due) or step == steps:
                    save(saver, step, task, loader, log)
                if runtime.any(stop.asked > 0):
                    saver.wait()
                    log.stopped(step)
                    stop.leave()
            with clock("checkpoint"):
                saver.wait()
            if hasattr(loader, "forget"):
                loader.forget()
            with clock("evaluation"):
                figures = list(task.figures(data.val)) if data.val else []
            return log.finish(figures)


def earlier(recipe: Recipe, folder: Path, runtime: Runtime, compile: bool | None, timeout: float) -> Path | None:
    """Train the stages that come before the recipe, where they are not trained yet; returns the last one's folder."""
    stages = recipe.stages(folder)
    if stages and runtime.main and not (folder / "recipe.json").is_file():  # so that the whole can be resumed
        note = {"device": runtime.device.type, "precision": runtime.precision, "compile": compile}
        checkpoint.write_run(folder, recipe, (), note)
    for name, stage in stages.items():
        begun = (folder / name / "recipe.json").is_file()
        if checkpoint.finished(folder / name):
            checkpoint.claim(folder / name, stage, resume=True)
            continue
        train(
            stage,
            folder / name,
            device=str(runtime.device),
            precision=runtime.precision,
            compile=compile,
            resume=begun,
            timeout=timeout,
        )
    return folder / list(stages)[-1] if stages else None


class History:
    """What the steps returned since the last look, kept on the device so that no step waits for it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.names: list[str] = []
        self.rows: list[Tensor] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Remember the scalars of a step."""
        self.names = list(metrics)
        self.rows.append(torch.stack([value.float() for value in metrics.values()]))

    def read(self, step: int, loader: Any) -> dict[str, float]:
        """The mean of each scalar over the steps up to ``step`` since the last call.

        Raises:
            Error: a scalar was not finite; the step and its batch are named.
        """
        rows = self.runtime.sum(torch.stack(self.rows)) / self.runtime.world
        self.rows = []
        with self.runtime.clock("waiting"):
            rows = rows.cpu()
        for offset, row in enumerate(rows.tolist()):
            for name, value in zip(self.names, row, strict=True):
                if not math.isfinite(value):
                    number = step - len(rows) + offset
                    where = loader.name(number) if hasattr(loader, "name") else f"batch {number % len(loader) + 1}"
                    raise Error(
                        f"the {name} became {value} at step {number + 1}, on {where}; the run stops here and its last "
                        "good checkpoint stays: try a lower learning rate, or --precision float32"
                    )
        return dict(zip(self.names, rows.mean(0).tolist(), strict=True))


def save(saver: Saver, step: int, task: Task, loader: Any, log: Log) -> None:
    """Let the checkpoint and the weights be written, of what they are now."""
    if saver.writes:
        with log.runtime.clock("checkpoint"):
            state = {
                "step": step,
                "task": {name: part.state_dict() for name, part in task.state().items()},
                "loader": loader.state_dict(),
                "log": log.state_dict(),
                "random": random_states(),
            }
            saver.save(state, checkpoint.named(task.modules()))


def restore(folder: Path, task: Task, loader: Any, log: Log) -> int:
    """Put everything back as :func:`save` found it; returns the step, 0 where nothing was saved yet."""
    state = checkpoint.read_state(folder, log.runtime.device)
    if state is None:
        return 0
    try:
        for name, part in task.state().items():
            part.load_state_dict(state["task"][name])
        loader.load_state_dict(state["loader"])
        log.load_state_dict(state["log"])
        set_random_states(state["random"])
    except Error:
        raise
    except Exception as error:  # the parts of a damaged checkpoint can be anything
        raise Error(
            f"{folder / 'last.ckpt'} does not fit its recipe ({type(error).__name__}: {error}); remove it to start the "
            "run again from its first step"
        ) from error
    return int(state["step"])


def together(step: int, runtime: Runtime) -> None:
    """Make sure that all processes go on from the same step.

    Raises:
        Error: they do not, since they see different folders.
    """
    steps = torch.zeros(runtime.world, device=runtime.device)
    steps[runtime.rank] = step
    found = runtime.sum(steps).int().tolist()
    if any(other != step for other in found):
        raise Error(
            f"the processes go on from steps {', '.join(map(str, found))}, and not from the same one: --out should be "
            "a folder that all machines share"
        )
