"""DeepConvNet of one bit on handwritten digits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.classifier import Binarized
from fukami.recipes.deep_convnet import DeepConvNet

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BinaryDeepConvNet(Binarized, DeepConvNet):
    """DeepConvNet with weights and activations of one bit (Courbariaux et al. 2016), twice as wide."""

    paper: ClassVar[str] = "Courbariaux et al., Binarized Neural Networks"
    year: ClassVar[int] = 2016
    published: ClassVar[str] = "99.04 % MNIST, affine layers"
    reached: ClassVar[str] = "99.28 % MNIST, one seed"
    batch_norm: ClassVar[bool] = True  # type: ignore[misc]  # always: signs need it

    epochs: int = 15
    """Passes over the training set."""
    dropout: float = 0.0
    """Share of the hidden units dropped in training."""
    widths: tuple[int, int, int, int, int, int] = (32, 32, 64, 64, 128, 128)
    """Channels of the six convolutions."""
    hidden: int = 128
    """Units of the first affine layer."""
    ends: Literal["float", "binary"] = "float"
    """Weights of the first and the last layer: of full precision, or, as in the paper, of one bit."""

    def network(self, classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import binary_deep_convnet

        return binary_deep_convnet(
            classes,
            channels=self.channels,
            size=self.size,
            widths=self.widths,
            hidden=self.hidden,
            dropout=self.dropout,
            ends=self.ends,
            scaling=self.scaling,
            thresholds=self.thresholds,
        )
