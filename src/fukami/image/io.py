"""Images: read any of them safely, bring them to a size, draw answers.

What is read comes back upright, in 8 bits, grey ("L") or colour ("RGB"), or is refused by name.
"""

import colorsys
import contextlib
import io
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, TiffImagePlugin, UnidentifiedImageError

from fukami.errors import Error, convert_memory_errors

UInt8Array = npt.NDArray[np.uint8]
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # pixels, as many as a JPEG can have; within MAX_PIXELS only strips of more than 43:1 are longer
MAX_ASPECT = 200  # to 1; panoramas reach 20:1, receipts and pages of a browser 50:1, strips of film or sprites 100:1
MAX_SEGMENTS = 2000  # of a JPEG before its pixels; cameras write 10, and depth maps or thermal images a few hundred
MAX_SCANS = 100  # of a JPEG, as many as libtiff reads; a progressive one has about 10
SCAN_END_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # that ends the pixels of a scan of a JPEG
FORMATS = (  # that C decodes in this process alone, from a header that states the size; the usual ones are tried first
    "JPEG", "PNG", "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "PSD", "SGI", "SUN", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip
MAX_STRIP_VALUES = 2**20  # values that are converted at a time, so that a large image takes little more than itself
GRAYSCALE_MODES = {"1", "L"}
DISPLAY_HEIGHT = 280  # height in pixels of a drawn answer
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
MIN_LABEL_SIDE = 480  # longer side in pixels below which an image is enlarged for its boxes to be labelled
MAX_LABELED_BOXES = 40  # boxes of an image that are labelled at most, the strongest
CITYSCAPES_COLORS = {  # the colours that people know these classes in, from Cityscapes (Cordts et al. 2016)
    "road": (128, 64, 128), "pavement": (244, 35, 232), "sidewalk": (244, 35, 232), "building": (70, 70, 70),
    "wall": (102, 102, 156), "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0), "sign": (220, 220, 0), "vegetation": (107, 142, 35), "tree": (107, 142, 35),
    "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60), "pedestrian": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32), "bicyclist": (119, 11, 32), "background": (0, 0, 0),
}  # fmt: skip
JAPANESE_FONTS = (  # files of fonts that systems come with
    "NotoSansCJK-Regular.ttc", "NotoSansJP-Regular.otf", "ipaexg.ttf", "ipag.ttf", "YuGothM.ttc", "meiryo.ttc",
    "msgothic.ttc", "ヒラギノ角ゴシック W3.ttc",
)  # fmt: skip
FALLBACK_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "Arial Unicode.ttf")
OVERLAY_ALPHA = 0.55  # share of the colour of a class in what is drawn over an image
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[float, float, float, float]  # left, top, right, bottom


def read_image(
    source: str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any],
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The image in a file, an array or a PIL image, upright, 8 bits, "L" or "RGB".

    EXIF rotation is applied, transparency lies on white, palettes and CMYK become RGB, 16-bit grey is scaled to 8 bits
    (0..65535 to 0..255; other integers and floats: see :func:`from_array`), and of several frames the first is taken.

    Args:
        source: a path, what a file holds, a PIL image, or an array ``(H, W)`` or ``(H, W, 1 | 3 | 4)``.
        name: what errors call the file; by default its path.
        max_pixels: larger files are refused before they are decoded, as are those with a side of more than 65,535
            pixels, or longer than 200 times their width.

    Raises:
        Error: the file is missing, no image, truncated, damaged or too large.
    """
    if isinstance(source, np.ndarray):
        with convert_memory_errors("the array given"):
            return convert_array_to_image(source)
    if isinstance(source, Image.Image):
        try:
            with convert_memory_errors("the image given"):
                return decode_image(source)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes what it opened only when it is asked to
            raise Error(f"the image given is damaged or incomplete ({error}); open it again") from error
    with open_image(source, name=name, max_pixels=max_pixels) as image:
        return decode_image(image)


@contextmanager
def open_image(
    source: str | os.PathLike[str] | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """The image in a file, not decoded yet, so that a JPEG can be decoded smaller; what goes wrong is an Error."""
    name = name or ("the file given" if isinstance(source, bytes) else os.fspath(source))
    try:
        with convert_memory_errors(name), _open_file(source) as file:
            _check_jpeg(file, name)
            _check_icon(file, name)
            with _open_with_pillow(file) as image:
                check_size(*image.size, name, max_pixels)
                if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile is decoded whole
                    wide = image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 1)
                    high = image.tag_v2.get(TiffImagePlugin.TILELENGTH, 1)
                    check_size(wide, high, f"{name}, in a tile,", max_pixels)
                yield image
    except Error:
        raise
    except FileNotFoundError:
        raise Error(f"{name} does not exist; give the path of an image") from None
    except IsADirectoryError:
        raise Error(f"{name} is a folder; give the path of an image") from None
    except UnidentifiedImageError:
        empty = not source if isinstance(source, bytes) else os.path.getsize(source) == 0  # noqa: PTH202
        what = "is empty" if empty else "is not an image in a known format"
        raise Error(f"{name} {what}; give a PNG, JPEG or other image file") from None
    except Image.DecompressionBombError as error:
        raise Error(f"{name} is too large ({error}); make it smaller") from None
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise Error(f"{name} is damaged or incomplete ({type(error).__name__}: {error}); get the file again") from error


def check_size(width: int, height: int, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that is too large to be decoded, or too long for its width.

    A strip of one pixel by 100 million is within the bound of pixels, and takes a codec 100 million rows.

    Raises:
        Error: more than ``max_pixels``, a side of more than 65,535 pixels, or one 200 times as long as the other.
    """
    has = f"{name} has {width}×{height} pixels"
    if width * height > max_pixels:
        raise Error(f"{has}, more than the {max_pixels:,} that are read; make it smaller")
    if max(width, height) > MAX_SIDE:
        raise Error(f"{has}, and a side may have {MAX_SIDE:,}; make it smaller, or cut it into parts")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Error(f"{has}, and a side may be {MAX_ASPECT} times as long as the other; cut it into parts")


