"""Average precision: cases by hand, VOC's development kit rewritten, pycocotools, and what a judgement must survive."""

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


def detections(*images, labels=LABELS):
    """Images of ``[(class, score, box)], [(class, kind, box)]`` each."""
    found = DetectionResults(labels)
    for number, (answers, objects) in enumerate(images):
        classes, scores, boxes = zip(*answers, strict=True) if answers else ((), (), ())
        labels, kinds, there = zip(*objects, strict=True) if objects else ((), (), ())
        found.update(number, Prediction(np.array(boxes), classes, scores), GroundTruth(np.array(there), labels, kinds))
    return found


def cats(*boxes, kind=REGULAR):
    return [(0, kind, box) for box in boxes]


def test_all_are_found():
    found = detections(([(0, 0.9, A), (1, 0.8, B)], [*cats(A), (1, REGULAR, B)]))
    assert found.compute_metrics() == {
        "map": 1, "map_11": 1, "coco_ap": pytest.approx(1), "coco_ap50": pytest.approx(1),
        "coco_ap75": pytest.approx(1), "coco_ap_small": pytest.approx(1), "coco_ar100": 1, "count": 1, "objects": 2,
        "classes": {
            "cat": {"ap": 1, "ap_11": 1, "coco_ap": pytest.approx(1), "objects": 1},
            "dog": {"ap": 1, "ap_11": 1, "coco_ap": pytest.approx(1), "objects": 1},
        },
    }  # fmt: skip
    assert next(iter(found.compute_metrics())) == "map"
    assert list(found.compute_metrics())[-1] == "classes"
    assert found.find_false_negatives(9) == found.find_false_positives(9) == []


@pytest.mark.parametrize(
    ("answers", "objects", "every", "eleven"),
    [
        # one of two found: recall 1/2 at precision 1, which 6 of the 11 points reach
        ([(0, 0.9, A)], cats(A, B), 1 / 2, 6 / 11),
        # right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
        ([(0, 0.9, A), (0, 0.8, C), (0, 0.7, B)], cats(A, B), 1 / 2 + 1 / 2 * 2 / 3, (6 + 5 * 2 / 3) / 11),
        # the second detection of an object is wrong, so the order is right, wrong, right again
        ([(0, 0.9, A), (0, 0.8, A), (0, 0.7, B)], cats(A, B), 1 / 2 + 1 / 2 * 2 / 3, (6 + 5 * 2 / 3) / 11),
        # a false alarm above everything
        ([(0, 0.9, C), (0, 0.5, A)], cats(A), 1 / 2, 1 / 2),
        # a difficult object that is found, twice even, counts neither for nor against
        ([(0, 0.9, C), (0, 0.8, C), (0, 0.5, A)], cats(A) + cats(C, kind=DIFFICULT), 1, 1),
        # one that is missed neither
        ([(0, 0.5, A)], cats(A) + cats(C, kind=DIFFICULT), 1, 1),
        # a detection that lies in a crowd, however small it is
        ([(0, 0.9, (42, 2, 44, 4)), (0, 0.5, A)], cats(A) + cats(C, kind=CROWD), 1, 1),
        # but a crowd takes no object away from a detection
        ([(0, 0.5, A)], cats(A) + cats((0, 0, 50, 10), kind=CROWD), 1, 1),
        # IoU of exactly 1/2 is enough, less is not
        ([(0, 0.5, (0, 0, 10, 5))], cats(A), 1, 1),
        ([(0, 0.5, (0, 0, 10, 4.9))], cats(A), 0, 0),
        # a box of no area
        ([(0, 0.5, (3, 3, 3, 3))], cats(A), 0, 0),
        # nothing found
        ([], cats(A), 0, 0),
        # three of ten at precision 1: 0, 0.1, 0.2 and 0.3 are reached, 4 of the 11 points
        ([(0, 0.9, (20 * n, 0, 20 * n + 9, 9)) for n in range(3)],
         cats(*[(20 * n, 0, 20 * n + 9, 9) for n in range(10)]), 3 / 10, 4 / 11),
    ],
)  # fmt: skip
def test_by_hand(answers, objects, every, eleven):
    found = detections((answers, objects)).compute_metrics()
    assert (found["map"], found["map_11"]) == (pytest.approx(every), pytest.approx(eleven))
    assert list(found["classes"]) == ["cat"]  # no dog is there, so no dog is judged


