"""Segmenter: the recipe that every network for pixels shares; each adds its network."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.engine.recipe import MAX_IMAGE_SIDE, Data, DataSpec, Recipe, check_range, get_recipe_name
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD, OptimizerName, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.engine.task import Task
    from fukami.image.transform import ResizeTransform
    from fukami.segmentation.task import SegmentationTask

EVAL_BATCH_SIZE = 4  # images in a batch that is only judged
BALANCE_POWERS = {"none": 0.0, "root": 0.5, "median": 1.0}  # of the weights of the classes


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(SupervisedRecipe):
    """A network that tells what each pixel of an image is."""

    family: ClassVar[str] = "segmentation"
    backbone: ClassVar[str] = ""  # the classifier that it is made of, whose published weights fit

    data: DataSpec = "scenes"
    """What to learn from: scenes (embedded), camvid, voc2012, cityscapes, coco, or a folder or archive of images and
    masks, or COCO's JSON."""
    ignore_index: int = 255
    """The value in masks that stands for no class, and is neither learned nor judged."""
    min_size: int = 0
    """Shorter side of the images that the network sees, in pixels; 0: as it is."""
    max_size: int = 0
    """The longer side at most; a longer image is made smaller still; 0: any."""
    window_size: int = 512
    """Side of the squares that are cut at random out of larger images in training; 0: they stay whole."""
    augment: tuple[str, ...] = ("flip", "crop=0.5")
    """Changes of the training images and their masks, such as flip crop=0.5 rotate brightness; none: give the flag
    alone."""
    balance: Literal["none", "median", "root"] = "none"
    """For unequal classes: weigh the loss of each by the median of their frequencies over its own, or its root."""
    epochs: int = 60
    """Passes over the training set."""
    batch_size: int = 8
    """Images in an update, over all processes."""
    optimizer: OptimizerName = "adamw"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 5e-4
    """Peak learning rate of the recipe's own batch."""
    weight_decay: float = 0.01
    """Pull of the weights towards 0; decoupled with adamw (Loshchilov and Hutter 2019)."""
    schedule: str = "polynomial=0.9"
    """Course of the learning rate: constant, step=DROPS, multistep=SHARE,SHARE, exponential=END, polynomial=POWER,
    cosine, one-cycle, plateau=PATIENCE."""
    warmup: float = 0.02
    """Share of the training in which the learning rate rises."""
    eval_every: int = 5
    """Passes between two evaluations; there is one at the end in any case."""
    init: str = ""
    """Weights to begin with: imagenet (torchvision's, downloaded), a file of a state dict (of a classifier or of this
    network), or a run's folder."""

    backbone_lr_factor: float = 1.0
    """What the learning rate is multiplied by in the layers of the classifier that init begins with."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 0, MAX_IMAGE_SIDE, "min_size", "max_size", "window_size")
        check_range(self, 0, 1, "backbone_lr_factor")
        check_range(self, 0, 65535, "ignore_index")
        if self.max_size and self.max_size < self.min_size:
            raise UsageError(f"max-size should be at least min-size, {self.min_size}, or 0, not {self.max_size}")
        for name in ("min_size", "max_size", "window_size"):
            if 0 < (value := getattr(self, name)) < 32:
                raise UsageError(f"{name.replace('_', '-')} should be at least 32 pixels, or 0, not {value}")

    def build_preprocessing(self) -> "ResizeTransform":
        """How an image is brought to the form that the network sees."""
        from fukami.image.transform import ResizeTransform

        return ResizeTransform(min_size=self.min_size, max_size=self.max_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def load_data(self) -> Data:
        """The data set: in memory where it fits, streamed from its files where it does not."""
        from fukami.segmentation import data as segmentation_data

        train, test, labels = segmentation_data.load_dataset(
            self.data, self.holdout, self.max_broken, ignore_index=self.ignore_index
        )
        return Data(self.build_loader(train, labels, train=True), self.build_loader(test, labels, train=False), labels)

    def load_eval_data(self) -> "PaddedLoader":
        """The test part alone: what there is to train on is not decoded."""
        from fukami.segmentation import data as segmentation_data

        _, test, labels = segmentation_data.load_dataset(
            self.data, self.holdout, self.max_broken, ignore_index=self.ignore_index, include_train=False
        )
        return self.build_loader(test, labels, train=False)

    def build_loader(self, samples: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Batches of a part of the data, to train on or to judge on."""
        from fukami.data import augment_boxes, padded_loader

        seed, batch, window = (self.seed, self.batch_size, self.window_size) if train else (None, EVAL_BATCH_SIZE, 0)
        change = augment_boxes.parse_box_augmentation(self.augment if train else ())
        return padded_loader.build_padded_loader(
            samples,
            labels,
            self.build_preprocessing(),
            batch_size=batch,
            seed=seed,
            augment=change,
            window_size=window,
            memory_limit=self.memory_limit,
            max_broken=self.max_broken,
        )

    @property
    def pretrained_name(self) -> str:
        """What the classifier is called in :mod:`fukami.models` whose weights it can begin with; empty: none."""
        return self.backbone

    def build_model(self, num_classes: int) -> "nn.Module":
        """The network of the recipe's name, for so many classes."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_model(num_classes)")

    def build_task(self, labels: tuple[str, ...]) -> "SegmentationTask":
        """A segmentation into ``labels``."""
        from fukami.engine import pretrained
        from fukami.segmentation.task import SegmentationTask

        model, regime = self.build_model(len(labels)), self.get_training_options()
        if self.init and self.backbone_lr_factor != 1:
            make = regime["optimizer"]
            regime["optimizer"] = lambda _: make(
                pretrained.build_backbone_groups(model, self.peak_lr, self.backbone_lr_factor)
            )
        return SegmentationTask(
            model,
            labels,
            self.build_preprocessing(),
            balance_power=BALANCE_POWERS[self.balance],
            activation_checkpointing=self.activation_checkpointing,
            **regime,
        )

    def initialize_task(self, task: "Task") -> None:
        """Put the weights of ``init`` into the network."""
        from fukami.engine import pretrained

        if self.init:
            labels = getattr(task, "labels", ())
            plain = pretrained.initialize_segmenter(task.model, self.pretrained_name, self.init, labels)
            setattr(task, "needs_calibration", plain)  # noqa: B010  a task of any kind may be given


@dataclass(frozen=True, kw_only=True)
class FCNVGG(SegmentationRecipe):
    """VGG-16 with convolutions for its affine layers, and scores enlarged to the image."""

    backbone: ClassVar[str] = "vgg16"
    coarser_recipes: ClassVar[tuple[str, ...]] = ()  # the recipes of the networks to learn before, the coarsest first

    lr: float = 2e-4
    """Peak learning rate of the recipe's own batch."""
    hidden: int = 4096
    """Channels of the two convolutions that were affine layers."""
    dropout: float = 0.5
    """Share of them dropped in training."""
    width_multiplier: float = 1.0
    """Share of the paper's channels in the convolutions before."""
    batch_norm: bool = False
    """Batch normalisation after every convolution but the last."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 1 / 64, 4, "width_multiplier")

    @property
    def pretrained_name(self) -> str:
        """VGG-16 with batch normalisation, or without it."""
        return self.backbone + ("_bn" if self.batch_norm else "")

    def build_model(self, num_classes: int) -> "nn.Module":
        """The network of the recipe's name."""
        from fukami import models

        make = getattr(models, get_recipe_name(type(self)).replace("-", "_"))
        network: nn.Module = make(
            num_classes,
            hidden=self.hidden,
            dropout=self.dropout,
            width_multiplier=self.width_multiplier,
            batch_norm=self.batch_norm,
        )
        return network


