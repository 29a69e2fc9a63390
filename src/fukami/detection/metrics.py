"""Average precision of detections: PASCAL VOC's, and COCO's (Lin et al. 2014)."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fukami.data.samples import CROWD, DIFFICULT, REGULAR
from fukami.errors import Error

OBJECT_SIZES = ("small", "medium", "large")  # less than 32², less than 96², and more, in pixels of the box

UNCOUNTED_AREA = 1e12  # an area outside of all sizes, whose objects COCO matches and then ignores

MAX_DETECTIONS = 100  # detections of an image and class that are judged


def compute_coco_metrics(
    samples: Iterable[tuple[int, Any, Any]], num_classes: int
) -> tuple[dict[str, float], dict[int, float]]:
    """The metrics, and ``coco_ap`` of each class that has an object.

    A crowd may hold any number of detections, which are ignored then (``iscrowd``). A difficult object (VOC) is matched
    by IoU, once, and ignored then, as COCO does it with objects of another size than the one in question; as a crowd
    it would hide more. Sizes that no counted object has are left out.

    Args:
        samples: number, what was found and what is there, of each image, as in fukami.detection.metrics.
        num_classes: how many there are.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    given, answered = _build_coco_annotations(samples)
    images = [{"id": number} for number in sorted({each["image_id"] for each in given + answered})]
    categories = [{"id": number, "name": str(number)} for number in range(num_classes)]
    truth, found = (
        COCO({"images": images, "categories": categories, "annotations": each}) for each in (given, answered)
    )
    judged = COCOeval_faster(truth, found, iouType="bbox")
    judged.params.maxDets = [MAX_DETECTIONS]
    judged.evaluate()
    judged.accumulate()
    precision, recall = judged.eval["precision"], judged.eval["recall"]  # (T, R, K, A, M) and (T, K, A, M)
    whole = precision[:, :, :, 0, 0]
    metrics = {
        "coco_ap": _compute_known_mean(whole),
        "coco_ap50": _compute_known_mean(whole[0]),
        "coco_ap75": _compute_known_mean(whole[5]),
    }
    metrics |= {
        f"coco_ap_{size}": _compute_known_mean(precision[:, :, :, at, 0])
        for at, size in enumerate(OBJECT_SIZES, start=1)
    }
    metrics["coco_ar100"] = _compute_known_mean(recall[:, :, 0, 0])
    each = {number: _compute_known_mean(whole[:, :, number]) for number in range(num_classes)}
    return (
        {name: value for name, value in metrics.items() if not np.isnan(value)},
        {number: value for number, value in each.items() if not np.isnan(value)},
    )


def _compute_known_mean(values: Any) -> float:
    """Over what is known; COCO writes -1 where a class or a size has no object."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _build_coco_annotations(
    samples: Iterable[tuple[int, Any, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is there and what was found, as the JSON of COCO has it; identities begin at 1."""
    given: list[dict[str, Any]] = []
    answered: list[dict[str, Any]] = []
    for number, found, truth in samples:
        for box, kind, label in zip(_convert_to_xywh(truth.boxes), truth.kinds, truth.classes.tolist(), strict=True):
            area = box[2] * box[3] if kind in (REGULAR, CROWD) else UNCOUNTED_AREA
            given.append({"id": len(given) + 1, "image_id": number, "category_id": label, "bbox": box, "area": area,
                          "iscrowd": int(kind == CROWD)})  # fmt: skip
        each = zip(_convert_to_xywh(found.boxes), found.classes.tolist(), found.scores.tolist(), strict=True)
        for box, label, score in each:
            answered.append({"id": len(answered) + 1, "image_id": number, "category_id": label, "bbox": box,
                             "area": box[2] * box[3], "score": score})  # fmt: skip
    return given, answered


def _convert_to_xywh(boxes: Any) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()  # type: ignore[no-any-return]


FloatArray = npt.NDArray[np.float64]

IntArray = npt.NDArray[np.int64]

MATCH_IOU = 0.5  # of IoU, from which on an object is found (Everingham et al. 2010, section 4.2)

RELATED_IOU = 0.1  # of IoU, from which on a false alarm has to do with an object (Hoiem et al. 2012, section 2.1)

CORRECT, LOCALIZATION, DUPLICATE, OTHER_CLASS, BACKGROUND, IGNORED = range(6)  # what a detection is

OUTCOMES = ("right", "localisation", "duplicate", "another class", "background")