def test_equal_scores_keep_the_order_of_the_images_whoever_had_them():
    """The earlier image first, as a stable sort has it: right, wrong; in the other order wrong, right."""
    right, wrong = ([(0, 0.5, A)], cats(A)), ([(0, 0.5, C)], cats(B))
    assert detections(right, wrong).compute_metrics()["map"] == 1 / 2
    assert detections(wrong, right).compute_metrics()["map"] == 1 / 4
    whole, first, second = (detections(wrong, right) for _ in range(3))
    del first.images[0], second.images[1]
    second.compute_metrics()
    first.merge([pickle.loads(pickle.dumps(second)), whole])
    assert first.compute_metrics() == whole.compute_metrics()
    assert whole.compute_metrics()["count"] == 2


def test_an_image_that_comes_twice_counts_once():
    found = detections(([(0, 0.5, A)], cats(A)))
    found.update(0, Prediction([C], [0], [0.9]), GroundTruth([A], [0], [REGULAR]))
    assert found.compute_metrics()["count"] == found.compute_metrics()["map"] == 1


def test_nothing_to_judge():
    for found in (detections(), detections(([(0, 0.5, A)], [])), detections(([], cats(A, kind=DIFFICULT)))):
        with pytest.raises(Error, match="no object to judge"):
            found.compute_metrics()


def test_nothing_found_at_all_is_quiet(capfd):
    found = detections(([], cats(A)), ([], []))
    metrics = found.compute_metrics()
    assert (metrics["map"], metrics["coco_ap"], metrics["coco_ar100"]) == (0, 0, 0)
    assert found.find_best_threshold(0) == 1
    assert [miss.score for miss in found.find_false_negatives(9)] == [0]
    assert capfd.readouterr() == ("", "")


def world(random, images=40, classes=3, kinds=(REGULAR,)):
    """Random objects, detections more or less on them, and false alarms; some scores are equal."""
    for number in range(images):
        count = random.integers(0, 6)
        corners = random.uniform(0, 300, (count, 2))
        objects = np.concatenate([corners, corners + random.uniform(8, 200, (count, 2))], 1)
        labels = random.integers(0, classes, count)
        boxes = np.concatenate([objects + random.normal(0, 6, (count, 4)), objects + random.normal(0, 16, (count, 4)),
                                random.uniform((0, 0, 210, 210), (200, 200, 410, 410), (3, 4))])  # fmt: skip
        answers = np.concatenate([labels, labels, random.integers(0, classes, 3)])
        scores = random.integers(1, 60, len(answers)) / 60
        yield number, Prediction(boxes, answers, scores), GroundTruth(objects, labels, random.choice(kinds, count))


def development_kit(images, label):
    """VOCevaldet.m, line by line: AP of all points and of eleven."""
    objects = {number: (truth.boxes[truth.classes == label], truth.kinds[truth.classes == label] == DIFFICULT)
               for number, _, truth in images}  # fmt: skip
    taken = {number: [False] * len(boxes) for number, (boxes, _) in objects.items()}
    positive = sum(int((~difficult).sum()) for _, difficult in objects.values())
    answers = [(score, number, box) for number, found, _ in images
               for box, score in zip(found.boxes[found.classes == label], found.scores[found.classes == label],
                                     strict=True)]  # fmt: skip
    answers.sort(key=lambda answer: -answer[0])
    tp, fp = np.zeros(len(answers)), np.zeros(len(answers))
    for d, (_, number, bb) in enumerate(answers):
        boxes, difficult = objects[number]
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
                if not taken[number][jmax]:
                    tp[d] = 1
                    taken[number][jmax] = True
                else:
                    fp[d] = 1
        else:
            fp[d] = 1
    fp, tp = np.cumsum(fp), np.cumsum(tp)
    rec, prec = tp / positive, tp / np.maximum(fp + tp, 1)
    eleven = sum(max(prec[rec >= t - 1e-9], default=0) / 11 for t in np.linspace(0, 1, 11))
    mrec, mpre = np.array([0, *rec, 1]), np.array([0, *prec, 0])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    steps = np.flatnonzero(mrec[1:] != mrec[:-1]) + 1
    return float(np.sum((mrec[steps] - mrec[steps - 1]) * mpre[steps])), eleven


def test_voc_agrees_with_its_development_kit(random):
    images = list(world(random, kinds=(REGULAR, REGULAR, DIFFICULT)))
    found = DetectionResults(("a", "b", "c"))
    for image in images:
        found.update(*image)
    for number, each in enumerate(found.compute_metrics()["classes"].values()):
        every, eleven = development_kit(images, number)
        assert 0.1 < every < 0.9
        assert (each["ap"], each["ap_11"]) == (pytest.approx(every), pytest.approx(eleven))


