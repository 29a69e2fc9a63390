"""How well the classes of pixels are found, and their borders."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from fukami.errors import Error

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
BOUNDARY_TOLERANCE = 0.0075  # of an image's diagonal, by which a border may be off (Csurka et al. 2013, section 3.1)


class SegmentationResults:
    """What was taken for what, pixel by pixel, and how well each image was understood.

    Args:
        labels: what the classes are called.

    Attributes:
        confusion_matrix: ``(classes, classes)`` pixels, the true class by row.
        image_scores: of each image by its number, the mean IoU of the classes that it shows and the boundary
            F-measure, nan where it has no border.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.confusion_matrix = np.zeros((len(labels), len(labels)), np.int64)
        self.image_scores: dict[int, tuple[float, float]] = {}

    def update(self, index: int, prediction: UInt8Array, truth: UInt8Array) -> None:
        """The maps ``(H, W)`` of an image: 0 unlabelled, which counts nothing in the truth, else a class and 1."""
        prediction = np.where(truth > 0, prediction, 0).astype(np.uint8)
        answers, targets = (torch.from_numpy(pixels[truth > 0]).long() - 1 for pixels in (prediction, truth))
        classes = len(self.labels)
        counts = torch.bincount(targets * classes + answers, minlength=classes * classes)
        matrix = counts.view(classes, classes).numpy()
        self.confusion_matrix += matrix
        ious = compute_iou(matrix)[matrix.sum(1) > 0]
        self.image_scores[index] = (
            float(ious.mean()) if len(ious) else float("nan"),
            compute_boundary_f1(prediction, truth),
        )

    def merge(self, results: Iterable[Self]) -> None:
        """Become what all of them are together."""
        several = list(results)
        self.confusion_matrix = sum((each.confusion_matrix for each in several), np.zeros_like(self.confusion_matrix))
        self.image_scores = {number: value for each in several for number, value in each.image_scores.items()}

    def compute_metrics(self) -> dict[str, Any]:
        """What the counts say.

        ``miou``: mean over the classes that occur of intersection by union; ``accuracy``: share of the pixels;
        ``class_accuracy``: mean over the classes of the share of their pixels; ``fw_iou``: IoU weighted by the pixels
        of each class; ``boundary_f1``; ``count`` images and their labelled ``pixels``; and of each of the
        ``classes`` its ``iou``, ``accuracy`` and ``pixels``.

        Raises:
            Error: no pixel has a class.
        """
        own = self.confusion_matrix.sum(1)
        pixels = int(own.sum())
        if pixels == 0:
            raise Error("there is no labelled pixel to judge; give data with a test part, or a larger --holdout")
        there = own > 0
        ious, right = compute_iou(self.confusion_matrix), np.diag(self.confusion_matrix) / np.maximum(own, 1)
        borders = np.array([border for _, border in self.image_scores.values()])
        known = borders[np.isfinite(borders)]
        classes = {
            label: {"iou": float(ious[number]), "accuracy": float(right[number]), "pixels": int(own[number])}
            for number, label in enumerate(self.labels)
            if there[number]
        }
        return {
            "miou": float(ious[there].mean()),
            "accuracy": float(np.trace(self.confusion_matrix) / pixels),
            "class_accuracy": float(right[there].mean()),
            "fw_iou": float((own * ious).sum() / pixels),
            **({"boundary_f1": float(known.mean())} if len(known) else {}),
            "count": len(self.image_scores),
            "pixels": pixels,
            "classes": classes,
        }

    def rank_images(self) -> list[int]:
        """The numbers of the images, the best understood first."""
        known = {number: value for number, (value, _) in self.image_scores.items() if np.isfinite(value)}
        return sorted(known, key=lambda number: -known[number])


def compute_iou(confusion_matrix: npt.NDArray[np.int64]) -> FloatArray:
    """Intersection by union of each class ``(classes,)``; 0 where there is neither."""
    right = np.diag(confusion_matrix)
    return np.asarray(right / np.maximum(confusion_matrix.sum(0) + confusion_matrix.sum(1) - right, 1))


def compute_boundary_f1(prediction: UInt8Array, truth: UInt8Array) -> float:
    """The boundary F-measure of an image (Csurka et al. 2013, section 3.1): the mean over its true classes.

    Precision is the share of a class's found border that lies within 0.75 % of the diagonal of the true one, recall the
    other way round. A border is where the class meets another one, not what is unlabelled nor the end of the image.
    Nan where no class has a border.
    """
    reach = BOUNDARY_TOLERANCE * float(np.hypot(*truth.shape)) + 1e-9
    (ours, seen), (theirs, true) = find_boundaries(prediction), find_boundaries(truth)
    measures = []
    for label in np.unique(true):
        mine, real = ours[seen == label], theirs[true == label]
        if len(mine) == 0:
            measures.append(0.0)
            continue
        precision, recall = compute_nearby_fraction(mine, real, reach), compute_nearby_fraction(real, mine, reach)
        measures.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.mean(measures)) if measures else float("nan")


def find_boundaries(labels: UInt8Array) -> tuple[npt.NDArray[np.int64], UInt8Array]:
    """The pixels ``(n, 2)`` beside one of another class, none of them unlabelled, and their classes ``(n,)``."""
    edge = np.zeros(labels.shape, bool)
    for one, other in (
        ((slice(1, None),), (slice(None, -1),)),
        ((slice(None), slice(1, None)), (..., slice(None, -1))),
    ):
        differ = (labels[one] != labels[other]) & (labels[one] > 0) & (labels[other] > 0)
        edge[one] |= differ
        edge[other] |= differ
    return np.argwhere(edge), labels[edge]


def compute_nearby_fraction(points: npt.NDArray[np.int64], others: npt.NDArray[np.int64], max_distance: float) -> float:
    """The share of the points that have one of the others within reach."""
    # from 1 on: around 0 the tree relies on denormal numbers, and breaks where the processor takes these for 0
    distances, _ = cKDTree(others + 1).query(points + 1, distance_upper_bound=max_distance)
    return float(np.isfinite(distances).mean())
