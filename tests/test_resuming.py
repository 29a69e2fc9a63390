"""Nothing is lost: signals, kills inside a save, losses that explode, loaders of any kind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fukami
from check_task import lines, threads, wait_until, words
from fukami import checkpoint
from fukami.recipes.deep_convnet import DeepConvNet
from fukami.resuming import Stop

RECIPE = DeepConvNet(epochs=4)


def start(out, *more):
    return subprocess.Popen(
        [sys.executable, "-m", *words(RECIPE, out), *more],
        env=threads(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    process = start(out)
    assert process.communicate(timeout=240) and process.returncode == 0  # noqa: PT018
    return (out / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_leave(number, status, undisturbed, tmp_path):
    process = start(tmp_path / "run")
    wait_until(lambda: len(lines(tmp_path / "run")) > 8)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert out == b""
    assert b"--resume" in err
    assert b"Traceback" not in err
    stopped = len(lines(tmp_path / "run"))
    process = start(tmp_path / "run", "--resume")
    assert b"accuracy" in process.communicate(timeout=240)[0]
    assert len(lines(tmp_path / "run")) > stopped
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == undisturbed


@pytest.mark.parametrize("call", [2, 3, 4, 5, 6])
def test_killed_inside_a_save(call, undisturbed, tmp_path):
    """Killed with SIGKILL at the ``call``-th fsync: in the middle of writing recipe, checkpoint or weights."""
    code = f"""
import os, signal
calls, real = 0, os.fsync
def fsync(number):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(number)
os.fsync = fsync
from fukami.cli import main
main({words(RECIPE, tmp_path / "run")[1:]!r})
"""
    assert words(RECIPE, tmp_path)[0] == "fukami"
    killed = subprocess.run([sys.executable, "-c", code], env=threads(1), timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    process = start(tmp_path / "run", "--resume")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == undisturbed
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]


def test_an_exploding_loss_stops_the_run_and_keeps_the_checkpoint(fukami, tmp_path):
    answer = fukami(
        "train", "deep-convnet", "--lr", "1e30", "--out", "run", "--device", "cpu", "--precision", "float32"
    )
    assert answer.status == 1
    assert "step" in answer.err
    assert "became" in answer.err or "no longer finite" in answer.err
    if (tmp_path / "run" / "last.ckpt").exists():
        state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        assert all(value.isfinite().all() for value in state["task"]["model"].values())


def test_the_step_and_the_batch_of_a_nan_are_named(tmp_path):
    """The fourth batch of the second epoch gives a loss that is not a number."""

    @dataclass(frozen=True, kw_only=True)
    class Poisoned(DeepConvNet):
        def task(self, labels):
            task = super().task(labels)
            loss, seen = task.loss, [0]

            def poisoned(batch):
                seen[0] += 1
                value, metrics = loss(batch)
                return value * (float("nan") if seen[0] == 14 + 4 else 1.0), metrics

            task.loss = poisoned
            return task

    with pytest.raises(fukami.Error, match=r"loss became nan at step 18, on batch 4 of 14 in epoch 2 \(pictures #\d+"):
        fukami.train(Poisoned(epochs=3), tmp_path / "run", device="cpu")
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert 0 < state["step"] < 18
    assert all(value.isfinite().all() for value in state["task"]["model"].values())


class Interrupting(TensorDataset):
    """Sends this process SIGTERM when the sample ``at`` is read for the ``turn``-th time."""

    at, turn = -1, 0

    def __getitem__(self, index):
        if index == self.at:
            self.turn -= 1
            if self.turn == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


@dataclass(frozen=True, kw_only=True)
class AnyLoader(DeepConvNet):
    """A recipe whose batches come from torch's own shuffling DataLoader, and which uses NumPy's randomness as well."""

    interrupt: bool = False

    def data(self):
        data = super().data()
        dataset = Interrupting(data.train.pictures[:200], data.train.targets[:200])
        dataset.at, dataset.turn = (77, 2) if self.interrupt else (-1, 0)

        def collate(samples):
            pictures, targets = torch.utils.data.default_collate(samples)
            return torch.roll(pictures, int(np.random.randint(3)), -1), targets

        loader = DataLoader(dataset, batch_size=20, shuffle=True, collate_fn=collate)
        return fukami.Data(loader, data.val, data.labels)


def test_any_loader_resumes_in_mid_epoch(tmp_path):
    recipe = AnyLoader(epochs=3)
    fukami.train(recipe, tmp_path / "undisturbed", device="cpu", precision="float32")
    with pytest.raises(SystemExit) as left:
        fukami.train(AnyLoader(epochs=3, interrupt=True), tmp_path / "run", device="cpu", precision="float32")
    assert left.value.code == 143
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert 10 < state["step"] < 20
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    record["fields"]["interrupt"] = False
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(record))
    fukami.train(recipe, tmp_path / "run", device="cpu", precision="float32", resume=True)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("undisturbed", "run")]
    assert weights[0] == weights[1]


def test_resume_under_other_conditions_is_refused(fukami, trained):
    answer = fukami("train", "deep-convnet", "--out", trained, "--resume", "--precision", "bfloat16")
    assert answer.status == 2
    assert "begun with precision 'float32'" in answer.err


def test_damaged_checkpoints_are_refused_by_name(fukami, trained, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/harmed",)

    run = tmp_path / "run"
    run.mkdir()
    for path in trained.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    good = (run / "last.ckpt").read_bytes()
    torch.save({"step": 1, "task": Hostile()}, run / "hostile.ckpt")
    for content in (
        (run / "hostile.ckpt").read_bytes(),
        good[: len(good) // 2],
        b"",
        b"text",
        good[:200] + b"\0" * 999,
    ):
        (run / "last.ckpt").write_bytes(content)
        answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
        assert answer.status == 1, content[:20]
        assert "last.ckpt" in answer.err
        assert "Traceback" not in answer.err
    assert not (tmp_path / "harmed").exists()


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same_and_stays_compiled(tmp_path):
    """The same losses but for rounding; a resumed run is compiled again without being told."""
    recipe = DeepConvNet(epochs=1, batch=700, dropout=0.0, widths=(4, 4, 4, 4, 4, 4), hidden=8)
    plain = fukami.train(recipe, tmp_path / "plain", device="cpu", precision="float32")
    compiled = fukami.train(recipe, tmp_path / "compiled", device="cpu", precision="float32", compile=True)
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    record = json.loads((tmp_path / "compiled" / "recipe.json").read_text())
    assert record["compile"] is True
    assert record["command"].endswith("--compile")
    assert checkpoint.conditions(tmp_path / "compiled", "auto", "auto", False) == ("cpu", "float32", True)


def test_a_signal_before_a_failure_is_not_lost():
    """The loop could not leave as it was asked to; whoever handles the signal otherwise does."""

    def fail(asked):
        with Stop():
            if asked:
                signal.raise_signal(signal.SIGINT)
            raise ValueError("what goes wrong before the loop looks")

    with pytest.raises(KeyboardInterrupt):
        fail(asked=True)
    with pytest.raises(ValueError, match="goes wrong"):
        fail(asked=False)
