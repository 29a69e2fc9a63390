"""Average precision against cases by hand, VOC's development kit (rewritten) and pycocotools, and edge cases."""

import contextlib
import io
import pickle

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fukami import Error
from fukami.data.samples import CROWD, DIFFICULT, REGULAR
from fukami.detection.metrics import DetectionResults, GroundTruth, Prediction

A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
LABELS = ("cat", "dog")


def build_results(*images, labels=LABELS):
    """Results of images, each of ``[(class, score, box)], [(class, kind, box)]``."""
    results = DetectionResults(labels)
    for image_index, (detections, objects) in enumerate(images):
        classes, scores, boxes = zip(*detections, strict=True) if detections else ((), (), ())
        labels, kinds, object_boxes = zip(*objects, strict=True) if objects else ((), (), ())
        prediction = Prediction(np.array(boxes), classes, scores)
        results.update(image_index, prediction, GroundTruth(np.array(object_boxes), labels, kinds))
    return results


def cats(*boxes, kind=REGULAR):
    return [(0, kind, box) for box in boxes]


def test_all_objects_are_detected():
    results = build_results(([(0, 0.9, A), (1, 0.8, B)], [*cats(A), (1, REGULAR, B)]))
    assert results.compute_metrics() == {
        "map": 1, "map_11": 1, "coco_ap": pytest.approx(1), "coco_ap50": pytest.approx(1),
        "coco_ap75": pytest.approx(1), "coco_ap_small": pytest.approx(1), "coco_ar100": 1, "count": 1, "objects": 2,
        "classes": {
            "cat": {"ap": 1, "ap_11": 1, "coco_ap": pytest.approx(1), "objects": 1},
            "dog": {"ap": 1, "ap_11": 1, "coco_ap": pytest.approx(1), "objects": 1},
        },
    }  # fmt: skip
    assert next(iter(results.compute_metrics())) == "map"
    assert list(results.compute_metrics())[-1] == "classes"
    assert results.find_false_negatives(9) == results.find_false_positives(9) == []


@pytest.mark.parametrize(
    ("detections", "objects", "ap", "ap_11"),
    [
        # one of two detected: recall 1/2 at precision 1, which 6 of the 11 points reach
        ([(0, 0.9, A)], cats(A, B), 1 / 2, 6 / 11),
        # correct, wrong, correct: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
        ([(0, 0.9, A), (0, 0.8, C), (0, 0.7, B)], cats(A, B), 1 / 2 + 1 / 2 * 2 / 3, (6 + 5 * 2 / 3) / 11),
        # the second detection of an object is wrong: correct, wrong, correct again
        ([(0, 0.9, A), (0, 0.8, A), (0, 0.7, B)], cats(A, B), 1 / 2 + 1 / 2 * 2 / 3, (6 + 5 * 2 / 3) / 11),
        # a false positive with the highest score
        ([(0, 0.9, C), (0, 0.5, A)], cats(A), 1 / 2, 1 / 2),
        # detections of a difficult object, even two, are ignored
        ([(0, 0.9, C), (0, 0.8, C), (0, 0.5, A)], cats(A) + cats(C, kind=DIFFICULT), 1, 1),
        # a missed difficult object is ignored
        ([(0, 0.5, A)], cats(A) + cats(C, kind=DIFFICULT), 1, 1),
        # a detection inside a crowd is ignored, however small it is
        ([(0, 0.9, (42, 2, 44, 4)), (0, 0.5, A)], cats(A) + cats(C, kind=CROWD), 1, 1),
        # a crowd does not take a detection from an object
        ([(0, 0.5, A)], cats(A) + cats((0, 0, 50, 10), kind=CROWD), 1, 1),
        # an IoU of exactly 1/2 is a match, less is not
        ([(0, 0.5, (0, 0, 10, 5))], cats(A), 1, 1),
        ([(0, 0.5, (0, 0, 10, 4.9))], cats(A), 0, 0),
        # a box without area
        ([(0, 0.5, (3, 3, 3, 3))], cats(A), 0, 0),
        # no detection
        ([], cats(A), 0, 0),
        # three of ten at precision 1: 0, 0.1, 0.2 and 0.3 are reached, 4 of the 11 points
        ([(0, 0.9, (20 * n, 0, 20 * n + 9, 9)) for n in range(3)],
         cats(*[(20 * n, 0, 20 * n + 9, 9) for n in range(10)]), 3 / 10, 4 / 11),
    ],
)  # fmt: skip
def test_average_precision_by_hand(detections, objects, ap, ap_11):
    metrics = build_results((detections, objects)).compute_metrics()
    assert (metrics["map"], metrics["map_11"]) == (pytest.approx(ap), pytest.approx(ap_11))
    assert list(metrics["classes"]) == ["cat"]  # there is no dog, so the class is not evaluated


