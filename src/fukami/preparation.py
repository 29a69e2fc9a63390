"""How a picture of any size becomes what a network sees; it travels with the run."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fukami import digit, image


@dataclass(frozen=True)
class Preparation:
    """Turns a picture into ``(channels, size, size)`` uint8.

    Args:
        channels: 1 grey, 3 colour.
        size: side in pixels.
        digit: one character on a plain ground, brought to MNIST's form (28×28 grey); otherwise resized and cropped.
    """

    channels: int
    size: int
    digit: bool = False

    def __call__(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """The picture as the network sees it.

        Raises:
            fukami.Error: a digit was expected, and there is no ink.
        """
        return digit.as_mnist(picture) if self.digit else image.fit(picture, channels=self.channels, size=self.size)
