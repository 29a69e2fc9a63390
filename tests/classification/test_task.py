"""The recipe that classifiers share: every knob does what it says, worked out by hand."""

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
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.recipe import ClassificationRecipe
from fukami.classification.task import ClassificationTask
from fukami.data.loader import InMemoryLoader
from fukami.engine import checkpoint
from fukami.engine.runtime import Runtime
from fukami.engine.state_file import load_state
from fukami.engine.supervised import build_augmentation
from fukami.image.transform import SquareTransform
from fukami.layers.ensemble import Ensemble, combine_log_probs

CPU = {"device": "cpu", "precision": "float32"}
LABELS = ("a", "b", "c")


@dataclass(frozen=True, kw_only=True)
class Tiny(ClassificationRecipe):
    """One affine layer on 4×4 grey images of three classes, 10, 20 and 30 of each, drawn from the seed."""

    size: int = 4
    channels: int = 1
    epochs: int = 4
    batch_size: int = 15
    lr: float = 0.1
    warmup: float = 0.0
    heads: int = 0
    """Auxiliary heads."""
    noise: float = 0.0
    """Dropout, so that the random states matter."""
    history: list = field(default_factory=list, compare=False)
    """The weights after each step."""
    stop: int = 0
    """The step after which the training is interrupted."""

    def load_data(self):
        generator = torch.Generator().manual_seed(7)
        targets = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 30]))
        images = torch.randint(0, 256, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
        train = InMemoryLoader(images, targets, LABELS, batch_size=self.batch_size, seed=self.seed,
                         balanced=self.balance == "sampling",
                         augment=build_augmentation(self.augment, self.build_transform(LABELS), LABELS))  # fmt: skip
        return package.Data(train, InMemoryLoader(images, targets, LABELS, batch_size=25), LABELS)

    def build_model(self, num_classes):
        return Heads(num_classes, self.heads, self.noise)

    def build_task(self, labels):
        task = super().build_task(labels)
        step = task.step

        def watched(batch):
            result = step(batch)
            self.history.append(copy.deepcopy(task.model.state_dict()))
            if len(self.history) == self.stop:
                raise KeyboardInterrupt
            return result

        task.step = watched
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
        others = [head(x) for head in self.auxiliary]
        return (scores, *others) if self.training and others else scores


def begun(recipe):
    """The task of a recipe, ready to train; and a copy of its network to work by hand with."""
    torch.manual_seed(recipe.seed)
    task = recipe.build_task(LABELS)
    task.setup(Runtime.start(**CPU))
    return task, copy.deepcopy(task.model)


def inputs(recipe, images):
    prepare = recipe.build_transform(LABELS)
    mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (prepare.mean, prepare.std))
    return (images - mean) / std


@pytest.fixture
def quick(monkeypatch, pageless):
    """A checkpoint at every look of the loop, and no report."""
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)


# ---- fields ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"epochs": 0}, "epochs should be at least 1"),
        ({"batch_size": 0}, "batch-size should be at least 1"),
        ({"cycles": 0}, "cycles should be between 1 and 100"),
        ({"size": 3}, "size should be between 4 and 2048"),
        ({"lr": -0.1}, "lr should be at least 0"),
        ({"lr": math.nan}, "lr should be at least 0"),
        ({"weight_decay": -1.0}, "weight-decay should be at least 0"),
        ({"memory_limit": -1.0}, "memory-limit should be at least 0"),
        ({"holdout": 1.5}, "holdout should be between 0 and 1"),
        ({"layer_lr_decay": 1.1}, "layer-lr-decay should be between 0 and 1"),
        ({"drop_factor": -0.1}, "drop-factor should be between 0 and 1"),
        ({"warmup": 1.0}, "warmup should be between 0"),
        ({"momentum": 1.0}, "momentum should be between 0"),
        ({"label_smoothing": 1.0}, "label-smoothing should be between 0"),
        ({"ema_decay": 1.0}, "ema-decay should be between 0"),
        ({"schedule": "cosin"}, "schedule 'cosin'; did you mean 'cosine'"),
        ({"schedule": "step=0"}, "'step=0' is no schedule"),
        ({"cycles": 2, "schedule": "plateau=2"}, "--cycles"),
        ({"freeze": True}, "--init"),
    ],
    ids=str,
)
def test_fields_that_no_run_can_have_are_refused_by_name(given, hint):
    with pytest.raises(UsageError, match=hint):
        Tiny(**given)


