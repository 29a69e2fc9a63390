"""VGG-11: eight convolutions of 3×3 and three affine layers."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.vgg16 import VGG16


@dataclass(frozen=True, kw_only=True)
class VGG11(VGG16):
    """VGG-11 (Simonyan and Zisserman 2015, table 1, A): eight convolutions of 3×3 and three affine layers."""

    published: ClassVar[str] = "70.4 % ImageNet top-1, one scale"
