"""Selective Search: Uijlings, van de Sande, Gevers and Smeulders, IJCV 104(2), 2013.

An image is segmented in several colour spaces and at several scales; the regions of each segmentation are grouped by
several similarities; the boxes of all regions on the way are the proposals.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.errors import Error, build_unknown_error
from fukami.selective_search import grouping, superpixels

VERSION = 1  # of what is computed; proposals that another one made are made anew
SMOOTHING_SIGMA = 0.8  # of the Gaussian before the segmentation
Mode = Literal["fast", "quality"]
UInt8Array = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]


class SearchSettings(NamedTuple):
    """What is varied (section 5.3, table 5); every combination is a grouping of its own."""

    color_spaces: tuple[str, ...]
    scales: tuple[int, ...]
    similarities: tuple[str, ...]


SETTINGS: dict[str, SearchSettings] = {
    "fast": SearchSettings(("hsv", "lab"), (50, 100), ("CTSF", "TSF")),
    "quality": SearchSettings(
        ("hsv", "lab", "rgi", "hue", "intensity"), (50, 100, 150, 300), ("CTSF", "TSF", "F", "S")
    ),
}


def propose_regions(image: UInt8Array, mode: Mode = "fast") -> Boxes:
    """Boxes that may hold an object, ``(n, 4)`` float32, the likeliest first, each once.

    A box is left, top, right and bottom in pixels; 0 is the outer edge of the first pixel, and right and bottom are the
    outer edges of the last ones inside. The order is the paper's (section 3.3): the position of a region in its
    hierarchy, 1 for the whole image, times a random number; the numbers are the same in every call.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        mode: ``fast`` has 8 groupings, ``quality`` 80.

    Raises:
        Error: the image is not of this shape and type.
        UsageError: an unknown mode.
    """
    if mode not in SETTINGS:
        raise build_unknown_error("mode", mode, SETTINGS)
    return rank_boxes(list(build_hierarchies(image, SETTINGS[mode])), np.random.default_rng(0))


def rank_boxes(hierarchies: list[npt.NDArray[np.int32]], generator: np.random.Generator) -> Boxes:
    """The boxes of hierarchies, each ending with its whole image, in the order of :func:`propose`, each once.

    A box of several hierarchies keeps the best of its places.
    """
    boxes = np.concatenate(hierarchies)
    position = np.concatenate([np.arange(len(each), 0, -1) for each in hierarchies])
    ranked = boxes[np.argsort(position * generator.random(len(boxes)), kind="stable")]
    width, height = boxes.max(0)[2:] + 1
    codes = np.ravel_multi_index(tuple(ranked.T), (width, height, width, height))  # far faster than rows to tell apart
    first = np.unique(codes, return_index=True)[1]
    return ranked[np.sort(first)].astype(np.float32)


def build_hierarchies(image: UInt8Array, settings: SearchSettings) -> Iterator[npt.NDArray[np.int32]]:
    """The boxes of each grouping, from the regions of its segmentation to the whole image."""
    for name in settings.color_spaces:
        planes = convert_color_space(image, name)
        edges = _compute_edges(planes)
        features = grouping.compute_features(planes)
        for scale in settings.scales:
            labels = superpixels.segment_graph(edges, planes.shape[1:], scale, scale)
            regions = grouping.describe_regions(labels, features)
            for similarity in settings.similarities:
                yield grouping.group_regions(regions, similarity)[0]


def segment_image(image: UInt8Array, scale: int = 100, color_space: str = "hsv") -> superpixels.Labels:
    """The segmentation that grouping begins with: ``(H, W)`` int32, a number for each region.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        scale: k of Felzenszwalb and Huttenlocher, and the smallest region in pixels.
        color_space: one of the colour spaces of :func:`colours`.
    """
    planes = convert_color_space(image, color_space)
    return superpixels.segment_graph(_compute_edges(planes), planes.shape[1:], scale, scale)


def _compute_edges(planes: superpixels.Planes) -> superpixels.Edges:
    bell = superpixels.build_gaussian_kernel(SMOOTHING_SIGMA)
    return superpixels.build_edges(superpixels.convolve_separable(planes, bell, bell))


def convert_color_space(image: UInt8Array, color_space: str) -> superpixels.Planes:
    """The channels of a colour space, each in 0..255: ``(3 or 1, H, W)`` float32.

    Args:
        image: ``(H, W, 3)`` uint8, RGB (sRGB where it matters).
        color_space: ``hsv``; ``lab``; ``rgi``, the shares of red and green, and the intensity; ``hue``, that of hsv;
            ``intensity``, the mean of the three.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        given = f"{image.dtype} of shape {image.shape}"
        raise Error(f"an image should be uint8 of shape (H, W, 3), not {given}; fukami.image.io.read_image reads any")
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
    if color_space == "lab":
        return _convert_to_lab(pixels)
    planes = pixels.astype(np.float32)
    if color_space in ("rgi", "intensity"):
        total: superpixels.Planes = planes.sum(0, keepdims=True)
        intensity = total / np.float32(3)
        if color_space == "intensity":
            return intensity
        return np.concatenate([planes[:2] * (255 / np.maximum(total, 1)), intensity])
    if color_space not in ("hsv", "hue"):
        raise build_unknown_error("colour space", color_space, ("hsv", "lab", "rgi", "hue", "intensity"))
    red, green, blue = planes
    most = planes.max(0)
    spread = most - planes.min(0)
    by = 1 / np.maximum(spread, 1)
    sixth = np.where(most == red, (green - blue) * by, 2 + (blue - red) * by)
    sixth = np.where((most == blue) & (most != red) & (most != green), 4 + (red - green) * by, sixth)
    hue = np.where(sixth < 0, sixth + 6, sixth) * np.float32(255 / 6)
    return np.stack([hue] if color_space == "hue" else [hue, spread * (255 / np.maximum(most, 1)), most])


# CIE 1976 L*a*b* of sRGB under D65: linear light, the three responses as shares of the white's, their cube roots
_SRGB_LEVELS = np.arange(256) / 255
_SRGB_TO_LINEAR = np.where(
    _SRGB_LEVELS <= 0.04045, _SRGB_LEVELS / 12.92, ((_SRGB_LEVELS + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_RGB_TO_RELATIVE_XYZ = (_RGB_TO_XYZ / _RGB_TO_XYZ.sum(1, keepdims=True)).astype(np.float32)


def _convert_to_lab(pixels: UInt8Array) -> superpixels.Planes:
    """L* of 0..100 as 0..255, a* and b* plus 128."""
    linear = _SRGB_TO_LINEAR[pixels].reshape(3, -1)
    shares = _RGB_TO_RELATIVE_XYZ @ linear
    x, y, z = np.where(
        shares > (6 / 29) ** 3, np.cbrt(shares), shares * np.float32((29 / 6) ** 2 / 3) + np.float32(4 / 29)
    )
    return np.stack([(116 * y - 16) * np.float32(2.55), 500 * (x - y) + 128, 200 * (y - z) + 128]).reshape(pixels.shape)
