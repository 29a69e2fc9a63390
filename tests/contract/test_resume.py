"""Nothing is lost: signals, kills inside a save, losses that explode, loaders of any kind."""

import json
import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fukami
from check_task import Started, lines, logged, wait_until, words
from fukami.classification.deep_convnet import DeepConvNet
from fukami.engine.log import TrainingLogger
from fukami.engine.resume import SignalHandler
from fukami.engine.runtime import Runtime
from fukami.engine.state_file import load_state

RECIPE = DeepConvNet(epochs=4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert Started(words(RECIPE, out)).ended()[0] == 0
    return (out / "weights.safetensors").read_bytes(), logged(out)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_leave(number, status, undisturbed, tmp_path):
    """The weights and the log are those of a run never stopped, wherever between two lines it was."""
    weights, undisturbed_log = undisturbed
    process = Started(words(RECIPE, tmp_path / "run"))
    wait_until(lambda: len(lines(tmp_path / "run")) > 8)
    os.kill(process.pid, number)
    code, out, err = process.ended(60)
    assert (code, out) == (status, "")
    assert "--resume" in err
    assert "Traceback" not in err
    stopped = len(lines(tmp_path / "run"))
    code, out, err = Started([*words(RECIPE, tmp_path / "run"), "--resume"]).ended()
    assert code == 0, err
    assert "accuracy" in out
    assert len(lines(tmp_path / "run")) > stopped
    assert logged(tmp_path / "run") == undisturbed_log
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == weights


@pytest.mark.parametrize("call", [2, 3, 4, 5, 6, 7, 8])
def test_killed_inside_a_save(call, undisturbed, tmp_path):
    """Killed in the middle of writing recipe, checkpoint or weights."""
    run = tmp_path / "run"
    assert Started(words(RECIPE, run), fatal=call).ended()[0] == -signal.SIGKILL
    code, _, err = Started([*words(RECIPE, run), "--resume"]).ended()
    assert code == 0, err
    assert ((run / "weights.safetensors").read_bytes(), logged(run)) == undisturbed
    assert not [path.name for path in run.iterdir() if path.name.endswith(".tmp")]


def test_an_exploding_loss_stops_the_run_and_keeps_the_checkpoint(fukami, tmp_path):
    answer = fukami(
        "train", "deep-convnet", "--lr", "1e30", "--out", "run", "--device", "cpu", "--precision", "float32"
    )
    assert answer.status == 1
    assert "step" in answer.err
    assert "became" in answer.err or "no longer finite" in answer.err
    if (tmp_path / "run" / "last.ckpt").exists():
        state = load_state(tmp_path / "run" / "last.ckpt", torch.device("cpu"))
        assert all(value.isfinite().all() for value in state["task"]["model"].values())


def test_the_step_and_the_batch_of_a_nan_are_named(tmp_path, monkeypatch):
    """The fourth batch of the second epoch gives a loss that is not a number."""
    monkeypatch.setattr(
        "fukami.engine.async_checkpoint.MIN_CHECKPOINT_INTERVAL", 0.0
    )  # between two checkpoints, however fast the steps are

    @dataclass(frozen=True, kw_only=True)
    class Poisoned(DeepConvNet):
        def build_task(self, labels):
            task = super().build_task(labels)
            loss, seen = task.compute_loss, [0]

            def poisoned(batch):
                seen[0] += 1
                value, metrics = loss(batch)
                return value * (float("nan") if seen[0] == 14 + 4 else 1.0), metrics

            task.compute_loss = poisoned
            return task

    with pytest.raises(fukami.Error, match=r"loss became nan at step 18, on batch 4 of 14 in epoch 2 \(images #\d+"):
        fukami.train(Poisoned(epochs=3), tmp_path / "run", device="cpu")
    state = load_state(tmp_path / "run" / "last.ckpt", torch.device("cpu"))
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

    def load_data(self):
        data = super().load_data()
        dataset = Interrupting(data.train.images[:200], data.train.targets[:200])
        dataset.at, dataset.turn = (77, 2) if self.interrupt else (-1, 0)

        def collate(samples):
            images, targets = torch.utils.data.default_collate(samples)
            return torch.roll(images, int(np.random.randint(3)), -1), targets

        loader = DataLoader(dataset, batch_size=20, shuffle=True, collate_fn=collate)
        return fukami.Data(loader, data.val, data.labels)


def test_any_loader_resumes_in_mid_epoch(tmp_path):
    recipe = AnyLoader(epochs=3)
    fukami.train(recipe, tmp_path / "undisturbed", device="cpu", precision="float32")
    with pytest.raises(SystemExit) as left:
        fukami.train(AnyLoader(epochs=3, interrupt=True), tmp_path / "run", device="cpu", precision="float32")
    assert left.value.code == 143
    state = load_state(tmp_path / "run" / "last.ckpt", torch.device("cpu"))
    assert 10 < state["step"] < 20
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    record["fields"]["interrupt"] = False
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(record))
    fukami.train(recipe, tmp_path / "run", device="cpu", precision="float32", resume=True)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("undisturbed", "run")]
    assert weights[0] == weights[1]


def test_a_resumed_run_tells_its_own_speed(tmp_path, monkeypatch):
    """Not the steps of all the process before in the seconds of this one."""
    now = [0.0]
    monkeypatch.setattr("fukami.engine.log.time.monotonic", lambda: now[0])
    before, after = (TrainingLogger(tmp_path, RECIPE, Runtime.start("cpu"), 1000, 100, float) for _ in range(2))
    now[0] = 50.0
    before.log_training(500, {"loss": 1.0}, 0.1, 32, "images")
    after.load_state_dict(before.state_dict())
    now[0] = 54.0
    after.log_training(510, {"loss": 1.0}, 0.1, 32, "images")
    told = [json.loads(line)["images_per_second"] for line in lines(tmp_path)]
    assert told == [500 * 32 / 50, 10 * 32 / 4]


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


def test_a_signal_before_a_failure_is_not_lost(request):
    """The loop could not leave as it was asked to; whoever handles the signal otherwise does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def fail(asked):
        with SignalHandler():
            if asked:
                signal.raise_signal(signal.SIGINT)
            raise ValueError("what goes wrong before the loop looks")

    with pytest.raises(KeyboardInterrupt):
        fail(asked=True)
    with pytest.raises(ValueError, match="goes wrong"):
        fail(asked=False)
