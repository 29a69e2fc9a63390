"""Image input and output: safe reading, resizing, and drawing of predictions.

Images are read upright, with 8 bits, in grayscale ("L") or color ("RGB"); errors name the file.
"""

import colorsys
import contextlib
import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, TiffImagePlugin, UnidentifiedImageError

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
DISPLAY_HEIGHT = 280  # pixels, of a drawn prediction
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
MIN_LABEL_SIDE = 480  # pixels; images with a shorter longer side are enlarged for labels
MAX_LABELED_BOXES = 40  # boxes with labels per image, those with the highest scores
CITYSCAPES_COLORS = {  # established class colors of Cityscapes (Cordts et al. 2016)
    "road": (128, 64, 128), "pavement": (244, 35, 232), "sidewalk": (244, 35, 232), "building": (70, 70, 70),
    "wall": (102, 102, 156), "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0), "sign": (220, 220, 0), "vegetation": (107, 142, 35), "tree": (107, 142, 35),
    "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60), "pedestrian": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32), "bicyclist": (119, 11, 32), "background": (0, 0, 0),
}  # fmt: skip
JAPANESE_FONTS = (  # font files of common systems
    "NotoSansCJK-Regular.ttc", "NotoSansJP-Regular.otf", "ipaexg.ttf", "ipag.ttf", "YuGothM.ttc", "meiryo.ttc",
    "msgothic.ttc", "ヒラギノ角ゴシック W3.ttc",
)  # fmt: skip
FALLBACK_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "Arial Unicode.ttf")
OVERLAY_ALPHA = 0.55  # opacity of the class color over an image
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[float, float, float, float]  # left, top, right, bottom
ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.generic]


class LabeledBox(TypedDict):
    """Predicted bounding box: left, top, right and bottom in pixels of the image."""

    label: str
    score: float
    box: Sequence[float]


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


def draw_prediction(image: Image.Image, model_input: UInt8Array, caption: str) -> Image.Image:
    """Draw an image next to the network's input ``(C, H, W)`` uint8, with a caption below."""
    input_image = Image.fromarray(model_input.transpose(1, 2, 0).squeeze())
    left, right = (_resize_for_display(panel.convert("RGB")) for panel in (image, input_image))
    margin, line = 10, 30
    width = left.width + right.width + 3 * margin
    canvas = Image.new("RGB", (width, DISPLAY_HEIGHT + 2 * margin + line), WHITE)
    canvas.paste(left, (margin, margin))
    canvas.paste(right, (left.width + 2 * margin, margin))
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, DISPLAY_HEIGHT + 1.5 * margin), _escape_text(caption), (34, 34, 34), ImageFont.load_default(20))
    return canvas


def draw_boxes(image: Image.Image, boxes: Sequence[LabeledBox], labels: Sequence[str]) -> Image.Image:
    """Draw bounding boxes in class colors with label and score, the highest score on top.

    Labels neither overlap nor leave the image; a label without room is omitted, as are those after the 40 highest
    scores. Line width and font size scale with the image; a small image is enlarged.

    Args:
        image: upright image.
        boxes: predicted boxes.
        labels: class names, whose order determines the colors.
    """
    longer_side = max(image.size)
    factor = -(-MIN_LABEL_SIDE // longer_side) if longer_side < MIN_LABEL_SIDE else 1
    size = (image.width * factor, image.height * factor)
    resampling = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    canvas = image.convert("RGB").resize(size, resampling)
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(size) / 300))
    font_size = max(14, round(max(size) / 45))
    font = ImageFont.load_default(font_size)
    ranked = sorted(boxes, key=lambda box: -box["score"])
    class_indices = {label: index for index, label in enumerate(labels)}
    colors = [get_class_color(class_indices.get(box["label"], len(labels))) for box in ranked]
    outlines = [_compute_outline(box["box"], factor, line, size) for box in ranked]
    for outline, color in zip(reversed(outlines), reversed(colors), strict=True):
        draw.rectangle(_expand_box(outline, 1, size), outline=choose_text_color(color), width=line + 2)
        draw.rectangle(outline, outline=color, width=line)
    texts = [
        _truncate_label(_escape_text(box["label"]), f" {box['score']:.2f}", font, 0.6 * size[0])
        for box in ranked[:MAX_LABELED_BOXES]
    ]
    pad = font_size // 5
    sizes = [(font.getlength(text) + 2 * pad, 1.25 * font_size + pad) for text in texts]
    for label_box, text, color in zip(
        place_labels(outlines[:MAX_LABELED_BOXES], sizes, size), texts, colors, strict=False
    ):
        if label_box:
            draw.rounded_rectangle(label_box, radius=pad, fill=color)
            draw.text((label_box[0] + pad, label_box[1] + pad / 2), text, choose_text_color(color), font)
    return canvas


