"""Image classification: training, evaluation and prediction."""

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
TOP_K = 10  # number of classes in a prediction's ranking
PREDICT_BATCH_SIZE = 256  # images per batch in predict
AUX_LOSS_WEIGHT = 0.3  # loss weight of each auxiliary classifier (Szegedy et al. 2015, section 5)


class ClassificationTask(Task):
    """Image classification with softmax cross entropy.

    Args:
        model: maps normalized images ``(N, C, H, W)`` to logits ``(N, classes)``. With auxiliary classifiers it returns
            a tuple in training; their losses have the weight 0.3.
        labels: names of the classes.
        transform: preprocessing of images of any size to ``(C, H, W)`` uint8, and their normalization.
        activation_checkpointing: store only the activations between blocks, and recompute the others in the backward
            pass.
        label_smoothing: label smoothing factor (Szegedy et al. 2016, section 7).
        ema_decay: decay of the exponential moving average of the weights, which is then used for inference (Polyak and
            Juditsky 1992); 0 disables it.
        cycles: number of learning-rate cycles; the weights at the end of each form a snapshot ensemble (Huang et al.
            2017).
        use_class_weights: weight the loss of each class by its inverse frequency.
        augment: class-preserving augmentation for test-time augmentation.
        options: optimizer, lr_schedule, epochs, eval_every, accumulate and clip_norm, as for :class:`fukami.Task`.
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
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **options)
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
        self.num_views = 1  # test-time augmentation: views of each image
        self.cycle = -1
        self.ema_model = copy.deepcopy(model) if ema_decay else model
        self.inference_model = self.ema_model
        if cycles > 1:
            snapshots = [copy.deepcopy(model) for _ in range(cycles - 1)]
            self.inference_model = Ensemble([*snapshots, self.ema_model], num_active=1)

    def setup(self, runtime: "Runtime") -> None:
        """Move the networks to the device and create the optimizer."""
        if self.activation_checkpointing:
            enable_activation_checkpointing(self.model)
            # recomputation restores random states, which a CUDA graph cannot record
            self.supports_cuda_graph = False
        super().setup(runtime)
        self.inference_model = runtime.move_to_device(self.inference_model)
        self.latent_weights = binary.get_latent_weights(self.model)
        mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (self.transform.mean, self.transform.std))
        self.mean, self.std = mean.to(runtime.device), std.to(runtime.device)

    def get_stateful_objects(self) -> dict[str, Any]:
        """Return the objects of :class:`fukami.Task`, and the inference model if it is another one."""
        return super().get_stateful_objects() | (
            {} if self.inference_model is self.model else {"inference model": self.inference_model}
        )

    def get_modules(self) -> dict[str, nn.Module]:
        """Return the inference model: the network, its moving average or its snapshots."""
        return {"model": self.inference_model}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the network for inference."""
        self.model = self.ema_model = self.inference_model = modules["model"]

    def prepare_inputs(self, batch: Batch) -> Tensor:
        """Return the normalized images."""
        return self.normalize_images(batch[0].to(self.runtime.device))

    def get_signature(self) -> ModelSignature:
        """Return the input shape, and the preprocessing and labels as JSON."""
        metadata = {
            "preprocessing": json.dumps(self.transform.describe()),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "output": "logits; softmax converts them to probabilities",
        }
        input_shape = (self.transform.channels, self.transform.size, self.transform.size)
        return ModelSignature("classifier", input_shape, metadata)

    def iterate_batches(self, train: Any) -> Iterable[Batch]:
        """Yield the batches of all epochs; class weights are computed from the loader's ``targets``."""
        if self.use_class_weights:
            counts = train.targets.bincount(minlength=len(self.labels)).clamp(min=1)
            self.class_weights = (len(train.targets) / (len(self.labels) * counts)).to(self.runtime.device)
        return super().iterate_batches(train)

    def schedule(self, progress: float) -> float:
        """Set the learning rate; at the end of a cycle, store a snapshot."""
        cycle = int(progress * self.cycles)
        if isinstance(self.inference_model, Ensemble) and cycle != self.cycle:
            self.cycle = cycle
            if cycle >= int(self.inference_model.num_active):
                self.inference_model.add_member(self.ema_model)
        return super().schedule(progress)

    @torch.no_grad()
    def on_step(self) -> None:
        """Clip the latent weights of binarized layers to -1..1, and update the moving average."""
        if self.latent_weights:
            torch._foreach_clamp_min_(self.latent_weights, -1.0)
            torch._foreach_clamp_max_(self.latent_weights, 1.0)
        if self.ema_model is not self.model:
            torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - self.ema_decay)
            torch._foreach_copy_(list(self.ema_model.buffers()), list(self.model.buffers()))

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross entropy of images ``(N, C, H, W)`` in 0..255 and targets ``(N,)``.

        Mixed targets are ``(N, classes)``.
        """
        images, targets = batch
        scores = self.training_model(self.normalize_images(images))
        scores, *auxiliary = scores if isinstance(scores, tuple) else (scores,)
        loss = self.compute_cross_entropy(scores, targets) + AUX_LOSS_WEIGHT * sum(
            self.compute_cross_entropy(aux_scores, targets) for aux_scores in auxiliary
        )
        is_correct = scores.detach().argmax(1) == (targets if targets.ndim == 1 else targets.argmax(1))
        return loss, {"accuracy": is_correct.float().mean()}

    def compute_cross_entropy(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross entropy, summed and divided by the number of images.

        With class weights, torch's mean would divide by their sum in the batch, which differs between micro-batches.
        """
        loss = F.cross_entropy(
            scores, targets, self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        return loss / len(scores)

    def normalize_images(self, images: Tensor) -> Tensor:
        """Normalize images in 0..255 to the network's input in float32."""
        return (images - self.mean).div_(self.std)

    def predict_member_scores(self, images: Tensor) -> Tensor:
        """Predict the log-probabilities ``(members, N, classes)`` of each member, averaged over the views.

        The network computes in the precision of its weights; the result is float32.
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
        """Predict the log-probabilities ``(N, classes)``, float32, of images ``(N, C, H, W)`` in 0..255."""
        return combine_log_probs(self.predict_member_scores(images), getattr(self.inference_model, "vote", False))

    def _generate_views(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the images, then their augmented views, with evenly spread parameters equal for all images."""
        yield images
        if self.num_views > 1 and self.augment is not None:
            engine = SobolEngine(self.augment.num_random_values)  # type: ignore[no-untyped-call]
            # the offset makes the first view of a flip the mirror image
            for view_values in (engine.draw(self.num_views - 1) + 0.25) % 1:
                random_values = view_values.to(images.device).expand(len(images), -1)
                yield self.augment(images, torch.zeros(len(images), dtype=torch.long), random_values)[0]

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Compute ``accuracy`` in [0, 1], ``errors``, ``count`` and the mean cross entropy ``loss``.

        For more than ten classes, the metrics include ``top5_accuracy``. An ensemble also has ``member_accuracy``, the
        mean of its members, ``best_member``, the ``gain`` over the mean, and ``disagreement``: the fraction of images
        on which two members differ, averaged over all pairs. Classes are matched by name if ``batches`` has ``labels``.

        Raises:
            Error: the data have a class that the task does not have, or no images.
        """
        result = self.collect_results(batches).compute_metrics()
        if result["count"] == 0:
            raise Error("there is no image to evaluate; use data with a test split, or a larger --holdout")
        return result

    def collect_results(self, batches: Iterable[Batch]) -> metrics.ClassificationResults:
        """Count correct and wrong predictions in all ``batches``, over all processes."""
        class_indices = self._get_class_indices(getattr(batches, "labels", self.labels))
        device = next(self.inference_model.parameters()).device
        num_members = int(self.inference_model.num_active) if isinstance(self.inference_model, Ensemble) else 1
        results = metrics.ClassificationResults(len(self.labels), num_members, device)
        modes = [(module, module.training) for module in self.inference_model.modules()]
        self.inference_model.eval()
        for images, batch_targets in batches:
            if len(images) == 0:  # the last batch may have no images for this process
                continue
            targets = (
                class_indices[batch_targets.cpu()].to(device) if class_indices is not None else batch_targets.to(device)
            )
            scores = self.predict_member_scores(images)
            combined = combine_log_probs(scores, getattr(self.inference_model, "vote", False))
            results.update(scores, combined, targets, images)
        for module, mode in modes:
            module.training = mode
        for counts in results.totals:
            self.runtime.all_reduce_sum(counts)
        return results

    def _get_class_indices(self, labels: tuple[str, ...]) -> Tensor | None:
        """Return the task's class index of each of ``labels``, or None if the labels are equal."""
        if labels == self.labels:
            return None
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            known = ", ".join(self.labels[:20])
            raise UsageError(f"the data have classes that the run does not have: {', '.join(unknown)}; it has {known}")
        return torch.tensor([self.labels.index(label) for label in labels])

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Classify images; return ``file``, ``label``, ``probability`` and the ``ranking`` of the most likely classes.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` accepts them. An unreadable
        image yields ``{"file", "error"}``.
        """
        predictions: list[dict[str, Any]] = []
        self.inference_model.eval()
        for start in range(0, len(inputs), PREDICT_BATCH_SIZE):
            chunk = [self.load_image(source) for source in inputs[start : start + PREDICT_BATCH_SIZE]]
            images = [torch.from_numpy(image) for image in chunk if not isinstance(image, Error)]
            probabilities = iter(self.predict_scores(torch.stack(images)).exp().cpu() if images else ())
            for source, image in zip(inputs[start : start + PREDICT_BATCH_SIZE], chunk, strict=True):
                file = {"file": str(source)} if isinstance(source, str | Path) else {}
                error = {"error": str(image)} if isinstance(image, Error) else None
                predictions.append(file | (error or self._format_prediction(next(probabilities))))
        return predictions

    def load_image(self, source: Any) -> "np.typing.NDArray[np.uint8] | Error":
        """Load and preprocess an image to ``(C, H, W)`` uint8, or return the error."""
        try:
            return self.transform.read_and_transform(source)
        except Error as error:
            return error

    def _format_prediction(self, probabilities: Tensor) -> dict[str, Any]:
        top = probabilities.topk(min(TOP_K, len(self.labels)))
        ranking = [
            {"label": self.labels[class_index], "probability": probability}
            for probability, class_index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        return {**ranking[0], "ranking": ranking}

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """Draw the image next to the preprocessed one, with the predicted label."""
        image = image_io.read_image(source)
        caption = f"{prediction['label']}  ({prediction['probability']:.1%})"
        return image_io.draw_prediction(image, self.transform(image), caption)

    @torch.inference_mode()
    def plot_evaluation(self, batches: Iterable[Batch]) -> "Iterator[tuple[str, Figure]]":
        """Yield figures of the confusion matrix, class accuracies, ensemble members and most confident errors."""
        from fukami.classification import plots as classification_plots

        results = self.collect_results(batches)
        if not self.runtime.is_main:
            return
        matrix = results.confusion_matrix.cpu()
        yield "Confusion matrix", classification_plots.plot_confusion_matrix(matrix, self.labels)
        yield "Accuracy per class", classification_plots.plot_class_accuracy(matrix, self.labels)
        if len(results.num_correct) > 1:
            count = int(matrix.sum())
            accuracies, disagreement = results.num_correct.cpu() / count, results.num_disagreements.cpu() / count
            yield (
                "Ensemble members",
                classification_plots.plot_member_accuracies(accuracies, int(matrix.trace()) / count, disagreement),
            )
        confidence, images, targets, predicted = (torch.cat(column) for column in zip(*results.mistakes, strict=True))
        candidates = confidence.topk(min(metrics.MAX_MISTAKES, len(confidence))).indices.tolist()
        worst = [i for i in candidates if confidence[i] > 0]
        captions = [f"{self.labels[targets[i]]} → {self.labels[predicted[i]]}  {confidence[i]:.0%}" for i in worst]
        if worst:
            yield "Most confident errors", classification_plots.plot_images(images[worst].cpu(), captions)

    def with_views(self, num_views: int) -> Self:
        """Enable test-time augmentation: average over ``num_views`` augmented views of each image.

        Raises:
            UsageError: ``num_views`` is less than 1, or the run was trained without geometric or color augmentation.
        """
        if num_views < 1:
            raise UsageError(f"an image has at least one view, not {num_views}")
        if num_views > 1 and self.augment is None:
            raise UsageError(
                "the run was trained without geometric or color augmentation, so there are no views; omit --views"
            )
        self.num_views = num_views
        return self

    def ensemble_with(self, others: Sequence[Self], *, vote: bool = False) -> Self:
        """Combine this task and ``others`` to an ensemble, by averaged probabilities or by majority vote.

        Raises:
            UsageError: the classes or the preprocessing differ.
        """
        for other in others:
            if other.labels != self.labels or other.transform != self.transform:
                raise UsageError("the runs of an ensemble must have the same classes and the same preprocessing")
        self.inference_model = Ensemble([self.inference_model, *(other.inference_model for other in others)], vote=vote)
        return self
