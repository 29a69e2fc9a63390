"""ResNet-110: eighteen blocks in each stage."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.resnet20 import ResNet20


@dataclass(frozen=True, kw_only=True)
class ResNet110(ResNet20):
    """ResNet-110 (He et al. 2016, section 4.2): eighteen blocks in each stage."""

    published: ClassVar[str] = "93.57 % CIFAR-10"
