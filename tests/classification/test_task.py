"""Tests of the classification recipe and task: fields, loss, optimizers, ensembles and command line."""

import copy
import json
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import check_task
import fukami as package
from fukami import UsageError
from fukami.classification import plots as classification_plots
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.recipe import ClassificationRecipe
from fukami.classification.task import ClassificationTask
from fukami.data.loader import InMemoryLoader
from fukami.engine import ensemble, run_weights
from fukami.engine.best_weights import BestWeights
from fukami.engine.checkpoint import decode_checkpoint
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.engine.supervised import build_augmentation
from fukami.image.transform import SquareTransform
from fukami.layers.ensemble import Ensemble, combine_log_probs

CPU = {"device": "cpu", "precision": "float32"}
LABELS = ("a", "b", "c")


@dataclass(frozen=True, kw_only=True)
class Tiny(ClassificationRecipe):
    """Classifier with a fully connected layer for random 4×4 grayscale images: 10, 20 and 30 of three classes."""

    size: int = 4
    channels: int = 1
    epochs: int = 4
    batch_size: int = 15
    lr: float = 0.1
    warmup: float = 0.0
    heads: int = 0
    """Number of auxiliary heads."""
    noise: float = 0.0
    """Dropout probability, to make random states matter."""
    history: list = field(default_factory=list, compare=False)
    """Weights after each step."""
    stop: int = 0
    """Step after which training is interrupted."""

    def load_data(self):
        generator = torch.Generator().manual_seed(7)
        targets = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 30]))
        images = torch.randint(0, 256, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
        train = InMemoryLoader(images, targets, LABELS, batch_size=self.batch_size, seed=self.seed,
                         balanced=self.balance == "sampling",
                         augmentation=build_augmentation(self.augment, self.build_transform(LABELS), LABELS),
                         )  # fmt: skip
        return package.Data(train, InMemoryLoader(images, targets, LABELS, batch_size=25), LABELS)

    def build_model(self, num_classes):
        return Heads(num_classes, self.heads, self.noise)

    def build_task(self, labels):
        task = super().build_task(labels)
        step = task.step

        def record_step(batch):
            result = step(batch)
            self.history.append(copy.deepcopy(task.model.state_dict()))
            if len(self.history) == self.stop:
                raise KeyboardInterrupt
            return result

        task.step = record_step
        return task


class Heads(nn.Module):
    def __init__(self, classes, heads, noise):
        super().__init__()
        self.noise = nn.Dropout(noise)
        self.fc = nn.Linear(16, classes)
        self.norm = nn.BatchNorm1d(classes)
        self.auxiliary = nn.ModuleList(nn.Linear(16, classes) for _ in range(heads))

    def forward(self, x):
        x = self.noise(x.flatten(1))
        scores = self.norm(self.fc(x))
        aux_scores = [head(x) for head in self.auxiliary]
        return (scores, *aux_scores) if self.training and aux_scores else scores


def build_task(recipe):
    """Build the task of a recipe, and a copy of its network for the expected values."""
    torch.manual_seed(recipe.seed)
    task = recipe.build_task(LABELS)
    task.setup(Runtime.start(**CPU))
    task.prepare_training()
    return task, copy.deepcopy(task.model)


def normalize(recipe, images):
    transform = recipe.build_transform(LABELS)
    mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (transform.mean, transform.std))
    return (images - mean) / std


@pytest.fixture
def frequent_checkpoints(monkeypatch):
    """Write checkpoints whenever possible, and no reports."""
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)


# ---- fields ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"epochs": 0}, "epochs should be at least 1"),
        ({"batch_size": 0}, "batch-size should be at least 1"),
        ({"cycles": 0}, "cycles should be between 1 and 100"),
        ({"size": 3}, "size should be between 4 and 2048"),
        ({"lr": -0.1}, "lr should be at least 0"),
        ({"lr": math.nan}, "lr should be at least 0"),
        ({"weight_decay": -1.0}, "weight-decay should be at least 0"),
        ({"memory_limit": -1.0}, "memory-limit should be at least 0"),
        ({"val_fraction": 1.5}, "val-fraction should be between 0 and 1"),
        ({"layer_lr_decay": 1.1}, "layer-lr-decay should be between 0 and 1"),
        ({"drop_factor": -0.1}, "drop-factor should be between 0 and 1"),
        ({"warmup": 1.0}, "warmup should be between 0"),
        ({"momentum": 1.0}, "momentum should be between 0"),
        ({"label_smoothing": 1.0}, "label-smoothing should be between 0"),
        ({"ema_decay": 1.0}, "ema-decay should be between 0"),
        ({"schedule": "cosin"}, "schedule 'cosin'; did you mean 'cosine'"),
        ({"schedule": "step=0"}, "'step=0' is not a valid schedule"),
        ({"cycles": 2, "schedule": "plateau=2"}, "--cycles"),
        ({"freeze": True}, "--init"),
    ],
    ids=str,
)
def test_invalid_fields_are_errors(values, hint):
    with pytest.raises(UsageError, match=hint):
        Tiny(**values)


