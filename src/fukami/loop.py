"""The loop; there is one. (Not ``train.py``: a module of that name would hide the function ``fukami.train``.)"""

import math
import operator
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fukami import checkpoint
from fukami.errors import Error
from fukami.log import Log
from fukami.recipe import Recipe
from fukami.resuming import Replayed, Stop, random_states, seed, set_random_states
from fukami.runtime import Runtime
from fukami.task import Task

LOOK = 100  # the loop waits for the device, to log and to check the losses, after at most so many steps
SAVE_SECONDS, SAVE_SHARE = 1.0, 0.02  # a checkpoint this often, unless that would take more than this share of the time


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    resume: bool = False,
) -> dict[str, float]:
    """Train the recipe and leave a run in the folder ``out``; returns the last evaluation.

    Args:
        recipe: the experiment, for example ``DeepConvNet(dataset="mnist")``.
        out: a new or empty folder; with ``resume`` the folder of a run that was cut off (or never begun).
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``mps``.
        precision: ``auto`` (bfloat16 where it is faster), ``float32``, ``bfloat16``, ``float16``.
        compile: compile the network (``torch.compile``): a start that takes a minute or two, then faster steps.
        resume: go on from the last checkpoint; the result is that of a run never cut off, bit for bit.

    Raises:
        UsageError: ``out`` is in use, or ``resume`` was asked with another recipe, precision or device than the run's.
        Error: the loss or the weights are no longer finite; the last good checkpoint stays.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    folder = Path(out)
    checkpoint.claim(folder, recipe, resume)
    runtime = Runtime.start(*checkpoint.conditions(folder, device, precision, compile))
    with Stop() as stop:
        seed(recipe.seed)
        data = recipe.data()
        loader = data.train if hasattr(data.train, "state_dict") else Replayed(data.train)
        for part in (loader, data.val):
            if hasattr(part, "place"):
                part.place(runtime)
        seed(recipe.seed)
        task = recipe.task(data.labels)
        task.setup(runtime)
        steps, interval = task.duration(loader)
        with Log(folder, recipe, runtime, steps, operator.length_hint(loader, interval)) as log:
            step = restore(folder, task, loader, log)
            if step == 0:
                recipe.begin(task)
                log.begin(data.labels)
            batches = iter(task.batches(loader))
            update = runtime.fast(task.step, task.static)
            history = History(runtime)
            look, save_at = max(1, min(interval // 10, LOOK)), time.monotonic()
            while step < steps:
                rate = task.schedule(step / steps)
                batch = next(batches)
                history.add(update(batch))
                step += 1
                ended = step % interval == 0 or step == steps
                if not (ended or step % look == 0 or (stop.asked and runtime.world == 1)):
                    continue
                metrics = history.read(step, loader)
                if hasattr(loader, "waiting"):
                    metrics["waiting"] = loader.waiting()
                log.trained(step, metrics, rate, runtime.count(batch))
                if ended and data.val:
                    found = task.evaluate(data.val)
                    task.judged(found)
                    log.evaluated(step, found)
                if runtime.any(stop.asked > 0 or time.monotonic() > save_at) or step == steps:
                    save_at = save(folder, step, task, loader, log)
                if runtime.any(stop.asked > 0) and step < steps:
                    log.stopped(step)
                    stop.leave()
            return log.finish(list(task.figures(data.val)) if data.val else [])


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


def save(folder: Path, step: int, task: Task, loader: Any, log: Log) -> float:
    """Write the checkpoint and the weights, unless a weight is no longer finite; returns when the next one is due."""
    began = time.monotonic()
    tensors = checkpoint.weights(task.modules())
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise Error(
                f"the weights {name} are no longer finite at step {step}; the run stops here and its last good "
                "checkpoint stays: try a lower learning rate, or --precision float32"
            )
    if log.runtime.main:
        state = {
            "step": step,
            "task": {name: part.state_dict() for name, part in task.state().items()},
            "loader": loader.state_dict(),
            "log": log.state_dict(),
            "random": random_states(),
        }
        checkpoint.write_state(folder, state)
        checkpoint.write_weights(folder, tensors)
    ended = time.monotonic()
    return ended + max(SAVE_SECONDS, (ended - began) / SAVE_SHARE)


def restore(folder: Path, task: Task, loader: Any, log: Log) -> int:
    """Put everything back as :func:`save` found it; returns the step, 0 where nothing was saved yet."""
    state = checkpoint.read_state(folder, log.runtime.device)
    if state is None:
        return 0
    parts = task.state()
    for name, part in parts.items():
        part.load_state_dict(state["task"][name])
    loader.load_state_dict(state["loader"])
    log.load_state_dict(state["log"])
    set_random_states(state["random"])
    return int(state["step"])
