"""Ensembles of the tasks of several runs."""

from collections.abc import Sequence

from fukami.engine.task import Task
from fukami.errors import UsageError
from fukami.layers.ensemble import Ensemble


def build_ensemble(tasks: Sequence[Task], *, vote: bool = False) -> Task:
    """Combine tasks to an ensemble by averaged probabilities or, with ``vote``, by majority vote; returns the first.

    A single task with several networks, such as those of snapshots, is an ensemble already.

    Raises:
        UsageError: the tasks do not support it, their classes or preprocessing differ, or there is one network.
    """
    first, *others = tasks
    if not first.ensemble_methods:
        raise UsageError(f"{type(first).__name__} does not support ensembles; use one run")
    if vote and "vote" not in first.ensemble_methods:
        raise UsageError(f"ensembles of {type(first).__name__} average probabilities; omit --vote")
    if any(
        (type(other), other.labels, other.transform) != (type(first), first.labels, first.transform) for other in others
    ):
        raise UsageError("the runs of an ensemble must have the same classes and the same preprocessing")
    model = first.get_modules()["model"]
    if not others:
        if not isinstance(model, Ensemble):
            raise UsageError("a single network is no ensemble; specify several runs, or omit --vote")
        model.vote = vote
        return first
    first.replace_modules({"model": Ensemble([task.get_modules()["model"] for task in tasks], vote=vote)})
    return first