@dataclass(frozen=True, kw_only=True)
class SkipFCN(FCNVGG):
    """An FCN that adds the scores of earlier maps."""

    training: Literal["at-once", "staged"] = "at-once"
    """All scores together, or as the paper did: a coarser network first, with which the finer one begins."""
    stage_lr_factor: float = 0.01
    """Factor by which each stage of staged training lowers the learning rate of the one before; the paper has 0.01
    (Long et al. 2015, section 4.2)."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1e-6, 1, "stage_lr_factor")
        if self.training == "at-once" and self.stage_lr_factor != type(self).stage_lr_factor:
            raise UsageError("--stage-lr-factor is of staged training; add --training staged, or leave it out")

    @property
    def peak_lr(self) -> float:
        """The peak learning rate of this network, which is the last stage of a staged training."""
        lowered = self.stage_lr_factor ** len(self.coarser_recipes) if self.training == "staged" else 1.0
        return super().peak_lr * lowered

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """The coarser networks, each begun with the one before it, at a lower learning rate."""
        if self.training == "at-once":
            return {}
        from fukami.engine.recipe import get_recipe

        found: dict[str, Recipe] = {}
        init = self.init
        for number, name in enumerate(self.coarser_recipes):
            kind = get_recipe(name)
            known = {field.name for field in dataclasses.fields(kind)} - {"training", "stage_lr_factor"}
            fields = {name: value for name, value in vars(self).items() if name in known}
            found[name] = kind(**{**fields, "init": init, "lr": self.lr * self.stage_lr_factor**number})
            init = str(folder.resolve() / name)
        return found

    def continue_from_stage(self, task: "Task", run: Path) -> None:
        """Begin with the network of the last stage, whose answers are this one's first answers."""
        dataclasses.replace(self, init=str(run)).initialize_task(task)
