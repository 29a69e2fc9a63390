"""ResNet-101: 33 bottleneck blocks."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.resnet50 import ResNet50


@dataclass(frozen=True, kw_only=True)
class ResNet101(ResNet50):
    """ResNet-101 (He et al. 2016, table 1): 33 bottleneck blocks."""

    published: ClassVar[str] = "78.25 % ImageNet top-1, 10 crops"
