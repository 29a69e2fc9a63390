"""Graph-based segmentation (Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004).

Pixels are nodes, and edges connect each pixel with its eight neighbors; the weight is the distance of their colors.
The edges are processed from the lightest on. An edge merges two components if it is no heavier than the heaviest edge
inside each, plus ``scale / size`` of that component. numba compiles the kernels on their first call, and caches them on
disk.
"""

import numpy as np
import numpy.typing as npt

from fukami.errors import require_extra

with require_extra("detect", "Selective Search"):
    from numba import njit

WEIGHT_LEVELS = 8192  # steps of a weight per intensity level; the heaviest edge, √3 × 255, then fits into 22 bits
RADIX_BITS = 11  # bits per pass of the radix sort
Image = npt.NDArray[np.float32]
Edges = npt.NDArray[np.uint64]
Labels = npt.NDArray[np.int32]


def build_gaussian_kernel(sigma: float, *, derivative: bool = False) -> npt.NDArray[np.float32]:
    """Build a Gaussian kernel, or its derivative, of radius four sigma."""
    radius = int(4 * sigma + 0.5)
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-(x**2) / (2 * sigma**2)) if sigma else np.ones(1)
    kernel /= kernel.sum()
    return np.asarray(kernel * x / sigma**2 if derivative else kernel, np.float32)


def convolve_separable(image: Image, vertical: npt.NDArray[np.float32], horizontal: npt.NDArray[np.float32]) -> Image:
    """Convolve an image ``(C, H, W)`` with a separable kernel; the borders are replicated."""
    out: Image = _convolve_separable(image, vertical, horizontal)
    return out


def build_edges(image: Image) -> Edges:
    """Build the edges of the graph of an image ``(C, H, W)`` in 0..255, with C <= 3, sorted by weight.

    The upper 32 bits of an edge are its weight times ``WEIGHT_LEVELS``. The lower 32 bits are four times the index of
    its first pixel, plus 0 to 3 for the neighbor to the right, below, below right or above right.
    """
    edges: Edges = _radix_sort(_build_edges(image))
    return edges


def segment_graph(edges: Edges, shape: tuple[int, int], scale: float, min_size: int) -> Labels:
    """Segment the graph: component indices ``(H, W)``, from 0 in reading order.

    Args:
        edges: the sorted edges of :func:`build_edges`.
        shape: height and width of the image.
        scale: k of the paper; larger values give larger components.
        min_size: minimum size in pixels; smaller components are merged with a neighbor, lightest edge first.
    """
    labels: Labels = _segment_graph(edges, *shape, np.float32(scale), min_size)
    return labels


@njit(cache=True, nogil=True)
def _convolve_separable(image, vertical, horizontal):  # pragma: no cover
    channels, height, width = image.shape
    top, left = len(vertical) // 2, len(horizontal) // 2
    out = np.zeros_like(image)
    line = np.empty(width + 2 * left, np.float32)
    for c in range(channels):
        for y in range(height):
            line[:] = 0
            for t in range(len(vertical)):
                source = image[c, min(max(y + t - top, 0), height - 1)]
                for x in range(width):
                    line[left + x] += vertical[t] * source[x]
            line[:left] = line[left]
            line[left + width :] = line[left + width - 1]
            target = out[c, y]
            for t in range(len(horizontal)):
                for x in range(width):
                    target[x] += horizontal[t] * line[x + t]
    return out


@njit(cache=True, nogil=True)
def _build_edges(image):  # pragma: no cover
    channels, height, width = image.shape
    edges = np.empty(4 * height * width, np.uint64)
    count = 0
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                v, u = (y, y + 1, y + 1, y - 1)[direction], (x + 1, x, x + 1, x + 1)[direction]
                if 0 <= v < height and u < width:
                    square = np.float32(0)
                    for c in range(channels):
                        difference = image[c, y, x] - image[c, v, u]
                        square += difference * difference
                    weight = np.uint64(np.sqrt(square) * np.float32(WEIGHT_LEVELS) + np.float32(0.5))
                    edges[count] = weight << np.uint64(32) | np.uint64((y * width + x) * 4 + direction)
                    count += 1
    return edges[:count]


@njit(cache=True, nogil=True)
def _radix_sort(keys):  # pragma: no cover
    other = np.empty_like(keys)
    for shift in (np.uint64(32), np.uint64(32 + RADIX_BITS)):
        starts = np.zeros((1 << RADIX_BITS) + 1, np.int64)
        for key in keys:
            starts[np.int64(key >> shift) % (1 << RADIX_BITS) + 1] += 1
        starts = np.cumsum(starts)
        for key in keys:
            digit = np.int64(key >> shift) % (1 << RADIX_BITS)
            other[starts[digit]] = key
            starts[digit] += 1
        keys, other = other, keys
    return keys


@njit(cache=True, nogil=True)
def find_root(parent, node):  # pragma: no cover
    """Find the root of a node in a disjoint-set forest, and shorten the path to it."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def _segment_graph(edges, height, width, scale, min_size):  # pragma: no cover
    parent = np.arange(height * width, dtype=np.int32)
    size = np.ones(height * width, np.int32)
    limit = np.full(height * width, scale, np.float32)  # the heaviest edge inside, plus scale / size
    rejected = np.empty(len(edges), np.uint32)  # edges that merged nothing
    offsets = np.array((1, width, width + 1, 1 - width), np.int64)
    count = 0
    for edge in edges:
        code = np.int64(edge & np.uint64(0xFFFFFFFF))
        a, b = find_root(parent, code >> 2), find_root(parent, (code >> 2) + offsets[code & 3])
        if a != b:
            weight = np.float32(np.int64(edge >> np.uint64(32))) * np.float32(1 / WEIGHT_LEVELS)
            if weight <= limit[a] and weight <= limit[b]:
                if size[a] < size[b]:
                    a, b = b, a
                parent[b] = a
                size[a] += size[b]
                limit[a] = weight + scale / np.float32(size[a])
            else:
                rejected[count] = code
                count += 1
    for index in range(count):
        code = np.int64(rejected[index])
        a, b = find_root(parent, code >> 2), find_root(parent, (code >> 2) + offsets[code & 3])
        if a != b and min(size[a], size[b]) < min_size:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
    labels = np.empty((height, width), np.int32)
    label_of_root = np.full(height * width, -1, np.int32)
    num_labels = 0
    for pixel in range(height * width):
        root = find_root(parent, pixel)
        if label_of_root[root] < 0:
            label_of_root[root] = num_labels
            num_labels += 1
        labels[pixel // width, pixel % width] = label_of_root[root]
    return labels
