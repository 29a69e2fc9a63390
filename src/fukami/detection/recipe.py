"""Base recipes of object detectors; each recipe adds its network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.engine.recipe import MAX_IMAGE_SIDE, Data, check_range
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.detection.task import DetectionTask
    from fukami.engine.task import Task
    from fukami.image.transform import ResizeTransform
    from fukami.models.faster_rcnn import FasterRCNN as Network

EVAL_BATCH_SIZE = 8  # images per evaluation batch


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(SupervisedRecipe):
    """Base recipe of an object detector."""

    data: str = "scenes"
    """Dataset: scenes (bundled), bccd, voc-animals, voc2007, voc2012, coco, or a folder or archive in Pascal VOC, COCO
    or YOLO format."""
    min_size: int = 600
    """Input size: shorter side of the resized image, in pixels."""
    max_size: int = 1000
    """Maximum longer side of the resized image, in pixels; takes precedence over min-size."""
    augment: tuple[str, ...] = ("flip",)
    """Data augmentation of the training images and boxes, such as flip crop=0.5 brightness; the flag without a value
    disables it."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 32, MAX_IMAGE_SIDE, "min_size", "max_size")
        if self.max_size < self.min_size:
            raise UsageError(f"max-size should be at least min-size, {self.min_size}, not {self.max_size}")

    def build_preprocessing(self) -> "ResizeTransform":
        """Build the preprocessing: resizing and normalization of an image."""
        from fukami.image.transform import ResizeTransform

        return ResizeTransform(min_size=self.min_size, max_size=self.max_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def load_data(self) -> Data:
        """Load the dataset, in memory up to ``memory_limit``, otherwise streamed from its files."""
        from fukami.detection import data as detection_data

        train, test, labels = detection_data.load_dataset(self.data, self.holdout, self.max_broken)
        return Data(self.build_loader(train, labels, train=True), self.build_loader(test, labels, train=False), labels)

    def load_eval_data(self) -> "PaddedLoader":
        """Load the test split only, without decoding the training images."""
        from fukami.detection import data as detection_data

        _, test, labels = detection_data.load_dataset(self.data, self.holdout, self.max_broken, include_train=False)
        return self.build_loader(test, labels, train=False)

    def build_loader(self, samples: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Build the loader of the training or the evaluation batches."""
        from fukami.data import augment_boxes, padded_loader

        seed, batch = (self.seed, self.batch_size) if train else (None, EVAL_BATCH_SIZE)
        augmentation = augment_boxes.parse_box_augmentation(self.augment if train else ())
        return padded_loader.build_padded_loader(
            samples,
            labels,
            self.build_preprocessing(),
            batch_size=batch,
            seed=seed,
            augmentation=augmentation,
            memory_limit=self.memory_limit,
            max_broken=self.max_broken,
        )


@dataclass(frozen=True, kw_only=True)
class FasterRCNNRecipe(DetectionRecipe):
    """Base recipe of Faster R-CNN."""

    backbone: ClassVar[str] = ""  # name of the classifier whose layers it uses
    backbone_prefix: ClassVar[str] = ""  # name of the submodule with the classifier's layers

    epochs: int = 12
    """Number of epochs."""
    batch_size: int = 2
    """Global batch size, over all processes."""
    optimizer: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"] = "momentum"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 2.5e-3
    """Peak learning rate."""
    schedule: str = "multistep=0.667,0.917"
    """Learning-rate schedule: constant, step=NUM_DROPS, multistep=FRACTION,FRACTION, exponential=FINAL_FACTOR,
    polynomial=POWER, cosine, one-cycle or plateau=PATIENCE."""
    warmup: float = 0.02
    """Fraction of the training steps with a linear warm-up."""
    clip_norm: float = 10.0
    """Maximum gradient norm (gradient clipping); 0 disables it."""
    weight_decay: float = 1e-4
    """Weight decay; decoupled with adamw (Loshchilov and Hutter 2019)."""
    init: str = ""
    """Initial weights: imagenet (torchvision's, downloaded), a state-dict file of a classifier or a detector, or a
    run's folder."""
    frozen_stages: int = 2
    """Number of frozen backbone stages, from the first one, if init is given; 0 to 5."""
    anchor_sizes: tuple[float, ...] = (128.0, 256.0, 512.0)
    """Sides of the square anchors, in pixels; the aspect ratios are 2:1, 1:1 and 1:2."""
    roi_pooling: Literal["align", "pool"] = "align"
    """Pooling of a region to 7×7: RoIAlign (He et al. 2017) or the paper's RoIPool."""
    training: Literal["joint", "alternating"] = "joint"
    """Joint training of both stages, or the paper's 4-step alternating training."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 0, 5, "frozen_stages")
        if len(self.anchor_sizes) < 1 or min(self.anchor_sizes) < 2:
            raise UsageError(f"anchor-sizes should be anchor sides of at least 2 pixels each, not {self.anchor_sizes}")
        if self.schedule.startswith("plateau") and self.training == "alternating":
            raise UsageError(
                "--schedule plateau cannot be combined with --training alternating, whose steps have fixed lengths; "
                "use another --schedule"
            )

    def build_model(self, num_classes: int) -> "Network":
        """Build the network for ``num_classes`` classes without the background."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_model(num_classes)")

    def build_task(self, labels: tuple[str, ...]) -> "DetectionTask":
        """Build the detector of the classes ``labels``."""
        from fukami.detection.alternating_task import AlternatingDetectionTask
        from fukami.detection.task import DetectionTask
        from fukami.engine import pretrained

        model = self.build_model(len(labels))
        if self.init:
            pretrained.freeze_stages(model.get_submodule(self.backbone_prefix), self.frozen_stages)
        task_class = AlternatingDetectionTask if self.training == "alternating" else DetectionTask
        return task_class(
            model,
            labels,
            self.build_preprocessing(),
            activation_checkpointing=self.activation_checkpointing,
            **self.get_training_options(),
        )

    def initialize_task(self, task: "Task") -> None:
        """Load the weights of ``init``."""
        from fukami.engine import pretrained

        if self.init:
            labels = getattr(task, "labels", ())
            pretrained.initialize_detector(task.model, self.backbone_prefix, self.backbone, self.init, labels)