MISSED = "missed"


class Prediction(NamedTuple):
    """What was found in an image: boxes ``(d, 4)`` in its pixels, classes ``(d,)`` and scores ``(d,)``."""

    boxes: npt.NDArray[Any]
    classes: npt.NDArray[Any]
    scores: npt.NDArray[Any]


class GroundTruth(NamedTuple):
    """What is in an image: boxes ``(n, 4)`` in its pixels, classes ``(n,)``, and kinds ``(n,)`` as in its data."""

    boxes: npt.NDArray[Any]
    classes: npt.NDArray[Any]
    kinds: npt.NDArray[Any]


class PrecisionRecallCurve(NamedTuple):
    """Recall and precision ``(d,)`` down to each score ``(d,)``, the highest score first."""

    recall: FloatArray
    precision: FloatArray
    scores: FloatArray


@dataclass(frozen=True, eq=False)
class ErrorCase:
    """An object that was missed, or a false alarm.

    Args:
        image_index: of the image.
        kind: ``missed``, or what is wrong with a detection: one of ``KINDS`` but the first.
        label: of the object, or of the detection.
        score: of the detection; of a missed object the best that found it, 0 where none did.
        box: left, top, right, bottom of the object or of the detection.
        confused_label: what another class it was taken for, or what the detection took for its class; empty where
            nothing.
        related_box: the box of the object that a false alarm has to do with.
    """

    image_index: int
    kind: str
    label: str
    score: float
    box: FloatArray
    confused_label: str = ""
    related_box: FloatArray | None = None


class _MatchTable(NamedTuple):
    """Every detection and every object of all images, those of the least number first."""

    image: IntArray  # (D,) number of the image of each detection
    boxes: FloatArray  # (D, 4)
    classes: IntArray  # (D,)
    scores: FloatArray  # (D,)
    outcome: IntArray  # (D,) RIGHT ... IGNORED
    target: IntArray  # (D,) which object it found or has to do with; -1: none
    object_image: IntArray  # (N,) number of the image of each object
    object_boxes: FloatArray  # (N, 4)
    object_classes: IntArray  # (N,)
    object_kinds: IntArray  # (N,)
    best_score: FloatArray  # (N,) score of the detection that found it, 0: none
    rival_class: IntArray  # (N,) class of the strongest wrong detection of another class in its place; -1: none


