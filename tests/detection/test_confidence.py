"""The minimum score of predicted boxes: chosen by the training, kept by exports, and the same in every output."""

import re
import warnings

import numpy as np
import pytest
import torch

import fukami as package
from fukami import Error, UsageError
from fukami.detection.faster_rcnn import FasterRCNNVGG16
from fukami.detection.metrics import DetectionResults
from fukami.detection.task import encode_confidence
from fukami.engine import run_weights
from fukami.engine.load_run import load_task
from fukami.engine.recipe import parse_overrides
from fukami.serving import app as serving

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using `httpx`")  # deprecation warning of Starlette
    from fastapi.testclient import TestClient

SMALL = {
    "width_multiplier": 1 / 16, "hidden": 16, "min_size": 96, "anchor_sizes": (16.0, 32.0, 64.0), "batch_norm": True,
    "dropout": 0.0, "epochs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained_detector(tmp_path_factory, scene_files):
    """Run of a small detector, and the scores of all boxes of an image."""
    folder = tmp_path_factory.mktemp("detector")
    recipe = FasterRCNNVGG16(data=str(scene_files), **SMALL)
    package.train(recipe, folder / "run", device="cpu", precision="float32")
    return folder / "run"


@pytest.fixture
def run(trained_detector, scene_files):
    """Run of the detector, an image, and the score of a box in the middle, which becomes the run's threshold."""
    image = scene_files / "valid" / "8.png"
    task = load_task(trained_detector, device="cpu", overrides={"confidence": 0.0})
    scores = [box["score"] for box in task.predict([image])[0]["boxes"]]
    assert len(scores) > 10
    threshold = scores[len(scores) // 2]
    tensors = run_weights.read_weights(trained_detector)
    tensors["model.confidence"] = torch.tensor(round(10_000 * threshold))
    weights = {name: value.clone() for name, value in tensors.items()}
    run_weights.write_weights(trained_detector, weights, name=run_weights.locate_weights(trained_detector).name)
    return trained_detector, image, threshold, sum(score >= threshold for score in scores)


def test_training_saves_the_best_threshold(tmp_path, scene_files, monkeypatch):
    """The metrics are those of all boxes."""
    found = []
    find = DetectionResults.find_best_threshold

    def find_and_record(results, class_index=None):
        found.append(0.43217)
        assert class_index is None
        assert 0 <= find(results) <= 1
        return found[-1]

    recipe = FasterRCNNVGG16(data=str(scene_files), **SMALL)
    monkeypatch.setattr(DetectionResults, "find_best_threshold", find_and_record)
    metrics = package.train(recipe, tmp_path / "run", device="cpu", precision="float32").metrics
    assert len(found) == 1
    task = load_task(tmp_path / "run", device="cpu")
    assert task.get_confidence() == 0.4322
    for confidence in (0.0, 1.0):
        task.confidence = confidence
        assert task.evaluate(recipe.load_data().val)["map"] == metrics["map"]
    assert task.get_confidence() == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "onnx"])
def test_an_export_keeps_the_threshold(run, precision, fukami):
    folder, _, threshold, _ = run
    assert fukami("export", folder, "--to", precision, "--out", "exported").status == 0
    assert load_task("exported", device="cpu").get_confidence() == threshold


def test_all_outputs_have_the_same_boxes(run, fukami, tmp_path, monkeypatch):
    """JSON, drawing, page and HTTP; a flag and a request override the run's threshold, until the next request."""
    folder, image, threshold, count = run
    drawn = []
    monkeypatch.setattr("fukami.image.draw.draw_boxes", lambda picture, boxes, labels: drawn.append(boxes) or picture)
    (prediction,) = fukami("predict", folder, image, "--out", tmp_path / "drawn").json
    assert len(prediction["boxes"]) == count
    assert min(box["score"] for box in prediction["boxes"]) == threshold
    assert drawn == [prediction["boxes"]]
    (others,) = fukami("predict", folder, image, "--confidence", "0").json
    assert others["boxes"][:count] == prediction["boxes"]
    assert len(others["boxes"]) > count
    task = load_task(folder, device="cpu")
    info = {"recipe": "r", "labels": list(task.labels), "versions": {}, "confidence": threshold}
    client = TestClient(serving.create_app(task, info), "http://localhost")
    with client:
        form = {"file": ("8.png", image.read_bytes(), "image/png")}
        (served,) = client.post("/predict", files=form).json()
        assert served["boxes"] == prediction["boxes"]
        page = client.post("/", files=form).text
        (summary,) = re.findall('<p class="metrics">(.*?)</p>', page)
        assert sum(map(int, re.findall(r"(\d+) ×", summary))) == count
        assert f'placeholder="{threshold}"' in page
        for response in (
            client.post("/predict", files=form, data={"confidence": "0"}),
            client.post("/predict?confidence=0", content=image.read_bytes(), headers={"content-type": "image/png"}),
        ):
            assert response.json()[0]["boxes"] == others["boxes"]
        assert (
            'name="confidence" min="0" max="1" step="any" value="0.0"'
            in client.post("/", files=form, data={"confidence": "0"}).text
        )
        assert client.post("/predict", files=form).json() == [served]
        for value in ("2", "nan", "x"):
            response = client.post("/predict", files=form, data={"confidence": value})
            assert response.status_code == 422
            assert "confidence should be a number between 0 and 1" in response.json()["error"]


def test_the_threshold_is_checked(fukami, digit_files, trained_detector, tmp_path):
    with pytest.raises(UsageError, match="confidence should be between 0 and 1"):
        FasterRCNNVGG16(confidence=1.5)
    assert parse_overrides(FasterRCNNVGG16, ["confidence=0.3"]) == {"confidence": 0.3}
    file = next(digit_files.rglob("*.png"))
    for run, flags, message in [
        (trained_detector, ("--confidence", "2"), "between 0 and 1"),
        (trained_detector, ("--tiles", "3"), "at least 32"),
        ("deep-convnet", ("--confidence", "0.5"), "predicts no boxes"),
        ("deep-convnet", ("--tiles", "64"), "predicts no boxes"),
    ]:
        result = fukami("predict", run, file, *flags)
        assert result.status == 2
        assert message in result.err


def test_scores_are_compared_as_they_are_written():
    """The threshold has the digits of a score, whatever the rounding of the last one."""
    for score in np.random.default_rng(0).uniform(size=2000).astype(np.float32).tolist():
        assert round(score, 4) >= encode_confidence(score) / 10_000


def test_an_onnx_file_without_threshold_is_an_error(run):
    task = load_task(run[0], device="cpu")
    network = torch.nn.Linear(1, 1)
    for metadata in ({}, {"confidence": "x"}, {"confidence": "inf"}, {"confidence": "1.5"}, {"confidence": "-1"}):
        network.metadata = metadata
        with pytest.raises(Error, match="no valid confidence"):
            task.replace_modules({"model": network})
