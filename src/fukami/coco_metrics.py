"""The metrics of COCO, computed by faster-coco-eval."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from fukami.data.boxes import COUNTED, CROWD

SIZES = ("small", "medium", "large")  # less than 32², less than 96², and more, in pixels of the box
BEYOND = 1e12  # an area outside of all sizes, whose objects COCO matches and then ignores
MOST = 100  # detections of a picture and class that are judged


def judge(pictures: Iterable[tuple[int, Any, Any]], classes: int) -> tuple[dict[str, float], dict[int, float]]:
    """The metrics, and ``coco_ap`` of each class that has an object.

    A crowd may hold any number of detections, which are ignored then (``iscrowd``). A difficult object (VOC) is matched
    by IoU, once, and ignored then, as COCO does it with objects of another size than the one in question; as a crowd
    it would hide more. Sizes that no counted object has are left out.

    Args:
        pictures: number, what was found and what is there, of each picture, as in fukami.average_precision.
        classes: how many there are.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    given, answered = _annotations(pictures)
    images = [{"id": number} for number in sorted({each["image_id"] for each in given + answered})]
    categories = [{"id": number, "name": str(number)} for number in range(classes)]
    truth, found = (
        COCO({"images": images, "categories": categories, "annotations": each}) for each in (given, answered)
    )
    judged = COCOeval_faster(truth, found, iouType="bbox")
    judged.params.maxDets = [MOST]
    judged.evaluate()
    judged.accumulate()
    precision, recall = judged.eval["precision"], judged.eval["recall"]  # (T, R, K, A, M) and (T, K, A, M)
    whole = precision[:, :, :, 0, 0]
    metrics = {"coco_ap": _mean(whole), "coco_ap50": _mean(whole[0]), "coco_ap75": _mean(whole[5])}
    metrics |= {f"coco_ap_{size}": _mean(precision[:, :, :, at, 0]) for at, size in enumerate(SIZES, start=1)}
    metrics["coco_ar100"] = _mean(recall[:, :, 0, 0])
    each = {number: _mean(whole[:, :, number]) for number in range(classes)}
    return (
        {name: value for name, value in metrics.items() if not np.isnan(value)},
        {number: value for number, value in each.items() if not np.isnan(value)},
    )


def _mean(values: Any) -> float:
    """Over what is known; COCO writes -1 where a class or a size has no object."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _annotations(pictures: Iterable[tuple[int, Any, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is there and what was found, as the JSON of COCO has it; identities begin at 1."""
    given: list[dict[str, Any]] = []
    answered: list[dict[str, Any]] = []
    for number, found, truth in pictures:
        for box, kind, label in zip(_corner_and_size(truth.boxes), truth.kinds, truth.classes.tolist(), strict=True):
            area = box[2] * box[3] if kind in (COUNTED, CROWD) else BEYOND
            given.append({"id": len(given) + 1, "image_id": number, "category_id": label, "bbox": box, "area": area,
                          "iscrowd": int(kind == CROWD)})  # fmt: skip
        each = zip(_corner_and_size(found.boxes), found.classes.tolist(), found.scores.tolist(), strict=True)
        for box, label, score in each:
            answered.append({"id": len(answered) + 1, "image_id": number, "category_id": label, "bbox": box,
                             "area": box[2] * box[3], "score": score})  # fmt: skip
    return given, answered


def _corner_and_size(boxes: Any) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()  # type: ignore[no-any-return]
