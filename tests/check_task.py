"""Contract of all tasks, as functions that check any recipe; ``test_tasks.py`` runs them all.

``make(**fields)`` returns a recipe of the family that trains a few steps on bundled data, without dropout.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils import _pytree as pytree

import fukami
from forked_python import PRELOADED
from fukami.cli.main import main
from fukami.engine import async_checkpoint
from fukami.engine.checkpoint import decode_checkpoint
from fukami.engine.load_run import load_task
from fukami.engine.recipe import build_train_command
from fukami.engine.resumable_loader import wrap_batches
from fukami.engine.runtime import Runtime
from fukami.engine.train import TrainingProgress

MAIN_METRICS = (
    "loss",
    "map",
    "miou",
    "bleu4",
    "cross_entropy",
    "discriminator_loss",
    "frechet_digits",
)  # of a line of the log
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(PRELOADED)


def check_overfits(make):
    """Check that a task overfits a batch of eight images."""
    recipe = make(batch_size=8)
    data, runtime = recipe.load_data(), Runtime.start("cpu", "float32")
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.prepare_training()
    batch = next(iter(task.iterate_batches(wrap_batches(data.train))))
    task.schedule(0.3)
    losses = []
    while not losses or losses[-1] >= 0.1 * losses[0]:
        losses.append(task.step(batch)["loss"].item())
        assert len(losses) < 120, losses[::20]


def check_evaluation_changes_nothing(make):
    """Check that evaluation is repeatable and does not change weights, training mode and random states."""
    recipe = make()
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    state = torch.get_rng_state()
    first = task.evaluate(data.val)
    assert task.evaluate(data.val) == first
    assert first["count"] > 0
    assert task.model.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def check_saves_and_loads(make, inputs, tmp_path):
    """Check that a loaded run has the metrics of the training run, and that its predictions can be written as JSON."""
    recipe = make()
    result = fukami.train(recipe, tmp_path / "run", device="cpu", precision="float32").metrics
    task = load_task(tmp_path / "run", device="cpu")
    loaded = task.evaluate(recipe.load_data().val)
    assert {**loaded, "loss": 0, "split": "val"} == {**result, "loss": 0}
    predictions = task.predict(inputs)
    assert json.loads(json.dumps(predictions)) == predictions
    assert [prediction["file"] for prediction in predictions] == [str(path) for path in inputs]
    repeated = load_task(tmp_path / "run", device="cpu").predict(inputs)
    assert repeated == predictions


def check_precisions(make, inputs, tmp_path):
    """Check training in bfloat16, and that bfloat16 and float16 predict nearly the same as float32."""
    recipe = make()
    recipe = dataclasses.replace(recipe, eval_every=recipe.epochs) if hasattr(recipe, "epochs") else recipe
    fukami.train(recipe, tmp_path / "run", device="cpu", precision="bfloat16")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.long}
    val = recipe.load_data().val
    expected = load_task(tmp_path / "run", device="cpu").evaluate(val)
    for precision in ("bfloat16", "float16"):
        task = load_task(tmp_path / "run", device="cpu", precision=precision)
        assert next(task.model.parameters()).dtype == getattr(torch, precision)
        metrics = task.evaluate(val)
        assert metrics["count"] == expected["count"]
        metric = "loss" if "loss" in expected else next(iter(expected))
        assert abs(metrics[metric] - expected[metric]) <= 0.05 * expected[metric]
        assert len(task.predict(inputs)) == len(inputs)


def check_unreadable_input(make, inputs, tmp_path):
    """Check that the error of an unreadable image names its file, and that the other images get predictions."""
    recipe = make()
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    unreadable = tmp_path / "unreadable.png"
    unreadable.write_bytes(Path(inputs[0]).read_bytes()[:60])
    predictions = task.predict([inputs[0], unreadable, inputs[1]])
    assert "error" not in predictions[0]
    assert "error" not in predictions[2]
    assert predictions[1]["file"] == str(unreadable)
    assert "unreadable.png" in predictions[1]["error"]


def check_two_processes(make, tmp_path):
    """Check that two processes with half of each batch train to the same weights as a single process."""
    recipe = make(epochs=1, lr=2e-4)
    outs = [tmp_path / "one", tmp_path / "two"]
    with socket.socket() as server:  # finds a free port
        server.bind(("127.0.0.1", 0))
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [CommandProcess(build_command(recipe, outs[0]))]
    processes += [  # with the environment of torchrun, which test_processes.py tests
        CommandProcess(build_command(recipe, outs[1]), environment={**rendezvous, "RANK": n, "LOCAL_RANK": n})
        for n in "01"
    ]
    assert [process.wait()[0] for process in processes] == [0, 0, 0]
    one, two = (list(map(json.loads, read_log_lines(out))) for out in outs)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for line, other in zip(one, two, strict=True):
        metric = next(name for name in MAIN_METRICS if name in line)
        assert abs(line[metric] - other[metric]) < 1e-4 * max(1, abs(line[metric])), (line, other)
    assert one[-1]["count"] == two[-1]["count"]
    weights, other_weights = (load_file(out / "weights.safetensors") for out in outs)
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=0, atol=2e-4)


def check_killed_and_resumed(make, tmp_path, kills=2, constants=()):
    """Check that a run that is killed (SIGKILL) and resumed several times equals an uninterrupted run.

    The weights, the content of the last checkpoint and the log except for times are bit-exact. ``constants`` is as for
    :class:`CommandProcess`.
    """
    recipe, options = make(), {"frequent_checkpoints": True, "constants": constants}
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert CommandProcess(build_command(recipe, uninterrupted), **options).wait()[0] == 0
    for kill in range(kills):
        command = [*build_command(recipe, killed), *["--resume"] * (kill > 0)]
        process = CommandProcess(command, **options)
        num_lines = max(len(read_log_lines(killed)), 4)
        wait_until(
            lambda p=process, n=num_lines: (
                (len(read_log_lines(killed)) > n and (killed / "last.ckpt").exists()) or not p.is_alive()
            )
        )
        process.kill()
        assert process.wait()[0] == -signal.SIGKILL, "the run ended before it could be killed; use more steps"
        assert (killed / "last.ckpt").exists()
    status, _, err = CommandProcess([*build_command(recipe, killed), "--resume"], **options).wait()
    assert status == 0, err
    check_same_run(killed, uninterrupted)


def check_same_run(one, other):
    """Check that two runs have the same weights, last checkpoints and logs, except for times."""
    for name in ("weights.safetensors", "best.safetensors"):
        assert [run / name for run in (one, other) if (run / name).exists()] in ([], [one / name, other / name])
        assert not (one / name).exists() or (one / name).read_bytes() == (other / name).read_bytes()
    states = [decode_checkpoint(run / "last.ckpt", torch.device("cpu")) for run in (one, other)]
    for name in ("step", "task", "loader", "random", "metric_buffer", "best", "manifest"):
        leaves, specs = zip(*(pytree.tree_flatten(state[name]) for state in states), strict=True)
        assert specs[0] == specs[1], name
        for value, expected in zip(*leaves, strict=True):
            assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected, name
    assert load_log(one) == load_log(other)
    assert not [path.name for run in (one, other) for path in run.iterdir() if path.name.startswith(".")]


def load_log(run):
    """Load the lines of a run's log without times."""
    times = ("seconds", "data_wait_fraction")
    return [
        {name: value for name, value in json.loads(line).items() if name not in times and "_per_second" not in name}
        for line in read_log_lines(run)
    ]


