"""Hierarchical grouping: Uijlings et al., "Selective Search for Object Recognition", IJCV 104(2), 2013, section 3.

Of all neighbouring regions the two most similar become one, until one is left; each region on the way is a proposal.
numba compiles the kernels on their first call, and keeps them on the disk.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from fukami.selective_search.superpixels import Labels, Planes, build_gaussian_kernel, convolve_separable, find_root

COLOR_BINS, TEXTURE_BINS, NUM_DIRECTIONS = (
    25,
    10,
    8,
)  # bins of a channel; bins of a channel's derivative in one of eight directions


class Regions(NamedTuple):
    """What grouping knows of the ``n`` regions of a segmentation.

    Attributes:
        sizes: ``(n,)`` int64 pixels.
        boxes: ``(n, 4)`` int32: left, top, right, bottom; the right and bottom are outside.
        histograms: ``(n, D)`` float32, the one of colours and then the one of textures, each of sum 1.
        num_color_bins: how many columns of the histograms are of colours.
        neighbors: ``(m, 2)`` int32, the neighbours, the smaller number first, in order.
        image_area: of the image, in pixels.
    """

    sizes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int32]
    histograms: npt.NDArray[np.float32]
    num_color_bins: int
    neighbors: npt.NDArray[np.int32]
    image_area: int


def compute_features(planes: Planes) -> npt.NDArray[np.uint8]:
    """The bins that each pixel of planes ``(C, H, W)`` in 0..255 counts in: ``(H, W, C + 8C)``.

    First the colour of each channel, then its Gaussian derivative (sigma 1) in each of eight directions, where what
    points the other way is 0, and the last bin ends with the derivative at a step from 0 to 255.
    """
    bell, slope = build_gaussian_kernel(1.0), build_gaussian_kernel(1.0, derivative=True)
    across, down = convolve_separable(planes, bell, slope), convolve_separable(planes, slope, bell)
    found: npt.NDArray[np.uint8] = _compute_features(planes, across, down, 255 * float(slope[slope > 0].sum()))
    return found


def describe_regions(labels: Labels, features: npt.NDArray[np.uint8]) -> Regions:
    """The regions of a segmentation ``(H, W)``, with the features of its pixels."""
    channels = features.shape[2] // (1 + NUM_DIRECTIONS)
    sizes, boxes, histograms, codes = _describe_regions(labels, int(labels.max()) + 1, features, channels)
    pairs = np.stack(np.divmod(np.unique(codes), len(sizes)), axis=1).astype(np.int32)
    return Regions(sizes, boxes, histograms, channels * COLOR_BINS, pairs, labels.size)


def group_regions(regions: Regions, similarity: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The hierarchy of ``n`` regions, those given and then those that two of them were grouped to, in that order.

    Returns:
        The boxes of all ``(2n - 1, 4)``, and of each that was grouped the two it is made of ``(n - 1, 2)``, by number.

    Args:
        regions: what :func:`describe` found.
        similarity: which of the paper's four are added up: C (colour), T (texture), S (size), F (fill).
    """
    used = slice(
        0 if "C" in similarity else regions.num_color_bins, None if "T" in similarity else regions.num_color_bins
    )
    room = ((0, len(regions.sizes) - 1), (0, 0))  # for the regions that grouping makes
    sizes = np.pad(regions.sizes, room[0])
    boxes, histograms = np.pad(regions.boxes, room), np.pad(regions.histograms[:, used], room)
    settings = (regions.image_area, "S" in similarity, "F" in similarity)
    made: npt.NDArray[np.int32] = _group_regions(
        len(regions.sizes), sizes, boxes, histograms, regions.neighbors, *settings
    )
    return boxes, made


@njit(cache=True, nogil=True)
def _compute_features(planes, across, down, most):  # pragma: no cover
    channels, height, width = planes.shape
    found = np.empty((height, width, channels * (1 + NUM_DIRECTIONS)), np.uint8)
    half, step = np.float32(np.sqrt(0.5)), np.float32(TEXTURE_BINS / most)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                a, b = across[c, y, x], down[c, y, x]
                found[y, x, c] = min(np.int64(planes[c, y, x] * np.float32(COLOR_BINS / 256)), COLOR_BINS - 1)
                axes = (a, (a + b) * half, b, (b - a) * half)
                for way in range(NUM_DIRECTIONS):
                    value = axes[way] if way < 4 else -axes[way - 4]
                    level = np.int64(max(value, np.float32(0)) * step)
                    found[y, x, channels + c * NUM_DIRECTIONS + way] = min(level, TEXTURE_BINS - 1)
    return found


