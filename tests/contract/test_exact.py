"""Tests of locked run folders, changed datasets, failing disks, and checkpoints of other versions or threads."""

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
from check_task import CommandProcess, build_command, list_child_processes, load_log, read_log_lines, wait_until
from fukami import atomic_file
from fukami.captioning.show_and_tell import ShowAndTell
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.task import ClassificationTask
from fukami.data.loader import InMemoryLoader
from fukami.data.manifest import Manifest
from fukami.data.random_states import get_random_states, keep_random_states
from fukami.detection.faster_rcnn import FasterRCNNVGG16
from fukami.engine import async_checkpoint, run_record
from fukami.engine.checkpoint import decode_checkpoint, encode_checkpoint
from fukami.engine.locking import lock_folder
from fukami.engine.resumable_loader import ResumableLoader
from fukami.engine.resume import CHECKPOINT_FORMAT
from fukami.engine.runtime import Runtime
from fukami.errors import Error, UsageError, WriteError
from fukami.reinforcement.dqn import DQN
from fukami.segmentation.fcn import FCN8sVGG16
from fukami.style.neural_style import NeuralStyle

CPU = {"device": "cpu", "precision": "float32"}
NARROW = {"widths": (4, 4, 8, 8, 8, 8), "hidden": 16}
RECIPE = DeepConvNet(epochs=4, **NARROW)
LONG = DeepConvNet(epochs=200)


@pytest.fixture
def frequent_checkpoints(monkeypatch):
    """Write a checkpoint at every opportunity."""
    monkeypatch.setattr(async_checkpoint, "MIN_CHECKPOINT_INTERVAL", 0.0)
    monkeypatch.setattr(async_checkpoint, "MAX_CHECKPOINT_FRACTION", float("inf"))


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- locked folders -------------------------------------------------------------------------------------------------


def test_a_second_training_into_a_folder_is_rejected(fukami, tmp_path):
    run = tmp_path / "run"
    first = CommandProcess(build_command(LONG, run), frequent_checkpoints=True)
    wait_until(lambda: (run / "last.ckpt").exists() or not first.is_alive())
    for flags in ([], ["--resume"]):
        second = fukami(*build_command(LONG, run)[1:], *flags)
        assert second.status == 2
        assert f"another training run (process {first.pid}) is writing to {run}" in second.err
    first.kill()
    assert first.wait()[0] == -signal.SIGKILL
    assert (run / ".lock").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "step", send_sigterm)
        third = fukami(*build_command(LONG, run)[1:], "--resume")
    assert third.status == 143, third.err
    assert not (run / ".lock").exists()


@pytest.mark.slow
def test_the_lock_of_a_dead_process_does_not_block_while_its_children_live(digit_files, tmp_path):
    """The decoding processes were forked from it; they check every few seconds whether it is alive."""
    run = tmp_path / "run"
    recipe = DeepConvNet(data=str(digit_files), memory_limit=0.0, epochs=300, batch_size=8, eval_every=2)
    script = (
        "from fukami.cli.main import main; from fukami.engine import async_checkpoint; "
        "async_checkpoint.MIN_CHECKPOINT_INTERVAL, async_checkpoint.MAX_CHECKPOINT_FRACTION = 0.0, 1e9; main()"
    )
    first = subprocess.Popen([sys.executable, "-c", script, *build_command(recipe, run)[1:]], stderr=subprocess.DEVNULL)
    wait_until(lambda: (run / "last.ckpt").exists() or first.poll() is not None)
    first.send_signal(signal.SIGSTOP)
    readers = list_child_processes(first.pid)
    with pytest.raises(UsageError, match=rf"another training run \(process {first.pid}\)"), lock_folder(run):
        pass
    first.kill()
    assert first.wait() == -signal.SIGKILL
    with lock_folder(run):
        alive = [reader for reader in readers if Path(f"/proc/{reader}").exists()]
    for reader in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(reader, signal.SIGKILL)
    assert alive


def send_sigterm(task, batch):
    """Training step during which the process gets SIGTERM."""
    signal.raise_signal(signal.SIGTERM)
    return {"loss": torch.ones(())}


