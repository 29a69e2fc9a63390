"""Hierarchical grouping of Selective Search (Uijlings et al. 2013, section 3).

The two most similar neighboring regions are merged until one is left; each region of the hierarchy is a proposal.
numba compiles the kernels on their first call, and caches them on disk.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.errors import require_extra
from fukami.selective_search.superpixels import Image, Labels, build_gaussian_kernel, convolve_separable, find_root

with require_extra("detect", "Selective Search"):
    from numba import njit

COLOR_BINS = 25  # histogram bins of a channel
TEXTURE_BINS = 10  # histogram bins of a channel's derivative in one direction
NUM_DIRECTIONS = 8  # directions of the derivative
MIN_QUEUE = 1000  # pairs in the queue from which those of merged regions are removed


class Regions(NamedTuple):
    """Regions of a segmentation with the features that the grouping compares.

    Attributes:
        sizes: areas in pixels, ``(n,)`` int64.
        boxes: left, top, right, bottom, ``(n, 4)`` int32; right and bottom are exclusive.
        histograms: color histogram followed by texture histogram, each of sum 1, ``(n, D)`` float32.
        num_color_bins: number of columns of the color histogram.
        neighbors: sorted pairs of neighboring regions, the smaller index first, ``(m, 2)`` int32.
        image_area: area of the image in pixels.
    """

    sizes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int32]
    histograms: npt.NDArray[np.float32]
    num_color_bins: int
    neighbors: npt.NDArray[np.int32]
    image_area: int


def compute_features(image: Image) -> npt.NDArray[np.uint8]:
    """Compute the histogram bins ``(H, W, C + 8C)`` of each pixel of an image ``(C, H, W)`` in 0..255.

    The first C are color bins. The others are bins of the Gaussian derivative (sigma 1) of each channel in eight
    directions; a negative derivative is set to 0. The last bin ends at the derivative of a step from 0 to 255.
    """
    gaussian, gaussian_derivative = build_gaussian_kernel(1.0), build_gaussian_kernel(1.0, derivative=True)
    gradient_x = convolve_separable(image, gaussian, gaussian_derivative)
    gradient_y = convolve_separable(image, gaussian_derivative, gaussian)
    max_derivative = 255 * float(gaussian_derivative[gaussian_derivative > 0].sum())
    features: npt.NDArray[np.uint8] = _compute_features(image, gradient_x, gradient_y, max_derivative)
    return features


def build_regions(labels: Labels, features: npt.NDArray[np.uint8]) -> Regions:
    """Build the regions of a segmentation ``(H, W)`` from the features of its pixels."""
    channels = features.shape[2] // (1 + NUM_DIRECTIONS)
    sizes, boxes, histograms, packed_pairs = _build_regions(labels, int(labels.max()) + 1, features, channels)
    pairs = np.stack(np.divmod(np.unique(packed_pairs), len(sizes)), axis=1).astype(np.int32)
    return Regions(sizes, boxes, histograms, channels * COLOR_BINS, pairs, labels.size)


def group_regions(regions: Regions, similarity: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Group ``n`` regions hierarchically by similarity.

    Args:
        regions: the output of :func:`build_regions`.
        similarity: letters of the similarities that are added: C (color), T (texture), S (size), F (fill).

    Returns:
        Boxes ``(2n - 1, 4)`` of the given and the merged regions, in that order, and the two regions that each merged
        region consists of, by index ``(n - 1, 2)``.
    """
    used = slice(
        0 if "C" in similarity else regions.num_color_bins, None if "T" in similarity else regions.num_color_bins
    )
    padding = ((0, len(regions.sizes) - 1), (0, 0))  # for the merged regions
    sizes = np.pad(regions.sizes, padding[0])
    boxes, histograms = np.pad(regions.boxes, padding), np.pad(regions.histograms[:, used], padding)
    settings = (regions.image_area, "S" in similarity, "F" in similarity)
    merges: npt.NDArray[np.int32] = _group_regions(
        len(regions.sizes), sizes, boxes, histograms, regions.neighbors, *settings
    )
    return boxes, merges


