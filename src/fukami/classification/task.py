"""Image classification: training, evaluation and prediction."""

import copy
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.quasirandom import SobolEngine

from fukami.classification import metrics
from fukami.data.loader import Batch, BatchLoader, InMemoryLoader, Loader
from fukami.engine.fine_tuning import find_head
from fukami.engine.prediction import Prediction
from fukami.engine.task import ModelSignature, Task, TrainingOptions, match_labels
from fukami.errors import Error, UsageError, format_names
from fukami.image import draw as image_draw
from fukami.image.transform import SquareTransform
from fukami.layers import binary
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.layers.ensemble import Ensemble, average_log_probs, combine_log_probs, compute_member_log_probs
from fukami.progress import ProgressBar, track
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from fukami.data.augment import Augmentation
    from fukami.engine.runtime import Runtime
    from fukami.engine.task import FigureContent

MIN_CLASS_IMAGES = 5  # a class with fewer training images is reported
TOP_K = 10  # number of classes in a prediction's ranking
AUX_LOSS_WEIGHT = 0.3  # loss weight of each auxiliary classifier (Szegedy et al. 2015, section 5)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureCacheConfig:
    """Settings of the cache of frozen features.

    Attributes:
        num_views: number of augmented views of each training image; without augmentation there is one.
        max_bytes: memory limit. There are fewer views if it is reached, and no cache if one view is larger.
    """

    num_views: int
    max_bytes: float


