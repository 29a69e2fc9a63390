"""One device: where the time goes, what it costs in memory, and checkpoints that keep nobody waiting."""

import contextlib
import itertools
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from functools import partialmethod

import pytest
import torch
from torch import nn

import fukami as package
from fukami import Error, UsageError, models
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.task import ClassificationTask
from fukami.engine import async_checkpoint, checkpoint
from fukami.engine.async_checkpoint import CheckpointWriter
from fukami.engine.bench import measure_peak_throughput
from fukami.engine.runtime import Runtime
from fukami.engine.state_file import load_state
from fukami.explain import summary as explain_summary
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.system import count_cpus
from fukami.timing import PHASES, PhaseTimer

CPU = torch.device("cpu")
RECIPE = DeepConvNet(epochs=1, batch_size=100, dropout=0.0, augment=())


def task_of(recipe, precision="float32"):
    """The task of a recipe, its data and its first batch."""
    runtime = Runtime.start("cpu", precision)
    data = recipe.load_data()
    data.train.setup(runtime)
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.schedule(0.5)
    return task, next(iter(task.iterate_batches(data.train)))


# ---- where the time goes --------------------------------------------------------------------------------------------


def test_a_phase_in_a_phase_is_not_counted_twice(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = PhaseTimer(CPU)

    def wait(seconds):
        now[0] += seconds

    wait(1)
    with clock("data"):
        wait(2)
        with clock("waiting"):
            wait(4)
        wait(8)
    with contextlib.suppress(KeyError), clock("forward"):
        wait(16)
        raise KeyError
    clock.add({"evaluation": 32.0})
    assert clock.compute_seconds(1) == {"data": 10, "forward": 16, "waiting": 4, "evaluation": 32, "other": 1}


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """A run, and how many seconds lie between its timer's start and its last reading."""
    run, spans = tmp_path_factory.mktemp("runs") / "run", []

    class Timer(PhaseTimer):
        def __init__(self, device):
            super().__init__(device)
            self.created = self.phase_start

        def compute_seconds(self, num_steps):
            seconds = super().compute_seconds(num_steps)
            spans.append(self.phase_start - self.created)
            return seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fukami.engine.runtime.PhaseTimer", Timer)
        package.train(DeepConvNet(epochs=2, dropout=0.0), run, device="cpu", precision="float32")
    return run, spans[-1]


def test_the_phases_of_a_run_are_its_time(timed):
    run, whole = timed
    seconds = json.loads((run / "recipe.json").read_text())["time"]["seconds"]
    assert set(seconds) <= set(PHASES)
    assert {"data", "forward", "backward", "optimizer", "evaluation", "checkpoint"} <= set(seconds)
    assert sum(seconds.values()) == pytest.approx(whole, abs=5e-4 * len(seconds) + 1e-9)  # each is rounded to 1 ms
    page = (run / "report.html").read_text()
    assert "Where the time went" in page
    assert "multiply-adds per second" in page


def test_multiply_adds_are_those_of_the_table(timed):
    """Forward, and as many for the gradients of weights and of inputs, but for those of the images."""
    run, _ = timed
    line = json.loads((run / "recipe.json").read_text())["time"]
    training = sum(line["seconds"].get(phase, 0) for phase in ("data", "forward", "backward", "optimizer", "waiting"))
    training += line["seconds"].get("host to device", 0)
    model, shape = models.deep_convnet(10), (1, 28, 28)
    first = next(layer for layer in explain_summary.summarize_layers(model, shape) if layer.multiply_adds)
    expected = 100 * (3 * explain_summary.count_multiply_adds(model, shape) - first.multiply_adds)
    assert line["multiply_adds_per_second"] * training == pytest.approx(28 * expected, rel=0.01)


def test_bench(fukami):
    answer = json.loads(fukami("bench", "--device", "cpu", "--precision", "float32").out)
    assert answer["device"] == "cpu"
    assert answer["precision"] == "float32"
    assert min(answer["multiply_adds_per_second"], answer["bytes_per_second"]) > 1e8
    assert measure_peak_throughput(Runtime.start("cpu", "bfloat16"))["multiply_adds_per_second"] > 1e7


def test_processors_of_a_container(tmp_path):
    limit = tmp_path / "cpu.max"
    every = count_cpus(tmp_path / "nothing")
    for text, count in (("max 100000\n", every), ("50000 100000\n", 1), ("150000 100000\n", min(2, every))):
        limit.write_text(text)
        assert count_cpus(limit) == count


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_memory_that_is_freed_is_not_cleared_again():
    """Large tensors come and go, and the system gives no new pages for them; it would at once otherwise."""
    script = """
import resource, torch
from fukami.engine.runtime import Runtime
for start in (None, Runtime.start):
    if start:
        start("cpu")
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**26)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    given, kept = map(int, done.stdout.split())
    assert given > 100 > kept  # even of pages of 2 MB


def test_tf32_needs_a_gpu(fukami):
    answer = fukami("train", "deep-convnet", "--precision", "tf32", "--device", "cpu")
    assert answer.status == 2
    assert "Ampere" in answer.err


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parts_of_a_batch_give_the_gradient_of_all_of_it(precision):
    whole, batch = task_of(RECIPE, precision)
    parts, same = task_of(DeepConvNet(**vars(RECIPE) | {"accumulate": 3}), precision)  # 34, 33 and 33 images
    assert torch.equal(batch[0], same[0])
    one, other = whole.step(batch), parts.step(same)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[precision]
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=tolerance, atol=tolerance)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=tolerance, atol=tolerance)


def test_more_parts_than_images(fukami):
    answer = fukami("train", "deep-convnet", "--batch-size", "4", "--accumulate", "5", "--device", "cpu")
    assert answer.status == 2
    assert "--accumulate" in answer.err


def test_a_gradient_is_clipped():
    """Plain SGD moves the weights by the rate times the gradient, whose norm is now the given one."""
    recipe = DeepConvNet(
        **vars(RECIPE) | {"clip_norm": 0.01, "optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant"}
    )
    task, batch = task_of(recipe)
    before = [p.detach().clone() for p in task.model.parameters()]
    rate = task.schedule(0.5)
    task.step(batch)
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(task.model.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01 * rate, rel=1e-2)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: models.deep_convnet(10), (1, 28, 28)),
        (lambda: models.resnet20(10), (3, 32, 32)),
        (lambda: models.resnet50(10), (3, 64, 64)),
        (lambda: models.vgg11_bn(10, size=64, hidden=32), (3, 64, 64)),
        (lambda: models.googlenet(10), (3, 64, 64)),
    ],
    ids=["DeepConvNet", "ResNet-20", "ResNet-50", "VGG-11", "GoogLeNet"],
)
def test_what_is_computed_again_is_the_same(make, shape):
    """Outputs, gradients and statistics, bit for bit, dropout too; and much less is kept for the backward pass."""
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    again = make()
    enable_activation_checkpointing(again)
    assert plain.state_dict().keys() == again.state_dict().keys()
    images = torch.randn(4, *shape)
    kept, found = [], []
    for model in (plain, again):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(images)
        out = sum(part.square().sum() for part in out) if isinstance(out, tuple) else out.square().sum()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(sum(size for place, size in sizes.items() if place not in own))
        out.backward()
        found.append([out.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert kept[1] < 0.6 * kept[0], kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_that_computes_again_is_the_same(precision):
    plain, batch = task_of(DeepConvNet(batch_size=100), precision)
    again, same = task_of(DeepConvNet(batch_size=100, activation_checkpointing=True), precision)
    found = []
    for task, images in ((plain, batch), (again, same)):
        torch.manual_seed(1)
        found.append(task.step(images)["loss"])
    assert torch.equal(*found)
    for p, q in zip(plain.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not again.supports_cuda_graph


def test_the_rate_follows_the_batch():
    own = DeepConvNet()
    for rule, factor in (("none", 1), ("linear", 4), ("sqrt", 2)):
        recipe = DeepConvNet(batch_size=4 * own.batch_size, lr=0.01, lr_scaling=rule)
        assert recipe.get_optimizer_factory()([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.01 * factor


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_slow_disk_keeps_nobody_waiting(tmp_path, monkeypatch):
    """What is written is what was when it was asked for, though the tensors have changed meanwhile."""
    go, real = threading.Event(), checkpoint.write_state

    def slow(folder, state):
        assert go.wait(60)
        real(folder, state)

    monkeypatch.setattr(checkpoint, "write_state", slow)
    monkeypatch.setattr(async_checkpoint, "MIN_CHECKPOINT_INTERVAL", 0.0)
    weight = torch.ones(3)
    with CheckpointWriter(tmp_path, is_writer=True) as saver:
        assert saver.is_due
        saver.save({"step": 1, "tensors": [weight, {"more": weight}]}, {"model.weight": weight})
        weight.fill_(7)
        assert not saver.is_due
        go.set()
        saver.wait()
    state = load_state(tmp_path / "last.ckpt", torch.device("cpu"))
    assert state["step"] == 1
    assert state["tensors"][0].tolist() == state["tensors"][1]["more"].tolist() == [1, 1, 1]
    assert (tmp_path / "weights.safetensors").is_file()


def test_weights_that_are_not_finite_replace_nothing(tmp_path):
    with CheckpointWriter(tmp_path, is_writer=True) as saver:
        saver.save({"step": 1}, {"model.weight": torch.ones(2)})
        saver.save({"step": 2}, {"model.weight": torch.tensor([1.0, float("nan")])})
        with pytest.raises(Error, match=r"model\.weight are no longer finite at step 2"):
            saver.wait()
    assert load_state(tmp_path / "last.ckpt", torch.device("cpu"))["step"] == 1


# ---- compilation ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_if_asked_from_the_second_step_on(tmp_path, monkeypatch, pageless):
    """Nearly the same loss; cut off and resumed, compiled without being told, the same bits."""
    monkeypatch.setattr(async_checkpoint.CheckpointWriter, "is_due", True)
    recipe = DeepConvNet(epochs=1, batch_size=70, widths=(4, 4, 4, 4, 4, 4), hidden=8)
    how = {"device": "cpu", "precision": "float32"}
    steps, real = [], ClassificationTask.step

    def step(self, batch, stop_at=0):
        steps.append(self.training_model is not self.ddp_model)
        if len(steps) == stop_at:
            raise KeyboardInterrupt
        return real(self, batch)

    plain = package.train(recipe, tmp_path / "plain", **how)
    monkeypatch.setattr(ClassificationTask, "step", step)
    compiled = package.train(recipe, tmp_path / "whole", **how, compile=True)
    assert steps == [False] + [True] * (len(steps) - 1)
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-2)  # other units are dropped
    monkeypatch.setattr(ClassificationTask, "step", partialmethod(step, stop_at=9))
    steps.clear()
    with pytest.raises(KeyboardInterrupt):
        package.train(recipe, tmp_path / "cut", **how, compile=True)
    torch.compiler.reset()
    monkeypatch.setattr(ClassificationTask, "step", step)
    assert package.train(recipe, tmp_path / "cut", **how, resume=True) == compiled
    one, other = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "cut"))
    assert one == other
    record = json.loads((tmp_path / "cut" / "recipe.json").read_text())
    assert record["compile"] is True
    assert record["command"].endswith("--compile")
    assert record["time"]["seconds"]["compilation"] > 0
    with pytest.raises(UsageError, match="begun with compile False, not True"):
        package.train(recipe, tmp_path / "plain", **how, resume=True, compile=True)


def test_no_clock_decides_about_compilation(tmp_path, monkeypatch, pageless):
    """However long its steps take, a training is never compiled that was not asked to be."""

    def never(self):
        raise AssertionError("compiled")

    now = itertools.count(step=50.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(ClassificationTask, "compile", never)
    package.train(DeepConvNet(epochs=1, batch_size=35), tmp_path / "run", device="cpu", precision="float32")
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["compile"] is False
    assert "switches" not in record
    assert "compile" not in record["command"]
