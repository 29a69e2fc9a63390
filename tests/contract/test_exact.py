"""Exact without exception: one training a folder, data as they were, and what is said when a disk or a file fails."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fukami as package
from check_task import Started, children_of, lines, logged, wait_until, words
from fukami.captioning.show_and_tell import ShowAndTell
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.task import ClassificationTask
from fukami.data.loader import InMemoryLoader
from fukami.data.manifest import Manifest
from fukami.detection.faster_rcnn import FasterRCNNVGG16
from fukami.engine import async_checkpoint, checkpoint
from fukami.engine.locking import lock_folder
from fukami.engine.resume import CHECKPOINT_FORMAT, ResumableLoader, get_random_states
from fukami.engine.runtime import Runtime
from fukami.engine.state_file import encode_state, load_state
from fukami.errors import Error, UsageError, WriteError
from fukami.reinforcement.dqn import DQN
from fukami.segmentation.fcn import FCN8sVGG16
from fukami.style.neural_style import NeuralStyle

CPU = {"device": "cpu", "precision": "float32"}
RECIPE = DeepConvNet(epochs=4)
LONG = DeepConvNet(epochs=200)


@pytest.fixture
def often(monkeypatch):
    """A checkpoint at each look."""
    monkeypatch.setattr(async_checkpoint, "MIN_CHECKPOINT_INTERVAL", 0.0)
    monkeypatch.setattr(async_checkpoint, "MAX_CHECKPOINT_FRACTION", float("inf"))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- one training a folder ------------------------------------------------------------------------------------------


def test_a_second_training_into_a_folder_is_refused(fukami, tmp_path):
    run = tmp_path / "run"
    first = Started(words(LONG, run), often=True)
    wait_until(lambda: (run / "last.ckpt").exists() or not first.is_alive())
    for more in ([], ["--resume"]):
        second = fukami(*words(LONG, run)[1:], *more)
        assert second.status == 2
        assert f"another training (process {first.pid}) writes to {run}" in second.err
    first.kill()
    assert first.ended()[0] == -signal.SIGKILL
    assert (run / ".lock").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "step", end_at_once)
        third = fukami(*words(LONG, run)[1:], "--resume")
    assert third.status == 143, third.err
    assert not (run / ".lock").exists()


def test_the_lock_of_a_dead_process_does_not_block_while_its_children_live(digit_files, tmp_path):
    """Processes that decode were forked from it; they look every few seconds whether it lives."""
    run = tmp_path / "run"
    recipe = DeepConvNet(data=str(digit_files), memory_limit=0.0, epochs=300, batch_size=8, eval_every=2)
    script = (
        "from fukami.cli.main import main; from fukami.engine import async_checkpoint; "
        "async_checkpoint.MIN_CHECKPOINT_INTERVAL, async_checkpoint.MAX_CHECKPOINT_FRACTION = 0.0, 1e9; main()"
    )
    first = subprocess.Popen([sys.executable, "-c", script, *words(recipe, run)[1:]], stderr=subprocess.DEVNULL)
    wait_until(lambda: (run / "last.ckpt").exists() or first.poll() is not None)
    first.send_signal(signal.SIGSTOP)
    readers = children_of(first.pid)
    with pytest.raises(UsageError, match=rf"another training \(process {first.pid}\)"), lock_folder(run):
        pass
    first.kill()
    assert first.wait() == -signal.SIGKILL
    with lock_folder(run):
        alive = [reader for reader in readers if Path(f"/proc/{reader}").exists()]
    for reader in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(reader, signal.SIGKILL)
    assert alive


def end_at_once(task, batch):
    """A step in which the training is asked to end."""
    signal.raise_signal(signal.SIGTERM)
    return {"loss": torch.ones(())}


def test_each_folder_that_is_written_is_locked(fukami, few_scenes, tmp_path, trained, pageless):
    """A stage, one of several seeds, an export."""
    for folder, line in (
        ("run/finetune", "train rcnn --out run --device cpu"),
        ("both/seed-1", "train deep-convnet --epochs 1 --batch-size 200 --num-seeds 2 --out both --device cpu"),
        ("small", f"export {trained} --to float16 --out small"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        with lock_folder(tmp_path / folder):
            answer = fukami(*line.split())
        assert answer.status == 2, answer.err
        assert f"(process {os.getpid()}) writes to {folder}" in answer.err or "is not empty" in answer.err
        assert not any((tmp_path / folder).iterdir())


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def refuse(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fukami.engine.locking.FileLock.acquire", refuse)
    with lock_folder(tmp_path):
        pass
    assert "has no locks; make sure that no other training writes there" in caplog.text


def test_nothing_to_resume(fukami, tmp_path, monkeypatch):
    for line in (
        "--resume --out typo",
        "--resume",
        "--resume --out typo --num-seeds 2",
        "--resume --out typo --processes 2",
    ):
        answer = fukami("train", "deep-convnet", *line.split())
        assert answer.status == 2, line
        assert "nothing to resume in " + ("typo" if "typo" in line else "runs/deep-convnet") in answer.err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"nothing to resume in .*empty, which holds no run"):
        package.train(RECIPE, tmp_path / "empty", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # torchrun's command is given again as it is
    begun = fukami("train", "deep-convnet", "--epochs", "1", "--batch-size", "200", "--resume", "--out", "new")
    assert begun.status == 0, begun.err


def test_a_usage_error_leaves_no_folder(tmp_path):
    with pytest.raises(UsageError, match="there is no device"):
        package.train(RECIPE, tmp_path / "run", device="cuda:77")
    assert not (tmp_path / "run").exists()


# ---- the data as they were ------------------------------------------------------------------------------------------


def change_file(path):
    path.write_bytes(path.read_bytes() + b"\0")


def move_box(path):
    sheet = json.loads(path.read_text())
    sheet["annotations"][0]["bbox"][3] -= 1
    path.write_text(json.dumps(sheet))


def replace_text(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def classification(root, **fields):
    return DeepConvNet(data=str(root), epochs=1, batch_size=8, **fields)


def detection(root, **fields):
    small = {
        "min_size": 64,
        "max_size": 96,
        "width_multiplier": 1 / 16,
        "hidden": 8,
        "anchor_sizes": (24.0, 48.0),
        "epochs": 1,
    }
    return FasterRCNNVGG16(data=str(root), **small, **fields)


def segmentation(root, **fields):
    return FCN8sVGG16(data=str(root), width_multiplier=1 / 16, hidden=8, min_size=64, epochs=1, batch_size=4, **fields)


def captioning(root, **fields):
    small = {
        "encoder": "resnet20",
        "size": 32,
        "hidden": 8,
        "beam_size": 1,
        "min_word_count": 1,
        "epochs": 1,
        "batch_size": 8,
    }
    return ShowAndTell(data=str(root), **small, **fields)


CHANGES = [
    (classification, "digit_files", lambda root: change_file(root / "3" / "3.png"), "1 changed ('3/3.png')"),
    (
        classification,
        "digit_files",
        lambda root: shutil.copy(root / "3" / "3.png", root / "3" / "new.png"),
        "1 added ('3/new.png')",
    ),
    (classification, "digit_files", lambda root: (root / "3" / "3.png").unlink(), "1 removed ('3/3.png')"),
    (
        classification,
        "digit_files",
        lambda root: (root / "3" / "3.png").rename(root / "4" / "3.png"),
        "1 added ('4/3.png'); 1 removed ('3/3.png')",
    ),
    (
        detection,
        "scene_files",
        lambda root: move_box(root / "train" / "_annotations.coco.json"),
        "1 changed ('train/0.png')",
    ),
    (detection, "scene_files", lambda root: change_file(root / "valid" / "9.png"), "1 changed ('valid/9.png')"),
    (
        segmentation,
        "mask_files",
        lambda root: change_file(root / "train" / "masks" / "2.png"),
        "1 changed ('train/images/2.png')",
    ),
    (
        captioning,
        "told_files",
        lambda root: replace_text(root / "captions.txt", "01.png,a ", "01.png,one "),
        "1 changed ('01.png')",
    ),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_other_data_are_refused_by_name(number, request, fukami, caplog, tmp_path):
    """In turn from memory and streamed, which share what they list."""
    make, data, change, said = CHANGES[number]
    memory = 4.0 * (number % 2)
    request.getfixturevalue("pageless")
    root = shutil.copytree(request.getfixturevalue(data), tmp_path / "data")
    recipe = make(root, memory_limit=memory)
    package.train(recipe, tmp_path / "run", **CPU)
    before = files_of(tmp_path / "run")
    change(root)
    answer = fukami(*words(recipe, tmp_path / "run")[1:], "--resume")
    assert answer.status == 2, answer.err
    assert said in answer.err
    assert "--allow-changed-data" in answer.err
    assert files_of(tmp_path / "run") == before
    answer = fukami(*words(recipe, tmp_path / "run")[1:], "--resume", "--allow-changed-data")
    assert answer.status == 0, answer.err
    assert said in caplog.text
    (fact,) = json.loads((tmp_path / "run" / "recipe.json").read_text())["resumed"]
    assert said in fact["data"]


def test_data_that_were_moved_are_the_same(digit_files, tmp_path, pageless, monkeypatch):
    """Names are relative to the folder that all lie in."""
    for place in ("here", "there"):
        shutil.copytree(digit_files, tmp_path / place / "data")
    monkeypatch.chdir(tmp_path / "here")
    recipe = classification("data")
    package.train(recipe, tmp_path / "run", **CPU)
    monkeypatch.chdir(tmp_path / "there")
    package.train(recipe, tmp_path / "run", **CPU, resume=True)


def test_other_pixels_in_memory_are_refused(tmp_path, pageless, monkeypatch):
    """Of a data set that is no files, and of the images of neural style."""
    package.train(replace(RECIPE, epochs=1), tmp_path / "digits", **CPU)
    from fukami.data import digits

    images, labels = digits.load_digits()
    other = images.copy()
    other[5, 3, 3] ^= 1
    monkeypatch.setattr(digits, "load_digits", lambda: (other, labels))
    with pytest.raises(UsageError, match=r"changed since its checkpoint: 1 changed \('images in memory'\)"):
        package.train(replace(RECIPE, epochs=1), tmp_path / "digits", **CPU, resume=True)
    for name in ("content", "style"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (64, 64, 3), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    painted = NeuralStyle(
        content=str(tmp_path / "content.png"), style=(str(tmp_path / "style.png"),), size=64, levels=1, iterations=2
    )
    package.train(painted, tmp_path / "painted", **CPU)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "style.png")
    with pytest.raises(UsageError, match="batches in memory"):
        package.train(painted, tmp_path / "painted", **CPU, resume=True)


class Listed:
    """A loader of items that are given."""

    def __init__(self, items):
        self.items = items
        self.names = [name for name, _, _ in items]

    def list_items(self):
        from fukami.data.manifest import ManifestItem

        return (ManifestItem(*item) for item in self.items)


def test_what_has_changed_is_found_among_many(tmp_path):
    """Any edits of a list are told as what they are, with the number of each."""
    random = np.random.default_rng(0)
    items = [(f"data/{number}.png", int(size), b"a") for number, size in enumerate(random.integers(0, 9, 3000))]
    train, val = items[:2000], items[2000:]
    digest = Manifest(Listed(train), Listed(val), ("x",)).write(tmp_path)
    assert Manifest(Listed(train), Listed(val), ("x",)).compute_digest() == digest
    other = [*train[10:], *((f"data/new{number}.png", 1, b"a") for number in range(3)), *val[:7]]
    other[0] = (other[0][0], 99, b"a")
    other[1] = (*other[1][:2], b"b")
    now = Manifest(Listed(other), Listed(val[7:]), ("x",))
    assert now.compute_digest() != digest
    said = now.compare(tmp_path, digest)
    assert "3 added ('data/new0.png'" in said or "3 added ('new0.png', 'new1.png', 'new2.png')" in said
    assert "10 removed (" in said
    assert "2 changed ('10.png', '11.png')" in said
    assert "7 moved between training and validation (" in said
    assert Manifest(Listed(train[::-1]), Listed(val), ("x",)).compare(tmp_path, digest) == "different order"
    assert Manifest(Listed(train), Listed(val), ("y",)).compare(tmp_path, digest) == "different class names"
    (tmp_path / "manifest.jsonl").write_bytes(b"[" * 100_000)
    assert "is missing or does not belong" in now.compare(tmp_path, digest)


@pytest.mark.parametrize("memory", [4.0, 0.0], ids=["memory", "stream"])
@pytest.mark.parametrize("how", ["deleted", "broken"])
def test_a_file_that_goes_in_mid_epoch(how, memory, digit_files, tmp_path, monkeypatch, caplog, pageless):
    """In memory it was read before; streamed, it is named and left out. To resume, the data have to be put back."""
    root = shutil.copytree(digit_files, tmp_path / "data")
    recipe = classification(root, memory_limit=memory, holdout=0.0)
    recipe = replace(recipe, epochs=6, batch_size=4)
    whole = package.train(recipe, tmp_path / "whole", **CPU) if memory else None
    victims, real, steps = [root / "3" / "3.png", root / "7" / "7.png"], ClassificationTask.step, itertools.count()

    def step(self, batch):
        if next(steps) == 3:
            for victim in victims:
                victim.unlink() if how == "deleted" else victim.write_bytes(b"no image")
        return real(self, batch)

    monkeypatch.setattr(ClassificationTask, "step", step)
    found = package.train(recipe, tmp_path / "run", **CPU)
    if memory:
        assert found == whole
        weights = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "run")]
        assert weights[0] == weights[1]
    for victim in victims:
        assert (f"{victim}" in caplog.text and "it is left out" in caplog.text) == (not memory)
    with pytest.raises(UsageError, match=r"2 (removed|changed) \('3/3.png', '7/7.png'\)"):
        package.train(recipe, tmp_path / "run", **CPU, resume=True)


def test_too_many_files_that_go_stop_the_run(digit_files, tmp_path, monkeypatch):
    root = shutil.copytree(digit_files, tmp_path / "data")
    recipe = replace(classification(root, memory_limit=0.0, holdout=0.0, max_broken=2), epochs=6, batch_size=4)
    real, steps = ClassificationTask.step, itertools.count()

    def step(self, batch):
        if next(steps) == 3:
            for file in list(root.rglob("*.png"))[:6]:
                file.unlink()
        return real(self, batch)

    monkeypatch.setattr(ClassificationTask, "step", step)
    with pytest.raises(Error, match="3 images are broken, and --max-broken allows 2"):
        package.train(recipe, tmp_path / "run", **CPU)


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert Started(words(RECIPE, run), often=True).ended()[0] == 0
    return run


@pytest.fixture
def small_disk(tmp_path):
    """A file system of eight megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk(small_disk, undisturbed):
    run, filler = small_disk / "run", small_disk / "filler"
    process = Started(words(LONG, run), often=True)
    wait_until(lambda: (run / "last.ckpt").exists() or not process.is_alive())
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    status, out, err = process.ended()
    assert (status, out) == (1, "")
    assert "No space left on device" in err
    assert "make room on the disk" in err
    assert "--resume" in err
    assert "should not happen" not in err
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
    step = load_state(run / "last.ckpt", torch.device("cpu"))["step"]
    filler.unlink()
    process = Started([*words(LONG, run), "--resume"], often=True)
    wait_until(lambda: json.loads(lines(run)[-1])["step"] > step + 50 or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    assert process.ended()[0] == 143


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_write_that_fails(call, often, undisturbed, tmp_path, monkeypatch, pageless):
    """Whichever it is, nothing temporary stays, and the resumed run is that of one undisturbed."""
    run, calls, real = tmp_path / "run", itertools.count(1), os.fsync

    def fsync(file):
        if next(calls) >= 2 * call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Error, match=r"cannot be written \(No space left on device\); make room"):
        package.train(RECIPE, run, **CPU)
    monkeypatch.setattr(os, "fsync", real)
    assert not run.exists() or not [path.name for path in run.iterdir() if path.name.startswith(".")]
    package.train(RECIPE, run, **CPU, resume=(run / "recipe.json").exists())
    assert (run / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()
    assert logged(run) == logged(undisturbed)


def test_a_read_only_folder(small_disk, fukami):
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for out in (small_disk / "run", small_disk / "new"):
        answer = fukami(*words(RECIPE, out)[1:])
        assert answer.status == 1, answer.err
        assert f"{out} cannot be written (Read-only file system)" in answer.err
        assert "should not happen" not in answer.err


def test_a_folder_removed_while_training(tmp_path):
    run = tmp_path / "run"
    process = Started(words(LONG, run), often=True)
    wait_until(lambda: (run / "last.ckpt").exists() or not process.is_alive())
    run.rename(tmp_path / "gone")
    status, _, err = process.ended()
    assert status == 1
    assert f"{run}" in err
    assert "its folder was removed or moved" in err
    assert "should not happen" not in err
    assert not run.exists()


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "manifest.jsonl", "memory", "memory/frames.bin"])
def test_a_link_in_a_run_leads_nowhere(name, trained, fukami, tmp_path):
    run, mine = shutil.copytree(trained, tmp_path / "run"), tmp_path / "thesis.txt"
    mine.write_text("precious")
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(mine)
    answer = fukami("train", "deep-convnet", "--resume", "--out", run)
    assert answer.status == 1
    assert f"{run / name} is a link" in answer.err
    assert mine.read_text() == "precious"


