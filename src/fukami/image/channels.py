"""Images with any number of channels and more than 8 bits, which Pillow has no mode for."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fukami.errors import Error, convert_memory_errors
from fukami.image import io as image_io
from fukami.image import tiff

PILLOW_CHANNELS = (1, 3)  # channels of images that Pillow reads: "L" and "RGB"
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601), as in Pillow and torchvision
Levels: TypeAlias = npt.NDArray[Any]  # uint8, or float32 with the same white


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """Decoded image whose pixels are an array.

    Args:
        levels: ``(H, W, C)``: uint8, or float32 with the same white, 255, and levels between the integers.
    """

    levels: Levels

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.levels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.levels.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    def map_channels(self, transform: Callable[[Image.Image], Image.Image]) -> "ArrayImage":
        """Apply a function to each channel, an image of mode "L" or "F"."""
        planes = [transform(Image.fromarray(plane)) for plane in np.ascontiguousarray(self.levels.transpose(2, 0, 1))]
        return ArrayImage(np.stack([np.asarray(plane) for plane in planes], 2))

    def build_preview(self) -> Image.Image:
        """Build an image of 8 bits to look at: the first three channels as RGB, or only the first one."""
        levels = round_levels(self.levels[..., :3] if self.levels.shape[2] >= 3 else self.levels[..., 0])
        return Image.fromarray(np.ascontiguousarray(levels))


DecodedImage: TypeAlias = Image.Image | ArrayImage
ChannelSource: TypeAlias = image_io.ImageSource | ArrayImage


def build_preview(image: DecodedImage) -> Image.Image:
    """Return an image of 8 bits, "L" or "RGB", to look at."""
    return image.build_preview() if isinstance(image, ArrayImage) else image


def round_levels(levels: Levels) -> npt.NDArray[np.uint8]:
    """Round levels to 0..255."""
    return levels if levels.dtype == np.uint8 else levels.round().clip(0, 255).astype(np.uint8)


def read_channels(
    source: ChannelSource,
    channels: int,
    *,
    name: str = "",
    max_pixels: int = image_io.MAX_PIXELS,
    prepare: Callable[[Image.Image], object] | None = None,
) -> DecodedImage:
    """Read an image with a number of channels, upright, at its own depth.

    An image of 8 bits with 1 or 3 channels is read as by :func:`fukami.image.io.read_image`; all others are arrays.
    White is 255 in uint8, 65535 in samples of 16 bits and 1.0 in floating point. With 1 or 3 channels, color, grayscale
    and transparency are converted, and arrays of other dtypes than uint16 are scaled as by ``read_image``.

    Args:
        source: as for ``read_image``; an array may have ``channels`` channels, ``(H, W, channels)``.
        channels: number of channels; 0: those of the file.
        name, max_pixels: as for ``read_image``.
        prepare: function of an open file that Pillow will decode, such as to a smaller size.

    Raises:
        Error: as for ``read_image``; the image has another number of channels; or tifffile is needed and not installed.
    """
    if isinstance(source, ArrayImage):
        return ArrayImage(_match_channels(source.levels, channels, False, name or "the input image"))
    if isinstance(source, np.ndarray):
        with convert_memory_errors("the array given"):
            if channels in PILLOW_CHANNELS and source.dtype != np.uint16:
                return image_io.read_image(source)
            return _convert_array(source, channels)
    if isinstance(source, Image.Image):
        try:
            with convert_memory_errors("the input image"):
                return _decode_pillow(source, channels, name or "the input image")
        except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes lazily
            raise Error(f"the input image is unreadable ({error}); open it again") from error
    name = name or ("the file given" if isinstance(source, bytes) else os.fspath(source))
    is_open = False
    try:
        with image_io.open_image(source, name=name, max_pixels=max_pixels) as image:
            is_open = True
            if not _needs_tifffile(image, channels):
                if prepare is not None:
                    prepare(image)
                return _decode_pillow(image, channels, name, source)
    except Error:
        if is_open or not tiff.is_tiff(source):
            raise
    with convert_memory_errors(name):
        samples, header = tiff.read_tiff(source, name, max_pixels)
        levels = _convert_levels(samples, name)
        if header.is_premultiplied and channels in PILLOW_CHANNELS:
            levels = _unmultiply(levels)
        levels = _match_channels(levels, channels, header.has_alpha, name)
        return ArrayImage(np.ascontiguousarray(orient_pixels(levels, header.orientation)))


def read_depth(source: str | os.PathLike[str] | bytes, name: str = "") -> tuple[int, bool]:
    """Read from the header of a file its number of channels and whether they have more than 8 bits.

    Raises:
        Error: the header cannot be read.
    """
    try:
        with image_io.open_image(source, name=name) as image:
            if not _needs_tifffile(image, 0):
                samples = image.tag_v2.get(277, 1) if image.format == "TIFF" else 1  # type: ignore[attr-defined]
                bands = 3 if image.mode in ("P", "CMYK") else max(len(image.getbands()), samples)
                return bands, _has_many_levels(image)
    except Error:
        if not tiff.is_tiff(source):
            raise
    header = tiff.read_tiff_header(source, name)
    return header.channels, header.dtype.itemsize > 1


def orient_pixels(pixels: Levels, orientation: int) -> Levels:
    """Rotate and flip stored pixels ``(H, W, C)`` of an EXIF orientation, 1 to 8, to the upright image."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _needs_tifffile(image: Image.Image, channels: int) -> bool:
    """Return whether Pillow's modes cannot hold the samples of an open TIFF."""
    if image.format != "TIFF":
        return False
    samples = image.tag_v2.get(277, 1)  # type: ignore[attr-defined]
    bits = max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    if bits > 8:
        return samples > 1 or channels not in (0, *PILLOW_CHANNELS)
    return channels not in (0, *PILLOW_CHANNELS) and len(image.getbands()) != channels


