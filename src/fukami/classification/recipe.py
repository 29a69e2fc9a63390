"""Classifier: the recipe that every image classifier shares, from its data to its schedule; each adds its network."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from fukami.engine.recipe import MAX_INPUT_SIZE, Data, check_range, get_recipe_name, parse_overrides
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD, OptimizerName, SupervisedRecipe, build_augmentation
from fukami.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from fukami.classification.task import ClassificationTask
    from fukami.data.labelled_images import LabelledImages
    from fukami.data.loader import BatchLoader
    from fukami.engine.task import Task
    from fukami.image.transform import SquareTransform

MAX_EVAL_BATCH_SIZE = 500  # images in a batch that is only judged, at most
MAX_EVAL_BATCH_BYTES = 6e6  # numbers in such a batch: 500 images of 64×64, 40 of 224×224
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
}


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(SupervisedRecipe):
    """A network that tells which class an image is of."""

    model_arguments: ClassVar[tuple[str, ...]] = ("channels",)  # fields that the function of the network takes
    encoder_overrides: ClassVar[
        dict[str, Any]
    ] = {}  # in which the network that another task sees with is unlike this one

    data: str = "digits"
    """What to learn from: mnist, digits (embedded), cifar10, cifar100, imagenet, or a folder or archive of images by
    class, or a CSV file of path and label, or shards in a folder or at a URL."""
    holdout: float = 0.2
    """Share of each class kept for testing, where the data have no test part of their own."""
    size: int = 224
    """Side of the images that the network sees, in pixels."""
    channels: Literal[1, 3] = 3
    """1 grey, 3 colour."""
    cycles: int = 1
    """Courses of the learning rate in a row; the weights at the end of each answer together (snapshots)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, such as 0.999, which then answers; 0: none."""
    augment: tuple[str, ...] = ()
    """Changes of the training images, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
    balance: Literal["none", "loss", "sampling"] = "none"
    """For unequal classes: weigh the loss of each, or draw them equally often."""
    init: str = ""
    """Weights to begin with: imagenet (torchvision's, downloaded), a file of a state dict, or a run's folder."""
    freeze: bool = False
    """Train the head alone, on features that stay as they are."""
    layer_lr_decay: float = 1.0
    """What the learning rate is multiplied by from each stage of the network to the one below."""
    quantize: Literal["none", "int8"] = "none"
    """Go on training a run (--init) with weights and activations rounded as int8 will round them."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1, 100, "cycles")
        check_range(self, 4, MAX_INPUT_SIZE, "size")
        check_range(self, 0, 1, "layer_lr_decay")
        check_range(self, 0, 0.9999999, "label_smoothing", "ema_decay")
        if self.cycles > 1 and self.schedule.startswith("plateau"):
            raise UsageError("a plateau is waited for, so it cannot come in --cycles; give another --schedule")
        if self.freeze and not self.init:
            raise UsageError("--freeze keeps the features as they are at the beginning; give weights with --init")
        if self.quantize != "none" and (not self.init or self.freeze or self.layer_lr_decay != 1 or self.cycles > 1):
            raise UsageError(
                f"--quantize {self.quantize} goes on training the whole network of a run: give it with --init, and "
                "leave out --freeze, --layer-lr-decay and --cycles"
            )

    @classmethod
    def as_encoder(cls, options: Iterable[str], size: int) -> Self:
        """The classifier whose network another task sees images of ``size`` pixels with; ``options`` change its fields.

        Raises:
            UsageError: its network has no such fields.
        """
        changed = parse_overrides(cls, options)
        shared = {
            field.name for field in dataclasses.fields(ClassificationRecipe)
        }  # of every classifier: how it is trained
        if changed.keys() & shared:
            own = ", ".join(field.name for field in dataclasses.fields(cls) if field.name not in shared) or "none"
            raise UsageError(
                f"--encoder-options change the network of {get_recipe_name(cls)}, whose own fields are {own}; "
                f"{' and '.join(sorted(changed.keys() & shared))} is no such field: how it learns and the size of what "
                "it sees are those of this recipe"
            )
        return cls(**cls.encoder_overrides | changed, size=size, channels=3)

    @property
    def architecture(self) -> str:
        """What the network is called in :mod:`fukami.models`; by default as the recipe is."""
        return get_recipe_name(type(self)).replace("-", "_")

    def build_model(self, num_classes: int) -> "nn.Module":
        """The network, with scores ``(N, classes)`` for images ``(N, channels, size, size)``."""
        from fukami import models

        arguments = {name: getattr(self, name) for name in self.model_arguments}
        network: nn.Module = getattr(models, self.architecture)(num_classes, **arguments)
        return network

    def build_transform(self, labels: tuple[str, ...]) -> "SquareTransform":
        """How an image is brought to the form that the network sees."""
        from fukami.image.transform import SquareTransform

        mean, std = (
            (IMAGENET_MEAN, IMAGENET_STD)
            if self.channels == 3
            else ((sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,))
        )
        return SquareTransform(channels=self.channels, size=self.size, mean=mean, std=std)

    def load_data(self) -> Data:
        """The data set: in memory where it fits, streamed from its files where it does not."""
        from fukami.data import labelled_images

        train, test, labels = labelled_images.load_labelled_images(self.data, self.holdout)
        return Data(self.build_loader(train, labels, train=True), self.build_loader(test, labels, train=False), labels)

    def load_eval_data(self) -> "BatchLoader":
        """The test part alone: what there is to train on is not decoded."""
        from fukami.data import labelled_images

        _, test, labels = labelled_images.load_labelled_images(self.data, self.holdout)
        return self.build_loader(test, labels, train=False)

    def build_loader(self, source: "LabelledImages", labels: tuple[str, ...], *, train: bool) -> "BatchLoader":
        """Batches of a part of the data, to train on or to judge on."""
        prepare = self.build_transform(labels)
        if train:
            how: dict[str, Any] = {
                "batch_size": self.batch_size,
                "seed": self.seed,
                "balanced": self.balance == "sampling",
            }
            return self.build_image_loader(source, labels, prepare, self.augment, **how)
        batch = max(1, min(MAX_EVAL_BATCH_SIZE, int(MAX_EVAL_BATCH_BYTES / prepare.nbytes)))
        return self.build_image_loader(source, labels, prepare, (), batch_size=batch, seed=None)

    def build_task(self, labels: tuple[str, ...]) -> "ClassificationTask":
        """A classifier over ``labels``."""
        from fukami.classification.task import ClassificationTask
        from fukami.engine import pretrained, schedules

        model, prepare = self.build_model(len(labels)), self.build_transform(labels)
        if self.quantize == "int8":
            from fukami.quantization import int8

            model = int8.prepare(model)
        if self.freeze:
            pretrained.freeze_features(model)
        regime = self.get_training_options()
        if self.layer_lr_decay != 1:
            make = regime["optimizer"]
            regime["optimizer"] = lambda _: make(
                pretrained.build_layerwise_groups(model, self.peak_lr, self.layer_lr_decay)
            )
        if self.cycles > 1:
            regime["lr_schedule"] = schedules.repeat_schedule(regime["lr_schedule"], self.cycles)
        return ClassificationTask(
            model,
            labels,
            prepare,
            activation_checkpointing=self.activation_checkpointing,
            label_smoothing=self.label_smoothing,
            ema_decay=self.ema_decay,
            cycles=self.cycles,
            use_class_weights=self.balance == "loss",
            augment=build_augmentation(
                [word for word in self.augment if word.partition("=")[0] in TTA_AUGMENTATIONS], prepare, labels
            ),
            **regime,
        )

    def initialize_task(self, task: "Task") -> None:
        """Put the weights of ``init`` into the network."""
        from fukami.engine import pretrained

        if self.init:
            network = self.build_model(len(getattr(task, "labels", ()))) if self.quantize != "none" else task.model
            pretrained.initialize_classifier(network, self.architecture, self.init)
            if network is not task.model:  # which has the ranges of the activations besides, still unknown
                task.model.load_state_dict(network.state_dict(), strict=False)
            averaged: nn.Module = getattr(task, "ema_model", task.model)
            averaged.load_state_dict(task.model.state_dict())


@dataclass(frozen=True, kw_only=True)
class BinarizedMixin:
    """The fields in which a classifier with weights and activations of one bit is unlike others; named before it."""

    optimizer: OptimizerName = "adam"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 3e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Pull of the weights towards 0; latent weights of one bit need none."""
    scaling_factors: bool = False
    """Scaling factors of the weights, as in XNOR-Net."""
    learned_thresholds: bool = False
    """Learned thresholds of the signs, as in ReActNet."""