def test_what_a_killed_process_left_is_removed(tmp_path, pageless):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".recipe.json.tmp").write_text("half")
    package.train(replace(RECIPE, epochs=1), run, **CPU)
    (run / ".weights.safetensors.tmp").write_text("half")
    (run / ".mine").write_text("kept")
    package.train(replace(RECIPE, epochs=1), run, **CPU, resume=True)
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".mine"]


def test_a_save_that_ends_between_its_two_files(tmp_path, undisturbed, monkeypatch, pageless):
    """The last one, and the only one: the weights are not those of a checkpoint before."""
    monkeypatch.setattr(async_checkpoint, "MIN_CHECKPOINT_INTERVAL", 1e9)
    real, names = checkpoint.write_file, []

    def write(path, content):
        names.append(path.name)
        if {"last.ckpt", "weights.safetensors"} <= {*names}:
            raise WriteError(path, OSError(errno.EIO, "Input/output error"))
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_file", write)
    with pytest.raises(Error, match="Input/output error"):
        package.train(RECIPE, tmp_path / "run", **CPU)
    monkeypatch.setattr(checkpoint, "write_file", real)
    package.train(RECIPE, tmp_path / "run", **CPU, resume=True)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()


def test_stopped_between_two_lines_of_the_log(tmp_path, monkeypatch, pageless):
    """The resumed run's log has the lines of a run that was not stopped, with the means of the same steps."""
    recipe, real, steps = DeepConvNet(epochs=2, batch_size=20), ClassificationTask.step, itertools.count()
    package.train(recipe, tmp_path / "whole", **CPU)

    def step(self, batch):
        if next(steps) == 38:
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(ClassificationTask, "step", step)
    with pytest.raises(SystemExit):
        package.train(recipe, tmp_path / "run", **CPU)
    assert load_state(tmp_path / "run" / "last.ckpt", torch.device("cpu"))["step"] == 39
    assert json.loads(lines(tmp_path / "run")[-1])["step"] == 35
    package.train(recipe, tmp_path / "run", **CPU, resume=True)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    weights = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]


