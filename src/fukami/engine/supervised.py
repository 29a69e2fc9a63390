"""Supervised: the fields of every recipe that learns from labelled images, pass after pass."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fukami.engine.recipe import DataSpec, Recipe, check_range
from fukami.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fukami.data.augment import AugmentationPipeline
    from fukami.data.labelled_images import LabelledImages
    from fukami.data.loader import BatchLoader
    from fukami.engine.schedules import Schedule
    from fukami.engine.task import OptimizerFactory, TrainingOptions
    from fukami.image.transform import SquareTransform

OptimizerName = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
IMAGENET_MEAN, IMAGENET_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet's colours, as published weights expect them
RESIZE_RATIO = 8 / 7  # images are kept this much larger than the crops that are taken of them: 256 for 224


@dataclass(frozen=True, kw_only=True)
class SupervisedRecipe(Recipe):
    """Epochs, batches, an optimizer and the course of its learning rate."""

    data: DataSpec = ""
    """What to learn from, a name or a path."""
    holdout: float = 0.2
    """Share of the images kept for testing, where the data have no test part of their own."""
    memory_limit: float = 4.0
    """Gigabytes that the decoded images may take; a larger set is streamed from its files."""
    max_broken: int = 100
    """Images that may be broken, in each part of the data and process; they are left out, and one more stops the
    run."""
    epochs: int = 30
    """Passes over the training set."""
    eval_every: int = 1
    """Passes between two evaluations; there is one at the end in any case."""
    batch_size: int = 32
    """Images in an update, over all processes."""
    accumulate: int = 1
    """Parts in which a batch passes through the network, one after another, where it does not fit whole."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass where they do not fit: less memory for a third more time."""
    optimizer: OptimizerName = "nesterov"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 0.02
    """Peak learning rate of the recipe's own batch."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How it grows with another batch: not, in proportion (Goyal et al. 2017), or with the square root."""
    clip_norm: float = 0.0
    """Greatest norm of the gradient, to which a greater one is scaled down; 0: any."""
    momentum: float = 0.9
    """Of momentum, nesterov and rmsprop."""
    weight_decay: float = 5e-4
    """Pull of the weights towards 0; decoupled with adamw (Loshchilov and Hutter 2019)."""
    schedule: str = "cosine"
    """Course of the learning rate: constant, step=DROPS, multistep=SHARE,SHARE, exponential=END, polynomial=POWER,
    cosine, one-cycle, plateau=PATIENCE."""
    drop_factor: float = 0.1
    """What the learning rate is multiplied by at each drop of step, multistep and plateau."""
    warmup: float = 0.1
    """Share of the training in which the learning rate rises."""
    augment: tuple[str, ...] = ()
    """Changes of the training images, such as flip crop=0.3 brightness; none: give the flag alone."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        from fukami.data import augment

        check_range(self, 1, math.inf, "epochs", "eval_every", "batch_size", "accumulate")
        check_range(self, 0, math.inf, "lr", "weight_decay", "memory_limit", "clip_norm", "max_broken")
        check_range(self, 0, 1, "holdout", "drop_factor")
        check_range(self, 0, 0.9999999, "warmup", "momentum")
        self.build_schedule()
        augment.parse_strengths(self.augment)

    def get_training_options(self) -> "TrainingOptions":
        """How the network is trained, as a task takes it."""
        return {
            "optimizer": self.get_optimizer_factory(),
            "lr_schedule": self.build_schedule(),
            "epochs": self.epochs,
            "eval_every": self.eval_every,
            "accumulate": self.accumulate,
            "clip_norm": self.clip_norm,
        }

    def build_image_loader(
        self,
        source: "LabelledImages",
        labels: tuple[str, ...],
        prepare: "SquareTransform",
        augmentations: "Sequence[str]",
        *,
        batch_size: int,
        seed: int | None,
        balanced: bool = False,
    ) -> "BatchLoader":
        """Batches of images, changed as ``augmentations`` say: from memory where all fit, streamed where not.

        Raises:
            UsageError: classes are to be drawn equally often from shards that do not fit.
        """
        import torch

        from fukami.data import augment
        from fukami.data.loader import InMemoryLoader
        from fukami.data.shards import ShardSamples
        from fukami.data.streaming import FileStreamingLoader
        from fukami.data.webdataset import ShardStreamingLoader

        crop = augment.parse_strengths(augmentations).get("crop")
        whole = crop is None or prepare.mnist_digit  # a digit comes in one size
        larger = prepare if whole else dataclasses.replace(prepare, size=round(prepare.size * RESIZE_RATIO))
        targets = torch.from_numpy(source.targets)
        how: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        if isinstance(source.items, tuple | ShardSamples) and len(source) * larger.nbytes > self.memory_limit * 1e9:
            own = [word for word in augmentations if word.partition("=")[0] != "crop"]  # which decoding does
            how |= {
                "augment": build_augmentation(own, prepare, labels),
                "min_area": crop,
                "max_broken": self.max_broken,
            }
            if isinstance(source.items, tuple):
                return FileStreamingLoader(source.items, targets, labels, prepare, balanced=balanced, **how)
            if balanced:
                raise UsageError("--balance sampling cannot be streamed from shards; give --balance loss")
            return ShardStreamingLoader(source.items, targets, labels, prepare, **how)
        found = source.decode(larger, self.max_broken)
        how |= {"augment": build_augmentation(augmentations, prepare, labels), "image_size": prepare.size}
        return InMemoryLoader(found.images, found.targets, labels, names=found.names, balanced=balanced, **how)

    def build_schedule(self) -> "Schedule":
        """The learning rate's course, as a factor of its peak."""
        from fukami.engine import schedules

        return schedules.parse_schedule(self.schedule, factor=self.drop_factor, warmup=self.warmup)

    def get_optimizer_factory(self) -> "OptimizerFactory":
        """torch's optimizer of that name, fused where it can be."""
        import torch

        makes: dict[str, Any] = {
            "sgd": partial(torch.optim.SGD, fused=True),
            "momentum": partial(torch.optim.SGD, momentum=self.momentum, fused=True),
            "nesterov": partial(torch.optim.SGD, momentum=self.momentum, nesterov=True, fused=True),
            "adagrad": torch.optim.Adagrad,
            "rmsprop": partial(torch.optim.RMSprop, momentum=self.momentum),
            "adam": partial(torch.optim.Adam, fused=True),
            "adamw": partial(torch.optim.AdamW, fused=True),
        }
        return partial(makes[self.optimizer], lr=self.peak_lr, weight_decay=self.weight_decay)

    @property
    def peak_lr(self) -> float:
        """The peak learning rate of this batch, by the rule."""
        growth = self.batch_size / type(self).batch_size
        return self.lr * {"none": 1.0, "linear": growth, "sqrt": math.sqrt(growth)}[self.lr_scaling]


def build_augmentation(
    augmentations: "Sequence[str]", prepare: "SquareTransform", labels: tuple[str, ...]
) -> "AugmentationPipeline | None":
    """The augmentation that the words ask for; None where there are none."""
    from fukami.data import augment

    return (
        augment.parse_augmentation(augmentations, size=prepare.size, num_classes=len(labels)) if augmentations else None
    )