@njit(cache=True, nogil=True)
def _compute_features(image, gradient_x, gradient_y, max_derivative):  # pragma: no cover
    channels, height, width = image.shape
    features = np.empty((height, width, channels * (1 + NUM_DIRECTIONS)), np.uint8)
    half, step = np.float32(np.sqrt(0.5)), np.float32(TEXTURE_BINS / max_derivative)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                a, b = gradient_x[c, y, x], gradient_y[c, y, x]
                features[y, x, c] = min(np.int64(image[c, y, x] * np.float32(COLOR_BINS / 256)), COLOR_BINS - 1)
                axes = (a, (a + b) * half, b, (b - a) * half)
                for direction in range(NUM_DIRECTIONS):
                    value = axes[direction] if direction < 4 else -axes[direction - 4]
                    level = np.int64(max(value, np.float32(0)) * step)
                    features[y, x, channels + c * NUM_DIRECTIONS + direction] = min(level, TEXTURE_BINS - 1)
    return features


@njit(cache=True, nogil=True)
def _build_regions(labels, count, features, channels):  # pragma: no cover
    height, width = labels.shape
    sizes = np.zeros(count, np.int64)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2:] = width, height, 0
    num_color_bins = channels * COLOR_BINS
    total = num_color_bins + channels * NUM_DIRECTIONS * TEXTURE_BINS
    offsets = np.empty(channels * (1 + NUM_DIRECTIONS), np.int64)
    for f in range(len(offsets)):
        offsets[f] = f * COLOR_BINS if f < channels else num_color_bins + (f - channels) * TEXTURE_BINS
    histograms = np.zeros((count, total), np.float32)
    packed_pairs = [np.int64(0)]
    packed_pairs.clear()
    latest = np.full(count, -1, np.int32)  # adjacent pixels usually repeat the last pair, which is skipped
    for y in range(height):
        for x in range(width):
            a = labels[y, x]
            sizes[a] += 1
            box = boxes[a]
            box[0], box[1], box[2], box[3] = min(box[0], x), min(box[1], y), max(box[2], x + 1), max(box[3], y + 1)
            for f in range(len(offsets)):
                histograms[a, offsets[f] + features[y, x, f]] += 1
            for direction in range(4):
                v, u = (y, y + 1, y + 1, y - 1)[direction], (x + 1, x, x + 1, x + 1)[direction]
                if 0 <= v < height and u < width:
                    b = labels[v, u]
                    low, high = min(a, b), max(a, b)
                    if low != high and latest[low] != high:
                        latest[low] = high
                        packed_pairs.append(np.int64(low) * count + high)
    for a in range(count):
        for f in range(total):
            num_values = channels if f < num_color_bins else channels * NUM_DIRECTIONS
            histograms[a, f] /= np.float32(sizes[a] * num_values)
    return sizes, boxes, histograms, np.array(packed_pairs)


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
        width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += 1 - (np.int64(width) * np.int64(height) - both) / area
    return total


@njit(cache=True, nogil=True)
def _push_pair(queue, value, a, b):  # pragma: no cover
    """Push a pair onto the heap of the most similar pairs; smaller indices break ties."""
    queue.append((value, a, b))
    index = len(queue) - 1
    while index:
        parent = (index - 1) >> 1
        if not _is_before(queue[index], queue[parent]):
            break
        queue[index], queue[parent] = queue[parent], queue[index]
        index = parent


@njit(cache=True, nogil=True)
def _pop_pair(queue):  # pragma: no cover
    first = queue[0]
    last = queue.pop()
    size = len(queue)
    if size:
        index, child = 0, 1
        while child < size:
            if child + 1 < size and _is_before(queue[child + 1], queue[child]):
                child += 1
            if not _is_before(queue[child], last):
                break
            queue[index] = queue[child]
            index, child = child, 2 * child + 1
        queue[index] = last
    return first


