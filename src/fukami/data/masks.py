"""Masks in files and in memory: what each pixel of an image is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fukami.data.class_tables import ClassTable, Colour, encode_colors
from fukami.data.manifest import file_size
from fukami.data.samples import UInt8Array
from fukami.errors import Error, convert_memory_errors
from fukami.image import io as image_io

MAX_CLASSES = 254  # classes that a map can tell apart


@dataclass(frozen=True)
class ArrayMask:
    """A map that is there already.

    Args:
        pixels: ``(H, W)`` uint8 as of :class:`fukami.data.samples.Mask`.
    """

    pixels: UInt8Array

    def read(self) -> UInt8Array:
        """The map."""
        return self.pixels

    def fingerprint(self) -> bytes:
        """The map itself."""
        return self.pixels.tobytes()


@dataclass(frozen=True)
class MaskFile:
    """An image of the classes: by value (grey, or with a palette) or by colour, as the legend says.

    Raises of :meth:`read`: see :class:`fukami.data.samples.Mask`; the first pixel of no class is named.
    """

    path: Path
    class_table: ClassTable

    def read(self) -> UInt8Array:
        """The map."""
        with convert_memory_errors(str(self.path)):
            return self._read_map()

    def _read_map(self) -> UInt8Array:
        codes, known = self.read_codes(), self.list_known_codes()
        place = np.searchsorted(known[0], codes).clip(max=len(known[0]) - 1)
        strange = known[0][place] != codes
        if strange.any():
            row, column = np.argwhere(strange)[0].tolist()
            raise Error(
                f"{self.path} has {self.describe_code(int(codes[row, column]))} at column {column} of row {row}, which "
                f"is none of the {len(known[0])} {'colours' if self.class_table.color_to_class else 'values'} of the "
                "class table; add it there, or mend the mask"
            )
        return np.asarray(known[1][place])

    def fingerprint(self) -> bytes:
        """The size of the file, and the legend."""
        return f"{self.path.name} {file_size(self.path)} ".encode() + self.class_table.digest

    def read_codes(self) -> npt.NDArray[np.int32]:
        """The value of each pixel ``(H, W)``, or its colour as one number."""
        return read_codes(self.path, bool(self.class_table.color_to_class))

    def list_known_codes(self) -> tuple[npt.NDArray[np.int32], UInt8Array]:
        """The codes that the legend knows, in order, and what each is in a map."""
        if self.class_table.color_to_class:
            keys = encode_colors(np.array(list(self.class_table.color_to_class), np.uint8))
            classes = list(self.class_table.color_to_class.values())
        else:
            keys, classes = (
                np.array(list(self.class_table.value_to_class), np.int32),
                list(self.class_table.value_to_class.values()),
            )
        order = keys.argsort()
        return keys[order], (np.array(classes) + 1).astype(np.uint8)[order]

    def describe_code(self, code: int) -> str:
        """A code in words."""
        return f"the colour {decode_color(code)}" if self.class_table.color_to_class else f"the value {code}"


@dataclass(frozen=True)
class MissingMask:
    """The mask of an image that has none."""

    detail: str

    def read(self) -> UInt8Array:
        """Never a map."""
        raise Error(self.detail)

    def fingerprint(self) -> bytes:
        """That there is none."""
        return b"missing"


def read_codes(path: Path, by_color: bool) -> npt.NDArray[np.int32]:
    """The value of each pixel of a mask's file, ``(H, W)``, or its colour as one number.

    Raises:
        Error: the file cannot be read, or is in colour and should not be.
    """
    with image_io.open_image(path) as image:
        if by_color:
            return encode_colors(np.asarray(image.convert("RGB")))
        if image.mode in ("RGB", "RGBA"):
            levels = np.asarray(image)[..., :3]
            if (levels != levels[..., :1]).any():
                raise Error(
                    f"{path} is in colour, and no class table gives the classes colours; put one beside the folders, "
                    "classes.txt with a line such as road 128 64 128 for each class"
                )
            return levels[..., 0].astype(np.int32)
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise Error(f"{path} has pixels of the kind {image.mode}; a mask has one whole number or colour a pixel")
        return np.asarray(image).astype(np.int32)


def decode_color(code: int) -> Colour:
    """The colour of a code."""
    return code >> 16, code >> 8 & 255, code & 255


def is_coloured(path: Path) -> bool:
    """Whether a mask's file is in colours that are no shades of grey."""
    with image_io.open_image(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            return False
        levels = np.asarray(image)[..., :3]
        return bool((levels != levels[..., :1]).any())


def read_mask_size(path: Path) -> tuple[int, int]:
    """Width and height of a mask's file.

    Raises:
        Error: it cannot be read.
    """
    with image_io.open_image(path) as image:
        return image.size


def resize_mask(mask: UInt8Array, width: int, height: int) -> UInt8Array:
    """A map in another size, each pixel that of its middle."""
    if mask.shape == (height, width):
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
