"""Pictures: read any of them safely, bring them to a size, draw answers.

What is read comes back upright, in 8 bits, grey ("L") or colour ("RGB"), or is refused by name.
"""

import functools
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from fukami.errors import Error

Bytes = npt.NDArray[np.uint8]
MAX_PIXELS = 100_000_000
PROGRAMS = {"EPS", "WMF"}  # formats that are drawn by running something
USUAL = {"JPEG", "PNG"}
GREY = {"1", "L"}
SHOWN = 280  # height in pixels of a drawn answer
WHITE = (255, 255, 255)


def read(
    source: str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any],
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The picture in a file, an array or a PIL picture, upright, 8 bits, "L" or "RGB".

    EXIF rotation is applied, transparency lies on white, palettes and CMYK become RGB, 16-bit grey is scaled to 8 bits
    (0..65535 to 0..255; other integers and floats: see :func:`from_array`), and of several frames the first is taken.

    Args:
        source: a path, what a file holds, a PIL picture, or an array ``(H, W)`` or ``(H, W, 1 | 3 | 4)``.
        name: what errors call the file; by default its path.
        max_pixels: larger files are refused before they are decoded.

    Raises:
        Error: the file is missing, no picture, truncated, damaged or too large.
    """
    if isinstance(source, np.ndarray):
        return from_array(source)
    if isinstance(source, Image.Image):
        try:
            return upright(source)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes what it opened only when it is asked to
            raise Error(f"the picture given is damaged or incomplete ({error}); open it again") from error
    with opened(source, name=name, max_pixels=max_pixels) as picture:
        return upright(picture)


@contextmanager
def opened(
    source: str | os.PathLike[str] | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """The picture in a file, not decoded yet, so that a JPEG can be decoded smaller; what goes wrong is an Error."""
    name = name or ("the file given" if isinstance(source, bytes) else os.fspath(source))
    try:
        with _file(source) as file, _opened(file) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise Error(
                    f"{name} has {width}×{height} pixels, more than the {max_pixels:,} that are read; make it smaller"
                )
            yield picture
    except Error:
        raise
    except FileNotFoundError:
        raise Error(f"{name} does not exist; give the path of a picture") from None
    except IsADirectoryError:
        raise Error(f"{name} is a folder; give the path of a picture") from None
    except UnidentifiedImageError:
        empty = not source if isinstance(source, bytes) else os.path.getsize(source) == 0  # noqa: PTH202
        what = "is empty" if empty else "is not a picture in a known format"
        raise Error(f"{name} {what}; give a PNG, JPEG or other picture file") from None
    except Image.DecompressionBombError as error:
        raise Error(f"{name} is too large ({error}); make it smaller") from None
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise Error(f"{name} is damaged or incomplete ({type(error).__name__}: {error}); get the file again") from error


def from_array(array: npt.NDArray[Any]) -> Image.Image:
    """The picture in an array ``(H, W)`` or ``(H, W, 1 | 3 | 4)``.

    bool and uint8 are taken as they are, uint16 as 0..65535; for other types the values tell: floats up to 1 are 0..1,
    up to 255 is 0..255, up to 65535 is 0..65535, and anything else is stretched from its least to its greatest.

    Raises:
        Error: another shape, or values that are not finite.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))):
        raise Error(f"an array of shape {array.shape} is no picture; expected (H, W) or (H, W, 1 | 3 | 4)")
    return upright(Image.fromarray(_eight_bits(array)))


def fit(picture: Image.Image, *, channels: int, size: int) -> Bytes:
    """The picture as ``(channels, size, size)`` uint8: shortest side resized, centre cropped; 1 channel grey, 3 RGB."""
    picture = as_mode(picture, "L" if channels == 1 else "RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(size, size, channels).transpose(2, 0, 1).copy()


def draw_answer(picture: Image.Image, seen: Bytes, caption: str) -> Image.Image:
    """The picture beside what the network saw of it, ``(C, H, W)`` uint8, with a caption below."""
    saw = Image.fromarray(seen.transpose(1, 2, 0).squeeze())
    left, right = (_as_high(each.convert("RGB")) for each in (picture, saw))
    margin, line = 10, 30
    width = left.width + right.width + 3 * margin
    page = Image.new("RGB", (width, SHOWN + 2 * margin + line), WHITE)
    page.paste(left, (margin, margin))
    page.paste(right, (left.width + 2 * margin, margin))
    draw = ImageDraw.Draw(page)
    draw.text((margin, SHOWN + 1.5 * margin), _drawable(caption), (34, 34, 34), ImageFont.load_default(20))
    return page


def _as_high(picture: Image.Image) -> Image.Image:
    """The picture ``SHOWN`` pixels high, at most twice as wide; small ones show their pixels."""
    width = min(max(1, round(picture.width * SHOWN / picture.height)), 2 * SHOWN)
    enlarged = picture.height < SHOWN / 2
    return picture.resize((width, SHOWN), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _drawable(text: str) -> str:
    """The text in signs that Pillow's own font has; the others by their code, since no font can be counted on."""
    return text.encode("latin-1", "backslashreplace").decode("latin-1")


def upright(picture: Image.Image) -> Image.Image:
    """The picture decoded: upright, 8 bits, transparency on white, "L" or "RGB"."""
    picture.load()
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        ground = Image.new("RGBA", layers.size, WHITE)
        grey = picture.mode in ("LA", "La", *GREY)
        return Image.alpha_composite(ground, layers).convert("L" if grey else "RGB")
    return as_mode(picture, "L" if picture.mode in GREY else "RGB")


def as_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode, itself where it is in that one already."""
    return picture if picture.mode == mode else picture.convert(mode)


def _eight_bits(array: npt.NDArray[Any]) -> Bytes:
    """0..255 from the least of 0..1 (floats), 0..255 and 0..65535 that holds all values, or else from their range."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise Error("the picture has values that are not finite; expected numbers in 0..1, 0..255 or 0..65535")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        deep = np.issubdtype(array.dtype, np.uint16) or high > 255
        unit = np.issubdtype(array.dtype, np.floating) and high <= 1
        low, high = 0.0, 65535.0 if deep else 1.0 if unit else 255.0
    return np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _file(source: str | os.PathLike[str] | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: PTH123


def _opened(file: IO[bytes]) -> Image.Image:
    """The picture in a file, not yet decoded; our own bound takes the place of Pillow's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=_formats())


@functools.cache
def _formats() -> list[str]:
    """Every format that Pillow reads without running another program; the usual ones are tried first."""
    Image.init()
    return sorted((name for name in Image.ID if name not in PROGRAMS), key=lambda name: name not in USUAL)
