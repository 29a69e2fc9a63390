"""How a picture of any size becomes what a network sees; it travels with the run."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fukami import digit, image
from fukami.errors import Error


@dataclass(frozen=True)
class Preparation:
    """Turns a picture into ``(channels, size, size)`` uint8.

    Args:
        channels: 1 grey, 3 colour.
        size: side in pixels.
        digit: one character on a plain ground, brought to MNIST's form (28×28 grey); otherwise resized and cropped.
        mean, std: of each channel, or one for all, in [0, 1]; a network sees ``(picture / 255 - mean) / std``.
    """

    channels: int
    size: int
    digit: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def bytes(self) -> int:
        """What a prepared picture takes."""
        return self.channels * self.size**2

    def describe(self) -> dict[str, Any]:
        """What another program must do to a picture, in words and numbers that JSON can hold."""
        fitted = (
            "a digit as MNIST shows it: light on 0, its longer side 20 pixels, centred by mass"
            if self.digit
            else "the shorter side resized to size (bicubic), the centre cropped"
        )
        return {
            "channels": "grey" if self.channels == 1 else "RGB",
            "size": self.size,
            "picture": fitted,
            "values": "(picture / 255 - mean) / std",
            "mean": self.mean,
            "std": self.std,
        }

    def __call__(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """The picture as the network sees it.

        Raises:
            fukami.Error: a digit was expected, and there is no ink.
        """
        return digit.as_mnist(picture) if self.digit else image.fit(picture, channels=self.channels, size=self.size)

    def open(self, source: Any, name: str = "") -> npt.NDArray[np.uint8]:
        """What the network sees of a file (or what else :func:`fukami.image.read` takes); errors call it ``name``.

        Raises:
            fukami.Error: it cannot be read, or shows no digit; a file is named.
        """
        picture = image.read(source, name=name)
        try:
            return self(picture)
        except Error as error:
            name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "")
            raise Error(f"{name}: {error}" if name else str(error)) from error
