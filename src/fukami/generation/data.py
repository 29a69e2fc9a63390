"""Images from any source of which nothing else is known."""

import contextlib
from pathlib import Path

import numpy as np

from fukami.data import image_folder, labelled_images, scenes, shards
from fukami.data.labelled_images import LabelledImages
from fukami.data.parsing import exists
from fukami.errors import Error, build_unknown_error
from fukami.image import io as image_io

DEFAULT_SIZE = 64  # pixels of a side, where the images are no thumbnails
THUMBNAIL_SIZES = (28, 32)
NUM_INSPECTED_IMAGES = 100  # images whose size is looked at


def load_dataset(spec: str, holdout: float) -> tuple[LabelledImages, LabelledImages]:
    """The images to learn from, and those to compare with: all of them too, or the share ``holdout`` of them.

    Args:
        spec: as :func:`fukami.data.labelled_images.load_labelled_images` takes it, or ``scenes``, or the path of a
            folder or an archive with images anywhere in it.
        holdout: share that is kept to be compared with alone.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are damaged, or there are none.
    """
    source = _load_source(spec)
    if len(source) < 2:
        raise Error(f"{spec} has {len(source)} images; there should be two at least, and thousands to learn from")
    if not holdout:
        return source, source
    held = image_folder.select_holdout(source.targets, holdout)
    return source.select(~held), source.select(held)


def infer_image_shape(source: LabelledImages) -> tuple[int, int]:
    """The side in pixels and the channels that suit the images, by some of them."""
    if isinstance(source.items, shards.ShardSamples):
        return DEFAULT_SIZE, 3
    opened = []
    for item in source.items[:: max(1, len(source) // NUM_INSPECTED_IMAGES)]:
        with contextlib.suppress(Error):  # a broken one is named when it is to be learned from
            opened.append(image_io.read_image(item))
    sides = {side for image in opened for side in image.size}
    size = next((side for side in THUMBNAIL_SIZES if sides == {side}), DEFAULT_SIZE)
    return size, 1 if opened and all(image.mode == "L" for image in opened) else 3


def select_subset(source: LabelledImages, count: int) -> LabelledImages:
    """At most so many of the images, the same ones each time."""
    which = np.zeros(len(source), bool)
    which[np.random.default_rng(0).permutation(len(source))[:count]] = True
    return source.select(which)


def _load_source(spec: str) -> LabelledImages:
    """Every image to learn from, all of one class."""
    if spec == "scenes":
        images, _ = scenes.generate_captioned_images(0, scenes.NUM_CAPTIONED)
        return LabelledImages(np.stack([*images]), np.zeros(len(images), np.int64))
    path = Path(spec)
    if (
        spec not in labelled_images.DATASET_NAMES
        and not shards.is_shard_spec(spec)
        and not spec.lower().endswith(".csv")
    ):
        if not exists(path):
            raise build_unknown_error(
                "data set (and no file or folder)", spec, (*labelled_images.DATASET_NAMES, "scenes")
            )
        files = image_folder.find_images(image_folder.unpack_archive(path) if path.is_file() else path)
        return LabelledImages(tuple(files), np.zeros(len(files), np.int64))
    source, _, _ = labelled_images.load_labelled_images(spec, 0.0)
    return LabelledImages(source.items, np.zeros(len(source), np.int64))