def test_all_written_folders_are_locked(fukami, few_scenes, tmp_path, trained):
    """The folders of a stage, of one of several seeds and of an export are locked."""
    for folder, line in (
        ("run/finetune", "train rcnn --out run --device cpu"),
        (
            "both/seed-1",
            "train deep-convnet --epochs 1 --batch-size 200 --hidden 8 --num-seeds 2 --out both --device cpu",
        ),
        ("small", f"export {trained} --to float16 --out small"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        with lock_folder(tmp_path / folder):
            result = fukami(*line.split())
        assert result.status == 2, result.err
        assert f"(process {os.getpid()}) is writing to {folder}" in result.err or "is not empty" in result.err
        assert not any((tmp_path / folder).iterdir())


def test_a_file_system_without_locks_is_logged(tmp_path, monkeypatch, caplog):
    def acquire(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fukami.engine.locking.FileLock.acquire", acquire)
    with lock_folder(tmp_path):
        pass
    assert "has no locks; make sure that no other training run writes there" in caplog.text


def test_a_lock_file_that_cannot_be_written(tmp_path, monkeypatch):
    """On Windows its content is locked, too."""

    def write_text(path, text):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", write_text)
    with (
        lock_folder(tmp_path),
        pytest.raises(UsageError, match="another training run is writing"),
        lock_folder(tmp_path),
    ):
        pass


def test_nothing_to_resume(fukami, tmp_path, monkeypatch):
    for line in (
        "--resume --out typo",
        "--resume",
        "--resume --out typo --num-seeds 2",
        "--resume --out typo --processes 2",
    ):
        result = fukami("train", "deep-convnet", *line.split())
        assert result.status == 2, line
        assert "nothing to resume in " + ("typo" if "typo" in line else "runs/deep-convnet") in result.err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"nothing to resume in .*empty, which contains no run"):
        package.train(RECIPE, tmp_path / "empty", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # torchrun repeats the command unchanged
    new_run = fukami("train", "deep-convnet", "--epochs", "1", "--batch-size", "200", "--resume", "--out", "new")
    assert new_run.status == 0, new_run.err


def test_a_usage_error_leaves_no_folder(tmp_path):
    with pytest.raises(UsageError, match="there is no device"):
        package.train(RECIPE, tmp_path / "run", device="cuda:77")
    assert not (tmp_path / "run").exists()


# ---- changed datasets -----------------------------------------------------------------------------------------------


def change_file(path):
    path.write_bytes(path.read_bytes() + b"\0")


def move_box(path):
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][3] -= 1
    path.write_text(json.dumps(content))


def replace_text(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def classification(root, **fields):
    return DeepConvNet(data=str(root), epochs=1, batch_size=8, convention="image", **NARROW, **fields)


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
        "caption_files",
        lambda root: replace_text(
            root / "captions.txt", "11.png,a ", "11.png,one "
        ),  # a validation image, so the vocabulary is the same
        "1 changed ('11.png')",
    ),
]


@pytest.mark.parametrize("case_index", range(len(CHANGES)))
def test_changed_datasets_are_rejected(case_index, request, fukami, caplog, tmp_path):
    """Every second case is streamed; both loaders use the same list of items."""
    make, data, change, message = CHANGES[case_index]
    memory = 4.0 * (case_index % 2)
    root = shutil.copytree(request.getfixturevalue(data), tmp_path / "data")
    recipe = make(root, memory_limit=memory)
    package.train(recipe, tmp_path / "run", **CPU)
    files = read_files(tmp_path / "run")
    change(root)
    result = fukami(*build_command(recipe, tmp_path / "run")[1:], "--resume")
    assert result.status == 2, result.err
    assert message in result.err
    assert "--allow-changed-data" in result.err
    assert read_files(tmp_path / "run") == files
    result = fukami(*build_command(recipe, tmp_path / "run")[1:], "--resume", "--allow-changed-data")
    assert result.status == 0, result.err
    assert message in caplog.text
    (entry,) = json.loads((tmp_path / "run" / "recipe.json").read_text())["resumed"]
    assert message in entry["data"]


def test_a_moved_dataset_is_unchanged(digit_files, tmp_path, monkeypatch):
    """Names are relative to the common folder of all files."""
    for folder in ("old", "new"):
        shutil.copytree(digit_files, tmp_path / folder / "data")
    monkeypatch.chdir(tmp_path / "old")
    recipe = classification("data")
    package.train(recipe, tmp_path / "run", **CPU)
    monkeypatch.chdir(tmp_path / "new")
    package.train(recipe, tmp_path / "run", **CPU, resume=True)


def test_changed_pixels_in_memory_are_rejected(tmp_path, monkeypatch):
    """The pixels of a dataset without files and of the images of style transfer are compared."""
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
    style_recipe = NeuralStyle(
        content=str(tmp_path / "content.png"), style=(str(tmp_path / "style.png"),), size=64, levels=1, iterations=2
    )
    package.train(style_recipe, tmp_path / "styled", **CPU)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "style.png")
    with pytest.raises(UsageError, match="batches in memory"):
        package.train(style_recipe, tmp_path / "styled", **CPU, resume=True)


