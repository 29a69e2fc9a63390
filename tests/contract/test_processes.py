"""Several processes and machines train as one: the same losses, nothing counted twice, nothing lost when one dies."""

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

import check_task
from check_task import Started, lines, threads, wait_until, words
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.resnet import ResNet20
from fukami.engine.runtime import Runtime
from fukami.engine.state_file import load_state
from fukami.layers.sync_layers import convert_sync_layers

STEPS = 50


def gathered(function, world, tmp_path, *more):
    """What the first of ``world`` processes returns, each of which calls ``function(rank, world, ...)``."""
    folder = tmp_path / f"{function.__name__}-{world}"
    folder.mkdir()
    multiprocessing.start_processes(_process, (function, world, folder, more), world, start_method="forkserver")
    return torch.load(folder / "answer")


def _process(rank, function, world, folder, more):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    answer = function(rank, world, *more)
    if rank == 0:
        torch.save(answer, folder / "answer")
    dist.destroy_process_group()


# ---- the same losses ------------------------------------------------------------------------------------------------


def losses(rank, world, recipe):
    """The loss of each step over the whole batch, computed in float64, where rounding hides nothing."""
    runtime = Runtime(torch.device("cpu"), "float32", rank, world)
    torch.manual_seed(recipe.seed)
    data = recipe.load_data()
    data.train.setup(runtime)
    torch.manual_seed(recipe.seed)
    task = recipe.build_task(data.labels)
    task.model.double()
    task.setup(runtime)
    task.mean, task.std = task.mean.double(), task.std.double()
    found = []
    batches = task.iterate_batches(data.train)
    task.class_weights = None if task.class_weights is None else task.class_weights.double()
    for step, batch in zip(range(STEPS), batches, strict=False):
        task.schedule(step / STEPS)
        batch = tuple(part.double() if part.is_floating_point() else part for part in batch)
        found.append(task.step(batch)["loss"].double())
    return runtime.all_reduce_sum(torch.stack(found)) / world


@pytest.mark.parametrize(
    ("recipe", "worlds"),
    [
        (
            DeepConvNet(
                batch_size=48, augment=("rotate=10", "mixup"), balance="loss", clip_norm=1.0, widths=(4, 4, 8, 8, 8, 8)
            ),
            (2, 4),
        ),
        (ResNet20(data="digits", batch_size=16, size=8, lr=1e-3, accumulate=2, activation_checkpointing=True), (2,)),
    ],
    ids=["dropout, mixup, weights, clipping", "batch norm, accumulation"],
)
def test_any_number_of_processes_has_the_same_losses(recipe, worlds, tmp_path):
    one = gathered(losses, 1, tmp_path, recipe)
    assert one[-5:].mean() < one[:5].mean()
    for world in worlds:
        torch.testing.assert_close(gathered(losses, world, tmp_path, recipe), one, rtol=0, atol=1e-5)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 36, 4), nn.BatchNorm1d(4)).double()


