"""Unlabeled images from any source."""

import contextlib

import numpy as np

from fukami.data import labeled_images, scenes, shards, sources
from fukami.data.files import walk_images
from fukami.data.labeled_images import LabeledImages
from fukami.data.splits import select_validation
from fukami.errors import Error
from fukami.image import io as image_io
from fukami.progress import format_count

DEFAULT_SIZE = 64  # image side in pixels, if the images are not thumbnails
THUMBNAIL_SIZES = (28, 32)
MIN_IMAGES = 2  # minimum number of training images
NUM_INSPECTED_IMAGES = 100  # images from which size and channels are inferred


def load_dataset(spec: str, val_fraction: float) -> tuple[LabeledImages, LabeledImages]:
    """Load the training images and the reference images for evaluation.

    Args:
        spec: a spec of :func:`fukami.data.labeled_images.load_labeled_images`, ``scenes``, or the path of a folder
            or an archive with images at any depth.
        val_fraction: fraction of the images used only as reference images; with 0 all images serve as both.

    Raises:
        UsageError: there is no dataset of this name and no such path.
        Error: the data is invalid or has fewer than ``MIN_IMAGES`` images.
    """
    source = _load_source(spec)
    if len(source) < MIN_IMAGES:
        count = format_count(len(source), "image")
        raise Error(f"{spec} has {count}; training needs at least {MIN_IMAGES}, and preferably thousands")
    if not val_fraction:
        return source, source
    is_selected = select_validation(source.targets, val_fraction)
    return source.select(~is_selected), source.select(is_selected)


def infer_image_shape(source: LabeledImages) -> tuple[int, int]:
    """Infer the image side in pixels and the number of channels from a subset of the images."""
    if isinstance(source.items, shards.ShardSamples):
        return DEFAULT_SIZE, 3
    images = []
    for item in source.items[:: max(1, len(source) // NUM_INSPECTED_IMAGES)]:
        with contextlib.suppress(Error):  # training reports unreadable images
            images.append(image_io.read_image(item))
    sides = {side for image in images for side in image.size}
    size = next((side for side in THUMBNAIL_SIZES if sides == {side}), DEFAULT_SIZE)
    return size, 1 if images and all(image.mode == "L" for image in images) else 3


def select_subset(source: LabeledImages, count: int) -> LabeledImages:
    """Select a fixed random subset of at most ``count`` images."""
    mask = np.zeros(len(source), bool)
    mask[np.random.default_rng(0).permutation(len(source))[:count]] = True
    return source.select(mask)


def _load_source(spec: str) -> LabeledImages:
    """Load all images of a source, as one class."""
    source = sources.identify_source(spec, "images")
    if spec == "scenes":
        pixels, _ = scenes.generate_captioned_images(0, scenes.NUM_CAPTIONED)
        return LabeledImages(np.stack([*pixels]), np.zeros(len(pixels), np.int64))
    layout, root = source.require("images")
    if layout == "image files":
        files = sorted(walk_images(root))
        return LabeledImages(tuple(files), np.zeros(len(files), np.int64))
    images = labeled_images.load_labeled_images(spec, 0.0).train
    return LabeledImages(images.items, np.zeros(len(images), np.int64))
