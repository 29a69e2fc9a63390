"""Contract tests of all tasks."""

from functools import partial

import pytest

import check_task
from fukami.captioning.show_and_tell import ShowAndTell
from fukami.classification.deep_convnet import DeepConvNet
from fukami.detection.faster_rcnn import FasterRCNNVGG16
from fukami.engine.runtime import Runtime
from fukami.generation.dcgan import DCGAN
from fukami.segmentation.fcn import FCN8sVGG16
from fukami.style.neural_style import NeuralStyle


def classification(request):
    return partial(DeepConvNet, epochs=4, dropout=0.0)


def detection(request):
    small = {
        "min_size": 96,
        "max_size": 160,
        "width_multiplier": 0.125,
        "hidden": 32,
        "anchor_sizes": (24.0, 48.0, 96.0),
        "dropout": 0.0,
    }
    data = str(request.getfixturevalue("scene_files"))
    return partial(FasterRCNNVGG16, data=data, epochs=6, batch_size=2, optimizer="adamw", lr=1e-3, **small)


def segmentation(request):
    data = str(request.getfixturevalue("mask_files"))
    small = {
        "width_multiplier": 0.125,
        "hidden": 32,
        "dropout": 0.0,
        "augment": ("flip", "crop=0.6", "hue"),
        "min_size": 96,
    }
    return partial(FCN8sVGG16, data=data, epochs=6, batch_size=2, lr=1e-3, eval_every=1, balance="median", **small)


def captioning(request):
    small = {
        "encoder": "resnet20",
        "size": 32,
        "hidden": 64,
        "dropout": 0.0,
        "augment": (),
        "beam_size": 2,
        "min_word_count": 1,
    }
    data = str(request.getfixturevalue("caption_files"))
    return partial(ShowAndTell, **{"data": data, "batch_size": 8, "epochs": 6, "lr": 3e-3, "eval_every": 1, **small})


def style(request):
    """Build the recipe without the fields for epochs and batches, which it does not have."""
    small = {"size": 64, "levels": 2, "iterations": 24, "eval_every": 8}
    return lambda **fields: NeuralStyle(**small)


def generation(request):
    small = {"base_channels": 4, "batch_size": 8, "eval_samples": 40, "size": 28, "channels": 1, "epochs": 6}
    return partial(DCGAN, **{"data": str(request.getfixturevalue("digit_files")), **small})


FAMILIES = [classification, detection, segmentation, captioning, style]


@pytest.fixture(params=[*FAMILIES, generation], ids=lambda family: family.__name__)
def make(request):
    return request.param(request)


@pytest.fixture
def inputs(digit_files):
    return sorted(digit_files.rglob("*.png"))[:2]


@pytest.mark.parametrize(  # the loss of a GAN need not decrease
    "family",
    [pytest.param(family, marks=pytest.mark.slow if family is detection else ()) for family in FAMILIES],
    ids=lambda family: family.__name__,
)
def test_overfits(family, request):
    check_task.check_overfits(family(request))


def test_evaluation_changes_nothing(make):
    check_task.check_evaluation_changes_nothing(make)


@pytest.mark.parametrize(
    "family", [detection, segmentation, captioning, generation], ids=lambda family: family.__name__
)
def test_figures_use_the_results_of_the_last_evaluation(family, request, monkeypatch):
    """The figures evaluate again only if the network or the data have changed."""
    recipe = family(request)()
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    evaluations = []
    monkeypatch.setattr(
        task, "collect_results", lambda batches: evaluations.append(1) or type(task).collect_results(task, batches)
    )
    task.evaluate(data.val)
    assert [*task.plot_evaluation(data.val)]
    assert len(evaluations) == 1
    task.schedule(0.5)
    task.step(next(iter(data.train)))
    assert [*task.plot_evaluation(data.val)]
    assert len(evaluations) == 2
    task.evaluate(data.val)
    assert [*task.plot_evaluation(recipe.load_data().val)]
    assert len(evaluations) == 4


@pytest.mark.slow
def test_loaded_run_equals_the_trained_one(make, inputs, tmp_path):
    check_task.check_saves_and_loads(make, inputs, tmp_path)


@pytest.mark.slow
def test_precisions(make, inputs, tmp_path):
    check_task.check_precisions(make, inputs, tmp_path)


def test_unreadable_input(make, inputs, tmp_path):
    check_task.check_unreadable_input(make, inputs, tmp_path)


@pytest.mark.slow
def test_two_processes(make, tmp_path):
    check_task.check_two_processes(make, tmp_path)


@pytest.mark.slow
def test_killed_and_resumed(make, tmp_path):
    check_task.check_killed_and_resumed(make, tmp_path)
