"""ResNet-34: sixteen blocks of two 3×3 convolutions."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.resnet18 import ResNet18


@dataclass(frozen=True, kw_only=True)
class ResNet34(ResNet18):
    """ResNet-34 (He et al. 2016, table 1): sixteen blocks of two 3×3 convolutions."""

    published: ClassVar[str] = "75.48 % ImageNet top-1, 10 crops"
