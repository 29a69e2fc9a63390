"""Metrics of object detection: average precision (Everingham et al. 2010), and the kinds of errors."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fukami.data.samples import CROWD, DIFFICULT, REGULAR
from fukami.detection import coco_metrics
from fukami.errors import Error

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MATCH_IOU = 0.5  # minimum IoU of a correct detection (Everingham et al. 2010, section 4.2)

RELATED_IOU = 0.1  # minimum IoU of a false positive with a related object (Hoiem et al. 2012, section 2)

CORRECT, LOCALIZATION, DUPLICATE, OTHER_CLASS, BACKGROUND, IGNORED = range(6)  # outcomes of a detection

OUTCOMES = ("correct", "localization", "duplicate", "other class", "background")

MISSED = "missed"


class Prediction(NamedTuple):
    """Detections in an image: boxes ``(d, 4)`` in its pixels, classes ``(d,)`` and scores ``(d,)``."""

    boxes: FloatArray
    classes: IntArray
    scores: FloatArray


class GroundTruth(NamedTuple):
    """Objects in an image: boxes ``(n, 4)`` in its pixels, classes ``(n,)``, and kinds ``(n,)``.

    The kinds are ``REGULAR``, ``DIFFICULT`` and ``CROWD`` of :mod:`fukami.data.samples`.
    """

    boxes: FloatArray
    classes: IntArray
    kinds: IntArray


class PrecisionRecallCurve(NamedTuple):
    """Precision-recall curve: recall and precision ``(d,)`` at each score ``(d,)``, in descending order."""

    recall: FloatArray
    precision: FloatArray
    scores: FloatArray


@dataclass(frozen=True, eq=False)
class ErrorCase:
    """A missed object (false negative) or a wrong detection (false positive).

    Args:
        image_index: index of the image.
        kind: ``missed``, or the error of a detection: one of ``OUTCOMES`` except the first.
        label: class of the object or of the detection.
        score: score of the detection; for a missed object, of the best detection that matches it, 0 if none does.
        box: left, top, right, bottom of the object or of the detection.
        confused_label: class that a missed object was detected as, or class of the object that a detection of another
            class overlaps; empty if there is none.
        related_box: box of the object that a false positive overlaps.
    """

    image_index: int
    kind: str
    label: str
    score: float
    box: FloatArray
    confused_label: str = ""
    related_box: FloatArray | None = None


class _MatchTable(NamedTuple):
    """Detections and objects of all images with their matches, in ascending order of the image index."""

    image: IntArray  # (D,) index of the image of each detection
    boxes: FloatArray  # (D, 4)
    classes: IntArray  # (D,)
    scores: FloatArray  # (D,)
    outcome: IntArray  # (D,) CORRECT ... IGNORED
    target: IntArray  # (D,) index of the object that it matches or overlaps; -1: none
    object_image: IntArray  # (N,) index of the image of each object
    object_boxes: FloatArray  # (N, 4)
    object_classes: IntArray  # (N,)
    object_kinds: IntArray  # (N,)
    best_score: FloatArray  # (N,) score of the detection that matches it, 0: none
    rival_class: IntArray  # (N,) class of the best false positive of another class that overlaps it; -1: none


class DetectionResults:
    """Detections and ground truth of the evaluated images, and their metrics.

    Args:
        labels: class names.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.images: dict[int, tuple[Prediction, GroundTruth]] = {}

    def update(self, index: int, prediction: Prediction, truth: GroundTruth) -> None:
        """Add the image ``index``; an image that was added before is ignored.

        Boxes are left, top, right, bottom in pixels, where 0 is the outer edge of the first pixel.
        """
        predicted = (np.asarray(prediction.classes, np.int64), np.asarray(prediction.scores, np.float64))
        annotated = (np.asarray(truth.classes, np.int64), np.asarray(truth.kinds, np.int64))
        image = Prediction(_convert_to_array(prediction), *predicted), GroundTruth(_convert_to_array(truth), *annotated)
        self.images.setdefault(index, image)
        self._clear_cache()

    def merge(self, others: Iterable[Self]) -> None:
        """Add the results of other processes; an image that several processes have counts once."""
        for other in others:
            for image_index, image in other.images.items():
                self.images.setdefault(image_index, image)
        self._clear_cache()

    def __getstate__(self) -> dict[str, tuple[str, ...] | dict[int, tuple[Prediction, GroundTruth]]]:
        """Return the arrays to send to another process, without the cache."""
        return {"labels": self.labels, "images": self.images}

    def compute_metrics(self) -> dict[str, float | dict[str, dict[str, float]]]:
        """Compute the metrics of VOC (``map``, ``map_11``) and COCO (``coco_...``), in [0, 1], and those of each class.

        ``map`` is the mean over the classes of the area under the precision-recall curve, at an IoU of 0.5; ``map_11``
        is its 11-point approximation (VOC 2007). ``coco_ap`` is the mean over the IoUs 0.50, 0.55 ... 0.95. Classes
        and sizes without a counted object are omitted.

        Raises:
            Error: no object is annotated.
        """
        if not self.num_objects.any():
            raise Error("there is no object to evaluate on; use a dataset whose test split has annotated objects")
        classes = self.compute_class_metrics()
        means = {f"m{name}": float(np.mean([row[name] for row in classes.values()])) for name in ("ap", "ap_11")}
        counts = {"count": len(self.images), "objects": int(self.num_objects.sum())}
        return {**means, **self.coco_metrics[0], **counts, "classes": classes}

    def compute_class_metrics(self) -> dict[str, dict[str, float]]:
        """Compute ``ap``, ``ap_11``, ``coco_ap`` and the number of ``objects`` of each class with a counted object."""
        classes = {}
        for index in np.flatnonzero(self.num_objects).tolist():
            ap, ap_11 = self.compute_average_precision(index)
            metrics = {"ap": ap, "ap_11": ap_11, "coco_ap": self.coco_metrics[1][index]}
            classes[self.labels[index]] = {**metrics, "objects": int(self.num_objects[index])}
        return classes

    @functools.cached_property
    def coco_metrics(self) -> tuple[dict[str, float], dict[int, float]]:
        """COCO's metrics, and ``coco_ap`` of each class."""
        return coco_metrics.compute_coco_metrics(self._sort_images(), len(self.labels))

    @functools.cached_property
    def num_objects(self) -> IntArray:
        """Number of counted objects of each class ``(classes,)``."""
        matches = self._match_table
        return np.bincount(matches.object_classes[matches.object_kinds == REGULAR], minlength=len(self.labels))

    def compute_average_precision(self, class_index: int) -> tuple[float, float]:
        """Compute the average precision of a class, from all points and from 11 points; 0 without detections.

        Precision is made monotone (Everingham et al. 2015, section 2.4, and the development kit of VOC 2012).
        """
        recall, precision, _ = self.compute_curve(class_index)
        monotone = np.maximum.accumulate(precision[::-1])[::-1]
        area = float(np.sum(np.diff(recall, prepend=0.0) * monotone))
        # compare whole numbers, since in floating point 3 / 10 is below 3 * 0.1
        num_correct = np.round(recall * self.num_objects[class_index]).astype(np.int64)
        first = np.searchsorted(10 * num_correct, np.arange(11) * self.num_objects[class_index])
        return area, float(np.append(monotone, 0.0)[first].mean())

    def compute_curve(self, class_index: int | None = None) -> PrecisionRecallCurve:
        """Compute the precision-recall curve of a class or, for None, of all classes together.

        Ignored detections are excluded.
        """
        matches = self._match_table
        if class_index is None:
            ranked = np.concatenate(self._ranked_detections)
            ranked = ranked[np.argsort(-matches.scores[ranked], kind="stable")]
            num_objects = int(self.num_objects.sum())
        else:
            ranked, num_objects = self._ranked_detections[class_index], int(self.num_objects[class_index])
        num_correct = np.cumsum(matches.outcome[ranked] == CORRECT)
        precision = num_correct / np.arange(1, len(ranked) + 1)
        recall = num_correct / max(num_objects, 1)
        return PrecisionRecallCurve(recall, precision, matches.scores[ranked])

    def find_best_threshold(self, class_index: int | None = None) -> float:
        """Find the score threshold with the highest F1, the harmonic mean of precision and recall.

        It is that of a class or, for None, of all classes together; 1 without correct detections.
        """
        recall, precision, scores = self.compute_curve(class_index)
        f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
        f1[:-1][scores[:-1] == scores[1:]] = 0.0  # a threshold cannot separate equal scores
        return float(scores[f1.argmax()]) if f1.any() else 1.0

    def count_outcomes(self) -> IntArray:
        """Count the outcomes of the top detections of each class: ``(classes, 5)``, columns as in ``OUTCOMES``.

        A class has as many top detections as objects (Hoiem et al. 2012, section 2).
        """
        matches, counts = self._match_table, np.zeros((len(self.labels), len(OUTCOMES)), np.int64)
        for class_index, num_objects in enumerate(self.num_objects):
            top_detections = self._ranked_detections[class_index][:num_objects]
            counts[class_index] = np.bincount(matches.outcome[top_detections], minlength=len(OUTCOMES))
        return counts

    def find_false_negatives(self, limit: int) -> list[ErrorCase]:
        """Find the worst false negatives: undetected objects, the largest first, then those with the lowest scores.

        An object counts as missed if its score is below the best threshold of its class.
        """
        matches = self._match_table
        thresholds = np.array([self.find_best_threshold(class_index) for class_index in range(len(self.labels))])
        indices = np.flatnonzero(
            (matches.object_kinds == REGULAR) & (matches.best_score < thresholds[matches.object_classes])
        )
        areas = _compute_area(matches.object_boxes[indices])
        indices = indices[np.lexsort((-areas, matches.best_score[indices]))][:limit]
        return [
            ErrorCase(
                int(matches.object_image[i]),
                MISSED,
                self.labels[matches.object_classes[i]],
                float(matches.best_score[i]),
                matches.object_boxes[i],
                self.labels[matches.rival_class[i]] if matches.rival_class[i] >= 0 else "",
            )
            for i in indices
        ]

    def find_false_positives(self, limit: int) -> list[ErrorCase]:
        """Find the worst false positives: the wrong detections with the highest scores."""
        matches = self._match_table
        indices = np.flatnonzero((matches.outcome != CORRECT) & (matches.outcome != IGNORED))
        indices = indices[np.argsort(-matches.scores[indices], kind="stable")][:limit]
        cases = []
        for i in indices:
            outcome, target = matches.outcome[i], matches.target[i]
            confused_label = self.labels[matches.object_classes[target]] if outcome == OTHER_CLASS else ""
            related_box = matches.object_boxes[target] if target >= 0 else None
            label, score = self.labels[matches.classes[i]], float(matches.scores[i])
            image, box = int(matches.image[i]), matches.boxes[i]
            cases.append(ErrorCase(image, OUTCOMES[outcome], label, score, box, confused_label, related_box))
        return cases

    def _clear_cache(self) -> None:
        """Clear the cached properties after a change of the images."""
        for name in ("num_objects", "coco_metrics", "_match_table", "_ranked_detections"):
            self.__dict__.pop(name, None)

    def _sort_images(self) -> list[tuple[int, Prediction, GroundTruth]]:
        return [(image_index, *self.images[image_index]) for image_index in sorted(self.images)]

    @functools.cached_property
    def _ranked_detections(self) -> list[IntArray]:
        """Indices of the detections of each class by descending score, without ignored ones; ties in image order."""
        matches = self._match_table
        order = np.lexsort((-matches.scores, matches.classes))
        order = order[matches.outcome[order] != IGNORED]
        return np.split(order, np.searchsorted(matches.classes[order], np.arange(1, len(self.labels))))

    @functools.cached_property
    def _match_table(self) -> _MatchTable:
        """Matches of all images, in the order of their indices, so that the number of processes has no effect."""
        columns: list[tuple[IntArray | FloatArray, ...]] = []
        offset = 0
        for image_index, prediction, truth in self._sort_images():
            outcome, target, best_score, rival = _match_boxes(prediction, truth)
            num_detections, num_objects = len(outcome), len(best_score)
            target = np.where(target >= 0, target + offset, -1)
            offset += num_objects
            detection_columns = (np.full(num_detections, image_index), *prediction, outcome, target)
            columns.append((*detection_columns, np.full(num_objects, image_index), *truth, best_score, rival))
        empty: list[IntArray | FloatArray] = [np.zeros(0, np.int64)] * 12
        empty[1] = empty[7] = np.zeros((0, 4))
        return _MatchTable(*(np.concatenate(column) for column in zip(empty, *columns, strict=True)))


