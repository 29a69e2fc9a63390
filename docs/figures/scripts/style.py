"""Draw style-gallery.webp, style-strength.webp and style-colors.webp of docs/landmarks/neural-style.md.

python docs/figures/scripts/style.py IMAGES [WEIGHTS]    IMAGES: folder with content/ and style/; WEIGHTS: of VGG
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
CELL_WIDTH, GAP, LINE_HEIGHT = 320, 8, 26  # in pixels


def stylize(root: Path, weights: str, content: str, style: str, **fields) -> Image.Image:
    """Transfer the style of one image to the content of another, 512 pixels wide."""
    content_file, style_file = str(root / "content" / f"{content}.jpg"), str(root / "style" / f"{style}.jpg")
    recipe = NeuralStyle(content=content_file, style=(style_file,), weights=weights, **fields)
    with tempfile.TemporaryDirectory() as folder:
        fukami.train(recipe, f"{folder}/run")
        return image_io.read_image(f"{folder}/run/preview.png").copy()


def save_grid(rows: list[list[tuple[Image.Image | None, str]]], name: str) -> None:
    """Save a grid of images with a line of text below each."""
    heights = [max(resize(image).height for image, _ in row if image) + LINE_HEIGHT for row in rows]
    page = Image.new("RGB", (len(rows[0]) * (CELL_WIDTH + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)), "white")
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(15), 0
    for row, height in zip(rows, heights, strict=True):
        for column, (image, text) in enumerate(row):
            left = column * (CELL_WIDTH + GAP)
            if image:
                page.paste(resize(image), (left, top + height - LINE_HEIGHT - resize(image).height))
            draw.text((left, top + height - LINE_HEIGHT + 4), text, (80, 80, 80), font)
        top += height + GAP
    page.save(HERE / f"{name}.webp", quality=82, method=6)


def resize(image: Image.Image) -> Image.Image:
    """Resize an image to the width of a cell."""
    return image.resize((CELL_WIDTH, round(image.height * CELL_WIDTH / image.width)), Image.Resampling.LANCZOS)


def main(root: Path, weights: str) -> None:
    """Draw all figures."""
    styles = [(image_io.read_image(root / "style" / f"{style}.jpg"), style.replace("_", " ")) for style in STYLES]
    rows: list[list[tuple[Image.Image | None, str]]] = [[(None, ""), *styles]]
    for content in CONTENTS:
        image = image_io.read_image(root / "content" / f"{content}.jpg")
        rows.append(
            [(image, content.replace("_", " ")), *((stylize(root, weights, content, style), "") for style in STYLES)]
        )
    save_grid(rows, "style-gallery")
    row = [
        (stylize(root, weights, CONTENTS[0], STYLES[0], strength=strength), f"--strength {strength:g}")
        for strength in STRENGTHS
    ]
    save_grid([row], "style-strength")
    options = {
        "": {},
        "--colors content": {"colors": "content"},
        "--init noise": {"init": "noise"},
        "--tv-weight 5": {"tv_weight": 5.0},
    }
    row = [(stylize(root, weights, CONTENTS[1], STYLES[1], **fields), text) for text, fields in options.items()]
    save_grid([row], "style-colors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
