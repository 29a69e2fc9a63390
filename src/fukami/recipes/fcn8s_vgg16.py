"""FCN-8s: with the scores of pool4 and pool3."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.segmenter import SkippingFCN


@dataclass(frozen=True, kw_only=True)
class FCN8sVGG16(SkippingFCN):
    """FCN-8s (Long et al. 2015): FCN-16s with the scores of pool3, enlarged 8 times."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    published: ClassVar[str] = "62.7 % mIoU VOC 2011"
    reached: ClassVar[str] = "56.95 % mIoU CamVid at half the size, one seed"
    coarser: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16", "fcn16s-vgg16")
