"""Tests of interrupted and resumed training runs: signals, kills during a save, exploding losses, any data loader."""

import functools
import json
import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fukami
from check_task import CommandProcess, build_command, load_log, read_log_lines, wait_until
from fukami.classification.deep_convnet import DeepConvNet
from fukami.engine.checkpoint import decode_checkpoint
from fukami.engine.log import TrainingLogger
from fukami.engine.resume import SignalHandler
from fukami.engine.runtime import Runtime

RECIPE = DeepConvNet(epochs=4)
SMALL = DeepConvNet(epochs=2, widths=(4, 4, 8, 8, 8, 8), hidden=16)


@pytest.fixture(scope="module")
def train_uninterrupted(tmp_path_factory):
    """Function that returns weights and log of a run of a recipe that was not interrupted."""

    @functools.cache
    def train(recipe):
        out = tmp_path_factory.mktemp("runs") / "uninterrupted"
        assert CommandProcess(build_command(recipe, out)).wait()[0] == 0
        return (out / "weights.safetensors").read_bytes(), load_log(out)

    return train


@pytest.mark.parametrize(
    ("signal_number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    signal_number, status, train_uninterrupted, tmp_path
):
    """The weights and the log do not depend on the step at which the signal arrives."""
    weights, uninterrupted_log = train_uninterrupted(RECIPE)
    process = CommandProcess(build_command(RECIPE, tmp_path / "run"))
    wait_until(lambda: len(read_log_lines(tmp_path / "run")) > 8)
    os.kill(process.pid, signal_number)
    code, out, err = process.wait(60)
    assert (code, out) == (status, "")
    assert "--resume" in err
    assert "Traceback" not in err
    num_lines = len(read_log_lines(tmp_path / "run"))
    code, out, err = CommandProcess([*build_command(RECIPE, tmp_path / "run"), "--resume"]).wait()
    assert code == 0, err
    assert "accuracy" in out
    assert len(read_log_lines(tmp_path / "run")) > num_lines
    assert load_log(tmp_path / "run") == uninterrupted_log
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == weights


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 3, 4, 5, 6, 7, 8])
def test_a_run_killed_during_a_save_resumes(call, train_uninterrupted, tmp_path):
    """The run is killed while it writes recipe, checkpoint or weights."""
    run = tmp_path / "run"
    assert CommandProcess(build_command(SMALL, run), kill_at_fsync=call).wait()[0] == -signal.SIGKILL
    code, _, err = CommandProcess([*build_command(SMALL, run), "--resume"]).wait()
    assert code == 0, err
    assert ((run / "weights.safetensors").read_bytes(), load_log(run)) == train_uninterrupted(SMALL)
    assert not [path.name for path in run.iterdir() if path.name.endswith(".tmp")]


def test_an_exploding_loss_stops_the_run_and_keeps_the_checkpoint(fukami, tmp_path):
    result = fukami(
        "train", "deep-convnet", "--lr", "1e30", "--out", "run", "--device", "cpu", "--precision", "float32"
    )
    assert result.status == 1
    assert "step" in result.err
    assert "became" in result.err or "not finite" in result.err
    if (tmp_path / "run" / "last.ckpt").exists():
        state = decode_checkpoint(tmp_path / "run" / "last.ckpt", torch.device("cpu"))
        assert all(value.isfinite().all() for value in state["task"]["model"].values())


def test_the_error_names_step_and_batch_of_a_nan_loss(tmp_path, monkeypatch):
    """The loss of the fourth batch of the second epoch is NaN."""
    monkeypatch.setattr("fukami.engine.async_checkpoint.MIN_CHECKPOINT_INTERVAL", 0.0)  # checkpoints despite fast steps

    @dataclass(frozen=True, kw_only=True)
    class NaNRecipe(DeepConvNet):
        def build_task(self, labels):
            task = super().build_task(labels)
            compute_loss, num_batches = task.compute_loss, [0]

            def compute_nan_loss(batch):
                num_batches[0] += 1
                value, metrics = compute_loss(batch)
                return value * (float("nan") if num_batches[0] == 14 + 4 else 1.0), metrics

            task.compute_loss = compute_nan_loss
            return task

    with pytest.raises(fukami.Error, match=r"loss became nan at step 18, on batch 4 of 14 in epoch 2 \(images #\d+"):
        fukami.train(NaNRecipe(epochs=3), tmp_path / "run", device="cpu")
    state = decode_checkpoint(tmp_path / "run" / "last.ckpt", torch.device("cpu"))
    assert 0 < state["step"] < 18
    assert all(value.isfinite().all() for value in state["task"]["model"].values())


class InterruptingDataset(TensorDataset):
    """Dataset that sends SIGTERM to this process when ``sample_index`` is read for the ``num_reads``-th time."""

    sample_index, num_reads = -1, 0

    def __getitem__(self, index):
        if index == self.sample_index:
            self.num_reads -= 1
            if self.num_reads == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


