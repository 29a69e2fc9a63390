"""Faster R-CNN (Ren et al. 2015), on VGG-16 as in the paper and on a feature pyramid of ResNet-50."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.detection.recipe import FasterRCNNRecipe
from fukami.engine.recipe import check_range

if TYPE_CHECKING:
    from fukami.models.faster_rcnn import FasterRCNN as Network


@dataclass(frozen=True, kw_only=True)
class FasterRCNNResNet50FPN(FasterRCNNRecipe):
    """Faster R-CNN on a feature pyramid of ResNet-50 (Lin et al. 2017), as torchvision has it."""

    paper: ClassVar[str] = "Lin et al., Feature Pyramid Networks for Object Detection"
    year: ClassVar[int] = 2017
    paper_result: ClassVar[str] = "37.0 % AP COCO (torchvision)"
    backbone: ClassVar[str] = "resnet50"
    backbone_prefix: ClassVar[str] = "backbone.body"

    min_size: int = 800
    """Shorter side of the images that the network sees, in pixels."""
    max_size: int = 1333
    """The longer side at most; a longer image is made smaller still."""
    init: str = ""
    """Weights to begin with: coco or imagenet (torchvision's detector or classifier, downloaded), a file of a state
    dict of either, or a run's folder."""
    anchor_sizes: tuple[float, float, float, float, float] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Side in pixels of the square anchor of each level of the pyramid; it comes in the shapes 2:1, 1:1 and 1:2."""

    def build_model(self, num_classes: int) -> "Network":
        """The network; its batch normalisation stays as init has it, and learns where there is none."""
        from fukami.models import faster_rcnn_resnet50_fpn

        return faster_rcnn_resnet50_fpn(
            num_classes, roi_pooling=self.roi_pooling, frozen_batch_norm=bool(self.init), anchor_sizes=self.anchor_sizes
        )


@dataclass(frozen=True, kw_only=True)
class FasterRCNNVGG16(FasterRCNNRecipe):
    """Faster R-CNN on VGG-16 (Ren et al. 2015): regions proposed and classified by one network."""

    paper: ClassVar[str] = "Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks"
    year: ClassVar[int] = 2015
    paper_result: ClassVar[str] = "69.9 % mAP VOC 2007"
    reproduced_result: ClassVar[str] = "91.66 % mAP BCCD, 320 pixels, one seed"
    backbone: ClassVar[str] = "vgg16"
    backbone_prefix: ClassVar[str] = "backbone"

    hidden: int = 4096
    """Units of the two affine layers that see a region."""
    dropout: float = 0.5
    """Share of them dropped in training."""
    batch_norm: bool = False
    """Batch normalisation after every convolution of the backbone."""
    width_multiplier: float = 1.0
    """Share of the paper's channels in the backbone."""
    stride: Literal[8, 16] = 16
    """Pixels from one place of the map to the next; 8, without the fourth pooling, is finer, for small objects."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 1 / 64, 4, "width_multiplier")

    def build_model(self, num_classes: int) -> "Network":
        """The network."""
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
