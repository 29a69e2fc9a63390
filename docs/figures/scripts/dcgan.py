"""Draw dcgan-grid, -interpolation, -arithmetic and -nearest.webp of docs/landmarks/dcgan.md.

python docs/figures/scripts/dcgan.py RUN

RUN: run of dcgan --data anime-faces-4000.zip --stable --batch-size 16 --eval-features pixels.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from fukami.cli.main import find_command

HERE = Path(__file__).parents[1]
FIGURES = {  # flags of fukami predict for each figure
    "grid": ["--num-samples", "48"],
    "interpolation": ["--num-samples", "6", "--interpolation-steps", "10"],
    "arithmetic": ["--num-samples", "9", "--arithmetic", "1 2 3 - 4 5 6 + 7 8 9"],
    "nearest": ["--num-samples", "6", "--nearest"],
}

if __name__ == "__main__":
    for name, flags in FIGURES.items():
        with tempfile.TemporaryDirectory() as folder:
            find_command("predict")([sys.argv[1], *flags, "--seed", "1", "--out", folder])
            with Image.open(f"{folder}/{name}.png") as image:
                image.convert("RGB").save(HERE / f"dcgan-{name}.webp", quality=85, method=6)
