"""Make ../digit.png: what a photograph of a handwritten five on paper looks like.

python docs/figures/scripts/digit.py    a pen's path, ink, paper and uneven light; nothing is copied from a data set
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import make_interp_spline

Array = npt.NDArray[np.float64]
PEN = [  # the points that the pen passes, in a unit square with y downwards: the body, then the bar
    [(0.44, 0.20), (0.40, 0.32), (0.365, 0.455)],
    [(0.365, 0.455), (0.47, 0.415), (0.595, 0.455), (0.655, 0.565), (0.625, 0.695), (0.51, 0.79), (0.36, 0.775)],
    [(0.43, 0.205), (0.53, 0.195), (0.665, 0.165)],
]
WIDTH, HEIGHT, FINE = 360, 440, 4  # the image in pixels, and how much finer the pen is drawn
PAPER, INK = (226, 219, 203), (44, 52, 92)


def strokes(points: int = 80) -> list[Array]:
    """The pen's smooth paths, ``(points, 2)`` each."""
    paths = []
    for given in PEN:
        place = np.linspace(0, 1, len(given))
        paths.append(make_interp_spline(place, given, k=min(3, len(given) - 1))(np.linspace(0, 1, points)))
    return paths


def smooth_noise(generator: np.random.Generator, radius: float) -> Array:
    """Noise whose grains are ``radius`` pixels wide, of deviation 1."""
    grains = Image.fromarray(generator.normal(128, 40, (HEIGHT, WIDTH)).clip(0, 255).astype(np.uint8))
    noise = np.asarray(grains.filter(ImageFilter.GaussianBlur(radius)), float)
    return (noise - noise.mean()) / noise.std()


def photograph() -> Image.Image:
    """The image."""
    generator = np.random.default_rng(5)
    ink = Image.new("L", (WIDTH * FINE, HEIGHT * FINE))
    pen = ImageDraw.Draw(ink)
    for path in strokes(600):
        for share, (x, y) in zip(np.linspace(0, 1, len(path)), path, strict=True):
            radius = FINE * (8.5 + 2.0 * np.sin(2.5 * share + 0.6))  # pressed a little harder in mid-stroke
            cx, cy = x * WIDTH * FINE, y * HEIGHT * FINE
            pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=255)
    ink = ink.rotate(-5, Image.Resampling.BICUBIC).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    cover = np.asarray(ink.filter(ImageFilter.GaussianBlur(0.9)), float) / 255
    cover *= np.clip(0.93 + 0.05 * smooth_noise(generator, 1.5), 0, 1)  # ink soaks in unevenly
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    light = 1.04 - 0.30 * (0.65 * x + 0.55 * y) ** 1.6  # a lamp at the upper left
    light -= 0.16 / (1 + np.exp((1.18 - 0.55 * x - y) * 14))  # and the soft shadow of a hand at the bottom
    paper = light + 0.010 * smooth_noise(generator, 1.0) + 0.012 * smooth_noise(generator, 9)
    colour = np.asarray(PAPER) * (1 - cover[..., None]) + np.asarray(INK) * cover[..., None]
    grain = generator.normal(0, 1.2, (HEIGHT, WIDTH, 1))
    return Image.fromarray((colour * paper[..., None] + grain).clip(0, 255).round().astype(np.uint8))


if __name__ == "__main__":
    photograph().save(Path(__file__).parents[2] / "digit.png", optimize=True)
