"""Segmentation metrics: confusion matrix, IoU and boundary F-measure."""

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from fukami.errors import Error
from fukami.image.io import UInt8Array

FloatArray = npt.NDArray[np.float64]
BOUNDARY_TOLERANCE = 0.0075  # distance tolerance, as a fraction of the image diagonal (Csurka et al. 2013)


class SegmentationResults:
    """Confusion matrix over all pixels, and metrics of each image.

    Args:
        labels: class names.

    Attributes:
        confusion_matrix: pixel counts ``(classes, classes)``, the true class by row.
        image_scores: by image index, the mean IoU of the image's classes and its boundary F-measure, NaN if the image
            has no boundary.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.confusion_matrix = np.zeros((len(labels), len(labels)), np.int64)
        self.image_scores: dict[int, tuple[float, float]] = {}

    def update(self, index: int, prediction: UInt8Array, truth: UInt8Array) -> None:
        """Add an image: maps ``(H, W)`` of class index + 1, 0 unlabeled; unlabeled true pixels are ignored."""
        prediction = np.where(truth > 0, prediction, 0).astype(np.uint8)
        predictions, targets = (torch.from_numpy(pixels[truth > 0]).long() - 1 for pixels in (prediction, truth))
        classes = len(self.labels)
        counts = torch.bincount(targets * classes + predictions, minlength=classes * classes)
        matrix = counts.view(classes, classes).numpy()
        self.confusion_matrix += matrix
        ious = compute_iou(matrix)[matrix.sum(1) > 0]
        self.image_scores[index] = (
            float(ious.mean()) if len(ious) else float("nan"),
            compute_boundary_f1(prediction, truth),
        )

    def merge(self, results: Iterable[Self]) -> None:
        """Replace these results by the union of ``results``."""
        all_results = list(results)
        self.confusion_matrix = sum(
            (result.confusion_matrix for result in all_results), np.zeros_like(self.confusion_matrix)
        )
        self.image_scores = {index: scores for result in all_results for index, scores in result.image_scores.items()}

    def compute_metrics(self) -> dict[str, float | dict[str, dict[str, float]]]:
        """Compute the metrics of all images.

        ``miou``: mean IoU over the classes that occur; ``accuracy``: pixel accuracy; ``class_accuracy``: mean of the
        accuracies of the classes; ``fw_iou``: IoU weighted by the pixels of each class (frequency weighted);
        ``boundary_f1``; ``count`` of images and their labeled ``pixels``; for each of the ``classes`` its ``iou``,
        ``accuracy`` and ``pixels``.

        Raises:
            Error: there is no labeled pixel.
        """
        class_pixels = self.confusion_matrix.sum(1)
        pixels = int(class_pixels.sum())
        if pixels == 0:
            raise Error("there is no labeled pixel to evaluate; use data with a test split, or a larger --val-fraction")
        occurs = class_pixels > 0
        ious = compute_iou(self.confusion_matrix)
        accuracies = compute_class_accuracy(self.confusion_matrix)
        boundary_f1 = np.array([score for _, score in self.image_scores.values()])
        finite = boundary_f1[np.isfinite(boundary_f1)]
        return {
            "miou": float(ious[occurs].mean()),
            "accuracy": float(np.trace(self.confusion_matrix) / pixels),
            "class_accuracy": float(accuracies[occurs].mean()),
            "fw_iou": float((class_pixels * ious).sum() / pixels),
            **({"boundary_f1": float(finite.mean())} if len(finite) else {}),
            "count": len(self.image_scores),
            "pixels": pixels,
            "classes": self.compute_class_metrics(),
        }

    def compute_class_metrics(self) -> dict[str, dict[str, float]]:
        """Compute ``iou``, ``accuracy`` and ``pixels`` of each class that occurs."""
        class_pixels = self.confusion_matrix.sum(1)
        ious, accuracies = compute_iou(self.confusion_matrix), compute_class_accuracy(self.confusion_matrix)
        return {
            label: {"iou": float(iou), "accuracy": float(accuracy), "pixels": int(pixels)}
            for label, iou, accuracy, pixels in zip(self.labels, ious, accuracies, class_pixels, strict=True)
            if pixels
        }

    def rank_images(self) -> list[int]:
        """Return the image indices by mean IoU, highest first."""
        ious = {index: iou for index, (iou, _) in self.image_scores.items() if np.isfinite(iou)}
        return sorted(ious, key=lambda index: -ious[index])


def compute_iou(confusion_matrix: npt.NDArray[np.int64]) -> FloatArray:
    """Compute the IoU of each class, ``(classes,)``; 0 for a class without pixels."""
    correct = np.diag(confusion_matrix)
    return np.asarray(correct / np.maximum(confusion_matrix.sum(0) + confusion_matrix.sum(1) - correct, 1))


def compute_class_accuracy(confusion_matrix: npt.NDArray[np.int64]) -> FloatArray:
    """Compute the accuracy of each class, ``(classes,)``; 0 for a class without pixels."""
    return np.asarray(np.diag(confusion_matrix) / np.maximum(confusion_matrix.sum(1), 1))


def compute_boundary_f1(prediction: UInt8Array, truth: UInt8Array) -> float:
    """Compute the boundary F-measure of an image, averaged over its true classes (Csurka et al. 2013).

    Precision is the fraction of a class's predicted boundary within 0.75 % of the diagonal of the true one; recall is
    the reverse. A boundary separates two classes; the image border and unlabeled pixels do not count. The result is NaN
    if no class has a boundary.
    """
    max_distance = BOUNDARY_TOLERANCE * float(np.hypot(*truth.shape)) + 1e-9
    (predicted_points, predicted_classes), (true_points, true_classes) = (
        find_boundaries(prediction),
        find_boundaries(truth),
    )
    f_measures = []
    for label in np.unique(true_classes):
        predicted, target = predicted_points[predicted_classes == label], true_points[true_classes == label]
        if len(predicted) == 0:
            f_measures.append(0.0)
            continue
        precision, recall = (
            compute_nearby_fraction(predicted, target, max_distance),
            compute_nearby_fraction(target, predicted, max_distance),
        )
        f_measures.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.mean(f_measures)) if f_measures else float("nan")


def find_boundaries(labels: UInt8Array) -> tuple[npt.NDArray[np.int64], UInt8Array]:
    """Find the pixels ``(n, 2)`` adjacent to another class, ignoring unlabeled ones, and their classes ``(n,)``."""
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
    """Compute the fraction of points that lie within ``max_distance`` of one of the others."""
    # shifted by 1: near 0 the tree needs denormal numbers, and fails where the processor flushes them to 0
    distances, _ = cKDTree(others + 1).query(points + 1, distance_upper_bound=max_distance)
    return float(np.isfinite(distances).mean())