@pytest.mark.parametrize(
    ("arguments", "hint"), [(["flipp"], "'flip'"), (["rotate=x"], "rotate=10"), (["hue=2"], "0.5")]
)
def test_invalid_augmentation_is_an_error_before_training(fukami, arguments, hint, tmp_path):
    result = fukami("train", "deep-convnet", "--augment", *arguments, "--out", "run")
    assert result.status == 2
    assert hint in result.err
    assert not (tmp_path / "run" / "recipe.json").exists()


# ---- optimizers -----------------------------------------------------------------------------------------------------

M, W, RATE = 0.8, 0.01, 0.1
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, RATE, weight_decay=W),
    "momentum": lambda p: torch.optim.SGD(p, RATE, momentum=M, weight_decay=W),
    "nesterov": lambda p: torch.optim.SGD(p, RATE, momentum=M, nesterov=True, weight_decay=W),
    "adagrad": lambda p: torch.optim.Adagrad(p, RATE, weight_decay=W),
    "rmsprop": lambda p: torch.optim.RMSprop(p, RATE, momentum=M, weight_decay=W),
    "adam": lambda p: torch.optim.Adam(p, RATE, weight_decay=W),
    "adamw": lambda p: torch.optim.AdamW(p, RATE, weight_decay=W),
}


def test_all_optimizers_of_the_recipe_are_tested():
    (names,) = {field.type.__args__ for field in fields(ClassificationRecipe) if field.name == "optimizer"}
    assert set(names) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_steps_equal_torchs_at_the_scheduled_learning_rate(name):
    """Three steps of a cosine schedule with torch's optimizer."""
    recipe = Tiny(optimizer=name, lr=RATE, momentum=M, weight_decay=W)
    task, network = build_task(recipe)
    optimizer = OPTIMIZERS[name](network.parameters())
    batches = iter(recipe.load_data().train)
    for progress in (0.0, 0.25, 0.5):
        images, targets = next(batches)
        task.schedule(progress)
        task.step((images, targets))
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * progress)) / 2
        optimizer.zero_grad()
        F.cross_entropy(network(normalize(recipe, images)), targets).backward()
        optimizer.step()
    for (key, value), expected in zip(task.model.named_parameters(), network.parameters(), strict=True):
        if key != "fc.bias":  # before batch normalization its gradient is rounding, which Adam amplifies
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4, msg=key)


# ---- loss -----------------------------------------------------------------------------------------------------------


def test_label_smoothing_spreads_the_target_over_all_classes():
    recipe = Tiny(label_smoothing=0.3)
    task, network = build_task(recipe)
    images, targets = next(iter(recipe.load_data().train))
    log_probs = network(normalize(recipe, images)).log_softmax(1)
    smoothed = 0.7 * F.one_hot(targets, 3) + 0.1
    torch.testing.assert_close(task.compute_loss((images, targets))[0], -(smoothed * log_probs).sum(1).mean())


def test_auxiliary_losses_have_the_weight_0_3():
    recipe = Tiny(heads=2)
    task, network = build_task(recipe)
    images, targets = next(iter(recipe.load_data().train))
    loss, *aux_losses = (F.cross_entropy(scores, targets) for scores in network(normalize(recipe, images)))
    assert len(aux_losses) == 2
    torch.testing.assert_close(task.compute_loss((images, targets))[0], loss + 0.3 * (aux_losses[0] + aux_losses[1]))


def test_a_moving_average_of_a_network_without_buffers():
    recipe = DeepConvNet(epochs=1, ema_decay=0.5, augment=())
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start(**CPU))
    task.prepare_training()
    batch = next(iter(data.train))
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    task.schedule(0.5)
    task.step(batch)
    for old, new, average in zip(before, task.model.parameters(), task.ema_model.parameters(), strict=True):
        torch.testing.assert_close(average, (old + new) / 2)


