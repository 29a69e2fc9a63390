"""Classification: which of these classes is the picture?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami import image, metrics
from fukami.errors import Error, UsageError
from fukami.preparation import Preparation
from fukami.schedules import Schedule, constant
from fukami.task import MakeOptimizer, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]
WRONG = 25  # pictures in the report's figure of confident mistakes
RANKS = 10  # classes in a prediction's ranking
CHUNK = 256  # pictures that predict holds at a time


class Classification(Task):
    """Softmax and cross entropy over the classes ``labels``.

    Args:
        model: scores ``(N, classes)`` of pictures ``(N, C, H, W)`` in [0, 1].
        labels: what the classes are called.
        prepare: a picture of any size as the network sees it, ``(C, H, W)`` uint8; it travels with the task.
        optimizer, decay, epochs: as for :class:`fukami.Task`.
        smoothing: share of the target spread over all classes (Szegedy et al. 2016, section 7).
    """

    static = True

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: Preparation,
        *,
        optimizer: MakeOptimizer = torch.optim.AdamW,
        decay: Schedule = constant,
        epochs: int = 1,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer=optimizer, decay=decay, epochs=epochs)
        self.labels = labels
        self.prepare = prepare
        self.smoothing = smoothing

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of pictures ``(N, C, H, W)`` in 0..255 and targets ``(N,)``."""
        pictures, targets = batch
        scores = self.replica(pictures.float() / 255)
        right = scores.detach().argmax(1) == targets
        return F.cross_entropy(scores, targets, label_smoothing=self.smoothing), {"accuracy": right.float().mean()}

    def scores(self, pictures: Tensor) -> Tensor:
        """Scores ``(N, classes)``, float32, computed in the precision of the weights."""
        parameter = next(self.model.parameters())
        pictures = pictures.to(parameter.device, torch.float32) / 255
        return self.model(pictures.to(parameter.dtype)).float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """``accuracy`` in [0, 1], ``errors``, ``count`` and the mean cross entropy ``loss``.

        Classes are matched by name where ``batches`` has ``labels``.

        Raises:
            Error: the data have a class that the task does not know, or no picture at all.
        """
        matrix, loss = self._judge(batches)[:2]
        found = metrics.accuracy(matrix)
        if found["count"] == 0:
            raise Error("there is no picture to judge; give data with a test part, or a larger --holdout")
        return {**found, "loss": float(loss) / found["count"]}

    def _judge(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, list[tuple[Tensor, ...]]]:
        """Confusion matrix, summed cross entropy, and per batch its most confident mistakes."""
        number = self._numbers(getattr(batches, "labels", self.labels))
        device = next(self.model.parameters()).device
        classes = len(self.labels)
        matrix = torch.zeros(classes, classes, dtype=torch.long, device=device)
        loss = torch.zeros((), device=device)
        wrong: list[tuple[Tensor, ...]] = []
        training = self.model.training
        self.model.eval()
        for pictures, given in batches:
            targets = number[given.cpu()].to(device) if number is not None else given.to(device)
            scores = self.scores(pictures)
            confidence, predicted = scores.softmax(1).max(1)
            matrix += metrics.confusion(predicted, targets, classes)
            loss += F.cross_entropy(scores, targets, reduction="sum")
            worst = torch.where(predicted != targets, confidence, 0).topk(min(WRONG, len(targets)))
            wrong.append(
                (
                    worst.values,
                    pictures[worst.indices.to(pictures.device)],
                    targets[worst.indices],
                    predicted[worst.indices],
                )
            )
        self.model.train(training)
        return self.runtime.sum(matrix), self.runtime.sum(loss), wrong

    def _numbers(self, labels: tuple[str, ...]) -> Tensor | None:
        """Our number of each of the classes ``labels``; None where they are the same."""
        if labels == self.labels:
            return None
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            ours = ", ".join(self.labels[:20])
            raise UsageError(f"the data have classes that the run does not know: {', '.join(unknown)}; it knows {ours}")
        return torch.tensor([self.labels.index(label) for label in labels])

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The class of each picture: ``file``, ``label``, ``probability`` and the ``ranking`` of the likeliest classes.

        ``inputs`` are paths, PIL pictures or arrays as :func:`fukami.image.read` takes them. A picture that cannot be
        read yields ``{"file", "error"}``.
        """
        answers: list[dict[str, Any]] = []
        self.model.eval()
        for at in range(0, len(inputs), CHUNK):
            chunk = [self.see(source) for source in inputs[at : at + CHUNK]]
            seen = [torch.from_numpy(picture) for picture in chunk if not isinstance(picture, Error)]
            ranked = iter(self.scores(torch.stack(seen)).softmax(1).cpu() if seen else ())
            for source, picture in zip(inputs[at : at + CHUNK], chunk, strict=True):
                file = {"file": str(source)} if isinstance(source, str | Path) else {}
                error = {"error": str(picture)} if isinstance(picture, Error) else None
                answers.append(file | (error or self._answer(next(ranked))))
        return answers

    def see(self, source: Any) -> "np.typing.NDArray[np.uint8] | Error":
        """What the network sees of a picture, ``(C, H, W)`` uint8, or why it sees nothing."""
        try:
            return self.prepare.open(source)
        except Error as error:
            return error

    def _answer(self, probabilities: Tensor) -> dict[str, Any]:
        top = probabilities.topk(min(RANKS, len(self.labels)))
        ranking = [
            {"label": self.labels[number], "probability": probability}
            for probability, number in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        return {**ranking[0], "ranking": ranking}

    def draw(self, source: Any, answer: dict[str, Any]) -> Image.Image:
        """The picture beside what the network saw of it, and the answer."""
        picture = image.read(source)
        caption = f"{answer['label']}  ({answer['probability']:.1%})"
        return image.draw_answer(picture, self.prepare(picture), caption)

    @torch.inference_mode()
    def figures(self, batches: Iterable[Batch]) -> "Iterator[tuple[str, Figure]]":
        """Confusion matrix, accuracy per class, and the most confidently wrong pictures."""
        from fukami import figures

        matrix, _, wrong = self._judge(batches)
        yield "Confusion matrix", figures.confusion(matrix.cpu(), self.labels)
        yield "Accuracy per class", figures.per_class(matrix.cpu(), self.labels)
        confidence, pictures, targets, predicted = (torch.cat(column) for column in zip(*wrong, strict=True))
        likely = confidence.topk(min(WRONG, len(confidence))).indices.tolist()
        best = [i for i in likely if confidence[i] > 0]
        captions = [f"{self.labels[targets[i]]} → {self.labels[predicted[i]]}  {confidence[i]:.0%}" for i in best]
        if best:
            yield "Most confidently wrong", figures.gallery(pictures[best].cpu(), captions)

    def ensemble(self, others: Sequence[Self]) -> Self:
        """Averaged probabilities over this task and ``others``.

        Raises:
            UsageError: they have other classes, or see pictures otherwise.
        """
        for other in others:
            if other.labels != self.labels or other.prepare != self.prepare:
                raise UsageError("runs that answer together must have the same classes and see pictures the same way")
        self.model = Averaged([self.model, *(other.model for other in others)])
        return self


class Averaged(nn.Module):
    """Several classifiers as one: the logarithm of their averaged probabilities stands for its scores."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, pictures: Tensor) -> Tensor:
        """Log-probabilities ``(N, classes)``, float32."""
        each = torch.stack([model(pictures).float().log_softmax(1) for model in self.models])
        return each.logsumexp(0) - math.log(len(self.models))