class ListLoader:
    """Loader with a list of items."""

    def __init__(self, items):
        self.items = items
        self.names = [name for name, _, _ in items]

    def iterate_items(self):
        from fukami.data.manifest import ManifestItem

        return (ManifestItem(*item) for item in self.items)


def test_the_manifest_reports_all_kinds_of_changes(tmp_path):
    """All changes of a long list of items are reported with their kind and number."""
    random = np.random.default_rng(0)
    items = [(f"data/{index}.png", int(size), b"a") for index, size in enumerate(random.integers(0, 9, 3000))]
    train, val = items[:2000], items[2000:]
    digest = Manifest({"train": ListLoader(train), "val": ListLoader(val)}, ("x",)).write(tmp_path)
    assert Manifest({"train": ListLoader(train), "val": ListLoader(val)}, ("x",)).compute_digest() == digest
    other = [*train[10:], *((f"data/new{index}.png", 1, b"a") for index in range(3)), *val[:7]]
    other[0] = (other[0][0], 99, b"a")
    other[1] = (*other[1][:2], b"b")
    manifest = Manifest({"train": ListLoader(other), "val": ListLoader(val[7:])}, ("x",))
    assert manifest.compute_digest() != digest
    changes = manifest.compare(tmp_path, digest)
    assert "3 added ('data/new0.png'" in changes or "3 added ('new0.png', 'new1.png', 'new2.png')" in changes
    assert "10 removed (" in changes
    assert "2 changed ('10.png', '11.png')" in changes
    assert "7 moved to another split (" in changes
    assert (
        Manifest({"train": ListLoader(train[::-1]), "val": ListLoader(val)}, ("x",)).compare(tmp_path, digest)
        == "different order"
    )
    assert (
        Manifest({"train": ListLoader(train), "val": ListLoader(val)}, ("y",)).compare(tmp_path, digest)
        == "different class names"
    )
    (tmp_path / "manifest.jsonl").write_bytes(b"[" * 100_000)
    assert "is missing or does not belong" in manifest.compare(tmp_path, digest)


def test_a_manifest_is_replaced_when_the_new_one_is_complete(tmp_path, monkeypatch):
    items = [("a.png", 1, b"a"), ("b.png", 2, b"b")]
    Manifest({"train": ListLoader(items)}, ("x",)).write(tmp_path)
    contents = read_files(tmp_path)

    def fail(self):
        yield b"incomplete"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Manifest, "_iterate_lines", fail)
    with pytest.raises(WriteError, match=r"manifest\.jsonl cannot be written"):
        Manifest({"train": ListLoader(items[:1])}, ("x",)).write(tmp_path)
    assert read_files(tmp_path) == contents