class ClassificationTask(Task):
    """Image classification with softmax cross entropy.

    Args:
        model: maps normalized images ``(N, C, H, W)`` to logits ``(N, classes)``. With auxiliary classifiers it returns
            a tuple in training; their losses have the weight 0.3.
        labels: names of the classes.
        transform: preprocessing of images of any size to ``(C, H, W)``, and their normalization.
        activation_checkpointing: store only the activations between blocks, and recompute the others in the backward
            pass.
        label_smoothing: label smoothing factor (Szegedy et al. 2016, section 7).
        ema_decay: decay of the exponential moving average of the weights, which is then used for inference (Polyak and
            Juditsky 1992); 0 disables it.
        cycles: number of learning-rate cycles; the weights at the end of each form a snapshot ensemble (Huang et al.
            2017).
        use_class_weights: weight the loss of each class by its inverse frequency.
        augment: class-preserving augmentation for test-time augmentation.
        feature_cache: how frozen features are cached; None: they are computed in each step.
        options: training options, as for :class:`fukami.Task`.
    """

    supports_cuda_graph = True
    ensemble_methods = ("average", "vote")
    predict_batch_size = 256
    transform: SquareTransform

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
        feature_cache: FeatureCacheConfig | None = None,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **options)
        self.activation_checkpointing = activation_checkpointing
        self.labels = labels
        self.transform = transform
        self.label_smoothing = label_smoothing
        self.ema_decay = ema_decay
        self.cycles = cycles
        self.use_class_weights = use_class_weights
        self.augment = augment
        self.feature_cache = feature_cache
        self.cached_head = ""  # name of the head whose input the training batches contain, after caching
        self.eval_features: tuple[Iterable[Batch], list[Tensor]] | None = None  # of these batches
        self.class_weights: Tensor | None = None
        self.num_views = 1  # test-time augmentation: views of each image
        self.cycle = -1
        self.ema_model = copy.deepcopy(model) if ema_decay else model
        self.inference_model = self.ema_model
        if cycles > 1:
            self.metric_mode = None  # the last weights contain all snapshots
            snapshots = [copy.deepcopy(model) for _ in range(cycles - 1)]
            self.inference_model = Ensemble([*snapshots, self.ema_model], num_active=1)

    def setup(self, runtime: "Runtime") -> None:
        """Move the networks to the device."""
        super().setup(runtime)
        self.inference_model = runtime.move_to_device(self.inference_model)

    def prepare_training(self) -> None:
        """Create the optimizer, and enable activation checkpointing.

        Raises:
            UsageError: there is only one class.
        """
        if len(self.labels) < 2:
            raise UsageError(
                f"the data have the class {', '.join(self.labels)!r} only, and a classifier needs at least two; put "
                "the images of each class into a folder of its own"
            )
        if self.activation_checkpointing:
            enable_activation_checkpointing(self.model)
            # recomputation restores random states, which a CUDA graph cannot record
            self.supports_cuda_graph = False
        super().prepare_training()
        self.latent_weights = binary.get_latent_weights(self.model)
        if self.inference_model is not self.model:
            self.state["inference model"] = self.inference_model

    def get_modules(self) -> dict[str, nn.Module]:
        """Return the inference model: the network, its moving average or its snapshots."""
        return {"model": self.inference_model}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the network for inference."""
        self.model = self.ema_model = self.inference_model = modules["model"]

    def get_signature(self) -> ModelSignature:
        """Return the input shape, and the preprocessing and labels as JSON."""
        metadata = {
            "preprocessing": json.dumps(self.transform.describe()),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "output": "logits; softmax converts them to probabilities",
        }
        input_shape = (self.transform.channels, self.transform.size, self.transform.size)
        return ModelSignature(
            "classifier",
            input_shape,
            metadata,
            lambda batch: self.normalize_images(batch[0].to(self.runtime.device)),
        )

    def iterate_batches(self, loader: Loader) -> Iterable[Batch]:
        """Yield the batches of all epochs; first compute class weights and frozen features of the loader."""
        if isinstance(loader, BatchLoader):
            counts = loader.targets.bincount(minlength=len(self.labels))
            warn_of_small_classes(dict(zip(self.labels, counts.tolist(), strict=True)))
            if self.use_class_weights:
                weights = len(loader.targets) / (len(self.labels) * counts.clamp(min=1))
                self.class_weights = weights.to(self.runtime.device)
        if self.feature_cache is not None and isinstance(loader, InMemoryLoader):
            self.cache_features(loader, self.feature_cache)
        return super().iterate_batches(loader)

    def cache_features(self, loader: InMemoryLoader, config: FeatureCacheConfig) -> None:
        """Compute the frozen features of each view of the training images, and train only the head on them.

        Dropout right before the head is applied to the cached features. Nothing is cached if images are mixed, which
        makes the views depend on each other, if the network has other outputs than its head's, or with other dropout.
        """
        head, *auxiliary = find_head(self.model)
        module = self.model.get_submodule(head)
        names = [name for name, _ in self.model.named_children()]
        previous = self.model.get_submodule(names[names.index(head) - 1])
        is_dropout_before_head = isinstance(previous, nn.Dropout) and names.index(head) > 0
        has_other_dropout = any(
            isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 and layer is not previous
            for name, child in self.model.named_children()
            for layer in child.modules()
            if name != head
        )
        with self.evaluation_mode(), torch.no_grad(), self.runtime.autocast():
            images, targets = next(loader.iterate_view(0))
            first = self.compute_features(head, images[:1])
            is_last = torch.equal(module(first), self.model(self.normalize_images(images[:1])))
            num_views = config.num_views if loader.augmentation else 1
            max_views = int(min(num_views, config.max_bytes / (len(loader.targets) * first.nbytes)))
            if auxiliary or not is_last or targets.ndim > 1 or max_views == 0 or has_other_dropout:
                return
            if max_views < num_views:
                if self.runtime.is_main:
                    logger.warning(
                        f"only the frozen features of {max_views} of {num_views} views fit into the memory limit, and "
                        "each view is used more often; increase --memory-limit"
                    )
                num_views = max_views
            features = first.new_zeros(num_views, len(loader.targets), *first.shape[1:])
            with ProgressBar("frozen features", num_views * len(loader.targets), "images") as bar:
                for view in range(num_views):
                    start = 0
                    for index, (images, _) in enumerate(loader.iterate_view(view)):
                        if index % self.runtime.world_size == self.runtime.rank:
                            features[view, start : start + len(images)] = self.compute_features(head, images)
                        start += len(images)
                        bar.update(len(images))
        loader.set_features(self.runtime.all_reduce_sum(features))
        self.cached_head = head
        trained = nn.Sequential(previous, module) if is_dropout_before_head else module
        self.ddp_model = self.training_model = self.runtime.replicate(trained)

    def compute_features(self, head: str, images: Tensor) -> Tensor:
        """Compute the input of the head of images ``(N, C, H, W)`` in 0..255."""
        inputs: list[Tensor] = []
        module = self.inference_model.get_submodule(head)
        hook = module.register_forward_pre_hook(lambda _, args: inputs.extend(args))
        try:
            self.inference_model(self.normalize_images(images))
        finally:
            hook.remove()
        return inputs[0]

    def schedule(self, progress: float) -> float:
        """Set the learning rate; at the end of a cycle, store a snapshot."""
        cycle = int(progress * self.cycles)
        if isinstance(self.inference_model, Ensemble) and cycle != self.cycle:
            self.cycle = cycle
            if cycle >= int(self.inference_model.num_active):
                self.inference_model.add_member(self.ema_model)
        return super().schedule(progress)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Run one training step, and update what depends on the new weights."""
        metrics = super().step(batch)
        with self.runtime.clock("optimizer"):
            self.update_weights()
        return metrics

    @torch.no_grad()
    def update_weights(self) -> None:
        """Clip the latent weights of binarized layers to -1..1, and update the moving average."""
        if self.latent_weights:
            torch._foreach_clamp_min_(self.latent_weights, -1.0)
            torch._foreach_clamp_max_(self.latent_weights, 1.0)
        if self.ema_model is not self.model:
            torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - self.ema_decay)
            if buffers := list(self.model.buffers()):  # the function rejects an empty list
                torch._foreach_copy_(list(self.ema_model.buffers()), buffers)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross entropy of images ``(N, C, H, W)`` in 0..255 and targets ``(N,)``.

        Mixed targets are ``(N, classes)``.
        """
        images, targets = batch
        scores = self.training_model(images if self.cached_head else self.normalize_images(images))
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

    def get_eval_features(self, batches: Iterable[Batch], index: int, images: Tensor) -> Tensor | None:
        """Return the frozen features of a batch of the evaluation; up to the memory limit they are computed once.

        None if the training computes none, or with test-time augmentation.
        """
        if not self.cached_head or self.feature_cache is None or self.num_views > 1:
            return None
        if self.eval_features is None or self.eval_features[0] is not batches:
            self.eval_features = batches, []
        cached = self.eval_features[1]
        if index < len(cached):
            return cached[index]
        features = self.compute_features(self.cached_head, images.to(self.mean.device))
        # a smaller last batch may be within the limit after one that is not
        if index == len(cached) and (index + 1) * features.nbytes <= self.feature_cache.max_bytes:
            cached.append(features)
        return features

    def predict_member_log_probabilities(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Predict the log-probabilities ``(members, N, classes)`` of each member, averaged over the views.

        With ``features`` only the head is computed. The network computes in the precision of its weights; the result is
        float32.
        """
        if features is not None:
            return compute_member_log_probs(self.inference_model.get_submodule(self.cached_head), features)
        parameter = next(self.inference_model.parameters())
        views = self._generate_views(images.to(parameter.device))
        with half_precision.enable_float32_fallback(self.inference_model):
            return average_log_probs(
                torch.stack(
                    [compute_member_log_probs(self.inference_model, self.normalize_images(view)) for view in views]
                )
            )

    def predict_log_probabilities(self, images: Tensor) -> Tensor:
        """Predict the log-probabilities ``(N, classes)``, float32, of images ``(N, C, H, W)`` in 0..255."""
        return self.combine_members(self.predict_member_log_probabilities(images))

    def _generate_views(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the images, then their augmented views, with evenly spread parameters equal for all images."""
        yield images
        if self.num_views > 1 and self.augment is not None:
            engine = SobolEngine(self.augment.num_random_values)  # type: ignore[no-untyped-call]
            # the offset makes the first view of a flip the mirror image
            for view_values in (engine.draw(self.num_views - 1) + 0.25) % 1:
                random_values = view_values.to(images.device).expand(len(images), -1)
                yield self.augment(images, torch.zeros(len(images), dtype=torch.long), random_values)[0]

    def collect_results(self, batches: Iterable[Batch]) -> metrics.ClassificationResults:
        """Count correct and wrong predictions in all ``batches``, over all processes.

        Raises:
            UsageError: the data have a class that the task does not have.
            Error: there are no images.
        """
        device = next(self.inference_model.parameters()).device
        class_indices = torch.tensor(match_labels(self.labels, batches), device=device)
        num_members = int(self.inference_model.num_active) if isinstance(self.inference_model, Ensemble) else 1
        results = metrics.ClassificationResults(len(self.labels), num_members, device)
        for index, (images, targets) in enumerate(track(batches, "evaluation", unit="batches")):
            if len(images):  # the last batch may have no images for this process
                scores = self.predict_member_log_probabilities(images, self.get_eval_features(batches, index, images))
                results.update(scores, self.combine_members(scores), class_indices[targets.to(device)], images)
        for counts in results.totals:
            self.runtime.all_reduce_sum(counts)
        if not results.confusion_matrix.any():
            raise Error("there is no image to evaluate; use data with a test split, or a larger --val-fraction")
        return results

    def combine_members(self, scores: Tensor) -> Tensor:
        """Combine the log-probabilities of the members ``(members, N, classes)`` to those of the ensemble."""
        return combine_log_probs(scores, isinstance(self.inference_model, Ensemble) and self.inference_model.vote)

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Classify images; return ``label``, ``probability`` and the ``ranking`` of the most likely classes."""
        return list(map(self._format_prediction, self.predict_log_probabilities(images).exp().cpu()))

    def _format_prediction(self, probabilities: Tensor) -> Prediction:
        top = probabilities.topk(min(TOP_K, len(self.labels)))
        ranking = [
            {"label": self.labels[class_index], "probability": round(probability, 4)}
            for probability, class_index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        return {**ranking[0], "ranking": ranking}

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw the image next to the preprocessed one, with the predicted label."""
        caption = f"{prediction['label']}  ({prediction['probability']:.1%})"
        return image_draw.draw_prediction(image, self.transform.transform_preview(image), caption)

    def plot_evaluation(self, batches: Iterable[Batch]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield figures of the confusion matrix, class accuracies, ensemble members and most confident errors."""
        from fukami.classification import plots as classification_plots

        results = self._get_results(batches)
        assert isinstance(results, metrics.ClassificationResults)
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
        confidence, images, targets, predicted = results.mistakes
        worst = confidence.nonzero().flatten().tolist()
        captions = [f"{self.labels[targets[i]]} → {self.labels[predicted[i]]}  {confidence[i]:.0%}" for i in worst]
        if worst:
            shown = classification_plots.convert_images(images[worst].cpu())
            yield "Most confident errors", list(zip(captions, shown, strict=True))

    def set_num_views(self, num_views: int) -> None:
        """Set the number of views of each image in test-time augmentation, the first being the image itself.

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


def warn_of_small_classes(counts: Mapping[str, int]) -> None:
    """Log a warning about the classes with few training images."""
    small = [f"{label} ({count})" for label, count in counts.items() if count < MIN_CLASS_IMAGES]
    if small:
        logger.warning(
            f"{len(small)} of {len(counts)} classes have fewer than {MIN_CLASS_IMAGES} training images, too few to "
            f"learn them: {format_names(small)}"
        )


def set_num_views(task: Task, num_views: int) -> None:
    """Set the number of views of test-time augmentation of any task; only a classifier has more than one.

    Raises:
        UsageError: the task or the run does not support it.
    """
    if isinstance(task, ClassificationTask):
        task.set_num_views(num_views)
    elif num_views != 1:
        raise UsageError(f"{type(task).__name__} does not support test-time augmentation; omit --views")
