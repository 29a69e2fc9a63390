"""DeepConvNet of one bit on handwritten digits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.classifier import Optimizer
from fukami.recipes.deep_convnet import DeepConvNet

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BinaryDeepConvNet(DeepConvNet):
    """DeepConvNet with weights and activations of one bit (Courbariaux et al. 2016), twice as wide."""

    paper: ClassVar[str] = "Courbariaux et al., Binarized Neural Networks"
    year: ClassVar[int] = 2016
    published: ClassVar[str] = "99.04 % MNIST, affine layers"

    epochs: int = 15
    """Passes over the training set."""
    optimizer: Optimizer = "adam"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 3e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Pull of the weights towards 0; latent weights of one bit need none."""
    dropout: float = 0.0
    """Has no place in this network: it is 0."""
    widths: tuple[int, int, int, int, int, int] = (32, 32, 64, 64, 128, 128)
    """Channels of the six convolutions."""
    hidden: int = 128
    """Units of the first affine layer."""
    ends: Literal["float", "binary"] = "float"
    """Weights of the first and the last layer: of full precision, or, as in the paper, of one bit."""
    scaling: bool = False
    """Scaling factors of the weights, as in XNOR-Net."""
    thresholds: bool = False
    """Learned thresholds of the signs, as in ReActNet."""

    def network(self, classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import binary_deep_convnet

        return binary_deep_convnet(
            classes,
            channels=self.channels,
            size=self.size,
            widths=self.widths,
            hidden=self.hidden,
            ends=self.ends,
            scaling=self.scaling,
            thresholds=self.thresholds,
        )
