"""Faster R-CNN on VGG-16, the paper's."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.detector import FasterRCNN
from fukami.recipe import within

if TYPE_CHECKING:
    from fukami.models.faster_rcnn import FasterRCNN as Network


@dataclass(frozen=True, kw_only=True)
class FasterRCNNVGG16(FasterRCNN):
    """Faster R-CNN on VGG-16 (Ren et al. 2015): regions proposed and classified by one network."""

    paper: ClassVar[str] = "Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks"
    year: ClassVar[int] = 2015
    published: ClassVar[str] = "69.9 % mAP VOC 2007"
    reached: ClassVar[str] = "91.66 % mAP BCCD, 320 pixels, one seed"
    backbone: ClassVar[str] = "vgg16"
    prefix: ClassVar[str] = "backbone"

    hidden: int = 4096
    """Units of the two affine layers that see a region."""
    dropout: float = 0.5
    """Share of them dropped in training."""
    batch_norm: bool = False
    """Batch normalisation after every convolution of the backbone."""
    width: float = 1.0
    """Share of the paper's channels in the backbone."""
    stride: Literal[8, 16] = 16
    """Pixels from one place of the map to the next; 8, without the fourth pooling, is finer, for small objects."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        within(self, 1, math.inf, "hidden")
        within(self, 0, 0.99, "dropout")
        within(self, 1 / 64, 4, "width")

    def network(self, classes: int) -> "Network":
        """The network."""
        from fukami.models import faster_rcnn_vgg16

        return faster_rcnn_vgg16(
            classes,
            scales=self.scales,
            hidden=self.hidden,
            dropout=self.dropout,
            pooling=self.pooling,
            batch_norm=self.batch_norm,
            width=self.width,
            stride=self.stride,
        )
