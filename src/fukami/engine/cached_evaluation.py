"""What tasks share whose judgement is more than a few sums: it is made once, and the report is drawn from it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import nn

from fukami.engine.task import Task, TrainingOptions


class CachedEvaluationTask(Task):
    """A task that remembers what it found in the data that it judged last.

    Args:
        model: the network.
        options: optimizer, lr_schedule, epochs, eval_every, accumulate and clip_norm, as for :class:`fukami.Task`.
    """

    def __init__(self, model: nn.Module, **options: Unpack[TrainingOptions]) -> None:
        super().__init__(model, **options)
        self.last_results: tuple[Any, Any] | None = None  # what was evaluated last, and what was found

    def get_networks(self) -> list[nn.Module]:
        """Those that take part in training and in judging."""
        return [self.model]

    @contextmanager
    def inference_mode(self) -> Iterator[None]:
        """The networks answer, and go on as they were afterwards."""
        modes = [(module, module.training) for network in self.get_networks() for module in network.modules()]
        for network in self.get_networks():
            network.eval()
        yield
        for module, mode in modes:
            module.training = mode

    def on_step(self) -> None:
        """Know that what was found is found no more."""
        self.last_results = None

    def collect_results(self, batches: Any) -> Any:
        """What was found in ``batches`` and what is there, over all processes.

        Its ``compute_metrics()`` are the judgement.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define collect_results(batches)")

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Any]) -> dict[str, Any]:
        """The metrics of :meth:`collect_results`; classes are matched by name where ``batches`` has ``labels``.

        Raises:
            UsageError: the data have a class that the task does not know.
            Error: there is nothing to judge.
        """
        found = self.collect_results(batches)
        self.last_results = batches, found
        metrics: dict[str, Any] = found.compute_metrics()
        return metrics

    def get_results(self, batches: Any) -> Any:
        """What :meth:`collect_results` finds, without a second look where nothing was learned since the evaluation."""
        return (
            self.last_results[1]
            if self.last_results and self.last_results[0] is batches
            else self.collect_results(batches)
        )