def _match_boxes(prediction: Prediction, truth: GroundTruth) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    """Match the detections of an image to its objects, as the development kit of VOC does.

    A detection is compared with the object of its class that it overlaps most. Each object is matched once, and a
    detection that matches a difficult object is ignored. So is an unmatched detection that lies by half in a crowd of
    its class.

    Returns:
        Outcome and target of each detection, and best score and rival class of each object, as in ``_MatchTable``.
    """
    boxes, classes, scores = prediction
    objects, labels, kinds = truth
    count, is_crowd = len(boxes), kinds == CROWD
    outcome, target = np.full(count, BACKGROUND), np.full(count, -1)
    best_score, rival = np.zeros(len(objects)), np.full(len(objects), -1)
    if not (count and len(objects)):
        return outcome, target, best_score, rival
    intersection = _compute_intersection(boxes, objects)
    area = _compute_area(boxes)[:, None]
    iou = np.where(is_crowd, 0.0, intersection / np.maximum(area + _compute_area(objects) - intersection, 1e-12))
    same_class = classes[:, None] == labels
    same_class_iou, other_class_iou = np.where(same_class, iou, 0.0), np.where(same_class, 0.0, iou)
    rows, nearest = np.arange(count), same_class_iou.argmax(1)
    best_same_class_iou, best_other_class_iou = same_class_iou[rows, nearest], other_class_iou.max(1)
    is_match = best_same_class_iou >= MATCH_IOU
    outcome[best_other_class_iou >= RELATED_IOU] = OTHER_CLASS
    outcome[best_same_class_iou >= RELATED_IOU] = LOCALIZATION
    related = np.where(outcome == LOCALIZATION, nearest, other_class_iou.argmax(1))
    target = np.where(outcome != BACKGROUND, related, -1)
    crowd_overlap = np.where(same_class & is_crowd, intersection / np.maximum(area, 1e-12), 0.0).max(1)
    outcome[is_match] = DUPLICATE
    order = np.argsort(-scores, kind="stable")
    matched, first = np.unique(nearest[order[is_match[order]]], return_index=True)
    best_detections = order[is_match[order]][first]
    outcome[best_detections], best_score[matched] = CORRECT, scores[best_detections]
    outcome[is_match & (kinds[nearest] == DIFFICULT) | ~is_match & (crowd_overlap >= MATCH_IOU)] = IGNORED
    rivals = np.where((other_class_iou >= MATCH_IOU) & (outcome != CORRECT)[:, None], scores[:, None], -np.inf)
    return outcome, target, best_score, np.where(np.isfinite(rivals.max(0)), classes[rivals.argmax(0)], -1)


def _compute_intersection(boxes: FloatArray, objects: FloatArray) -> FloatArray:
    """Compute the area of intersection ``(d, n)`` of each pair of boxes."""
    low = np.maximum(boxes[:, None, :2], objects[:, :2])
    high = np.minimum(boxes[:, None, 2:], objects[:, 2:])
    sides = np.clip(high - low, 0.0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def _compute_area(boxes: FloatArray) -> FloatArray:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _convert_to_array(annotation: Prediction | GroundTruth) -> FloatArray:
    return np.asarray(annotation.boxes, np.float64).reshape(-1, 4)