def test_equal_scores_are_in_image_order_with_any_number_of_processes():
    """The sort is stable, so the AP is that of correct, wrong, or in the other order that of wrong, correct."""
    correct, wrong = ([(0, 0.5, A)], cats(A)), ([(0, 0.5, C)], cats(B))
    assert build_results(correct, wrong).compute_metrics()["map"] == 1 / 2
    assert build_results(wrong, correct).compute_metrics()["map"] == 1 / 4
    complete, first, second = (build_results(wrong, correct) for _ in range(3))
    del first.images[0], second.images[1]
    second.compute_metrics()
    first.merge([pickle.loads(pickle.dumps(second)), complete])
    assert first.compute_metrics() == complete.compute_metrics()
    assert complete.compute_metrics()["count"] == 2


def test_an_image_that_is_added_twice_counts_once():
    results = build_results(([(0, 0.5, A)], cats(A)))
    results.update(0, Prediction([C], [0], [0.9]), GroundTruth([A], [0], [REGULAR]))
    assert results.compute_metrics()["count"] == results.compute_metrics()["map"] == 1


def test_an_evaluation_without_objects_is_an_error():
    for results in (build_results(), build_results(([(0, 0.5, A)], [])), build_results(([], cats(A, kind=DIFFICULT)))):
        with pytest.raises(Error, match="there is no object to evaluate on"):
            results.compute_metrics()


def test_an_evaluation_without_detections_prints_nothing(capfd):
    results = build_results(([], cats(A)), ([], []))
    metrics = results.compute_metrics()
    assert (metrics["map"], metrics["coco_ap"], metrics["coco_ar100"]) == (0, 0, 0)
    assert results.find_best_threshold(0) == 1
    assert [error.score for error in results.find_false_negatives(9)] == [0]
    assert capfd.readouterr() == ("", "")


def generate_images(random, num_images=40, classes=3, kinds=(REGULAR,)):
    """Generate random objects, detections near them, and false positives; some scores are equal."""
    for image_index in range(num_images):
        count = random.integers(0, 6)
        corners = random.uniform(0, 300, (count, 2))
        objects = np.concatenate([corners, corners + random.uniform(8, 200, (count, 2))], 1)
        labels = random.integers(0, classes, count)
        boxes = np.concatenate([objects + random.normal(0, 6, (count, 4)), objects + random.normal(0, 16, (count, 4)),
                                random.uniform((0, 0, 210, 210), (200, 200, 410, 410), (3, 4))])  # fmt: skip
        predicted = np.concatenate([labels, labels, random.integers(0, classes, 3)])
        scores = random.integers(1, 60, len(predicted)) / 60
        yield (
            image_index,
            Prediction(boxes, predicted, scores),
            GroundTruth(objects, labels, random.choice(kinds, count)),
        )


def compute_voc_ap(images, label):
    """Compute the AP from all points and from 11 points as VOCevaldet.m does, line by line."""
    objects = {image_index: (truth.boxes[truth.classes == label], truth.kinds[truth.classes == label] == DIFFICULT)
               for image_index, _, truth in images}  # fmt: skip
    detected = {image_index: [False] * len(boxes) for image_index, (boxes, _) in objects.items()}
    positive = sum(int((~difficult).sum()) for _, difficult in objects.values())
    detections = [(score, image_index, box) for image_index, prediction, _ in images
                  for box, score in zip(prediction.boxes[prediction.classes == label],
                                        prediction.scores[prediction.classes == label], strict=True)]  # fmt: skip
    detections.sort(key=lambda detection: -detection[0])
    tp, fp = np.zeros(len(detections)), np.zeros(len(detections))
    for d, (_, image_index, bb) in enumerate(detections):
        boxes, difficult = objects[image_index]
        ovmax, jmax = -np.inf, -1
        for j, bbgt in enumerate(boxes):
            iw = min(bb[2], bbgt[2]) - max(bb[0], bbgt[0])
            ih = min(bb[3], bbgt[3]) - max(bb[1], bbgt[1])
            if iw > 0 and ih > 0:
                ua = (bb[2] - bb[0]) * (bb[3] - bb[1]) + (bbgt[2] - bbgt[0]) * (bbgt[3] - bbgt[1]) - iw * ih
                if iw * ih / ua > ovmax:
                    ovmax, jmax = iw * ih / ua, j
        if ovmax >= 0.5:
            if not difficult[jmax]:
                if not detected[image_index][jmax]:
                    tp[d] = 1
                    detected[image_index][jmax] = True
                else:
                    fp[d] = 1
        else:
            fp[d] = 1
    fp, tp = np.cumsum(fp), np.cumsum(tp)
    rec, prec = tp / positive, tp / np.maximum(fp + tp, 1)
    ap_11 = sum(max(prec[rec >= t - 1e-9], default=0) / 11 for t in np.linspace(0, 1, 11))
    mrec, mpre = np.array([0, *rec, 1]), np.array([0, *prec, 0])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    steps = np.flatnonzero(mrec[1:] != mrec[:-1]) + 1
    return float(np.sum((mrec[steps] - mrec[steps - 1]) * mpre[steps])), ap_11