@dataclass(frozen=True, kw_only=True)
class DataLoaderRecipe(DeepConvNet):
    """Recipe with torch's shuffling DataLoader, and with NumPy's random numbers in ``collate_fn``."""

    interrupt: bool = False

    def load_data(self):
        data = super().load_data()
        dataset = InterruptingDataset(data.train.images[:200], data.train.targets[:200])
        dataset.sample_index, dataset.num_reads = (77, 2) if self.interrupt else (-1, 0)

        def collate(samples):
            images, targets = torch.utils.data.default_collate(samples)
            return torch.roll(images, int(np.random.randint(3)), -1), targets

        loader = DataLoader(dataset, batch_size=20, shuffle=True, collate_fn=collate)
        return fukami.Data(loader, data.val, data.labels)


def test_a_run_with_a_data_loader_resumes_in_mid_epoch(tmp_path):
    recipe = DataLoaderRecipe(epochs=3)
    fukami.train(recipe, tmp_path / "uninterrupted", device="cpu", precision="float32")
    with pytest.raises(SystemExit) as system_exit:
        fukami.train(DataLoaderRecipe(epochs=3, interrupt=True), tmp_path / "run", device="cpu", precision="float32")
    assert system_exit.value.code == 143
    state = decode_checkpoint(tmp_path / "run" / "last.ckpt", torch.device("cpu"))
    assert 10 < state["step"] < 20
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    record["fields"]["interrupt"] = False
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(record))
    fukami.train(recipe, tmp_path / "run", device="cpu", precision="float32", resume=True)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("uninterrupted", "run")]
    assert weights[0] == weights[1]


def test_a_resumed_run_logs_its_own_speed(tmp_path, monkeypatch):
    """The speed does not include the steps of the process before, which stopped between two log lines."""
    now = [0.0]
    monkeypatch.setattr("fukami.engine.log.time.monotonic", lambda: now[0])
    before, after = (TrainingLogger(tmp_path, RECIPE, Runtime.start("cpu"), 1000, 100) for _ in range(2))
    now[0] = 50.0
    before.log_training(500, {"loss": 1.0}, 0.1, 32, "images")
    after.load_state_dict(before.state_dict(507))
    assert after.bar.format_position(after.bar.n) == "epoch 6/10  step 507/1000"
    now[0] = 54.0
    after.log_training(517, {"loss": 1.0}, 0.1, 32, "images")
    speeds = [json.loads(line)["images_per_second"] for line in read_log_lines(tmp_path)]
    assert speeds == [500 * 32 / 50, 10 * 32 / 4]


def test_resume_with_another_precision_is_rejected(fukami, trained):
    result = fukami("train", "deep-convnet", "--out", trained, "--resume", "--precision", "bfloat16")
    assert result.status == 2
    assert "started with precision 'float32'" in result.err


def test_corrupted_checkpoints_are_rejected(fukami, trained, tmp_path):
    class MaliciousObject:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/harmed",)

    run = tmp_path / "run"
    run.mkdir()
    for path in trained.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    checkpoint = (run / "last.ckpt").read_bytes()
    torch.save({"step": 1, "task": MaliciousObject()}, run / "malicious.ckpt")
    for content in (
        (run / "malicious.ckpt").read_bytes(),
        checkpoint[: len(checkpoint) // 2],
        b"",
        b"text",
        checkpoint[:200] + b"\0" * 999,
    ):
        (run / "last.ckpt").write_bytes(content)
        result = fukami("train", "deep-convnet", "--out", "run", "--resume")
        assert result.status == 1, content[:20]
        assert "last.ckpt" in result.err
        assert "Traceback" not in result.err
    assert not (tmp_path / "harmed").exists()


def test_a_signal_before_a_failure_is_not_lost(request):
    """If the training fails before it handles a signal, the previous signal handler gets it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))

    def fail(send_signal):
        with SignalHandler():
            if send_signal:
                signal.raise_signal(signal.SIGINT)
            raise ValueError("failure before the signal is handled")

    with pytest.raises(KeyboardInterrupt):
        fail(send_signal=True)
    with pytest.raises(ValueError, match="failure before"):
        fail(send_signal=False)


def test_a_signal_after_the_check_for_signals_is_handled_at_a_later_step(tmp_path, monkeypatch):
    """It may arrive between the decisions to save and to stop; the run does not stop without a checkpoint."""
    all_reduce_any, calls = Runtime.all_reduce_any, []

    def send_signal_after_first_call(runtime, flag):
        result = all_reduce_any(runtime, flag)
        calls.append(flag)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Runtime, "all_reduce_any", send_signal_after_first_call)
    with pytest.raises(SystemExit) as caught:
        fukami.train(SMALL, out=tmp_path / "run", device="cpu")
    assert caught.value.code == 143
    assert calls[0] is False
    assert decode_checkpoint(tmp_path / "run" / "last.ckpt", torch.device("cpu"))["step"] > 0
