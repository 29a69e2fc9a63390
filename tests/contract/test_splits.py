"""Splits: the best weights by the validation metric, early stopping, and the test data, which are evaluated once."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fukami as package
from check_task import read_log_lines
from fukami import UsageError
from fukami.classification.resnet import ResNet20
from fukami.classification.task import ClassificationTask

SMALL = {"size": 16, "channels": 1, "batch_size": 8, "lr": 0.01, "warmup": 0.0}
CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture
def splits(tmp_path):
    """Image folder with 16 training, 8 validation and 4 test images of two classes."""
    for split, count in (("train", 8), ("val", 4), ("test", 2)):
        for label, value in (("dark", 30), ("light", 200)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("L", (16, 16), value + index).save(folder / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def scripted(monkeypatch):
    """Script the accuracies of the evaluations on 8 validation images; return the weights at each of them."""
    evaluate, weights = ClassificationTask.evaluate, []
    accuracies = iter((0.5, 0.75, 0.75, 0.625, 0.5, 0.5))

    def evaluate_scripted(self, batches):
        metrics = evaluate(self, batches)
        if metrics["count"] != 8:
            return metrics
        weights.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return {**metrics, "accuracy": next(accuracies)}

    monkeypatch.setattr(ClassificationTask, "evaluate", evaluate_scripted)
    return weights


def load_model(file):
    return {name.removeprefix("model."): value for name, value in load_file(file).items()}


def have_equal_values(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_best_weights_are_saved_and_tested_once(splits, scripted, tmp_path, fukami):
    recipe = ResNet20(data=str(splits), epochs=4, **SMALL)
    result = package.train(recipe, tmp_path / "run", **CPU).metrics
    assert len(scripted) == 4
    best, last = (load_model(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "weights"))
    assert have_equal_values(best, scripted[1])
    assert have_equal_values(last, scripted[3])
    assert not have_equal_values(best, last)
    lines = list(map(json.loads, read_log_lines(tmp_path / "run")))
    assert [line.get("split") for line in lines if line["phase"] != "train"] == ["val"] * 4 + ["test"]
    assert (result["count"], result["split"]) == (4, "test")
    (evaluated,) = fukami("eval", tmp_path / "run").json
    assert {name: evaluated[name] for name in result} == pytest.approx(result)
    model = package.load(tmp_path / "run", **CPU)
    assert have_equal_values(best, model.task.model.state_dict())
    assert model.evaluate() == pytest.approx(result)


def test_early_stopping(splits, scripted, tmp_path):
    """The fourth evaluation is the second one without a better accuracy; a resumed run does not continue."""
    recipe = ResNet20(data=str(splits), epochs=6, patience=2, **SMALL)
    result = package.train(recipe, tmp_path / "run", **CPU).metrics
    assert len(scripted) == 4
    lines = read_log_lines(tmp_path / "run")
    assert json.loads(lines[-1])["step"] == 8
    assert package.train(recipe, tmp_path / "run", resume=True, **CPU).metrics == result
    assert read_log_lines(tmp_path / "run")[:-1] == lines[:-1]
    assert len(scripted) == 4


def test_without_test_data_the_result_is_the_best_validation_result(splits, scripted, tmp_path):
    shutil.rmtree(splits / "test")
    result = package.train(ResNet20(data=str(splits), epochs=4, **SMALL), tmp_path / "run", **CPU).metrics
    assert (result["accuracy"], result["count"], result["split"]) == (0.75, 8, "val")


def test_without_validation_data_the_last_weights_are_tested(splits, tmp_path):
    recipe = ResNet20(data=str(splits), epochs=2, val_fraction=0.0, **SMALL)
    shutil.rmtree(splits / "val")
    result = package.train(recipe, tmp_path / "run", **CPU).metrics
    assert (result["count"], result["split"]) == (4, "test")
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert [json.loads(line)["phase"] for line in read_log_lines(tmp_path / "run")].count("eval") == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 2}, "--patience needs validation data"),
        ({"schedule": "plateau"}, "--schedule plateau needs validation data"),
    ],
)
def test_options_that_need_validation_data(splits, tmp_path, fields, message):
    shutil.rmtree(splits / "val")
    recipe = ResNet20(data=str(splits), val_fraction=0.0, **fields, **SMALL)
    with pytest.raises(UsageError, match=f"{message}, and there are none; set --val-fraction"):
        package.train(recipe, tmp_path / "run", **CPU)


def test_early_stopping_is_not_for_snapshot_ensembles(splits):
    """A snapshot ensemble is complete at the end only."""
    with pytest.raises(UsageError, match="--patience stops before the last of the --cycles"):
        ResNet20(data=str(splits), patience=2, epochs=4, cycles=2, **SMALL)
