"""Plots of a detector's evaluation, and its metrics in the log, the report and the leaderboard."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fukami.detection import plots as detection_plots
from fukami.detection.metrics import DetectionResults, ErrorCase, GroundTruth, Prediction

RECIPE = Path(__file__).parents[1].joinpath("bright.py")


def build_results(detections, objects, labels):
    """Results of an image of index 7 with detections ``(class, score, box)`` and objects ``(class, box)``."""
    results = DetectionResults(labels)
    classes, scores, boxes = zip(*detections, strict=True) if detections else ((), (), ())
    object_classes, object_boxes = zip(*objects, strict=True)
    truth = GroundTruth(np.array(object_boxes), object_classes, np.zeros(len(objects)))
    results.update(7, Prediction(np.array(boxes), classes, scores), truth)
    return results


def test_every_figure_has_a_title():
    """Only images with errors are loaded, and a class without objects has no bar."""
    detections = [(0, 0.9, (0, 0, 40, 40)), (0, 0.8, (50, 50, 70, 90)), (1, 0.7, (10, 10, 30, 30))]
    results = build_results(detections, [(0, (0, 0, 40, 40)), (1, (60, 10, 90, 40))], ("cat", "dog", "$cow_1"))
    loaded = []

    def image(index):
        loaded.append(index)
        return Image.new("L", (120, 100), 90)

    figures = dict(detection_plots.plot_evaluation(results, image))
    assert list(figures) == [
        "Average precision by class", "Precision-recall curves", "Average precision by IoU threshold and object size",
        "Outcomes of the top detections by class", "Worst false negatives", "Worst false positives",
    ]  # fmt: skip
    assert loaded == [7, 7, 7]
    names = [tick.get_text() for tick in figures["Average precision by class"].axes[0].get_yticklabels()]
    assert names == ["cat  (1)", "dog  (1)"]
    captions = {title: [caption for caption, _ in grid] for title, grid in figures.items() if isinstance(grid, list)}
    assert captions == {
        "Worst false positives": ["cat 0.80 → background", "dog 0.70 → cat"],
        "Worst false negatives": ["dog, not detected"],
        "Precision-recall curves": ["cat 100.0%", "dog 0.0%"],
    }


def test_plots_without_detections(tmp_path):
    """There are more classes than curves, and the figures are saved without a warning."""
    labels = tuple(f"a class of a long name {index}" for index in range(30))
    results = build_results([], [(index, (0, 0, 9, 9)) for index in range(30)], labels)
    figures = dict(detection_plots.plot_evaluation(results, lambda index: Image.new("RGB", (9, 9))))
    assert len(figures) == 5
    for name in ("Precision-recall curves", "Worst false negatives"):
        for _, figure in figures[name]:
            figure.savefig(tmp_path / "figure.png", dpi=20)


@pytest.mark.parametrize(
    ("error", "caption"),
    [
        (("missed", "cat", 0), "cat, not detected"),
        (("missed", "cat", 0.124), "cat, score only 0.12"),
        (("missed", "cat", 0, "dog"), "cat → dog"),
        (("localization", "cat", 0.971), "cat 0.97 → poor localization"),
        (("duplicate", "cat", 0.5), "cat 0.50 → duplicate"),
        (("other class", "a very long name indeed", 0.5, "dog"), "a very long name i... 0.50 → dog"),
    ],
)
def test_captions(error, caption):
    kind, label, score, *confused_label = error
    assert detection_plots.format_caption(ErrorCase(0, kind, label, score, np.zeros(4), *confused_label)) == caption


@pytest.mark.parametrize("box", [(0, 0, 3, 3), (90, 40, 100, 50), (0, 0, 100, 50), (40, 0, 44, 50)])
@pytest.mark.parametrize("related_box", [None, (20, 20, 60, 40)])
def test_a_crop_contains_the_boxes_and_is_inside_the_image(box, related_box):
    error = ErrorCase(0, "localization", "cat", 0.5, np.array(box), related_box=related_box and np.array(related_box))
    left, top, right, bottom = detection_plots.compute_crop(error, (100, 50))
    for corners in (box, related_box) if related_box else (box,):
        assert 0 <= left <= corners[0] < corners[2] <= right <= 100
        assert 0 <= top <= corners[1] < corners[3] <= bottom <= 50


@pytest.mark.report
def test_metrics_by_class_are_in_the_json_and_not_in_the_console_report_or_leaderboard(fukami, tmp_path):
    result = fukami("train", RECIPE, "--out", "run", "--device", "cpu")
    assert result.status == 0, result.err
    assert result.json[0]["classes"]["lamp"]["objects"] == 3
    assert next(iter(result.json[0])) == "map"
    assert "objects 3" in result.err
    assert "lamp" not in result.err
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"map {result.json[0]['map']:.4f} · map 11" in report
    assert "lamp" not in report.partition("<h2>Configuration")[0]
    table = fukami("board", ".")
    assert ": map" in table.out
    (evaluation,) = fukami("eval", "run", "--device", "cpu", "--out", "page", "--recipe", RECIPE).json
    assert evaluation["classes"] == result.json[0]["classes"]