class DetectionResults:
    """What a detector found in each image beside what is there, and the judgement of it.

    Args:
        labels: what the classes are called.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.images: dict[int, tuple[Prediction, GroundTruth]] = {}

    def update(self, index: int, prediction: Prediction, truth: GroundTruth) -> None:
        """The image ``index``, of which a second time changes nothing.

        Boxes are left, top, right, bottom in pixels, where 0 is the outer edge of the
        first pixel.
        """
        answers = (np.asarray(prediction.classes, np.int64), np.asarray(prediction.scores, np.float64))
        objects = (np.asarray(truth.classes, np.int64), np.asarray(truth.kinds, np.int64))
        image = Prediction(_convert_to_array(prediction), *answers), GroundTruth(_convert_to_array(truth), *objects)
        self.images.setdefault(index, image)
        self._clear_cache()

    def merge(self, others: Iterable[Self]) -> None:
        """Add the images of other processes; those that several of them had count once."""
        for other in others:
            for number, image in other.images.items():
                self.images.setdefault(number, image)
        self._clear_cache()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: plain arrays."""
        return {"labels": self.labels, "images": self.images}

    def compute_metrics(self) -> dict[str, Any]:
        """The metrics of VOC (``map``, ``map_11``) and of COCO (``coco_...``), in [0, 1], and those of each class.

        ``map`` is the mean over the classes of the area under the precision-recall curve, at an IoU of 0.5; ``map_11``
        its approximation by 11 points (VOC 2007). ``coco_ap`` is the mean over the IoUs 0.50, 0.55 ... 0.95. Classes
        and sizes without a counted object are left out.

        Raises:
            Error: there is no object to judge.
        """
        objects = self.num_objects
        if not objects.any():
            raise Error("there is no object to judge; give data with a test part in which something is annotated")
        present = [number for number in range(len(self.labels)) if objects[number]]
        coco, coco_each = compute_coco_metrics(self._sort_images(), len(self.labels))
        classes = {}
        for number in present:
            every, eleven = self.compute_average_precision(number)
            each = {"ap": every, "ap_11": eleven, "coco_ap": coco_each[number], "objects": int(objects[number])}
            classes[self.labels[number]] = each
        means = {f"m{name}": float(np.mean([each[name] for each in classes.values()])) for name in ("ap", "ap_11")}
        counts = {"count": len(self.images), "objects": int(objects.sum())}
        return {**means, **coco, **counts, "classes": classes}

    @functools.cached_property
    def num_objects(self) -> IntArray:
        """Counted objects of each class ``(classes,)``."""
        judged = self._match_table
        return np.bincount(judged.object_classes[judged.object_kinds == REGULAR], minlength=len(self.labels))

    def compute_average_precision(self, class_index: int) -> tuple[float, float]:
        """Of a class: the area under its curve, and the mean of 11 points; 0 where nothing was found.

        Everingham et al. 2010, section 4.2, and the development kit of VOC 2012: precision is made monotone.
        """
        recall, precision, _ = self.compute_curve(class_index)
        monotone = np.maximum.accumulate(precision[::-1])[::-1]
        area = float(np.sum(np.diff(recall, prepend=0.0) * monotone))
        found = np.round(recall * self.num_objects[class_index]).astype(
            np.int64
        )  # in whole numbers, as 3/10 is below 3 × 0.1
        reached = np.searchsorted(10 * found, np.arange(11) * self.num_objects[class_index])
        return area, float(np.append(monotone, 0.0)[reached].mean())

    def compute_curve(self, class_index: int) -> PrecisionRecallCurve:
        """Recall and precision of a class, down to each of its detections; ignored detections are left out."""
        judged = self._match_table
        which = self._ranked_detections[class_index]
        right = np.cumsum(judged.outcome[which] == CORRECT)
        precision = right / np.arange(1, len(which) + 1)
        return PrecisionRecallCurve(right / max(int(self.num_objects[class_index]), 1), precision, judged.scores[which])

    def find_best_threshold(self, class_index: int) -> float:
        """The score down to which the F1 of a class, the harmonic mean of precision and recall, is highest.

        1 where nothing of the class was found.
        """
        recall, precision, scores = self.compute_curve(class_index)
        harmonic = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
        harmonic[:-1][scores[:-1] == scores[1:]] = 0.0  # no score parts detections of the same score
        return float(scores[harmonic.argmax()]) if harmonic.any() else 1.0

    def count_outcomes(self) -> IntArray:
        """What the strongest detections of each class are: ``(classes, 5)`` counts, by column as in ``KINDS``.

        As many of them as the class has objects (Hoiem et al. 2012, section 2.1).
        """
        judged, counts = self._match_table, np.zeros((len(self.labels), len(OUTCOMES)), np.int64)
        for number, objects in enumerate(self.num_objects):
            counts[number] = np.bincount(
                judged.outcome[self._ranked_detections[number][:objects]], minlength=len(OUTCOMES)
            )
        return counts

    def find_false_negatives(self, limit: int) -> list[ErrorCase]:
        """The worst misses: objects never found, the largest first, then those found by the lowest scores.

        Only scores below the best threshold of the class count as such.
        """
        judged = self._match_table
        thresholds = np.array([self.find_best_threshold(number) for number in range(len(self.labels))])
        which = np.flatnonzero(
            (judged.object_kinds == REGULAR) & (judged.best_score < thresholds[judged.object_classes])
        )
        which = which[np.lexsort((-_compute_area(judged.object_boxes[which]), judged.best_score[which]))][:limit]
        return [
            ErrorCase(
                int(judged.object_image[i]),
                MISSED,
                self.labels[judged.object_classes[i]],
                float(judged.best_score[i]),
                judged.object_boxes[i],
                self.labels[judged.rival_class[i]] if judged.rival_class[i] >= 0 else "",
            )
            for i in which
        ]

    def find_false_positives(self, limit: int) -> list[ErrorCase]:
        """The worst false alarms: the wrong detections of the highest scores."""
        judged = self._match_table
        which = np.flatnonzero((judged.outcome != CORRECT) & (judged.outcome != IGNORED))
        which = which[np.argsort(-judged.scores[which], kind="stable")][:limit]
        mistakes = []
        for i in which:
            state, target = judged.outcome[i], judged.target[i]
            other = self.labels[judged.object_classes[target]] if state == OTHER_CLASS else ""
            near = judged.object_boxes[target] if target >= 0 else None
            label, score = self.labels[judged.classes[i]], float(judged.scores[i])
            mistakes.append(
                ErrorCase(int(judged.image[i]), OUTCOMES[state], label, score, judged.boxes[i], other, near)
            )
        return mistakes

    def _clear_cache(self) -> None:
        """What was judged is to be judged again."""
        for name in ("num_objects", "_match_table", "_ranked_detections"):
            self.__dict__.pop(name, None)

    def _sort_images(self) -> list[tuple[int, Prediction, GroundTruth]]:
        return [(number, *self.images[number]) for number in sorted(self.images)]

    @functools.cached_property
    def _ranked_detections(self) -> list[IntArray]:
        """The detections of each class that are not ignored, the highest score first; equals as the images come."""
        judged = self._match_table
        order = np.lexsort((-judged.scores, judged.classes))
        order = order[judged.outcome[order] != IGNORED]
        return np.split(order, np.searchsorted(judged.classes[order], np.arange(1, len(self.labels))))

    @functools.cached_property
    def _match_table(self) -> _MatchTable:
        """All images judged; in the order of their numbers, whichever process had them."""
        columns: list[tuple[npt.NDArray[Any], ...]] = []
        before = 0
        for number, found, truth in self._sort_images():
            state, target, best, rival = _match_boxes(found, truth)
            count, objects = len(state), len(best)
            target = np.where(target >= 0, target + before, -1)
            before += objects
            columns.append(
                (np.full(count, number), *found, state, target, np.full(objects, number), *truth, best, rival)
            )
        empty: list[npt.NDArray[Any]] = [np.zeros(0, np.int64)] * 12
        empty[1] = empty[7] = np.zeros((0, 4))
        return _MatchTable(*(np.concatenate(column) for column in zip(empty, *columns, strict=True)))


