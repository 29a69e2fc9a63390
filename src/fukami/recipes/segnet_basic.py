"""SegNet-Basic: four encoders and four decoders of 7×7 filters, trained from nothing."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.recipe import within
from fukami.segmenter import Segmenter

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class SegNetBasic(Segmenter):
    """SegNet-Basic (Badrinarayanan et al. 2017): four encoders and four decoders of 7×7 filters, from nothing."""

    paper: ClassVar[str] = "Badrinarayanan et al., SegNet: A Deep Convolutional Encoder-Decoder Architecture"
    year: ClassVar[int] = 2017
    published: ClassVar[str] = "46.3 % mIoU CamVid"
    reached: ClassVar[str] = "43.75 % mIoU CamVid at half the size, one seed"

    batch: int = 4
    """Pictures in an update, over all processes."""
    lr: float = 2e-3
    """Peak learning rate of the recipe's own batch."""
    balance: Literal["none", "median", "root"] = "root"
    """For unequal classes: weigh the loss of each by the median of their frequencies over its own, or its root."""
    filters: int = 64
    """Of every convolution."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        within(self, 1, math.inf, "filters")

    def network(self, classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import segnet_basic

        return segnet_basic(classes, filters=self.filters)
