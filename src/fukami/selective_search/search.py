"""Selective Search (Uijlings et al., "Selective Search for Object Recognition", IJCV 104(2), 2013).

An image is segmented in several color spaces and at several scales. The regions of each segmentation are grouped by
several similarities. The boxes of all regions of these hierarchies are the proposals.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.errors import Error, build_unknown_error
from fukami.image.io import UInt8Array
from fukami.selective_search import grouping, superpixels

VERSION = 1  # of the algorithm; cached proposals of another version are computed again
SMOOTHING_SIGMA = 0.8  # of the Gaussian filter before the segmentation, in pixels
Mode = Literal["fast", "quality"]
Boxes = npt.NDArray[np.float32]


class SearchSettings(NamedTuple):
    """Diversification strategies (Uijlings et al. 2013, section 5.1.3); each combination is one grouping."""

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
    """Compute region proposals, boxes that may contain an object, without duplicates and best first.

    They are ranked by the position of a region in its hierarchy, 1 for the whole image, times a random number (Uijlings
    et al. 2013, section 3.3). The random numbers are the same in every call.

    Args:
        image: RGB, ``(H, W, 3)`` uint8.
        mode: ``fast`` (8 groupings) or ``quality`` (80 groupings).

    Returns:
        Boxes ``(n, 4)`` float32: left, top, right, bottom in pixels, measured at the outer edges of the pixels.

    Raises:
        Error: the image has another shape or type.
        UsageError: the mode is unknown.
    """
    if mode not in SETTINGS:
        raise build_unknown_error("mode", mode, SETTINGS)
    return rank_boxes(list(build_hierarchies(image, SETTINGS[mode])), np.random.default_rng(0))


def rank_boxes(hierarchies: list[npt.NDArray[np.int32]], generator: np.random.Generator) -> Boxes:
    """Rank the boxes of hierarchies, each of which ends with the whole image, and remove duplicates.

    A box of several hierarchies keeps its best rank.
    """
    boxes = np.concatenate(hierarchies)
    position = np.concatenate([np.arange(len(hierarchy), 0, -1) for hierarchy in hierarchies])
    ranked = boxes[np.argsort(position * generator.random(len(boxes)), kind="stable")]
    width, height = boxes.max(0)[2:] + 1
    # one integer per box, since comparing rows is far slower
    packed_boxes = np.ravel_multi_index(tuple(ranked.T), (width, height, width, height))
    first = np.unique(packed_boxes, return_index=True)[1]
    return ranked[np.sort(first)].astype(np.float32)


def build_hierarchies(image: UInt8Array, settings: SearchSettings) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the boxes of each grouping, from the regions of its segmentation to the whole image."""
    for name in settings.color_spaces:
        converted = convert_color_space(image, name)
        edges = _compute_edges(converted)
        features = grouping.compute_features(converted)
        for scale in settings.scales:
            labels = superpixels.segment_graph(edges, converted.shape[1:], scale, scale)
            regions = grouping.build_regions(labels, features)
            for similarity in settings.similarities:
                yield grouping.group_regions(regions, similarity)[0]


def segment_image(image: UInt8Array, scale: int = 100, color_space: str = "hsv") -> superpixels.Labels:
    """Compute the initial segmentation of the grouping: region indices ``(H, W)`` int32.

    Args:
        image: RGB, ``(H, W, 3)`` uint8.
        scale: k of Felzenszwalb and Huttenlocher (2004), and the minimum size of a region in pixels.
        color_space: one of the color spaces of :func:`convert_color_space`.
    """
    converted = convert_color_space(image, color_space)
    return superpixels.segment_graph(_compute_edges(converted), converted.shape[1:], scale, scale)


def _compute_edges(image: superpixels.Image) -> superpixels.Edges:
    gaussian = superpixels.build_gaussian_kernel(SMOOTHING_SIGMA)
    return superpixels.build_edges(superpixels.convolve_separable(image, gaussian, gaussian))


def convert_color_space(image: UInt8Array, color_space: str) -> superpixels.Image:
    """Convert an image to a color space, with channels in 0..255: ``(3 or 1, H, W)`` float32.

    Args:
        image: RGB (sRGB for ``lab``), ``(H, W, 3)`` uint8.
        color_space: ``hsv``; ``lab``; ``rgi``, the fractions of red and green, and the intensity; ``hue``, that of
            hsv; or ``intensity``, the mean of the three channels.

    Raises:
        Error: the image has another shape or type.
        UsageError: the color space is unknown.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        actual = f"{image.dtype} of shape {image.shape}"
        raise Error(f"an image should be uint8 of shape (H, W, 3), not {actual}; use fukami.image.io.read_image")
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
    if color_space == "lab":
        return _convert_to_lab(pixels)
    rgb = pixels.astype(np.float32)
    if color_space in ("rgi", "intensity"):
        total: superpixels.Image = rgb.sum(0, keepdims=True)
        intensity = total / np.float32(3)
        if color_space == "intensity":
            return intensity
        return np.concatenate([rgb[:2] * (255 / np.maximum(total, 1)), intensity])
    if color_space not in ("hsv", "hue"):
        raise build_unknown_error("color space", color_space, ("hsv", "lab", "rgi", "hue", "intensity"))
    red, green, blue = rgb
    value = rgb.max(0)
    chroma = value - rgb.min(0)
    scale = 1 / np.maximum(chroma, 1)
    sextant = np.where(value == red, (green - blue) * scale, 2 + (blue - red) * scale)
    sextant = np.where((value == blue) & (value != red) & (value != green), 4 + (red - green) * scale, sextant)
    hue = np.where(sextant < 0, sextant + 6, sextant) * np.float32(255 / 6)
    return np.stack([hue] if color_space == "hue" else [hue, chroma * (255 / np.maximum(value, 1)), value])


# CIE 1976 L*a*b* of sRGB under D65: linear RGB, XYZ relative to the white point, and cube roots
_SRGB_LEVELS = np.arange(256) / 255
_SRGB_TO_LINEAR = np.where(
    _SRGB_LEVELS <= 0.04045, _SRGB_LEVELS / 12.92, ((_SRGB_LEVELS + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_RGB_TO_RELATIVE_XYZ = (_RGB_TO_XYZ / _RGB_TO_XYZ.sum(1, keepdims=True)).astype(np.float32)


def _convert_to_lab(pixels: UInt8Array) -> superpixels.Image:
    """Convert sRGB to L*a*b*: L* scaled from 0..100 to 0..255, and a* and b* plus 128."""
    linear = _SRGB_TO_LINEAR[pixels].reshape(3, -1)
    relative_xyz = _RGB_TO_RELATIVE_XYZ @ linear
    x, y, z = np.where(
        relative_xyz > (6 / 29) ** 3,
        np.cbrt(relative_xyz),
        relative_xyz * np.float32((29 / 6) ** 2 / 3) + np.float32(4 / 29),
    )
    return np.stack([(116 * y - 16) * np.float32(2.55), 500 * (x - y) + 128, 200 * (y - z) + 128]).reshape(pixels.shape)
