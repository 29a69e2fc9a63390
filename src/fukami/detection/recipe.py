"""Detector: the recipe that every detector shares; each adds its network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.engine.recipe import MAX_IMAGE_SIDE, Data, DataSpec, check_range
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.detection.task import DetectionTask
    from fukami.engine.task import Task
    from fukami.image.transform import ResizeTransform
    from fukami.models.faster_rcnn import FasterRCNN as Network

EVAL_BATCH_SIZE = 8  # images in a batch that is only judged


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(SupervisedRecipe):
    """A network that tells where in an image there is what."""

    family: ClassVar[str] = "detection"

    data: DataSpec = "scenes"
    """What to learn from: scenes (embedded), bccd, voc-animals, voc2007, voc2012, coco, or a folder or archive of
    images with boxes: Pascal VOC, COCO or YOLO."""
    min_size: int = 600
    """Shorter side of the images that the network sees, in pixels."""
    max_size: int = 1000
    """The longer side at most; a longer image is made smaller still."""
    augment: tuple[str, ...] = ("flip",)
    """Changes of the training images and their boxes, such as flip crop=0.5 brightness; none: give the flag alone."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 32, MAX_IMAGE_SIDE, "min_size", "max_size")
        if self.max_size < self.min_size:
            raise UsageError(f"max-size should be at least min-size, {self.min_size}, not {self.max_size}")

    def build_preprocessing(self) -> "ResizeTransform":
        """How an image is brought to the form that the network sees."""
        from fukami.image.transform import ResizeTransform

        return ResizeTransform(min_size=self.min_size, max_size=self.max_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def load_data(self) -> Data:
        """The data set: in memory where it fits, streamed from its files where it does not."""
        from fukami.detection import data as detection_data

        train, test, labels = detection_data.load_dataset(self.data, self.holdout, self.max_broken)
        return Data(self.build_loader(train, labels, train=True), self.build_loader(test, labels, train=False), labels)

    def load_eval_data(self) -> "PaddedLoader":
        """The test part alone: what there is to train on is not decoded."""
        from fukami.detection import data as detection_data

        _, test, labels = detection_data.load_dataset(self.data, self.holdout, self.max_broken, include_train=False)
        return self.build_loader(test, labels, train=False)

    def build_loader(self, samples: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Batches of a part of the data, to train on or to judge on."""
        from fukami.data import augment_boxes, padded_loader

        seed, batch = (self.seed, self.batch_size) if train else (None, EVAL_BATCH_SIZE)
        change = augment_boxes.parse_box_augmentation(self.augment if train else ())
        return padded_loader.build_padded_loader(
            samples,
            labels,
            self.build_preprocessing(),
            batch_size=batch,
            seed=seed,
            augment=change,
            memory_limit=self.memory_limit,
            max_broken=self.max_broken,
        )


@dataclass(frozen=True, kw_only=True)
class FasterRCNNRecipe(DetectionRecipe):
    """Proposals of regions, and what is in them, from one network."""

    backbone: ClassVar[str] = ""  # the classifier that it is made of
    backbone_prefix: ClassVar[str] = ""  # the part of the network that has the classifier's layers

    epochs: int = 12
    """Passes over the training set."""
    batch_size: int = 2
    """Images in an update, over all processes."""
    optimizer: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"] = "momentum"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 2.5e-3
    """Peak learning rate of the recipe's own batch."""
    schedule: str = "multistep=0.667,0.917"
    """Course of the learning rate: constant, step=DROPS, multistep=SHARE,SHARE, exponential=END, polynomial=POWER,
    cosine, one-cycle, plateau=PATIENCE."""
    warmup: float = 0.02
    """Share of the training in which the learning rate rises."""
    clip_norm: float = 10.0
    """Greatest norm of the gradient, to which a greater one is scaled down; 0: any."""
    weight_decay: float = 1e-4
    """Pull of the weights towards 0; decoupled with adamw (Loshchilov and Hutter 2019)."""
    init: str = ""
    """Weights to begin with: imagenet (torchvision's, downloaded), a file of a state dict (of a classifier or a
    detector), or a run's folder."""
    freeze: int = 2
    """Stages of the backbone that stay as init has them, from the first one up."""
    anchor_sizes: tuple[float, ...] = (128.0, 256.0, 512.0)
    """Sides of the square anchors in pixels; each comes in the shapes 2:1, 1:1 and 1:2."""
    roi_pooling: Literal["align", "pool"] = "align"
    """How a region is brought to 7×7 places: RoIAlign, or the paper's RoIPool."""
    training: Literal["joint", "alternating"] = "joint"
    """Both stages together, or the four steps of the paper, one after another."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 0, 5, "freeze")
        if len(self.anchor_sizes) < 1 or min(self.anchor_sizes) < 2:
            raise UsageError(f"anchor-sizes should be sides of anchors, 2 pixels or more each, not {self.anchor_sizes}")
        if self.schedule.startswith("plateau") and self.training == "alternating":
            raise UsageError("a plateau is waited for, and the four steps have their times; give another --schedule")

    def build_model(self, num_classes: int) -> "Network":
        """The network, for so many classes without the background."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_model(num_classes)")

    def build_task(self, labels: tuple[str, ...]) -> "DetectionTask":
        """A detector of ``labels``."""
        from fukami.detection.alternating_task import AlternatingDetectionTask
        from fukami.detection.task import DetectionTask
        from fukami.engine import pretrained

        model = self.build_model(len(labels))
        if self.init:
            pretrained.freeze_stages(model.get_submodule(self.backbone_prefix), self.freeze)
        make = AlternatingDetectionTask if self.training == "alternating" else DetectionTask
        return make(
            model,
            labels,
            self.build_preprocessing(),
            activation_checkpointing=self.activation_checkpointing,
            **self.get_training_options(),
        )

    def initialize_task(self, task: "Task") -> None:
        """Put the weights of ``init`` into the network."""
        from fukami.engine import pretrained

        if self.init:
            labels = getattr(task, "labels", ())
            pretrained.initialize_detector(task.model, self.backbone_prefix, self.backbone, self.init, labels)