def disable_reports(patch):
    """Disable the reports of runs, which take longer than short training runs."""
    patch.setattr(TrainingProgress, "plot_evaluation", lambda self, batches: [])
    patch.setattr("fukami.engine.report.write_report", lambda folder, *arguments: folder / "report.html")


class CommandProcess(FORKED.Process):
    """Command in its own process, forked from a process that has imported torch, so that it starts at once.

    Args:
        command: the command line, starting with the program's name.
        kill_at_fsync: number of the fsync call at which the process kills itself; None: never.
        frequent_checkpoints: write a checkpoint whenever possible.
        report: write the report.
        environment: variables to add to the environment.
        constants: values of constants by their full names, such as ``fukami.self_play.replay.MIN_RESERVE``.
    """

    def __init__(
        self, command, kill_at_fsync=None, *, frequent_checkpoints=False, report=False, environment=(), constants=()
    ):
        super().__init__()
        self.constants = dict(constants)
        self.arguments = command[1:]
        self.kill_at_fsync = kill_at_fsync
        self.frequent_checkpoints = frequent_checkpoints
        self.report = report
        self.environment = {**os.environ, **dict(environment)}
        self.folder = Path(tempfile.mkdtemp())
        self.start()

    def run(self):
        for descriptor in (1, 2):  # stdout and stderr
            os.dup2(os.open(self.folder / str(descriptor), os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ.update(self.environment)
        torch.set_num_threads(1)
        fsync, calls = os.fsync, itertools.count(1)

        def fsync_or_die(descriptor):
            if next(calls) == self.kill_at_fsync:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = fsync_or_die
        if self.frequent_checkpoints:
            async_checkpoint.MIN_CHECKPOINT_INTERVAL, async_checkpoint.MAX_CHECKPOINT_FRACTION = 0.0, math.inf
        patch = pytest.MonkeyPatch()
        for name, value in self.constants.items():
            patch.setattr(name, value)
        if not self.report:
            disable_reports(patch)
        main(self.arguments)

    def wait(self, seconds=240):
        """Wait for the end, and return exit status, stdout and stderr."""
        self.join(seconds)
        assert self.exitcode is not None, "waited too long"
        outputs = [(self.folder / str(descriptor)).read_text() for descriptor in (1, 2)]
        shutil.rmtree(self.folder)
        return self.exitcode, *outputs


def list_child_processes(parent):
    """List the ids of the child processes of a process."""
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                children.append(int(folder.name))
    return children


def build_command(recipe, out):
    """Build the command line of a run, after ``python -m``."""
    return [*build_train_command(recipe).split(), "--out", str(out), "--device", "cpu", "--precision", "float32"]


def build_thread_environment(num_threads):
    """Build the environment of a process with ``num_threads`` threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(num_threads)}


def read_log_lines(run):
    """Read the lines of ``metrics.jsonl``; empty if the file does not exist yet."""
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def load_evaluations(run):
    """Load the evaluations of a run, without their times."""
    evaluations = [line for line in map(json.loads, read_log_lines(run)) if line["phase"] == "eval"]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in evaluations]


def wait_until(condition, seconds=120):
    """Wait until a condition holds, for at most ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def count_equal_batches(one, other):
    """Check that two loaders yield bit-exact batches, and return their number."""
    count = 0
    for (images, targets), (other_images, other_targets) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(targets, other_targets)
        count += 1
    return count
