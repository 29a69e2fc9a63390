"""Transforms from images of any size to network inputs; a run stores its transform."""

import math
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from fukami.errors import Error, convert_memory_errors
from fukami.image import digit_extraction
from fukami.image import io as image_io
from fukami.image.channels import (
    ArrayImage,
    ChannelSource,
    DecodedImage,
    Levels,
    build_preview,
    read_channels,
)

CHANNEL_NAMES = {1: "grayscale", 3: "RGB"}


@dataclass(frozen=True)
class SquareTransform:
    """Transforms an image to ``(channels, size, size)``: uint8, or float32 in 0..255 if it has more than 8 bits.

    Args:
        channels: number of channels; 1 grayscale, 3 color.
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
        """Return the bytes of a transformed image of 8 bits."""
        return self.channels * self.size**2

    def describe(self) -> dict[str, str | int | tuple[float, ...]]:
        """Describe the transform for other programs, as JSON-compatible values."""
        steps = (
            "a digit in MNIST's format: light on 0, longer side 20 pixels, centered by mass"
            if self.mnist_digit
            else "shorter side resized to size (bicubic), center crop"
        )
        return {
            "channels": CHANNEL_NAMES.get(self.channels, self.channels),
            "size": self.size,
            "image": steps,
            "values": "(image / 255 - mean) / std",
            "mean": self.mean,
            "std": self.std,
        }

    def __call__(self, image: DecodedImage) -> Levels:
        """Transform an image.

        Raises:
            fukami.Error: the image contains no digit, with ``mnist_digit``.
        """
        if self.mnist_digit:
            return digit_extraction.convert_to_mnist(build_preview(image))
        if isinstance(image, ArrayImage):
            return resize_and_crop_channels(image, self.size).transpose(2, 0, 1).copy()
        return image_io.resize_and_crop(image, channels=self.channels, size=self.size)

    def transform_preview(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Transform an image of 8 bits in gray or color for a drawing, whatever the number of channels."""
        if self.mnist_digit:
            return digit_extraction.convert_to_mnist(image)
        return image_io.resize_and_crop(image, channels=1 if self.channels == 1 else 3, size=self.size)

    def convert_to_tensor(self, image: DecodedImage) -> Tensor:
        """Transform an image to a tensor ``(channels, size, size)``."""
        return torch.from_numpy(self(image))

    def read_and_transform(self, source: ChannelSource, name: str = "") -> Levels:
        """Read and transform an image from any source of :func:`fukami.image.channels.read_channels`.

        Errors name it ``name``.

        Raises:
            fukami.Error: the image cannot be read, needs more memory than there is, or contains no digit.
        """
        image = read_channels(source, self.channels, name=name)
        name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "")
        with convert_memory_errors(name or "the input image"):
            try:
                return self(image)
            except Error as error:
                raise Error(f"{name}: {error}" if name else str(error)) from error


@dataclass(frozen=True)
class ResizeTransform:
    """Resizes an image and keeps its aspect ratio, like torchvision's detectors.

    Args:
        min_size: length of the shorter side in pixels; 0: unchanged.
        max_size: maximum length of the longer side, which takes precedence; 0: no maximum.
        mean, std: normalization of each channel, in [0, 1]; the input is ``(image / 255 - mean) / std``.
        channels: number of channels; 1 grayscale, 3 color.
    """

    min_size: int
    max_size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: int = 3

    def describe(self) -> dict[str, str | int | tuple[float, ...]]:
        """Describe the transform for other programs, as JSON-compatible values."""
        return {
            "channels": CHANNEL_NAMES.get(self.channels, self.channels),
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
        """Resize an image ``(C, h, w)`` in 0..255 to ``(C, H, W)`` float.

        This equals :class:`torchvision.models.detection.transform.GeneralizedRCNNTransform`.
        """
        width, height = self.compute_size(image.shape[2], image.shape[1])
        return F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)[0]

    def read_image(self, source: ChannelSource, name: str = "") -> Tensor:
        """Read an image as ``(channels, h, w)``, not resized; errors name it ``name``.

        The sources are those of :func:`fukami.image.channels.read_channels`.

        Raises:
            fukami.Error: the image cannot be read, or needs more memory than there is.
        """
        image = read_channels(source, self.channels, name=name)
        name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "the input image")
        with convert_memory_errors(name):
            return self.convert_to_tensor(image)

    def convert_to_tensor(self, image: DecodedImage) -> Tensor:
        """Convert an image to ``(channels, h, w)``, without resizing it: uint8, or float32 in 0..255."""
        if isinstance(image, ArrayImage):
            return torch.from_numpy(image.levels).permute(2, 0, 1)
        levels = np.array(image_io.convert_mode(image, "L" if self.channels == 1 else "RGB"))
        return torch.from_numpy(levels.reshape(*levels.shape[:2], self.channels)).permute(2, 0, 1)


def resize_and_crop_channels(image: ArrayImage, size: int) -> Levels:
    """Resize the shorter side and crop the center of each channel, ``(size, size, C)``."""
    if image.size == (size, size):
        return image.levels
    resized = image.map_channels(lambda plane: ImageOps.fit(plane, (size, size), Image.Resampling.BICUBIC)).levels
    if resized.dtype == np.uint8:
        return resized
    return resized.clip(min(0, image.levels.min()), max(255, image.levels.max()))  # overshoot, as Pillow's at 8 bits


def get_normalization(transform: SquareTransform | ResizeTransform, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of the channels, in 0..255, ``(C, 1, 1)`` each."""
    mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (transform.mean, transform.std))
    return mean.to(device), std.to(device)
