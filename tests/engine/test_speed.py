"""Tests of a single device: phase timer, memory savings, asynchronous checkpoints and compilation."""

import contextlib
import itertools
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from torch import nn

import fukami as package
from fukami import Error, UsageError, models
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.task import ClassificationTask
from fukami.engine import async_checkpoint, bench, checkpoint
from fukami.engine.async_checkpoint import CheckpointWriter
from fukami.engine.checkpoint import decode_checkpoint
from fukami.engine.runtime import Runtime
from fukami.explain import summary as explain_summary
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.system import count_cpus
from fukami.timing import PHASES, PhaseTimer

CPU = torch.device("cpu")
RECIPE = DeepConvNet(epochs=1, batch_size=100, dropout=0.0, augment=(), warmup=0.0)


def build_task(recipe, precision="float32"):
    """Build the task of a recipe and return it with its first batch."""
    runtime = Runtime.start("cpu", precision)
    data = recipe.load_data()
    data.train.setup(runtime)
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.prepare_training()
    task.schedule(0.5)
    return task, next(iter(task.iterate_batches(data.train)))


# ---- time -----------------------------------------------------------------------------------------------------------


def test_a_nested_phase_is_not_counted_twice(monkeypatch):
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
def timed_run(tmp_path_factory):
    """A run, and the seconds between the start of its timer and the last reading."""
    run, durations = tmp_path_factory.mktemp("runs") / "run", []

    class Timer(PhaseTimer):
        def __init__(self, device):
            super().__init__(device)
            self.start = self.phase_start

        def compute_seconds(self, num_steps):
            seconds = super().compute_seconds(num_steps)
            durations.append(self.phase_start - self.start)
            return seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fukami.engine.runtime.PhaseTimer", Timer)
        package.train(DeepConvNet(epochs=2, dropout=0.0), run, device="cpu", precision="float32")
    return run, durations[-1]


def test_the_phases_add_up_to_the_time_of_the_run(timed_run):
    run, total = timed_run
    seconds = json.loads((run / "recipe.json").read_text())["time"]["seconds"]
    assert set(seconds) <= set(PHASES)
    assert {"data", "forward", "backward", "optimizer", "evaluation", "checkpoint"} <= set(seconds)
    assert sum(seconds.values()) == pytest.approx(total, abs=5e-4 * len(seconds) + 1e-9)  # each is rounded to 1 ms
    page = (run / "report.html").read_text()
    assert "Time by phase" in page
    assert "multiply-adds per second" in page


def test_multiply_adds_per_second_match_the_summary(timed_run):
    """Three times those of the forward pass, minus the gradient with respect to the images in the first layer."""
    run, _ = timed_run
    time_record = json.loads((run / "recipe.json").read_text())["time"]
    seconds = time_record["seconds"]
    training = sum(seconds.get(phase, 0) for phase in ("data", "forward", "backward", "optimizer", "waiting"))
    training += seconds.get("host to device", 0)
    model, shape = models.deep_convnet(10), (1, 28, 28)
    first = next(layer for layer in explain_summary.summarize_layers(model, shape) if layer.multiply_adds)
    expected = 100 * (3 * explain_summary.count_multiply_adds(model, shape) - first.multiply_adds)
    assert time_record["multiply_adds_per_second"] * training == pytest.approx(28 * expected, rel=0.01)


def test_bench(fukami):
    result = json.loads(fukami("bench", "--device", "cpu", "--precision", "float32").out)
    assert result["device"] == "cpu"
    assert result["precision"] == "float32"
    assert min(result["multiply_adds_per_second"], result["bytes_per_second"]) > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_throughput_is_that_of_a_matrix_product_and_of_a_copy(precision, monkeypatch):
    """A copy reads and writes each byte."""
    results = []
    monkeypatch.setattr(bench, "_time_call", lambda function, device: results.append(function()) or 0.5)
    rates = bench.measure_peak_throughput(Runtime.start("cpu", precision))
    product, copy = results
    side, dtype = len(product), getattr(torch, precision)
    assert torch.equal(product, torch.full((side, side), side, dtype=dtype))
    assert rates == {"multiply_adds_per_second": side**3 / 0.5, "bytes_per_second": 2 * copy.nbytes / 0.5}


