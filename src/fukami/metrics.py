"""The field's metrics, from counts that add up across batches and processes."""

import torch
from torch import Tensor


def confusion(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """How often each class was taken for each: ``(classes, classes)`` int64, true class by row, predicted by column.

    One ``bincount`` rather than torchmetrics, whose import costs more than the evaluation it would serve.
    ``predicted`` and ``target`` are ``(N,)`` class numbers.
    """
    return torch.bincount(target * classes + predicted, minlength=classes * classes).view(classes, classes)


def accuracy(matrix: Tensor) -> dict[str, float]:
    """``accuracy`` in [0, 1], ``errors`` and ``count`` of a confusion matrix."""
    count, right = int(matrix.sum()), int(matrix.trace())
    return {"accuracy": right / max(count, 1), "errors": count - right, "count": count}
