"""Segmentation masks in files and in memory: the class of each pixel of an image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fukami.data.class_tables import ClassTable, Color, encode_colors
from fukami.data.manifest import file_size
from fukami.errors import Error, convert_memory_errors
from fukami.image import io as image_io
from fukami.image.io import UInt8Array

MAX_CLASSES = 254  # the largest number of classes in a label map


@dataclass(frozen=True)
class ArrayMask:
    """Mask held in memory.

    Args:
        pixels: label map ``(H, W)`` uint8 as in :class:`fukami.data.samples.Mask`.
    """

    pixels: UInt8Array

    def read(self) -> UInt8Array:
        """Return the label map."""
        return self.pixels

    def fingerprint(self) -> bytes:
        """Return the label map as bytes."""
        return self.pixels.tobytes()


@dataclass(frozen=True)
class MaskFile:
    """Mask in an image file, by value (grayscale or palette) or by color, as the class table defines.

    :meth:`read` raises the errors of :class:`fukami.data.samples.Mask`; they name the first pixel without a class.
    """

    path: Path
    class_table: ClassTable

    def read(self) -> UInt8Array:
        """Return the label map."""
        with convert_memory_errors(str(self.path)):
            return self._read_map()

    def _read_map(self) -> UInt8Array:
        codes, known = self.read_codes(), self.list_known_codes()
        positions = np.searchsorted(known[0], codes).clip(max=len(known[0]) - 1)
        unknown = known[0][positions] != codes
        if unknown.any():
            row, column = np.argwhere(unknown)[0].tolist()
            raise Error(
                f"{self.path} has {self.describe_code(int(codes[row, column]))} at column {column} of row {row}, which "
                f"is none of the {len(known[0])} {'colors' if self.class_table.color_to_class else 'values'} of the "
                "class table; add it there, or fix the mask"
            )
        return np.asarray(known[1][positions])

    def fingerprint(self) -> bytes:
        """Return the name and size of the file and the digest of the class table."""
        return f"{self.path.name} {file_size(self.path)} ".encode() + self.class_table.digest

    def read_codes(self) -> npt.NDArray[np.integer]:
        """Return the value of each pixel ``(H, W)``, or its color encoded as one number."""
        return read_codes(self.path, bool(self.class_table.color_to_class))

    def list_known_codes(self) -> tuple[npt.NDArray[np.int32], UInt8Array]:
        """Return the codes of the class table in ascending order, and the label-map value of each."""
        if self.class_table.color_to_class:
            codes = encode_colors(np.array(list(self.class_table.color_to_class), np.uint8))
            classes = list(self.class_table.color_to_class.values())
        else:
            codes, classes = (
                np.array(list(self.class_table.value_to_class), np.int32),
                list(self.class_table.value_to_class.values()),
            )
        order = codes.argsort()
        return codes[order], (np.array(classes) + 1).astype(np.uint8)[order]

    def describe_code(self, code: int) -> str:
        """Describe a code for a message."""
        return f"the color {decode_color(code)}" if self.class_table.color_to_class else f"the value {code}"


@dataclass(frozen=True)
class MissingMask:
    """Placeholder for the missing mask of an image."""

    detail: str

    def read(self) -> UInt8Array:
        """Raise the error that the mask is missing."""
        raise Error(self.detail)

    def fingerprint(self) -> bytes:
        """Return a constant."""
        return b"missing"


class ColoredMaskError(Error):
    """Error for a mask in color without a class table."""


def read_codes(path: Path, by_color: bool) -> npt.NDArray[np.integer]:
    """Read the value of each pixel of a mask file, ``(H, W)``, or its color encoded as one number.

    An alpha channel is ignored.

    Raises:
        ColoredMaskError: the file is in color although ``by_color`` is false.
        Error: the file cannot be read.
    """
    with image_io.open_image(path) as image:
        if by_color:
            return encode_colors(np.asarray(image.convert("RGB")))
        if image.mode in ("RGB", "RGBA"):
            levels = np.asarray(image)[..., :3]
            if (levels != levels[..., :1]).any():
                raise ColoredMaskError(
                    f"{path} is in color, and no class table gives the classes colors; put one next to the folders, "
                    "classes.txt with a line such as road 128 64 128 for each class"
                )
            return levels[..., 0]
        if image.mode == "LA":
            return np.asarray(image)[..., 0]
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
            raise Error(f"{path} has pixels of mode {image.mode}; a mask has one integer or color per pixel")
        return np.asarray(image)


def decode_color(code: int) -> Color:
    """Decode the color of a code."""
    return code >> 16, code >> 8 & 255, code & 255


def is_colored(path: Path) -> bool:
    """Return whether a mask file has colors other than shades of gray; false if it cannot be read."""
    try:
        with image_io.open_image(path) as image:
            if image.mode not in ("RGB", "RGBA"):
                return False
            levels = np.asarray(image)[..., :3]
            return bool((levels != levels[..., :1]).any())
    except Error:  # reading the mask reports the error
        return False


def resize_mask(mask: UInt8Array, width: int, height: int) -> UInt8Array:
    """Resize a label map with nearest-neighbor interpolation."""
    if mask.shape == (height, width):
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
