"""ResNet-32: five blocks in each stage."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.resnet20 import ResNet20


@dataclass(frozen=True, kw_only=True)
class ResNet32(ResNet20):
    """ResNet-32 (He et al. 2016, section 4.2): five blocks in each stage."""

    published: ClassVar[str] = "92.49 % CIFAR-10"
