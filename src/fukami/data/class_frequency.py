"""Pixel counts of each class, cached on disk."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.data.coco_masks import COCOMask
from fukami.data.locations import get_cache_folder
from fukami.data.samples import Sample
from fukami.errors import Error
from fukami.progress import track
from fukami.system import start_decoding_threads

logger = logging.getLogger(__name__)
ClassCounts = npt.NDArray[np.int64]


def count_class_pixels(samples: Sequence[Sample], num_classes: int) -> ClassCounts:
    """Count the pixels of each class in the masks of the samples, ``(2, num_classes)``.

    The second row counts the labeled pixels of all images that contain the class. Counts of the same files are read
    from the cache folder. Unreadable masks are skipped.
    """
    cache = (
        _get_cache_path(samples, num_classes) if all(isinstance(sample.source, Path) for sample in samples) else None
    )
    if cache is not None:
        try:
            cached = np.array(json.loads(cache.read_text()), np.int64)
            if cached.shape == (2, num_classes):
                return cached
        except (OSError, ValueError):  # missing or invalid
            pass
    with start_decoding_threads() as threads:
        sample_counts = threads.map(lambda sample: _count_sample(sample, num_classes), samples)
        counts = sum(
            track(sample_counts, "counting the pixels of classes", len(samples), "masks"),
            np.zeros((2, num_classes), np.int64),
        )
    if cache is not None:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(counts.tolist()))
        except OSError as error:
            logger.warning(f"the class frequencies cannot be written to {cache} ({error.strerror})")
    return counts


def _count_sample(sample: Sample, num_classes: int) -> ClassCounts:
    if sample.mask is None:
        return np.zeros((2, num_classes), np.int64)
    try:
        counts = np.bincount(sample.mask.read().ravel(), minlength=num_classes + 1)[1 : num_classes + 1]
    except Error:
        return np.zeros((2, num_classes), np.int64)
    return np.stack([counts, np.where(counts > 0, counts.sum(), 0)])


def _get_cache_path(samples: Sequence[Sample], num_classes: int) -> Path:
    """Return the cache file of these masks, identified by path, size, modification time and class table."""
    digest = hashlib.sha256(f"{num_classes}".encode())
    for sample in samples:
        path = getattr(sample.mask, "path", getattr(sample.mask, "file", None))
        stat = path.stat() if isinstance(path, Path) and path.exists() else None
        key = (
            path,
            stat and (stat.st_size, stat.st_mtime_ns),
            getattr(sample.mask, "class_table", None),
            sample.mask.fingerprint() if isinstance(sample.mask, COCOMask) else None,  # its file has no mask values
            sample.name,
        )
        digest.update(repr(key).encode())
    return get_cache_folder() / "frequencies" / f"{digest.hexdigest()[:24]}.json"
