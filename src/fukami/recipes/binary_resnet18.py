"""ResNet-18 with convolutions of one bit and shortcuts of full precision."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.classifier import Binarized, Classifier

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BinaryResNet18(Binarized, Classifier):
    """Binarized ResNet-18 (Liu et al. 2018, Bi-Real Net): a shortcut for every 3×3 convolution of one bit."""

    paper: ClassVar[str] = "Liu et al., Bi-Real Net"
    year: ClassVar[int] = 2018
    published: ClassVar[str] = "56.4 % ImageNet top-1"

    lr: float = 2e-3
    """Peak learning rate."""
    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Changes of the training pictures, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
    stem: Literal["7x7", "3x3"] = "7x7"
    """How the network begins: 7x7, the paper's, leaves a quarter of the side; 3x3, for pictures of 32 to 64 pixels, all
    of it."""

    def network(self, classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import binary_resnet18

        return binary_resnet18(
            classes, channels=self.channels, stem=self.stem, scaling=self.scaling, thresholds=self.thresholds
        )