def test_voc_metrics_equal_those_of_the_development_kit(random):
    images = list(generate_images(random, kinds=(REGULAR, REGULAR, DIFFICULT)))
    results = DetectionResults(("a", "b", "c"))
    for image in images:
        results.update(*image)
    for class_index, metrics in enumerate(results.compute_metrics()["classes"].values()):
        ap, ap_11 = compute_voc_ap(images, class_index)
        assert 0.1 < ap < 0.9
        assert (metrics["ap"], metrics["ap_11"]) == (pytest.approx(ap), pytest.approx(ap_11))


def compute_pycocotools_metrics(images, classes):
    """Compute the twelve metrics, and the AP of each class; a difficult object is outside every size range."""
    objects, detections = [], []
    for image_index, prediction, truth in images:
        for box, label, kind in zip(truth.boxes.tolist(), truth.classes.tolist(), truth.kinds.tolist(), strict=True):
            size = [box[2] - box[0], box[3] - box[1]]
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image_index,
                    "category_id": label,
                    "iscrowd": int(kind == CROWD),
                    "bbox": [*box[:2], *size],
                    "area": 1e11 if kind == DIFFICULT else size[0] * size[1],
                }
            )
        boxes, labels, scores = (values.tolist() for values in prediction)
        for box, label, score in zip(boxes, labels, scores, strict=True):
            detections.append({"image_id": image_index, "category_id": label, "score": score,
                               "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": image_index} for image_index, *_ in images], "annotations": objects,
                         "categories": [{"id": class_index} for class_index in range(classes)]}  # fmt: skip
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, 2].mean((0, 1))


def test_coco_metrics_equal_those_of_pycocotools(random):
    images = list(generate_images(random, kinds=(REGULAR, REGULAR, CROWD, DIFFICULT)))
    results = DetectionResults(("a", "b", "c"))
    for image in images:
        results.update(*image)
    metrics = results.compute_metrics()
    stats, class_aps = compute_pycocotools_metrics(images, 3)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [metrics[f"coco_{name}"] for name in names] == pytest.approx(stats[:6])
    assert metrics["coco_ar100"] == pytest.approx(stats[8])
    assert [line["coco_ap"] for line in metrics["classes"].values()] == pytest.approx(class_aps)
    assert metrics["objects"] == sum((truth.kinds == REGULAR).sum() for *_, truth in images)


def test_voc_ap_is_close_to_coco_ap50(random):
    """Both integrate the same curve at the same IoU: one by its area, the other by 101 points."""
    results = DetectionResults(("a", "b", "c"))
    for image in generate_images(random, num_images=150):
        results.update(*image)
    metrics = results.compute_metrics()
    assert metrics["map"] == pytest.approx(metrics["coco_ap50"], abs=0.01)
    assert metrics["map"] == pytest.approx(metrics["map_11"], abs=0.05)


