"""Tests of learning-rate schedules, against torch's schedulers."""

import json

import pytest
import torch
from torch.optim import lr_scheduler as reference

import fukami
from check_task import read_log_lines
from fukami import UsageError
from fukami.classification.deep_convnet import DeepConvNet
from fukami.engine import schedules

STEPS = 120


def compute_torch_factors(build_scheduler, steps=STEPS):
    """Return the learning rate at each step of a scheduler of torch, with a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def compute_factors(spec, steps=STEPS, **options):
    schedule = schedules.parse_schedule(spec, **options)
    return [schedule(step / steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("spec", "build_scheduler"),
    [
        ("constant", lambda o: reference.ConstantLR(o, factor=1)),
        ("step", lambda o: reference.StepLR(o, STEPS // 3, gamma=0.2)),
        ("step=5", lambda o: reference.StepLR(o, STEPS // 6, gamma=0.2)),
        ("multistep", lambda o: reference.MultiStepLR(o, [60, 90], gamma=0.2)),
        ("multistep=0.1,0.7,0.95", lambda o: reference.MultiStepLR(o, [12, 84, 114], gamma=0.2)),
        ("exponential", lambda o: reference.ExponentialLR(o, 0.01 ** (1 / STEPS))),
        ("exponential=0.5", lambda o: reference.ExponentialLR(o, 0.5 ** (1 / STEPS))),
        ("polynomial", lambda o: reference.PolynomialLR(o, STEPS)),
        ("polynomial=2.5", lambda o: reference.PolynomialLR(o, STEPS, power=2.5)),
        ("cosine", lambda o: reference.CosineAnnealingLR(o, STEPS)),
    ],
)
def test_schedules_equal_torchs(spec, build_scheduler):
    assert compute_factors(spec, factor=0.2) == pytest.approx(compute_torch_factors(build_scheduler), abs=1e-12)


@pytest.mark.parametrize("warmup", [0.25, 0.4])
def test_one_cycle_equals_torchs(warmup):
    """torch reaches the peak one step early and the end at the last step; corresponding points of both phases agree."""
    expected = compute_torch_factors(lambda o: reference.OneCycleLR(o, 1.0, total_steps=STEPS + 1, pct_start=warmup))
    schedule, top = schedules.parse_schedule("one-cycle", warmup=warmup), warmup * (STEPS + 1) - 1
    for step, factor in enumerate(expected):
        up, down = step / top, (step - top) / (STEPS - top)
        assert schedule(warmup * up if up < 1 else warmup + (1 - warmup) * down) == pytest.approx(factor, abs=1e-12)
    assert schedule(0) == pytest.approx(1 / 25)
    assert schedule(1) == pytest.approx(1 / 250_000)
    assert schedules.parse_schedule("one-cycle")(0) == 1


def test_warmup_is_linear_and_precedes_the_full_schedule():
    for spec in ("cosine", "multistep=0.5,0.75", "polynomial=2"):
        with_warmup, plain = schedules.parse_schedule(spec, warmup=0.2), schedules.parse_schedule(spec)
        assert [with_warmup(p) for p in (0, 0.05, 0.1)] == [0, 0.25, 0.5]
        for progress in (0, 0.3, 0.6, 0.9):
            assert with_warmup(0.2 + 0.8 * progress) == pytest.approx(plain(progress))
    for warmup in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            schedules.add_warmup(schedules.compute_cosine_factor, warmup)


def test_repeated_schedules_equal_torchs_warm_restarts():
    repeated = schedules.repeat_schedule(schedules.compute_cosine_factor, 4)
    expected = compute_torch_factors(lambda o: reference.CosineAnnealingWarmRestarts(o, STEPS // 4))
    assert [repeated(step / STEPS) for step in range(STEPS)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_equals_torchs(patience):
    """The drops follow the same evaluations, including those with equal losses and those after a drop."""
    losses = [3, 2, 2.5, 2.2, 2.1, 1.9, 1.9, 2, 2, 1.9, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.7, 5, 5, 5, 5]
    plateau = schedules.parse_schedule(f"plateau={patience}", factor=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=0)
    factors, expected = [], []
    for loss in losses:
        plateau.on_evaluation({"loss": loss})
        scheduler.step(loss)
        factors.append(plateau(0.5))
        expected.append(optimizer.param_groups[0]["lr"])
    assert factors == expected
    assert factors[-1] < 1


def test_plateau_has_a_warmup_and_restores_its_state():
    plateau = schedules.parse_schedule("plateau=1", factor=0.1, warmup=0.2)
    assert [plateau(p) for p in (0, 0.1, 0.2, 0.9)] == [0, 0.5, 1, 1]
    for loss in (1, 2, 2, 2):
        plateau.on_evaluation({"loss": loss})
    other = schedules.parse_schedule("plateau=1", factor=0.1, warmup=0.2)
    other.load_state_dict(plateau.state_dict())
    for loss in (2, 0.5, 0.6, 0.6, 0.6):
        plateau.on_evaluation({"loss": loss})
        other.on_evaluation({"loss": loss})
        assert other(0.9) == plateau(0.9)
    assert plateau(0.9) == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("cosin", "'cosine'"),
        ("one_cycle", "'one-cycle'"),
        ("", "multistep"),
        ("step=many", "step=2 with a whole number above 0"),
        ("step=0", "whole number"),
        ("step=2.5", "whole number"),
        ("step=1,2", "step=2"),
        ("plateau=1.5", "plateau=2 with a whole number above 0"),
        ("plateau=inf", "whole number"),
        ("multistep=0.5,1", "between 0 and 1"),
        ("multistep=0.5,,0.7", "multistep=0.5,0.75"),
        ("exponential=2", "exponential=0.01 with numbers between 0 and 1"),
        ("exponential=nan", "between 0 and 1"),
        ("polynomial=-1", "above 0"),
        ("cosine=3", "the form cosine$"),
        ("constant=1", "the form constant$"),
    ],
)
def test_the_error_of_an_invalid_schedule_shows_the_expected_form(spec, hint):
    with pytest.raises(UsageError, match=hint):
        schedules.parse_schedule(spec)


def test_training_with_a_plateau_schedule_resumes_bit_exactly(tmp_path, monkeypatch):
    """A run that is stopped between two drops keeps the state of the schedule."""
    recipe = DeepConvNet(epochs=6, widths=(2, 2, 2, 2, 2, 2), hidden=4, lr=0.05, warmup=0.0, schedule="plateau=1",
                         dropout=0.0, val_fraction=0.9, batch_size=45)  # fmt: skip

    def train(out, **options):
        return fukami.train(recipe, tmp_path / out, device="cpu", precision="float32", **options).metrics

    def on_evaluation(self, metrics, mode, real=schedules.ReduceOnPlateau.on_evaluation):
        evaluations.append(metrics)
        if len(evaluations) == stop_at:
            raise KeyboardInterrupt
        real(self, {"loss": len(evaluations)})  # a larger loss each time

    monkeypatch.setattr(schedules.ReduceOnPlateau, "on_evaluation", on_evaluation)
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)
    evaluations, stop_at = [], 0
    train("uninterrupted")
    evaluations, stop_at = [], 5
    with pytest.raises(KeyboardInterrupt):
        train("resumed")
    evaluations, stop_at = evaluations[:4], 0  # the last checkpoint was written before the fifth evaluation
    train("resumed", resume=True)
    assert len(evaluations) == 6
    uninterrupted, resumed = (tmp_path / name / "weights.safetensors" for name in ("uninterrupted", "resumed"))
    assert resumed.read_bytes() == uninterrupted.read_bytes()
    lrs = [line["lr"] for line in map(json.loads, read_log_lines(tmp_path / "resumed")) if line["phase"] == "train"]
    assert sorted(set(lrs), reverse=True) == pytest.approx([0.05, 0.005, 0.0005])


def test_plateau_of_a_metric_without_a_loss():
    """The first metric has to rise; the nested metrics after it are ignored."""
    plateau = schedules.parse_schedule("plateau=1", factor=0.5)
    for value in (0.1, 0.3, 0.2, 0.3):
        plateau.on_evaluation({"map": value, "coco_ap": 0.9 - value, "classes": {"cat": {"ap": value}}})
    assert (plateau.best, plateau(0.5)) == (-0.3, 0.5)


def test_plateau_of_a_metric_for_which_less_is_better():
    plateau = schedules.parse_schedule("plateau=1", factor=0.5)
    for value in (0.9, 0.7, 0.8, 0.7):
        plateau.on_evaluation({"frechet_vgg16": value}, "min")
    assert (plateau.best, plateau(0.5)) == (0.7, 0.5)


@pytest.mark.parametrize("value", ["x", -1, 10**400, 1.5, None])
def test_a_checkpoint_of_a_plateau_schedule_is_validated(value):
    schedule = schedules.ReduceOnPlateau(2, 0.1)
    with pytest.raises(ValueError, match="num_drops should be an integer"):
        schedule.load_state_dict({"best": 1.0, "num_bad_evals": 0, "num_drops": value})


def test_the_drop_factor_is_that_of_the_schedule():
    schedule = DeepConvNet(schedule="step=1", drop_factor=0.3, warmup=0.0).build_schedule()
    assert [schedule(progress) for progress in (0.0, 0.4, 0.6)] == pytest.approx([1, 1, 0.3])
