"""A custom recipe: a small convolutional network for image classification."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fukami.classification.recipe import ClassificationRecipe, OptimizerName
from fukami.image.transform import SquareTransform


@dataclass(frozen=True, kw_only=True)
class SmallConvNet(ClassificationRecipe):
    """Two convolutions and a fully connected layer."""

    size: int = 28
    """Input size: side of the square input image, in pixels."""
    channels: Literal[1, 3] = 1
    """Input channels: 1 grayscale, 3 color."""
    epochs: int = 5
    """Number of epochs."""
    optimizer: OptimizerName = "adamw"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 1e-3
    """Peak learning rate."""
    augment: tuple[str, ...] = ("shift=2",)
    """Data augmentation of the training images, such as shift=2 rotate=10; the flag without a value disables it."""
    width: int = 16
    """Number of filters of the first convolution; the second has twice as many."""

    def build_model(self, num_classes: int) -> nn.Module:
        """Build the network, which maps images ``(N, channels, size, size)`` to logits ``(N, num_classes)``."""
        side = -(-self.size // 4)
        return nn.Sequential(
            nn.Conv2d(self.channels, self.width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * self.width * side * side, num_classes),
        )  # fmt: skip

    def build_transform(self, labels: tuple[str, ...]) -> SquareTransform:
        """Build the image preprocessing; photographs of digits are converted to MNIST's form."""
        is_mnist_digit = (self.size, self.channels) == (28, 1) and labels == tuple("0123456789")
        return SquareTransform(channels=self.channels, size=self.size, mnist_digit=is_mnist_digit)