def test_a_loader_goes_on_with_fewer_items_than_there_were():
    loader = InMemoryLoader(
        torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.zeros(6).long(), ("x",), batch_size=2, seed=0
    )
    loader.load_state_dict({"turn": 3, "position": 8})
    assert list(loader) == []
    assert len(list(loader)) == 3
    assert loader.epoch == 5
    others = ResumableLoader([1, 2])
    others.load_state_dict({"position": 4, "begun": get_random_states()})
    assert list(others) == []
    assert list(others) == [1, 2]


# ---- clocks, versions, threads --------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back(undisturbed, tmp_path, monkeypatch, pageless):
    """By a day, again and again: the same run, and no time is negative."""
    back = itertools.count(1e9, -86_400.0)
    monkeypatch.setattr(time, "time", lambda: next(back))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * next(back)))
    package.train(RECIPE, tmp_path / "run", **CPU)
    assert logged(tmp_path / "run") == logged(undisturbed)
    for line in map(json.loads, lines(tmp_path / "run")):
        assert all(value >= 0 for name, value in line.items() if "second" in name)
    seconds = json.loads((tmp_path / "run" / "recipe.json").read_text())["time"]["seconds"]
    assert min(seconds.values()) >= 0


def edited(run, **changes):
    """Change what the checkpoint of a run says."""
    state = load_state(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(encode_state({**state, **changes}))


def test_a_checkpoint_of_other_versions(tmp_path, pageless, caplog):
    run, recipe = tmp_path / "run", replace(RECIPE, epochs=1)
    result = package.train(recipe, run, **CPU)
    edited(run, versions={"fukami": "0.0.7", "torch": "2.5", "python": "3.10"})
    assert package.train(recipe, run, **CPU, resume=True) == result
    (said,) = [record.getMessage() for record in caplog.records if "0.0.7" in record.getMessage()]
    assert "equal numbers are not promised" in said
    assert torch.__version__ in said
    (fact,) = json.loads((run / "recipe.json").read_text())["resumed"]
    assert fact["versions"] == checkpoint.get_versions()
    edited(run, format=CHECKPOINT_FORMAT + 1, versions={"fukami": "9.1"})
    with pytest.raises(
        Error, match=rf"has the format {CHECKPOINT_FORMAT + 1} and was written by fukami 9.1; this is fukami"
    ):
        package.train(recipe, run, **CPU, resume=True)


def test_a_checkpoint_of_another_network(tmp_path, pageless):
    run, recipe = tmp_path / "run", replace(RECIPE, epochs=1)
    package.train(recipe, run, **CPU)
    state = load_state(run / "last.ckpt", torch.device("cpu"))
    for changes in ({"task": {}}, {"loader": 7}, {"random": {}}, {"task": {**state["task"], "model": {}}}):
        edited(run, **{**state, **changes})
        with pytest.raises(Error, match=r"last\.ckpt does not fit the run"):
            package.train(recipe, run, **CPU, resume=True)


def test_a_resumed_run_computes_with_as_many_threads(tmp_path, pageless, monkeypatch, caplog):
    run, recipe, before = tmp_path / "run", replace(RECIPE, epochs=1), torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)
    try:
        package.train(recipe, run, **CPU)
        assert json.loads((run / "recipe.json").read_text())["threads"] == 1
        torch.set_num_threads(2)
        package.train(recipe, run, **CPU, resume=True)
        assert torch.get_num_threads() == 1
        assert "threads" not in caplog.text
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        torch.set_num_threads(3)
        package.train(recipe, run, **CPU, resume=True)
        assert "computed with 1 threads, and OMP_NUM_THREADS says 3" in caplog.text
        assert json.loads((run / "recipe.json").read_text())["resumed"][0]["threads"] == 3
    finally:
        torch.set_num_threads(before)
    record = json.loads((run / "recipe.json").read_text())
    checkpoint.write_file(run / "recipe.json", json.dumps({**record, "threads": 10**9}).encode())
    with pytest.raises(Error, match=r"'threads' should be 1 to 1024"):
        package.train(recipe, run, **CPU, resume=True)


