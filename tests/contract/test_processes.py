"""Tests of distributed training: losses, evaluation, and restarts after the failure of a process or machine."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.modules.batchnorm import _BatchNorm

import check_task
from check_task import CommandProcess, build_command, build_thread_environment, read_log_lines, wait_until
from fukami import models
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.resnet import ResNet20
from fukami.engine.checkpoint import decode_checkpoint
from fukami.engine.runtime import Runtime
from fukami.explain import summary
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.layers.sync_layers import SyncDropout, convert_sync_layers
from fukami.quantization.int8 import FakeQuantActivation

STEPS = 25


def run_processes(function, world_size, tmp_path, *arguments):
    """Call ``function(rank, world_size, ...)`` in ``world_size`` processes, and return the result of the first."""
    folder = tmp_path / f"{function.__name__}-{world_size}"
    folder.mkdir()
    multiprocessing.start_processes(
        _run_process, (function, world_size, folder, arguments), world_size, start_method="forkserver"
    )
    return torch.load(folder / "result")


def _run_process(rank, function, world_size, folder, arguments):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    result = function(rank, world_size, *arguments)
    if rank == 0:
        torch.save(result, folder / "result")
    dist.destroy_process_group()


# ---- losses and metrics ---------------------------------------------------------------------------------------------


def compute_losses(rank, world_size, recipe):
    """Compute the loss of each step over the global batch in float64, so that rounding hides no difference."""
    runtime = Runtime(torch.device("cpu"), "float32", rank, world_size)
    torch.manual_seed(recipe.seed)
    data = recipe.load_data()
    data.train.setup(runtime)
    torch.manual_seed(recipe.seed)
    task = recipe.build_task(data.labels)
    task.model.double()
    task.setup(runtime)
    task.prepare_training()
    task.mean, task.std = task.mean.double(), task.std.double()
    losses = []
    batches = task.iterate_batches(data.train)
    task.class_weights = None if task.class_weights is None else task.class_weights.double()
    for step, batch in zip(range(STEPS), batches, strict=False):
        task.schedule(step / STEPS)
        batch = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in batch)
        losses.append(task.step(batch)["loss"].double())
    return runtime.all_reduce_sum(torch.stack(losses)) / world_size


@pytest.mark.parametrize(
    ("recipe", "world_sizes"),
    [
        (
            DeepConvNet(
                batch_size=48, augment=("rotate=10", "mixup"), balance="loss", clip_norm=1.0, widths=(4, 4, 8, 8, 8, 8)
            ),
            (2, 4),
        ),
        pytest.param(
            ResNet20(data="digits", batch_size=16, size=8, lr=1e-3, accumulate=2, activation_checkpointing=True),
            (2,),
            marks=pytest.mark.slow,
        ),
        (ResNet20(data="digits", batch_size=16, size=8, init="unused", freeze=True, feature_views=1), (2,)),
    ],
    ids=["dropout, mixup, weights, clipping", "batch norm, accumulation", "cached features"],
)
def test_losses_do_not_depend_on_the_number_of_processes(recipe, world_sizes, tmp_path):
    expected = run_processes(compute_losses, 1, tmp_path, recipe)
    assert expected[-5:].mean() < expected[:5].mean()
    for world_size in world_sizes:
        losses = run_processes(compute_losses, world_size, tmp_path, recipe)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)


def compute_activation_ranges(rank, world_size):
    """Compute the ranges of all processes in quantization-aware training, one per row."""
    activation = FakeQuantActivation()
    for step in range(3):
        batch = torch.randn(12, 5, generator=torch.Generator().manual_seed(step))
        activation(batch[rank::world_size])
    rows = [torch.zeros(2) for _ in range(world_size)]
    dist.all_gather(rows, activation.activation_range)
    return torch.stack(rows)


def test_ranges_of_quantization_are_those_of_the_global_batch(tmp_path):
    expected = run_processes(compute_activation_ranges, 1, tmp_path)
    assert torch.equal(run_processes(compute_activation_ranges, 2, tmp_path), expected.expand(2, 2))


def create_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 36, 4), nn.BatchNorm1d(4)).double()


def compute_sync_layer_errors(rank, world_size):
    """Compare outputs, gradients and statistics of synchronized layers with torch's layers on the global batch."""
    batch = torch.randn(12, 3, 10, 10, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    local_batch, batch = batch[rank::world_size].clone().requires_grad_(), batch.requires_grad_()
    network = create_network()
    synchronized = nn.parallel.DistributedDataParallel(convert_sync_layers(create_network()))
    torch.manual_seed(5)
    expected = network(batch)
    (expected**3).mean().backward()
    torch.manual_seed(5)
    output = synchronized(local_batch)
    (output**3).mean().backward()
    pairs = [(output, expected[rank::world_size]), (local_batch.grad / world_size, batch.grad[rank::world_size])]
    pairs += [(p.grad, q.grad) for p, q in zip(synchronized.parameters(), network.parameters(), strict=True)]
    pairs += list(zip(synchronized.module.buffers(), network.buffers(), strict=True))
    return torch.tensor([float((a - b).abs().max()) for a, b in pairs])


def test_synchronized_layers_equal_torchs_layers_on_the_global_batch(tmp_path):
    assert run_processes(compute_sync_layer_errors, 3, tmp_path).max() < 1e-12


def test_all_uses_of_a_layer_are_synchronized_on_a_gpu():
    """A segmentation network calls its layers by a list of stages, which contains them again."""
    with torch.device("meta"):
        network = models.segnet_vgg16(3, width_multiplier=1 / 16)
    convert_sync_layers(network)
    layers = [layer for stage in network.stages for layer in stage.modules() if isinstance(layer, _BatchNorm)]
    assert len(layers) > 20
    assert {type(layer) for layer in layers} == {nn.SyncBatchNorm}
    assert {layer.process_group for layer in layers} == {None}
    assert {*map(id, layers)} <= {*map(id, network.modules())}  # so that evaluation changes their mode


def test_each_image_is_evaluated_once(fukami, tmp_path, forked_python):
    """359 images cannot be divided evenly among 3 processes."""
    run = tmp_path / "run"
    recipe = DeepConvNet(epochs=1, batch_size=699)
    command = [forked_python.executable, "-m", *build_command(recipe, run), "--processes", "3"]
    environment = {**build_thread_environment(1), "PYTHONEXECUTABLE": forked_python.executable}
    subprocess.run(command, check=True, env=environment, timeout=300)
    assert check_task.load_evaluations(run)[-1]["count"] == 359
    (metrics,) = fukami("eval", run, "--device", "cpu", "--precision", "float32").json
    assert metrics["errors"] == check_task.load_evaluations(run)[-1]["errors"]


# ---- launchers ------------------------------------------------------------------------------------------------------

RECIPE = DeepConvNet(epochs=4)


def build_torchrun_command(*arguments, python=sys.executable):
    return [python, "-m", "torch.distributed.run", *arguments, "-m"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Weights of an uninterrupted run of two processes, started by torchrun."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    command = [*build_torchrun_command("--standalone", "--nproc-per-node", "2"), *build_command(RECIPE, run)]
    process = subprocess.run(
        command, check=True, env=build_thread_environment(1), timeout=300, stdout=subprocess.PIPE, text=True
    )
    assert len(process.stdout.splitlines()) == 1
    return (run / "weights.safetensors").read_bytes()


def start_processes(python, run, *flags, recipe=RECIPE, count=2):
    """Start the launcher; it and its workers are forked."""
    command = [python.executable, "-m", *build_command(recipe, run), "--processes", str(count), *flags]
    environment = {**build_thread_environment(1), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    environment["PYTHONEXECUTABLE"] = python.executable
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def list_workers(python, process):
    """List the process ids of the workers of a forked launcher, by rank."""
    launcher = python.get_forked_pid(process.pid)
    workers = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            rank = re.search(r"\0RANK=(\d+)", (folder / "environ").read_text())
            if parent == launcher and rank:
                workers[int(rank[1])] = int(folder.name)
    return workers


@pytest.mark.slow
def test_all_processes_restart_after_one_is_killed_and_the_result_is_the_same(uninterrupted, tmp_path, forked_python):
    run = tmp_path / "run"
    process = start_processes(forked_python, run)
    wait_until(lambda: len(read_log_lines(run)) > 12 or process.poll() is not None)
    os.kill(forked_python.get_forked_pid(list_workers(forked_python, process)[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "rank 1 by SIGKILL" in err
    assert "Traceback" not in err
    assert json.loads(out)["count"] == 359
    assert (run / "weights.safetensors").read_bytes() == uninterrupted


@pytest.mark.slow
def test_a_hanging_process_is_named_and_restarted(uninterrupted, tmp_path, forked_python):
    run = tmp_path / "run"
    process = start_processes(forked_python, run, "--timeout", "4")
    wait_until(lambda: len(read_log_lines(run)) > 12 or process.poll() is not None)
    hanging = forked_python.get_forked_pid(list_workers(forked_python, process)[1])
    os.kill(hanging, signal.SIGSTOP)
    first = next(line for line in process.stderr if "did not respond" in line)
    os.kill(hanging, signal.SIGKILL)  # as the launcher would do after half a minute
    _, err = process.communicate(timeout=300)
    err = first + err
    assert process.returncode == 0, err
    assert re.search(r"rank 1, on \S+, did not respond within 4 s .*; rank 0 stops here", err)
    assert "restarting all processes" in err
    assert "Traceback" not in err
    assert (run / "weights.safetensors").read_bytes() == uninterrupted


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_exits(signal_number, status, tmp_path, forked_python):
    run = tmp_path / "run"
    process = start_processes(forked_python, run)
    wait_until(lambda: len(read_log_lines(run)) > 8 or process.poll() is not None)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (status, "")
    assert err.count("--resume") == 1
    assert "Traceback" not in err
    assert decode_checkpoint(run / "last.ckpt", torch.device("cpu"))["step"] > 0


@pytest.mark.slow
def test_a_resumed_run_of_three_processes_equals_an_uninterrupted_one(tmp_path, forked_python):
    """The order in which three gradients are summed is that of the uninterrupted run, from the first step on."""
    recipe, runs = DeepConvNet(epochs=2, batch_size=99), [tmp_path / "uninterrupted", tmp_path / "interrupted"]
    processes = [start_processes(forked_python, runs[1], recipe=recipe, count=3)]
    wait_until(lambda: len(read_log_lines(runs[1])) > 4 or processes[0].poll() is not None)
    processes[0].send_signal(signal.SIGINT)
    _, err = processes[0].communicate(timeout=120)
    assert processes[0].returncode == 130, err
    for run, flags in zip(runs, ((), ("--resume",)), strict=True):
        process = start_processes(forked_python, run, *flags, recipe=recipe, count=3)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert len({(run / "weights.safetensors").read_bytes() for run in runs}) == 1


@pytest.mark.parametrize(
    ("flags", "status", "hint"),
    [
        (["--processes", "0"], 2, "--processes should be at least 1"),
        (["--timeout", "0"], 2, "--timeout should be more than 0 and at most"),
        (["--processes", "2", "--batch-size", "99"], 2, "2 processes cannot share a batch of 99 evenly"),
        (["--processes", "2", "--lr", "1e30"], 1, "try a lower learning rate"),
        (["--processes", "2", "--data", "nowhere"], 2, "nowhere"),
    ],
)
def test_errors_are_printed_once(flags, status, hint, tmp_path, forked_python):
    command = [
        forked_python.executable,
        "-m",
        "fukami",
        "train",
        "deep-convnet",
        "--out",
        str(tmp_path / "run"),
        *flags,
    ]
    command += ["--device", "cpu", "--precision", "float32"]
    environment = {**build_thread_environment(1), "PYTHONEXECUTABLE": forked_python.executable}
    process = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True, check=False)
    assert process.returncode == status, process.stderr
    assert process.stderr.count(hint) == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""


# ---- machines -------------------------------------------------------------------------------------------------------


def run_ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines():
    """Names of two network namespaces, connected by a virtual cable, with an address each."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    names = [f"fukami{os.getpid()}{end}" for end in "ab"]
    try:
        run_ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not available: {error.stderr.decode().strip()}")
    try:
        run_ip("netns", "add", names[1])
        run_ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            run_ip("-n", name, "address", "add", f"10.231.7.{number}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                run_ip("-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def start_machine(python, machines, machine_index, recipe, run, nodes, log):
    """Start a forked torchrun on one of the machines, in its own session; the first machine hosts the rendezvous."""
    rendezvous_config = f"is_host={int(machine_index == 0)},last_call_timeout=3,join_timeout=120,keep_alive_interval=1"
    command = ["ip", "netns", "exec", machines[machine_index]]
    command += build_torchrun_command(
        "--nnodes", nodes, "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.231.7.1:29400",
        "--rdzv-id", "job", "--rdzv-conf", rendezvous_config, "--local-addr", f"10.231.7.{machine_index + 1}",
        "--max-restarts", "3", "--monitor-interval", "0.2", python=python.executable,
    )  # fmt: skip
    environment = {**build_thread_environment(1), "GLOO_SOCKET_IFNAME": "cable", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    environment["PYTHONEXECUTABLE"] = python.executable
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # otherwise no machine can rejoin
    command += [*build_command(recipe, run), "--resume", "--timeout", "20"]
    with log.open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def wait_for_all(processes, seconds=240):
    end = time.monotonic() + seconds
    try:
        return [process.wait(timeout=end - time.monotonic()) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_process_killed_on_one_of_two_machines(machines, uninterrupted, tmp_path, forked_python):
    run, log = tmp_path / "run", tmp_path / "log"
    launchers = [start_machine(forked_python, machines, index, RECIPE, run, "2", log) for index in (0, 1)]
    wait_until(lambda: len(read_log_lines(run)) > 12 or launchers[0].poll() is not None)
    (worker,) = list_workers(forked_python, launchers[1]).values()
    os.kill(worker, signal.SIGKILL)
    assert wait_for_all(launchers) == [0, 0], log.read_text()
    assert (run / "weights.safetensors").read_bytes() == uninterrupted


@pytest.mark.slow
def test_a_machine_leaves_and_rejoins(machines, uninterrupted, tmp_path, forked_python):
    """The global batch and the losses are the same with one and two machines, except for rounding."""
    recipe = replace(RECIPE, optimizer="sgd", lr=1e-3)  # Adam would amplify the rounding differences
    single_run, run, log = tmp_path / "single", tmp_path / "run", tmp_path / "log"
    single = CommandProcess(build_command(recipe, single_run))
    first, second = (start_machine(forked_python, machines, index, recipe, run, "1:2", log) for index in (0, 1))
    wait_until(lambda: len(read_log_lines(run)) > 8 or first.poll() is not None)
    for pid in [second.pid, *list_workers(forked_python, second).values()]:
        os.killpg(pid, signal.SIGKILL)
    second.wait()
    num_lines = len(read_log_lines(run))
    wait_until(lambda: len(read_log_lines(run)) > num_lines + 8 or first.poll() is not None)
    second = start_machine(forked_python, machines, 1, recipe, run, "1:2", log)
    assert wait_for_all([first, second]) == [0, 0], log.read_text()
    assert single.wait()[0] == 0
    for line, other in zip(read_log_lines(single_run), read_log_lines(run), strict=True):
        one, two = json.loads(line), json.loads(other)
        assert (one["step"], one["phase"]) == (two["step"], two["phase"])
        assert one.get("loss") == pytest.approx(two.get("loss"), abs=1e-3)
    weights = load_file(single_run / "weights.safetensors")
    for name, value in load_file(run / "weights.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-4)


def check_forward(rank, world_size):
    """Return whether a network that is one block keeps its forward method of activation checkpointing."""
    network = nn.Sequential(nn.Linear(2, 2))
    enable_activation_checkpointing(network)
    forward = network.forward
    Runtime(torch.device("cpu"), "float32", rank, world_size).replicate(network)
    return torch.tensor(network.forward is forward)


def test_replication_keeps_activation_checkpointing_of_the_whole_network(tmp_path):
    assert run_processes(check_forward, 2, tmp_path)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_of_several_processes_is_that_of_the_whole_batch(monkeypatch, memory_format):
    images = torch.rand(4, 3, 5, 6).contiguous(memory_format=memory_format)
    torch.manual_seed(0)
    expected = nn.Dropout(0.5)(images)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        part = images[rank::2].contiguous(memory_format=memory_format)
        assert torch.equal(SyncDropout(0.5)(part), expected[rank::2])


def test_the_cost_of_a_network_needs_no_random_numbers():
    """Only the first process counts it."""
    network = models.show_and_tell(vocab_size=9)
    state = torch.get_rng_state()
    assert "multiply_adds" in summary.count_costs([network], (3, 64, 64))
    assert torch.equal(torch.get_rng_state(), state)
