"""Default images of neural style transfer, which dependencies include."""

from PIL import Image


def load_content_image() -> Image.Image:
    """Load a photograph of a Chinese building, 640×427, from scikit-learn."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def load_style_image() -> Image.Image:
    """Load the Hubble Space Telescope's deep field, 1000×872, from scikit-image."""
    from skimage import data

    return Image.fromarray(data.hubble_deep_field())  # type: ignore[no-untyped-call]
