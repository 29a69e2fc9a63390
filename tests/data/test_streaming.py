"""Streaming of image files equals loading into memory; datasets by table and by name."""

import gc
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.torch import load_file

import fukami as package
from check_task import build_thread_environment, count_equal_batches, read_log_lines, wait_until
from fukami import Error, UsageError
from fukami.classification.deep_convnet import DeepConvNet
from fukami.data import augment, labeled_images, streaming
from fukami.data.loader import InMemoryLoader
from fukami.data.streaming import FileStreamingLoader, ImageDecoder
from fukami.engine.checkpoint import decode_checkpoint
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform
from fukami.timing import PhaseTimer

CPU = {"device": "cpu", "precision": "float32"}
LABELS = ("dark", "light", "red")
PREPARE = SquareTransform(channels=3, size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Create seven noise images for each of three classes, in several sizes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label, low, channels in (("dark", 0, "RGB"), ("light", 120, "L"), ("red", 60, "RGB")):
        (root / label).mkdir()
        for index in range(7):
            shape = (24 + index, 40 - index, 3) if channels == "RGB" else (32, 20)
            pixels = generator.integers(low, low + 130, shape, dtype=np.uint8)
            Image.fromarray(pixels, channels).save(root / label / f"{index}.png")
    return root


@pytest.fixture
def source(root):
    return labeled_images.load_labeled_images(str(root), 0.0)[0]


def stream(source, prepare=PREPARE, **options):
    return FileStreamingLoader(source.items, torch.from_numpy(source.targets), LABELS, prepare, **options)


def load_in_memory(source, prepare=PREPARE, **options):
    decoded = source.decode(prepare)
    return InMemoryLoader(decoded.images, decoded.targets, LABELS, names=decoded.names, **options)


# ---- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3},
        {"seed": None},
        {"seed": 3, "balanced": True},
        {
            "seed": 3,
            "augmentation": augment.parse_augmentation(["flip", "shift=2", "mixup=0.4"], size=16, num_classes=3),
        },
    ],
    ids=["training", "evaluation", "balanced", "augmented"],
)
def test_streamed_batches_equal_those_from_memory(source, options):
    """The loaders are equal in two epochs, also with an iteration in order between them."""
    streamed, in_memory = stream(source, batch_size=5, **options), load_in_memory(source, batch_size=5, **options)
    for _ in range(2):
        assert count_equal_batches(streamed, in_memory) == len(streamed) == (4 if options["seed"] is not None else 5)
    assert count_equal_batches(streamed.iterate_in_order(), in_memory.iterate_in_order()) == 1
    assert count_equal_batches(streamed, in_memory) == len(streamed)
    assert (
        [streamed.describe_batch(5), streamed.names] == [in_memory.describe_batch(5), in_memory.names]
        if options["seed"]
        else True
    )


def test_iteration_with_indices_skips_unreadable_images(root, tmp_path, monkeypatch):
    """Also a whole batch of them; the indices are those of the files."""
    monkeypatch.setattr(streaming, "SEQUENTIAL_BATCH_SIZE", 4)
    shutil.copytree(root, tmp_path / "copy")
    for name in ("dark/1", "light/1", "light/2", "light/3", "light/4"):
        (tmp_path / "copy" / f"{name}.png").write_bytes(b"no image")
    source = labeled_images.load_labeled_images(str(tmp_path / "copy"), 0.0)[0]
    loader = stream(source, batch_size=5, seed=1)
    indices = torch.cat([indices for indices, _ in loader.iterate_with_indices()])
    names = [f"{Path(loader.names[index]).parent.name}/{Path(loader.names[index]).stem}" for index in indices.tolist()]
    expected = [f"{label}/{index}" for label in LABELS for index in range(7)]
    assert names == [name for name in expected if name not in ("dark/1", "light/1", "light/2", "light/3", "light/4")]
    targets = torch.cat([targets for _, (_, targets) in loader.iterate_with_indices()])
    assert targets.tolist() == [LABELS.index(name.partition("/")[0]) for name in names]


