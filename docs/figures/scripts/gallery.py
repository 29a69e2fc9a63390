"""Cut the images of the gallery, docs/figures/gallery/*.webp, and hero.webp from the figures of the pages.

python docs/figures/scripts/gallery.py
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

FIGURES = Path(__file__).parents[1]
Part = tuple[str, tuple[float, float, float, float]]  # figure, and left, top, right, bottom of the part, 0 to 1
SIZE = (480, 320)  # pixels of an image of the gallery, and of a part of hero.webp
GAP = 8
GALLERY: dict[str, list[Part]] = {
    "classification": [
        ("explain-grad-cam.webp", (0.085, 0.543, 0.266, 0.916)),
        ("explain-grad-cam.webp", (0.378, 0.543, 0.559, 0.916)),
    ],
    "detection": [("page-serve.webp", (0.0204, 0.38, 0.8194, 0.845))],
    "segmentation": [("driving.webp", (0, 0.09, 1, 0.831))],
    "captioning": [("show-and-tell.webp", (0, 0, 0.25, 1)), ("show-and-tell.webp", (0.75, 0, 1, 1))],
    "style": [
        ("style-gallery.webp", (0.221, 0.613, 0.33, 0.811)),
        ("style-gallery.webp", (0.422, 0.613, 0.531, 0.811)),
    ],
    "generation": [("dcgan-grid.webp", (0.5, 0, 1, 1))],
    "reinforcement": [("dqn-pong.webp", (0, 0, 1, 1))],
    "self-play": [("alphago-game.webp", (0, 0, 1, 1))],
}
HERO: list[Part] = [
    *GALLERY["detection"],
    *GALLERY["segmentation"],
    ("style-gallery.webp", (0.201, 0.613, 0.397, 0.794)),
    *GALLERY["self-play"],
]


def cut(part: Part, size: tuple[int, int]) -> Image.Image:
    """Cut a part of the middle frame of a figure, and resize it to ``size``, with white margins if necessary."""
    figure, box = part
    with Image.open(FIGURES / figure) as image:
        image.seek(getattr(image, "n_frames", 1) // 2)
        left, top, right, bottom = (round(edge * side) for edge, side in zip(box, 2 * image.size, strict=True))
        return ImageOps.pad(image.convert("RGB").crop((left, top, right, bottom)), size, color="white")


def arrange(parts: Sequence[Part], width: int) -> Image.Image:
    """Arrange parts in a row of images of ``width`` pixels each."""
    row = Image.new("RGB", (len(parts) * (width + GAP) - GAP, SIZE[1]), "white")
    for index, part in enumerate(parts):
        row.paste(cut(part, (width, SIZE[1])), (index * (width + GAP), 0))
    return row


if __name__ == "__main__":
    for name, parts in GALLERY.items():
        width = (SIZE[0] + GAP) // len(parts) - GAP
        arrange(parts, width).save(FIGURES / "gallery" / f"{name}.webp", quality=85, method=6)
    arrange(HERO, SIZE[0]).save(FIGURES / "hero.webp", quality=85, method=6)
