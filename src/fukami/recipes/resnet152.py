"""ResNet-152: 50 bottleneck blocks."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.resnet50 import ResNet50


@dataclass(frozen=True, kw_only=True)
class ResNet152(ResNet50):
    """ResNet-152 (He et al. 2016, table 1): 50 bottleneck blocks."""

    published: ClassVar[str] = "78.57 % ImageNet top-1, 10 crops"