@pytest.mark.parametrize(("words", "hint"), [(["flipp"], "'flip'"), (["rotate=x"], "rotate=10"), (["hue=2"], "0.5")])
def test_wrong_augmentation_is_refused_before_anything_is_trained(fukami, words, hint, tmp_path):
    answer = fukami("train", "deep-convnet", "--augment", *words, "--out", "run")
    assert answer.status == 2
    assert hint in answer.err
    assert not (tmp_path / "run" / "recipe.json").exists()


# ---- the update -----------------------------------------------------------------------------------------------------

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


def test_every_optimizer_of_the_recipe_is_here():
    (words,) = {field.type.__args__ for field in fields(ClassificationRecipe) if field.name == "optimizer"}
    assert set(words) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_as_torchs_at_the_scheduled_rate(name):
    """Three steps down a half cosine, the gradients by autograd."""
    recipe = Tiny(optimizer=name, lr=RATE, momentum=M, weight_decay=W)
    task, network = begun(recipe)
    optimizer = OPTIMIZERS[name](network.parameters())
    batches = iter(recipe.load_data().train)
    for progress in (0.0, 0.25, 0.5):
        images, targets = next(batches)
        task.schedule(progress)
        task.step((images, targets))
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * progress)) / 2
        optimizer.zero_grad()
        F.cross_entropy(network(inputs(recipe, images)), targets).backward()
        optimizer.step()
    for (key, found), expected in zip(task.model.named_parameters(), network.parameters(), strict=True):
        if key != "fc.bias":  # before a normalisation its gradient is rounding alone, which Adam enlarges
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4, msg=key)


# ---- the loss -------------------------------------------------------------------------------------------------------


def test_smoothing_spreads_that_share_over_all_classes():
    recipe = Tiny(label_smoothing=0.3)
    task, network = begun(recipe)
    images, targets = next(iter(recipe.load_data().train))
    logs = network(inputs(recipe, images)).log_softmax(1)
    spread = 0.7 * F.one_hot(targets, 3) + 0.1
    torch.testing.assert_close(task.compute_loss((images, targets))[0], -(spread * logs).sum(1).mean())


def test_auxiliary_heads_count_three_tenths_each():
    recipe = Tiny(heads=2)
    task, network = begun(recipe)
    images, targets = next(iter(recipe.load_data().train))
    scores, *others = (F.cross_entropy(s, targets) for s in network(inputs(recipe, images)))
    assert len(others) == 2
    torch.testing.assert_close(task.compute_loss((images, targets))[0], scores + 0.3 * (others[0] + others[1]))


def test_rare_classes_weigh_more_in_the_loss():
    """Ten, twenty and thirty of sixty: weights of 2, 1 and 2/3, and their mean over all images is 1."""
    recipe = Tiny(balance="loss")
    task, network = begun(recipe)
    loader = recipe.load_data().train
    images, targets = next(iter(task.iterate_batches(loader)))
    weights = torch.tensor([2.0, 1.0, 2 / 3])
    each = -network(inputs(recipe, images)).log_softmax(1)[torch.arange(15), targets]
    expected = (weights[targets] * each).sum() / weights[targets].sum()
    torch.testing.assert_close(task.compute_loss((images, targets))[0], expected)
    assert weights[loader.targets].mean() == pytest.approx(1)


def test_balanced_sampling_draws_every_class_equally_often():
    """Over 50 passes, by chi-square with 2 degrees of freedom at 0.999; plain shuffling keeps 1 : 2 : 3."""
    plain, balanced = (Tiny(balance=balance).load_data().train for balance in ("none", "sampling"))
    counts = torch.zeros(3)
    for _ in range(50):
        counts += torch.cat([targets for _, targets in balanced]).bincount(minlength=3)
    expected = counts.sum() / 3
    assert counts.sum() == 50 * 60
    assert ((counts - expected) ** 2 / expected).sum() < 13.8
    assert torch.cat([targets for _, targets in plain]).bincount().tolist() == [10, 20, 30]


