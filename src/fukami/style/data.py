"""Default images of neural style transfer; NOTICE names their authors and licenses."""

from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).with_name("images")


def load_content_image() -> Image.Image:
    """Load a photograph of a Chinese building, 640×427."""
    return Image.open(FOLDER / "china.jpg").convert("RGB")


def load_style_image() -> Image.Image:
    """Load the Hubble Space Telescope's deep field, 1000×872."""
    return Image.open(FOLDER / "hubble_deep_field.jpg").convert("RGB")