def get_class_color(class_index: int) -> tuple[int, int, int]:
    """Return a fixed color for a class, far from those of the classes before it."""
    saturation, value = ((0.85, 0.95), (0.6, 1.0), (0.95, 0.7))[class_index // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.02 + class_index * 0.618034) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def get_class_colors(labels: Sequence[str]) -> list[Color]:
    """Return the color of each class: that of Cityscapes, or one far from those before it."""
    return [CITYSCAPES_COLORS.get(label, get_class_color(index)) for index, label in enumerate(labels)]


def overlay_mask(image: Image.Image, mask: UInt8Array, colors: Sequence[Color]) -> Image.Image:
    """Overlay a segmentation mask ``(H, W)`` in class colors; black, as of the background, is transparent.

    A light line separates the classes.
    """
    tints = np.array(colors, np.float32)[mask]
    alpha = np.where(np.array(colors).any(1), OVERLAY_ALPHA, 0.0).astype(np.float32)[mask][..., None]
    drawn = np.asarray(convert_mode(image, "RGB")) * (1 - alpha) + tints * alpha
    edge = np.zeros(mask.shape, bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    drawn[edge] = 0.5 * drawn[edge] + 0.5 * 255
    return Image.fromarray(drawn.round().astype(np.uint8))


def draw_legend(
    image: Image.Image, entries: Sequence[tuple[str, Color]], column_labels: Sequence[str], max_entries: int
) -> Image.Image:
    """Draw a legend of names and colors below an image; a small image is enlarged.

    Args:
        image: upright image.
        entries: names and colors; those after ``max_entries`` are omitted.
        column_labels: names that set the column width, so that all frames of a video have the same layout.
        max_entries: number of entries that the legend has room for.
    """
    factor = -(-MIN_LABEL_SIDE // max(image.size)) if max(image.size) < MIN_LABEL_SIDE else 1
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)
    font_size = max(14, round(max(image.size) / 45))
    font = ImageFont.load_default(font_size)
    pad, row = font_size // 2, round(1.6 * font_size)
    column_width = max(font.getlength(_escape_text(name)) for name in column_labels) + font_size + 4 * pad
    columns = min(max(1, int((image.width - pad) / column_width)), max_entries)
    column_pitch = (image.width - pad) // columns
    canvas = Image.new("RGB", (image.width, image.height + -(-max_entries // columns) * row + pad), WHITE)
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (name, color) in enumerate(entries[:max_entries]):
        left, top = pad + index % columns * column_pitch, image.height + pad + index // columns * row
        text = _truncate_label(_escape_text(name), "", font, column_pitch - font_size - 2 * pad)
        draw.rectangle((left, top, left + font_size, top + font_size), fill=color, outline=(120, 120, 120))
        draw.text((left + font_size + pad, top - font_size // 8), text, (34, 34, 34), font)
    return canvas


def draw_caption(image: Image.Image, caption: str) -> Image.Image:
    """Draw a wrapped caption below an image; a small image is enlarged."""
    factor = -(-MIN_LABEL_SIDE // max(image.size)) if max(image.size) < MIN_LABEL_SIDE else 1
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)
    font_size = max(16, round(max(image.size) / 28))
    caption, font = _select_font(caption, font_size)
    pad = font_size // 2
    lines = [""]
    for piece in re.findall(r"\S+\s*", caption) if " " in caption else caption:
        if lines[-1] and font.getlength(lines[-1] + piece) > image.width - 2 * pad:
            lines.append("")
        lines[-1] += piece
    canvas = Image.new("RGB", (image.width, image.height + round(1.4 * font_size * len(lines)) + 2 * pad), WHITE)
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        draw.text((pad, image.height + pad + round(1.4 * font_size * index)), line, (34, 34, 34), font)
    return canvas


def apply_palette(mask: UInt8Array, colors: Sequence[Color]) -> Image.Image:
    """Convert a mask ``(H, W)`` to a palette image with these colors."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette([level for color in colors for level in color])
    return image


def place_labels(
    boxes: Sequence[Box], label_sizes: Sequence[tuple[float, float]], image_size: tuple[int, int]
) -> list[Box | None]:
    """Compute a position in the image for the label of each box; None if there is no room.

    Boxes are processed in order. The candidates are above the box, inside its upper edge, below it and inside its lower
    edge, aligned to its left side, then to its right side, and then outside to the right and left.
    """
    occupied: list[Box] = []
    positions: list[Box | None] = []
    for (left, top, right, bottom), (width, height) in zip(boxes, label_sizes, strict=True):
        rows = (top - height, top, bottom, bottom - height)
        corners = [(x, y) for x in (left, right - width) for y in rows]
        corners += [(x, y) for x in (right, left - width) for y in (top, bottom - height)]
        clamped = ((min(max(x, 0), image_size[0] - width), y) for x, y in corners)
        free = (
            (x, y, x + width, y + height)
            for x, y in clamped
            if x >= 0 and 0 <= y <= image_size[1] - height
            and not any(x < box[2] and box[0] < x + width and y < box[3] and box[1] < y + height for box in occupied)
        )  # fmt: skip
        position = next(free, None)
        positions.append(position)
        occupied += [position] if position else []
    return positions


def _compute_outline(box: Sequence[float], factor: int, line: int, size: tuple[int, int]) -> Box:
    """Compute the outer rectangle of a box's outline, centered on its edge and clipped to the image."""
    left, top, right, bottom = (round(factor * edge) for edge in box)
    return _expand_box((left, top, max(left, right - 1), max(top, bottom - 1)), line // 2, size)


def _expand_box(box: Box, by: int, size: tuple[int, int]) -> Box:
    """Expand a box on every side, clipped to the image."""
    left, top, right, bottom = box
    wide, high = size[0] - 1, size[1] - 1
    return (min(max(left - by, 0), wide), min(max(top - by, 0), high),
            min(max(right + by, 0), wide), min(max(bottom + by, 0), high))  # fmt: skip


def _truncate_label(label: str, score: str, font: Font, width: float) -> str:
    """Return label and score in at most ``width`` pixels; a longer label ends in dots."""
    text = label + score
    while font.getlength(text) > width and label:
        label = label[:-1]
        text = f"{label.rstrip()}...{score}"
    return text


def choose_text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever has more contrast with the background (WCAG 2, relative luminance)."""
    linear = [((channel / 255 + 0.055) / 1.055) ** 2.4 for channel in background]
    return BLACK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else WHITE


def _resize_for_display(image: Image.Image) -> Image.Image:
    """Resize an image to ``DISPLAY_HEIGHT``, at most twice as wide; pixels of small images stay visible."""
    width = min(max(1, round(image.width * DISPLAY_HEIGHT / image.height)), 2 * DISPLAY_HEIGHT)
    enlarged = image.height < DISPLAY_HEIGHT / 2
    return image.resize((width, DISPLAY_HEIGHT), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _escape_text(text: str) -> str:
    """Escape characters outside Latin-1, which Pillow's built-in font lacks; other fonts may be missing."""
    return text.encode("latin-1", "backslashreplace").decode("latin-1")


def _select_font(text: str, font_size: int) -> tuple[str, Font]:
    """Return the text and a font with its characters: Pillow's or the system's; otherwise the escaped text."""
    if _escape_text(text) == text:
        return text, ImageFont.load_default(font_size)
    for name in JAPANESE_FONTS if any("\u3040" <= character <= "\u9fff" for character in text) else FALLBACK_FONTS:
        with contextlib.suppress(OSError):
            return text, ImageFont.truetype(name, font_size)
    return _escape_text(text), ImageFont.load_default(font_size)


def get_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an open image, 1 to 8; 1 if it is missing, invalid or unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # corrupted metadata
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises errors of various types
        return 1
    return orientation if orientation in range(1, 9) else 1


def decode_image(image: Image.Image) -> Image.Image:
    """Decode an image: upright, 8 bits, transparency on white, "L" or "RGB"."""
    image.load()
    if get_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(
            _convert_to_uint8(lambda: (np.asarray(strip) for _, strip in _split_into_strips(image)))
        )
    if image.has_transparency_data:
        is_grayscale = image.mode in ("LA", "La", *GRAYSCALE_MODES)
        canvas = Image.new("L" if is_grayscale else "RGB", image.size)
        for top, strip in _split_into_strips(image):
            layers = strip.convert("RGBA")
            background = Image.new("RGBA", layers.size, WHITE)
            canvas.paste(Image.alpha_composite(background, layers).convert(canvas.mode), (0, top))
        return canvas
    return convert_mode(image, "L" if image.mode in GRAYSCALE_MODES else "RGB")


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # corrupted metadata
        return Image.open(file, formats=FORMATS)


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
