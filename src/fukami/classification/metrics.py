"""The field's metrics, from counts that add up across batches and processes."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_MISTAKES = 25  # confident mistakes that are remembered
TOP5_CLASS_THRESHOLD = 10  # classes above which the right one among the five likeliest counts as well


def compute_confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """How often each class was taken for each: ``(classes, classes)`` int64, true class by row, predicted by column.

    One ``bincount`` rather than torchmetrics, whose import costs more than the evaluation it would serve.
    ``predicted`` and ``target`` are ``(N,)`` class numbers.
    """
    return torch.bincount(target * num_classes + predicted, minlength=num_classes * num_classes).view(
        num_classes, num_classes
    )


def compute_accuracy(matrix: Tensor) -> dict[str, float]:
    """``accuracy`` in [0, 1], ``errors`` and ``count`` of a confusion matrix."""
    count, right = int(matrix.sum()), int(matrix.trace())
    return {"accuracy": right / max(count, 1), "errors": count - right, "count": count}


class ClassificationResults:
    """What a classifier and the members it may have got right and wrong.

    Args:
        num_classes, num_members: how many there are.
        device: where it is counted.
    """

    def __init__(self, num_classes: int, num_members: int, device: torch.device) -> None:
        def counter(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.confusion_matrix = counter(num_classes, num_classes)  # how often each class was taken for each
        self.num_correct = counter(num_members)  # right answers of each member
        self.num_disagreements = counter(num_members, num_members)  # images on which two members differ
        self.num_top5_correct = counter()  # images whose class is among the five likeliest
        self.total_loss = torch.zeros((), device=device)  # summed cross entropy
        self.predictions: list[Tensor] = []  # of each batch, (N,)
        self.mistakes: list[tuple[Tensor, ...]] = []  # confidence, image, class and answer of the worst of each batch

    @property
    def totals(self) -> tuple[Tensor, ...]:
        """What adds up across processes."""
        return self.confusion_matrix, self.num_correct, self.num_disagreements, self.num_top5_correct, self.total_loss

    def update(self, member_scores: Tensor, scores: Tensor, targets: Tensor, images: Tensor) -> None:
        """A batch: log-probabilities of the members ``(members, N, classes)`` and together ``(N, classes)``."""
        confidence, predicted = scores.exp().max(1)
        self.predictions.append(predicted)
        self.confusion_matrix += compute_confusion_matrix(predicted, targets, len(self.confusion_matrix))
        self.total_loss += F.nll_loss(scores, targets, reduction="sum")
        self.num_top5_correct += (scores.topk(min(5, scores.shape[1])).indices == targets.unsqueeze(1)).sum()
        answers = member_scores.argmax(2)
        self.num_correct += (answers == targets).sum(1)
        self.num_disagreements += (answers.unsqueeze(0) != answers.unsqueeze(1)).sum(2)
        worst = torch.where(predicted != targets, confidence, 0).topk(min(MAX_MISTAKES, len(targets)))
        which = worst.indices
        self.mistakes.append((worst.values, images[which.to(images.device)], targets[which], predicted[which]))

    def compute_metrics(self) -> dict[str, float]:
        """``accuracy`` in [0, 1], ``errors``, ``count`` and ``loss``; ``top5_accuracy`` where there are many classes.

        Of several members also ``members``, ``member_accuracy``, ``best_member``, ``gain`` and ``disagreement``.
        """
        result = compute_accuracy(self.confusion_matrix)
        count, members = max(int(result["count"]), 1), len(self.num_correct)
        result["loss"] = float(self.total_loss) / count
        if len(self.confusion_matrix) > TOP5_CLASS_THRESHOLD:
            result["top5_accuracy"] = int(self.num_top5_correct) / count
        if members > 1:
            mean = float(self.num_correct.float().mean()) / count
            apart = int(self.num_disagreements.sum()) / (count * members * (members - 1))
            result |= {"members": members, "member_accuracy": mean, "best_member": int(self.num_correct.max()) / count}
            result |= {"gain": result["accuracy"] - mean, "disagreement": apart}
        return result
