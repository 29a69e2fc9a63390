"""Base class of tasks that evaluate once and reuse the results for the report."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import nn

from fukami.engine.task import Task, TrainingOptions


class CachedEvaluationTask(Task):
    """Task that caches the results of its last evaluation.

    Args:
        model: the network.
        options: optimizer, lr_schedule, epochs, eval_every, accumulate and clip_norm, as for :class:`fukami.Task`.
    """

    def __init__(self, model: nn.Module, **options: Unpack[TrainingOptions]) -> None:
        super().__init__(model, **options)
        self.last_results: tuple[Any, Any] | None = None  # the batches of the last evaluation and its results

    def get_networks(self) -> list[nn.Module]:
        """Return the networks used in training and evaluation."""
        return [self.model]

    @contextmanager
    def inference_mode(self) -> Iterator[None]:
        """Switch the networks to evaluation mode, and restore the mode of each module afterwards."""
        modes = [(module, module.training) for network in self.get_networks() for module in network.modules()]
        for network in self.get_networks():
            network.eval()
        yield
        for module, mode in modes:
            module.training = mode

    def on_step(self) -> None:
        """Discard the cached results: the weights have changed."""
        self.last_results = None

    def collect_results(self, batches: Any) -> Any:
        """Collect predictions and ground truth of ``batches`` over all processes.

        The result has a method ``compute_metrics()``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define collect_results(batches)")

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Any]) -> dict[str, Any]:
        """Compute the metrics of :meth:`collect_results`; if ``batches`` has ``labels``, classes are matched by name.

        Raises:
            UsageError: the data contain a class that the task does not have.
            Error: there is nothing to evaluate.
        """
        results = self.collect_results(batches)
        self.last_results = batches, results
        metrics: dict[str, Any] = results.compute_metrics()
        return metrics

    def get_results(self, batches: Any) -> Any:
        """Return the results for ``batches``, from the cache if the weights have not changed since their evaluation."""
        return (
            self.last_results[1]
            if self.last_results and self.last_results[0] is batches
            else self.collect_results(batches)
        )
