"""ResNet-20 on small pictures: the first of the networks with which residual learning was shown on CIFAR-10."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.classifier import Classifier

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ResNet20(Classifier):
    """ResNet-20 (He et al. 2016, section 4.2): 0.27 million parameters for pictures of 32×32."""

    paper: ClassVar[str] = "He et al., Deep Residual Learning for Image Recognition"
    year: ClassVar[int] = 2016
    published: ClassVar[str] = "91.25 % CIFAR-10"
    reached: ClassVar[str] = "88.32 % CIFAR-10 as JPEG, 64 epochs, one seed"

    size: int = 32
    """Side of the pictures that the network sees, in pixels."""
    epochs: int = 30
    """Passes over the training set."""
    batch: int = 128
    """Pictures in an update."""
    lr: float = 0.2
    """Peak learning rate."""
    augment: tuple[str, ...] = ("flip", "pad-crop=4")
    """Changes of the training pictures, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
    shortcut: Literal["A", "B"] = "A"
    """Where the maps get smaller: A adds channels of zeros, as the paper does on CIFAR; B a 1×1 convolution."""

    def network(self, classes: int) -> "nn.Module":
        """The network of the recipe's name."""
        from fukami import models

        network: nn.Module = getattr(models, self.architecture)(classes, channels=self.channels, shortcut=self.shortcut)
        return network
