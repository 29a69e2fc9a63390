"""Functions that the scripts of several figures of photographs share: arguments, boxes, and small files."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageEnhance

FIGURES = Path(__file__).parents[1]
MAX_WIDTH, MAX_BYTES = 1000, 250_000  # limits of a figure: pixels, and bytes of its file
Color = str | tuple[int, int, int]


def create_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with the option ``--out``, the folder of the figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIGURES, help="Folder of the figures.")
    return parser


def render_figure(figure: Figure) -> Image.Image:
    """Render a figure with 100 pixels per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return Image.open(buffer).convert("RGB")


def resize_to_width(image: Image.Image, width: int) -> Image.Image:
    """Resize an image to a width, with its aspect ratio."""
    return image.convert("RGB").resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)


def draw_outlines(image: Image.Image, boxes: npt.ArrayLike, colors: Sequence[Color], width: int) -> Image.Image:
    """Draw boxes ``(n, 4)``, the first on top, on the image resized to ``width``; its own colors become paler."""
    canvas = ImageEnhance.Color(resize_to_width(image, width)).enhance(0.35)
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, "white"), 0.15)
    draw = ImageDraw.Draw(canvas)
    corners = np.asarray(boxes, float).reshape(-1, 4) * (width / image.width)
    for (left, top, right, bottom), color in reversed(list(zip(corners.round().tolist(), colors, strict=True))):
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
    return canvas


def save_image(image: Image.Image, path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Write an image as WebP, in the best quality whose file is not larger than ``max_bytes``.

    Raises:
        ValueError: the image is wider than 1,000 pixels, or its file is too large in any quality.
    """
    if image.width > MAX_WIDTH:
        raise ValueError(f"{path.name} is {image.width} pixels wide, more than {MAX_WIDTH}")
    for quality in range(88, 30, -6):
        image.convert("RGB").save(path, quality=quality, method=6)
        if path.stat().st_size <= max_bytes:
            sys.stdout.write(f"{path.name}: {image.width}×{image.height}, {path.stat().st_size:,} bytes\n")
            return
    raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes, more than {max_bytes:,}")
