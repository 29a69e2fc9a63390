"""Classification metrics, computed from counts that are summed over batches and processes."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_MISTAKES = 25  # maximum number of stored misclassified images per batch
TOP5_CLASS_THRESHOLD = 10  # top-5 accuracy is reported above this number of classes


def compute_accuracy(matrix: Tensor) -> dict[str, float]:
    """Compute ``accuracy`` in [0, 1], ``errors`` and ``count`` from a confusion matrix."""
    count, num_correct = int(matrix.sum()), int(matrix.trace())
    return {"accuracy": num_correct / max(count, 1), "errors": count - num_correct, "count": count}


class ClassificationResults:
    """Counts of correct and wrong predictions of a classifier and of the members of an ensemble.

    Args:
        num_classes: number of classes.
        num_members: number of ensemble members; 1 for a single network.
        device: device of the counts.
    """

    def __init__(self, num_classes: int, num_members: int, device: torch.device) -> None:
        def build_counter(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.confusion_matrix = build_counter(num_classes, num_classes)
        self.num_correct = build_counter(num_members)  # correct predictions of each member
        self.num_disagreements = build_counter(num_members, num_members)  # images on which two members differ
        self.num_top5_correct = build_counter()
        self.total_loss = torch.zeros((), device=device)  # sum of the cross entropy
        self.predictions: list[Tensor] = []  # predicted classes of each batch, (N,)
        self.mistakes: tuple[Tensor, ...] = ()  # confidence, image, target and prediction of the most confident ones

    @property
    def totals(self) -> tuple[Tensor, ...]:
        """The counts to sum over processes."""
        return self.confusion_matrix, self.num_correct, self.num_disagreements, self.num_top5_correct, self.total_loss

    def update(self, member_scores: Tensor, scores: Tensor, targets: Tensor, images: Tensor) -> None:
        """Add a batch: log-probabilities of the members ``(members, N, classes)`` and combined ``(N, classes)``."""
        confidence, predicted = scores.exp().max(1)
        self.predictions.append(predicted)
        cells = targets * len(self.confusion_matrix) + predicted
        self.confusion_matrix.view(-1).index_add_(0, cells, torch.ones_like(cells))
        self.total_loss += F.nll_loss(scores, targets, reduction="sum")
        self.num_top5_correct += (scores.topk(min(5, scores.shape[1])).indices == targets.unsqueeze(1)).sum()
        member_predictions = member_scores.argmax(2)
        self.num_correct += (member_predictions == targets).sum(1)
        self.num_disagreements += (member_predictions.unsqueeze(0) != member_predictions.unsqueeze(1)).sum(2)
        worst = torch.where(predicted != targets, confidence, 0).topk(min(MAX_MISTAKES, len(targets)))
        indices = worst.indices
        mistakes: tuple[Tensor, ...] = (
            worst.values,
            images[indices.to(images.device)],
            targets[indices],
            predicted[indices],
        )
        if self.mistakes:
            mistakes = tuple(torch.cat(pair) for pair in zip(self.mistakes, mistakes, strict=True))
        kept = mistakes[0].topk(min(MAX_MISTAKES, len(mistakes[0]))).indices
        self.mistakes = tuple(column[kept.to(column.device)] for column in mistakes)

    def compute_metrics(self) -> dict[str, float]:
        """Compute ``accuracy`` in [0, 1], ``errors``, ``count`` and ``loss``, and ``top5_accuracy`` for many classes.

        Ensembles also have ``members``, ``member_accuracy``, ``best_member``, ``gain`` and ``disagreement``.
        """
        result = compute_accuracy(self.confusion_matrix)
        count, num_members = max(int(result["count"]), 1), len(self.num_correct)
        result["loss"] = float(self.total_loss) / count
        if len(self.confusion_matrix) > TOP5_CLASS_THRESHOLD:
            result["top5_accuracy"] = int(self.num_top5_correct) / count
        if num_members > 1:
            mean = float(self.num_correct.float().mean()) / count
            disagreement = int(self.num_disagreements.sum()) / (count * num_members * (num_members - 1))
            result |= {
                "members": num_members,
                "member_accuracy": mean,
                "best_member": int(self.num_correct.max()) / count,
            }
            result |= {"gain": result["accuracy"] - mean, "disagreement": disagreement}
        return result