def test_mixed_targets_reach_the_loss():
    """Mixup by hand: the cross entropy against both classes in their shares."""
    recipe = Tiny(augment=("mixup=1",))
    task, network = begun(recipe)
    loader = recipe.load_data().train
    order, draws = loader._plan_epoch(0)
    images, targets = next(iter(task.iterate_batches(loader)))
    own, other = loader.targets[order[:15]], loader.targets[order[:15]].roll(7)
    share = draws[:15, 1]  # Beta(1, 1) is uniform
    logs = -network(inputs(recipe, images)).log_softmax(1)
    each = share * logs[torch.arange(15), own] + (1 - share) * logs[torch.arange(15), other]
    torch.testing.assert_close(task.compute_loss((images, targets))[0], each.mean(), atol=1e-4, rtol=1e-4)
    assert (own != other).any()


# ---- what answers ---------------------------------------------------------------------------------------------------


def saved(folder):
    found = load_file(folder / "weights.safetensors")
    return {key.removeprefix("model."): value for key, value in found.items()}


def test_the_moving_average_answers(tmp_path, quick):
    recipe = Tiny(ema_decay=0.8, epochs=2)
    result = package.train(recipe, tmp_path / "run", **CPU)
    torch.manual_seed(recipe.seed)
    average = {key: value.clone() for key, value in recipe.build_model(3).state_dict().items()}
    assert len(recipe.history) == 8
    for weights in recipe.history:
        for key, value in weights.items():
            parameter = not key.startswith("norm.running") and "tracked" not in key
            average[key] = 0.8 * average[key] + 0.2 * value if parameter else value
    found = saved(tmp_path / "run")
    for key, value in average.items():
        torch.testing.assert_close(found[key], value, msg=key)
    assert not torch.allclose(found["fc.weight"], recipe.history[-1]["fc.weight"], atol=1e-3)
    network = recipe.build_model(3)
    network.load_state_dict(average)
    images, targets = recipe.load_data().val.images, recipe.load_data().val.targets
    errors = (network.eval()(inputs(recipe, images)).argmax(1) != targets).sum()
    assert result["errors"] == errors


def members(recipe, weights):
    """Networks with these weights."""
    networks = [recipe.build_model(3).eval() for _ in weights]
    for network, state in zip(networks, weights, strict=True):
        network.load_state_dict(state)
    return networks


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.7}], ids=str)
def test_snapshots_are_the_weights_at_the_ends_of_the_cycles_and_answer_together(tmp_path, quick, extra):
    """Six epochs of four steps in three cycles: after steps 8, 16 and 24."""
    recipe = Tiny(cycles=3, epochs=6, **extra)
    result = package.train(recipe, tmp_path / "run", **CPU)
    assert len(recipe.history) == 24
    found = saved(tmp_path / "run")
    assert found["joined"] == 3
    ends = [{key.removeprefix(f"models.{n}."): v for key, v in found.items() if key.startswith(f"models.{n}.")}
            for n in range(3)]  # fmt: skip
    if not extra:
        for number, end in enumerate(ends):
            for key, value in recipe.history[8 * number + 7].items():
                assert torch.equal(end[key], value), (number, key)
    val = recipe.load_data().val
    with torch.inference_mode():
        each = torch.stack([n(inputs(recipe, val.images)).softmax(1) for n in members(recipe, ends)])
    mean = each.mean(0)
    right = (each.argmax(2) == val.targets).float().mean(1)
    assert result["loss"] == pytest.approx(F.nll_loss(mean.log(), val.targets).item(), rel=1e-5)
    assert result["accuracy"] == pytest.approx((mean.argmax(1) == val.targets).float().mean().item())
    assert result["members"] == 3
    assert result["member_accuracy"] == pytest.approx(right.mean().item())
    assert result["best_member"] == pytest.approx(right.max().item())
    task = replace(recipe, history=[]).build_task(LABELS)
    checkpoint.assign_weights(task.get_modules(), load_file(tmp_path / "run" / "weights.safetensors"), Path("run"))
    task.setup(Runtime.start(**CPU))
    again = task.evaluate(val)
    assert {**again, "loss": 0} == {**result, "loss": 0}