def _has_many_levels(image: Image.Image) -> bool:
    """Return whether an open image has more than 8 bits, in a mode or file whose samples can be kept."""
    return image.mode.startswith("I;16") or image.mode == "F" or _is_int16(image) or _is_deep_png(image)


def _is_int16(image: Image.Image) -> bool:
    """Return whether an open image is a TIFF of signed 16-bit integers, for which Pillow has only a mode of 32 bits."""
    return image.format == "TIFF" and image.mode == "I" and image.tag_v2.get(258) == (16,)  # type: ignore[attr-defined]


def _is_deep_png(image: Image.Image) -> bool:
    """Return whether an open file is a PNG of 16 bits in color, or with alpha, of which Pillow drops 8 bits."""
    return image.format == "PNG" and any(str(tile.args).endswith(";16B") for tile in getattr(image, "tile", ()))


def _decode_pillow(
    image: Image.Image, channels: int, name: str, source: str | os.PathLike[str] | bytes = b""
) -> DecodedImage:
    """Decode an image that Pillow has opened."""
    is_deep_png = source != b"" and _is_deep_png(image) and image.mode != "I;16"
    if channels in (0, *PILLOW_CHANNELS) and not (is_deep_png or _has_many_levels(image)):
        return image_io.decode_image(image)
    orientation = image_io.get_orientation(image)
    if is_deep_png:
        return ArrayImage(_match_channels(orient_pixels(_read_png(source), orientation), channels, True, name))
    is_int16, is_inverted = _is_int16(image), image_io.has_inverted_levels(image)
    image.load()
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    has_alpha = image.has_transparency_data and not image.mode.startswith("I;16")  # a transparent value is kept
    if has_alpha:
        image = image_io.convert_mode(image, "LA" if image.mode in ("L", "LA", "La", "1") else "RGBA")
    elif image.mode in ("1", "P", "CMYK", "YCbCr", "LAB", "HSV"):  # no channels of data
        image = image.convert("L" if image.mode == "1" else "RGB")
    values = np.asarray(image).astype(np.int16) if is_int16 else np.asarray(image)
    values = 65535 - values if is_inverted else values
    levels = _convert_levels(values.reshape(*values.shape[:2], -1), name)
    return ArrayImage(_match_channels(levels, channels, has_alpha, name))


def _read_png(source: str | os.PathLike[str] | bytes) -> Levels:
    """Read a PNG of 16 bits in color."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    pixels = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return _convert_levels(pixels.permute(1, 2, 0).numpy(), "")


def _convert_array(array: npt.NDArray[np.generic], channels: int) -> ArrayImage:
    """Convert an array ``(H, W)`` or ``(H, W, C)``."""
    values = array[..., None] if array.ndim == 2 else array
    if values.ndim != 3 or not values.size:
        raise Error(f"an array of shape {array.shape} is not an image; expected (H, W) or (H, W, {channels or 'C'})")
    image_io.check_size(values.shape[1], values.shape[0], "the array given")
    has_alpha = channels in PILLOW_CHANNELS and values.shape[2] in (2, 4)
    return ArrayImage(_match_channels(_convert_levels(values, "the array given"), channels, has_alpha, "the array"))


def _convert_levels(values: npt.NDArray[np.generic], name: str) -> Levels:
    """Convert samples to levels: uint8 as they are, others to float32 with white at 255.

    Raises:
        Error: the samples are of another type, or not finite.
    """
    if values.dtype == np.uint8:
        return values.view(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2:
        levels = values.astype(np.float32)
        levels /= 257  # 65535 / 255
        return levels
    if values.dtype.kind == "f":
        levels = values.astype(np.float32)
        levels *= 255
        if not np.isfinite(levels).all():
            raise Error(f"{name} has values that are not finite; replace them, for example with 0")
        return levels
    raise Error(f"{name} has samples of type {values.dtype}; save them as uint8, uint16 or float32")


def _unmultiply(levels: Levels) -> Levels:
    """Divide color by its transparency, the last channel, which it is multiplied by (associated alpha)."""
    levels = levels.astype(np.float32)
    alpha = levels[..., -1:]
    levels[..., :-1] *= 255 / np.maximum(alpha, 1e-3)
    levels[..., :-1][(alpha == 0).repeat(levels.shape[2] - 1, 2)] = 0
    return levels


def _match_channels(levels: Levels, channels: int, has_alpha: bool, name: str) -> Levels:
    """Return levels with the number of channels: conversions are those between grayscale, color and transparency.

    Raises:
        Error: the image has another number of channels.
    """
    found = levels.shape[2]
    if channels in PILLOW_CHANNELS:
        if has_alpha and found in (2, 4):
            opacity = levels[..., -1:].astype(np.float32) / 255
            levels = levels[..., :-1] * opacity + 255 * (1 - opacity)
        if levels.shape[2] == 3 and channels == 1:
            return (levels @ np.array(LUMA, np.float32))[..., None]
        if levels.shape[2] == 1 and channels == 3:
            return levels.repeat(3, 2)
    if channels not in (0, levels.shape[2]):
        raise Error(
            f"{name} has {found} channel{'s' * (found != 1)}, and the network expects {channels}; use images with "
            f"{channels}, or train with --channels {found}"
        )
    return levels
