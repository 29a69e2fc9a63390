"""scikit-learn's 1,797 handwritten digits, embedded: they need no download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998; 8×8 pixels, 0..16.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]


def read() -> tuple[Bytes, Bytes]:
    """Pictures ``(1797, 28, 28)`` in 0..255 and labels 0..9.

    Each 8×8 picture is enlarged to 20×20 and set into 28×28, MNIST's convention, so that networks trained on the one
    read the other.
    """
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    small = np.clip(small.reshape(-1, 8, 8) * (255 / 16), 0, 255).astype(np.uint8)
    large = [np.asarray(Image.fromarray(picture).resize((20, 20), Image.Resampling.BICUBIC)) for picture in small]
    return np.pad(np.stack(large), ((0, 0), (4, 4), (4, 4))), labels.astype(np.uint8)