def convert_array_to_image(array: npt.NDArray[Any]) -> Image.Image:
    """The image in an array ``(H, W)`` or ``(H, W, 1 | 3 | 4)``.

    bool and uint8 are taken as they are, uint16 as 0..65535; for other types the values tell: floats up to 1 are 0..1,
    up to 255 is 0..255, up to 65535 is 0..65535, and anything else is stretched from its least to its greatest.

    Raises:
        Error: another shape, or values that are not finite.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))):
        raise Error(f"an array of shape {array.shape} is no image; expected (H, W) or (H, W, 1 | 3 | 4)")
    if array.dtype == np.uint8:
        return decode_image(Image.fromarray(array))
    rows = max(1, MAX_STRIP_VALUES * array.shape[0] // array.size)
    return decode_image(
        Image.fromarray(_convert_to_uint8(lambda: (array[at : at + rows] for at in range(0, len(array), rows))))
    )


def resize_and_crop(image: Image.Image, *, channels: int, size: int) -> UInt8Array:
    """The image as ``(channels, size, size)`` uint8: shortest side resized, centre cropped; 1 channel grey, 3 RGB."""
    image = convert_mode(image, "L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1).copy()


def draw_prediction(image: Image.Image, model_input: UInt8Array, caption: str) -> Image.Image:
    """The image beside what the network saw of it, ``(C, H, W)`` uint8, with a caption below."""
    saw = Image.fromarray(model_input.transpose(1, 2, 0).squeeze())
    left, right = (_resize_for_display(each.convert("RGB")) for each in (image, saw))
    margin, line = 10, 30
    width = left.width + right.width + 3 * margin
    page = Image.new("RGB", (width, DISPLAY_HEIGHT + 2 * margin + line), WHITE)
    page.paste(left, (margin, margin))
    page.paste(right, (left.width + 2 * margin, margin))
    draw = ImageDraw.Draw(page)
    draw.text((margin, DISPLAY_HEIGHT + 1.5 * margin), _escape_text(caption), (34, 34, 34), ImageFont.load_default(20))
    return page


def draw_boxes(image: Image.Image, boxes: Sequence[dict[str, Any]], labels: Sequence[str]) -> Image.Image:
    """The image with boxes in the colours of their classes, the strongest on top, each with its label and score.

    No two labels overlap, and none leaves the image; a label for which there is no room is left out, as are those
    after the 40 strongest. Lines and letters grow with the image; a small image is enlarged.

    Args:
        image: upright.
        boxes: ``label``, ``score`` and ``box`` (left, top, right, bottom in pixels of the image) of each.
        labels: what the classes are called; their order decides the colours.
    """
    longer = max(image.size)
    factor = -(-MIN_LABEL_SIDE // longer) if longer < MIN_LABEL_SIDE else 1
    size = (image.width * factor, image.height * factor)
    resampling = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    canvas = image.convert("RGB").resize(size, resampling)
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(size) / 300))
    letters = max(14, round(max(size) / 45))
    font = ImageFont.load_default(letters)
    ranked = sorted(boxes, key=lambda each: -each["score"])
    numbers = {label: number for number, label in enumerate(labels)}
    colours = [get_class_color(numbers.get(each["label"], len(labels))) for each in ranked]
    edges = [_compute_outline(each["box"], factor, line, size) for each in ranked]
    for box, shade in zip(reversed(edges), reversed(colours), strict=True):
        draw.rectangle(_expand_box(box, 1, size), outline=choose_text_color(shade), width=line + 2)
        draw.rectangle(box, outline=shade, width=line)
    texts = [
        _truncate_label(_escape_text(each["label"]), f" {each['score']:.2f}", font, 0.6 * size[0]) for each in ranked
    ]
    pad = letters // 5
    sizes = [(font.getlength(text) + 2 * pad, 1.25 * letters + pad) for text in texts[:MAX_LABELED_BOXES]]
    for place, text, shade in zip(place_labels(edges[:MAX_LABELED_BOXES], sizes, size), texts, colours, strict=False):
        if place:
            draw.rounded_rectangle(place, radius=pad, fill=shade)
            draw.text((place[0] + pad, place[1] + pad / 2), text, choose_text_color(shade), font)
    return canvas


def get_class_color(class_index: int) -> tuple[int, int, int]:
    """A colour for the class ``class_index``, far from those of the classes before it; always the same."""
    saturation, value = ((0.85, 0.95), (0.6, 1.0), (0.95, 0.7))[class_index // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.02 + class_index * 0.618034) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def get_class_colors(labels: Sequence[str]) -> list[Color]:
    """The colour of each class: the one that people know it in, or one far from those before it."""
    return [CITYSCAPES_COLORS.get(label, get_class_color(number)) for number, label in enumerate(labels)]


def overlay_mask(image: Image.Image, mask: UInt8Array, colors: Sequence[Color]) -> Image.Image:
    """The image in the colours of its pixels' classes ``(H, W)``; black, as of the background, leaves it as it is.

    Two classes are parted by a light line.
    """
    tinted = np.array(colors, np.float32)[mask]
    share = np.where(np.array(colors).any(1), OVERLAY_ALPHA, 0.0).astype(np.float32)[mask][..., None]
    drawn = np.asarray(convert_mode(image, "RGB")) * (1 - share) + tinted * share
    edge = np.zeros(mask.shape, bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    drawn[edge] = 0.5 * drawn[edge] + 0.5 * 255
    return Image.fromarray(drawn.round().astype(np.uint8))


def draw_legend(
    image: Image.Image, entries: Sequence[tuple[str, Color]], column_labels: Sequence[str], max_entries: int
) -> Image.Image:
    """The image, and names beside patches of their colours in a grid below; a small image is enlarged.

    Args:
        image: upright.
        entries: the names, the first ones where there is no room for all, and their colours.
        column_labels: what the columns have room for, so that the images of a film are alike.
        max_entries: of how many names the grid has room.
    """
    factor = -(-MIN_LABEL_SIDE // max(image.size)) if max(image.size) < MIN_LABEL_SIDE else 1
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)
    letters = max(14, round(max(image.size) / 45))
    font = ImageFont.load_default(letters)
    pad, row = letters // 2, round(1.6 * letters)
    room = max(font.getlength(_escape_text(name)) for name in column_labels) + letters + 4 * pad
    columns = min(max(1, int((image.width - pad) / room)), max_entries)
    across = (image.width - pad) // columns
    page = Image.new("RGB", (image.width, image.height + -(-max_entries // columns) * row + pad), WHITE)
    page.paste(image, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, (name, shade) in enumerate(entries[:max_entries]):
        left, top = pad + number % columns * across, image.height + pad + number // columns * row
        text = _truncate_label(_escape_text(name), "", font, across - letters - 2 * pad)
        draw.rectangle((left, top, left + letters, top + letters), fill=shade, outline=(120, 120, 120))
        draw.text((left + letters + pad, top - letters // 8), text, (34, 34, 34), font)
    return page


def draw_caption(image: Image.Image, caption: str) -> Image.Image:
    """The image with a sentence below it, in as many lines as it takes; a small image is enlarged."""
    factor = -(-MIN_LABEL_SIDE // max(image.size)) if max(image.size) < MIN_LABEL_SIDE else 1
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)
    letters = max(16, round(max(image.size) / 28))
    caption, font = _select_font(caption, letters)
    pad = letters // 2
    lines = [""]
    for piece in re.findall(r"\S+\s*", caption) if " " in caption else caption:
        if lines[-1] and font.getlength(lines[-1] + piece) > image.width - 2 * pad:
            lines.append("")
        lines[-1] += piece
    page = Image.new("RGB", (image.width, image.height + round(1.4 * letters * len(lines)) + 2 * pad), WHITE)
    page.paste(image, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((pad, image.height + pad + round(1.4 * letters * number)), line, (34, 34, 34), font)
    return page


def apply_palette(mask: UInt8Array, colors: Sequence[Color]) -> Image.Image:
    """An image whose values ``(H, W)`` are shown in these colours."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette([level for shade in colors for level in shade])
    return image


