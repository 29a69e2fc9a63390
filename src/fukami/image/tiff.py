"""TIFF files that Pillow cannot read: any number of channels, of 8 or 16 bits or floating point, by tifffile."""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.errors import Error, convert_memory_errors, require_extra
from fukami.image.io import MAX_PIXELS, check_size

MAX_CHANNELS = 64
MAX_SEGMENTS = 2**20  # strips and tiles of a file
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
COMPRESSIONS = (1, 5, 8, 32946, 50000)  # none, LZW, deflate (two codes), Zstandard: the size of their output is bounded
PREDICTORS = (1, 2, 3)
ASSOCIATED_ALPHA = 1
ALPHA_SAMPLES = (ASSOCIATED_ALPHA, 2)  # extra samples that are an alpha channel, associated or not
MIN_IS_WHITE = 0  # photometric interpretation
DTYPES = ("bool", "uint8", "uint16", "int16", "float16", "float32", "float64")
MAX_PIXEL_BYTES = 12  # of the limit of pixels: three channels of float32


class TiffHeader(NamedTuple):
    """Header of a TIFF: stored width and height, channels, data type of the samples, and orientation (1: upright).

    The last channel may be transparency, and the others may be multiplied by it.
    """

    width: int
    height: int
    channels: int
    dtype: np.dtype[Any]
    orientation: int
    has_alpha: bool
    is_premultiplied: bool


def is_tiff(source: str | os.PathLike[str] | bytes) -> bool:
    """Return whether a file, or its content, starts as a TIFF does."""
    if isinstance(source, bytes):
        return source.startswith(SIGNATURES)
    try:
        with Path(source).open("rb") as file:
            return file.read(4) in SIGNATURES
    except (OSError, ValueError):  # the latter for a null byte in a path
        return False


def read_tiff_header(source: str | os.PathLike[str] | bytes, name: str = "") -> TiffHeader:
    """Read the header of a TIFF without decoding it.

    Raises:
        Error: the file is corrupted, too large or of an unsupported kind, or tifffile is not installed.
    """
    with _open_pages(source, name, MAX_PIXELS) as (_, header):
        return header


def read_tiff(
    source: str | os.PathLike[str] | bytes, name: str = "", max_pixels: int = MAX_PIXELS
) -> tuple[npt.NDArray[np.generic], TiffHeader]:
    """Read the samples of a TIFF ``(H, W, C)`` as they are stored, not yet upright, and its header.

    The channels are the samples of a pixel or, if there is one, the pages of the same size.

    Raises:
        Error: as for :func:`read_tiff_header`.
    """
    with _open_pages(source, name, max_pixels) as (pages, header):
        planes = []
        for page in pages:
            values = page.asarray(maxworkers=1).reshape(page.shape)
            planes.append(np.moveaxis(values, 0, -1) if page.axes == "SYX" else values.reshape(*page.shape[:2], -1))
        samples = planes[0] if len(planes) == 1 else np.concatenate(planes, 2)
        if pages[0].photometric == MIN_IS_WHITE and np.issubdtype(header.dtype, np.integer):
            samples = np.iinfo(header.dtype).max - samples
        return samples, header


@contextmanager
def _open_pages(
    source: str | os.PathLike[str] | bytes, name: str, max_pixels: int
) -> Iterator[tuple[list[Any], TiffHeader]]:
    """Open the pages that are the channels of the image; every failure is an Error."""
    name = name or ("the file given" if isinstance(source, bytes) else os.fspath(source))
    with require_extra("tiff", f"{name}, a TIFF of this kind,"):
        import imagecodecs  # noqa: F401  tifffile's own deflate has no bound on the size of its output
        import tifffile
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is corrupted is an error here
    try:
        with (
            convert_memory_errors(name),
            tifffile.TiffFile(
                io.BytesIO(source) if isinstance(source, bytes) else source,
                is_lsm=False, is_ndpi=False, is_scanimage=False,
            ) as file,
        ):  # fmt: skip
            pages = list(_iterate_channel_pages(file.pages))
            header = _build_header(pages)
            check_size(header.width, header.height, name, max_pixels)
            _check_pages(pages, header, file.filehandle.size, name, max_pixels)
            yield pages, header
    except Error:
        raise
    except Exception as error:  # a decoder may fail in any way on a corrupted file
        raise Error(f"{name} is unreadable ({type(error).__name__}: {error!s:.200}); get the file again") from error


def _iterate_channel_pages(pages: Any) -> Iterator[Any]:
    """Yield the first page and, if it has one sample per pixel, the following ones of the same kind."""
    first = pages[0]
    yield first
    for index in range(1, MAX_CHANNELS + 1 if first.samplesperpixel == 1 else 1):
        try:
            page = pages[index]
        except IndexError:
            return
        if (page.shape, page.dtype, page.samplesperpixel) != (first.shape, first.dtype, 1):
            return
        yield page


def _build_header(pages: list[Any]) -> TiffHeader:
    first = pages[0]
    orientation = first.tags.valueof(274, 1)
    has_alpha = first.samplesperpixel in (2, 4) and first.extrasamples[:1] in [(kind,) for kind in ALPHA_SAMPLES]
    return TiffHeader(
        first.imagewidth,
        first.imagelength,
        first.samplesperpixel * len(pages),
        first.dtype,
        orientation if orientation in range(1, 9) else 1,
        has_alpha,
        has_alpha and first.extrasamples[0] == ASSOCIATED_ALPHA,
    )


def _check_pages(pages: list[Any], header: TiffHeader, file_size: int, name: str, max_pixels: int) -> None:
    """Check that decoding takes no more memory and time than an image of this size does.

    Raises:
        Error: the file exceeds a limit, or is of an unsupported kind.
    """
    if header.channels > MAX_CHANNELS:
        raise Error(f"{name} has more than {MAX_CHANNELS} channels or pages; keep those that are needed")
    if header.dtype not in DTYPES:
        kind = "an unsupported type" if header.dtype is None else f"type {header.dtype}"
        raise Error(f"{name} has samples of {kind}; save them as uint8, uint16 or float32")
    num_values = header.width * header.height * header.channels
    num_bytes = num_values * header.dtype.itemsize
    if num_values > 3 * max_pixels or num_bytes > MAX_PIXEL_BYTES * max_pixels:
        raise Error(
            f"{name} has {header.width}×{header.height} pixels of {header.channels} channels, {num_values:,} values of "
            f"{header.dtype}, more than the limit of {3 * max_pixels:,} values and {MAX_PIXEL_BYTES * max_pixels:,} "
            "bytes; cut it into pieces"
        )
    for page in pages:
        if page.compression not in COMPRESSIONS or page.predictor not in PREDICTORS or page.imagedepth != 1:
            raise Error(
                f"{name} is a TIFF of an unsupported kind (compression {int(page.compression)}, predictor "
                f"{int(page.predictor)}); save it with deflate, LZW or no compression"
            )
        if page.is_tiled:
            check_size(page.tilewidth, page.tilelength, f"{name}, in a tile,", max_pixels)
        if len(page.dataoffsets) > MAX_SEGMENTS or sum(page.databytecounts) > file_size:
            raise Error(f"{name} has strips or tiles that exceed the file; get the file again")
