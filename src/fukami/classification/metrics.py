"""The field's metrics, from counts that add up across batches and processes."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_MISTAKES = 25  # confident mistakes that are remembered
TOP5_CLASS_THRESHOLD = 10  # classes above which the right one among the five likeliest counts as well


def compute_confusion_matrix(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """How often each class was taken for each: ``(classes, classes)`` int64, true class by row, predicted by column.

    One ``bincount`` rather than torchmetrics, whose import costs more than the evaluation it would serve.
    ``predicted`` and ``target`` are ``(N,)`` class numbers.
    """
    return torch.bincount(target * classes + predicted, minlength=classes * classes).view(classes, classes)


def compute_accuracy(matrix: Tensor) -> dict[str, float]:
    """``accuracy`` in [0, 1], ``errors`` and ``count`` of a confusion matrix."""
    count, right = int(matrix.sum()), int(matrix.trace())
    return {"accuracy": right / max(count, 1), "errors": count - right, "count": count}


class ClassificationResults:
    """What a classifier and the members it may have got right and wrong.

    Args:
        classes, members: how many there are.
        device: where it is counted.
    """

    def __init__(self, classes: int, members: int, device: torch.device) -> None:
        def counter(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.matrix = counter(classes, classes)  # how often each class was taken for each
        self.right = counter(members)  # right answers of each member
        self.apart = counter(members, members)  # pictures on which two members differ
        self.likely = counter()  # pictures whose class is among the five likeliest
        self.loss = torch.zeros((), device=device)  # summed cross entropy
        self.answers: list[Tensor] = []  # of each batch, (N,)
        self.wrong: list[tuple[Tensor, ...]] = []  # confidence, picture, class and answer of the worst of each batch

    @property
    def counts(self) -> tuple[Tensor, ...]:
        """What adds up across processes."""
        return self.matrix, self.right, self.apart, self.likely, self.loss

    def add(self, each: Tensor, scores: Tensor, targets: Tensor, pictures: Tensor) -> None:
        """A batch: log-probabilities of the members ``(members, N, classes)`` and together ``(N, classes)``."""
        confidence, predicted = scores.exp().max(1)
        self.answers.append(predicted)
        self.matrix += compute_confusion_matrix(predicted, targets, len(self.matrix))
        self.loss += F.nll_loss(scores, targets, reduction="sum")
        self.likely += (scores.topk(min(5, scores.shape[1])).indices == targets.unsqueeze(1)).sum()
        answers = each.argmax(2)
        self.right += (answers == targets).sum(1)
        self.apart += (answers.unsqueeze(0) != answers.unsqueeze(1)).sum(2)
        worst = torch.where(predicted != targets, confidence, 0).topk(min(MAX_MISTAKES, len(targets)))
        which = worst.indices
        self.wrong.append((worst.values, pictures[which.to(pictures.device)], targets[which], predicted[which]))

    def metrics(self) -> dict[str, float]:
        """``accuracy`` in [0, 1], ``errors``, ``count`` and ``loss``; ``top5_accuracy`` where there are many classes.

        Of several members also ``members``, ``member_accuracy``, ``best_member``, ``gain`` and ``disagreement``.
        """
        result = compute_accuracy(self.matrix)
        count, members = max(int(result["count"]), 1), len(self.right)
        result["loss"] = float(self.loss) / count
        if len(self.matrix) > TOP5_CLASS_THRESHOLD:
            result["top5_accuracy"] = int(self.likely) / count
        if members > 1:
            mean = float(self.right.float().mean()) / count
            apart = int(self.apart.sum()) / (count * members * (members - 1))
            result |= {"members": members, "member_accuracy": mean, "best_member": int(self.right.max()) / count}
            result |= {"gain": result["accuracy"] - mean, "disagreement": apart}
        return result
