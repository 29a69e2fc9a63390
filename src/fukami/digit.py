"""TEMPORARY placeholder so that other parts can be tested; overwrite me entirely."""

import numpy as np


def as_mnist(picture):
    p = picture.convert("L")
    if p.size == (28, 28):
        return np.asarray(p)[None].copy()
    return np.pad(255 - np.asarray(p.resize((20, 20))), 4)[None]
