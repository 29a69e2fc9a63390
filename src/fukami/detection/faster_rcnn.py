"""Recipes of Faster R-CNN (Ren et al. 2015): with VGG-16 as in the paper, and with ResNet-50 and a feature pyramid."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.detection.recipe import FasterRCNNRecipe
from fukami.engine.recipe import check_range

if TYPE_CHECKING:
    from fukami.models.faster_rcnn import FasterRCNN as Network


@dataclass(frozen=True, kw_only=True)
class FasterRCNNResNet50FPN(FasterRCNNRecipe):
    """Faster R-CNN with a ResNet-50 feature pyramid, as in torchvision (Lin et al. 2017).

    Not trained here; training runs at 0.6 images per second of 1152×800 on 2 cores of an AMD EPYC. torchvision's
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

    Result: 91.66 % mAP on BCCD at 320 pixels after 12 epochs in 81 minutes on 2 cores of an Intel Xeon. The paper: 69.9
    % mAP on VOC 2007.

    Example:
        fukami train faster-rcnn-vgg16 --data bccd --init vgg16_features_imagenet.safetensors --min-size 320
            --max-size 448 --stride 8 --hidden 1024 --dropout 0 --anchor-sizes 24 48 80 144 --batch-size 1 --lr
            3e-3 --schedule cosine --epochs 12 --augment flip flip-vertical brightness=0.2 contrast=0.2
    """

    backbone: ClassVar[str] = "vgg16"
    backbone_prefix: ClassVar[str] = "backbone"

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

    def build_model(self, num_classes: int) -> "Network":
        """Build the network for ``num_classes`` classes without the background."""
        from fukami.models import faster_rcnn_vgg16

        return faster_rcnn_vgg16(
            num_classes,
            anchor_sizes=self.anchor_sizes,
            hidden=self.hidden,
            dropout=self.dropout,
            roi_pooling=self.roi_pooling,
            batch_norm=self.batch_norm,
            width_multiplier=self.width_multiplier,
            stride=self.stride,
        )
