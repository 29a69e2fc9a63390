"""Pictures from any source of which nothing else is known."""

import contextlib
from pathlib import Path

import numpy as np

from fukami.data import folder, labelled, scenes, shards
from fukami.data.labelled import Source
from fukami.data.parsing import exists
from fukami.errors import Error, unknown
from fukami.image import io as image_io

USUAL = 64  # pixels of a side, where the pictures are no thumbnails
THUMBNAILS = (28, 32)
LOOKED = 100  # pictures whose size is looked at


def read(spec: str, holdout: float) -> tuple[Source, Source]:
    """The pictures to learn from, and those to compare with: all of them too, or the share ``holdout`` of them.

    Args:
        spec: as :func:`fukami.data.labelled.read` takes it, or ``scenes``, or the path of a folder or an archive
            with pictures anywhere in it.
        holdout: share that is kept to be compared with alone.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are damaged, or there are none.
    """
    source = _all(spec)
    if len(source) < 2:
        raise Error(f"{spec} has {len(source)} pictures; there should be two at least, and thousands to learn from")
    if not holdout:
        return source, source
    held = folder.held_out(source.targets, holdout)
    return source.only(~held), source.only(held)


def shape(source: Source) -> tuple[int, int]:
    """The side in pixels and the channels that suit the pictures, by some of them."""
    if isinstance(source.items, shards.Samples):
        return USUAL, 3
    opened = []
    for item in source.items[:: max(1, len(source) // LOOKED)]:
        with contextlib.suppress(Error):  # a broken one is named when it is to be learned from
            opened.append(image_io.read(item))
    sides = {side for picture in opened for side in picture.size}
    size = next((side for side in THUMBNAILS if sides == {side}), USUAL)
    return size, 1 if opened and all(picture.mode == "L" for picture in opened) else 3


def some(source: Source, count: int) -> Source:
    """At most so many of the pictures, the same ones each time."""
    which = np.zeros(len(source), bool)
    which[np.random.default_rng(0).permutation(len(source))[:count]] = True
    return source.only(which)


def _all(spec: str) -> Source:
    """Every picture to learn from, all of one class."""
    if spec == "scenes":
        pictures, _ = scenes.told(0, scenes.SENTENCES)
        return Source(np.stack([*pictures]), np.zeros(len(pictures), np.int64))
    path = Path(spec)
    if spec not in labelled.NAMES and not shards.known(spec) and not spec.lower().endswith(".csv"):
        if not exists(path):
            raise unknown("data set (and no file or folder)", spec, (*labelled.NAMES, "scenes"))
        files = folder.pictures(folder.unpacked(path) if path.is_file() else path)
        return Source(tuple(files), np.zeros(len(files), np.int64))
    source, _, _ = labelled.read(spec, 0.0)
    return Source(source.items, np.zeros(len(source), np.int64))
