"""How many pixels of each class there are, counted once and kept."""

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.data.locations import get_cache_folder
from fukami.data.samples import Sample
from fukami.errors import Error

logger = logging.getLogger(__name__)
ClassCounts = npt.NDArray[np.int64]


def count_class_pixels(samples: Sequence[Sample], num_classes: int) -> ClassCounts:
    """Of the masks of the samples: the pixels of each class, and the labelled ones of all images that have any of
    it, ``(2, classes)``.

    What was counted of the same files before is read from the cache folder. Masks that cannot be read count nothing.
    """
    cache = (
        _get_cache_path(samples, num_classes) if all(isinstance(sample.source, Path) for sample in samples) else None
    )
    if cache is not None:
        try:
            found = np.array(json.loads(cache.read_text()), np.int64)
            if found.shape == (2, num_classes):
                return found
        except (OSError, ValueError):  # there is none, or a damaged one
            pass
    with ThreadPoolExecutor() as threads:
        every = threads.map(lambda sample: _count_sample(sample, num_classes), samples)
        counts = sum(every, np.zeros((2, num_classes), np.int64))
    if cache is not None:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(counts.tolist()))
        except OSError as error:
            logger.warning(f"the frequencies of the classes cannot be kept in {cache} ({error.strerror})")
    return counts


def _count_sample(sample: Sample, classes: int) -> ClassCounts:
    if sample.mask is None:
        return np.zeros((2, classes), np.int64)
    try:
        counts = np.bincount(sample.mask.read().ravel(), minlength=classes + 1)[1 : classes + 1]
    except Error:
        return np.zeros((2, classes), np.int64)
    return np.stack([counts, np.where(counts > 0, counts.sum(), 0)])


def _get_cache_path(samples: Sequence[Sample], classes: int) -> Path:
    """Where the counts of these files, as they are now, are kept."""
    digest = hashlib.sha256(f"{classes}".encode())
    for sample in samples:
        path = getattr(sample.mask, "path", getattr(sample.mask, "file", None))
        facts = path.stat() if isinstance(path, Path) and path.exists() else None
        what = (
            path,
            facts and (facts.st_size, facts.st_mtime_ns),
            getattr(sample.mask, "class_table", None),
            sample.name,
        )
        digest.update(repr(what).encode())
    return get_cache_folder() / "frequencies" / f"{digest.hexdigest()[:24]}.json"
