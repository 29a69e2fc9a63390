"""ResNet-18: the smallest of the residual networks for photographs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.classifier import Classifier

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ResNet18(Classifier):
    """ResNet-18 (He et al. 2016, table 1): eight blocks of two 3×3 convolutions."""

    paper: ClassVar[str] = "He et al., Deep Residual Learning for Image Recognition"
    year: ClassVar[int] = 2016
    published: ClassVar[str] = "72.12 % ImageNet top-1, 10 crops"

    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Changes of the training pictures, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
    stem: Literal["7x7", "3x3"] = "7x7"
    """How the network begins: 7x7, the paper's, leaves a quarter of the side; 3x3, for pictures of 32 to 64 pixels, all
    of it."""

    def network(self, classes: int) -> "nn.Module":
        """The network of the recipe's name."""
        from fukami import models

        network: nn.Module = getattr(models, self.architecture)(classes, channels=self.channels, stem=self.stem)
        return network
