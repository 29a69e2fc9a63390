"""How an image of any size becomes what a network sees; it travels with the run."""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fukami.errors import Error, convert_memory_errors
from fukami.image import digit_extraction
from fukami.image import io as image_io


@dataclass(frozen=True)
class SquareTransform:
    """Turns an image into ``(channels, size, size)`` uint8.

    Args:
        channels: 1 grey, 3 colour.
        size: side in pixels.
        mnist_digit: one character on a plain ground, brought to MNIST's form (28×28 grey); otherwise resized and
            cropped.
        mean, std: of each channel, or one for all, in [0, 1]; a network sees ``(image / 255 - mean) / std``.
    """

    channels: int
    size: int
    mnist_digit: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def nbytes(self) -> int:
        """What a prepared image takes."""
        return self.channels * self.size**2

    def describe(self) -> dict[str, Any]:
        """What another program must do to an image, in words and numbers that JSON can hold."""
        fitted = (
            "a digit as MNIST shows it: light on 0, its longer side 20 pixels, centred by mass"
            if self.mnist_digit
            else "the shorter side resized to size (bicubic), the centre cropped"
        )
        return {
            "channels": "grey" if self.channels == 1 else "RGB",
            "size": self.size,
            "image": fitted,
            "values": "(image / 255 - mean) / std",
            "mean": self.mean,
            "std": self.std,
        }

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The image as the network sees it.

        Raises:
            fukami.Error: a digit was expected, and there is no ink.
        """
        return (
            digit_extraction.convert_to_mnist(image)
            if self.mnist_digit
            else image_io.resize_and_crop(image, channels=self.channels, size=self.size)
        )

    def read_and_transform(self, source: Any, name: str = "") -> npt.NDArray[np.uint8]:
        """What the network sees of a file (or what :func:`fukami.image.io.read_image` takes); errors call it ``name``.

        Raises:
            fukami.Error: it cannot be read, takes more memory than there is, or shows no digit; a file is named.
        """
        image = image_io.read_image(source, name=name)
        name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "")
        with convert_memory_errors(name or "the image given"):
            try:
                return self(image)
            except Error as error:
                raise Error(f"{name}: {error}" if name else str(error)) from error


@dataclass(frozen=True)
class ResizeTransform:
    """Turns an image into RGB of about one size whose sides keep their ratio, as torchvision's detectors do.

    Args:
        min_size: pixels of the shorter side that comes out; 0: as many as it has,
        max_size: unless the longer one would then have more than these; 0: it may.
        mean, std: of each channel, in [0, 1]; a network sees ``(image / 255 - mean) / std``.
    """

    min_size: int
    max_size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def describe(self) -> dict[str, Any]:
        """What another program must do to an image, in words and numbers that JSON can hold."""
        return {
            "channels": "RGB",
            "shortest": self.min_size,
            "longest": self.max_size,
            "image": "upright; the shorter side resized to shortest, or the longer one to longest where it would be "
            "more (bilinear, not antialiased, sides rounded down); a 0 asks for nothing",
            "values": "(image / 255 - mean) / std",
            "mean": self.mean,
            "std": self.std,
        }

    def compute_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that come out of an image of this width and height."""
        factor = self.min_size / min(width, height) if self.min_size else 1.0
        factor = min(factor, self.max_size / max(width, height)) if self.max_size else factor
        return max(1, math.floor(width * factor)), max(1, math.floor(height * factor))

    def __call__(self, image: Tensor) -> Tensor:
        """An image ``(3, h, w)`` uint8 as ``(3, H, W)`` float in 0..255.

        :class:`torchvision.models.detection.transform.GeneralizedRCNNTransform` resizes like this.
        """
        width, height = self.compute_size(image.shape[2], image.shape[1])
        return F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)[0]

    def read_image(self, source: Any, name: str = "") -> Tensor:
        """An image in a file, or what :func:`fukami.image.io.read_image` takes, ``(3, h, w)`` uint8, not resized yet.

        Raises:
            fukami.Error: it cannot be read, or takes more memory than there is; errors call it ``name``.
        """
        image = image_io.read_image(source, name=name)
        name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "the image given")
        with convert_memory_errors(name):
            return torch.from_numpy(np.array(image_io.convert_mode(image, "RGB"))).permute(2, 0, 1)