@njit(cache=True, nogil=True)
def _describe_regions(labels, count, features, channels):  # pragma: no cover
    height, width = labels.shape
    sizes = np.zeros(count, np.int64)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2:] = width, height, 0
    columns = channels * COLOR_BINS
    total = columns + channels * NUM_DIRECTIONS * TEXTURE_BINS
    places = np.empty(channels * (1 + NUM_DIRECTIONS), np.int64)
    for f in range(len(places)):
        places[f] = f * COLOR_BINS if f < channels else columns + (f - channels) * TEXTURE_BINS
    histograms = np.zeros((count, total), np.float32)
    codes = [np.int64(0)]
    codes.clear()
    latest = np.full(count, -1, np.int32)  # a neighbour that was found last is mostly found again
    for y in range(height):
        for x in range(width):
            a = labels[y, x]
            sizes[a] += 1
            box = boxes[a]
            box[0], box[1], box[2], box[3] = min(box[0], x), min(box[1], y), max(box[2], x + 1), max(box[3], y + 1)
            for f in range(len(places)):
                histograms[a, places[f] + features[y, x, f]] += 1
            for way in range(4):
                v, u = (y, y + 1, y + 1, y - 1)[way], (x + 1, x, x + 1, x + 1)[way]
                if 0 <= v < height and u < width:
                    b = labels[v, u]
                    low, high = min(a, b), max(a, b)
                    if low != high and latest[low] != high:
                        latest[low] = high
                        codes.append(np.int64(low) * count + high)
    for a in range(count):
        for f in range(total):
            of = channels if f < columns else channels * NUM_DIRECTIONS
            histograms[a, f] /= np.float32(sizes[a] * of)
    return sizes, boxes, histograms, np.array(codes)


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _intersect_histograms(one, other):  # pragma: no cover
    total = np.float32(0)
    for f in range(len(one)):
        total += min(one[f], other[f])
    return total


@njit(cache=True, nogil=True)
def _compute_similarity(a, b, sizes, boxes, histograms, area, by_size, by_fill):  # pragma: no cover
    total = np.float64(_intersect_histograms(histograms[a], histograms[b]))
    both = sizes[a] + sizes[b]
    if by_size:
        total += 1 - both / area
    if by_fill:
        wide = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        high = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += 1 - (np.int64(wide) * np.int64(high) - both) / area
    return total


@njit(cache=True, nogil=True)
def _push_pair(queue, value, a, b):  # pragma: no cover
    """Into a heap of the most similar pairs; of pairs alike, the one with the smaller numbers is first."""
    queue.append((value, a, b))
    at = len(queue) - 1
    while at:
        above = (at - 1) >> 1
        if not _is_before(queue[at], queue[above]):
            break
        queue[at], queue[above] = queue[above], queue[at]
        at = above


@njit(cache=True, nogil=True)
def _pop_pair(queue):  # pragma: no cover
    first = queue[0]
    moved = queue.pop()
    size = len(queue)
    if size:
        at, below = 0, 1
        while below < size:
            if below + 1 < size and _is_before(queue[below + 1], queue[below]):
                below += 1
            if not _is_before(queue[below], moved):
                break
            queue[at] = queue[below]
            at, below = below, 2 * below + 1
        queue[at] = moved
    return first


@njit(cache=True, nogil=True)
def _is_before(one, other):  # pragma: no cover
    if one[0] != other[0]:
        return one[0] > other[0]
    return one[1] < other[1] if one[1] != other[1] else one[2] < other[2]


@njit(cache=True, nogil=True)
def _group_regions(count, sizes, boxes, histograms, pairs, area, by_size, by_fill):  # pragma: no cover
    total, chains = len(sizes), 2 * len(pairs)
    made = np.empty((count - 1, 2), np.int32)
    # the neighbours of a region, a chain of places: those of two regions are joined as they are, and tidied when read
    neighbour, following = np.empty(chains, np.int32), np.full(chains, -1, np.int32)
    begin, end = np.full(total, -1, np.int32), np.full(total, -1, np.int32)
    into = np.arange(total).astype(np.int32)
    seen = np.full(total, -1, np.int32)
    queue = [(0.0, 0, 0)]
    queue.pop()
    for p in range(chains):
        a, b = np.int64(pairs[p >> 1, p & 1]), np.int64(pairs[p >> 1, 1 - (p & 1)])
        neighbour[p] = b
        if begin[a] < 0:
            begin[a] = p
        else:
            following[end[a]] = p
        end[a] = p
        if a < b:
            _push_pair(queue, _compute_similarity(a, b, sizes, boxes, histograms, area, by_size, by_fill), a, b)
    for new in range(count, total):
        _, a, b = _pop_pair(queue)
        while into[a] != a or into[b] != b:  # one of them has been grouped since
            _, a, b = _pop_pair(queue)
        into[a] = into[b] = new
        made[new - count, 0], made[new - count, 1] = a, b
        sizes[new] = sizes[a] + sizes[b]
        for side in range(2):
            boxes[new, side] = min(boxes[a, side], boxes[b, side])
            boxes[new, 2 + side] = max(boxes[a, 2 + side], boxes[b, 2 + side])
        share = np.float32(sizes[a] / sizes[new])
        for f in range(histograms.shape[1]):
            histograms[new, f] = share * histograms[a, f] + (1 - share) * histograms[b, f]
        following[end[a]] = begin[b]
        at, last = begin[a], np.int32(-1)
        while at >= 0:
            after = following[at]
            other = np.int64(find_root(into, neighbour[at]))
            if other != new and seen[other] != new:
                seen[other] = new
                neighbour[at] = other
                if last < 0:
                    begin[new] = at
                else:
                    following[last] = at
                last = at
                value = _compute_similarity(other, new, sizes, boxes, histograms, area, by_size, by_fill)
                _push_pair(queue, value, other, new)
            at = after
        end[new] = last
        if last >= 0:
            following[last] = -1
    return made