@njit(cache=True, nogil=True)
def _remove_merged_pairs(queue, parent):  # pragma: no cover
    """Remove the pairs of merged regions, whose number grows with the square of a region's neighbors."""
    kept = 0
    for index in range(len(queue)):
        _, a, b = queue[index]
        if parent[a] == a and parent[b] == b:
            queue[kept] = queue[index]
            kept += 1
    while len(queue) > kept:
        queue.pop()
    for start in range(kept // 2 - 1, -1, -1):
        item, index, child = queue[start], start, 2 * start + 1
        while child < kept:
            if child + 1 < kept and _is_before(queue[child + 1], queue[child]):
                child += 1
            if not _is_before(queue[child], item):
                break
            queue[index] = queue[child]
            index, child = child, 2 * child + 1
        queue[index] = item


@njit(cache=True, nogil=True)
def _is_before(one, other):  # pragma: no cover
    if one[0] != other[0]:
        return one[0] > other[0]
    return one[1] < other[1] if one[1] != other[1] else one[2] < other[2]


@njit(cache=True, nogil=True)
def _group_regions(count, sizes, boxes, histograms, pairs, area, by_size, by_fill):  # pragma: no cover
    total, num_nodes = len(sizes), 2 * len(pairs)
    merges = np.empty((count - 1, 2), np.int32)
    # The neighbors of a region are a linked list of nodes. Lists are concatenated when regions are merged, and
    # duplicates are removed when a list is read.
    neighbor, next_node = np.empty(num_nodes, np.int32), np.full(num_nodes, -1, np.int32)
    head, tail = np.full(total, -1, np.int32), np.full(total, -1, np.int32)
    parent = np.arange(total).astype(np.int32)
    visited_by = np.full(total, -1, np.int32)
    queue = [(0.0, 0, 0)]
    queue.pop()
    for p in range(num_nodes):
        a, b = np.int64(pairs[p >> 1, p & 1]), np.int64(pairs[p >> 1, 1 - (p & 1)])
        neighbor[p] = b
        if head[a] < 0:
            head[a] = p
        else:
            next_node[tail[a]] = p
        tail[a] = p
        if a < b:
            _push_pair(queue, _compute_similarity(a, b, sizes, boxes, histograms, area, by_size, by_fill), a, b)
    limit = 2 * len(queue) + MIN_QUEUE
    for new in range(count, total):
        if len(queue) > limit:
            _remove_merged_pairs(queue, parent)
            limit = 2 * len(queue) + MIN_QUEUE
        _, a, b = _pop_pair(queue)
        while parent[a] != a or parent[b] != b:  # one of them was merged after the pair was pushed
            _, a, b = _pop_pair(queue)
        parent[a] = parent[b] = new
        merges[new - count, 0], merges[new - count, 1] = a, b
        sizes[new] = sizes[a] + sizes[b]
        for side in range(2):
            boxes[new, side] = min(boxes[a, side], boxes[b, side])
            boxes[new, 2 + side] = max(boxes[a, 2 + side], boxes[b, 2 + side])
        fraction = np.float32(sizes[a] / sizes[new])
        for f in range(histograms.shape[1]):
            histograms[new, f] = fraction * histograms[a, f] + (1 - fraction) * histograms[b, f]
        next_node[tail[a]] = head[b]
        node, last = head[a], np.int32(-1)
        while node >= 0:
            following_node = next_node[node]
            other = np.int64(find_root(parent, neighbor[node]))
            if other != new and visited_by[other] != new:
                visited_by[other] = new
                neighbor[node] = other
                if last < 0:
                    head[new] = node
                else:
                    next_node[last] = node
                last = node
                value = _compute_similarity(other, new, sizes, boxes, histograms, area, by_size, by_fill)
                _push_pair(queue, value, other, new)
            node = following_node
        tail[new] = last
        if last >= 0:
            next_node[last] = -1
    return merges