@pytest.mark.parametrize("cut", [3, 8, 9, 16, 23])
def test_cycles_resume_bit_exactly_wherever_they_are_cut(tmp_path, quick, cut):
    """At the ends of the first two cycles, just after one, and in the midst of one; dropout draws on."""
    whole = Tiny(cycles=3, epochs=6, noise=0.3, ema_decay=0.5)
    package.train(whole, tmp_path / "whole", **CPU)
    recipe = replace(whole, history=[], stop=cut + 1)
    with pytest.raises(KeyboardInterrupt):
        package.train(recipe, tmp_path / "cut", **CPU)
    assert load_state(tmp_path / "cut" / "last.ckpt", torch.device("cpu"))["step"] == cut
    record = json.loads((tmp_path / "cut" / "recipe.json").read_text())
    record["fields"] |= {"stop": 0, "history": []}
    (tmp_path / "cut" / "recipe.json").write_text(json.dumps(record))
    package.train(replace(whole, history=[]), tmp_path / "cut", **CPU, resume=True)
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two


# ---- several answers in one -----------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Says what it was told to, whatever it sees; the first pixel is the number of the image."""

    def __init__(self, probabilities):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, images):
        return self.scores[images[:, 0, 0, 0].round().long()]


def answering(*models, vote=False):
    """A task over three classes whose members say these probabilities of images 0, 1, 2 ..."""
    tasks = [ClassificationTask(Fixed(model), LABELS, SquareTransform(1, 4, std=(1 / 255,))) for model in models]
    for task in tasks:
        task.setup(Runtime.start(**CPU))
    return tasks[0].ensemble_with(tasks[1:], vote=vote) if len(tasks) > 1 else tasks[0]


def numbered(count):
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


SURE_A, LIKELY_A, LIKELY_B, UNSURE_B, SURE_C = (
    [0.98, 0.01, 0.01], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.4, 0.5, 0.1], [0.01, 0.01, 0.98],
)  # fmt: skip


def test_a_vote_counts_heads_and_the_average_decides_ties():
    first = [SURE_A, LIKELY_A, LIKELY_A]
    second = [UNSURE_B, LIKELY_B, LIKELY_B]
    third = [UNSURE_B, SURE_C, LIKELY_B]
    average, vote = answering(first, second, third), answering(first, second, third, vote=True)
    assert average.predict_scores(numbered(3)).argmax(1).tolist() == [0, 2, 1]
    assert vote.predict_scores(numbered(3)).argmax(1).tolist() == [1, 2, 1]  # outvoted; a tie of three; of one mind
    torch.testing.assert_close(vote.predict_scores(numbered(3)).exp().sum(1), torch.ones(3))
    means = torch.tensor([first, second, third]).mean(0)
    torch.testing.assert_close(average.predict_scores(numbered(3)).exp(), means)
    shares = vote.predict_scores(numbered(3)).exp()[0]
    assert shares.tolist() == pytest.approx([1 / 3, 2 / 3, 0], abs=2e-3)


def test_a_vote_never_loses_to_the_average_and_stays_finite():
    """However sure the minority is; and the loss of what nobody believes in is a number."""
    torch.manual_seed(0)
    logs = (torch.randn(5, 400, 3) * 100).log_softmax(2)
    found = combine_log_probs(logs, vote=True)
    assert found.isfinite().all()
    votes = F.one_hot(logs.argmax(2), 3).sum(0)
    assert (votes.gather(1, found.argmax(1, keepdim=True)).squeeze() == votes.amax(1)).all()


def test_members_are_counted_by_hand():
    """Four images of classes a, b, c, a; the first member has 2 right, the second 3, the third 1."""
    first = [SURE_A, SURE_A, SURE_C, SURE_C]
    second = [SURE_A, LIKELY_B, LIKELY_B, SURE_A]
    third = [UNSURE_B, SURE_A, SURE_C, UNSURE_B]
    found = answering(first, second, third).evaluate([(numbered(4), torch.tensor([0, 1, 2, 0]))])
    assert found["members"] == 3
    assert found["member_accuracy"] == pytest.approx((2 + 3 + 1) / 12)
    assert found["best_member"] == 3 / 4
    assert found["accuracy"] == 3 / 4  # the averages say a, a, c, a
    assert found["errors"] == 1
    assert found["gain"] == pytest.approx(3 / 4 - 1 / 2)
    assert found["disagreement"] == pytest.approx((3 / 4 + 2 / 4 + 4 / 4) / 3)


def test_one_network_has_no_members():
    found = answering([SURE_A]).evaluate([(numbered(1), torch.tensor([0]))])
    assert set(found) == {"accuracy", "errors", "count", "loss"}