def test_the_best_weights_are_loaded_into_the_tensors_of_the_network(tmp_path):
    """The network stays on its device, with its memory format, as the following evaluation needs it."""
    recipe = DeepConvNet(epochs=1)
    task = recipe.build_task(recipe.load_data().labels)
    task.setup(Runtime.start(**CPU))
    tensors = run_weights.collect_tensors(task.get_modules())
    best = BestWeights(task, keep=True)
    best.update(1, {"accuracy": 0.5})
    expected = {name: value.clone() for name, value in tensors.items()}
    run_weights.write_weights(tmp_path, run_weights.copy_tensors_to_cpu(task.get_modules()))
    with torch.no_grad():
        for value in tensors.values():
            value.add_(1)
    best.load(tmp_path)
    for name, value in run_weights.collect_tensors(task.get_modules()).items():
        assert value.data_ptr() == tensors[name].data_ptr()
        assert value.stride() == tensors[name].stride()
        assert torch.equal(value, expected[name])


def test_class_weights_are_inverse_frequencies():
    """10, 20 and 30 of 60 images have the weights 2, 1 and 2/3, whose mean over all images is 1."""
    recipe = Tiny(balance="loss")
    task, network = build_task(recipe)
    loader = recipe.load_data().train
    images, targets = next(iter(task.iterate_batches(loader)))
    targets[:10] = 0  # the weights of this batch have another mean
    weights = torch.tensor([2.0, 1.0, 2 / 3])
    losses = -network(normalize(recipe, images)).log_softmax(1)[torch.arange(15), targets]
    assert weights[targets].sum() > 16
    expected = (weights[targets] * losses).sum() / 15
    torch.testing.assert_close(task.compute_loss((images, targets))[0], expected)
    assert weights[loader.targets].mean() == pytest.approx(1)


def test_balanced_sampling_draws_every_class_equally_often():
    """Over 50 epochs, by chi-square with 2 degrees of freedom at 0.999; plain shuffling keeps 1 : 2 : 3."""
    plain, balanced = (Tiny(balance=balance).load_data().train for balance in ("none", "sampling"))
    counts = torch.zeros(3)
    for _ in range(50):
        counts += torch.cat([targets for _, targets in balanced]).bincount(minlength=3)
    expected = counts.sum() / 3
    assert counts.sum() == 50 * 60
    assert ((counts - expected) ** 2 / expected).sum() < 13.8
    assert torch.cat([targets for _, targets in plain]).bincount().tolist() == [10, 20, 30]


def test_loss_of_mixed_targets():
    """Mixup's loss is the weighted cross entropy of both classes."""
    recipe = Tiny(augment=("mixup=1",))
    task, network = build_task(recipe)
    loader = recipe.load_data().train
    order, draws = loader._plan_epoch(0)
    images, targets = next(iter(task.iterate_batches(loader)))
    first, second = loader.targets[order[:15]], loader.targets[order[:15]].roll(7)
    weight = draws[:15, 1]  # Beta(1, 1) is uniform
    losses = -network(normalize(recipe, images)).log_softmax(1)
    expected = weight * losses[torch.arange(15), first] + (1 - weight) * losses[torch.arange(15), second]
    torch.testing.assert_close(task.compute_loss((images, targets))[0], expected.mean(), atol=1e-4, rtol=1e-4)
    assert (first != second).any()


# ---- inference model ------------------------------------------------------------------------------------------------


def load_weights(folder):
    weights = load_file(folder / "weights.safetensors")
    return {key.removeprefix("model."): value for key, value in weights.items()}


def test_moving_average_is_used_for_inference(tmp_path, frequent_checkpoints):
    recipe = Tiny(ema_decay=0.8, epochs=2)
    result = package.train(recipe, tmp_path / "run", **CPU).metrics
    torch.manual_seed(recipe.seed)
    average = {key: value.clone() for key, value in recipe.build_model(3).state_dict().items()}
    assert len(recipe.history) == 8
    for weights in recipe.history:
        for key, value in weights.items():
            is_parameter = not key.startswith("norm.running") and "tracked" not in key
            average[key] = 0.8 * average[key] + 0.2 * value if is_parameter else value
    saved = load_weights(tmp_path / "run")
    for key, value in average.items():
        torch.testing.assert_close(saved[key], value, msg=key)
    assert not torch.allclose(saved["fc.weight"], recipe.history[-1]["fc.weight"], atol=1e-3)
    network = recipe.build_model(3)
    network.load_state_dict(average)
    images, targets = recipe.load_data().val.images, recipe.load_data().val.targets
    errors = (network.eval()(normalize(recipe, images)).argmax(1) != targets).sum()
    assert result["errors"] == errors