def test_iteration_in_order_yields_all_images_and_keeps_the_training_state(source, monkeypatch):
    monkeypatch.setattr(streaming, "SEQUENTIAL_BATCH_SIZE", 8)
    loader, other = (stream(source, batch_size=5, seed=1, min_area=0.3) for _ in range(2))
    batches, uninterrupted = iter(loader), iter(other)
    for index in range(4):
        assert count_equal_batches([next(batches)], [next(uninterrupted)])
        if index == 1:
            state = torch.get_rng_state()
            batches_in_order = list(loader.iterate_in_order())
            assert torch.equal(torch.get_rng_state(), state)
    assert [len(targets) for _, targets in batches_in_order] == [8, 8, 5]
    assert torch.equal(torch.cat([targets for _, targets in batches_in_order]), torch.from_numpy(source.targets))
    assert torch.equal(torch.cat([images for images, _ in batches_in_order]), source.decode(PREPARE).images)


@pytest.mark.parametrize("steps", [0, 2, 4, 6])
def test_a_stream_resumes_at_its_position(source, steps):
    """Another loader continues, also in mid-epoch; batches read ahead are read again."""
    augmentation = augment.parse_augmentation(["flip"], size=16, num_classes=3)

    def take(loader, count):
        batches = []
        while len(batches) < count:
            for batch in loader:
                batches.append(batch)
                if len(batches) == count:
                    break
        return batches

    def build():
        return stream(source, batch_size=5, seed=2, min_area=0.3, augmentation=augmentation)

    uninterrupted = take(build(), 9)
    first, second = build(), build()
    start = take(first, steps)
    second.load_state_dict(first.state_dict())
    assert count_equal_batches(start + take(second, 9 - steps), uninterrupted) == 9
    if 0 < steps < 4:
        assert (
            count_equal_batches(start + list(first), uninterrupted[:4]) == 4
        )  # the interrupted loader itself continues, too


def test_two_processes_split_every_batch(source):
    @dataclass
    class TwoProcesses:
        rank: int
        device = torch.device("cpu")
        world_size = 2
        clock = PhaseTimer(torch.device("cpu"))

    def load(rank, **options):
        loader = stream(source, batch_size=6, **options)
        loader.setup(TwoProcesses(rank))
        return list(loader)

    for (images, targets), *slices in zip(
        stream(source, batch_size=6, seed=4, min_area=0.5),
        load(0, seed=4, min_area=0.5),
        load(1, seed=4, min_area=0.5),
        strict=True,
    ):
        for rank, (local_images, local_targets) in enumerate(slices):
            assert torch.equal(local_images, images[rank::2])
            assert torch.equal(local_targets, targets[rank::2])
    targets = torch.cat([targets for rank in (0, 1) for _, targets in load(rank)])
    assert targets.bincount().tolist() == [7, 7, 7]
    with pytest.raises(UsageError, match="--batch-size"):
        stream(source, batch_size=5, seed=4).setup(TwoProcesses(0))


def test_the_wait_fraction_is_at_most_one(source):
    loader = stream(source, batch_size=5, seed=0)
    for _ in loader:
        assert 0 <= loader.compute_wait_fraction() <= 1
    loader.wait_seconds = math.inf
    assert loader.compute_wait_fraction() == 1
    assert loader.wait_seconds == 0


@pytest.mark.parametrize("batches", [2, 4])
def test_workers_end_with_the_loader(source, batches, monkeypatch):
    """They exit and are not terminated, even if the loader is in a reference cycle or in mid-epoch."""
    monkeypatch.setattr(streaming, "count_workers", lambda: 2)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 2.0)  # seconds until a worker is terminated
    terminated = []

    def terminate(worker, real=BaseProcess.terminate):
        terminated.append(worker)
        real(worker)

    monkeypatch.setattr(BaseProcess, "terminate", terminate)
    loader = stream(source, batch_size=5, seed=0)
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    workers = loader.reader._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    loader.itself, loader.reading = loader, iterator
    del loader, iterator
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    assert not terminated


# ---- unreadable files -----------------------------------------------------------------------------------------------


