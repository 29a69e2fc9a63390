"""DeepConvNet on handwritten digits: the first landmark."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fukami.classification.recipe import ClassificationRecipe
from fukami.engine.recipe import check_range
from fukami.engine.supervised import OptimizerName

if TYPE_CHECKING:
    from torch import nn

    from fukami.image.transform import SquareTransform


@dataclass(frozen=True, kw_only=True)
class DeepConvNet(ClassificationRecipe):
    """DeepConvNet for handwritten digits: six convolutions and two fully connected layers (Saitoh 2016, section 8.1).

    Result: 99.576 % test accuracy on MNIST, mean of 5 seeds, in 11 to 14 minutes on 2 cores of an Intel Xeon with other
    work; the book has 99.35 %.

    Example:
        fukami train deep-convnet --data mnist
    """

    size: int = 28
    """Side of the images that the network sees, in pixels."""
    channels: Literal[1, 3] = 1
    """1 grey, 3 colour."""
    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 100
    """Images in an update."""
    optimizer: OptimizerName = "adamw"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Pull of the weights towards 0; decoupled with adamw (Loshchilov and Hutter 2019)."""
    augment: tuple[str, ...] = ("shift=2", "rotate=10", "scale=0.1", "shear=0.1")
    """Changes of the training images, such as rotate=15 shift=2 mixup=0.2; none: give the flag alone."""
    dropout: float = 0.5
    """Share of the hidden units dropped in training."""
    convention: Literal["auto", "digit", "image"] = "auto"
    """How images are prepared: digit (one character, brought to MNIST's form), image (resized); auto takes digit
    where every class is a digit."""
    widths: tuple[int, int, int, int, int, int] = (16, 16, 32, 32, 64, 64)
    """Channels of the six convolutions."""
    hidden: int = 50
    """Units of the first affine layer."""
    batch_norm: bool = False
    """Batch normalisation after every convolution (Ioffe and Szegedy 2015)."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")

    def build_model(self, num_classes: int) -> "nn.Module":
        """The network."""
        from fukami.models import deep_convnet

        return deep_convnet(
            num_classes,
            channels=self.channels,
            size=self.size,
            widths=self.widths,
            hidden=self.hidden,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
        )

    def build_transform(self, labels: tuple[str, ...]) -> "SquareTransform":
        """How an image is brought to the form that the network sees."""
        from fukami.image.transform import SquareTransform

        digits = all(len(label) == 1 and label.isdigit() for label in labels)
        digit = self.convention == "digit" or (
            self.convention == "auto" and digits and (self.size, self.channels) == (28, 1)
        )
        return SquareTransform(channels=self.channels, size=self.size, mnist_digit=digit)
