"""Base class of the segmentation recipes; each recipe adds its network."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.engine.recipe import MAX_IMAGE_SIDE, Data, Recipe, check_range, get_recipe_name
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD, OptimizerName, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.engine.task import Task
    from fukami.image.transform import ResizeTransform
    from fukami.layers.segmentation_model import SegmentationModel
    from fukami.segmentation.task import SegmentationTask

EVAL_BATCH_SIZE = 4
BALANCE_POWERS = {"none": 0.0, "root": 0.5, "median": 1.0}  # exponents of the class weights


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(SupervisedRecipe):
    """Fields of every recipe for semantic segmentation."""

    backbone: ClassVar[str] = ""  # the classifier whose published weights match

    data: str = "scenes"
    """Dataset: scenes (bundled), camvid, voc2012, cityscapes, coco, or a folder or archive of images and masks, or
    COCO's JSON."""
    ignore_index: int = 255
    """Mask value of ignored pixels, excluded from the loss and the metrics."""
    min_size: int = 0
    """Shorter side of the input images, in pixels; 0 keeps the original size."""
    max_size: int = 0
    """Maximum longer side of the input images, in pixels; 0: no limit."""
    crop_size: int = 512
    """Side of the random training crops of larger images, in pixels; 0 disables cropping."""
    augment: tuple[str, ...] = ("flip", "crop=0.5")
    """Data augmentation of the training images and masks, such as flip crop=0.5 rotate brightness; the flag without a
    value disables it."""
    balance: Literal["none", "median", "root"] = "none"
    """Class weights of the loss: none, median-frequency balancing (median) or its square root (root)."""
    epochs: int = 60
    """Number of epochs."""
    batch_size: int = 8
    """Global batch size, over all processes."""
    optimizer: OptimizerName = "adamw"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 5e-4
    """Peak learning rate, for the recipe's default batch size."""
    weight_decay: float = 0.01
    """Weight decay; decoupled with adamw (Loshchilov and Hutter 2019)."""
    schedule: str = "polynomial=0.9"
    """Learning-rate schedule: constant, step=NUM_DROPS, multistep=FRACTION,FRACTION, exponential=FINAL_FACTOR,
    polynomial=POWER, cosine, one-cycle or plateau=PATIENCE."""
    warmup: float = 0.02
    """Fraction of the training steps with a linear warm-up."""
    eval_every: int = 5
    """Evaluation interval in epochs; the last epoch is always evaluated."""
    init: str = ""
    """Initial weights: imagenet (torchvision's, downloaded), a state-dict file (of a classifier or of this network) or
    a run's folder."""

    backbone_lr_factor: float = 1.0
    """Learning-rate factor of the backbone layers that init loads."""

    def __post_init__(self) -> None:
        """Check the ranges of the fields."""
        super().__post_init__()
        check_range(self, 0, MAX_IMAGE_SIDE, "min_size", "max_size", "crop_size")
        check_range(self, 0, 1, "backbone_lr_factor")
        check_range(self, 0, 65535, "ignore_index")
        if self.max_size and self.max_size < self.min_size:
            raise UsageError(f"max-size should be at least min-size, {self.min_size}, or 0, not {self.max_size}")
        for name in ("min_size", "max_size", "crop_size"):
            if 0 < (value := getattr(self, name)) < 32:
                raise UsageError(f"{name.replace('_', '-')} should be at least 32 pixels, or 0, not {value}")

    def build_preprocessing(self) -> "ResizeTransform":
        """Build the preprocessing of images."""
        from fukami.image.transform import ResizeTransform

        return ResizeTransform(min_size=self.min_size, max_size=self.max_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def load_data(self) -> Data:
        """Load the dataset: into memory up to the memory limit, streamed from its files otherwise."""
        from fukami.segmentation import data as segmentation_data

        train, test, labels = segmentation_data.load_dataset(
            self.data, self.holdout, self.max_broken, ignore_index=self.ignore_index
        )
        return Data(self.build_loader(train, labels, train=True), self.build_loader(test, labels, train=False), labels)

    def load_eval_data(self) -> "PaddedLoader":
        """Load only the evaluation split."""
        from fukami.segmentation import data as segmentation_data

        _, test, labels = segmentation_data.load_dataset(
            self.data, self.holdout, self.max_broken, ignore_index=self.ignore_index, include_train=False
        )
        return self.build_loader(test, labels, train=False)

    def build_loader(self, samples: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Build the loader of a split, for training or for evaluation."""
        from fukami.data import augment_boxes, padded_loader

        seed, batch, crop_size = (self.seed, self.batch_size, self.crop_size) if train else (None, EVAL_BATCH_SIZE, 0)
        augmentation = augment_boxes.parse_box_augmentation(self.augment if train else ())
        return padded_loader.build_padded_loader(
            samples,
            labels,
            self.build_preprocessing(),
            batch_size=batch,
            seed=seed,
            augmentation=augmentation,
            crop_size=crop_size,
            memory_limit=self.memory_limit,
            max_broken=self.max_broken,
        )

    @property
    def pretrained_name(self) -> str:
        """Name in :mod:`fukami.models` of the classifier whose weights match the backbone; empty: none."""
        return self.backbone

    def build_model(self, num_classes: int) -> "SegmentationModel":
        """Build the network for a number of classes."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_model(num_classes)")

    def build_task(self, labels: tuple[str, ...]) -> "SegmentationTask":
        """Build the task for the classes ``labels``."""
        from fukami.engine import pretrained
        from fukami.segmentation.task import SegmentationTask

        model, options = self.build_model(len(labels)), self.get_training_options()
        if self.init and self.backbone_lr_factor != 1:
            make_optimizer = options["optimizer"]
            options["optimizer"] = lambda _: make_optimizer(
                pretrained.build_backbone_groups(model, self.peak_lr, self.backbone_lr_factor)
            )
        return SegmentationTask(
            model,
            labels,
            self.build_preprocessing(),
            balance_power=BALANCE_POWERS[self.balance],
            activation_checkpointing=self.activation_checkpointing,
            **options,
        )

    def initialize_task(self, task: "Task") -> None:
        """Load the weights of ``init`` into the network."""
        from fukami.engine import pretrained
        from fukami.layers.segmentation_model import SegmentationModel

        if self.init:
            model, labels = task.model, getattr(task, "labels", ())
            assert isinstance(model, SegmentationModel)
            needs_calibration = pretrained.initialize_segmenter(model, self.pretrained_name, self.init, labels)
            setattr(task, "needs_calibration", needs_calibration)  # noqa: B010  Task has no such attribute


@dataclass(frozen=True, kw_only=True)
class FCNVGG(SegmentationRecipe):
    """Fields of the FCNs on VGG-16, whose fully connected layers become convolutions (Long et al. 2015)."""

    backbone: ClassVar[str] = "vgg16"
    coarser_recipes: ClassVar[tuple[str, ...]] = ()  # recipes of the previous stages, the coarsest first

    lr: float = 2e-4
    """Peak learning rate, for the recipe's default batch size."""
    hidden: int = 4096
    """Channels of the two convolutions that replace fully connected layers."""
    dropout: float = 0.5
    """Dropout probability of these two layers."""
    width_multiplier: float = 1.0
    """Width of the other convolutions, relative to the paper."""
    batch_norm: bool = False
    """Batch normalization after every convolution except the last."""

    def __post_init__(self) -> None:
        """Check the ranges of the fields."""
        super().__post_init__()
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 1 / 64, 4, "width_multiplier")

    @property
    def pretrained_name(self) -> str:
        """Name of VGG-16 with or without batch normalization."""
        return self.backbone + ("_bn" if self.batch_norm else "")

    def build_model(self, num_classes: int) -> "SegmentationModel":
        """Build the FCN of the recipe."""
        from fukami import models

        build_network = getattr(models, get_recipe_name(type(self)).replace("-", "_"))
        network: SegmentationModel = build_network(
            num_classes,
            hidden=self.hidden,
            dropout=self.dropout,
            width_multiplier=self.width_multiplier,
            batch_norm=self.batch_norm,
        )
        return network


