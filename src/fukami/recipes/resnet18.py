"""ResNet-18: the smallest of the residual networks for photographs."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class ResNet18(Classifier):
    """ResNet-18 (He et al. 2016, table 1): eight blocks of two 3×3 convolutions."""

    paper: ClassVar[str] = "He et al., Deep Residual Learning for Image Recognition"
    year: ClassVar[int] = 2016
    published: ClassVar[str] = "72.12 % ImageNet top-1, 10 crops"

    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Changes of the training pictures, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