@pytest.mark.skipif(not list(Path(torch.__file__).parent.glob("lib/libgomp*")), reason="another OpenMP than GNU's")
def test_1_bit_kernels_leave_the_number_of_threads_alone():
    """numba's threads are OpenMP's, as torch's are; with another number of them the next training rounds otherwise."""
    script = """
import torch
from fukami.quantization import binary_cpu
torch.set_num_threads(1)
binary_cpu.max_pool(torch.zeros(1, 4, 4, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 2, 2)
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment["NUMBA_NUM_THREADS"] = "2"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_threads_that_have_computed_before_flush_denormal_numbers_too():
    script = """
import torch
from fukami.engine.runtime import Runtime
torch.set_num_threads(2)
x = torch.full((4_000_000,), 1e-38)
x * 1.0
Runtime.start("cpu", num_threads=2)
assert torch.get_num_threads() == 2
print(int((x * 0.5 == 0).sum()))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "4000000"


def test_an_agent_that_has_lost_its_memory(tmp_path, pageless, monkeypatch, often):
    small = {"steps": 400, "buffer_size": 300, "learning_starts": 200, "num_envs": 2, "batch_size": 4, "hidden": 8,
             "eval_episodes": 2, "eval_every": 40}  # fmt: skip
    run, real = tmp_path / "run", async_checkpoint.CheckpointWriter.save

    def save(self, *arguments):
        real(self, *arguments)
        self.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(async_checkpoint.CheckpointWriter, "save", save)
        with pytest.raises(KeyboardInterrupt):
            package.train(DQN(**small), run, **CPU)
    shutil.rmtree(run / "memory")
    with pytest.raises(Error, match=r"memory is not what the run left, so it cannot go on"):
        package.train(DQN(**small), run, **CPU, resume=True)


def test_what_an_encoder_saw_does_not_depend_on_what_is_kept(few_scenes, monkeypatch):
    """Where some of it is gone, it is computed again with the same neighbours: their number decides about rounding."""
    recipe = ShowAndTell(encoder="resnet20", size=32, hidden=8, min_word_count=1, init="x")
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    loader = SimpleNamespace(iterate_images=lambda: iter([images]))
    found, together = [], []
    for cache in (0.0, 1.0, 1.0):
        torch.manual_seed(0)
        task = replace(recipe, cache_limit=cache).build_task(tuple("abcd"))
        task.setup(Runtime.start(**CPU))
        real = task.model.encode_images
        monkeypatch.setattr(
            task.model, "encode_images", lambda some, real=real: together.append(len(some)) or real(some)
        )
        found.append(task.extract_features(loader))
        for number, file in enumerate(sorted(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.safetensors"))):
            if number % 2:
                file.unlink()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert together[:4] == together[:2] * 2
    assert len(together) == 5
    assert together[4] in together[:2]
