"""Transforms from images of any size to network inputs; a run stores its transform."""

import math
import os
from dataclasses import dataclass

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
    """Transforms an image to ``(channels, size, size)`` uint8.

    Args:
        channels: 1 grayscale, 3 color.
        size: side in pixels.
        mnist_digit: convert one character on a plain background to MNIST's format (28×28 grayscale); otherwise resize
            and crop.
        mean, std: normalization of each channel, or of all, in [0, 1]; the input is ``(image / 255 - mean) / std``.
    """

    channels: int
    size: int
    mnist_digit: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def nbytes(self) -> int:
        """Return the bytes of a transformed image."""
        return self.channels * self.size**2

    def describe(self) -> dict[str, str | int | tuple[float, ...]]:
        """Describe the transform for other programs, as JSON-compatible values."""
        steps = (
            "a digit in MNIST's format: light on 0, longer side 20 pixels, centered by mass"
            if self.mnist_digit
            else "shorter side resized to size (bicubic), center crop"
        )
        return {
            "channels": "grayscale" if self.channels == 1 else "RGB",
            "size": self.size,
            "image": steps,
            "values": "(image / 255 - mean) / std",
            "mean": self.mean,
            "std": self.std,
        }

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Transform an image.

        Raises:
            fukami.Error: the image contains no digit, with ``mnist_digit``.
        """
        return (
            digit_extraction.convert_to_mnist(image)
            if self.mnist_digit
            else image_io.resize_and_crop(image, channels=self.channels, size=self.size)
        )

    def convert_to_tensor(self, image: Image.Image) -> Tensor:
        """Transform an image to a tensor ``(channels, size, size)`` uint8."""
        return torch.from_numpy(self(image))

    def read_and_transform(self, source: image_io.ImageSource, name: str = "") -> npt.NDArray[np.uint8]:
        """Read and transform an image from any source of :func:`fukami.image.io.read_image`; errors name it ``name``.

        Raises:
            fukami.Error: the image cannot be read, needs more memory than there is, or contains no digit.
        """
        image = image_io.read_image(source, name=name)
        name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "")
        with convert_memory_errors(name or "the input image"):
            try:
                return self(image)
            except Error as error:
                raise Error(f"{name}: {error}" if name else str(error)) from error


@dataclass(frozen=True)
class ResizeTransform:
    """Resizes an image as RGB and keeps its aspect ratio, like torchvision's detectors.

    Args:
        min_size: length of the shorter side in pixels; 0: unchanged.
        max_size: maximum length of the longer side, which takes precedence; 0: no maximum.
        mean, std: normalization of each channel, in [0, 1]; the input is ``(image / 255 - mean) / std``.
    """

    min_size: int
    max_size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def describe(self) -> dict[str, str | int | tuple[float, ...]]:
        """Describe the transform for other programs, as JSON-compatible values."""
        return {
            "channels": "RGB",
            "shortest": self.min_size,
            "longest": self.max_size,
            "image": "upright; shorter side resized to shortest, or longer side to longest where it would exceed it "
            "(bilinear, no antialiasing, sides rounded down); 0 disables either",
            "values": "(image / 255 - mean) / std",
            "mean": self.mean,
            "std": self.std,
        }

    def compute_size(self, width: int, height: int) -> tuple[int, int]:
        """Compute the output width and height of an image."""
        factor = self.min_size / min(width, height) if self.min_size else 1.0
        factor = min(factor, self.max_size / max(width, height)) if self.max_size else factor
        return max(1, math.floor(width * factor)), max(1, math.floor(height * factor))

    def __call__(self, image: Tensor) -> Tensor:
        """Resize an image ``(3, h, w)`` uint8 to ``(3, H, W)`` float in 0..255.

        This equals :class:`torchvision.models.detection.transform.GeneralizedRCNNTransform`.
        """
        width, height = self.compute_size(image.shape[2], image.shape[1])
        return F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)[0]

    def read_image(self, source: image_io.ImageSource, name: str = "") -> Tensor:
        """Read an image as ``(3, h, w)`` uint8, not resized; errors name it ``name``.

        The sources are those of :func:`fukami.image.io.read_image`.

        Raises:
            fukami.Error: the image cannot be read, or needs more memory than there is.
        """
        image = image_io.read_image(source, name=name)
        name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "the input image")
        with convert_memory_errors(name):
            return self.convert_to_tensor(image)

    def convert_to_tensor(self, image: Image.Image) -> Tensor:
        """Convert an image to RGB, ``(3, h, w)`` uint8, without resizing it."""
        return torch.from_numpy(np.array(image_io.convert_mode(image, "RGB"))).permute(2, 0, 1)


def get_normalization(transform: SquareTransform | ResizeTransform, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of the channels, in 0..255, ``(C, 1, 1)`` each."""
    mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (transform.mean, transform.std))
    return mean.to(device), std.to(device)