def pycocotools(images, classes):
    """The twelve numbers, and the AP of each class; a difficult object is of no size."""
    given, answers = [], []
    for number, found, truth in images:
        for box, label, kind in zip(truth.boxes.tolist(), truth.classes.tolist(), truth.kinds.tolist(), strict=True):
            size = [box[2] - box[0], box[3] - box[1]]
            given.append(
                {
                    "id": len(given) + 1,
                    "image_id": number,
                    "category_id": label,
                    "iscrowd": int(kind == CROWD),
                    "bbox": [*box[:2], *size],
                    "area": 1e11 if kind == DIFFICULT else size[0] * size[1],
                }
            )
        for box, label, score in zip(found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True):
            answers.append({"image_id": number, "category_id": label, "score": score,
                            "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": number} for number, *_ in images], "annotations": given,
                         "categories": [{"id": number} for number in range(classes)]}  # fmt: skip
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(answers), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged.stats, judged.eval["precision"][:, :, :, 0, 2].mean((0, 1))


def test_coco_agrees_with_pycocotools(random):
    images = list(world(random, kinds=(REGULAR, REGULAR, CROWD, DIFFICULT)))
    found = DetectionResults(("a", "b", "c"))
    for image in images:
        found.update(*image)
    metrics = found.compute_metrics()
    stats, each = pycocotools(images, 3)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [metrics[f"coco_{name}"] for name in names] == pytest.approx(stats[:6])
    assert metrics["coco_ar100"] == pytest.approx(stats[8])
    assert [line["coco_ap"] for line in metrics["classes"].values()] == pytest.approx(each)
    assert metrics["objects"] == sum((truth.kinds == REGULAR).sum() for *_, truth in images)


def test_voc_is_near_coco_at_half(random):
    """Both judge the same curve at the same IoU: by its area, and by 101 points of it."""
    found = DetectionResults(("a", "b", "c"))
    for image in world(random, images=150):
        found.update(*image)
    metrics = found.compute_metrics()
    assert metrics["map"] == pytest.approx(metrics["coco_ap50"], abs=0.01)
    assert metrics["map"] == pytest.approx(metrics["map_11"], abs=0.05)


def test_kinds_of_mistakes():
    """Of each kind one; the best first; what is ignored is no mistake."""
    beside = (5, 0, 15, 10)  # IoU 1/3 with A
    answers = [
        (0, 0.9, C), (0, 0.8, beside), (0, 0.7, B), (0, 0.6, A), (0, 0.5, A), (0, 0.95, (60, 0, 70, 10)),
    ]  # fmt: skip
    objects = [*cats(A), (1, REGULAR, B), *cats((60, 0, 70, 10), kind=DIFFICULT), *cats((80, 0, 99, 9))]
    found = detections((answers, objects))
    alarms = found.find_false_positives(9)
    assert [(alarm.kind, alarm.score, alarm.confused_label) for alarm in alarms] == [
        ("background", 0.9, ""), ("localisation", 0.8, ""), ("another class", 0.7, "dog"), ("duplicate", 0.5, ""),
    ]  # fmt: skip
    assert [None if alarm.related_box is None else tuple(alarm.related_box) for alarm in alarms] == [None, A, B, A]
    assert [alarm.score for alarm in found.find_false_positives(2)] == [0.9, 0.8]
    assert found.count_outcomes().tolist() == [
        [0, 1, 0, 0, 1],
        [0, 0, 0, 0, 0],
    ]  # of the two best, since two cats are there
    misses = [(miss.label, miss.score, miss.confused_label, tuple(miss.box)) for miss in found.find_false_negatives(9)]
    assert misses == [("cat", 0, "", (80, 0, 99, 9)), ("dog", 0, "cat", B)]


def test_an_object_found_below_the_best_threshold_is_a_miss():
    """Precision and recall down to 0.9, 0.8, 0.3: F1 is 2/3, 1/2, 4/5; with more false alarms the last is worse."""
    found = detections(([(0, 0.9, A), (0, 0.8, C), (0, 0.3, B)], cats(A, B)))
    assert found.find_best_threshold(0) == 0.3
    assert found.find_false_negatives(9) == []
    found = detections(([(0, 0.9, A), *[(0, 0.8, C)] * 4, (0, 0.3, B)], cats(A, B)))
    assert found.find_best_threshold(0) == 0.9
    assert [(miss.score, tuple(miss.box)) for miss in found.find_false_negatives(9)] == [(0.3, B)]
    curve = found.compute_curve(0)
    assert curve.scores.tolist() == [0.9, 0.8, 0.8, 0.8, 0.8, 0.3]
    assert curve.recall.tolist() == [0.5] * 5 + [1]
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 2 / 6])


def test_no_threshold_parts_equal_scores():
    """Two at 0.5, of which one is right: down to there are both."""
    found = detections(([(0, 0.5, A), (0, 0.5, C), (0, 0.4, B)], cats(A, B)))
    assert found.find_best_threshold(0) == 0.4
