"""Base class of the segmentation recipes; each recipe adds its network."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.engine.channels import ChannelFields
from fukami.engine.recipe import MAX_IMAGE_SIDE, check_range, get_network_name
from fukami.engine.supervised import OptimizerName, SplitLoading, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.data.splits import Splits
    from fukami.image.transform import ResizeTransform
    from fukami.layers.segmentation_model import SegmentationModel
    from fukami.segmentation.task import SegmentationTask

EVAL_BATCH_SIZE = 4
BALANCE_POWERS = {"none": 0.0, "root": 0.5, "median": 1.0}  # exponents of the class weights


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(SplitLoading, ChannelFields, SupervisedRecipe):
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
        """Validate the fields."""
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

        return ResizeTransform(self.min_size, self.max_size, *self.normalization, self.channels)

    def load_splits(self, *, include_train: bool = True) -> "Splits[tuple[Sample, ...]]":
        """Load the class names of the dataset and index its images and masks, which are not decoded."""
        from fukami.segmentation import data as segmentation_data

        return segmentation_data.load_dataset(
            self.dataset,
            self.val_fraction,
            self.max_unreadable,
            images=self.images,
            ignore_index=self.ignore_index,
            include_train=include_train,
        )

    def build_loader(self, split: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Build the loader of the training or the evaluation batches; only the former are cropped.

        Raises:
            Error: the scores of the pixels of an evaluation image would need too much memory.
        """
        from fukami.segmentation.task import check_num_scores

        augmentations, batch_size, seed, crop_size = (
            (self.augment, self.batch_size, self.seed, self.crop_size) if train else ((), EVAL_BATCH_SIZE, None, 0)
        )
        prepare = self.build_preprocessing()
        loader = self.build_padded_loader(
            split, labels, prepare, augmentations, batch_size=batch_size, seed=seed, crop_size=crop_size
        )
        if not train:  # before the training, whose crops are smaller
            for plan in loader.iterate_plans():
                check_num_scores(len(labels), *plan.padded_size)
        return loader

    @property
    def pretrained_name(self) -> str:
        """Name in :mod:`fukami.models` of the classifier whose weights match the backbone; empty: none."""
        return self.backbone

    def build_model(self, num_classes: int) -> "SegmentationModel":
        """Build the network, by default that of the recipe's name in :mod:`fukami.models`."""
        from fukami.layers.segmentation_model import SegmentationModel

        model = self.build_named_model(get_network_name(type(self)), num_classes)
        assert isinstance(model, SegmentationModel)
        return model

    def build_task(self, labels: tuple[str, ...]) -> "SegmentationTask":
        """Build the task for the classes ``labels``."""
        from fukami.engine import fine_tuning
        from fukami.segmentation.task import SegmentationTask

        model = self.build_model(len(labels))
        build_groups = partial(fine_tuning.build_backbone_groups, model, self.peak_lr, self.backbone_lr_factor)
        use_groups = self.init and self.backbone_lr_factor != 1
        return SegmentationTask(
            model,
            labels,
            self.build_preprocessing(),
            balance_power=BALANCE_POWERS[self.balance],
            activation_checkpointing=self.activation_checkpointing,
            **self.get_training_options(build_groups if use_groups else None),
        )

    def initialize_task(self, task: "SegmentationTask") -> None:
        """Load the weights of ``init`` into the network."""
        from fukami.engine import pretrained
        from fukami.layers.segmentation_model import SegmentationModel

        if self.init:
            model = task.model
            assert isinstance(model, SegmentationModel)
            task.needs_calibration = pretrained.initialize_segmenter(
                model, self.pretrained_name, self.init, task.labels
            )

    def continue_from_stage(self, task: "SegmentationTask", run: Path) -> None:
        """Initialize the network with the weights of the last stage."""
        dataclasses.replace(self, init=str(run)).initialize_task(task)
