"""Make dcgan-grid.webp, dcgan-interpolation.webp, dcgan-arithmetic.webp and dcgan-nearest.webp of ../dcgan.md.

python docs/figures/dcgan.py RUN   # of dcgan --data anime-faces-4000.zip
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from fukami.cli import find

HERE = Path(__file__).parent
SUM = "1 2 3 - 4 5 6 + 7 8 9"
MADE = {  # a figure: the file that it comes from, and what it takes to make this
    "grid": ("grid", ["--count", "48"]),
    "interpolation": ("interpolation", ["--count", "6", "--interpolate", "10"]),
    "arithmetic": ("arithmetic", ["--count", "9", "--arithmetic", SUM]),
    "nearest": ("nearest", ["--count", "6", "--nearest"]),
}

for name, (file, words) in MADE.items():
    with tempfile.TemporaryDirectory() as folder:
        find("predict")([sys.argv[1], *words, "--seed", "1", "--out", folder])
        with Image.open(f"{folder}/{file}.png") as picture:
            picture.convert("RGB").save(HERE / f"dcgan-{name}.webp", quality=85, method=6)
