"""FCN-32s: the scores of the last maps, enlarged 32 times."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.segmenter import FCNVGG


@dataclass(frozen=True, kw_only=True)
class FCN32sVGG16(FCNVGG):
    """FCN-32s (Long et al. 2015): VGG-16 as convolutions, its scores enlarged 32 times."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    published: ClassVar[str] = "59.4 % mIoU VOC 2011"