def test_cpu_count_respects_the_limit_of_a_container(tmp_path):
    limit = tmp_path / "cpu.max"
    unlimited = count_cpus(tmp_path / "nothing")
    for text, count in (("max 100000\n", unlimited), ("50000 100000\n", 1), ("150000 100000\n", min(2, unlimited))):
        limit.write_text(text)
        assert count_cpus(limit) == count


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_freed_memory_is_reused_without_page_faults():
    """Large tensors that are freed and allocated again need no new pages, unlike with glibc's defaults."""
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
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    faults_before, faults_after = map(int, process.stdout.split())
    assert faults_before > 100 > faults_after  # also with pages of 2 MB


def test_tf32_needs_a_gpu(fukami):
    result = fukami("train", "deep-convnet", "--precision", "tf32", "--device", "cpu")
    assert result.status == 2
    assert "Ampere" in result.err


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradient_accumulation_gives_the_gradient_of_the_full_batch(precision):
    plain, batch = build_task(RECIPE, precision)
    accumulating, same_batch = build_task(DeepConvNet(**vars(RECIPE) | {"accumulate": 3}), precision)  # 34, 33 and 33
    assert torch.equal(batch[0], same_batch[0])
    expected, metrics = plain.step(batch), accumulating.step(same_batch)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[precision]
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=tolerance, atol=tolerance)
    for p, q in zip(plain.model.parameters(), accumulating.model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=tolerance, atol=tolerance)


def drop_masks(batch):
    """Remove most labels of the first images."""
    masks = batch.masks.clone()
    masks[:3, 4:] = 0
    return batch._replace(masks=masks)


def drop_tokens(batch):
    """Shorten the captions of the first images."""
    images, tokens = batch
    tokens = tokens.clone()
    tokens[:3, 3:] = -1
    return images, tokens


@pytest.mark.parametrize(
    ("name", "data", "fields", "modify"),
    [
        ("segnet-basic", "mask_files", {"balance": "median", "num_filters": 8}, drop_masks),
        ("show-and-tell", "caption_files", {"encoder": "resnet20", "size": 32, "hidden": 8}, drop_tokens),
    ],
)
def test_parts_with_different_numbers_of_targets_give_the_gradient_of_the_full_batch(
    name, data, fields, modify, request
):
    folder = str(request.getfixturevalue(data))
    recipe = package.get_recipe(name)(**fields, data=folder, batch_size=6, augment=())
    (plain, batch), (accumulating, _) = (build_task(replace(recipe, accumulate=count)) for count in (1, 3))
    batch = modify(batch)
    for task in (plain, accumulating):
        for module in task.model.modules():
            if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm):
                module.eval()
    expected, metrics = plain.step(batch), accumulating.step(batch)
    torch.testing.assert_close(metrics["loss"], expected["loss"], rtol=1e-4, atol=1e-5)
    for p, q in zip(plain.model.parameters(), accumulating.model.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5)


def test_more_micro_batches_than_images_are_rejected(fukami):
    result = fukami("train", "deep-convnet", "--batch-size", "4", "--accumulate", "5", "--device", "cpu")
    assert result.status == 2
    assert "--accumulate" in result.err


def test_gradient_clipping():
    """Plain SGD changes the weights by the learning rate times the gradient, whose norm is now the maximum."""
    recipe = DeepConvNet(
        **vars(RECIPE) | {"clip_norm": 0.01, "optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant"}
    )
    task, batch = build_task(recipe)
    before = [p.detach().clone() for p in task.model.parameters()]
    lr = task.schedule(0.5)
    task.step(batch)
    change = torch.cat([(p.detach() - q).flatten() for p, q in zip(task.model.parameters(), before, strict=True)])
    assert float(change.norm()) == pytest.approx(0.01 * lr, rel=1e-2)