def test_kinds_of_errors():
    """There is one error of each kind; they are sorted by score, and an ignored detection is not an error."""
    shifted = (5, 0, 15, 10)  # IoU 1/3 with A
    detections = [
        (0, 0.9, C), (0, 0.8, shifted), (0, 0.7, B), (0, 0.6, A), (0, 0.5, A), (0, 0.95, (60, 0, 70, 10)),
    ]  # fmt: skip
    objects = [*cats(A), (1, REGULAR, B), *cats((60, 0, 70, 10), kind=DIFFICULT), *cats((80, 0, 99, 9))]
    results = build_results((detections, objects))
    errors = results.find_false_positives(9)
    assert [(error.kind, error.score, error.confused_label) for error in errors] == [
        ("background", 0.9, ""), ("localization", 0.8, ""), ("other class", 0.7, "dog"), ("duplicate", 0.5, ""),
    ]  # fmt: skip
    assert [None if error.related_box is None else tuple(error.related_box) for error in errors] == [None, A, B, A]
    assert [error.score for error in results.find_false_positives(2)] == [0.9, 0.8]
    # of the top two detections of a cat, since there are two cats
    assert results.count_outcomes().tolist() == [[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    missed = [
        (error.label, error.score, error.confused_label, tuple(error.box)) for error in results.find_false_negatives(9)
    ]
    assert missed == [("cat", 0, "", (80, 0, 99, 9)), ("dog", 0, "cat", B)]


def test_an_object_detected_below_the_best_threshold_is_a_false_negative():
    """At the thresholds 0.9, 0.8, 0.3 F1 is 2/3, 1/2, 4/5; with more false positives the last is lower."""
    results = build_results(([(0, 0.9, A), (0, 0.8, C), (0, 0.3, B)], cats(A, B)))
    assert results.find_best_threshold(0) == 0.3
    assert results.find_false_negatives(9) == []
    results = build_results(([(0, 0.9, A), *[(0, 0.8, C)] * 4, (0, 0.3, B)], cats(A, B)))
    assert results.find_best_threshold(0) == 0.9
    assert [(error.score, tuple(error.box)) for error in results.find_false_negatives(9)] == [(0.3, B)]
    curve = results.compute_curve(0)
    assert curve.scores.tolist() == [0.9, 0.8, 0.8, 0.8, 0.8, 0.3]
    assert curve.recall.tolist() == [0.5] * 5 + [1]
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 2 / 6])


def test_a_threshold_does_not_separate_equal_scores():
    """A threshold of 0.5 includes both detections with this score, of which one is correct."""
    results = build_results(([(0, 0.5, A), (0, 0.5, C), (0, 0.4, B)], cats(A, B)))
    assert results.find_best_threshold(0) == 0.4


def test_the_best_threshold_of_all_classes_has_the_highest_f1(random):
    """Every score is tried as the threshold, and matches are counted without our own matching."""
    images = list(generate_images(random, classes=2, kinds=(REGULAR, REGULAR, DIFFICULT)))
    results = DetectionResults(LABELS)
    for image in images:
        results.update(*image)

    def compute_f1(threshold):
        correct = wrong = 0
        for _, prediction, truth in images:
            matched = set()
            for n in np.argsort(-prediction.scores, kind="stable"):
                if prediction.scores[n] < threshold:
                    continue
                left, top, right, bottom = prediction.boxes[n]
                ious = []
                for box, label in zip(truth.boxes, truth.classes, strict=True):
                    width = max(0, min(right, box[2]) - max(left, box[0]))
                    height = max(0, min(bottom, box[3]) - max(top, box[1]))
                    area = (right - left) * (bottom - top) + (box[2] - box[0]) * (box[3] - box[1]) - width * height
                    ious.append(width * height / area if label == prediction.classes[n] else 0)
                best = int(np.argmax(ious)) if ious else -1
                if best >= 0 and ious[best] >= 0.5 and truth.kinds[best] == DIFFICULT:
                    continue
                is_correct = best >= 0 and ious[best] >= 0.5 and best not in matched
                correct, wrong = correct + is_correct, wrong + (not is_correct)
                matched |= {best} if is_correct else set()
        return 2 * correct / (correct + wrong + sum((truth.kinds == REGULAR).sum() for _, _, truth in images))

    thresholds = sorted({float(score) for _, prediction, _ in images for score in prediction.scores})
    f1 = [compute_f1(threshold) for threshold in thresholds]
    assert compute_f1(results.find_best_threshold()) == pytest.approx(max(f1))
    assert results.find_best_threshold() in thresholds
    assert max(f1) > f1[0] + 0.05


def test_the_best_threshold_counts_the_objects_of_all_classes():
    """Thresholds 0.9, 0.6, 0.5 and 0.2 give F1 of 2/4, 4/5, 4/6 and 6/7 by hand; with another false one, 4/5 wins."""
    cat_and_dogs = [*cats(A), (1, REGULAR, B), (1, REGULAR, C)]
    detections = [(0, 0.9, A), (1, 0.6, B), (0, 0.5, C), (1, 0.2, C)]
    assert build_results((detections, cat_and_dogs)).find_best_threshold() == 0.2
    detections[3:3] = [(0, 0.4, B), (0, 0.3, C)]
    assert build_results((detections, cat_and_dogs)).find_best_threshold() == 0.6
