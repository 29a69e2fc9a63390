"""Render docs/digit.png, a synthetic photograph of a handwritten five: pen strokes, ink, paper and uneven light.

python docs/figures/scripts/digit.py    uses no image of a dataset
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import make_interp_spline

Array = npt.NDArray[np.float64]
STROKES = [  # points on the pen strokes in the unit square, y downwards: the body, then the bar
    [(0.44, 0.20), (0.40, 0.32), (0.365, 0.455)],
    [(0.365, 0.455), (0.47, 0.415), (0.595, 0.455), (0.655, 0.565), (0.625, 0.695), (0.51, 0.79), (0.36, 0.775)],
    [(0.43, 0.205), (0.53, 0.195), (0.665, 0.165)],
]
WIDTH, HEIGHT, SUPERSAMPLING = 360, 440, 4  # image size in pixels, and supersampling factor of the strokes
PAPER, INK = (226, 219, 203), (44, 52, 92)


def interpolate_strokes(num_points: int = 80) -> list[Array]:
    """Interpolate the strokes with splines, ``(num_points, 2)`` each."""
    paths = []
    for points in STROKES:
        positions = np.linspace(0, 1, len(points))
        spline = make_interp_spline(positions, points, k=min(3, len(points) - 1))
        paths.append(spline(np.linspace(0, 1, num_points)))
    return paths


def generate_noise(generator: np.random.Generator, radius: float) -> Array:
    """Generate noise with zero mean and unit variance, blurred with a Gaussian of ``radius`` pixels."""
    grains = Image.fromarray(generator.normal(128, 40, (HEIGHT, WIDTH)).clip(0, 255).astype(np.uint8))
    noise = np.asarray(grains.filter(ImageFilter.GaussianBlur(radius)), float)
    return (noise - noise.mean()) / noise.std()


def render_photograph() -> Image.Image:
    """Render the image."""
    generator = np.random.default_rng(5)
    ink = Image.new("L", (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING))
    pen = ImageDraw.Draw(ink)
    for path in interpolate_strokes(600):
        for position, (x, y) in zip(np.linspace(0, 1, len(path)), path, strict=True):
            radius = SUPERSAMPLING * (8.5 + 2.0 * np.sin(2.5 * position + 0.6))  # thicker in the middle of the stroke
            cx, cy = x * WIDTH * SUPERSAMPLING, y * HEIGHT * SUPERSAMPLING
            pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=255)
    ink = ink.rotate(-5, Image.Resampling.BICUBIC).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    coverage = np.asarray(ink.filter(ImageFilter.GaussianBlur(0.9)), float) / 255
    coverage *= np.clip(0.93 + 0.05 * generate_noise(generator, 1.5), 0, 1)  # uneven ink
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    light = 1.04 - 0.30 * (0.65 * x + 0.55 * y) ** 1.6  # lit from the upper left
    light -= 0.16 / (1 + np.exp((1.18 - 0.55 * x - y) * 14))  # soft shadow at the bottom
    paper = light + 0.010 * generate_noise(generator, 1.0) + 0.012 * generate_noise(generator, 9)
    color = np.asarray(PAPER) * (1 - coverage[..., None]) + np.asarray(INK) * coverage[..., None]
    grain = generator.normal(0, 1.2, (HEIGHT, WIDTH, 1))
    return Image.fromarray((color * paper[..., None] + grain).clip(0, 255).round().astype(np.uint8))


if __name__ == "__main__":
    render_photograph().save(Path(__file__).parents[2] / "digit.png", optimize=True)
