"""Best weights of a training run by its validation metric, and early stopping."""

import math
from pathlib import Path

import torch
from torch import Tensor

from fukami.data.loader import StateDict
from fukami.engine import run_weights
from fukami.engine.task import Metrics, Task


class BestWeights:
    """Weights with the best main metric of the evaluations so far, copied to the CPU.

    The main metric is the first one; ``task.metric_mode`` determines whether a larger or a smaller value is better.
    Without a mode, or without an evaluation, there are no best weights.

    Args:
        task: task that is trained.
        keep: whether this process keeps the weights; otherwise only the metrics.
    """

    def __init__(self, task: Task, keep: bool) -> None:
        self.task, self.keep = task, keep
        self.step = 0  # of the best evaluation; 0 before it
        self.metrics: Metrics = {}
        self.num_worse = 0  # evaluations since
        self.unsaved: dict[str, Tensor] | None = None  # the weights, until a checkpoint contains them

    @property
    def is_patience_exhausted(self) -> bool:
        """True if the training should stop early."""
        return 0 < self.task.patience <= self.num_worse

    def update(self, step: int, metrics: Metrics) -> None:
        """Compare the metrics of an evaluation with the best ones; equal ones are not better."""
        if self.task.metric_mode is None:
            return
        if self.step and not self._compute_score(metrics) > self._compute_score(self.metrics):
            self.num_worse += 1
            return
        self.step, self.metrics, self.num_worse = step, metrics, 0
        if self.keep:
            tensors = run_weights.collect_tensors(self.task.get_modules())
            self.unsaved = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}

    def load(self, folder: Path) -> None:
        """Load the best weights, which the run's folder contains, into the networks, which stay on their device."""
        modules, tensors = self.task.get_modules(), run_weights.read_weights(folder)
        run_weights.check_tensors(modules, tensors, run_weights.locate_weights(folder))
        with torch.no_grad():
            for name, target in run_weights.collect_tensors(modules).items():
                target.copy_(tensors[name])
        self.task.last_evaluation = None

    def state_dict(self) -> StateDict:
        """Return the state for a checkpoint; the weights are in their own file."""
        return {"step": self.step, "metrics": self.metrics, "num_worse": self.num_worse}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: the metrics are invalid.
        """
        if int(state["step"]) and not isinstance(next(iter(state["metrics"].values()), None), int | float):
            raise ValueError("the metrics of the best evaluation are invalid")
        self.step, self.metrics, self.num_worse = int(state["step"]), dict(state["metrics"]), int(state["num_worse"])

    def _compute_score(self, metrics: Metrics) -> float:
        value = float(next(iter(metrics.values())))
        value = value if self.task.metric_mode == "max" else -value
        return value if math.isfinite(value) else -math.inf