@pytest.mark.parametrize("memory", [4.0, 0.0], ids=["memory", "stream"])
@pytest.mark.parametrize("change", ["deleted", "unreadable"])
def test_files_deleted_or_unreadable_in_mid_epoch(change, memory, digit_files, tmp_path, monkeypatch, caplog):
    """Streamed files are named and skipped; in memory they were read before. Resuming needs the original files."""
    root = shutil.copytree(digit_files, tmp_path / "data")
    recipe = classification(root, memory_limit=memory, val_fraction=0.0)
    recipe = replace(recipe, epochs=6, batch_size=4)
    expected = package.train(recipe, tmp_path / "unchanged", **CPU).metrics if memory else None
    victims, real_step, steps = [root / "3" / "3.png", root / "7" / "7.png"], ClassificationTask.step, itertools.count()

    def step(self, batch):
        if next(steps) == 3:
            for victim in victims:
                victim.unlink() if change == "deleted" else victim.write_bytes(b"no image")
        return real_step(self, batch)

    monkeypatch.setattr(ClassificationTask, "step", step)
    metrics = package.train(recipe, tmp_path / "run", **CPU).metrics
    if memory:
        assert metrics == expected
        weights = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("unchanged", "run")]
        assert weights[0] == weights[1]
    for victim in victims:
        assert (f"{victim}" in caplog.text and "it is skipped" in caplog.text) == (not memory)
    with pytest.raises(UsageError, match=r"2 (removed|changed) \('3/3.png', '7/7.png'\)"):
        package.train(recipe, tmp_path / "run", **CPU, resume=True)


def test_too_many_deleted_files_stop_the_run(digit_files, tmp_path, monkeypatch):
    root = shutil.copytree(digit_files, tmp_path / "data")
    recipe = replace(classification(root, memory_limit=0.0, val_fraction=0.0, max_unreadable=2), epochs=6, batch_size=4)
    real_step, steps = ClassificationTask.step, itertools.count()

    def step(self, batch):
        if next(steps) == 3:
            for file in list(root.rglob("*.png"))[:6]:
                file.unlink()
        return real_step(self, batch)

    monkeypatch.setattr(ClassificationTask, "step", step)
    with pytest.raises(Error, match=r"[3-6] images are unreadable, and --max-unreadable allows 2"):
        package.train(recipe, tmp_path / "run", **CPU)


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert CommandProcess(build_command(RECIPE, run), frequent_checkpoints=True).wait()[0] == 0
    return run


