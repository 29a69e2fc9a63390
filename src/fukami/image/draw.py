"""Drawing of predictions: boxes, masks, legends and captions on images."""

import colorsys
import contextlib
import re
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fukami.image.io import WHITE, UInt8Array, convert_mode

BLACK = (0, 0, 0)
DISPLAY_HEIGHT = 280  # pixels, of a drawn prediction
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


class LabeledBox(TypedDict):
    """Predicted bounding box: left, top, right and bottom in pixels of the image."""

    label: str
    score: float
    box: Sequence[float]


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
    canvas, factor = _enlarge(image.convert("RGB"))  # a copy
    size = canvas.size
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
    image, _ = _enlarge(image)
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
    image, _ = _enlarge(image)
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


def apply_palette(mask: UInt8Array, colors: Sequence[Color]) -> Image.Image:
    """Convert a mask ``(H, W)`` to a palette image with these colors."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette([level for color in colors for level in color])
    return image


def get_class_color(class_index: int) -> tuple[int, int, int]:
    """Return a fixed color for a class, far from those of the classes before it."""
    saturation, value = ((0.85, 0.95), (0.6, 1.0), (0.95, 0.7))[class_index // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.02 + class_index * 0.618034) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def get_class_colors(labels: Sequence[str]) -> list[Color]:
    """Return the color of each class: that of Cityscapes, or one far from those before it."""
    return [CITYSCAPES_COLORS.get(label, get_class_color(index)) for index, label in enumerate(labels)]


def choose_text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever has more contrast with the background (WCAG 2, relative luminance)."""
    linear = [((channel / 255 + 0.055) / 1.055) ** 2.4 for channel in background]
    return BLACK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else WHITE


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


def _enlarge(image: Image.Image) -> tuple[Image.Image, int]:
    """Enlarge a small image, so that texts fit into it; also return the factor."""
    factor = -(-MIN_LABEL_SIDE // max(image.size))
    if factor == 1:
        return image, 1
    resampling = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), resampling), factor


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