def shared_layers(rank, world):
    """How far outputs, gradients and statistics of a share of the batch are from torch's own layers on all of it."""
    whole = torch.randn(12, 3, 10, 10, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    share_of_it, whole = whole[rank::world].clone().requires_grad_(), whole.requires_grad_()
    plain, ours = network(), nn.parallel.DistributedDataParallel(convert_sync_layers(network()))
    torch.manual_seed(5)
    expected = plain(whole)
    (expected**3).mean().backward()
    torch.manual_seed(5)
    found = ours(share_of_it)
    (found**3).mean().backward()
    pairs = [(found, expected[rank::world]), (share_of_it.grad / world, whole.grad[rank::world])]
    pairs += [(p.grad, q.grad) for p, q in zip(ours.parameters(), plain.parameters(), strict=True)]
    pairs += list(zip(ours.module.buffers(), plain.buffers(), strict=True))
    return torch.tensor([float((a - b).abs().max()) for a, b in pairs])


def test_layers_of_a_shared_batch_are_those_of_the_whole(tmp_path):
    assert gathered(shared_layers, 3, tmp_path).max() < 1e-12


def test_every_image_is_judged_once(fukami, tmp_path):
    """359 images over 3 processes, which cannot all have the same share."""
    run = tmp_path / "run"
    recipe = DeepConvNet(epochs=1, batch_size=699)
    command = [sys.executable, "-m", *words(recipe, run)]
    subprocess.run([*command, "--processes", "3"], check=True, env=threads(1), timeout=300)
    assert check_task.judged(run)[-1]["count"] == 359
    (again,) = fukami("eval", run, "--device", "cpu", "--precision", "float32").json
    assert again["errors"] == check_task.judged(run)[-1]["errors"]


# ---- started in one way or the other --------------------------------------------------------------------------------

RECIPE = DeepConvNet(epochs=4)


def torchrun(*more):
    return [sys.executable, "-m", "torch.distributed.run", *more, "-m"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights after a run of two processes that torchrun started."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    command = [*torchrun("--standalone", "--nproc-per-node", "2"), *words(RECIPE, run)]
    done = subprocess.run(command, check=True, env=threads(1), timeout=300, stdout=subprocess.PIPE, text=True)
    assert len(done.stdout.splitlines()) == 1
    return (run / "weights.safetensors").read_bytes()


def started(run, *more):
    command = [sys.executable, "-m", *words(RECIPE, run), "--processes", "2", *more]
    environment = {**threads(1), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    """The processes that a launcher started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            rank = re.search(r"\0RANK=(\d+)", (folder / "environ").read_text())
            if parent == process.pid and rank:
                found[int(rank[1])] = int(folder.name)
    return found


def test_a_killed_process_starts_all_again_and_nothing_is_lost(undisturbed, tmp_path):
    run = tmp_path / "run"
    process = started(run)
    wait_until(lambda: len(lines(run)) > 12 or process.poll() is not None)
    os.kill(children(process)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "rank 1 by SIGKILL" in err
    assert "Traceback" not in err
    assert json.loads(out)["count"] == 359
    assert (run / "weights.safetensors").read_bytes() == undisturbed


def test_a_process_that_hangs_is_named_and_cut_off(undisturbed, tmp_path):
    run = tmp_path / "run"
    process = started(run, "--timeout", "4")
    wait_until(lambda: len(lines(run)) > 12 or process.poll() is not None)
    hanging = children(process)[1]
    os.kill(hanging, signal.SIGSTOP)
    first = next(line for line in process.stderr if "keeps the others waiting" in line)
    os.kill(hanging, signal.SIGKILL)  # as the launcher would, when half a minute has gone
    _, err = process.communicate(timeout=300)
    err = first + err
    assert process.returncode == 0, err
    assert re.search(r"rank 1, on \S+ in step \d+ \(.*\), keeps the others waiting for more than 4 s", err)
    assert "start again" in err
    assert "Traceback" not in err
    assert (run / "weights.safetensors").read_bytes() == undisturbed


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_leave(number, status, tmp_path):
    run = tmp_path / "run"
    process = started(run)
    wait_until(lambda: len(lines(run)) > 8 or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (status, "")
    assert err.count("--resume") == 1
    assert "Traceback" not in err
    assert load_state(run / "last.ckpt", torch.device("cpu"))["step"] > 0


@pytest.mark.parametrize(
    ("more", "status", "hint"),
    [
        (["--processes", "0"], 2, "processes should be at least 1"),
        (["--timeout", "0"], 2, "timeout should be some seconds"),
        (["--processes", "2", "--batch-size", "99"], 2, "2 processes cannot share a batch of 99 evenly"),
        (["--processes", "2", "--lr", "1e30"], 1, "try a lower learning rate"),
        (["--processes", "2", "--data", "nowhere"], 2, "nowhere"),
    ],
)
def test_errors_are_told_once(more, status, hint, tmp_path):
    command = [sys.executable, "-m", "fukami", "train", "deep-convnet", "--out", str(tmp_path / "run"), *more]
    command += ["--device", "cpu", "--precision", "float32"]
    done = subprocess.run(command, env=threads(1), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.count(hint) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# ---- machines -------------------------------------------------------------------------------------------------------


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines():
    """Two network namespaces with an interface and an address each, connected by a cable."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    names = [f"fukami{os.getpid()}{end}" for end in "ab"]
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.231.7.{number}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                ip("-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def machine(machines, number, recipe, run, nodes, log):
    """torchrun on one of the machines, in a session of its own; the first one has the rendezvous."""
    settings = f"is_host={int(number == 0)},last_call_timeout=3,join_timeout=120,keep_alive_interval=1"
    command = ["ip", "netns", "exec", machines[number]]
    command += torchrun(
        "--nnodes", nodes, "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.231.7.1:29400",
        "--rdzv-id", "job", "--rdzv-conf", settings, "--local-addr", f"10.231.7.{number + 1}",
        "--max-restarts", "3", "--monitor-interval", "0.2",
    )  # fmt: skip
    environment = {**threads(1), "GLOO_SOCKET_IFNAME": "cable", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # with it, torchrun lets no machine back in
    command += [*words(recipe, run), "--resume", "--timeout", "20"]
    with log.open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def ended(processes, seconds=240):
    end = time.monotonic() + seconds
    try:
        return [process.wait(timeout=end - time.monotonic()) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_process_killed_on_one_of_two_machines(machines, undisturbed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    both = [machine(machines, number, RECIPE, run, "2", log) for number in (0, 1)]
    wait_until(lambda: len(lines(run)) > 12 or both[0].poll() is not None)
    (worker,) = children(both[1]).values()
    os.kill(worker, signal.SIGKILL)
    assert ended(both) == [0, 0], log.read_text()
    assert (run / "weights.safetensors").read_bytes() == undisturbed


def test_a_machine_leaves_and_comes_back(machines, undisturbed, tmp_path):
    """One to two machines: the batch stays the same, so the losses do, but for the rounding of other sums."""
    recipe = replace(RECIPE, optimizer="sgd", lr=1e-3)  # Adam would make much of the rounding
    alone, run, log = tmp_path / "alone", tmp_path / "run", tmp_path / "log"
    single = Started(words(recipe, alone))
    first, second = (machine(machines, number, recipe, run, "1:2", log) for number in (0, 1))
    wait_until(lambda: len(lines(run)) > 8 or first.poll() is not None)
    for pid in [second.pid, *children(second).values()]:
        os.killpg(pid, signal.SIGKILL)
    second.wait()
    seen = len(lines(run))
    wait_until(lambda: len(lines(run)) > seen + 8 or first.poll() is not None)
    second = machine(machines, 1, recipe, run, "1:2", log)
    assert ended([first, second]) == [0, 0], log.read_text()
    assert single.ended()[0] == 0
    for line, other in zip(lines(alone), lines(run), strict=True):
        one, two = json.loads(line), json.loads(other)
        assert (one["step"], one["phase"]) == (two["step"], two["phase"])
        assert one.get("loss") == pytest.approx(two.get("loss"), abs=1e-3)
    weights = load_file(alone / "weights.safetensors")
    for name, value in load_file(run / "weights.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-4)