@dataclass(frozen=True, kw_only=True)
class SkipFCN(FCNVGG):
    """Fields of the FCNs with skip connections."""

    training: Literal["at-once", "staged"] = "at-once"
    """Training mode: at-once, or staged as in the paper, where each network starts from the next coarser one."""
    stage_lr_factor: float = 0.01
    """Learning-rate factor of each stage of staged training, relative to the previous one; 0.01 in the paper (Long et
    al. 2015, section 4.2)."""

    def __post_init__(self) -> None:
        """Check the ranges of the fields."""
        super().__post_init__()
        check_range(self, 1e-6, 1, "stage_lr_factor")
        if self.training == "at-once" and self.stage_lr_factor != type(self).stage_lr_factor:
            raise UsageError("--stage-lr-factor needs staged training; add --training staged, or omit it")

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of this network, the last stage of staged training."""
        factor = self.stage_lr_factor ** len(self.coarser_recipes) if self.training == "staged" else 1.0
        return super().peak_lr * factor

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """Return the recipes of the coarser networks; each starts from the previous one with a lower learning rate."""
        if self.training == "at-once":
            return {}
        from fukami.engine.recipe import get_recipe

        recipes: dict[str, Recipe] = {}
        init = self.init
        for stage, name in enumerate(self.coarser_recipes):
            kind = get_recipe(name)
            shared = {field.name for field in dataclasses.fields(kind)} - {"training", "stage_lr_factor"}
            fields = {name: value for name, value in vars(self).items() if name in shared}
            recipes[name] = kind(**{**fields, "init": init, "lr": self.lr * self.stage_lr_factor**stage})
            init = str(folder.resolve() / name)
        return recipes

    def continue_from_stage(self, task: "Task", run: Path) -> None:
        """Initialize the network from the last stage; at first both predict the same."""
        dataclasses.replace(self, init=str(run)).initialize_task(task)