def test_an_ensemble_of_ensembles_weighs_each_run_once():
    """A run of snapshots is one member, that of their average; those that have not joined say nothing."""
    snapshots = Ensemble([Fixed([SURE_A]), Fixed([SURE_C]), Fixed([LIKELY_B])], num_active=2)
    whole = Ensemble([snapshots, Fixed([UNSURE_B])])
    expected = (torch.tensor([SURE_A]) + torch.tensor([LIKELY_B])) / 4 + torch.tensor([UNSURE_B]) / 2
    torch.testing.assert_close(whole(numbered(1).float()).exp(), expected)


def test_two_views_of_a_flip_are_the_image_and_its_mirror_image():
    torch.manual_seed(0)
    recipe = Tiny(augment=("flip", "mixup=0.2"))
    task, network = begun(recipe)
    images = recipe.load_data().val.images[:9]
    task.inference_model.eval()
    network.eval()
    with torch.inference_mode():
        plain, mirrored = (network(inputs(recipe, p)).softmax(1) for p in (images, images.flip(3)))
        torch.testing.assert_close(task.predict_scores(images).exp(), plain)
        torch.testing.assert_close(
            task.with_views(2).predict_scores(images).exp(), (plain + mirrored) / 2, atol=1e-4, rtol=1e-4
        )
    assert not torch.allclose(plain, mirrored, atol=1e-2)


def test_views_are_refused_where_there_are_none():
    with pytest.raises(UsageError, match="at least one view, not 0"):
        begun(Tiny(augment=("flip",)))[0].with_views(0)
    with pytest.raises(UsageError, match="no views"):
        begun(Tiny(augment=("mixup=0.2",)))[0].with_views(2)  # mixing is no view of one image


# ---- the command line -----------------------------------------------------------------------------------------------

