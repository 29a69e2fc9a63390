"""Recipes of Faster R-CNN (Ren et al. 2015): with VGG-16 as in the paper, and with ResNet-50 and a feature pyramid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.detection.recipe import DetectionRecipe
from fukami.engine.recipe import check_range, get_network_name
from fukami.engine.supervised import OptimizerName
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.detection.task import DetectionTask
    from fukami.models.faster_rcnn import FasterRCNN as Network


@dataclass(frozen=True, kw_only=True)
class FasterRCNNRecipe(DetectionRecipe):
    """Base recipe of Faster R-CNN; each recipe adds its backbone."""

    backbone: ClassVar[str] = ""  # name of the classifier whose layers it uses
    backbone_prefix: ClassVar[str] = ""  # name of the submodule with the classifier's layers

    epochs: int = 12
    """Number of epochs."""
    batch_size: int = 2
    """Global batch size, over all processes."""
    optimizer: OptimizerName = "momentum"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 2.5e-3
    """Peak learning rate."""
    schedule: str = "multistep=0.667,0.917"
    """Learning-rate schedule: constant, step=NUM_DROPS, multistep=FRACTION,FRACTION, exponential=FINAL_FACTOR,
    polynomial=POWER, cosine, one-cycle or plateau=PATIENCE."""
    warmup: float = 0.02
    """Fraction of the training steps with a linear learning-rate warm-up."""
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
        from fukami.models.faster_rcnn import FasterRCNN as Network

        model = self.build_named_model(get_network_name(type(self)), num_classes)
        assert isinstance(model, Network)
        return model

    def build_task(self, labels: tuple[str, ...]) -> "DetectionTask":
        """Build the detector of the classes ``labels``; its first stages are frozen if they have initial weights."""
        from fukami.detection.alternating_task import AlternatingDetectionTask
        from fukami.detection.task import DetectionTask
        from fukami.engine import fine_tuning

        model = self.build_model(len(labels))
        if self.init:
            fine_tuning.freeze_stages(model.get_submodule(self.backbone_prefix), self.frozen_stages)
        task_class = AlternatingDetectionTask if self.training == "alternating" else DetectionTask
        return task_class(
            model,
            labels,
            self.build_preprocessing(),
            activation_checkpointing=self.activation_checkpointing,
            confidence=self.confidence,
            **self.get_training_options(),
        )

    def initialize_task(self, task: "DetectionTask") -> None:
        """Load the weights of ``init``."""
        from fukami.engine import pretrained

        if self.init:
            pretrained.initialize_detector(task.model, self.backbone_prefix, self.backbone, self.init, task.labels)


@dataclass(frozen=True, kw_only=True)
class FasterRCNNResNet50FPN(FasterRCNNRecipe):
    """Faster R-CNN with a ResNet-50 feature pyramid, as in torchvision (Lin et al. 2017).

    mAP not measured; training runs at 0.6 images per second of 1152×800 on 2 cores of an AMD EPYC. torchvision's
    weights, which --init coco downloads, have 37.0 % AP on COCO.

    Example:
        fukami train faster-rcnn-resnet50-fpn --data my-boxes --init coco
    """

    backbone: ClassVar[str] = "resnet50"
    backbone_prefix: ClassVar[str] = "backbone.body"

    min_size: int = 800
    """Input size: shorter side of the resized image, in pixels."""
    max_size: int = 1333
    """Maximum longer side of the resized image, in pixels; takes precedence over min-size."""
    init: str = ""
    """Initial weights: coco or imagenet (torchvision's detector or classifier, downloaded), a state-dict file of
    either, or a run's folder."""
    anchor_sizes: tuple[float, float, float, float, float] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Side of the square anchor of each pyramid level, in pixels; the aspect ratios are 2:1, 1:1 and 1:2."""

    def build_model(self, num_classes: int) -> "Network":
        """Build the network; batch normalization is frozen if ``init`` is set, and trained otherwise."""
        from fukami.models import faster_rcnn_resnet50_fpn

        return faster_rcnn_resnet50_fpn(
            num_classes, roi_pooling=self.roi_pooling, frozen_batch_norm=bool(self.init), anchor_sizes=self.anchor_sizes
        )


@dataclass(frozen=True, kw_only=True)
class FasterRCNNVGG16(FasterRCNNRecipe):
    """Faster R-CNN with VGG-16: a region proposal network and a classifier with shared features (Ren et al. 2015).

    Result: 89.39 % mAP on BCCD at 320 pixels after 12 epochs in 42 minutes on 2 cores of an AMD EPYC. The paper: 69.9 %
    mAP on VOC 2007.

    Example:
        fukami train faster-rcnn-vgg16 --data bccd --init vgg16_features_imagenet.safetensors --min-size 320
            --max-size 448 --stride 8 --hidden 1024 --dropout 0 --anchor-sizes 24 48 80 144 --batch-size 1 --lr
            3e-3 --schedule cosine --epochs 12 --augment flip flip-vertical brightness=0.2 contrast=0.2
    """

    backbone: ClassVar[str] = "vgg16"
    backbone_prefix: ClassVar[str] = "backbone"
    model_arguments: ClassVar[tuple[str, ...]] = (
        "anchor_sizes", "roi_pooling", "hidden", "dropout", "batch_norm", "width_multiplier", "stride"
    )  # fmt: skip
    init_defaults: ClassVar[Mapping[str, object]] = {
        "min_size": 320, "anchor_sizes": (16.0, 32.0, 64.0, 128.0, 256.0), "hidden": 1024,
        "dropout": 0.0, "batch_size": 1, "lr": 3e-3, "schedule": "cosine",
    }  # fmt: skip

    hidden: int = 4096
    """Number of units of the two fully connected layers of the detection head."""
    dropout: float = 0.5
    """Dropout probability of these units."""
    batch_norm: bool = False
    """Batch normalization after each convolution of the backbone."""
    width_multiplier: float = 1.0
    """Multiplier of the number of channels of the backbone."""
    stride: Literal[8, 16] = 16
    """Stride of the feature map in pixels; with 8 the fourth pooling has stride 1, for small objects."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 1 / 64, 4, "width_multiplier")
