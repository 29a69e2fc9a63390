"""The figures of a detector's judgement, and who else reads it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fukami.detection import plots as detection_plots
from fukami.detection.metrics import DetectionResults, ErrorCase, GroundTruth, Prediction

RECIPE = Path(__file__).parents[1].joinpath("bright.py")


def judged(answers, objects, labels):
    found = DetectionResults(labels)
    classes, scores, boxes = zip(*answers, strict=True) if answers else ((), (), ())
    numbers, there = zip(*objects, strict=True)
    found.update(
        7, Prediction(np.array(boxes), classes, scores), GroundTruth(np.array(there), numbers, np.zeros(len(objects)))
    )
    return found


def test_every_figure():
    """A title each; the images that are asked for are those of the mistakes; a class without objects has no bar."""
    answers = [(0, 0.9, (0, 0, 40, 40)), (0, 0.8, (50, 50, 70, 90)), (1, 0.7, (10, 10, 30, 30))]
    found = judged(answers, [(0, (0, 0, 40, 40)), (1, (60, 10, 90, 40))], ("cat", "dog", "$cow_1"))
    asked = []

    def image(number):
        asked.append(number)
        return Image.new("L", (120, 100), 90)

    figures = dict(detection_plots.plot_evaluation(found, image))
    assert list(figures) == [
        "Average precision by class", "Precision and recall", "By strictness and by size",
        "What the strongest detections of each class are", "Worst misses", "Worst false alarms",
    ]  # fmt: skip
    assert asked == [7, 7, 7]
    names = [tick.get_text() for tick in figures["Average precision by class"].axes[0].get_yticklabels()]
    assert names == ["cat  (1)", "dog  (1)"]
    titles = [axes.get_title() for axes in figures["Worst false alarms"].axes]
    assert titles == ["cat 0.80 → background", "dog 0.70 → cat"]
    assert [axes.get_title() for axes in figures["Worst misses"].axes] == ["dog, not found"]
    titles = [axes.get_title() for axes in figures["Precision and recall"].axes]
    assert titles == ["cat  100.0 %", "dog  0.0 %"]


def test_nothing_found(tmp_path):
    """Of more classes than there is room for; and it can be written without a warning."""
    labels = tuple(f"a class of a long name {number}" for number in range(30))
    found = judged([], [(number, (0, 0, 9, 9)) for number in range(30)], labels)
    figures = dict(detection_plots.plot_evaluation(found, lambda number: Image.new("RGB", (9, 9))))
    assert len(figures) == 5
    for name in ("Precision and recall", "Worst misses"):
        figures[name].savefig(tmp_path / "figure.png", dpi=20)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (("missed", "cat", 0), "cat, not found"),
        (("missed", "cat", 0.124), "cat, at 0.12 only"),
        (("missed", "cat", 0, "dog"), "cat → dog"),
        (("localisation", "cat", 0.971), "cat 0.97 → badly placed"),
        (("duplicate", "cat", 0.5), "cat 0.50 → found before"),
        (("another class", "a very long name indeed", 0.5, "dog"), "a very long name i... 0.50 → dog"),
    ],
)
def test_captions(mistake, words):
    kind, label, score, *other = mistake
    assert detection_plots.format_caption(ErrorCase(0, kind, label, score, np.zeros(4), *other)) == words


@pytest.mark.parametrize("box", [(0, 0, 3, 3), (90, 40, 100, 50), (0, 0, 100, 50), (40, 0, 44, 50)])
@pytest.mark.parametrize("near", [None, (20, 20, 60, 40)])
def test_the_part_shown_has_the_boxes_and_lies_in_the_image(box, near):
    mistake = ErrorCase(0, "localisation", "cat", 0.5, np.array(box), related_box=near and np.array(near))
    left, top, right, bottom = detection_plots.compute_crop(mistake, (100, 50))
    for each in (box, near) if near else (box,):
        assert 0 <= left <= each[0] < each[2] <= right <= 100
        assert 0 <= top <= each[1] < each[3] <= bottom <= 50


def test_a_run_judged_by_classes_is_logged_reported_and_ranked(fukami, tmp_path):
    """What is nested stands in the files and in the answers, and in no line that a person reads."""
    answer = fukami("train", RECIPE, "--out", "run", "--device", "cpu")
    assert answer.status == 0, answer.err
    assert answer.json[0]["classes"]["lamp"]["objects"] == 3
    assert next(iter(answer.json[0])) == "map"
    assert "classes" not in answer.err
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"map {answer.json[0]['map']:.4f} · map 11" in report
    assert "lamp" not in report.partition("What made it")[0].partition("Repeat it")[0]
    table = fukami("board", ".")
    assert ": map" in table.out
    (judged,) = fukami("eval", "run", "--device", "cpu", "--out", "page", "--recipe", RECIPE).json
    assert judged["classes"] == answer.json[0]["classes"]
