"""SegNet (Badrinarayanan et al. 2017): a decoder that unpools where the encoder pooled."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.engine.recipe import check_range
from fukami.segmentation.recipe import SegmentationRecipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class SegNetVGG16(SegmentationRecipe):
    """SegNet (Badrinarayanan et al. 2017): VGG-16 and its mirror image, which unpools with the places of the maxima."""

    paper: ClassVar[str] = "Badrinarayanan et al., SegNet: A Deep Convolutional Encoder-Decoder Architecture"
    year: ClassVar[int] = 2017
    paper_result: ClassVar[str] = "60.1 % mIoU CamVid, 3,433 training images"
    reproduced_result: ClassVar[str] = "51.41 % mIoU CamVid at half the size, one seed"
    backbone: ClassVar[str] = "vgg16_bn"

    batch_size: int = 4
    """Images in an update, over all processes."""
    lr: float = 3e-3
    """Peak learning rate of the recipe's own batch."""
    backbone_lr_factor: float = 0.08
    """What the learning rate is multiplied by in the layers of the classifier that init begins with."""
    balance: Literal["none", "median", "root"] = "root"
    """For unequal classes: weigh the loss of each by the median of their frequencies over its own, or its root."""
    width_multiplier: float = 1.0
    """Share of the paper's channels."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1 / 64, 4, "width_multiplier")

    def build_model(self, num_classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import segnet_vgg16

        return segnet_vgg16(num_classes, width_multiplier=self.width_multiplier)


@dataclass(frozen=True, kw_only=True)
class SegNetBasic(SegmentationRecipe):
    """SegNet-Basic (Badrinarayanan et al. 2017): four encoders and four decoders of 7×7 filters, from nothing."""

    paper: ClassVar[str] = "Badrinarayanan et al., SegNet: A Deep Convolutional Encoder-Decoder Architecture"
    year: ClassVar[int] = 2017
    paper_result: ClassVar[str] = "46.3 % mIoU CamVid"
    reproduced_result: ClassVar[str] = "43.75 % mIoU CamVid at half the size, one seed"

    batch_size: int = 4
    """Images in an update, over all processes."""
    lr: float = 2e-3
    """Peak learning rate of the recipe's own batch."""
    balance: Literal["none", "median", "root"] = "root"
    """For unequal classes: weigh the loss of each by the median of their frequencies over its own, or its root."""
    filters: int = 64
    """Of every convolution."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1, math.inf, "filters")

    def build_model(self, num_classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import segnet_basic

        return segnet_basic(num_classes, num_filters=self.filters)
