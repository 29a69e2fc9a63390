"""COCO's metrics of object detection (Lin et al. 2014)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from fukami.data.samples import CROWD, REGULAR

if TYPE_CHECKING:
    from fukami.detection.metrics import GroundTruth, Prediction

OBJECT_SIZES = ("small", "medium", "large")  # areas below 32², below 96² and above, in pixels of the box
UNCOUNTED_AREA = 1e12  # outside the range of every size; COCO matches objects of such an area, and then ignores them
MAX_DETECTIONS = 100  # detections per image and class in COCO's metrics


class CocoAnnotation(TypedDict):
    """Object or detection in COCO's JSON format; ``bbox`` is left, top, width and height."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: NotRequired[int]
    score: NotRequired[float]


def compute_coco_metrics(
    samples: Iterable[tuple[int, "Prediction", "GroundTruth"]], num_classes: int
) -> tuple[dict[str, float], dict[int, float]]:
    """Compute COCO's metrics, and ``coco_ap`` of each class that has an object.

    Any number of detections inside a crowd (``iscrowd``) are ignored. A difficult object (VOC) is matched by IoU, once,
    and its detection is ignored, as COCO does for objects outside a size range. Treated as a crowd it would absorb more
    detections. Sizes without a counted object are omitted.

    Args:
        samples: image index, :class:`~fukami.detection.metrics.Prediction` and
            :class:`~fukami.detection.metrics.GroundTruth` of each image.
        num_classes: number of classes.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    objects, detections = _build_coco_annotations(samples)
    images = [{"id": image_index} for image_index in sorted({entry["image_id"] for entry in objects + detections})]
    categories = [{"id": class_index, "name": str(class_index)} for class_index in range(num_classes)]
    truth, predictions = (
        COCO({"images": images, "categories": categories, "annotations": entries}) for entries in (objects, detections)
    )
    evaluation = COCOeval_faster(truth, predictions, iouType="bbox")
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (T, R, K, A, M) and (T, K, A, M)
    all_sizes = precision[:, :, :, 0, 0]
    metrics = {
        "coco_ap": _compute_valid_mean(all_sizes),
        "coco_ap50": _compute_valid_mean(all_sizes[0]),
        "coco_ap75": _compute_valid_mean(all_sizes[5]),
    }
    metrics |= {
        f"coco_ap_{size}": _compute_valid_mean(precision[:, :, :, index, 0])
        for index, size in enumerate(OBJECT_SIZES, start=1)
    }
    metrics["coco_ar100"] = _compute_valid_mean(recall[:, :, 0, 0])
    class_aps = {index: _compute_valid_mean(all_sizes[:, :, index]) for index in range(num_classes)}
    return (
        {name: value for name, value in metrics.items() if not np.isnan(value)},
        {class_index: value for class_index, value in class_aps.items() if not np.isnan(value)},
    )


def _compute_valid_mean(values: npt.NDArray[np.float64]) -> float:
    """Compute the mean without the entries of -1, which COCO writes for classes and sizes without an object."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _build_coco_annotations(
    samples: Iterable[tuple[int, "Prediction", "GroundTruth"]],
) -> tuple[list[CocoAnnotation], list[CocoAnnotation]]:
    """Build the objects and the detections in COCO's JSON format; ids start at 1."""
    objects: list[CocoAnnotation] = []
    detections: list[CocoAnnotation] = []
    for image_index, prediction, truth in samples:
        for box, kind, label in zip(_convert_to_xywh(truth.boxes), truth.kinds, truth.classes.tolist(), strict=True):
            area = box[2] * box[3] if kind in (REGULAR, CROWD) else UNCOUNTED_AREA
            objects.append({"id": len(objects) + 1, "image_id": image_index, "category_id": label, "bbox": box,
                            "area": area, "iscrowd": int(kind == CROWD)})  # fmt: skip
        boxes, classes = _convert_to_xywh(prediction.boxes), prediction.classes.tolist()
        for box, label, score in zip(boxes, classes, prediction.scores.tolist(), strict=True):
            detections.append({"id": len(detections) + 1, "image_id": image_index, "category_id": label, "bbox": box,
                               "area": box[2] * box[3], "score": score})  # fmt: skip
    return objects, detections


def _convert_to_xywh(boxes: npt.NDArray[np.float64]) -> list[list[float]]:
    rows: list[list[float]] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    return rows
