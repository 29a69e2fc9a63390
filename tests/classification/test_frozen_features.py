"""Frozen features are computed once; the head is trained on them; and the defaults with initial weights."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fukami as package
from fukami import UsageError
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.resnet import ResNet20
from fukami.classification.task import ClassificationTask, FeatureCacheConfig
from fukami.classification.vgg import VGG11
from fukami.engine.recipe import build_train_command
from fukami.engine.runtime import Runtime

CPU = {"device": "cpu", "precision": "float32"}
SMALL = {"size": 32, "hidden": 16, "batch_size": 4, "freeze": True, "dropout": 0.0, "val_fraction": 0.25}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Image folder of 16 images in two classes."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for index in range(16):
        path = folder / ("dark" if index % 2 else "light") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        values = torch.randint(0, 128, (40, 40, 3), generator=generator) + (0 if index % 2 else 127)
        Image.fromarray(values.to(torch.uint8).numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of the features of VGG-11."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg11.safetensors"
    tensors = VGG11(**SMALL | {"freeze": False}).build_model(2).state_dict()
    save_file({name: value for name, value in tensors.items() if name.startswith("features.")}, path)
    return path


@pytest.fixture
def count_images(monkeypatch):
    """Count the images that pass through the first layer, by the mode of the head."""
    counts = {"training": 0, "evaluation": 0}
    build = VGG11.build_model

    def build_and_count(self, num_classes):
        model = build(self, num_classes)
        model.features[0].register_forward_hook(
            lambda module, inputs, output: counts.update(
                {mode: counts[mode] + len(output) * (mode == ("evaluation", "training")[model.classifier.training])
                 for mode in counts})
        )  # fmt: skip
        return model

    monkeypatch.setattr(VGG11, "build_model", build_and_count)
    return counts


def train(recipe, folder, **options):
    package.train(recipe, folder, **CPU, **options)
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("fields", "is_equal"),
    [
        ({"augment": (), "epochs": 3}, True),
        ({"augment": ("crop=0.4", "flip"), "epochs": 2, "feature_views": 2}, True),  # each view is used once
        ({"augment": ("crop=0.4", "flip"), "epochs": 3, "feature_views": 2}, False),
    ],
)
def test_training_on_cached_features_equals_training_without(images, weights, tmp_path, fields, is_equal):
    """The epoch after the last view has the first view again."""
    recipe = VGG11(data=str(images), init=str(weights), **SMALL | fields)
    cached, computed = (
        train(one, tmp_path / name)
        for name, one in (("cached", recipe), ("computed", replace(recipe, feature_views=0)))
    )
    equal = [torch.allclose(cached[name], computed[name], rtol=1e-4, atol=1e-6) for name in cached]
    assert all(equal) == is_equal
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cached", "computed")
    ]
    for line, other in zip(*lines, strict=True):
        if is_equal:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_features_are_computed_once_per_view(images, weights, tmp_path, count_images):
    """12 training images in two views and 4 validation images, in five epochs; two each for a check and the costs."""
    recipe = VGG11(data=str(images), init=str(weights), **SMALL, augment=("flip",), feature_views=2, epochs=5)
    train(recipe, tmp_path / "run")
    assert count_images == {"training": 2, "evaluation": 24 + 4 + 2}


def test_any_number_of_views_fits_into_an_unlimited_memory(images, weights, tmp_path, count_images, caplog):
    recipe = VGG11(
        data=str(images),
        init=str(weights),
        **SMALL,
        augment=("flip",),
        feature_views=2,
        epochs=5,
        memory_limit=math.inf,
    )
    train(recipe, tmp_path / "run")
    assert count_images == {"training": 2, "evaluation": 24 + 4 + 2}
    assert "memory limit" not in caplog.text


def test_fewer_views_are_computed_if_not_all_fit_into_the_memory_limit(
    images, weights, tmp_path, count_images, monkeypatch, caplog
):
    """The features of two views of 12 images exceed the limit by a byte."""
    recipe = VGG11(data=str(images), init=str(weights), **SMALL, augment=("flip",), feature_views=2, epochs=5)
    cache_features = ClassificationTask.cache_features

    def cache_with_limit(self, loader, config):
        cache_features(self, loader, replace(config, max_bytes=2 * 12 * 512 * 4 - 1))

    monkeypatch.setattr(ClassificationTask, "cache_features", cache_with_limit)
    train(recipe, tmp_path / "run")
    assert count_images == {"training": 2, "evaluation": 12 + 4 + 2}
    assert "1 of 2 views fit into the memory limit" in caplog.text


def test_features_of_the_evaluation_are_cached_up_to_the_limit(images, weights, tmp_path, count_images, monkeypatch):
    """The features of the four validation images exceed the limit by a byte: each of five evaluations computes them."""
    recipe = VGG11(data=str(images), init=str(weights), **SMALL, augment=(), epochs=5)
    compute = ClassificationTask.get_eval_features

    def compute_with_limit(self, *arguments):
        self.feature_cache = replace(self.feature_cache, max_bytes=4 * 512 * 4 - 1)
        return compute(self, *arguments)

    monkeypatch.setattr(ClassificationTask, "get_eval_features", compute_with_limit)
    train(recipe, tmp_path / "run")
    assert count_images["evaluation"] >= 12 + 5 * 4 + 2
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["count"] == 4


def test_a_small_last_batch_of_the_evaluation_is_not_cached_in_place_of_another(monkeypatch):
    """Two of three batches of four are within the limit; the last batch, of one, has a place after the third only."""
    task = VGG11(**SMALL | {"freeze": False}).build_task(("a", "b"))
    task.mean, task.cached_head = torch.zeros(1), "classifier"
    task.feature_cache = FeatureCacheConfig(num_views=1, max_bytes=2 * 4 * 3 * 4)
    monkeypatch.setattr(task, "compute_features", lambda head, images: images)
    batches = [torch.full((size, 3), float(number)) for number, size in enumerate((4, 4, 4, 1))]
    for _ in range(3):
        for index, images in enumerate(batches):
            assert torch.equal(task.get_eval_features(batches, index, images), images)
    assert len(task.eval_features[1]) == 2


@pytest.mark.parametrize(
    "fields", [{"augment": ("mixup",)}, {"memory_limit": 0.0}, {"feature_views": 0}, {"cycles": 2, "epochs": 4}]
)
def test_features_that_cannot_be_cached_are_computed_in_each_step(images, weights, tmp_path, count_images, fields):
    """Images are mixed, or streamed from their files, or a snapshot of each cycle is evaluated."""
    train(VGG11(data=str(images), init=str(weights), **SMALL | {"epochs": 2} | fields), tmp_path / "run")
    assert count_images["training"] >= 24


def test_training_on_cached_features_resumes_bit_exactly(images, weights, tmp_path, monkeypatch):
    recipe = VGG11(data=str(images), init=str(weights), **SMALL | {"dropout": 0.5}, augment=("flip",), epochs=4)
    whole = train(recipe, tmp_path / "whole")
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)
    step, steps = torch.optim.Optimizer.zero_grad, []

    def fail(self, *arguments):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "zero_grad", fail)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "resumed")
    resumed = train(recipe, tmp_path / "resumed", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_defaults_with_initial_weights():
    """A field that is given keeps its value, also if it is the default without initial weights."""
    plain, tuned, frozen = VGG11(), VGG11(init="w.pt"), VGG11(init="w.pt", freeze=True)
    assert (plain.optimizer, plain.lr, plain.head_epochs) == ("nesterov", 0.01, 0)
    for recipe, defaults in ((tuned, VGG11.init_defaults), (frozen, VGG11.freeze_defaults)):
        assert {name: getattr(recipe, name) for name in defaults} == defaults
    given = VGG11(init="w.pt", lr=0.01)
    assert (given.lr, given.optimizer) == (0.01, tuned.optimizer)
    assert replace(tuned, seed=1) == VGG11(init="w.pt", seed=1)
    assert "--lr" not in build_train_command(tuned)
    assert "--lr 0.01" in build_train_command(given)
    assert sorted(repr(given).removeprefix("VGG11(").removesuffix(")").split(", ")) == ["init='w.pt'", "lr=0.01"]


def test_the_command_line_has_the_same_defaults(images, weights, tmp_path, fukami):
    flags = ("--size", "32", "--hidden", "16", "--epochs", "1", "--batch-size", "4", "--freeze", "--dropout", "0")
    for name, extra, lr in (("default", (), VGG11.freeze_defaults["lr"]), ("given", ("--lr=0.01",), 0.01)):
        result = fukami("train", "vgg11", "--data", images, "--init", weights, *flags, *extra, "--out", tmp_path / name)
        assert result.status == 0, result.err
        record = json.loads((tmp_path / name / "recipe.json").read_text())
        assert record["fields"]["lr"] == lr
        assert ("--lr" in record["command"]) == (name == "given")
    assert f"Default with --freeze: {VGG11.freeze_defaults['lr']}" in " ".join(
        fukami("train", "vgg11", "--help").out.replace("│", " ").split()
    )


def test_the_head_is_trained_before_the_fine_tuning(images, weights, tmp_path):
    """The fine-tuning starts with the weights of the head's stage."""
    fields = SMALL | {"freeze": False}
    recipe = VGG11(data=str(images), init=str(weights), **fields, head_epochs=2, epochs=1, lr=0.0)
    tuned = train(recipe, tmp_path / "run")
    head = load_file(tmp_path / "run" / "head" / "best.safetensors")
    assert all(torch.equal(tuned[name], head[name]) for name in tuned)
    initial = load_file(weights)
    assert all(torch.equal(tuned[f"model.{name}"], value) for name, value in initial.items())
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/head/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 6
    for recipe in ({"head_epochs": 1}, {"head_epochs": 1, "init": "x", "freeze": True}):
        with pytest.raises(UsageError, match="--head-epochs precede"):
            ResNet20(**recipe)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_before_the_head_is_applied_to_cached_features(images, tmp_path, dropout):
    """The head is trained on other values of the same features in each step, and evaluated on all."""
    fields = {"data": str(images), "size": 16, "hidden": 64, "dropout": dropout, "batch_size": 4, "epochs": 1}
    run = package.train(DeepConvNet(**fields, convention="image"), tmp_path / "first", **CPU)
    recipe = DeepConvNet(**fields, convention="image", init=str(run.folder), freeze=True, augment=())
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start(**CPU))
    recipe.initialize_task(task)
    task.prepare_training()
    data.train.setup(task.runtime)
    features, _ = next(iter(task.iterate_batches(data.train)))
    assert task.cached_head
    assert features.shape[1:] == (64,)
    task.model.train()
    outputs = [task.training_model(features) for _ in range(2)]
    assert torch.equal(*outputs) == (dropout == 0)
    with task.evaluation_mode():
        assert torch.equal(task.training_model(features), task.training_model(features))
