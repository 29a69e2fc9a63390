"""Images with boxes or masks of what is in them: what a source yields, and the batches that a network sees."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

UInt8Array = npt.NDArray[np.uint8]
REGULAR, DIFFICULT, CROWD = 0, 1, 2  # what a box is for: to be found, or not to count whether it is found or not
PROPOSAL = 3  # a box in which something may be, after all others; its class is -1
UNLABELLED = 0  # in a map of classes, whose other values are the numbers of the classes and 1


class Mask(Protocol):
    """What each pixel of an image is."""

    def read(self) -> UInt8Array:
        """The map ``(H, W)`` of the upright image: 0 unlabelled, from 1 on the number of the class and 1.

        Raises:
            fukami.Error: there is none, or it has what is of no class.
        """

    def fingerprint(self) -> bytes:
        """What changes when the mask does, found without decoding a file."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is in it.

    Args:
        source: its file, or its pixels ``(H, W, 3)`` uint8.
        size: width and height in pixels, upright.
        boxes: ``(n, 4)`` float32: left, top, right and bottom in pixels of the upright image, where 0 is the outer
            edge of the first pixel and ``size`` that of the last; inside the image, and with an area.
        classes: ``(n,)`` int64, numbers of the labels.
        kinds: ``(n,)`` uint8: ``COUNTED``, ``DIFFICULT`` (VOC), ``CROWD`` (COCO: a box around many) or ``PROPOSAL``.
        name: what messages call it.
        mask: what each of its pixels is; None: not known.
    """

    source: Path | UInt8Array
    size: tuple[int, int]
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    name: str
    mask: Mask | None = None

    @classmethod
    def from_mask(cls, source: Path | UInt8Array, size: tuple[int, int], name: str, mask: Mask) -> Self:
        """An image whose pixels are known, without boxes."""
        none = np.zeros(0, np.int64)
        return cls(source, size, np.zeros((0, 4), np.float32), none, none.astype(np.uint8), name, mask)


class PaddedBatch(NamedTuple):
    """Images of one batch, each in the upper left corner of a frame as large as the largest, and their boxes.

    Attributes:
        images: ``(N, 3, H, W)`` uint8, or float in 0..255 where recoloured; H and W are multiples of 32.
        sizes: ``(N, 2)`` float32, height and width of each image in the frame; beyond them it is 0.
        original_sizes: ``(N, 2)`` float32, height and width of each image as it is in its file.
        boxes: ``(N, M, 4)`` float32 in pixels of the frame, zeros where an image has fewer than M; M is at least 1.
        classes: ``(N, M)`` int64, -1 where there is no box, or one that was only proposed.
        kinds: ``(N, M)`` uint8 as in :class:`Annotated`.
        indices: ``(N,)`` int64, of the images in their part of the data.
        seeds: ``(N,)`` int64 below 2^31, from which a detector draws its samples; 0 where nothing is trained.
        masks: ``(N, H, W)`` uint8 maps as of :class:`Mask`, 0 beyond the images; ``(N, 0, 0)`` where there are
            boxes.
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    boxes: Tensor
    classes: Tensor
    kinds: Tensor
    indices: Tensor
    seeds: Tensor
    masks: Tensor