def test_smaller_gradients_are_not_clipped():
    weights = []
    for clip_norm in (0.0, 1e6):
        task, batch = build_task(DeepConvNet(**vars(RECIPE) | {"clip_norm": clip_norm}))
        task.schedule(0.5)
        torch.manual_seed(1)
        task.step(batch)
        weights.append([p.detach().clone() for p in task.model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("build_model", "shape"),
    [
        (lambda: models.deep_convnet(10), (1, 28, 28)),
        (lambda: models.resnet20(10), (3, 32, 32)),
        (lambda: models.resnet50(10), (3, 64, 64)),
        (lambda: models.vgg11_bn(10, size=64, hidden=32), (3, 64, 64)),
        (lambda: models.googlenet(10), (3, 64, 64)),
    ],
    ids=["DeepConvNet", "ResNet-20", "ResNet-50", "VGG-11", "GoogLeNet"],
)
def test_activation_checkpointing_saves_memory_and_changes_no_result(build_model, shape):
    """Outputs, gradients and statistics are equal bit for bit, with dropout, too, from far fewer saved activations."""
    torch.manual_seed(0)
    plain = build_model()
    torch.manual_seed(0)
    checkpointed = build_model()
    enable_activation_checkpointing(checkpointed)
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    images = torch.randn(4, *shape)
    saved_bytes, results = [], []
    for model in (plain, checkpointed):
        sizes = {}

        def record_size(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(record_size, lambda tensor: tensor):
            out = model(images)
        out = sum(output.square().sum() for output in out) if isinstance(out, tuple) else out.square().sum()
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved_bytes.append(sum(size for pointer, size in sizes.items() if pointer not in parameters))
        out.backward()
        results.append([out.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for expected, result in zip(*results, strict=True):
        assert torch.equal(expected, result)
    assert saved_bytes[1] < 0.6 * saved_bytes[0], saved_bytes


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_with_activation_checkpointing_is_the_same(precision):
    plain, batch = build_task(DeepConvNet(batch_size=100), precision)
    checkpointed, same_batch = build_task(DeepConvNet(batch_size=100, activation_checkpointing=True), precision)
    losses = []
    for task, images in ((plain, batch), (checkpointed, same_batch)):
        torch.manual_seed(1)
        losses.append(task.step(images)["loss"])
    assert torch.equal(*losses)
    for p, q in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not checkpointed.supports_cuda_graph


def test_lr_scaling_with_the_batch_size():
    default = DeepConvNet()
    for rule, factor in (("none", 1), ("linear", 4), ("sqrt", 2)):
        recipe = DeepConvNet(batch_size=4 * default.batch_size, lr=0.01, lr_scaling=rule)
        assert recipe.get_optimizer_factory()([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.01 * factor


def test_lr_scaling_with_the_batch_size_for_initial_weights():
    """The default batch size depends on the initial weights, as the learning rate does."""
    kind = package.get_recipe("fcn8s-vgg16")
    assert kind.batch_size != kind(init="imagenet").batch_size == 2
    assert kind(init="imagenet", lr_scaling="linear").peak_lr == kind(init="imagenet").lr
    assert kind(init="imagenet", lr_scaling="linear", batch_size=6).peak_lr == 3 * kind(init="imagenet").lr


def test_nesterov_without_momentum_is_sgd():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for parameter, name in zip(parameters, ("nesterov", "sgd"), strict=True):
        recipe = DeepConvNet(optimizer=name, momentum=0.0, lr=0.1, weight_decay=0.0)
        optimizer = recipe.get_optimizer_factory()([parameter])
        for _ in range(3):
            parameter.grad = parameter.detach().clone()
            optimizer.step()
    assert torch.equal(*parameters)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_slow_disk_does_not_block_the_training(tmp_path, monkeypatch):
    """The checkpoint has the values at the call of ``save``, although the tensors change during the write."""
    may_write, write_checkpoint = threading.Event(), checkpoint.write_checkpoint

    def write_slowly(folder, state):
        assert may_write.wait(60)
        write_checkpoint(folder, state)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write_slowly)
    monkeypatch.setattr(async_checkpoint, "MIN_CHECKPOINT_INTERVAL", 0.0)
    weight = torch.ones(3)
    with CheckpointWriter(tmp_path, is_writer=True) as saver:
        assert saver.is_due
        saver.save({"step": 1, "tensors": [weight, {"more": weight}]}, {"model.weight": weight})
        weight.fill_(7)
        assert not saver.is_due
        may_write.set()
        saver.wait()
    state = decode_checkpoint(tmp_path / "last.ckpt", torch.device("cpu"))
    assert state["step"] == 1
    assert state["tensors"][0].tolist() == state["tensors"][1]["more"].tolist() == [1, 1, 1]
    assert (tmp_path / "weights.safetensors").is_file()


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(tmp_path):
    with CheckpointWriter(tmp_path, is_writer=True) as saver:
        saver.save({"step": 1}, {"model.weight": torch.ones(2)})
        saver.save({"step": 2}, {"model.weight": torch.tensor([1.0, float("nan")])})
        with pytest.raises(Error, match=r"model\.weight are not finite at step 2"):
            saver.wait()
    assert decode_checkpoint(tmp_path / "last.ckpt", torch.device("cpu"))["step"] == 1


# ---- compilation ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_starts_at_the_second_step_and_is_kept_by_a_resumption(tmp_path, monkeypatch):
    """The loss is nearly the same; an interrupted run is resumed compiled without the flag, with equal weights."""
    monkeypatch.setattr(async_checkpoint.CheckpointWriter, "is_due", True)
    recipe = DeepConvNet(epochs=1, batch_size=70, widths=(4, 4, 4, 4, 4, 4), hidden=8)
    options = {"device": "cpu", "precision": "float32"}
    are_compiled, real_step = [], ClassificationTask.step

    def step(self, batch, stop_at=0):
        are_compiled.append(self.training_model is not self.ddp_model)
        if len(are_compiled) == stop_at:
            raise KeyboardInterrupt
        return real_step(self, batch)

    plain = package.train(recipe, tmp_path / "plain", **options).metrics
    monkeypatch.setattr(ClassificationTask, "step", step)
    compiled = package.train(recipe, tmp_path / "compiled", **options, compile=True).metrics
    assert are_compiled == [False] + [True] * (len(are_compiled) - 1)
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-2)  # dropout differs
    monkeypatch.setattr(ClassificationTask, "step", partialmethod(step, stop_at=9))
    are_compiled.clear()
    with pytest.raises(KeyboardInterrupt):
        package.train(recipe, tmp_path / "resumed", **options, compile=True)
    torch.compiler.reset()
    monkeypatch.setattr(ClassificationTask, "step", step)
    assert package.train(recipe, tmp_path / "resumed", **options, resume=True).metrics == compiled
    expected, resumed = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("compiled", "resumed"))
    assert expected == resumed
    record = json.loads((tmp_path / "resumed" / "recipe.json").read_text())
    assert record["compile"] is True
    assert record["command"].endswith("--compile")
    assert record["time"]["seconds"]["compilation"] > 0
    with pytest.raises(UsageError, match="started with compile False, not True"):
        package.train(recipe, tmp_path / "plain", **options, resume=True, compile=True)


def test_slow_steps_never_trigger_compilation(tmp_path, monkeypatch):
    """A run is compiled only with ``compile=True``, no matter how long its steps take."""

    def fail(self):
        raise AssertionError("compiled")

    now = itertools.count(step=50.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(ClassificationTask, "compile", fail)
    package.train(DeepConvNet(epochs=1, batch_size=35), tmp_path / "run", device="cpu", precision="float32")
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["compile"] is False
    assert "switches" not in record
    assert "compile" not in record["command"]
