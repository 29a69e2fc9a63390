"""Faster R-CNN trained in the paper's four steps: what each trains, and a run that is cut off in each."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

import fukami
from fukami import UsageError
from fukami.detection.alternating_task import NOT_STARTED, STEP_BOUNDARIES, AlternatingDetectionTask
from fukami.detection.faster_rcnn import FasterRCNNVGG16
from fukami.detection.task import DetectionTask
from fukami.engine.runtime import Runtime


@pytest.fixture
def recipe(scene_files):
    small = {
        "min_size": 64,
        "max_size": 96,
        "width_multiplier": 0.0625,
        "hidden": 16,
        "anchor_sizes": (24.0, 48.0),
        "dropout": 0.0,
    }
    return FasterRCNNVGG16(data=str(scene_files), epochs=3, batch_size=2, training="alternating", **small)


def weights(task):
    parts = {"proposer": task.proposal_network, "model": task.model}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_step_trains_its_part(recipe, batch_norm):
    """Statistics of what stays as it is, as well; judging in between changes nothing, and finds the same twice."""
    recipe = dataclasses.replace(recipe, batch_norm=batch_norm)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    batch = next(iter(data.train))
    trained = {
        0: {"proposer.backbone", "proposer.rpn"},
        1: {"model.backbone", "model.roi_heads"},
        2: {"model.rpn"},
        3: {"model.roi_heads"},
    }
    for step, parts in trained.items():
        task.schedule(
            STEP_BOUNDARIES[step] + 0.1 * (STEP_BOUNDARIES[step + 1] - STEP_BOUNDARIES[step])
        )  # past the warm-up
        before = weights(task)
        if step == 2:
            assert all(
                torch.equal(before[f"model.rpn.{key}"], value)
                for key, value in task.proposal_network.rpn.state_dict().items()
            )
        losses = task.step(batch)
        after = weights(task)
        modes = [module.training for network in task.get_networks() for module in network.modules()]
        assert task.evaluate(data.val) == task.evaluate(data.val)
        assert [module.training for network in task.get_networks() for module in network.modules()] == modes
        assert all(torch.equal(value, after[name]) for name, value in weights(task).items())
        changed = {".".join(name.split(".")[:2]) for name in after if not torch.equal(after[name], before[name])}
        assert changed == parts, step
        assert losses["loss"] > 0
        assert (losses["classification"] > 0) == (step in (1, 3))
        assert (losses["objectness"] > 0) == (step in (0, 2))


def test_both_networks_begin_alike(recipe):
    """Also where weights were loaded into the detector after the tasks were made."""
    first = recipe.build_task(recipe.load_data().labels)
    first.setup(Runtime.start("cpu", "float32"))
    with torch.no_grad():
        first.model.rpn.head.cls_logits.bias.fill_(3.0)
    first.schedule(0.0)
    assert torch.equal(first.proposal_network.rpn.head.cls_logits.bias, first.model.rpn.head.cls_logits.bias)


def test_a_range_test_is_of_the_first_step(recipe):
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    losses = task.step(next(iter(data.train)))
    assert losses["objectness"] > 0
    assert losses["classification"] == 0


def test_too_few_updates_for_four_steps(recipe):
    few = dataclasses.replace(recipe, epochs=1)
    data = few.load_data()
    task = few.build_task(data.labels)
    assert len(data.train) < 6
    with pytest.raises(UsageError, match=r"need 6 updates, and 1 epochs have 4; give more --epochs"):
        task.count_steps(data.train)


def test_cut_off_in_each_step_and_resumed(recipe, tmp_path, pageless, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fukami.train(recipe, whole, device="cpu", precision="float32")
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)
    monkeypatch.setattr("fukami.engine.train.MAX_LOG_INTERVAL", 1)
    for number in range(4):
        updates = []

        def step(self, batch, number=number, updates=updates):
            if int(self.step_counter.step) == number:
                updates.append(batch)
                if len(updates) == 2:
                    raise KeyboardInterrupt
            return DetectionTask.step(self, batch)

        monkeypatch.setattr(AlternatingDetectionTask, "step", step)
        with pytest.raises(KeyboardInterrupt):
            fukami.train(recipe, cut, device="cpu", precision="float32", resume=number > 0)
    monkeypatch.setattr(AlternatingDetectionTask, "step", DetectionTask.step)
    fukami.train(recipe, cut, device="cpu", precision="float32", resume=True)
    one, other = (load_file(run / "weights.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_answers_without_the_first_network(recipe, tmp_path, scene_files, pageless):
    fukami.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    assert not any("proposer" in name for name in load_file(tmp_path / "run" / "weights.safetensors"))
    task = fukami.load(tmp_path / "run", device="cpu")
    files = [scene_files / "valid" / "8.png"]
    answers = task.predict(files)
    assert answers[0]["boxes"]
    resumed = recipe.build_task(recipe.load_data().labels)  # a finished run, of which only the report is wanting
    resumed.setup(Runtime.start("cpu", "float32"))
    resumed.model.load_state_dict(task.model.state_dict())
    assert resumed.current_step == NOT_STARTED
    assert resumed.predict(files) == answers
