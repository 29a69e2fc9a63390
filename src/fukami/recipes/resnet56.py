"""ResNet-56: nine blocks in each stage."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.resnet20 import ResNet20


@dataclass(frozen=True, kw_only=True)
class ResNet56(ResNet20):
    """ResNet-56 (He et al. 2016, section 4.2): nine blocks in each stage."""

    published: ClassVar[str] = "93.03 % CIFAR-10"
