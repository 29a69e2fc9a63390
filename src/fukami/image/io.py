"""Safe reading of images.

Images are read upright, with 8 bits, in grayscale ("L") or color ("RGB"); errors name the file.
"""

import io
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from fukami.errors import Error, convert_memory_errors

UInt8Array = npt.NDArray[np.uint8]
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # pixels, the limit of JPEG; within MAX_PIXELS only strips of more than 43:1 are longer
MAX_ASPECT = 200  # to 1; panoramas reach 20:1, receipts and screenshots of web pages 50:1, sprite strips 100:1
MAX_SEGMENTS = 2000  # before the pixels of a JPEG; cameras write 10, with depth or thermal data a few hundred
MAX_SCANS = 100  # in a JPEG, the limit of libtiff; progressive ones have about 10
SCAN_END_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # end of the pixels of a JPEG scan
FORMATS = (  # decoded in this process, with the size in the header; common formats first
    "JPEG", "PNG", "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "PSD", "SGI", "SUN", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip
MAX_STRIP_VALUES = 2**20  # values converted at a time, to limit the memory for large images
GRAYSCALE_MODES = {"1", "L"}
WHITE = (255, 255, 255)
ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.generic]


def read_image(
    source: ImageSource,
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Read an image from a file, an array or a PIL image: upright, 8 bits, "L" or "RGB".

    EXIF rotation is applied, transparent pixels are blended with white, palettes and CMYK become RGB, 16-bit grayscale
    is scaled from 0..65535 to 0..255 (other integers and floats: see :func:`convert_array_to_image`), and only the
    first of several frames is read.

    Args:
        source: path, file content, PIL image, or array ``(H, W)`` or ``(H, W, 1 | 3 | 4)``.
        name: name of the file in errors; by default its path.
        max_pixels: larger files are rejected before they are decoded. So are files with a side of more than 65,535
            pixels, or an aspect ratio above 200.

    Raises:
        Error: the file is missing, not an image, unreadable or too large.
    """
    if isinstance(source, np.ndarray):
        with convert_memory_errors("the array given"):
            return convert_array_to_image(source)
    if isinstance(source, Image.Image):
        try:
            with convert_memory_errors("the input image"):
                return decode_image(source)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes lazily
            raise Error(f"the input image is unreadable ({error}); open it again") from error
    with open_image(source, name=name, max_pixels=max_pixels) as image:
        return decode_image(image)


@contextmanager
def open_image(
    source: str | os.PathLike[str] | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open an image file without decoding it, so that a JPEG can be decoded smaller; every failure is an Error."""
    name = name or ("the file given" if isinstance(source, bytes) else os.fspath(source))
    try:
        with convert_memory_errors(name), _open_file(source) as file:
            _check_jpeg(file, name)
            _check_icon(file, name)
            with _open_with_pillow(file) as image:
                check_size(*image.size, name, max_pixels)
                if isinstance(image, TiffImagePlugin.TiffImageFile):  # tiles are decoded as a whole
                    tile_width = image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 1)
                    tile_height = image.tag_v2.get(TiffImagePlugin.TILELENGTH, 1)
                    check_size(tile_width, tile_height, f"{name}, in a tile,", max_pixels)
                yield image
    except Error:
        raise
    except FileNotFoundError:
        raise Error(f"{name} does not exist; specify the path of an image") from None
    except IsADirectoryError:
        raise Error(f"{name} is a folder; specify the path of an image") from None
    except UnidentifiedImageError:
        is_empty = not source if isinstance(source, bytes) else os.path.getsize(source) == 0  # noqa: PTH202
        reason = "is empty" if is_empty else "is not an image in a known format"
        raise Error(f"{name} {reason}; use a PNG, JPEG or other image file") from None
    except Image.DecompressionBombError as error:
        raise Error(f"{name} is too large ({error}); make it smaller") from None
    except Exception as error:  # a decoder may fail in any way on a corrupted file
        raise Error(f"{name} is unreadable ({type(error).__name__}: {error}); get the file again") from error


