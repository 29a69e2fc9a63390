"""Images with boxes or masks: samples of a dataset, and padded batches for a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fukami.image.io import UInt8Array

REGULAR, DIFFICULT, CROWD = 0, 1, 2  # kinds of boxes; detections of the last two do not count
PROPOSAL = 3  # region proposal, after all other boxes; its class is -1
UNLABELED = 0  # value of a label map; the others are the class index plus 1


class Mask(Protocol):
    """Interface of the segmentation mask of an image."""

    def read(self) -> UInt8Array:
        """Read the label map ``(H, W)`` of the upright image: 0 unlabeled, otherwise the class index plus 1.

        Raises:
            fukami.Error: the mask is missing, or has a value without a class.
        """

    def fingerprint(self) -> bytes:
        """Return bytes that change with the mask, without decoding a file."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Image with its annotations.

    Args:
        source: image file, or pixels ``(H, W, 3)`` uint8.
        size: width and height of the upright image in pixels.
        boxes: ``(n, 4)`` float32: left, top, right and bottom in pixels of the upright image, where 0 is the outer
            edge of the first pixel and ``size`` that of the last. Boxes are inside the image and have an area.
        classes: ``(n,)`` int64, class indices.
        kinds: ``(n,)`` uint8: ``REGULAR``, ``DIFFICULT`` (VOC), ``CROWD`` (COCO: a box around many) or ``PROPOSAL``.
        name: name for messages.
        mask: segmentation mask, or None.
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
        """Create a sample with a mask and without boxes."""
        empty = np.zeros(0, np.int64)
        return cls(source, size, np.zeros((0, 4), np.float32), empty, empty.astype(np.uint8), name, mask)


class PaddedBatch(NamedTuple):
    """Padded images of one batch, each in the upper left corner of its padded image, and their annotations.

    Attributes:
        images: ``(N, C, H, W)`` uint8, or float in 0..255 after color augmentation or for images of more than 8 bits; H
            and W are multiples of 32.
        sizes: ``(N, 2)`` float32, height and width of each image without its padding, which is 0.
        original_sizes: ``(N, 2)`` float32, height and width of each image in its file.
        boxes: ``(N, M, 4)`` float32 in pixels of the padded image, padded with zeros; M is at least 1.
        classes: ``(N, M)`` int64, -1 for padding and region proposals.
        kinds: ``(N, M)`` uint8 as in :class:`Sample`.
        indices: ``(N,)`` int64, indices of the images in their split.
        seeds: ``(N,)`` int64 below 2^31, seeds of the detector's box sampling; 0 outside training.
        masks: ``(N, H, W)`` uint8 label maps as in :class:`Mask`, 0 in the padding; ``(N, 0, 0)`` for datasets
            with boxes.
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