def build_members(recipe, weights):
    """Build networks with these weights."""
    networks = [recipe.build_model(3).eval() for _ in weights]
    for network, state in zip(networks, weights, strict=True):
        network.load_state_dict(state)
    return networks


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.7}], ids=str)
def test_snapshot_ensemble_has_the_weights_at_the_ends_of_the_cycles(tmp_path, frequent_checkpoints, options):
    """Six epochs of four steps in three cycles: after steps 8, 16 and 24."""
    recipe = Tiny(cycles=3, epochs=6, **options)
    result = package.train(recipe, tmp_path / "run", **CPU).metrics
    assert len(recipe.history) == 24
    saved = load_weights(tmp_path / "run")
    assert saved["num_active"] == 3
    snapshots = [{key.removeprefix(f"models.{n}."): v for key, v in saved.items() if key.startswith(f"models.{n}.")}
                 for n in range(3)]  # fmt: skip
    if not options:
        for cycle, snapshot in enumerate(snapshots):
            for key, value in recipe.history[8 * cycle + 7].items():
                assert torch.equal(snapshot[key], value), (cycle, key)
    val = recipe.load_data().val
    with torch.inference_mode():
        probabilities = torch.stack(
            [member(normalize(recipe, val.images)).softmax(1) for member in build_members(recipe, snapshots)]
        )
    mean = probabilities.mean(0)
    accuracies = (probabilities.argmax(2) == val.targets).float().mean(1)
    assert result["loss"] == pytest.approx(F.nll_loss(mean.log(), val.targets).item(), rel=1e-5)
    assert result["accuracy"] == pytest.approx((mean.argmax(1) == val.targets).float().mean().item())
    assert result["members"] == 3
    assert result["member_accuracy"] == pytest.approx(accuracies.mean().item())
    assert result["best_member"] == pytest.approx(accuracies.max().item())
    task = replace(recipe, history=[]).build_task(LABELS)
    run_weights.assign_weights(task.get_modules(), load_file(tmp_path / "run" / "weights.safetensors"), Path("run"))
    task.setup(Runtime.start(**CPU))
    task.prepare_training()
    again = task.evaluate(val)
    assert {**again, "loss": 0, "split": "val"} == {**result, "loss": 0}


@pytest.mark.parametrize("step", [3, 8, 9, 16, 23])
def test_resumed_cycles_are_bit_exact(tmp_path, frequent_checkpoints, step):
    """Interrupted at the ends of the first two cycles, just after one, and within one, with dropout."""
    uninterrupted = Tiny(cycles=3, epochs=6, noise=0.3, ema_decay=0.5)
    package.train(uninterrupted, tmp_path / "uninterrupted", **CPU)
    recipe = replace(uninterrupted, history=[], stop=step + 1)
    with pytest.raises(KeyboardInterrupt):
        package.train(recipe, tmp_path / "resumed", **CPU)
    assert decode_checkpoint(tmp_path / "resumed" / "last.ckpt", torch.device("cpu"))["step"] == step
    record = json.loads((tmp_path / "resumed" / "recipe.json").read_text())
    record["fields"] |= {"stop": 0, "history": []}
    (tmp_path / "resumed" / "recipe.json").write_text(json.dumps(record))
    package.train(replace(uninterrupted, history=[]), tmp_path / "resumed", **CPU, resume=True)
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("uninterrupted", "resumed"))
    assert one == two


# ---- ensembles and test-time augmentation ---------------------------------------------------------------------------


class FixedPredictions(nn.Module):
    """Model with fixed predictions for each image; the first pixel is the index of the image."""

    def __init__(self, probabilities):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, images):
        return self.scores[images[:, 0, 0, 0].round().long()]


def build_ensemble(*members, vote=False):
    """Build a task with three classes from the members' probabilities of images 0, 1, 2 ..."""
    tasks = [
        ClassificationTask(FixedPredictions(probabilities), LABELS, SquareTransform(1, 4, std=(1 / 255,)))
        for probabilities in members
    ]
    for task in tasks:
        task.setup(Runtime.start(**CPU))
        task.prepare_training()
    return ensemble.build_ensemble(tasks, vote=vote) if len(tasks) > 1 else tasks[0]


def build_numbered_images(count):
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


