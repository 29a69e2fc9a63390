"""The contract that every task keeps, as functions that run against any recipe; ``test_tasks.py`` runs them all.

``make(**fields)`` returns a recipe of the family that trains a few steps on embedded data, without dropout.
"""

import contextlib
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
from fukami.captioning.task import CaptioningTask
from fukami.classification.task import ClassificationTask
from fukami.cli.main import main
from fukami.detection.task import DetectionTask
from fukami.engine import async_checkpoint
from fukami.engine.recipe import build_train_command
from fukami.engine.runtime import Runtime
from fukami.engine.state_file import load_state
from fukami.generation.task import GANTask
from fukami.reinforcement.task import QLearningTask
from fukami.segmentation.task import SegmentationTask
from fukami.style.task import StyleTransferTask

MAIN = ("loss", "map", "miou", "bleu4", "discriminator_loss", "frechet_digits")  # of a line of the log
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["fukami.engine.train", "matplotlib.figure", "sklearn.datasets", "torchvision"])


def check_overfits(make):
    """A batch of eight is learned by heart."""
    recipe = make(batch_size=8)
    data, runtime = recipe.load_data(), Runtime.start("cpu", "float32")
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    batch = next(iter(task.iterate_batches(data.train)))
    task.schedule(0.3)
    losses = [task.step(batch)["loss"].item() for _ in range(120)]
    assert losses[-1] < 0.1 * losses[0], losses[::20]


def check_evaluation_changes_nothing(make):
    """Judging twice gives the same answer and leaves weights, mode and random states alone."""
    recipe = make()
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
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
    """What was trained is what is loaded: the same evaluation, answers equal and ready for JSON."""
    recipe = make()
    result = fukami.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    task = fukami.load(tmp_path / "run", device="cpu")
    loaded = task.evaluate(recipe.load_data().val)
    assert {**loaded, "loss": 0} == {**result, "loss": 0}
    answers = task.predict(inputs)
    assert json.loads(json.dumps(answers)) == answers
    assert [answer["file"] for answer in answers] == [str(path) for path in inputs]
    again = fukami.load(tmp_path / "run", device="cpu").predict(inputs)
    assert again == answers


def check_precisions(make, inputs, tmp_path):
    """bfloat16 trains; bfloat16 and float16 answer, close to float32."""
    recipe = make()
    fukami.train(recipe, tmp_path / "run", device="cpu", precision="bfloat16")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.long}
    val = recipe.load_data().val
    exact = fukami.load(tmp_path / "run", device="cpu").evaluate(val)
    for precision in ("bfloat16", "float16"):
        task = fukami.load(tmp_path / "run", device="cpu", precision=precision)
        assert next(task.model.parameters()).dtype == getattr(torch, precision)
        rough = task.evaluate(val)
        assert rough["count"] == exact["count"]
        metric = "loss" if "loss" in exact else next(iter(exact))
        assert abs(rough[metric] - exact[metric]) <= 0.05 * exact[metric]
        assert len(task.predict(inputs)) == len(inputs)


def check_broken_input(make, inputs, tmp_path):
    """A broken image among good ones is reported by name, and the good ones are answered."""
    recipe = make()
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(inputs[0]).read_bytes()[:60])
    answers = task.predict([inputs[0], broken, inputs[1]])
    assert "error" not in answers[0]
    assert "error" not in answers[2]
    assert answers[1]["file"] == str(broken)
    assert "broken.png" in answers[1]["error"]


def check_two_processes(make, tmp_path):
    """Two processes that share each batch end where one process with the whole batch does."""
    recipe = make(epochs=1, lr=2e-4)
    outs = [tmp_path / "one", tmp_path / "two"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [Started(words(recipe, outs[0]))]  # the others as torchrun starts them, which test_processes.py does
    processes += [Started(words(recipe, outs[1]), more={**meeting, "RANK": n, "LOCAL_RANK": n}) for n in "01"]
    assert [process.ended()[0] for process in processes] == [0, 0, 0]
    one, two = (list(map(json.loads, lines(out))) for out in outs)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for line, other in zip(one, two, strict=True):
        metric = next(name for name in MAIN if name in line)
        assert abs(line[metric] - other[metric]) < 1e-4 * max(1, abs(line[metric])), (line, other)
    assert one[-1]["count"] == two[-1]["count"]
    weights, others = (load_file(out / "weights.safetensors") for out in outs)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=2e-4)


