"""Detection of small objects in overlapping tiles of a large image (Akyon et al. 2022)."""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fukami.image.tiles import compute_tile_starts
from fukami.layers.boxes import apply_nms, compute_area, compute_intersection
from fukami.layers.detection_types import Detections

EDGE_MARGIN = 4.0  # pixels; a box this close to an edge between two tiles is cut by it
MIN_COVERED = 0.5  # fraction of a cut box inside another box, above which it is discarded
NMS_IOU = 0.5  # IoU threshold of the non-maximum suppression, per class
CHUNK_SIZE = 1000  # cut boxes that are compared with the others at the same time
OVERLAP_FRACTION = 0.25  # overlap of two tiles, as a fraction of their side


def detect_in_tiles(
    image: Tensor, tile_size: int, batch_size: int, detect: Callable[[Tensor], Iterable[Detections]]
) -> Detections:
    """Detect objects in overlapping tiles of an image and in the whole image.

    Non-maximum suppression merges the boxes. A box that an edge between two tiles cuts is the part of an object: it is
    discarded if most of it is inside a box of its class that no edge cuts, from the next tile or the whole image.

    Args:
        image: ``(3, h, w)``.
        tile_size: side of a tile in pixels.
        batch_size: number of tiles per call of ``detect``.
        detect: returns the detections of images ``(N, 3, h, w)``, in their pixels.

    Returns:
        The detections in pixels of the image, by descending score.
    """
    height, width = image.shape[-2:]
    overlap = round(OVERLAP_FRACTION * tile_size)
    corners = list(itertools.product(*(compute_tile_starts(side, tile_size, overlap) for side in (height, width))))
    found = list(detect(image.unsqueeze(0)))
    is_cut = [torch.zeros(len(found[0].boxes), dtype=torch.bool)]
    for start in range(0, len(corners), batch_size):
        chunk = corners[start : start + batch_size]
        images = torch.stack([image[:, top : top + tile_size, left : left + tile_size] for top, left in chunk])
        for (top, left), (boxes, classes, scores) in zip(chunk, detect(images), strict=True):
            shifted = boxes + torch.tensor([left, top, left, top])
            tile = (left, top, left + images.shape[3], top + images.shape[2])
            found.append(Detections(shifted, classes, scores))
            is_cut.append(find_cut_boxes(shifted, tile, (width, height)))
    return merge_detections(Detections(*map(torch.cat, zip(*found, strict=True))), torch.cat(is_cut))


def merge_detections(detections: Detections, is_cut: Tensor) -> Detections:
    """Merge the detections of all tiles; ``is_cut`` ``(n,)`` marks the boxes that an edge cuts."""
    boxes, classes, scores = detections
    is_part = torch.zeros(len(boxes), dtype=torch.bool)
    for rows in torch.split(is_cut.nonzero().flatten(), CHUNK_SIZE):
        covered = compute_intersection(boxes[rows], boxes[~is_cut]) / compute_area(boxes[rows]).clamp(min=1e-6)[:, None]
        is_part[rows] = ((covered > MIN_COVERED) & (classes[rows].unsqueeze(1) == classes[~is_cut])).any(1)
    kept = (~is_part).nonzero().flatten()
    kept = kept[apply_nms(boxes[kept], scores[kept], classes[kept], NMS_IOU)]
    return Detections(boxes[kept], classes[kept], scores[kept])


def find_cut_boxes(boxes: Tensor, tile: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Find the boxes ``(n, 4)`` that reach an edge of their tile which is inside the image, as a mask ``(n,)``.

    ``tile`` is left, top, right and bottom, ``size`` the width and height of the image; all are in its pixels.
    """
    left, top, right, bottom = tile
    width, height = size
    is_inner = torch.tensor([left > 0, top > 0, right < width, bottom < height])
    distances = (boxes - torch.tensor(tile)).abs()
    return ((distances < EDGE_MARGIN) & is_inner).any(1)