def _match_boxes(prediction: Prediction, truth: GroundTruth) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    """What each detection of an image is and to which object it belongs; what found each object, and what else did.

    As the development kit of VOC does it: a detection belongs to the object of its class that it overlaps most, each
    object is found once, and a detection that belongs to a difficult one is ignored. One that belongs to none but
    lies by half in a crowd of its class is ignored as well.
    """
    boxes, classes, scores = prediction
    objects, labels, kinds = truth
    count, crowd = len(boxes), kinds == CROWD
    state, target = np.full(count, BACKGROUND), np.full(count, -1)
    best, rival = np.zeros(len(objects)), np.full(len(objects), -1)
    if not (count and len(objects)):
        return state, target, best, rival
    shared = _compute_intersection(boxes, objects)
    size = _compute_area(boxes)[:, None]
    overlap = np.where(crowd, 0.0, shared / np.maximum(size + _compute_area(objects) - shared, 1e-12))
    same = classes[:, None] == labels
    own, others = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    rows, nearest = np.arange(count), own.argmax(1)
    reached, confused = own[rows, nearest], others.max(1)
    enough = reached >= MATCH_IOU
    state[confused >= RELATED_IOU], state[reached >= RELATED_IOU] = OTHER_CLASS, LOCALIZATION
    near = np.where(state == LOCALIZATION, nearest, others.argmax(1))
    target = np.where(state != BACKGROUND, near, -1)
    inside = np.where(same & crowd, shared / np.maximum(size, 1e-12), 0.0).max(1)
    state[enough] = DUPLICATE
    order = np.argsort(-scores, kind="stable")
    hits, first = np.unique(nearest[order[enough[order]]], return_index=True)
    finders = order[enough[order]][first]
    state[finders], best[hits] = CORRECT, scores[finders]
    state[enough & (kinds[nearest] == DIFFICULT) | ~enough & (inside >= MATCH_IOU)] = IGNORED
    taken = np.where((others >= MATCH_IOU) & (state != CORRECT)[:, None], scores[:, None], -np.inf)
    return state, target, best, np.where(np.isfinite(taken.max(0)), classes[taken.argmax(0)], -1)


def _compute_intersection(boxes: FloatArray, objects: FloatArray) -> FloatArray:
    """The area ``(d, n)`` that each two boxes share."""
    low = np.maximum(boxes[:, None, :2], objects[:, :2])
    high = np.minimum(boxes[:, None, 2:], objects[:, 2:])
    sides = np.clip(high - low, 0.0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def _compute_area(boxes: FloatArray) -> FloatArray:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _convert_to_array(annotation: Prediction | GroundTruth) -> FloatArray:
    return np.asarray(annotation.boxes, np.float64).reshape(-1, 4)
