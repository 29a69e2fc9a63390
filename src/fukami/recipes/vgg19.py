"""VGG-19: 16 convolutions of 3×3 and three affine layers."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.vgg16 import VGG16


@dataclass(frozen=True, kw_only=True)
class VGG19(VGG16):
    """VGG-19 (Simonyan and Zisserman 2015, table 1, E): 16 convolutions of 3×3 and three affine layers."""

    published: ClassVar[str] = "74.5 % ImageNet top-1, one scale"
