"""FCN-16s: with the scores of pool4."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.segmenter import SkippingFCN


@dataclass(frozen=True, kw_only=True)
class FCN16sVGG16(SkippingFCN):
    """FCN-16s (Long et al. 2015): FCN-32s with the scores of pool4, enlarged 16 times."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    published: ClassVar[str] = "62.4 % mIoU VOC 2011"
    coarser: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16",)
