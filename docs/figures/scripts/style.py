"""Make style-gallery.webp, style-strength.webp and style-colors.webp of ../neural-style.md.

python docs/figures/scripts/style.py IMAGES [WEIGHTS]   # a folder with content/ and style/, and VGG's weights
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import fukami
from fukami.image import io as image_io
from fukami.style.neural_style import NeuralStyle

HERE = Path(__file__).parents[1]
CONTENTS = ("tubingen", "golden_gate", "hoovertowernight")
STYLES = ("starry_night", "the_scream", "shipwreck", "woman-with-hat-matisse")
STRENGTHS = (0.03, 0.3, 1.0, 10.0)
CELL, GAP, LINE = 320, 8, 26  # pixels of an image's width, between two, and of a line of text


def painted(root: Path, weights: str, content: str, style: str, **fields) -> Image.Image:
    """A content painted like a style, 512 pixels wide."""
    files = str(root / "content" / f"{content}.jpg"), str(root / "style" / f"{style}.jpg")
    recipe = NeuralStyle(content=files[0], style=files[1:], weights=weights, **fields)
    with tempfile.TemporaryDirectory() as folder:
        fukami.train(recipe, f"{folder}/run")
        return image_io.read_image(f"{folder}/run/preview.png").copy()


def grid(rows: list[list[tuple[Image.Image | None, str]]], name: str) -> None:
    """Write rows of images with a line of text below each."""
    heights = [max(cell(image).height for image, _ in row if image) + LINE for row in rows]
    page = Image.new("RGB", (len(rows[0]) * (CELL + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)), "white")
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(15), 0
    for row, height in zip(rows, heights, strict=True):
        for number, (image, text) in enumerate(row):
            left = number * (CELL + GAP)
            if image:
                page.paste(cell(image), (left, top + height - LINE - cell(image).height))
            draw.text((left, top + height - LINE + 4), text, (80, 80, 80), font)
        top += height + GAP
    page.save(HERE / f"{name}.webp", quality=82, method=6)


def cell(image: Image.Image) -> Image.Image:
    """The image, as wide as a cell."""
    return image.resize((CELL, round(image.height * CELL / image.width)), Image.Resampling.LANCZOS)


def main(root: Path, weights: str) -> None:
    """All of them."""
    styles = [(image_io.read_image(root / "style" / f"{style}.jpg"), style.replace("_", " ")) for style in STYLES]
    rows: list[list[tuple[Image.Image | None, str]]] = [[(None, ""), *styles]]
    for content in CONTENTS:
        own = image_io.read_image(root / "content" / f"{content}.jpg")
        rows.append(
            [(own, content.replace("_", " ")), *((painted(root, weights, content, style), "") for style in STYLES)]
        )
    grid(rows, "style-gallery")
    stronger = [
        (painted(root, weights, CONTENTS[0], STYLES[0], strength=each), f"--strength {each:g}") for each in STRENGTHS
    ]
    grid([stronger], "style-strength")
    ways = {
        "": {},
        "--colors content": {"colors": "content"},
        "--init noise": {"init": "noise"},
        "--tv-weight 5": {"tv_weight": 5.0},
    }
    each = [(painted(root, weights, CONTENTS[1], STYLES[1], **fields), text) for text, fields in ways.items()]
    grid([each], "style-colors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