@pytest.fixture
def small_disk(tmp_path):
    """File system of eight megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting file systems is not permitted")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_full_disk(small_disk, uninterrupted):
    run, filler = small_disk / "run", small_disk / "filler"
    process = CommandProcess(build_command(LONG, run), frequent_checkpoints=True)
    wait_until(lambda: (run / "last.ckpt").exists() or not process.is_alive())
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    status, out, err = process.wait()
    assert (status, out) == (1, "")
    assert "No space left on device" in err
    assert "make room on the disk" in err
    assert "--resume" in err
    assert "this is a bug" not in err
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
    step = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))["step"]
    filler.unlink()
    process = CommandProcess([*build_command(LONG, run), "--resume"], frequent_checkpoints=True)
    wait_until(lambda: json.loads(read_log_lines(run)[-1])["step"] > step + 50 or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait()[0] == 143


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_failing_write_leaves_no_temporary_file(call, frequent_checkpoints, uninterrupted, tmp_path, monkeypatch):
    """Whichever write fails, the resumed run equals an uninterrupted one."""
    run, calls, real_fsync = tmp_path / "run", itertools.count(1), os.fsync

    def fsync(file):
        if next(calls) >= 2 * call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Error, match=r"cannot be written \(No space left on device\); make room"):
        package.train(RECIPE, run, **CPU)
    monkeypatch.setattr(os, "fsync", real_fsync)
    assert not run.exists() or not [path.name for path in run.iterdir() if path.name.startswith(".")]
    package.train(RECIPE, run, **CPU, resume=(run / "recipe.json").exists())
    assert (run / "weights.safetensors").read_bytes() == (uninterrupted / "weights.safetensors").read_bytes()
    assert load_log(run) == load_log(uninterrupted)


def test_a_read_only_folder(small_disk, fukami):
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for out in (small_disk / "run", small_disk / "new"):
        result = fukami(*build_command(RECIPE, out)[1:])
        assert result.status == 1, result.err
        assert f"{out} cannot be written (Read-only file system)" in result.err
        assert "this is a bug" not in result.err


def test_a_folder_moved_during_training(tmp_path):
    run = tmp_path / "run"
    process = CommandProcess(build_command(LONG, run), frequent_checkpoints=True)
    wait_until(lambda: (run / "last.ckpt").exists() or not process.is_alive())
    run.rename(tmp_path / "gone")
    status, _, err = process.wait()
    assert status == 1
    assert f"{run}" in err
    assert "its folder was removed or moved" in err
    assert "this is a bug" not in err
    assert not run.exists()


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "manifest.jsonl", "replay_buffer", "replay_buffer/frames.bin"]
)
def test_nothing_is_written_through_a_link_in_a_run(name, trained, fukami, tmp_path):
    run, outside = shutil.copytree(trained, tmp_path / "run"), tmp_path / "outside.txt"
    outside.write_text("other content")
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(outside)
    result = fukami("train", "deep-convnet", "--resume", "--out", run)
    assert result.status == 1
    assert f"{run / name} is a link" in result.err
    assert outside.read_text() == "other content"


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".recipe.json.123-456.tmp").write_text("half")
    package.train(replace(RECIPE, epochs=1), run, **CPU)
    (run / ".weights.safetensors.123-456.tmp").write_text("half")
    (run / ".other").write_text("kept")
    package.train(replace(RECIPE, epochs=1), run, **CPU, resume=True)
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".other"]


def test_a_save_interrupted_between_its_two_files(tmp_path, uninterrupted, monkeypatch):
    """Only the last save writes a checkpoint; after resuming, the weights belong to it."""
    monkeypatch.setattr(async_checkpoint, "MIN_CHECKPOINT_INTERVAL", 1e9)
    real_write, names = atomic_file.write_file, []

    def write(path, *parts):
        names.append(path.name)
        if {"last.ckpt", "weights.safetensors"} <= {*names}:
            raise WriteError(path, OSError(errno.EIO, "Input/output error"))
        real_write(path, *parts)

    monkeypatch.setattr(atomic_file, "write_file", write)
    with pytest.raises(Error, match="Input/output error"):
        package.train(RECIPE, tmp_path / "run", **CPU)
    monkeypatch.setattr(atomic_file, "write_file", real_write)
    package.train(RECIPE, tmp_path / "run", **CPU, resume=True)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        uninterrupted / "weights.safetensors"
    ).read_bytes()


def test_a_run_interrupted_between_two_log_lines_resumes(tmp_path, monkeypatch):
    """The log equals that of an uninterrupted run, with means over the same steps."""
    recipe, real_step, steps = (
        DeepConvNet(epochs=2, batch_size=20, **NARROW),
        ClassificationTask.step,
        itertools.count(),
    )
    package.train(recipe, tmp_path / "uninterrupted", **CPU)

    def step(self, batch):
        if next(steps) == 38:
            signal.raise_signal(signal.SIGTERM)
        return real_step(self, batch)

    monkeypatch.setattr(ClassificationTask, "step", step)
    with pytest.raises(SystemExit):
        package.train(recipe, tmp_path / "run", **CPU)
    assert decode_checkpoint(tmp_path / "run" / "last.ckpt", torch.device("cpu"))["step"] == 39
    assert json.loads(read_log_lines(tmp_path / "run")[-1])["step"] == 35
    package.train(recipe, tmp_path / "run", **CPU, resume=True)
    assert load_log(tmp_path / "run") == load_log(tmp_path / "uninterrupted")
    weights = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("uninterrupted", "run")]
    assert weights[0] == weights[1]


def test_a_loader_resumes_with_fewer_items_than_before():
    loader = InMemoryLoader(
        torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.zeros(6).long(), ("x",), batch_size=2, seed=0
    )
    loader.load_state_dict({"epoch": 3, "position": 8})
    assert list(loader) == []
    assert len(list(loader)) == 3
    assert loader.epoch == 5
    loader = ResumableLoader([1, 2])
    loader.load_state_dict({"position": 4, "start_states": get_random_states()})
    assert list(loader.iterate_epoch()) == []
    assert list(loader.iterate_epoch()) == [1, 2]


# ---- clocks, versions, threads --------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_changes_nothing(uninterrupted, tmp_path, monkeypatch):
    """The clock is set back by a day at each call; the run is the same, and no time is negative."""
    times = itertools.count(1e9, -86_400.0)
    monkeypatch.setattr(time, "time", lambda: next(times))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * next(times)))
    package.train(RECIPE, tmp_path / "run", **CPU)
    assert load_log(tmp_path / "run") == load_log(uninterrupted)
    for line in map(json.loads, read_log_lines(tmp_path / "run")):
        assert all(value >= 0 for name, value in line.items() if "second" in name)
    seconds = json.loads((tmp_path / "run" / "recipe.json").read_text())["time"]["seconds"]
    assert min(seconds.values()) >= 0


def edit_checkpoint(run, **changes):
    """Change values in the checkpoint of a run."""
    state = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(b"".join(encode_checkpoint({**state, **changes})))


def test_a_checkpoint_of_other_versions(tmp_path, caplog):
    run, recipe = tmp_path / "run", replace(RECIPE, epochs=1)
    result = package.train(recipe, run, **CPU).metrics
    edit_checkpoint(run, versions={"fukami": "0.0.7", "torch": "2.5", "python": "3.10"})
    assert package.train(recipe, run, **CPU, resume=True).metrics == result
    (message,) = [record.getMessage() for record in caplog.records if "0.0.7" in record.getMessage()]
    assert "equal numbers are not guaranteed" in message
    assert torch.__version__ in message
    (entry,) = json.loads((run / "recipe.json").read_text())["resumed"]
    assert entry["versions"] == run_record.get_versions()
    edit_checkpoint(run, format=CHECKPOINT_FORMAT + 1, versions={"fukami": "9.1"})
    with pytest.raises(
        Error, match=rf"has the format {CHECKPOINT_FORMAT + 1} and was written by fukami 9.1; this is fukami"
    ):
        package.train(recipe, run, **CPU, resume=True)


def test_a_checkpoint_of_another_network(tmp_path):
    run, recipe = tmp_path / "run", replace(RECIPE, epochs=1)
    package.train(recipe, run, **CPU)
    state = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))
    for changes in ({"task": {}}, {"loader": 7}, {"random": {}}, {"task": {**state["task"], "model": {}}}):
        edit_checkpoint(run, **{**state, **changes})
        with pytest.raises(Error, match=r"last\.ckpt does not match the run"):
            package.train(recipe, run, **CPU, resume=True)


def test_random_states_of_all_gpus_are_kept(monkeypatch):
    """Training may use another GPU than the current one, and seeds all of them."""
    states = [torch.tensor([1]), torch.tensor([2])]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states[0])
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [*states])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda kept: states.__setitem__(slice(None), kept))
    mps_states = [torch.tensor([5])]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: mps_states[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda kept: mps_states.append(kept))
    draw = torch.rand(1)
    with keep_random_states():
        states[:] = torch.tensor([3]), torch.tensor([4])
        mps_states.append(torch.tensor([6]))
        expected = torch.rand(1)
    assert states == [1, 2]
    assert mps_states[-1] == 5
    assert torch.rand(1) == expected != draw


def test_a_gpu_that_training_starts_has_the_seed_of_the_caller_afterwards(monkeypatch):
    initialized, seeds = [False], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized[0])
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    state = torch.get_rng_state()
    try:
        torch.manual_seed(7)
        seeds.clear()
        with keep_random_states():
            torch.manual_seed(8)
            initialized[0] = True
        assert seeds[-1] == 7
    finally:
        initialized[0] = False
        torch.set_rng_state(state)


def test_a_resumed_run_uses_the_same_number_of_threads(tmp_path, monkeypatch, caplog, capsys):
    run, recipe, num_threads = tmp_path / "run", replace(RECIPE, epochs=1), torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)
    try:
        package.train(recipe, run, **CPU)
        assert json.loads((run / "recipe.json").read_text())["threads"] == 1
        torch.set_num_threads(2)
        package.train(recipe, run, **CPU, resume=True)
        assert capsys.readouterr().err.count("deep-convnet on cpu, 1 thread, ") == 2
        assert torch.get_num_threads() == 2
        assert "threads" not in caplog.text
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        torch.set_num_threads(3)
        package.train(recipe, run, **CPU, resume=True)
        assert "computed with 1 threads, and this process has 3 (OMP_NUM_THREADS)" in caplog.text
        assert json.loads((run / "recipe.json").read_text())["resumed"][0]["threads"] == 3
    finally:
        torch.set_num_threads(num_threads)
    record = json.loads((run / "recipe.json").read_text())
    atomic_file.write_file(run / "recipe.json", json.dumps({**record, "threads": 10**9}).encode())
    with pytest.raises(Error, match=r"'threads' should be 1 to 1024"):
        package.train(recipe, run, **CPU, resume=True)


@pytest.mark.skipif(not list(Path(torch.__file__).parent.glob("lib/libgomp*")), reason="another OpenMP than GNU's")
def test_1_bit_kernels_do_not_change_the_number_of_threads():
    """numba and torch both use OpenMP threads; another number of threads would change the rounding of a run."""
    script = """
