"""Handwritten digits that scikit-learn contains as well: 1,797 images of 8×8 pixels, 0..16, without a download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fukami.image.io import UInt8Array


def load_digits() -> tuple[UInt8Array, UInt8Array]:
    """Load the images ``(1797, 28, 28)`` in 0..255 and the labels 0..9.

    Each 8×8 image is resized to 20×20 and padded to 28×28, the convention of MNIST, so that networks transfer between
    the two datasets.
    """
    small, labels = load_original_digits()
    small = np.clip(small * (255 / 16), 0, 255).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)) for image in small]
    return np.pad(np.stack(large), ((0, 0), (4, 4), (4, 4))), labels


def load_original_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Load the original images ``(1797, 8, 8)`` in 0..16 and the labels 0..9."""
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        return arrays["images"].astype(np.float64), arrays["labels"]
