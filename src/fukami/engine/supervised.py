"""The base class of recipes that train on labeled images for a number of epochs."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from fukami.engine.recipe import Data, Recipe, check_range
from fukami.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from fukami.data.augment import AugmentationPipeline
    from fukami.data.labeled_images import LabeledImages
    from fukami.data.loader import Batch, BatchLoader
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.data.splits import Splits
    from fukami.engine.fine_tuning import ParameterGroup
    from fukami.engine.schedules import Schedule
    from fukami.engine.task import OptimizerFactory, TrainingOptions
    from fukami.image.transform import ResizeTransform, SquareTransform

OptimizerName = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, as published weights expect it
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZE_RATIO = 8 / 7  # images are kept this much larger than random crops of them: 256 for 224


class SplitLoading:
    """Loading of a dataset by its splits; the first base of a recipe that defines ``load_splits`` and ``build_loader``.

    The evaluation decodes only the images of its split.
    """

    def load_data(self) -> Data:
        """Load the dataset: each split into memory up to ``memory_limit``, streamed from its files otherwise."""
        train, val, test, labels = self.load_splits()
        train_loader = self.build_loader(train, labels, train=True)
        return Data(train_loader, self._load(val, labels), labels, self._load(test, labels))

    def load_eval_data(self) -> Data:
        """Load only the test split, or else the validation split; no other image is decoded."""
        _, val, test, labels = self.load_splits(include_train=False)
        return Data((), () if len(test) else self._load(val, labels), labels, self._load(test, labels))

    def _load(self, split: Any, labels: tuple[str, ...]) -> "BatchLoader[Any] | tuple[()]":
        return self.build_loader(split, labels, train=False) if len(split) else ()

    def load_splits(self, *, include_train: bool = True) -> "Splits[Any]":
        """Index the dataset: its splits and its labels.

        Without ``include_train`` the training split may be empty.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define load_splits(include_train)")

    def build_loader(self, split: Any, labels: tuple[str, ...], *, train: bool) -> "BatchLoader[Any]":
        """Build the loader of a split of :meth:`load_splits`, for training or evaluation."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_loader(split, labels, train)")


@dataclass(frozen=True, kw_only=True)
class SupervisedRecipe(Recipe):
    """Dataset, epochs, batch size, optimizer and learning-rate schedule of supervised training."""

    model_arguments: ClassVar[tuple[str, ...]] = ()  # fields passed to the network's function
    adam_betas: ClassVar[tuple[float, float]] = (0.9, 0.999)  # decay rates of the moments of adam and adamw

    data: str = ""
    """Dataset: a name or a path."""
    images: str = ""
    """Folder of the images, with annotations instead of data."""
    annotations: str = ""
    """Folder or file of the annotations of images."""
    val_fraction: float | None = None
    """Fraction of the training images used for validation, if the dataset has no validation split; by default 0.2, and
    at most 5,000 images."""
    memory_limit: float = 4.0
    """Memory for decoded images, in GB; a larger dataset is streamed from its files."""
    max_unreadable: int = 100
    """Maximum number of unreadable images per split and process; they are skipped, and one more stops the run."""
    epochs: int = 30
    """Number of epochs."""
    eval_every: int = 1
    """Evaluation interval in epochs; the last epoch is always evaluated."""
    patience: int = 0
    """Early stopping: number of evaluations in a row without a better validation result; 0 disables it."""
    batch_size: int = 32
    """Global batch size, over all processes."""
    accumulate: int = 1
    """Gradient accumulation: number of micro-batches per step."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    optimizer: OptimizerName = "nesterov"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 0.02
    """Peak learning rate, for the recipe's default batch size."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Scaling of the learning rate if the batch size differs from the default: none, linear (Goyal et al. 2017) or
    sqrt."""
    clip_norm: float = 0.0
    """Maximum gradient norm (gradient clipping); 0 disables it."""
    momentum: float = 0.9
    """Momentum factor of momentum, nesterov and rmsprop."""
    weight_decay: float = 5e-4
    """Weight decay; decoupled with adamw (Loshchilov and Hutter 2019)."""
    schedule: str = "cosine"
    """Learning-rate schedule: constant, step=NUM_DROPS, multistep=FRACTION,FRACTION, exponential=FINAL_FACTOR,
    polynomial=POWER, cosine, one-cycle or plateau=PATIENCE."""
    drop_factor: float = 0.1
    """Learning-rate factor at each drop of step, multistep and plateau."""
    warmup: float = 0.1
    """Fraction of the training steps with a linear learning-rate warm-up."""
    augment: tuple[str, ...] = ()
    """Data augmentation of the training images, such as flip crop=0.3 brightness; the flag without a value disables
    it."""

    def __post_init__(self) -> None:
        """Check the ranges of the fields."""
        from fukami.data import augment

        super().__post_init__()
        if bool(self.images) != bool(self.annotations):
            raise UsageError("--images and --annotations belong together; specify both, or --data")
        check_range(self, 1, math.inf, "epochs", "eval_every", "batch_size", "accumulate")
        check_range(self, 0, math.inf, "lr", "weight_decay", "memory_limit", "clip_norm", "max_unreadable", "patience")
        check_range(self, 0, 1, "drop_factor")
        if self.val_fraction is not None:
            check_range(self, 0, 1, "val_fraction")
        check_range(self, 0, 0.9999999, "warmup", "momentum")
        self.build_schedule()
        augment.parse_transform_values(self.augment)

    @property
    def dataset(self) -> str:
        """Name or path of the dataset: that of the annotations if the images are elsewhere."""
        return self.annotations or self.data

    def build_named_model(self, name: str, num_classes: int) -> "nn.Module":
        """Build the network of the function ``name`` of :mod:`fukami.models`, with the fields ``model_arguments``."""
        from fukami import models

        arguments = {field: getattr(self, field) for field in self.model_arguments}
        network: nn.Module = getattr(models, name)(num_classes, **arguments)
        return network

    def get_training_options(
        self, build_groups: "Callable[[], list[ParameterGroup]] | None" = None
    ) -> "TrainingOptions":
        """Return the training options of the task; the optimizer has one parameter group without ``build_groups``."""
        factory = self.get_optimizer_factory()
        return {
            "optimizer": factory if build_groups is None else lambda _: factory(build_groups()),
            "lr_schedule": self.build_schedule(),
            "epochs": self.epochs,
            "eval_every": self.eval_every,
            "patience": self.patience,
            "accumulate": self.accumulate,
            "clip_norm": self.clip_norm,
        }

    def build_image_loader(
        self,
        source: "LabeledImages",
        labels: tuple[str, ...],
        prepare: "SquareTransform",
        augmentations: "Sequence[str]",
        *,
        batch_size: int,
        seed: int | None,
        balanced: bool = False,
    ) -> "BatchLoader[Batch]":
        """Build a loader of augmented images: in memory up to ``memory_limit``, streamed otherwise.

        Raises:
            UsageError: balanced sampling was requested for shards larger than the limit.
        """
        import torch

        from fukami.data import augment
        from fukami.data.loader import InMemoryLoader
        from fukami.data.shards import ShardSamples
        from fukami.data.streaming import FileStreamingLoader
        from fukami.data.webdataset import ShardStreamingLoader

        crop = augment.parse_transform_values(augmentations).get("crop")
        uncropped = crop is None or prepare.mnist_digit  # digits have one size
        resized = prepare if uncropped else dataclasses.replace(prepare, size=round(prepare.size * RESIZE_RATIO))
        targets = torch.from_numpy(source.targets)
        options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        if isinstance(source.items, tuple | ShardSamples) and source.count_bytes(resized) > self.memory_limit * 1e9:
            # the decoder crops, except digits
            other_augmentations = [name for name in augmentations if name.partition("=")[0] != "crop"]
            options |= {
                "augmentation": build_augmentation(
                    augmentations if uncropped else other_augmentations, prepare, labels
                ),
                "min_area": None if uncropped else crop,
                "max_unreadable": self.max_unreadable,
            }
            if isinstance(source.items, tuple):
                return FileStreamingLoader(source.items, targets, labels, prepare, balanced=balanced, **options)
            if balanced:
                raise UsageError("--balance sampling cannot be streamed from shards; use --balance loss")
            return ShardStreamingLoader(source.items, targets, labels, prepare, **options)
        decoded = source.decode(resized, self.max_unreadable)
        options |= {"augmentation": build_augmentation(augmentations, prepare, labels), "image_size": prepare.size}
        options |= {"names": decoded.names, "balanced": balanced}
        return InMemoryLoader(decoded.images, decoded.targets, labels, **options)

    def build_padded_loader(
        self,
        samples: "Sequence[Sample]",
        labels: tuple[str, ...],
        prepare: "ResizeTransform",
        augmentations: "Sequence[str]",
        *,
        batch_size: int,
        seed: int | None,
        crop_size: int = 0,
    ) -> "PaddedLoader":
        """Build a loader of padded images with boxes or masks: in memory up to ``memory_limit``, streamed otherwise."""
        from fukami.data import augment_boxes, padded_loader

        return padded_loader.build_padded_loader(
            samples,
            labels,
            prepare,
            batch_size=batch_size,
            seed=seed,
            augmentation=augment_boxes.parse_box_augmentation(augmentations),
            crop_size=crop_size,
            memory_limit=self.memory_limit,
            max_unreadable=self.max_unreadable,
        )

    def build_schedule(self) -> "Schedule":
        """Build the learning-rate schedule, as a factor of the peak learning rate."""
        from fukami.engine import schedules

        return schedules.parse_schedule(self.schedule, factor=self.drop_factor, warmup=self.warmup)

    def get_optimizer_factory(self) -> "OptimizerFactory":
        """Return the constructor of the torch optimizer, fused if torch has a fused version."""
        import torch

        factories: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "sgd": partial(torch.optim.SGD, fused=True),
            "momentum": partial(torch.optim.SGD, momentum=self.momentum, fused=True),
            "nesterov": partial(torch.optim.SGD, momentum=self.momentum, nesterov=self.momentum > 0, fused=True),
            "adagrad": torch.optim.Adagrad,
            "rmsprop": partial(torch.optim.RMSprop, momentum=self.momentum),
            "adam": partial(torch.optim.Adam, betas=self.adam_betas, fused=True),
            "adamw": partial(torch.optim.AdamW, betas=self.adam_betas, fused=True),
        }
        return partial(factories[self.optimizer], lr=self.peak_lr, weight_decay=self.weight_decay)

    @property
    def default_batch_size(self) -> int:
        """Batch size that the default learning rate is for; it may depend on the initial weights."""
        return int(cast("int", self.get_conditional_defaults().get("batch_size", type(self).batch_size)))

    @property
    def peak_lr(self) -> float:
        """Peak learning rate for this batch size, by the scaling rule."""
        ratio = self.batch_size / self.default_batch_size
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]


def build_augmentation(
    augmentations: "Sequence[str]", prepare: "SquareTransform", labels: tuple[str, ...]
) -> "AugmentationPipeline | None":
    """Build the augmentation pipeline of the names; None if there are none."""
    from fukami.data import augment

    return (
        augment.parse_augmentation(augmentations, size=prepare.size, num_classes=len(labels)) if augmentations else None
    )