def check_killed_and_resumed(make, tmp_path, kills=3):
    """Killed with SIGKILL again and again after its first checkpoint, and resumed, a run is as if never killed.

    Bit for bit are the weights, all that the last checkpoint holds, and the log but for times.
    """
    recipe = make()
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert Started(words(recipe, undisturbed), often=True).ended()[0] == 0
    for kill in range(kills):
        process = Started([*words(recipe, killed), *["--resume"] * (kill > 0)], often=True)
        few = max(len(lines(killed)), 4)
        wait_until(
            lambda p=process, n=few: (len(lines(killed)) > n and (killed / "last.ckpt").exists()) or not p.is_alive()
        )
        process.kill()
        assert process.ended()[0] == -signal.SIGKILL, "the run ended before it could be killed; give it more steps"
        assert (killed / "last.ckpt").exists()
    status, _, err = Started([*words(recipe, killed), "--resume"], often=True).ended()
    assert status == 0, err
    check_same_run(killed, undisturbed)


def check_same_run(one, other):
    """Two runs have the same weights, last checkpoints and logs, but for times."""
    assert (one / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
    states = [load_state(run / "last.ckpt", torch.device("cpu")) for run in (one, other)]
    for name in ("step", "task", "loader", "random", "history", "manifest"):
        leaves, forms = zip(*(pytree.tree_flatten(state[name]) for state in states), strict=True)
        assert forms[0] == forms[1], name
        for value, same in zip(*leaves, strict=True):
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, name
    assert logged(one) == logged(other)
    assert not [path.name for run in (one, other) for path in run.iterdir() if path.name.startswith(".")]


def logged(run):
    """The lines of a run's log without times."""
    timed = ("seconds", "waiting")
    return [
        {name: value for name, value in json.loads(line).items() if name not in timed and "_per_second" not in name}
        for line in lines(run)
    ]


def leave_out_pages(patch):
    """Trainings draw no report, which takes longer than they do."""
    for family in (
        GANTask,
        CaptioningTask,
        ClassificationTask,
        DetectionTask,
        QLearningTask,
        SegmentationTask,
        StyleTransferTask,
    ):
        patch.setattr(family, "plot_evaluation", lambda self, batches: ())
    patch.setattr("fukami.engine.report.write_report", lambda folder, figures, seconds: folder / "report.html")


class Started(FORKED.Process):
    """A command line in a process of its own, forked from one that has imported torch: it starts at once.

    It kills itself at the ``fatal``-th fsync, if there is one, writes a checkpoint whenever it can where that is wanted
    ``often``, and leaves a report only where its ``page`` is wanted. ``more`` is added to its environment.
    """

    def __init__(self, words, fatal=None, *, often=False, page=False, more=()):
        super().__init__()
        self.words, self.fatal, self.often, self.page, self.environment = (
            words[1:],
            fatal,
            often,
            page,
            {**os.environ, **dict(more)},
        )
        self.folder = Path(tempfile.mkdtemp())
        self.start()

    def run(self):
        for number in (1, 2):  # what it prints, and what it says
            os.dup2(os.open(self.folder / str(number), os.O_WRONLY | os.O_CREAT), number)
        os.environ.update(self.environment)
        torch.set_num_threads(1)
        fsync, calls = os.fsync, itertools.count(1)

        def fsync_or_die(number):
            if next(calls) == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(number)

        os.fsync = fsync_or_die
        if self.often:
            async_checkpoint.MIN_CHECKPOINT_INTERVAL, async_checkpoint.MAX_CHECKPOINT_FRACTION = 0.0, math.inf
        if not self.page:
            leave_out_pages(pytest.MonkeyPatch())
        main(self.words)

    def ended(self, seconds=240):
        """The exit status, what it printed, and what it said."""
        self.join(seconds)
        assert self.exitcode is not None, "waited too long"
        texts = [(self.folder / str(number)).read_text() for number in (1, 2)]
        shutil.rmtree(self.folder)
        return self.exitcode, *texts


def children_of(parent):
    """The numbers of the processes that a process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def words(recipe, out):
    """The command line of a run, after ``python -m``."""
    return [*build_train_command(recipe).split(), "--out", str(out), "--device", "cpu", "--precision", "float32"]


def threads(number):
    """The environment of a process that computes on so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(number)}


def lines(run):
    """What ``metrics.jsonl`` holds so far, whole lines only."""
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def judged(run):
    """The evaluations of a run, without the time they were made at."""
    found = [line for line in map(json.loads, lines(run)) if line["phase"] == "eval"]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def wait_until(condition, seconds=120):
    """Wait for it, but not for ever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def same(one, other):
    """The same batches, bit for bit; returns how many."""
    count = 0
    for (images, targets), (others, numbers) in zip(one, other, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(targets, numbers)
        count += 1
    return count