def place_labels(
    boxes: Sequence[Box], label_sizes: Sequence[tuple[float, float]], image_size: tuple[int, int]
) -> list[Box | None]:
    """Where the label of each box, of a width and height, goes in an image; None where no room is left.

    The first box chooses first: above it, within its upper edge, below it, within its lower edge; from its left side,
    then from its right one, then beside it.
    """
    taken: list[Box] = []
    found: list[Box | None] = []
    for (left, top, right, bottom), (width, height) in zip(boxes, label_sizes, strict=True):
        rows = (top - height, top, bottom, bottom - height)
        corners = [(x, y) for x in (left, right - width) for y in rows]
        corners += [(x, y) for x in (right, left - width) for y in (top, bottom - height)]
        within = ((min(max(x, 0), image_size[0] - width), y) for x, y in corners)
        free = (
            (x, y, x + width, y + height)
            for x, y in within
            if x >= 0 and 0 <= y <= image_size[1] - height
            and not any(x < box[2] and box[0] < x + width and y < box[3] and box[1] < y + height for box in taken)
        )  # fmt: skip
        place = next(free, None)
        found.append(place)
        taken += [place] if place else []
    return found


def _compute_outline(box: Sequence[float], factor: int, line: int, size: tuple[int, int]) -> Box:
    """The outermost pixels of a box's line, which lies on its edge, half outside; within the image."""
    left, top, right, bottom = (round(factor * edge) for edge in box)
    return _expand_box((left, top, max(left, right - 1), max(top, bottom - 1)), line // 2, size)


def _expand_box(box: Box, by: int, size: tuple[int, int]) -> Box:
    """The box, larger on every side where the image reaches as far."""
    left, top, right, bottom = box
    wide, high = size[0] - 1, size[1] - 1
    return (min(max(left - by, 0), wide), min(max(top - by, 0), high),
            min(max(right + by, 0), wide), min(max(bottom + by, 0), high))  # fmt: skip


def _truncate_label(label: str, score: str, font: Font, width: float) -> str:
    """The label and the score, in at most so many pixels; a longer label ends in dots."""
    text = label + score
    while font.getlength(text) > width and label:
        label = label[:-1]
        text = f"{label.rstrip()}...{score}"
    return text


def choose_text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast with the ground (WCAG 2: relative luminance)."""
    linear = [((each / 255 + 0.055) / 1.055) ** 2.4 for each in background]
    return BLACK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else WHITE


def _resize_for_display(image: Image.Image) -> Image.Image:
    """The image ``SHOWN`` pixels high, at most twice as wide; small ones show their pixels."""
    width = min(max(1, round(image.width * DISPLAY_HEIGHT / image.height)), 2 * DISPLAY_HEIGHT)
    enlarged = image.height < DISPLAY_HEIGHT / 2
    return image.resize((width, DISPLAY_HEIGHT), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _escape_text(text: str) -> str:
    """The text in signs that Pillow's own font has; the others by their code, since no font can be counted on."""
    return text.encode("latin-1", "backslashreplace").decode("latin-1")


def _select_font(text: str, letters: int) -> tuple[str, Font]:
    """The text and a font that has its signs: Pillow's own, or one of the system; else signs by their code."""
    if _escape_text(text) == text:
        return text, ImageFont.load_default(letters)
    for name in JAPANESE_FONTS if any("\u3040" <= sign <= "\u9fff" for sign in text) else FALLBACK_FONTS:
        with contextlib.suppress(OSError):
            return text, ImageFont.truetype(name, letters)
    return _escape_text(text), ImageFont.load_default(letters)


def decode_image(image: Image.Image) -> Image.Image:
    """The image decoded: upright, 8 bits, transparency on white, "L" or "RGB"."""
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(
            _convert_to_uint8(lambda: (np.asarray(strip) for _, strip in _split_into_strips(image)))
        )
    if image.has_transparency_data:
        grey = image.mode in ("LA", "La", *GRAYSCALE_MODES)
        page = Image.new("L" if grey else "RGB", image.size)
        for top, strip in _split_into_strips(image):
            layers = strip.convert("RGBA")
            ground = Image.new("RGBA", layers.size, WHITE)
            page.paste(Image.alpha_composite(ground, layers).convert(page.mode), (0, top))
        return page
    return convert_mode(image, "L" if image.mode in GRAYSCALE_MODES else "RGB")


def _split_into_strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips, each with the row where it begins."""
    rows = max(1, MAX_STRIP_VALUES // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode, itself where it is in that one already."""
    return image if image.mode == mode else image.convert(mode)


def _convert_to_uint8(strips: Callable[[], Iterator[npt.NDArray[Any]]]) -> UInt8Array:
    """0..255 from the least of 0..1 (floats), 0..255 and 0..65535 that holds all values, or else from their range.

    Args:
        strips: gives the rows of an array in parts, each time that it is called.
    """
    low, high = np.inf, -np.inf
    for strip in strips():
        if strip.dtype == bool:
            return np.concatenate([part.astype(np.uint8) * np.uint8(255) for part in strips()])
        low, high = np.minimum(low, float(strip.min())), np.maximum(high, float(strip.max()))  # which keep a NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Error("the image has values that are not finite; expected numbers in 0..1, 0..255 or 0..65535")
    if low >= 0 and high <= 65535:
        deep = np.issubdtype(strip.dtype, np.uint16) or high > 255
        unit = np.issubdtype(strip.dtype, np.floating) and high <= 1
        low, high = 0.0, 65535.0 if deep else 1.0 if unit else 255.0
    factor = 255 / max(high - low, 1e-12)
    return np.concatenate([np.round((strip.astype(np.float64) - low) * factor).astype(np.uint8) for strip in strips()])


def _open_file(source: str | os.PathLike[str] | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: PTH123


def _open_with_pillow(file: IO[bytes]) -> Image.Image:
    """The image in a file, not yet decoded; our own bound takes the place of Pillow's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=FORMATS)


def _check_icon(file: IO[bytes], name: str) -> None:
    """Refuse an icon that holds an image which is too large; Pillow decodes it as it opens the file."""
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
    """Refuse a JPEG that has few bytes and much work in it; other files pass. The file is at its beginning again.

    A scan of ten bytes takes as long as the whole image: 1 MB of them would keep a decoder busy for minutes. Pillow
    joins the segments of EXIF one by one, in a time that grows with the square of their number.

    Raises:
        Error: more than 2,000 segments before the pixels, or more than 100 scans.
    """
    if file.read(2) == b"\xff\xd8":
        segments, scans = _count_jpeg_work(file)
        if segments > MAX_SEGMENTS or scans > MAX_SCANS:
            raise Error(
                f"{name} is a JPEG of more than {MAX_SCANS} scans or {MAX_SEGMENTS:,} segments; usual are up to 10 and "
                "100: save it anew"
            )
    file.seek(0)


def _count_jpeg_work(file: IO[bytes]) -> tuple[int, int]:
    """The segments before the first scan of a JPEG, and its scans; of a file without such an order, at least as many.

    Where a segment does not follow the one before, decoders look for the next one in their own ways: all is counted
    that may be one.
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
            single = not progressive and len(body) > 0 and body[0] == components
            return count, 1 if single else 1 + _count_further_scans(file.read())
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) > 5:
            progressive, components = marker & 3 == 2, body[5]
    return MAX_SEGMENTS + 1, 0


def _count_further_scans(content: bytes) -> int:
    """The scans that begin in what follows the head of the first scan of a JPEG."""
    scans = at = 0
    for _ in range(MAX_SEGMENTS):
        found = SCAN_END_MARKER.search(content, at)
        if found is None or found[0] == b"\xff\xd9":
            return scans
        at = found.end()
        if found[0] != b"\xff\x01":  # which alone has no length
            at += int.from_bytes(content[at : at + 2])
        scans += found[0] == b"\xff\xda"
    return MAX_SEGMENTS


def get_image_suffixes() -> set[str]:
    """What the names of image files end in."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
