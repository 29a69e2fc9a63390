"""The binarized network of the BNN paper on small pictures: one bit for each weight and each activation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.classifier import Binarized, Classifier
from fukami.recipe import MAX_SIZE, within

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BinaryConvNet(Binarized, Classifier):
    """The binarized network for CIFAR-10 (Courbariaux et al. 2016, section 2.1): 14 million weights of one bit."""

    paper: ClassVar[str] = "Courbariaux et al., Binarized Neural Networks"
    year: ClassVar[int] = 2016
    published: ClassVar[str] = "88.6 % CIFAR-10"
    reached: ClassVar[str] = "80.88 % CIFAR-10 as JPEG, half as wide, 24 epochs, one seed"

    size: int = 32
    """Side of the pictures that the network sees, in pixels."""
    epochs: int = 100
    """Passes over the training set."""
    batch: int = 100
    """Pictures in an update."""
    augment: tuple[str, ...] = ("flip", "pad-crop=4")
    """Changes of the training pictures, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
    widths: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    """Channels of the convolutions; each pair ends with a pooling."""
    hidden: tuple[int, ...] = (1024, 1024)
    """Units of the affine layers before the last."""
    ends: Literal["float", "binary"] = "float"
    """Weights of the first and the last layer: of full precision, or, as in the paper, of one bit."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        within(self, 2 ** (len(self.widths) // 2), MAX_SIZE, "size")

    def network(self, classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import binary_convnet

        return binary_convnet(
            classes,
            channels=self.channels,
            size=self.size,
            widths=self.widths,
            hidden=self.hidden,
            ends=self.ends,
            scaling=self.scaling,
            thresholds=self.thresholds,
        )
