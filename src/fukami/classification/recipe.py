"""Base class of the image classification recipes."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from fukami.engine.channels import ChannelFields
from fukami.engine.recipe import MAX_INPUT_SIZE, Recipe, check_range, get_network_name, get_recipe_name, parse_overrides
from fukami.engine.supervised import OptimizerName as OptimizerName  # for custom recipes
from fukami.engine.supervised import SplitLoading, SupervisedRecipe, build_augmentation
from fukami.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from fukami.classification.task import ClassificationTask
    from fukami.data.labeled_images import LabeledImages
    from fukami.data.loader import Batch, BatchLoader
    from fukami.data.splits import Splits
    from fukami.image.transform import SquareTransform

MAX_EVAL_BATCH_SIZE = 500  # maximum batch size of the evaluation
MAX_EVAL_BATCH_BYTES = 6e6  # maximum bytes of such a batch: 500 images of 64×64, 40 of 224×224
TTA_AUGMENTATIONS = {
    "rotate",
    "shift",
    "scale",
    "shear",
    "flip",
    "flip-vertical",
    "pad-crop",
    "crop",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "grayscale",
}


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(SplitLoading, ChannelFields, SupervisedRecipe):
    """Image classification: data, training settings and evaluation; subclasses define the network."""

    model_arguments: ClassVar[tuple[str, ...]] = ("channels",)
    init_defaults: ClassVar[Mapping[str, object]] = {"epochs": 10, "lr": 0.02, "clip_norm": 1.0, "head_epochs": 10}
    freeze_defaults: ClassVar[Mapping[str, object]] = {"optimizer": "adamw", "lr": 0.01}
    encoder_overrides: ClassVar[dict[str, int]] = {}  # field values when the network is the encoder of another task

    data: str = "digits"
    """Dataset: mnist, digits (bundled), cifar10, cifar100, imagenet, a folder or archive of images by class, a CSV
    file with paths and labels, or shards in a folder or at a URL."""
    val_fraction: float | None = None
    """Fraction of each class of the training images used for validation, if the dataset has no validation split; by
    default 0.2, and at most 5,000 images, but 0 for mnist, cifar10 and cifar100."""
    size: int = 224
    """Input size: side of the square input image, in pixels."""
    cycles: int = 1
    """Number of learning-rate cycles; the weights at the end of each form a snapshot ensemble (Huang et al. 2017)."""
    label_smoothing: float = 0.0
    """Label smoothing factor, 0 to 1."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, such as 0.999; 0 disables it."""
    augment: tuple[str, ...] = ()
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    balance: Literal["none", "loss", "sampling"] = "none"
    """Class balancing for imbalanced datasets: class weights in the loss, or balanced sampling."""
    init: str = ""
    """Initial weights: imagenet (torchvision's, downloaded), a state-dict file or a run's folder."""
    freeze: bool = False
    """Train only the classification head; the other layers keep the initial weights, and their output is cached."""
    feature_views: int = 4
    """Number of augmented views of each image whose frozen features are cached; 0 computes them in each step."""
    head_epochs: int = 0
    """Number of epochs of a first stage that trains only the head on the initial weights (Kumar et al. 2022); 0 omits
    it."""
    layer_lr_decay: float = 1.0
    """Layer-wise learning-rate decay: factor of the learning rate from each stage to the one below it, 0 to 1."""
    quantize: Literal["none", "int8"] = "none"
    """Quantization-aware training: fine-tune a run (--init) with weights and activations rounded as in int8."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1, 100, "cycles")
        check_range(self, 0, math.inf, "feature_views", "head_epochs")
        check_range(self, 4, MAX_INPUT_SIZE, "size")
        check_range(self, 0, 1, "layer_lr_decay")
        check_range(self, 0, 0.9999999, "label_smoothing", "ema_decay")
        if self.cycles > 1 and self.schedule.startswith("plateau"):
            raise UsageError("--schedule plateau cannot be combined with --cycles; use another --schedule")
        if self.cycles > 1 and self.patience:
            raise UsageError("--patience stops before the last of the --cycles; omit one of them")
        if self.freeze and not self.init:
            raise UsageError("--freeze keeps the initial weights of the features; specify trained weights with --init")
        if self.head_epochs and (not self.init or self.freeze):
            raise UsageError("--head-epochs precede the fine-tuning of initial weights: set --init, and omit --freeze")
        is_partial = self.freeze or self.head_epochs > 0 or self.layer_lr_decay != 1
        if self.quantize != "none" and (not self.init or is_partial or self.cycles > 1):
            raise UsageError(
                f"--quantize {self.quantize} fine-tunes the whole network of a run: specify the run with --init, and "
                "omit --freeze, --head-epochs, --layer-lr-decay and --cycles"
            )
        if self.quantize != "none" and self.activation_checkpointing:
            raise UsageError("--activation-checkpointing cannot be combined with --quantize; omit it")

    def get_conditional_defaults(self) -> Mapping[str, object]:
        """Return the defaults for training from initial weights; quantization-aware training has the usual ones."""
        return super().get_conditional_defaults() if self.quantize == "none" else {}

    @classmethod
    def as_encoder(cls, options: Iterable[str], size: int) -> Self:
        """Build the recipe of an encoder for images of ``size`` pixels; ``options`` override fields of its network.

        Raises:
            UsageError: an option is not a field of the network, or adds auxiliary classifiers.
        """
        overrides = parse_overrides(cls, options)
        if overrides.get("aux_loss"):
            raise UsageError("an encoder has no auxiliary classifiers; remove aux_loss from --encoder-options")
        # training fields, which all classifiers have
        common_fields = {field.name for field in dataclasses.fields(ClassificationRecipe)}
        if overrides.keys() & common_fields:
            network_fields = (
                ", ".join(field.name for field in dataclasses.fields(cls) if field.name not in common_fields) or "none"
            )
            raise UsageError(
                f"--encoder-options overrides fields of the network of {get_recipe_name(cls)}, which are "
                f"{network_fields}; {' and '.join(sorted(overrides.keys() & common_fields))} is not one of them: the "
                "training settings and the input size are those of this recipe"
            )
        return cls(**cls.encoder_overrides | overrides, size=size, channels=3)

    @property
    def architecture(self) -> str:
        """Name of the network's function in :mod:`fukami.models`; by default the recipe's name."""
        return get_network_name(type(self))

    def build_model(self, num_classes: int) -> "nn.Module":
        """Build the network, which maps images ``(N, channels, size, size)`` to logits ``(N, classes)``."""
        return self.build_named_model(self.architecture, num_classes)

    def build_transform(self, labels: tuple[str, ...]) -> "SquareTransform":
        """Build the image preprocessing."""
        from fukami.image.transform import SquareTransform

        mean, std = self.normalization
        return SquareTransform(channels=self.channels, size=self.size, mean=mean, std=std)

    def load_splits(self, *, include_train: bool = True) -> "Splits[LabeledImages]":
        """Index the dataset; images are not decoded, so ``include_train`` makes no difference."""
        from fukami.data import labeled_images

        return labeled_images.load_labeled_images(self.dataset, self.val_fraction, images=self.images)

    def build_loader(self, split: "LabeledImages", labels: tuple[str, ...], *, train: bool) -> "BatchLoader[Batch]":
        """Build the loader of a split, for training or evaluation."""
        transform = self.build_transform(labels)
        if train:
            return self.build_image_loader(
                split,
                labels,
                transform,
                self.augment,
                batch_size=self.batch_size,
                seed=self.seed,
                balanced=self.balance == "sampling",
            )
        batch_size = max(1, min(MAX_EVAL_BATCH_SIZE, int(MAX_EVAL_BATCH_BYTES / transform.nbytes)))
        return self.build_image_loader(split, labels, transform, (), batch_size=batch_size, seed=None)

    def build_task(self, labels: tuple[str, ...]) -> "ClassificationTask":
        """Build the classification task."""
        from fukami.classification.task import ClassificationTask, FeatureCacheConfig
        from fukami.engine import fine_tuning, schedules

        model, transform = self.build_model(len(labels)), self.build_transform(labels)
        if self.quantize == "int8":
            from fukami.quantization import int8

            model = int8.prepare_fake_quantization(model)
        if self.freeze:
            fine_tuning.freeze_features(model)
        build_groups = partial(fine_tuning.build_layerwise_groups, model, self.peak_lr, self.layer_lr_decay)
        options = self.get_training_options(build_groups if self.layer_lr_decay != 1 else None)
        if self.cycles > 1:
            options["lr_schedule"] = schedules.repeat_schedule(options["lr_schedule"], self.cycles)
        can_cache = self.freeze and self.feature_views > 0 and self.cycles == 1
        return ClassificationTask(
            model,
            labels,
            transform,
            activation_checkpointing=self.activation_checkpointing,
            label_smoothing=self.label_smoothing,
            ema_decay=self.ema_decay,
            cycles=self.cycles,
            use_class_weights=self.balance == "loss",
            augment=build_augmentation(
                [name for name in self.augment if name.partition("=")[0] in TTA_AUGMENTATIONS], transform, labels
            ),
            feature_cache=FeatureCacheConfig(self.feature_views, self.memory_limit * 1e9) if can_cache else None,
            **options,
        )

    def initialize_task(self, task: "ClassificationTask") -> None:
        """Load the weights of ``init`` into the network."""
        from fukami.engine import pretrained

        if self.init:
            network = self.build_model(len(task.labels)) if self.quantize != "none" else task.model
            pretrained.initialize_classifier(network, self.architecture, self.init)
            if network is not task.model:  # the quantized model also has activation ranges, not yet calibrated
                task.model.load_state_dict(network.state_dict(), strict=False)
            task.ema_model.load_state_dict(task.model.state_dict())

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """Return the stage that trains the head, before the whole network is fine-tuned."""
        if not self.head_epochs:
            return {}
        fields: dict[str, Any] = {**self.freeze_defaults, "epochs": self.head_epochs, "head_epochs": 0, "freeze": True}
        return {"head": dataclasses.replace(self, **fields, cycles=1, patience=0, layer_lr_decay=1.0)}

    def continue_from_stage(self, task: "ClassificationTask", run: Path) -> None:
        """Continue with the network whose head was trained."""
        dataclasses.replace(self, init=str(run)).initialize_task(task)