import torch
from fukami.quantization import binary_cpu
torch.set_num_threads(1)
binary_cpu.max_pool(torch.zeros(1, 4, 4, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 2, 2)
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment["NUMBA_NUM_THREADS"] = "2"
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr


def test_existing_threads_flush_denormal_numbers():
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
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert process.stdout.strip() == "4000000"


def test_a_missing_replay_buffer_is_reported(tmp_path, monkeypatch, frequent_checkpoints):
    small = {"steps": 400, "buffer_size": 300, "learning_starts": 200, "num_envs": 2, "batch_size": 4, "hidden": 8,
             "eval_episodes": 2, "eval_every": 40}  # fmt: skip
    run, real_save = tmp_path / "run", async_checkpoint.CheckpointWriter.save

    def save(self, *arguments):
        real_save(self, *arguments)
        self.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(async_checkpoint.CheckpointWriter, "save", save)
        with pytest.raises(KeyboardInterrupt):
            package.train(DQN(**small), run, **CPU)
    shutil.rmtree(run / "replay_buffer")
    with pytest.raises(Error, match=r"replay_buffer is missing or incomplete, so the run cannot be resumed"):
        package.train(DQN(**small), run, **CPU, resume=True)


def test_features_of_an_encoder_do_not_depend_on_the_cache(few_scenes, monkeypatch):
    """Missing features are computed in batches of the same size, since the batch size affects the rounding."""
    recipe = ShowAndTell(encoder="resnet20", size=32, hidden=8, min_word_count=1, init="x")
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    loader = SimpleNamespace(iterate_images=lambda: iter([images]))
    features, batch_sizes = [], []
    for cache in (0.0, 1.0, 1.0):
        torch.manual_seed(0)
        task = replace(recipe, cache_limit=cache).build_task(("<end>", "<begin>", "<unknown>", "a"))
        task.setup(Runtime.start(**CPU))
        task.prepare_training()
        encode = task.model.encode_images
        monkeypatch.setattr(
            task.model, "encode_images", lambda batch, encode=encode: batch_sizes.append(len(batch)) or encode(batch)
        )
        features.append(task.extract_features(loader))
        for number, file in enumerate(sorted(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.safetensors"))):
            if number % 2:
                file.unlink()
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
    assert batch_sizes[:4] == batch_sizes[:2] * 2
    assert len(batch_sizes) == 5
    assert batch_sizes[4] in batch_sizes[:2]
