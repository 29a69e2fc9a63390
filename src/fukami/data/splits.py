"""Splits of a dataset: training, validation and test data."""

from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_NAMES: dict[str, Split] = {  # names of folders, files and lists that denote a split
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
DEFAULT_VAL_FRACTION, MAX_DEFAULT_VAL_SAMPLES = 0.2, 5000

Samples = TypeVar("Samples")


class Splits(NamedTuple, Generic[Samples]):
    """Samples of each split, and the names of the classes; a split that the dataset does not have is empty."""

    train: Samples
    val: Samples
    test: Samples
    labels: tuple[str, ...]


def choose_val_fraction(fraction: float | None, num_samples: int, default: float = DEFAULT_VAL_FRACTION) -> float:
    """Return the fraction, or for None the default, or less so that there are at most 5,000 validation samples."""
    return min(default, MAX_DEFAULT_VAL_SAMPLES / max(1, num_samples)) if fraction is None else fraction


def select_validation(classes: npt.ArrayLike, fraction: float | None) -> npt.NDArray[np.bool_]:
    """Return a mask ``(N,)`` of the training samples used for validation: ``fraction`` of each class (stratified).

    If ``fraction`` is between 0 and 1, a class of two or more samples has at least one on each side. The choice depends
    on the data only, not on the seed, so that runs are comparable and can form an ensemble.

    Args:
        classes: ``(N,)`` classes.
        fraction: 0 to 1; None: 0.2, or less so that there are at most 5,000 validation samples.
    """
    labels = np.asarray(classes)
    fraction = choose_val_fraction(fraction, len(labels))
    is_selected = np.zeros(len(labels), bool)
    generator = np.random.default_rng(0)
    for name in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == name))
        count = round(fraction * len(indices))
        if 0 < fraction < 1 and len(indices) > 1:
            count = min(max(count, 1), len(indices) - 1)
        is_selected[indices[:count]] = True
    return is_selected