SMALL = {"epochs": 1, "batch_size": 100, "widths": (2, 2, 4, 4, 4, 4), "hidden": 8, "augment": ("flip",), "lr": 0.01}
QUICK = ["--epochs", "1", "--batch-size", "100", "--widths", "2", "2", "4", "4", "4", "4", "--hidden", "8", "--augment",
         "flip", "--lr", "0.01", "--device", "cpu", "--precision", "float32"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs too small and too short to be of one mind."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        check_task.leave_out_pages(patch)
        for seed in range(3):
            package.train(package.get_recipe("deep-convnet")(**SMALL, seed=seed), folder / str(seed), **CPU)
    return [folder / str(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def said(runs):
    """What each of the runs says of the test images and of their mirror images ``(2, runs, N, classes)``."""
    val = package.get_recipe("deep-convnet")(**SMALL).load_data().val
    tasks = [package.load(run, device="cpu") for run in runs]
    with torch.inference_mode():
        each = [[task.predict_scores(p).exp() for task in tasks] for p in (val.images, val.images.flip(3))]
    return torch.stack([torch.stack(row) for row in each]), val.targets


def test_several_seeds_are_the_runs_of_each(fukami, pageless, tmp_path):
    answer = fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--num-seeds", "2", "--out", "both")
    assert answer.status == 0, answer.err
    first, second, together = answer.json
    assert [line["run"] for line in (first, second)] == together["runs"] == ["both/seed-1", "both/seed-2"]
    assert together["member_accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
    page = Path(together["report"])
    assert page.parent == Path("both")
    assert f"{together['accuracy']:.4f}" in page.read_text()
    for seed in ("1", "2"):
        assert fukami("train", "deep-convnet", *QUICK, "--seed", seed, "--out", f"alone-{seed}").status == 0
        one, other = (Path(out) / "weights.safetensors" for out in (f"both/seed-{seed}", f"alone-{seed}"))
        assert one.read_bytes() == other.read_bytes()

    taken = fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--num-seeds", "2", "--out", "both")
    assert taken.status == 2
    assert "--resume" in taken.err
    again = fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--num-seeds", "3", "--out", "both", "--resume")
    assert [line["accuracy"] for line in again.json[:2]] == [first["accuracy"], second["accuracy"]]
    assert again.json[3]["members"] == 3
    none = fukami("train", "deep-convnet", *QUICK, "--num-seeds", "0", "--out", "none")
    assert none.status == 2
    assert "seeds should be at least 1, not 0" in none.err


def test_eval_votes(fukami, runs, said):
    (plain, _), targets = said
    votes = F.one_hot(plain.argmax(2), 10).sum(0).float()
    for words, scores in ((["--vote"], votes + 1e-3 * plain.mean(0)), ([], plain.mean(0))):
        (found,) = fukami("eval", *runs, "--device", "cpu", *words).json
        assert found["errors"] == (scores.argmax(1) != targets).sum()
        assert found["member_accuracy"] == pytest.approx((plain.argmax(2) == targets).float().mean().item())
    assert ((votes + 1e-3 * plain.mean(0)).argmax(1) != plain.mean(0).argmax(1)).any()


def test_eval_and_predict_from_two_views(fukami, runs, said, digit_files):
    """Of one run, and of all: each member's views are averaged first."""
    views, targets = said
    for words, together in ((runs[:1], views[:, 0].mean(0)), (runs, views.mean((0, 1)))):
        (found,) = fukami("eval", *words, "--views", "2", "--device", "cpu").json
        assert found["errors"] == (together.argmax(1) != targets).sum()
        assert found["loss"] == pytest.approx(F.nll_loss(together.log(), targets).item(), rel=1e-3)
    file = next(digit_files.rglob("*.png"))
    task = package.load(runs[0], device="cpu")
    seen = torch.from_numpy(task.load_image(file)).unsqueeze(0)
    with torch.inference_mode():
        expected = (task.predict_scores(seen).exp() + task.predict_scores(seen.flip(3)).exp())[0] / 2
    (answer,) = fukami("predict", runs[0], file, "--views", "2", "--device", "cpu").json
    assert answer["label"] == str(expected.argmax().item())
    found = {entry["label"]: entry["probability"] for entry in answer["ranking"]}
    assert [found[str(number)] for number in range(10)] == pytest.approx(expected.tolist(), abs=1e-4)
    refused = fukami("eval", runs[0], "--views", "0")
    assert refused.status == 2
    assert "at least one view, not 0" in refused.err


def test_eval_leaves_a_page_about_the_members(fukami, runs, tmp_path):
    (found,) = fukami("eval", *runs[:2], "--out", "page/deep", "--device", "cpu").json
    page = (tmp_path / found["report"]).read_text()
    assert (tmp_path / found["report"]).parent == tmp_path / "page" / "deep"
    for hint in ("The members and what they do together", "Confusion matrix", "--out page/deep", str(runs[1])):
        assert hint in page, hint


def test_show_draws_what_augmentation_makes(fukami, digit_files, tmp_path):
    """Five rows of an image and three changes, each of another class."""
    words = [
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
    answer = fukami("show", digit_files, *words)
    assert answer.status == 0, answer.err
    (said,) = answer.json
    assert (said["file"], said["variants"]) == ("a/b.png", 3)
    assert len(set(said["labels"])) == 5
    with Image.open(tmp_path / "a" / "b.png") as drawn:
        assert drawn.format == "PNG"
        assert drawn.size == pytest.approx((4 * 1.3 * 110, 5 * 1.45 * 110), abs=1)


def test_samples_are_the_images_and_their_changes(digit_files):
    from fukami.cli import augmentation_grids

    rows = augmentation_grids.sample_images(
        str(digit_files), ["flip=1"], size=32, channels=1, num_images=12, num_variants=2
    )
    assert len(rows) == 12
    assert {label for label, _ in rows} == set("0123456789")  # every class before any comes twice
    files = {label: [np.asarray(Image.open(f).convert("L").resize((32, 32), Image.Resampling.BICUBIC)) for f in
             sorted((digit_files / label).iterdir())] for label in "0123456789"}  # fmt: skip
    for label, (plain, *changed) in rows:
        assert any(np.abs(plain[0].numpy() - file).max() <= 1 for file in files[label])
        assert len(changed) == 2
        for image in changed:
            torch.testing.assert_close(image, plain.flip(2), atol=0.01, rtol=0)
    assert all(len(images) == 1 for _, images in augmentation_grids.sample_images(str(digit_files), [], num_images=2))
    crops = augmentation_grids.sample_images(str(digit_files), ["crop=0.2"], num_images=3, num_variants=1)
    assert {image.shape for _, images in crops for image in images} == {(3, 112, 112)}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--augment", "flipp"], "'flip'"),
        (["--augment", "flip=2"], "between 0 and 1"),
        (["--num-images", "0"], "at least 1"),
        (["--num-variants", "-1"], "at least 1"),
        (["--size", "-3"], "number of pixels"),
        (["--channels", "2"], "channels"),
        (["--out", "drawn.doc"], ".png"),
        (["--out", "drawn"], ".png"),
    ],
)
def test_show_refuses_nonsense(fukami, digit_files, tmp_path, words, hint):
    answer = fukami("show", digit_files, *words)
    assert answer.status == 2, answer
    assert hint in answer.err
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []


def test_show_without_an_image_to_train_on(fukami, tmp_path):
    (tmp_path / "set" / "test" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "set" / "test" / "a" / "1.png")
    answer = fukami("show", "set")
    assert answer.status == 1
    assert "no image to train on" in answer.err
    assert fukami("show", "digtis").status == 2


def test_find_lr(fukami, tmp_path):
    words = [*QUICK[:-4], "--device", "cpu", "--min-lr", "1e-5", "--max-lr", "1", "--steps", "10", "--out", "a/lr.png"]
    answer = fukami("find-lr", "deep-convnet", *words)
    assert answer.status == 0, answer.err
    (found,) = answer.json
    assert found["figure"] == "a/lr.png"
    assert 5 <= found["steps"] <= 10
    assert 1e-5 <= found["lr"] <= found["min_loss_lr"] <= 1
    with Image.open(tmp_path / "a" / "lr.png") as drawn:
        assert drawn.format == "PNG"
    assert fukami("find-lr", "deep-convnet", *words).json == answer.json
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]  # no run is left


def test_a_range_test_finds_where_a_training_breaks():
    """The rates are the powers asked for; on a parabola the loss falls up to a rate of 2 / curvature, then rises."""
    from fukami.engine import lr_finder

    class Parabola(package.Task):
        def __init__(self):
            super().__init__(nn.Linear(1, 1, bias=False), optimizer=lambda p: torch.optim.SGD(p, 0.5))
            nn.init.ones_(self.model.weight)
            self.rates = []

        def compute_loss(self, batch):
            self.rates.append(self.optimizer.param_groups[0]["lr"].item())
            return 4 / 2 * self.model.weight.square().sum(), {}

    task = Parabola()

    class Fall(package.Recipe):
        def load_data(self):
            return package.Data([0])

        def build_task(self, labels):
            return task

    found = lr_finder.find_lr(Fall(), 1e-3, 10.0, 60, device="cpu")
    expected = np.geomspace(1e-3, 10.0, 60)
    assert found.lrs == pytest.approx(expected[: len(found.lrs)])
    assert task.rates == pytest.approx(expected[: len(task.rates)], rel=1e-5)
    assert len(task.rates) == len(found.lrs) + 1 < 60  # the step at which the loss had left is not counted
    assert found.steepest_lr < found.min_loss_lr
    assert 0.1 < found.min_loss_lr < 4  # about 2 / 4, a little later by the smoothing


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "name the recipe first"),
        (["deep-convnt"], "'deep-convnet'"),
        (["deep-convnet", "--min-lr", "0"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--min-lr", "2", "--max-lr", "1"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--max-lr", "inf"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--min-lr", "nan"], "0 < min-lr < max-lr"),
        (["deep-convnet", "--steps", "9"], "at least 10 steps"),
        (["deep-convnet", "--step", "20"], "--steps"),
        (["deep-convnet", "--lr", "0", "--steps", "10"], "--lr 0"),
        (["deep-convnet", "--out", "curve.doc", "--steps", "10"], ".png"),
    ],
)
def test_find_lr_refuses_nonsense(fukami, words, hint):
    answer = fukami("find-lr", *words)
    assert answer.status == 2, answer
    assert hint in answer.err
    assert answer.out == ""


def test_find_lr_says_when_the_lowest_rate_is_too_high(fukami):
    answer = fukami("find-lr", "deep-convnet", *QUICK[:-4], "--optimizer", "sgd", "--min-lr", "1e25",
                    "--max-lr", "1e30", "--steps", "12", "--device", "cpu")  # fmt: skip
    assert answer.status == 1
    assert "smaller --min-lr" in answer.err


def test_digits_are_cropped_in_the_one_size_that_they_have(digit_files):
    """Photographs of digits are brought to 28×28, whatever margin a crop would like."""
    data = DeepConvNet(data=str(digit_files), augment=("crop=0.5",), batch_size=10).load_data()
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert next(iter(data.train))[0].shape == (10, 1, 28, 28)
