"""Cut the images of the gallery, docs/figures/gallery/*.webp, and hero.webp from the figures of the pages.

python docs/figures/scripts/gallery.py
"""

from pathlib import Path

from PIL import Image, ImageOps

FIGURES = Path(__file__).parents[1]
SIZE = (480, 300)
COLUMNS, MARGIN, HERO_WIDTH = 4, 6, 1280
TILES = {  # figure, and the cut as fractions of its width and height: left, top, right, bottom
    "classification": ("explain-grad-cam.webp", (0.01, 0, 0.68, 0.5)),
    "detection": ("faster-rcnn-animals.webp", (0, 0, 0.5, 0.46)),
    "segmentation": ("driving.webp", (0, 0, 1, 1)),
    "captioning": ("show-and-tell.webp", (0, 0, 0.51, 1)),
    "style": ("style-gallery.webp", (0.2, 0.48, 1, 1)),
    "generation": ("dcgan-grid.webp", (0, 0, 0.585, 1)),
    "reinforcement": ("dqn-pong.webp", (0, 0, 1, 1)),
    "self-play": ("alphago-game.webp", (0, 0, 1, 1)),
}


def cut(figure: str, box: tuple[float, float, float, float]) -> Image.Image:
    """Cut a tile from the middle frame of a figure; white fills the rest of the tile."""
    with Image.open(FIGURES / figure) as image:
        image.seek(getattr(image, "n_frames", 1) // 2)
        left, top, right, bottom = box
        width, height = image.size
        part = image.convert("RGB").crop((round(left * width), round(top * height), round(right * width),
                                          round(bottom * height)))  # fmt: skip
    return ImageOps.pad(part, SIZE, color="white")


def main() -> None:
    """Write the tiles and the grid of all."""
    rows = -(-len(TILES) // COLUMNS)
    width, height = SIZE[0] + MARGIN, SIZE[1] + MARGIN
    grid = Image.new("RGB", (COLUMNS * width - MARGIN, rows * height - MARGIN), "white")
    for index, (name, (figure, box)) in enumerate(TILES.items()):
        tile = cut(figure, box)
        tile.save(FIGURES / "gallery" / f"{name}.webp", quality=85, method=6)
        grid.paste(tile, (index % COLUMNS * width, index // COLUMNS * height))
    grid.resize((HERO_WIDTH, round(HERO_WIDTH * grid.height / grid.width))).save(
        FIGURES / "hero.webp", quality=85, method=6
    )


if __name__ == "__main__":
    main()
