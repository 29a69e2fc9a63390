"""VGG-13: ten convolutions of 3×3 and three affine layers."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.vgg16 import VGG16


@dataclass(frozen=True, kw_only=True)
class VGG13(VGG16):
    """VGG-13 (Simonyan and Zisserman 2015, table 1, B): ten convolutions of 3×3 and three affine layers."""

    published: ClassVar[str] = "71.3 % ImageNet top-1, one scale"