SURE_A, LIKELY_A, LIKELY_B, UNSURE_B, SURE_C = (
    [0.98, 0.01, 0.01], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.4, 0.5, 0.1], [0.01, 0.01, 0.98],
)  # fmt: skip


def test_majority_vote_breaks_ties_by_the_average():
    first = [SURE_A, LIKELY_A, LIKELY_A]
    second = [UNSURE_B, LIKELY_B, LIKELY_B]
    third = [UNSURE_B, SURE_C, LIKELY_B]
    average, vote = build_ensemble(first, second, third), build_ensemble(first, second, third, vote=True)
    images = build_numbered_images(3)
    assert average.predict_log_probabilities(images).argmax(1).tolist() == [0, 2, 1]
    assert vote.predict_log_probabilities(images).argmax(1).tolist() == [1, 2, 1]  # majority; tie of three; majority
    torch.testing.assert_close(vote.predict_log_probabilities(images).exp().sum(1), torch.ones(3))
    means = torch.tensor([first, second, third]).mean(0)
    torch.testing.assert_close(average.predict_log_probabilities(images).exp(), means)
    fractions = vote.predict_log_probabilities(images).exp()[0]
    assert fractions.tolist() == pytest.approx([1 / 3, 2 / 3, 0], abs=2e-3)


def test_majority_wins_the_vote_and_log_probabilities_are_finite():
    """The confidence of the minority does not matter; classes without votes have finite log-probabilities."""
    torch.manual_seed(0)
    log_probs = (torch.randn(5, 400, 3) * 100).log_softmax(2)
    combined = combine_log_probs(log_probs, vote=True)
    assert combined.isfinite().all()
    votes = F.one_hot(log_probs.argmax(2), 3).sum(0)
    assert (votes.gather(1, combined.argmax(1, keepdim=True)).squeeze() == votes.amax(1)).all()


def test_ensemble_metrics():
    """Four images of the classes a, b, c, a; the members predict 2, 3 and 1 correctly."""
    first = [SURE_A, SURE_A, SURE_C, SURE_C]
    second = [SURE_A, LIKELY_B, LIKELY_B, SURE_A]
    third = [UNSURE_B, SURE_A, SURE_C, UNSURE_B]
    batch = (build_numbered_images(4), torch.tensor([0, 1, 2, 0]))
    metrics = build_ensemble(first, second, third).evaluate([batch])
    assert metrics["members"] == 3
    assert metrics["member_accuracy"] == pytest.approx((2 + 3 + 1) / 12)
    assert metrics["best_member"] == 3 / 4
    assert metrics["accuracy"] == 3 / 4  # the averages predict a, a, c, a
    assert metrics["errors"] == 1
    assert metrics["gain"] == pytest.approx(3 / 4 - 1 / 2)
    assert metrics["disagreement"] == pytest.approx((3 / 4 + 2 / 4 + 4 / 4) / 3)


def test_a_single_network_has_no_ensemble_metrics():
    metrics = build_ensemble([SURE_A]).evaluate([(build_numbered_images(1), torch.tensor([0]))])
    assert set(metrics) == {"accuracy", "errors", "count", "loss"}


def test_an_ensemble_of_ensembles_weights_runs_equally():
    """A snapshot ensemble counts as one member, its average; inactive snapshots have no weight."""
    snapshots = Ensemble(
        [FixedPredictions([SURE_A]), FixedPredictions([SURE_C]), FixedPredictions([LIKELY_B])], num_active=2
    )
    ensemble = Ensemble([snapshots, FixedPredictions([UNSURE_B])])
    expected = (torch.tensor([SURE_A]) + torch.tensor([LIKELY_B])) / 4 + torch.tensor([UNSURE_B]) / 2
    torch.testing.assert_close(ensemble(build_numbered_images(1).float()).exp(), expected)


def test_two_views_of_a_flip_are_the_image_and_its_mirror_image():
    torch.manual_seed(0)
    recipe = Tiny(augment=("flip", "mixup=0.2"))
    task, network = build_task(recipe)
    images = recipe.load_data().val.images[:9]
    task.inference_model.eval()
    network.eval()
    with torch.inference_mode():
        plain, mirrored = (network(normalize(recipe, view)).softmax(1) for view in (images, images.flip(3)))
        torch.testing.assert_close(task.predict_log_probabilities(images).exp(), plain)
        task.set_num_views(2)
        torch.testing.assert_close(
            task.predict_log_probabilities(images).exp(), (plain + mirrored) / 2, atol=1e-4, rtol=1e-4
        )
    assert not torch.allclose(plain, mirrored, atol=1e-2)


