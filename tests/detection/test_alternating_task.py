"""4-step alternating training of Faster R-CNN: the modules that each step trains, and resuming in each step."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

import fukami
from fukami import UsageError
from fukami.detection.alternating_task import NOT_STARTED, STEP_BOUNDARIES, AlternatingDetectionTask
from fukami.detection.faster_rcnn import FasterRCNNVGG16
from fukami.detection.task import DetectionTask
from fukami.engine.load_run import load_task
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


def copy_weights(task):
    networks = {"proposal_network": task.proposal_network, "model": task.model}
    return {
        f"{name}.{key}": value.clone()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_step_trains_only_its_modules(recipe, batch_norm):
    """Frozen modules keep their statistics, and an evaluation between steps changes nothing and is repeatable."""
    recipe = dataclasses.replace(recipe, batch_norm=batch_norm)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    batch = next(iter(data.train))
    trained = {
        0: {"proposal_network.backbone", "proposal_network.rpn"},
        1: {"model.backbone", "model.roi_heads"},
        2: {"model.rpn"},
        3: {"model.roi_heads"},
    }
    for step, trained_modules in trained.items():
        task.schedule(
            STEP_BOUNDARIES[step] + 0.1 * (STEP_BOUNDARIES[step + 1] - STEP_BOUNDARIES[step])
        )  # past the warm-up
        before = copy_weights(task)
        if step == 2:
            assert all(
                torch.equal(before[f"model.rpn.{key}"], value)
                for key, value in task.proposal_network.rpn.state_dict().items()
            )
        losses = task.step(batch)
        after = copy_weights(task)
        modes = [module.training for network in (task.model, task.proposal_network) for module in network.modules()]
        assert task.evaluate(data.val) == task.evaluate(data.val)
        assert [
            module.training for network in (task.model, task.proposal_network) for module in network.modules()
        ] == modes
        assert all(torch.equal(value, after[name]) for name, value in copy_weights(task).items())
        changed = {".".join(name.split(".")[:2]) for name in after if not torch.equal(after[name], before[name])}
        assert changed == trained_modules, step
        assert losses["loss"] > 0
        assert (losses["classification"] > 0) == (step in (1, 3))
        assert (losses["objectness"] > 0) == (step in (0, 2))


def test_both_networks_start_with_equal_weights(recipe):
    """Weights that are loaded into the detector after setup reach the proposal network, too."""
    task = recipe.build_task(recipe.load_data().labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    with torch.no_grad():
        task.model.rpn.head.cls_logits.bias.fill_(3.0)
    task.schedule(0.0)
    assert torch.equal(task.proposal_network.rpn.head.cls_logits.bias, task.model.rpn.head.cls_logits.bias)


def test_a_learning_rate_range_test_trains_the_first_step(recipe):
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    losses = task.step(next(iter(data.train)))
    assert losses["objectness"] > 0
    assert losses["classification"] == 0


def test_too_few_optimizer_steps_are_an_error(recipe, tmp_path):
    short = dataclasses.replace(recipe, epochs=1)
    assert len(short.load_data().train) < 6
    with pytest.raises(UsageError, match=r"needs 6 optimizer steps, and 1 epochs have 4; raise --epochs"):
        fukami.train(short, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_training_interrupted_and_resumed_in_each_step_equals_uninterrupted_training(recipe, tmp_path, monkeypatch):
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    fukami.train(recipe, uninterrupted, device="cpu", precision="float32")
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)
    monkeypatch.setattr("fukami.engine.train.MAX_LOG_INTERVAL", 1)
    for interrupted_step in range(4):
        batches = []

        def step(self, batch, interrupted_step=interrupted_step, batches=batches):
            if int(self.step_counter.step) == interrupted_step:
                batches.append(batch)
                if len(batches) == 2:
                    raise KeyboardInterrupt
            return DetectionTask.step(self, batch)

        monkeypatch.setattr(AlternatingDetectionTask, "step", step)
        with pytest.raises(KeyboardInterrupt):
            fukami.train(recipe, resumed, device="cpu", precision="float32", resume=interrupted_step > 0)
    monkeypatch.setattr(AlternatingDetectionTask, "step", DetectionTask.step)
    fukami.train(recipe, resumed, device="cpu", precision="float32", resume=True)
    one, other = (load_file(run / "weights.safetensors") for run in (uninterrupted, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_predicts_without_the_proposal_network(recipe, tmp_path, scene_files):
    fukami.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    assert not any("proposal_network" in name for name in load_file(tmp_path / "run" / "weights.safetensors"))
    task = load_task(tmp_path / "run", device="cpu")
    files = [scene_files / "valid" / "8.png"]
    predictions = task.predict(files)
    assert predictions[0]["boxes"]
    resumed = recipe.build_task(recipe.load_data().labels)  # a finished run without a report
    resumed.setup(Runtime.start("cpu", "float32"))
    resumed.prepare_training()
    resumed.model.load_state_dict(task.model.state_dict())
    assert resumed.current_step == NOT_STARTED
    assert resumed.predict(files) == predictions
