"""A recipe of one's own: a small network for classified images."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fukami.classification.recipe import ClassificationRecipe, OptimizerName
from fukami.image.transform import SquareTransform


@dataclass(frozen=True, kw_only=True)
class Small(ClassificationRecipe):
    """Two convolutions and one affine layer."""

    size: int = 28
    """Side of the images that the network sees, in pixels."""
    channels: Literal[1, 3] = 1
    """1 grey, 3 colour."""
    epochs: int = 5
    """Passes over the training set."""
    optimizer: OptimizerName = "adamw"
    """How gradients become updates, as torch has it."""
    lr: float = 1e-3
    """Peak learning rate."""
    augment: tuple[str, ...] = ("shift=2",)
    """Changes of the training images."""
    width: int = 16
    """Channels of the first convolution; the second has twice as many."""

    def build_model(self, num_classes: int) -> nn.Module:
        """The network, with scores ``(N, num_classes)`` for images ``(N, channels, size, size)``."""
        side = -(-self.size // 4)
        return nn.Sequential(
            nn.Conv2d(self.channels, self.width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * self.width * side * side, num_classes),
        )  # fmt: skip

    def build_transform(self, labels: tuple[str, ...]) -> SquareTransform:
        """How an image is brought to the form that the network sees; digits as MNIST has them."""
        digit = (self.size, self.channels) == (28, 1) and labels == tuple("0123456789")
        return SquareTransform(channels=self.channels, size=self.size, mnist_digit=digit)