@pytest.fixture
def unreadable_root(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy" / "dark" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "copy" / "red" / "4.png").write_text("")
    return tmp_path / "copy"


@pytest.mark.parametrize("options", [{"seed": 6, "min_area": 0.3}, {"seed": None}], ids=["training", "evaluation"])
def test_unreadable_files_are_skipped_and_reported_once(root, unreadable_root, caplog, options):
    """The remaining images have the same random numbers and targets as in the complete dataset.

    In a training batch, the first ones take the places of the others.
    """
    incomplete_source, complete_source = (
        labeled_images.load_labeled_images(str(path), 0.0)[0] for path in (unreadable_root, root)
    )
    augmentation = augment.parse_augmentation(["flip"], size=16) if options["seed"] is not None else None
    loader, complete_loader = (
        stream(source, batch_size=7, augmentation=augmentation, **options)
        for source in (incomplete_source, complete_source)
    )
    order = loader._plan_epoch(0)[0] if options["seed"] is not None else torch.arange(21)
    unreadable = [incomplete_source.items.index(unreadable_root / path) for path in ("dark/2.png", "red/4.png")]
    num_skipped = 0
    for batch_index, ((images, targets), (all_images, all_targets)) in enumerate(
        zip(loader, complete_loader, strict=True)
    ):
        kept = [
            i
            for i, index in enumerate(order[7 * batch_index : 7 * batch_index + 7].tolist())
            if index not in unreadable
        ]
        num_skipped += 7 - len(kept)
        if options["seed"] is not None:
            kept += kept[: 7 - len(kept)]
        assert torch.equal(images, all_images[kept])
        assert torch.equal(targets, all_targets[kept])
    assert num_skipped == 2
    list(loader)
    for path, hint in (("dark/2.png", "not an image"), ("red/4.png", "empty")):
        (line,) = [
            record.getMessage() for record in caplog.records if str(unreadable_root / path) in record.getMessage()
        ]
        assert hint in line
        assert "skipped" in line


def test_a_batch_of_unreadable_files_only_is_an_error(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for index in range(4):
            (tmp_path / label / f"{index}.png").write_text("no image")
    source = labeled_images.load_labeled_images(str(tmp_path), 0.0)[0]
    with pytest.raises(Error, match=r"no image of a batch can be read; .*\.png is not an image"):
        list(stream(source, batch_size=4, seed=0))


# ---- crops ----------------------------------------------------------------------------------------------------------


def test_a_crop_equals_crop_and_resize_of_pil(tmp_path, random):
    """A quarter of the area with the same aspect ratio, at integer pixels."""
    pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for channels, mode in ((3, "RGB"), (1, "L")):
        decoder = ImageDecoder([tmp_path / "a.png"], SquareTransform(channels=channels, size=8), 0.25)
        for across, down in ((0.0, 0.0), (0.5, 0.25)):
            crop = decoder[0, [0.0, 0.5, across, down]]
            box = (20 * across, 20 * down, 20 * across + 20, 20 * down + 20)
            region = Image.fromarray(pixels).convert(mode).crop(tuple(map(int, box)))
            expected = np.asarray(region.resize((8, 8), Image.Resampling.BILINEAR)).reshape(8, 8, channels)
            # at the border of a box, interpolation includes the pixels outside of it
            assert np.abs(crop[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2]).max() <= 1


def test_crops_follow_the_random_numbers(source):
    """Computed in pixels: area, aspect ratio, limit to the image, and position."""
    loader = stream(source, batch_size=21, seed=9, min_area=0.2)
    order, random_values = loader._plan_epoch(0)
    images, _ = next(iter(loader))
    for image, member, (size, shape, across, down) in zip(images, order, random_values.tolist(), strict=True):
        with Image.open(source.items[member]) as opened:
            full = opened.convert("RGB")
        area = (0.2 + 0.8 * size) * full.width * full.height
        ratio = (4 / 3) ** (2 * shape - 1)
        wide, high = min(math.sqrt(area * ratio), full.width), min(math.sqrt(area / ratio), full.height)
        left, top = (full.width - wide) * across, (full.height - high) * down
        box = (left, top, min(left + wide, full.width), min(top + high, full.height))
        expected = np.asarray(full.resize((16, 16), Image.Resampling.BILINEAR, box=box))
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_crops_fit_for_extreme_random_numbers(source, draw):
    decoder = ImageDecoder(source.items, PREPARE, 0.08)
    for index in range(len(source)):
        for shape in (0.0, 0.3, 1 - 2**-24):
            assert decoder[index, [draw, shape, draw, draw]].shape == (16, 16, 3)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_jpeg_is_decoded_no_larger_than_its_crop_needs(tmp_path, monkeypatch, rotated):
    """The whole image is decoded at 1/8 scale, a small crop at full scale; both are close to a full decode."""
    y, x = np.mgrid[0:384, 0:512]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((60, 90), (45, -70), (80, 50))]
    exif = Image.Exif()
    exif[0x0112] = 6 if rotated else 1  # rotate by 90 degrees
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    decoder = ImageDecoder([tmp_path / "a.jpg"], SquareTransform(channels=3, size=32), 0.01)
    sizes = []

    def record_size(image, real=image_io.decode_image):
        decoded = real(image)
        sizes.append(decoded.size)
        return decoded

    monkeypatch.setattr("fukami.image.io.decode_image", record_size)
    full = image_io.read_image(tmp_path / "a.jpg")
    assert sizes.pop() == full.size == ((384, 512) if rotated else (512, 384))
    for size, scale in ((1.0, 8), (0.25, 4), (0.01, 1)):
        random_values = [(size - 0.01) / 0.99, 0.5, 0.4, 0.6]
        crop = decoder[0, random_values]
        assert sizes.pop() == (full.width // scale, full.height // scale)
        wide, high = min(math.sqrt(size * 512 * 384), full.width), min(math.sqrt(size * 512 * 384), full.height)
        left, top = (full.width - wide) * 0.4, (full.height - high) * 0.6
        expected = full.resize((32, 32), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + high))
        assert np.abs(crop.astype(int) - np.asarray(expected)).mean() < 3


# ---- all at once ----------------------------------------------------------------------------------------------------


def test_worker_processes_decode_the_same_images(unreadable_root, monkeypatch):
    source = labeled_images.load_labeled_images(str(unreadable_root), 0.0)[0]
    calls = []
    monkeypatch.setattr(streaming, "count_workers", lambda: calls.append(True) or 2)
    state = torch.get_rng_state()
    sequential = list(streaming.decode_files(source.items, PREPARE))
    assert not calls
    monkeypatch.setattr(streaming, "MIN_PARALLEL_FILES", 21)
    monkeypatch.setattr(streaming, "SEQUENTIAL_BATCH_SIZE", 4)
    parallel = list(streaming.decode_files(source.items, PREPARE))
    assert torch.equal(torch.get_rng_state(), state)  # a resumed run decodes once more
    assert calls
    assert len(sequential) == len(parallel) == 21
    for expected, result in zip(sequential, parallel, strict=True):
        assert isinstance(expected, Error) == isinstance(result, Error)
        assert str(expected) == str(result) if isinstance(expected, Error) else np.array_equal(expected, result)
    assert sum(isinstance(result, Error) for result in parallel) == 2


def test_workers_are_limited_to_the_cpus_of_this_process():
    assert 1 <= streaming.count_workers() <= min(16, os.cpu_count())
    if hasattr(os, "sched_getaffinity"):
        assert streaming.count_workers() == min(16, len(os.sched_getaffinity(0)))


# ---- training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Interrupted(DeepConvNet):
    stop: int = 0
    """Step before which training is interrupted; 0 disables it."""

    def build_task(self, labels):
        task = super().build_task(labels)
        step, calls = task.step, []

        def interrupting_step(batch):
            calls.append(1)
            if len(calls) == self.stop:
                raise KeyboardInterrupt
            return step(batch)

        task.step = interrupting_step
        return task


def build_recipe(root, **options):
    small = {"size": 16, "channels": 3, "epochs": 3, "batch_size": 5, "widths": (4,) * 6, "hidden": 8, "dropout": 0.5}
    return Interrupted(**{**small, "data": str(root), "augment": ("flip",), "val_fraction": 0.3, **options})


def test_training_from_files_equals_training_from_memory(root, tmp_path):
    """Also with dropout: reading files does not advance the random numbers of training."""
    results = {}
    for limit in (0.0, 4.0):
        recipe = build_recipe(root, memory_limit=limit)
        assert isinstance(recipe.load_data().train, InMemoryLoader if limit else FileStreamingLoader)
        results[limit] = package.train(recipe, tmp_path / str(limit), **CPU).metrics
    assert results[0.0] == results[4.0]
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("0.0", "4.0"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    for limit in ("0.0", "4.0"):
        lines = [json.loads(line) for line in (tmp_path / limit / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            assert ("data_wait_fraction" in line) == (limit == "0.0" and line["phase"] == "train")
            assert 0 <= line.get("data_wait_fraction", 0) <= 1


def test_resumed_training_from_files_is_bit_exact(root, tmp_path, monkeypatch):
    """Interrupted in the second epoch, with crops, augmentation and dropout."""
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)
    recipe = build_recipe(root, memory_limit=0.0, augment=("crop=0.3", "flip", "brightness=0.2"))
    package.train(recipe, tmp_path / "whole", **CPU)
    with pytest.raises(KeyboardInterrupt):
        package.train(replace(recipe, stop=6), tmp_path / "cut", **CPU)
    state = decode_checkpoint(tmp_path / "cut" / "last.ckpt", torch.device("cpu"))
    assert (state["step"], state["loader"]) == (5, {"epoch": 1, "position": 2, "unreadable": []})
    record = json.loads((tmp_path / "cut" / "recipe.json").read_text())
    record["fields"]["stop"] = 0
    (tmp_path / "cut" / "recipe.json").write_text(json.dumps(record))
    package.train(recipe, tmp_path / "cut", **CPU, resume=True)
    uninterrupted, resumed = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut"))
    assert uninterrupted == resumed


def test_evaluation_images_are_not_cropped(root, source):
    recipe = build_recipe(root, memory_limit=0.0, val_fraction=0.0, augment=("crop=0.3",))
    train = recipe.load_data().train
    assert train.num_crop_values == 4
    assert train.augmentation is None
    loader = recipe.build_loader(source, LABELS, train=False)
    expected = source.decode(recipe.build_transform(LABELS))
    (batch,) = loader
    assert torch.equal(batch[0], expected.images)


# ---- datasets by table and by name ----------------------------------------------------------------------------------


def write_table(root, *lines, name="table.csv", encoding="utf-8"):
    (root / name).write_bytes("\n".join(lines).encode(encoding))
    return str(root / name)


def list_labels(source, labels):
    return [(path.name, labels[target]) for path, target in zip(source.items, source.targets, strict=True)]


def test_a_table_without_splits_is_split(tmp_path):
    lines = [f"deep/{index}.png, {'even' if index % 2 == 0 else 'odd'}" for index in range(20)]
    spec = write_table(tmp_path, "\ufeffPath, Label", *lines)
    train, val, _, labels = labeled_images.load_labeled_images(spec, 0.3)
    assert labels == ("even", "odd")
    assert (len(train), len(val)) == (14, 6)
    assert val.targets.tolist().count(0) == 3
    all_labels = dict(list_labels(train, labels) + list_labels(val, labels))
    assert all_labels == {f"{index}.png": "even" if index % 2 == 0 else "odd" for index in range(20)}
    assert train.items[0].parent == tmp_path / "deep"


def test_a_table_with_splits(tmp_path):
    lines = ["x,train,a.png,1", "y,val,b.png,2", "x,,c.png,3", '"y, z",Testing,d.png,4', f"x,train,{tmp_path}/e.png,5"]
    train, val, test, labels = labeled_images.load_labeled_images(
        write_table(tmp_path, "label,split,path,note", *lines), 0.3
    )
    assert labels == ("x", "y", "y, z")
    assert list_labels(train, labels) == [("a.png", "x"), ("c.png", "x"), ("e.png", "x")]
    assert list_labels(val, labels) == [("b.png", "y")]
    assert list_labels(test, labels) == [("d.png", "y, z")]
    assert train.items[2] == tmp_path / "e.png"


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        (["file,label", "a.png,x"], "columns path and label.*not file, label"),
        ([], "columns path and label.*not nothing"),
        (["path,label"], "contains no image"),
        (["path,label", "a.png,x", ",y"], "line 3: expected a path"),
        (["path,label", "a.png,x", "b.png,x", "c.png"], "line 4: expected a path"),
        (["path,label,split", "a.png,x,train", "b.png,x,tset"], "line 3: .*tset"),
    ],
)
def test_an_invalid_table_is_rejected_with_its_line(tmp_path, lines, hint):
    with pytest.raises(Error, match=hint) as caught:
        labeled_images.load_labeled_images(write_table(tmp_path, *lines), 0.2)
    assert "table.csv" in str(caught.value)


def test_a_table_in_another_encoding_is_rejected(tmp_path):
    spec = write_table(tmp_path, "path,label", "é.png,x", encoding="latin-1")
    with pytest.raises(Error, match=r"table\.csv is not in UTF-8"):
        labeled_images.load_labeled_images(spec, 0.2)
    train, _, _, _ = labeled_images.load_labeled_images(write_table(tmp_path, "path,label", "é.png,x"), 0.2)
    assert train.items[0].name == "é.png"


def test_training_from_a_table(root, tmp_path, fukami):
    files = sorted(root.rglob("*.png"))
    spec = write_table(tmp_path, "path,label", *(f"{file},{file.parent.name}" for file in files))
    args = [
        "--data",
        spec,
        "--size",
        "16",
        "--channels",
        "3",
        "--epochs",
        "1",
        "--batch-size",
        "5",
        "--memory-limit",
        "0",
    ]
    result = fukami("train", "deep-convnet", *args, "--out", "run")
    assert result.status == 0, result.err
    assert result.json[0]["count"] == 3
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["labels"] == list(LABELS)


def generate_cifar(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_its_original_format(name, tmp_path, monkeypatch):
    """Five training files, or one; each row has red, then green, then blue."""
    import torchvision.datasets.cifar

    images = generate_cifar(60)
    rows = images.transpose(0, 3, 1, 2).reshape(60, -1)
    labels = [index % 10 for index in range(60)]
    key, meta = ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    folder = tmp_path / ("cifar-10-batches-py" if name == "cifar10" else "cifar-100-python")
    folder.mkdir()
    files = [f"data_batch_{n}" for n in range(1, 6)] if name == "cifar10" else ["train"]
    rows_per_file = 50 // len(files)
    for index, file in enumerate(files):
        at = slice(rows_per_file * index, rows_per_file * (index + 1))
        (folder / file).write_bytes(pickle.dumps({"data": rows[at], key: labels[at]}))
    test = "test_batch" if name == "cifar10" else "test"
    (folder / test).write_bytes(pickle.dumps({"data": rows[50:], key: labels[50:]}))
    names = [f"class {index}" for index in range(10)]
    (folder / ("batches.meta" if name == "cifar10" else "meta")).write_bytes(pickle.dumps({meta: names}))
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    with pytest.raises(Error, match=f"{name} was not found in .*corrupted"):
        labeled_images.load_labeled_images(name, 0.2)  # torchvision verifies the checksums of the original files
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *arguments: True)
    train, val, test, label_names = labeled_images.load_labeled_images(name)
    assert label_names == tuple(names)
    assert (train.targets.tolist(), len(val), test.targets.tolist()) == (labels[:50], 0, labels[50:])
    assert np.array_equal(train.items, images[:50])
    prepared = test.decode(SquareTransform(channels=3, size=32))
    assert torch.equal(prepared.images, torch.from_numpy(images[50:]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_as_files(packed, tmp_path, monkeypatch):
    images = generate_cifar(6)
    for index, image in enumerate(images):
        folder = tmp_path / "data" / "cifar10" / ("train" if index < 4 else "test") / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    if packed:
        shutil.make_archive(str(tmp_path / "data" / "cifar10"), "zip", tmp_path / "data", "cifar10")
        shutil.rmtree(tmp_path / "data" / "cifar10")
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    train, val, test, labels = labeled_images.load_labeled_images("cifar10")
    assert labels == ("cat", "dog")
    assert (train.targets.tolist(), len(val)) == ([0, 0, 1, 1], 0)
    decoded = test.decode(SquareTransform(channels=3, size=32))
    assert torch.equal(decoded.images, torch.from_numpy(images[4:]).permute(0, 3, 1, 2))


def test_the_cifar_archive_has_the_published_counts():
    folder = Path(os.environ.get("FUKAMI_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "cifar10.zip").exists():
        pytest.skip(f"needs CIFAR-10 as files: no {folder}/cifar10.zip; set FUKAMI_DATA to the folder that holds it")
    import zipfile

    with zipfile.ZipFile(folder / "cifar10.zip") as archive:
        names = [Path(name).parts for name in archive.namelist() if name.endswith(".jpg")]
    counts = {split: sum(name[-3] == split for name in names) for split in ("train", "test")}
    assert counts == {"train": 50_000, "test": 10_000}
    assert len({name[-2] for name in names}) == 10


def test_imagenet_as_folders(root, tmp_path, monkeypatch):
    for split in ("train", "val"):
        shutil.copytree(root, tmp_path / "imagenet" / split)
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    train, val, _, labels = labeled_images.load_labeled_images("imagenet", 0.2)
    assert labels == LABELS
    assert (len(train), len(val)) == (21, 21)
    assert {path.parts[-3] for path in val.items} == {"val"}
    shutil.rmtree(tmp_path / "imagenet" / "val")
    train, val, _, _ = labeled_images.load_labeled_images("imagenet", 0.3)
    assert (len(train), len(val)) == (15, 6)


def test_imagenet_from_its_archives(root, tmp_path, monkeypatch):
    """Two classes have the same name; one process unpacks, and all read at the same time."""
    import torchvision

    folder, held = tmp_path / "imagenet", []

    class ImageNet:
        """Replacement of torchvision's reader, which unpacks a missing split."""

        def __init__(self, path, split):
            lock = FileLock(folder / ".unpacking.lock", timeout=0, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                held.append((split, (folder / split).is_dir()))
            lock.release(force=True)
            if not (folder / split).is_dir():
                shutil.copytree(root, folder / split)
            (folder / "meta.bin").touch()
            self.classes, self.wnids = [("crane",), ("crane",), ("tench", "Tinca tinca")], ["n1", "n2", "n3"]
            files = sorted((folder / split).rglob("*.png"))
            self.samples = [(str(file), LABELS.index(file.parent.name)) for file in files]

    monkeypatch.setattr(torchvision.datasets, "ImageNet", ImageNet)
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    folder.mkdir()
    (folder / "ILSVRC2012_devkit_t12.tar.gz").touch()
    train, val, _, labels = labeled_images.load_labeled_images("imagenet", 0.2)
    assert labels == ("crane (n1)", "crane (n2)", "tench, Tinca tinca")
    assert len(train) == len(val) == 21
    assert held == [("train", False), ("val", False)]  # not while the files are only listed
    for name in ("train/n3.tar", "val/ILSVRC2012_val_00000001.JPEG"):
        (folder / name).touch()
        with pytest.raises(
            Error, match=rf"was not unpacked completely \({Path(name).name} is left\); delete the folder"
        ):
            labeled_images.load_labeled_images("imagenet", 0.2)
        (folder / name).unlink()


def test_imagenet_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(Error, match=r"nowhere/imagenet.*ILSVRC2012_img_train\.tar.*image-net\.org.*FUKAMI_DATA"):
        labeled_images.load_labeled_images("imagenet", 0.2)
    (tmp_path / "nowhere" / "imagenet").mkdir(parents=True)
    (tmp_path / "nowhere" / "imagenet" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"cut")
    with pytest.raises(Error, match="imagenet does not contain the complete ImageNet"):
        labeled_images.load_labeled_images("imagenet", 0.2)


def test_streamed_digits_are_converted_before_they_are_cropped(tmp_path):
    """As in memory: the random numbers differ, and the size of the digit and its light color do not."""
    for label in "01":
        for index in range(4):
            (tmp_path / label).mkdir(exist_ok=True)
            image = Image.new("L", (60, 80), 200)
            image.paste(20, (20 + index, 20, 30 + index, 60))  # dark on light
            image.save(tmp_path / label / f"{index}.png")
    sums = {}
    for limit in (0.0, 4.0):
        recipe = DeepConvNet(
            data=str(tmp_path), augment=("crop=0.9",), memory_limit=limit, batch_size=4, val_fraction=0
        )
        images, _ = next(iter(recipe.load_data().train))
        assert isinstance(images, torch.Tensor)
        sums[limit] = images.float().mean((1, 2, 3))
    assert recipe.convention != "image"
    torch.testing.assert_close(sums[0.0].mean(), sums[4.0].mean(), rtol=0.2, atol=0)


@pytest.mark.parametrize("aspect", [0.4, 1.0, 2.5])
def test_the_crop_of_one_image_equals_that_of_the_batch(aspect):
    """Compare the fast formula for one image with the batch version."""
    torch.manual_seed(0)
    random_values = torch.rand(50, 4)
    crops = torch.stack(augment.compute_crops(random_values, 0.1, aspect), 1)
    for row, expected in zip(random_values.tolist(), crops.tolist(), strict=True):
        assert streaming.compute_crop(row, 0.1, aspect) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_a_signal_to_the_process_group_saves_a_checkpoint(root, tmp_path):
    """Ctrl-C in a terminal and torchrun send the signal to the workers as well."""
    args = ["train", "deep-convnet", "--data", str(root), "--size", "16", "--channels", "3", "--epochs", "2000"]
    args += ["--batch-size", "5", "--memory-limit", "0", "--hidden", "8", "--convention", "image", "--device", "cpu"]
    command = [sys.executable, "-m", "fukami", *args, "--out", str(tmp_path / "run"), "--augment"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=build_thread_environment(1)
    )
    wait_until(lambda: len(read_log_lines(tmp_path / "run")) > 8 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "resume with" in err
    assert "Traceback" not in err
    assert "DataLoader" not in err
