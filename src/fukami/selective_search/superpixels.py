"""Felzenszwalb and Huttenlocher's segmentation: "Efficient Graph-Based Image Segmentation", IJCV 59(2), 2004.

Pixels are nodes, neighbours (eight of them) are joined by edges whose weight is the distance of their colours. From the
lightest edge on, two components become one where the edge is no heavier than the heaviest edge inside each, plus
``scale / size`` of that component. numba compiles the kernels on their first call, and keeps them on the disk.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

WEIGHT_LEVELS = 8192  # of a weight per grey level; 22 bits then hold the heaviest edge, √3 × 255
RADIX_BITS = 11  # bits that a pass of the radix sort looks at
Planes = npt.NDArray[np.float32]
Edges = npt.NDArray[np.uint64]
Labels = npt.NDArray[np.int32]


def build_gaussian_kernel(sigma: float, *, derivative: bool = False) -> npt.NDArray[np.float32]:
    """A Gaussian, or its derivative, as the weights of a filter that reaches four sigma to each side."""
    reach = int(4 * sigma + 0.5)
    at = np.arange(-reach, reach + 1)
    bell = np.exp(-(at**2) / (2 * sigma**2)) if sigma else np.ones(1)
    bell /= bell.sum()
    return np.asarray(bell * at / sigma**2 if derivative else bell, np.float32)


def convolve_separable(
    planes: Planes, vertical: npt.NDArray[np.float32], horizontal: npt.NDArray[np.float32]
) -> Planes:
    """Planes ``(C, H, W)`` under a separable filter, weights downwards and across; an edge goes on beyond itself."""
    out: Planes = _convolve_separable(planes, vertical, horizontal)
    return out


def build_edges(planes: Planes) -> Edges:
    """The graph of planes ``(C, H, W)`` in 0..255, at most 3: its edges, the lightest first.

    The upper half of each is the weight in ``STEPS``, the lower half the pixel it leaves from times 4, plus 0 to 3 for
    the neighbour on the right, below, below on the right and above on the right.
    """
    found: Edges = _radix_sort(_build_edges(planes))
    return found


def segment_graph(edges: Edges, shape: tuple[int, int], scale: float, min_size: int) -> Labels:
    """The segmentation ``(H, W)``: a number for each pixel, those of the components from 0 on in reading order.

    Args:
        edges: what :func:`edges` found.
        shape: height and width of the image.
        scale: k of the paper: the larger, the larger the components.
        min_size: in pixels; smaller components join a neighbour, over the lightest edge first.
    """
    labels: Labels = _segment_graph(edges, *shape, np.float32(scale), min_size)
    return labels


@njit(cache=True, nogil=True)
def _convolve_separable(planes, down, across):  # pragma: no cover
    channels, height, width = planes.shape
    above, left = len(down) // 2, len(across) // 2
    out = np.zeros_like(planes)
    line = np.empty(width + 2 * left, np.float32)
    for c in range(channels):
        for y in range(height):
            line[:] = 0
            for t in range(len(down)):
                source = planes[c, min(max(y + t - above, 0), height - 1)]
                for x in range(width):
                    line[left + x] += down[t] * source[x]
            line[:left] = line[left]
            line[left + width :] = line[left + width - 1]
            target = out[c, y]
            for t in range(len(across)):
                for x in range(width):
                    target[x] += across[t] * line[x + t]
    return out


@njit(cache=True, nogil=True)
def _build_edges(planes):  # pragma: no cover
    channels, height, width = planes.shape
    found = np.empty(4 * height * width, np.uint64)
    count = 0
    for y in range(height):
        for x in range(width):
            for way in range(4):
                v, u = (y, y + 1, y + 1, y - 1)[way], (x + 1, x, x + 1, x + 1)[way]
                if 0 <= v < height and u < width:
                    square = np.float32(0)
                    for c in range(channels):
                        difference = planes[c, y, x] - planes[c, v, u]
                        square += difference * difference
                    weight = np.uint64(np.sqrt(square) * np.float32(WEIGHT_LEVELS) + np.float32(0.5))
                    found[count] = weight << np.uint64(32) | np.uint64((y * width + x) * 4 + way)
                    count += 1
    return found[:count]


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
    """The root of a node's tree; the path to it gets shorter."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def _segment_graph(edges, height, width, scale, smallest):  # pragma: no cover
    parent = np.arange(height * width, dtype=np.int32)
    size = np.ones(height * width, np.int32)
    limit = np.full(height * width, scale, np.float32)  # the heaviest edge inside, plus scale / size
    apart = np.empty(len(edges), np.uint32)  # edges between what was not joined
    ways = np.array((1, width, width + 1, 1 - width), np.int64)
    count = 0
    for edge in edges:
        place = np.int64(edge & np.uint64(0xFFFFFFFF))
        a, b = find_root(parent, place >> 2), find_root(parent, (place >> 2) + ways[place & 3])
        if a != b:
            weight = np.float32(np.int64(edge >> np.uint64(32))) * np.float32(1 / WEIGHT_LEVELS)
            if weight <= limit[a] and weight <= limit[b]:
                if size[a] < size[b]:
                    a, b = b, a
                parent[b] = a
                size[a] += size[b]
                limit[a] = weight + scale / np.float32(size[a])
            else:
                apart[count] = place
                count += 1
    for index in range(count):
        place = np.int64(apart[index])
        a, b = find_root(parent, place >> 2), find_root(parent, (place >> 2) + ways[place & 3])
        if a != b and min(size[a], size[b]) < smallest:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
    labels = np.empty((height, width), np.int32)
    number = np.full(height * width, -1, np.int32)
    found = 0
    for pixel in range(height * width):
        top = find_root(parent, pixel)
        if number[top] < 0:
            number[top] = found
            found += 1
        labels[pixel // width, pixel % width] = number[top]
    return labels