def test_invalid_numbers_of_views_are_errors():
    with pytest.raises(UsageError, match="at least one view, not 0"):
        build_task(Tiny(augment=("flip",)))[0].set_num_views(0)
    with pytest.raises(UsageError, match="no views"):
        build_task(Tiny(augment=("mixup=0.2",)))[0].set_num_views(2)  # mixup combines images


# ---- command line ---------------------------------------------------------------------------------------------------

SMALL = {"epochs": 1, "batch_size": 100, "widths": (2, 2, 4, 4, 4, 4), "hidden": 8, "augment": ("flip",), "lr": 0.01}
QUICK = ["--epochs", "1", "--batch-size", "100", "--widths", "2", "2", "4", "4", "4", "4", "--hidden", "8", "--augment",
         "flip", "--lr", "0.01", "--device", "cpu", "--precision", "float32"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs that are small and short enough to disagree."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        check_task.disable_reports(patch)
        for seed in range(3):
            package.train(package.get_recipe("deep-convnet")(**SMALL, seed=seed), folder / str(seed), **CPU)
    return [folder / str(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def probabilities(runs):
    """Predictions of the runs for the test images and their mirror images ``(2, runs, N, classes)``, and targets."""
    val = package.get_recipe("deep-convnet")(**SMALL).load_data().val
    tasks = [load_task(run, device="cpu") for run in runs]
    with torch.inference_mode():
        rows = [
            [task.predict_log_probabilities(view).exp() for task in tasks] for view in (val.images, val.images.flip(3))
        ]
    return torch.stack([torch.stack(row) for row in rows]), val.targets


def test_num_seeds_trains_a_run_per_seed(fukami, tmp_path):
    result = fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--num-seeds", "2", "--out", "both")
    assert result.status == 0, result.err
    first, second, ensemble = result.json
    assert [line["run"] for line in (first, second)] == ensemble["runs"] == ["both/seed-1", "both/seed-2"]
    assert ensemble["member_accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
    page = Path(ensemble["report"])
    assert page.parent == Path("both")
    assert f"{ensemble['accuracy']:.4f}" in page.read_text()
    for seed in ("1", "2"):
        assert fukami("train", "deep-convnet", *QUICK, "--seed", seed, "--out", f"single-{seed}").status == 0
        one, other = (Path(out) / "weights.safetensors" for out in (f"both/seed-{seed}", f"single-{seed}"))
        assert one.read_bytes() == other.read_bytes()

    existing = fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--num-seeds", "2", "--out", "both")
    assert existing.status == 2
    assert "--resume" in existing.err
    resumed = fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--num-seeds", "3", "--out", "both", "--resume")
    assert [line["accuracy"] for line in resumed.json[:2]] == [first["accuracy"], second["accuracy"]]
    assert resumed.json[3]["members"] == 3
    none = fukami("train", "deep-convnet", *QUICK, "--num-seeds", "0", "--out", "none")
    assert none.status == 2
    assert "--num-seeds should be at least 1, not 0" in none.err


def test_seeds_without_evaluation_data_have_no_ensemble(digit_files, fukami):
    options = ["--data", digit_files, "--val-fraction", "0", "--epochs", "2", "--hidden", "8", "--num-seeds", "2"]
    result = fukami("train", "deep-convnet", *options, "--batch-size", "10", "--out", "both")
    assert result.status == 0, result.err
    assert [line["run"] for line in result.json] == ["both/seed-0", "both/seed-1"]


def test_seeds_of_a_custom_recipe_are_an_ensemble(fukami, tmp_path):
    source = "from fukami.classification.deep_convnet import DeepConvNet\n\nclass Mine(DeepConvNet):\n    pass\n"
    (tmp_path / "mine.py").write_text(source)
    result = fukami("train", "./mine.py", *QUICK, "--num-seeds", "2", "--out", "both")
    assert result.status == 0, result.err
    assert result.json[2]["members"] == 2


def test_eval_with_majority_vote(fukami, runs, probabilities):
    (plain, _), targets = probabilities
    votes = F.one_hot(plain.argmax(2), 10).sum(0).float()
    for options, scores in ((["--vote"], votes + 1e-3 * plain.mean(0)), ([], plain.mean(0))):
        (metrics,) = fukami("eval", *runs, "--device", "cpu", *options).json
        assert metrics["errors"] == (scores.argmax(1) != targets).sum()
        assert metrics["member_accuracy"] == pytest.approx((plain.argmax(2) == targets).float().mean().item())
    assert ((votes + 1e-3 * plain.mean(0)).argmax(1) != plain.mean(0).argmax(1)).any()


def test_eval_and_predict_with_two_views(fukami, runs, probabilities, digit_files):
    """Single runs and ensembles average the views of each member first."""
    views, targets = probabilities
    for folders, mean in ((runs[:1], views[:, 0].mean(0)), (runs, views.mean((0, 1)))):
        (metrics,) = fukami("eval", *folders, "--views", "2", "--device", "cpu").json
        assert metrics["errors"] == (mean.argmax(1) != targets).sum()
        assert metrics["loss"] == pytest.approx(F.nll_loss(mean.log(), targets).item(), rel=1e-3)
    file = next(digit_files.rglob("*.png"))
    task = load_task(runs[0], device="cpu")
    image = torch.from_numpy(task.transform.read_and_transform(file)).unsqueeze(0)
    with torch.inference_mode():
        expected = (task.predict_log_probabilities(image).exp() + task.predict_log_probabilities(image.flip(3)).exp())[
            0
        ] / 2
    (prediction,) = fukami("predict", runs[0], file, "--views", "2", "--device", "cpu").json
    assert prediction["label"] == str(expected.argmax().item())
    ranking = {entry["label"]: entry["probability"] for entry in prediction["ranking"]}
    assert [ranking[str(digit)] for digit in range(10)] == pytest.approx(expected.tolist(), abs=1e-4)
    result = fukami("eval", runs[0], "--views", "0")
    assert result.status == 2
    assert "at least one view, not 0" in result.err


def test_eval_writes_a_report_of_the_ensemble(fukami, runs, tmp_path):
    (metrics,) = fukami("eval", *runs[:2], "--out", "page/deep", "--device", "cpu").json
    page = (tmp_path / metrics["report"]).read_text()
    assert (tmp_path / metrics["report"]).parent == tmp_path / "page" / "deep"
    for hint in ("Ensemble members", "Confusion matrix", "--out page/deep", str(runs[1])):
        assert hint in page, hint


def test_show_draws_augmented_images(fukami, digit_files, tmp_path):
    """Five rows, each of another class, with an image and three variants."""
    arguments = [
        "--augment",
        "flip",
        "rotate=20",
        "mixup=0.2",
        "--num-images",
        "5",
        "--num-variants",
        "3",
        "--out",
        "a/b.png",
    ]
    result = fukami("show", digit_files, *arguments)
    assert result.status == 0, result.err
    (entry,) = result.json
    assert (entry["file"], entry["variants"]) == ("a/b.png", 3)
    assert len(set(entry["labels"])) == 5
    with Image.open(tmp_path / "a" / "b.png") as image:
        assert image.format == "PNG"
        assert image.size == pytest.approx((4 * 1.3 * 110, 5 * 1.45 * 110), abs=1)


def test_sample_images_returns_images_and_variants(digit_files):
    from fukami.cli.augmentation_grids import GridOptions, sample_images

    options = GridOptions(["flip=1"], size=32, channels=1, num_images=12, num_variants=2)
    rows = sample_images(str(digit_files), options)
    assert len(rows) == 12
    assert {label for label, _ in rows} == set("0123456789")  # every class appears before any is repeated
    files = {label: [np.asarray(Image.open(f).convert("L").resize((32, 32), Image.Resampling.BICUBIC)) for f in
             sorted((digit_files / label).iterdir())] for label in "0123456789"}  # fmt: skip
    for label, (plain, *variants) in rows:
        assert any(np.abs(plain[0].numpy() - file).max() <= 1 for file in files[label])
        assert len(variants) == 2
        for image in variants:
            torch.testing.assert_close(image, plain.flip(2), atol=0.01, rtol=0)
    assert all(len(images) == 1 for _, images in sample_images(str(digit_files), GridOptions(num_images=2)))
    crops = sample_images(str(digit_files), GridOptions(["crop=0.2"], num_images=3, num_variants=1))
    assert {image.shape for _, images in crops for image in images} == {(3, 112, 112)}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--augment", "flipp"], "'flip'"),
        (["--augment", "flip=2"], "between 0 and 1"),
        (["--num-images", "0"], "at least 1"),
        (["--num-variants", "-1"], "at least 1"),
        (["--size", "-3"], "number of pixels"),
        (["--channels", "0"], "channels"),
        (["--out", "drawn.doc"], ".png"),
        (["--out", "drawn"], ".png"),
    ],
)
def test_show_usage_errors(fukami, digit_files, tmp_path, arguments, hint):
    result = fukami("show", digit_files, *arguments)
    assert result.status == 2, result
    assert hint in result.err
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_show_without_training_images_is_an_error(fukami, tmp_path):
    (tmp_path / "set" / "test" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "set" / "test" / "a" / "1.png")
    result = fukami("show", "set")
    assert result.status == 1
    assert "no training image" in result.err
    assert fukami("show", "digtis").status == 2


def test_find_lr(fukami, tmp_path):
    arguments = [
        *QUICK[:-4],
        "--device",
        "cpu",
        "--min-lr",
        "1e-5",
        "--max-lr",
        "1",
        "--num-steps",
        "10",
        "--out",
        "a/lr.png",
    ]
    result = fukami("find-lr", "deep-convnet", *arguments)
    assert result.status == 0, result.err
    (entry,) = result.json
    assert entry["figure"] == "a/lr.png"
    assert 5 <= entry["steps"] <= 10
    assert 1e-5 <= entry["lr"] <= entry["min_loss_lr"] <= 1
    with Image.open(tmp_path / "a" / "lr.png") as image:
        assert image.format == "PNG"
    assert fukami("find-lr", "deep-convnet", *arguments).json == result.json
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]  # without a run folder


def test_range_test_locates_divergence():
    """Learning rates form a geometric sequence; on a parabola, training diverges above 2 / curvature."""
    from fukami.engine import lr_finder

    class Parabola(package.Task):
        def __init__(self):
            super().__init__(nn.Linear(1, 1, bias=False), optimizer=lambda p: torch.optim.SGD(p, 0.5))
            nn.init.ones_(self.model.weight)
            self.lrs = []

        def compute_loss(self, batch):
            self.lrs.append(self.optimizer.param_groups[0]["lr"].item())
            return 4 / 2 * self.model.weight.square().sum(), {}

    task = Parabola()

    class ParabolaRecipe(package.Recipe):
        def load_data(self):
            return package.Data([0])

        def build_task(self, labels):
            return task

    result = lr_finder.find_lr(ParabolaRecipe(), 1e-3, 10.0, 60, device="cpu")
    expected = np.geomspace(1e-3, 10.0, 60)
    assert result.lrs == pytest.approx(expected[: len(result.lrs)])
    assert task.lrs == pytest.approx(expected[: len(task.lrs)], rel=1e-5)
    assert len(task.lrs) == len(result.lrs) + 1 < 60  # the diverged step is omitted
    assert result.steepest_lr < result.min_loss_lr
    assert 0.1 < result.min_loss_lr < 4  # about 2 / 4, slightly more because of the smoothing


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "name the recipe first"),
        (["deep-convnt"], "'deep-convnet'"),
        (["deep-convnet", "--min-lr", "0"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--min-lr", "2", "--max-lr", "1"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--max-lr", "inf"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--min-lr", "nan"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--num-steps", "9"], "at least 10 steps"),
        (["deep-convnet", "--num-step", "20"], "--num-steps"),
        (["deep-convnet", "--lr", "0", "--num-steps", "10"], "--lr 0"),
        (["deep-convnet", "--out", "curve.doc", "--num-steps", "10"], ".png"),
    ],
)
def test_find_lr_usage_errors(fukami, arguments, hint):
    result = fukami("find-lr", *arguments)
    assert result.status == 2, result
    assert hint in result.err
    assert result.out == ""


def test_find_lr_with_a_too_high_min_lr_is_an_error(fukami):
    result = fukami("find-lr", "deep-convnet", *QUICK[:-4], "--optimizer", "sgd", "--min-lr", "1e25",
                    "--max-lr", "1e30", "--num-steps", "12", "--device", "cpu")  # fmt: skip
    assert result.status == 1
    assert "smaller --min-lr" in result.err


def test_crop_augmentation_of_digits_keeps_28x28(digit_files):
    """The preprocessing of digits returns 28×28 without a margin for crops."""
    data = DeepConvNet(data=str(digit_files), augment=("crop=0.5",), batch_size=10).load_data()
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert next(iter(data.train))[0].shape == (10, 1, 28, 28)


def test_classes_without_images_have_no_accuracy():
    figure = classification_plots.plot_class_accuracy(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 2, 2]]), ("a", "b", "c"))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c"]
    assert axes.lines[0].get_xdata().tolist() == [75, 50]
