"""ResNet-44: seven blocks in each stage."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.resnet20 import ResNet20


@dataclass(frozen=True, kw_only=True)
class ResNet44(ResNet20):
    """ResNet-44 (He et al. 2016, section 4.2): seven blocks in each stage."""

    published: ClassVar[str] = "92.83 % CIFAR-10"