def check_size(width: int, height: int, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Check that an image is not too large to be decoded and not too long for its width.

    A strip of 1×100,000,000 pixels would be within ``max_pixels``, but costs a codec 100 million rows.

    Raises:
        Error: more than ``max_pixels``, a side of more than 65,535 pixels, or one 200 times as long as the other.
    """
    message = f"{name} has {width}×{height} pixels"
    if width * height > max_pixels:
        raise Error(f"{message}, more than the limit of {max_pixels:,}; make it smaller")
    if max(width, height) > MAX_SIDE:
        raise Error(f"{message}, and the limit of a side is {MAX_SIDE:,}; make it smaller, or cut it into pieces")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Error(f"{message}, and the limit of the aspect ratio is {MAX_ASPECT}; cut it into pieces")


def convert_array_to_image(array: npt.NDArray[np.generic]) -> Image.Image:
    """Convert an array ``(H, W)`` or ``(H, W, 1 | 3 | 4)`` to an image.

    bool and uint8 are used as they are, uint16 as 0..65535. For other dtypes the maximum decides: floats up to 1 are
    0..1, values up to 255 are 0..255, values up to 65535 are 0..65535; others are scaled from their minimum to their
    maximum.

    Raises:
        Error: the shape is not supported, or values are not finite.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))):
        raise Error(f"an array of shape {array.shape} is not an image; expected (H, W) or (H, W, 1 | 3 | 4)")
    if array.dtype == np.uint8:
        return decode_image(Image.fromarray(array))
    rows = max(1, MAX_STRIP_VALUES * array.shape[0] // array.size)
    return decode_image(
        Image.fromarray(
            _convert_to_uint8(lambda: (array[start : start + rows] for start in range(0, len(array), rows)))
        )
    )


def resize_and_crop(image: Image.Image, *, channels: int, size: int) -> UInt8Array:
    """Resize the shorter side and crop the center to ``(channels, size, size)`` uint8; 1 grayscale, 3 RGB."""
    image = convert_mode(image, "L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1).copy()


def get_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an open image, 1 to 8; 1 if it is missing, invalid or unreadable."""
    try:
        with ignore_warnings():
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises errors of various types
        return 1
    return orientation if orientation in range(1, 9) else 1


def decode_image(image: Image.Image) -> Image.Image:
    """Decode an image: upright, 8 bits, transparency on white, "L" or "RGB"."""
    is_inverted = has_inverted_levels(image)
    image.load()
    if get_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(
            _convert_to_uint8(
                lambda: (
                    65535 - np.asarray(strip) if is_inverted else np.asarray(strip)
                    for _, strip in _split_into_strips(image)
                )
            )
        )
    if image.has_transparency_data:
        is_grayscale = image.mode in ("LA", "La", *GRAYSCALE_MODES)
        canvas = Image.new("L" if is_grayscale else "RGB", image.size)
        for top, strip in _split_into_strips(image):
            layers = convert_mode(strip, "LA" if strip.mode == "La" else strip.mode).convert("RGBA")
            background = Image.new("RGBA", layers.size, WHITE)
            canvas.paste(Image.alpha_composite(background, layers).convert(canvas.mode), (0, top))
        return canvas
    return convert_mode(image, "L" if image.mode in GRAYSCALE_MODES else "RGB")


def has_inverted_levels(image: Image.Image) -> bool:
    """Return whether white is 0 in an open TIFF of 16 bits, which Pillow inverts only with 8 bits."""
    if not (isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode.startswith("I;16")):
        return False
    return bool(image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0)


def _split_into_strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of an image, each with its first row."""
    rows = max(1, MAX_STRIP_VALUES // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode, or return it if it has the mode already."""
    return image if image.mode == mode else image.convert(mode)


def _convert_to_uint8(strips: Callable[[], Iterator[npt.NDArray[np.generic]]]) -> UInt8Array:
    """Scale values to 0..255 from the smallest of 0..1 (floats), 0..255 and 0..65535 that contains them.

    Values outside all of these are scaled from their minimum and maximum.

    Args:
        strips: function that returns an iterator over the rows of an array in strips.
    """
    low, high = np.inf, -np.inf
    for strip in strips():
        if strip.dtype == bool:
            return np.concatenate([part.astype(np.uint8) * np.uint8(255) for part in strips()])
        low, high = np.minimum(low, float(strip.min())), np.maximum(high, float(strip.max()))  # NaN propagates
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Error("the image has values that are not finite; expected numbers in 0..1, 0..255 or 0..65535")
    if low >= 0 and high <= 65535:
        is_16_bit = np.issubdtype(strip.dtype, np.uint16) or high > 255
        is_unit_range = np.issubdtype(strip.dtype, np.floating) and high <= 1
        low, high = 0.0, 65535.0 if is_16_bit else 1.0 if is_unit_range else 255.0
    factor = 255 / max(high - low, 1e-12)
    return np.concatenate([np.round((strip.astype(np.float64) - low) * factor).astype(np.uint8) for strip in strips()])


def _open_file(source: str | os.PathLike[str] | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source):  # noqa: PTH110, PTH112, PTH113
        raise Error(f"{os.fspath(source)} is not a regular file; specify the path of an image")  # opening a pipe waits
    return open(source, "rb")  # noqa: PTH123


def _open_with_pillow(file: IO[bytes]) -> Image.Image:
    """Open an image without decoding it; ``check_size`` replaces Pillow's warning about large images."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # more channels than Pillow has a mode for
    with ignore_warnings():
        return Image.open(file, formats=FORMATS)


class _WarningFilter:
    """Filter of the warnings of Pillow, which several threads may use at a time: they share the filters of Python."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0
        self.context = warnings.catch_warnings()

    def start(self) -> None:
        with self.lock:
            self.count += 1
            if self.count == 1:
                self.context = warnings.catch_warnings()
                self.context.__enter__()
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                warnings.simplefilter("ignore", UserWarning)  # corrupted metadata

    def stop(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                self.context.__exit__(None, None, None)


_warning_filter = _WarningFilter()


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Ignore warnings of Pillow about large images and corrupted metadata within the context."""
    _warning_filter.start()
    try:
        yield
    finally:
        _warning_filter.stop()


def _check_icon(file: IO[bytes], name: str) -> None:
    """Check the sizes of the images in an icon file, which Pillow decodes on opening."""
    if file.read(4) == b"\0\0\1\0":
        for entry in range(int.from_bytes(file.read(2), "little")):
            file.seek(6 + 16 * entry + 12)
            file.seek(int.from_bytes(file.read(4), "little"))
            head = file.read(24)
            png = head.startswith(b"\x89PNG")
            width, height = struct.unpack(">II", head[16:]) if png else struct.unpack("<ii", head[4:12])
            check_size(abs(width), abs(height), name)
    file.seek(0)


def _check_jpeg(file: IO[bytes], name: str) -> None:
    """Check that a JPEG is not a decompression bomb of many scans or segments, and rewind the file.

    A scan of ten bytes takes as long as the whole image: 1 MB of scans would take minutes to decode. Pillow joins EXIF
    segments one by one, in quadratic time.

    Raises:
        Error: the JPEG has more than 2,000 segments before the pixels, or more than 100 scans.
    """
    if file.read(2) == b"\xff\xd8":
        segments, scans = _count_jpeg_work(file)
        if segments > MAX_SEGMENTS or scans > MAX_SCANS:
            raise Error(
                f"{name} is a JPEG of more than {MAX_SCANS} scans or {MAX_SEGMENTS:,} segments, where up to 10 and 100 "
                "are usual; save it again"
            )
    file.seek(0)


def _count_jpeg_work(file: IO[bytes]) -> tuple[int, int]:
    """Count the segments before the first scan of a JPEG, and its scans.

    If the segments are not contiguous, decoders search for the next one in different ways. All possible markers are
    then counted, which gives upper bounds.
    """
    progressive, components = False, 0
    for count in range(MAX_SEGMENTS):
        head = file.read(4)
        marker = head[1] if len(head) == 4 and head[0] == 0xFF else 0
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:
            file.seek(0)
            content = file.read()
            return content.count(b"\xff\xe1"), content.count(b"\xff\xda")
        body = file.read(max(0, int.from_bytes(head[2:]) - 2))
        if marker == 0xDA:
            is_single_scan = not progressive and len(body) > 0 and body[0] == components
            return count, 1 if is_single_scan else 1 + _count_further_scans(file.read())
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) > 5:
            progressive, components = marker & 3 == 2, body[5]
    return MAX_SEGMENTS + 1, 0


def _count_further_scans(content: bytes) -> int:
    """Count the scans after the head of the first scan of a JPEG."""
    scans = position = 0
    for _ in range(MAX_SEGMENTS):
        match = SCAN_END_MARKER.search(content, position)
        if match is None or match[0] == b"\xff\xd9":
            return scans
        position = match.end()
        if match[0] != b"\xff\x01":  # the only marker without a length
            position += int.from_bytes(content[position : position + 2])
        scans += match[0] == b"\xff\xda"
    return MAX_SEGMENTS


def get_image_suffixes() -> set[str]:
    """Return the suffixes of the image files that are read."""
    formats = {*FORMATS, "MPO"}  # Pillow opens an MPO file as a JPEG
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in formats}
