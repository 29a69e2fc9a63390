"""Pictures with boxes around what is in them: what a source yields, and the batches that a detector sees."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
COUNTED, DIFFICULT, CROWD = 0, 1, 2  # what a box is for: to be found, or not to count whether it is found or not
PROPOSAL = 3  # a box in which something may be, after all others; its class is -1


@dataclass(frozen=True, eq=False)
class Annotated:
    """One picture and what is in it.

    Args:
        source: its file, or its pixels ``(H, W, 3)`` uint8.
        size: width and height in pixels, upright.
        boxes: ``(n, 4)`` float32: left, top, right and bottom in pixels of the upright picture, where 0 is the outer
            edge of the first pixel and ``size`` that of the last; inside the picture, and with an area.
        classes: ``(n,)`` int64, numbers of the labels.
        kinds: ``(n,)`` uint8: ``COUNTED``, ``DIFFICULT`` (VOC), ``CROWD`` (COCO: a box around many) or ``PROPOSAL``.
        name: what messages call it.
    """

    source: Path | Bytes
    size: tuple[int, int]
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    name: str


class Batch(NamedTuple):
    """Pictures of one batch, each in the upper left corner of a frame as large as the largest, and their boxes.

    Attributes:
        pictures: ``(N, 3, H, W)`` uint8, or float in 0..255 where recoloured; H and W are multiples of 32.
        sizes: ``(N, 2)`` float32, height and width of each picture in the frame; beyond them it is 0.
        originals: ``(N, 2)`` float32, height and width of each picture as it is in its file.
        boxes: ``(N, M, 4)`` float32 in pixels of the frame, zeros where a picture has fewer than M; M is at least 1.
        classes: ``(N, M)`` int64, -1 where there is no box, or one that was only proposed.
        kinds: ``(N, M)`` uint8 as in :class:`Annotated`.
        numbers: ``(N,)`` int64, of the pictures in their part of the data.
        draws: ``(N,)`` int64 below 2^31, from which a detector draws its samples; 0 where nothing is trained.
    """

    pictures: Tensor
    sizes: Tensor
    originals: Tensor
    boxes: Tensor
    classes: Tensor
    kinds: Tensor
    numbers: Tensor
    draws: Tensor
