"""Classification: which of these classes is the image?"""

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.quasirandom import SobolEngine

from fukami.classification import metrics
from fukami.engine.task import ModelSignature, Task, TrainingOptions
from fukami.errors import Error, UsageError
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform
from fukami.layers import binary
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.layers.ensemble import Ensemble, average_log_probs, combine_log_probs, compute_member_log_probs
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.data.augment import Augmentation
    from fukami.engine.runtime import Runtime

Batch = tuple[Tensor, Tensor]
TOP_K = 10  # classes in a prediction's ranking
PREDICT_BATCH_SIZE = 256  # images that predict holds at a time
AUX_LOSS_WEIGHT = 0.3  # weight of the loss of an auxiliary classifier (Szegedy et al. 2015, section 5)


class ClassificationTask(Task):
    """Softmax and cross entropy over the classes ``labels``.

    Args:
        model: scores ``(N, classes)`` of normalised images ``(N, C, H, W)``; in training a tuple where it has
            auxiliary classifiers, whose losses count 0.3.
        labels: what the classes are called.
        transform: an image of any size as the network sees it, ``(C, H, W)`` uint8, and how it is normalised; it
            travels with the task.
        activation_checkpointing: keep the activations between the blocks of the network alone, and compute the others
            again.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016, section 7).
        ema_decay: decay of a moving average of the weights, which then answers (Polyak and Juditsky 1992); 0: none.
        cycles: the weights at the end of each so long part of the training answer together (Huang et al. 2017).
        use_class_weights: the loss of a class counts the more the fewer images it has.
        augment: what leaves the class of an image alone, for test-time augmentation.
        regime: optimizer, decay, epochs, judge_every, accumulate and clip, as for :class:`fukami.Task`.
    """

    supports_cuda_graph = True

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        transform: SquareTransform,
        *,
        activation_checkpointing: bool = False,
        label_smoothing: float = 0.0,
        ema_decay: float = 0.0,
        cycles: int = 1,
        use_class_weights: bool = False,
        augment: "Augmentation | None" = None,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **regime)
        self.activation_checkpointing = activation_checkpointing
        self.labels = labels
        self.transform = transform
        self.label_smoothing, self.ema_decay, self.cycles, self.use_class_weights, self.augment = (
            label_smoothing,
            ema_decay,
            cycles,
            use_class_weights,
            augment,
        )
        self.class_weights: Tensor | None = None
        self.num_views = 1  # views of each image
        self.cycle = -1
        self.ema_model = copy.deepcopy(model) if ema_decay else model
        self.inference_model = self.ema_model
        if cycles > 1:
            snapshots = [copy.deepcopy(model) for _ in range(cycles - 1)]
            self.inference_model = Ensemble([*snapshots, self.ema_model], num_active=1)

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        if self.activation_checkpointing:
            enable_activation_checkpointing(self.model)
            self.supports_cuda_graph = (
                False  # random states are put back for the second computation, which no CUDA graph records
            )
        super().setup(runtime)
        self.inference_model = runtime.move_to_device(self.inference_model)
        self.latent_weights = binary.get_latent_weights(self.model)
        mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (self.transform.mean, self.transform.std))
        self.mean, self.std = mean.to(runtime.device), std.to(runtime.device)

    def get_stateful_objects(self) -> dict[str, Any]:
        """Also the weights that answer, where they are not the ones that are trained."""
        return super().get_stateful_objects() | (
            {} if self.inference_model is self.model else {"answering": self.inference_model}
        )

    def get_modules(self) -> dict[str, nn.Module]:
        """The network, its moving average, or its snapshots."""
        return {"model": self.inference_model}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Answer with another network."""
        self.model = self.ema_model = self.inference_model = modules["model"]

    def prepare_inputs(self, batch: Batch) -> Tensor:
        """The normalised images."""
        return self.normalize_images(batch[0].to(self.runtime.device))

    def get_signature(self) -> ModelSignature:
        """Images ``(channels, size, size)``; how they are prepared, and the labels, as JSON."""
        about = {
            "preprocessing": json.dumps(self.transform.describe()),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "answer": "scores; softmax makes probabilities of them",
        }
        return ModelSignature("classifier", (self.transform.channels, self.transform.size, self.transform.size), about)

    def iterate_batches(self, train: Any) -> Iterable[Batch]:
        """Pass after pass over the loader; the weights of the classes come from its ``targets``."""
        if self.use_class_weights:
            counts = train.targets.bincount(minlength=len(self.labels)).clamp(min=1)
            self.class_weights = (len(train.targets) / (len(self.labels) * counts)).to(self.runtime.device)
        return super().iterate_batches(train)

    def schedule(self, progress: float) -> float:
        """Set the learning rate; where a cycle has ended, keep a snapshot of what it reached."""
        cycle = int(progress * self.cycles)
        if isinstance(self.inference_model, Ensemble) and cycle != self.cycle:
            self.cycle = cycle
            if cycle >= int(self.inference_model.joined):
                self.inference_model.add_member(self.ema_model)
        return super().schedule(progress)

    @torch.no_grad()
    def on_step(self) -> None:
        """Keep the latent weights of binarized layers in their bounds, and let the moving average follow."""
        if self.latent_weights:
            torch._foreach_clamp_min_(self.latent_weights, -1.0)
            torch._foreach_clamp_max_(self.latent_weights, 1.0)
        if self.ema_model is not self.model:
            torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - self.ema_decay)
            torch._foreach_copy_(list(self.ema_model.buffers()), list(self.model.buffers()))

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of images ``(N, C, H, W)`` in 0..255 and targets ``(N,)``, ``(N, classes)`` where mixed."""
        images, targets = batch
        scores = self.training_model(self.normalize_images(images))
        scores, *auxiliary = scores if isinstance(scores, tuple) else (scores,)
        loss = self.compute_cross_entropy(scores, targets) + AUX_LOSS_WEIGHT * sum(
            self.compute_cross_entropy(other, targets) for other in auxiliary
        )
        right = scores.detach().argmax(1) == (targets if targets.ndim == 1 else targets.argmax(1))
        return loss, {"accuracy": right.float().mean()}

    def compute_cross_entropy(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy that is trained, summed and divided by the images.

        Where classes have weights, torch's own mean divides by those of the batch instead, and would be another one for
        each part of it.
        """
        loss = F.cross_entropy(
            scores, targets, self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        return loss / len(scores)

    def normalize_images(self, images: Tensor) -> Tensor:
        """Images in 0..255 as the network takes them, in float32."""
        return (images - self.mean).div_(self.std)

    def predict_member_scores(self, images: Tensor) -> Tensor:
        """Log-probabilities of each member ``(members, N, classes)``, float32, averaged over the views.

        Computed in the precision of the weights.
        """
        parameter = next(self.inference_model.parameters())
        views = self._generate_views(images.to(parameter.device))
        with half_precision.enable_float32_fallback(self.inference_model):
            return average_log_probs(
                torch.stack(
                    [compute_member_log_probs(self.inference_model, self.normalize_images(view)) for view in views]
                )
            )

    def predict_scores(self, images: Tensor) -> Tensor:
        """Log-probabilities ``(N, classes)``, float32, of images ``(N, C, H, W)`` in 0..255."""
        return combine_log_probs(self.predict_member_scores(images), getattr(self.inference_model, "vote", False))

    def _generate_views(self, images: Tensor) -> Iterator[Tensor]:
        """The images themselves, then views of them: evenly spread draws, the same for every image."""
        yield images
        if self.num_views > 1 and self.augment is not None:
            draws = SobolEngine(self.augment.num_draws).draw(self.num_views - 1)  # type: ignore[no-untyped-call]
            for draw in (draws + 0.25) % 1:  # so that the one view beside the image of a flip is its mirror image
                plan = draw.to(images.device).expand(len(images), -1)
                yield self.augment(images, torch.zeros(len(images), dtype=torch.long), plan)[0]

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """``accuracy`` in [0, 1], ``errors``, ``count`` and the mean cross entropy ``loss``.

        Of more than ten classes there is also ``top5_accuracy``: the right one is among the five likeliest. An ensemble
        also has ``member_accuracy``, the mean over its members, and ``best_member``, the ``gain`` over that mean, and
        the ``disagreement``: the share of images on which two members differ, the mean over all pairs.
        Classes are matched by name where ``batches`` has ``labels``.

        Raises:
            Error: the data have a class that the task does not know, or no image at all.
        """
        found = self.collect_results(batches).compute_metrics()
        if found["count"] == 0:
            raise Error("there is no image to judge; give data with a test part, or a larger --holdout")
        return found

    def collect_results(self, batches: Iterable[Batch]) -> metrics.ClassificationResults:
        """Count what is right and wrong in all of ``batches``, over all processes."""
        number = self._get_class_indices(getattr(batches, "labels", self.labels))
        device = next(self.inference_model.parameters()).device
        members = int(self.inference_model.joined) if isinstance(self.inference_model, Ensemble) else 1
        found = metrics.ClassificationResults(len(self.labels), members, device)
        modes = [(module, module.training) for module in self.inference_model.modules()]
        self.inference_model.eval()
        for images, given in batches:
            if len(images) == 0:  # this process's share of the last batch
                continue
            targets = number[given.cpu()].to(device) if number is not None else given.to(device)
            each = self.predict_member_scores(images)
            found.update(each, combine_log_probs(each, getattr(self.inference_model, "vote", False)), targets, images)
        for module, mode in modes:
            module.training = mode
        for counts in found.totals:
            self.runtime.all_reduce_sum(counts)
        return found

    def _get_class_indices(self, labels: tuple[str, ...]) -> Tensor | None:
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
        """The class of each image: ``file``, ``label``, ``probability`` and the ``ranking`` of the likeliest classes.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` takes them. An image that
        cannot be read yields ``{"file", "error"}``.
        """
        answers: list[dict[str, Any]] = []
        self.inference_model.eval()
        for at in range(0, len(inputs), PREDICT_BATCH_SIZE):
            chunk = [self.load_image(source) for source in inputs[at : at + PREDICT_BATCH_SIZE]]
            seen = [torch.from_numpy(image) for image in chunk if not isinstance(image, Error)]
            ranked = iter(self.predict_scores(torch.stack(seen)).exp().cpu() if seen else ())
            for source, image in zip(inputs[at : at + PREDICT_BATCH_SIZE], chunk, strict=True):
                file = {"file": str(source)} if isinstance(source, str | Path) else {}
                error = {"error": str(image)} if isinstance(image, Error) else None
                answers.append(file | (error or self._format_prediction(next(ranked))))
        return answers

    def load_image(self, source: Any) -> "np.typing.NDArray[np.uint8] | Error":
        """What the network sees of an image, ``(C, H, W)`` uint8, or why it sees nothing."""
        try:
            return self.transform.read_and_transform(source)
        except Error as error:
            return error

    def _format_prediction(self, probabilities: Tensor) -> dict[str, Any]:
        top = probabilities.topk(min(TOP_K, len(self.labels)))
        ranking = [
            {"label": self.labels[number], "probability": probability}
            for probability, number in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        return {**ranking[0], "ranking": ranking}

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """The image beside what the network saw of it, and the answer."""
        image = image_io.read_image(source)
        caption = f"{prediction['label']}  ({prediction['probability']:.1%})"
        return image_io.draw_prediction(image, self.transform(image), caption)

    @torch.inference_mode()
    def plot_evaluation(self, batches: Iterable[Batch]) -> "Iterator[tuple[str, Figure]]":
        """Confusion matrix, accuracy per class, the most confidently wrong images, and the members of an ensemble."""
        from fukami.classification import plots as classification_plots

        found = self.collect_results(batches)
        if not self.runtime.is_main:
            return
        matrix = found.confusion_matrix.cpu()
        yield "Confusion matrix", classification_plots.plot_confusion_matrix(matrix, self.labels)
        yield "Accuracy per class", classification_plots.plot_class_accuracy(matrix, self.labels)
        if len(found.num_correct) > 1:
            count = int(matrix.sum())
            share, apart = found.num_correct.cpu() / count, found.num_disagreements.cpu() / count
            yield (
                "The members and what they do together",
                classification_plots.plot_member_accuracies(share, int(matrix.trace()) / count, apart),
            )
        confidence, images, targets, predicted = (torch.cat(column) for column in zip(*found.mistakes, strict=True))
        likely = confidence.topk(min(metrics.MAX_MISTAKES, len(confidence))).indices.tolist()
        best = [i for i in likely if confidence[i] > 0]
        captions = [f"{self.labels[targets[i]]} → {self.labels[predicted[i]]}  {confidence[i]:.0%}" for i in best]
        if best:
            yield "Most confidently wrong", classification_plots.plot_images(images[best].cpu(), captions)

    def with_views(self, num_views: int) -> Self:
        """This task answering from so many views of each image, drawn from the augmentation it was trained with.

        Raises:
            UsageError: ``num_views`` is less than 1, or the training had no augmentation that moves or recolours.
        """
        if num_views < 1:
            raise UsageError(f"an image has at least one view, not {num_views}")
        if num_views > 1 and self.augment is None:
            raise UsageError(
                "the run was trained without moves or changes of colour, so there are no views to answer from"
            )
        self.num_views = num_views
        return self

    def ensemble_with(self, others: Sequence[Self], *, vote: bool = False) -> Self:
        """This task and ``others`` together: their averaged probabilities, or the majority's vote.

        Raises:
            UsageError: they have other classes, or see images otherwise.
        """
        for other in others:
            if other.labels != self.labels or other.transform != self.transform:
                raise UsageError("runs that answer together must have the same classes and see images the same way")
        self.inference_model = Ensemble([self.inference_model, *(other.inference_model for other in others)], vote=vote)
        return self
