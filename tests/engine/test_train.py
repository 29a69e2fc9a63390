"""Training runs: their start, stages, options that exclude each other, and data that change."""

import dataclasses
import json
import time

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import fukami as package
from fukami import Error, UsageError
from fukami.classification.task import ClassificationTask
from fukami.engine import lr_finder, run_record
from fukami.engine.best_weights import BestWeights
from fukami.engine.recipe import build_resume_command
from fukami.timing import PhaseTimer

CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Eight red and eight green images of 8×8."""
    root = tmp_path_factory.mktemp("colors")
    for channel, label in enumerate(("red", "green")):
        (root / label).mkdir()
        for index in range(8):
            color = [40 + 5 * index, 40, 40]
            color[channel] += 150
            Image.new("RGB", (8, 8), tuple(color)).save(root / label / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def weights(colors, tmp_path_factory):
    """Run of ResNet-20 on the colors."""
    out = tmp_path_factory.mktemp("weights") / "run"
    return package.train(build_recipe(colors), out, **CPU).folder


def build_recipe(data, **fields):
    small = {"data": str(data), "size": 8, "batch_size": 4, "epochs": 1, "augment": (), "warmup": 0.0, "lr": 0.01}
    return package.get_recipe("resnet20")(**small | fields)


def test_a_run_whose_first_stage_does_not_start_leaves_no_folder(tmp_path, weights):
    """The corrected command can then use the same folder."""
    (tmp_path / "empty").mkdir()
    recipe = build_recipe(tmp_path / "empty", init=str(weights), head_epochs=1)
    with pytest.raises(Error):
        package.train(recipe, tmp_path / "run", **CPU)
    assert not (tmp_path / "run").exists()


def test_early_stopping_without_validation_data_is_an_error_before_the_first_stage(colors, tmp_path, weights):
    recipe = build_recipe(colors, init=str(weights), head_epochs=1, patience=2, val_fraction=0.0)
    with pytest.raises(UsageError, match="--patience needs validation data"):
        package.train(recipe, tmp_path / "run", **CPU)
    assert not (tmp_path / "run").exists()


def test_stages_are_not_counted_in_the_time_of_the_run(colors, tmp_path, weights, monkeypatch):
    load_data = type(build_recipe(colors)).load_data

    def load_slowly(recipe):
        time.sleep(2.0 * (recipe.head_epochs == 0 and recipe.freeze))
        return load_data(recipe)

    monkeypatch.setattr(type(build_recipe(colors)), "load_data", load_slowly)
    run = package.train(build_recipe(colors, init=str(weights), head_epochs=1), tmp_path / "run", **CPU)
    times = [json.loads((folder / "recipe.json").read_text())["time"] for folder in (run.folder / "head", run.folder)]
    assert times[0]["seconds"]["data"] > 2
    assert times[1]["seconds"]["other"] < 2


def test_a_timer_restarts_without_counting():
    timer = PhaseTimer(torch.device("cpu"))
    timer.phase_start -= 100
    timer.restart()
    timer.switch("data")
    assert timer.seconds["other"] < 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cycles": 2, "patience": 2}, "--patience stops before the last of the --cycles"),
        ({"quantize": "int8", "activation_checkpointing": True}, "cannot be combined with --quantize"),
    ],
)
def test_options_that_exclude_each_other(colors, weights, fields, message):
    with pytest.raises(UsageError, match=message):
        build_recipe(colors, init=str(weights), **fields)


def test_a_run_of_more_steps_than_its_changed_data_have_is_finished(colors, tmp_path, caplog, monkeypatch):
    """The checkpoint is of step 12 of 12, and there are only 8 steps after the removal of images.

    The best weights, of step 9, are evaluated.
    """
    accuracies = iter([0.1, 0.2, 0.9, 0.3])
    evaluate = ClassificationTask.evaluate
    monkeypatch.setattr(
        ClassificationTask, "evaluate", lambda task, data: {**evaluate(task, data), "accuracy": next(accuracies, 0.0)}
    )
    loaded = []
    load = BestWeights.load
    monkeypatch.setattr(BestWeights, "load", lambda best, folder: loaded.append(best.step) or load(best, folder))
    recipe = build_recipe(colors, val_fraction=0.25, epochs=4)
    data = tmp_path / "data"
    for path in colors.rglob("*.png"):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        (data / path.parent.name / path.name).write_bytes(path.read_bytes())
    recipe = dataclasses.replace(recipe, data=str(data))
    package.train(recipe, tmp_path / "run", **CPU)
    assert loaded == [9]
    for path in (data / "red").glob("[0-3].png"):
        path.unlink()
    package.train(recipe, tmp_path / "run", **CPU, resume=True, allow_changed_data=True)
    assert "4 removed" in caplog.text
    assert loaded == [9, 9]
    assert run_record.is_finished(tmp_path / "run")


@pytest.mark.parametrize(("world_size", "local_size", "option"), [(1, 1, ""), (2, 2, " --processes 2"), (4, 2, "")])
def test_the_command_to_resume_has_the_processes_of_one_machine(
    colors, tmp_path, monkeypatch, world_size, local_size, option
):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_size))
    assert build_resume_command(build_recipe(colors), tmp_path).endswith(f"--resume{option}")


def test_the_range_test_explains_batch_normalization_of_one_value(colors):
    recipe = dataclasses.replace(build_recipe(colors), batch_size=1, size=4)
    with pytest.raises(UsageError, match="batch normalization needs more than one value"):
        lr_finder.find_lr(recipe, 1e-4, 1.0, 10, **CPU)


def test_the_range_test_finds_the_rate_before_its_scaling(colors, monkeypatch):
    """``--lr-scaling linear`` multiplies it by 4 / 128."""
    rates = []
    step = ClassificationTask.step
    monkeypatch.setattr(
        ClassificationTask,
        "step",
        lambda task, batch: rates.append(task.optimizer.param_groups[0]["lr"].item()) or step(task, batch),
    )
    recipe = build_recipe(colors, lr_scaling="linear")
    result = lr_finder.find_lr(recipe, 1e-4, 1.0, 10, **CPU)
    assert rates[: len(result.lrs)] == pytest.approx([4 / 128 * rate for rate in result.lrs])


@pytest.mark.parametrize("name", ["resnet20", "dcgan"])
def test_a_validation_fraction_of_one_leaves_no_training_images(name, tmp_path):
    fields = {"size": 16} if name == "resnet20" else {}
    with pytest.raises(Error, match="smaller --val-fraction"):
        package.train(name, tmp_path / "run", data="digits", val_fraction=1.0, **fields, **CPU)


@pytest.mark.parametrize("seconds", ["inf", "1e300", "0"])
def test_a_timeout_is_finite(fukami, seconds):
    result = fukami("train", "deep-convnet", "--timeout", seconds)
    assert result.status == 2
    assert "--timeout should be more than 0 and at most 1e+06 s" in result.err


# ---- custom recipes --------------------------------------------------------------------------------------------------


class Endless(IterableDataset):
    """Dataset without a length."""

    def __iter__(self):
        return iter([torch.ones(1)] * 3)


class Batches:
    """Iterable without a length."""

    def __iter__(self):
        return iter([torch.ones(2, 1)])


class Regression(package.Task):
    """Task that fits a constant, and counts the evaluated batches."""

    def compute_loss(self, batch):
        return self.training_model(batch).square().mean(), {}

    def evaluate(self, batches):
        return {"count": sum(1 for _ in batches)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constants(package.Recipe):
    """Recipe whose validation batches have no length."""

    has_loader: bool = False

    def load_data(self):
        train = [torch.ones(2, 1)] * 2
        return package.Data(train, DataLoader(Endless(), batch_size=2) if self.has_loader else Batches())

    def build_task(self, labels):
        return Regression(nn.Linear(1, 1), epochs=1)


@pytest.mark.parametrize(("has_loader", "count"), [(False, 1), (True, 2)])
def test_validation_batches_need_no_length(tmp_path, has_loader, count):
    run = package.train(Constants(has_loader=has_loader), tmp_path / "run", **CPU)
    assert run.metrics["count"] == count
    assert run.metrics["split"] == "val"


class DeviceLoader(package.Loader):
    """Loader that needs the device from its setup."""

    def setup(self, runtime):
        self.device = runtime.device

    def __len__(self):
        return 1

    def __iter__(self):
        yield torch.ones(2, 1, device=self.device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderRecipe(Constants):
    """Recipe whose validation batches are of a loader."""

    def load_data(self):
        return package.Data([torch.ones(2, 1)], DeviceLoader())


def test_an_evaluation_prepares_the_loader_for_the_device(tmp_path):
    run = package.train(LoaderRecipe(), tmp_path / "run", **CPU)
    assert run.load(device="cpu").evaluate() == {"count": 1, "split": "val"}
