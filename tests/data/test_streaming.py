"""Images streamed from files are those that would lie in memory, and data sets by name and by table."""

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
from PIL import Image
from safetensors.torch import load_file

import fukami as package
from check_task import lines, same, threads, wait_until
from fukami import Error, UsageError
from fukami.classification.deep_convnet import DeepConvNet
from fukami.data import augment, labelled_images, streaming
from fukami.data.loader import InMemoryLoader
from fukami.data.streaming import FileStreamingLoader, ImageDecoder
from fukami.engine.state_file import load_state
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform
from fukami.timing import PhaseTimer

CPU = {"device": "cpu", "precision": "float32"}
LABELS = ("dark", "light", "red")
PREPARE = SquareTransform(channels=3, size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven noisy images of each of three classes, of several sizes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label, low, channels in (("dark", 0, "RGB"), ("light", 120, "L"), ("red", 60, "RGB")):
        (root / label).mkdir()
        for number in range(7):
            shape = (24 + number, 40 - number, 3) if channels == "RGB" else (32, 20)
            pixels = generator.integers(low, low + 130, shape, dtype=np.uint8)
            Image.fromarray(pixels, channels).save(root / label / f"{number}.png")
    return root


@pytest.fixture
def source(root):
    return labelled_images.load_labelled_images(str(root), 0.0)[0]


def streamed(source, prepare=PREPARE, **options):
    return FileStreamingLoader(source.items, torch.from_numpy(source.targets), LABELS, prepare, **options)


def resident(source, prepare=PREPARE, **options):
    found = source.decode(prepare)
    return InMemoryLoader(found.images, found.targets, LABELS, names=found.names, **options)


# ---- as from memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3},
        {"seed": None},
        {"seed": 3, "balanced": True},
        {"seed": 3, "augment": augment.parse_augmentation(["flip", "shift=2", "mixup=0.4"], size=16, num_classes=3)},
    ],
    ids=["training", "judging", "balanced", "augmented"],
)
def test_streamed_batches_are_those_from_memory(source, options):
    """In each of two passes; whole or looked at in order in between."""
    one, other = streamed(source, batch_size=5, **options), resident(source, batch_size=5, **options)
    for _ in range(2):
        assert same(one, other) == len(one) == (4 if options["seed"] is not None else 5)
    assert same(one.iterate_in_order(), other.iterate_in_order()) == 1
    assert same(one, other) == len(one)
    assert [one.describe_batch(5), one.names] == [other.describe_batch(5), other.names] if options["seed"] else True


def test_ordered_yields_everything_once_and_disturbs_nothing(source, monkeypatch):
    monkeypatch.setattr(streaming, "SEQUENTIAL_BATCH_SIZE", 8)
    loader, other = (streamed(source, batch_size=5, seed=1, min_area=0.3) for _ in range(2))
    batches, undisturbed = iter(loader), iter(other)
    for number in range(4):
        assert same([next(batches)], [next(undisturbed)])
        if number == 1:
            state = torch.get_rng_state()
            found = list(loader.iterate_in_order())
            assert torch.equal(torch.get_rng_state(), state)
    assert [len(targets) for _, targets in found] == [8, 8, 5]
    assert torch.equal(torch.cat([targets for _, targets in found]), torch.from_numpy(source.targets))
    assert torch.equal(torch.cat([images for images, _ in found]), source.decode(PREPARE).images)


@pytest.mark.parametrize("steps", [0, 2, 4, 6])
def test_a_stream_goes_on_where_it_was(source, steps):
    """Another process takes over, in mid-pass too; what was read ahead is read again."""
    change = augment.parse_augmentation(["flip"], size=16, num_classes=3)

    def take(loader, count):
        found = []
        while len(found) < count:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    break
        return found

    def make():
        return streamed(source, batch_size=5, seed=2, min_area=0.3, augment=change)

    undisturbed = take(make(), 9)
    first, second = make(), make()
    begun = take(first, steps)
    second.load_state_dict(first.state_dict())
    assert same(begun + take(second, 9 - steps), undisturbed) == 9
    if 0 < steps < 4:
        assert same(begun + list(first), undisturbed[:4]) == 4  # and the one that was left goes on itself


def test_two_processes_share_every_batch(source):
    @dataclass
    class Two:
        rank: int
        device = torch.device("cpu")
        world_size = 2
        clock = PhaseTimer(torch.device("cpu"))

    def share(rank, **options):
        loader = streamed(source, batch_size=6, **options)
        loader.setup(Two(rank))
        return list(loader)

    for (images, targets), *shares in zip(
        streamed(source, batch_size=6, seed=4, min_area=0.5),
        share(0, seed=4, min_area=0.5),
        share(1, seed=4, min_area=0.5),
        strict=True,
    ):
        for rank, (part, numbers) in enumerate(shares):
            assert torch.equal(part, images[rank::2])
            assert torch.equal(numbers, targets[rank::2])
    judged = torch.cat([targets for rank in (0, 1) for _, targets in share(rank)])
    assert judged.bincount().tolist() == [7, 7, 7]
    with pytest.raises(UsageError, match="--batch-size"):
        streamed(source, batch_size=5, seed=4).setup(Two(0))


def test_the_share_of_waiting_is_one(source):
    loader = streamed(source, batch_size=5, seed=0)
    for _ in loader:
        assert 0 <= loader.compute_wait_fraction() <= 1
    loader.wait_seconds = math.inf
    assert loader.compute_wait_fraction() == 1
    assert loader.wait_seconds == 0


@pytest.mark.parametrize("batches", [2, 4])
def test_the_processes_end_with_the_loader(source, batches, monkeypatch):
    """Told to and not terminated, though the loader be in a cycle of references, or in the midst of a pass."""
    monkeypatch.setattr(streaming, "count_workers", lambda: 2)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 2.0)  # until one is terminated
    terminated = []

    def terminate(worker, real=BaseProcess.terminate):
        terminated.append(worker)
        real(worker)

    monkeypatch.setattr(BaseProcess, "terminate", terminate)
    loader = streamed(source, batch_size=5, seed=0)
    reading = iter(loader)
    for _ in range(batches):
        next(reading)
    workers = loader.reader._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    loader.itself, loader.reading = loader, reading
    del loader, reading
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    assert not terminated


# ---- broken files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy" / "dark" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "copy" / "red" / "4.png").write_text("")
    return tmp_path / "copy"


@pytest.mark.parametrize("options", [{"seed": 6, "min_area": 0.3}, {"seed": None}], ids=["training", "judging"])
def test_broken_files_are_left_out_and_named_once(root, damaged, caplog, options):
    """What is left has the draws and the targets that it has in the whole set."""
    found, whole = (labelled_images.load_labelled_images(str(path), 0.0)[0] for path in (damaged, root))
    change = augment.parse_augmentation(["flip"], size=16) if options["seed"] is not None else None
    loader, good = (streamed(source, batch_size=7, augment=change, **options) for source in (found, whole))
    order = loader._plan_epoch(0)[0] if options["seed"] is not None else torch.arange(21)
    broken = [found.items.index(damaged / path) for path in ("dark/2.png", "red/4.png")]
    left = 0
    for number, ((images, targets), (others, numbers)) in enumerate(zip(loader, good, strict=True)):
        kept = [i for i, member in enumerate(order[7 * number : 7 * number + 7].tolist()) if member not in broken]
        assert torch.equal(images, others[kept])
        assert torch.equal(targets, numbers[kept])
        left += 7 - len(kept)
    assert left == 2
    list(loader)
    for path, hint in (("dark/2.png", "not an image"), ("red/4.png", "empty")):
        (line,) = [record.getMessage() for record in caplog.records if str(damaged / path) in record.getMessage()]
        assert hint in line
        assert "left out" in line


def test_a_batch_of_broken_files_alone_is_an_error(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(4):
            (tmp_path / label / f"{number}.png").write_text("no image")
    source = labelled_images.load_labelled_images(str(tmp_path), 0.0)[0]
    with pytest.raises(Error, match=r"not one image of a batch can be read; .*\.png is not an image"):
        list(streamed(source, batch_size=4, seed=0))


# ---- crops ----------------------------------------------------------------------------------------------------------


def test_a_crop_is_pils_crop_and_resize(tmp_path, random):
    """A quarter of the area without change of shape: the corners of a square, whole pixels."""
    pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for channels, mode in ((3, "RGB"), (1, "L")):
        decoder = ImageDecoder([tmp_path / "a.png"], SquareTransform(channels=channels, size=8), 0.25)
        for across, down in ((0.0, 0.0), (0.5, 0.25)):
            found = decoder[0, [0.0, 0.5, across, down]]
            box = (20 * across, 20 * down, 20 * across + 20, 20 * down + 20)
            part = Image.fromarray(pixels).convert(mode).crop(tuple(map(int, box)))
            expected = np.asarray(part.resize((8, 8), Image.Resampling.BILINEAR)).reshape(8, 8, channels)
            # a crop's border is a border, while that of a box still sees its neighbours
            assert np.abs(found[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2]).max() <= 1


def test_crops_are_those_of_the_draws(source):
    """Worked out in pixels: area, ratio of the sides, what would not fit is cut, and where it lies."""
    loader = streamed(source, batch_size=21, seed=9, min_area=0.2)
    order, draws = loader._plan_epoch(0)
    images, _ = next(iter(loader))
    for image, member, (size, shape, across, down) in zip(images, order, draws.tolist(), strict=True):
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
def test_crops_at_the_edges_of_chance_fit(source, draw):
    decoder = ImageDecoder(source.items, PREPARE, 0.08)
    for number in range(len(source)):
        for shape in (0.0, 0.3, 1 - 2**-24):
            assert decoder[number, [draw, shape, draw, draw]].shape == (16, 16, 3)


@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_is_decoded_no_larger_than_its_crop_needs(tmp_path, monkeypatch, turned):
    """An eighth of the sides for the whole image, all of it for a small crop; close to the full decode."""
    y, x = np.mgrid[0:384, 0:512]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((60, 90), (45, -70), (80, 50))]
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # to be turned by 90 degrees
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    decoder = ImageDecoder([tmp_path / "a.jpg"], SquareTransform(channels=3, size=32), 0.01)
    sizes = []

    def upright(image, real=image_io.decode_image):
        found = real(image)
        sizes.append(found.size)
        return found

    monkeypatch.setattr("fukami.image.io.decode_image", upright)
    full = image_io.read_image(tmp_path / "a.jpg")
    assert sizes.pop() == full.size == ((384, 512) if turned else (512, 384))
    for size, scale in ((1.0, 8), (0.25, 4), (0.01, 1)):
        draws = [(size - 0.01) / 0.99, 0.5, 0.4, 0.6]
        found = decoder[0, draws]
        assert sizes.pop() == (full.width // scale, full.height // scale)
        wide, high = min(math.sqrt(size * 512 * 384), full.width), min(math.sqrt(size * 512 * 384), full.height)
        left, top = (full.width - wide) * 0.4, (full.height - high) * 0.6
        expected = full.resize((32, 32), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + high))
        assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 3


# ---- all at once ----------------------------------------------------------------------------------------------------


def test_many_files_are_read_by_many_processes_alike(damaged, monkeypatch):
    source = labelled_images.load_labelled_images(str(damaged), 0.0)[0]
    asked = []
    monkeypatch.setattr(streaming, "count_workers", lambda: asked.append(True) or 2)
    alone = list(streaming.decode_files(source.items, PREPARE))
    assert not asked
    monkeypatch.setattr(streaming, "MIN_PARALLEL_FILES", 21)
    monkeypatch.setattr(streaming, "SEQUENTIAL_BATCH_SIZE", 4)
    together = list(streaming.decode_files(source.items, PREPARE))
    assert asked
    assert len(alone) == len(together) == 21
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, Error) == isinstance(other, Error)
        assert str(one) == str(other) if isinstance(one, Error) else np.array_equal(one, other)
    assert sum(isinstance(one, Error) for one in together) == 2


def test_processors_are_those_of_this_process():
    assert 1 <= streaming.count_workers() <= min(16, os.cpu_count())
    if hasattr(os, "sched_getaffinity"):
        assert streaming.count_workers() == min(16, len(os.sched_getaffinity(0)))


# ---- a training -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Interrupted(DeepConvNet):
    stop: int = 0
    """The step before which the training is interrupted; 0: never."""

    def build_task(self, labels):
        task = super().build_task(labels)
        step, seen = task.step, []

        def watched(batch):
            seen.append(1)
            if len(seen) == self.stop:
                raise KeyboardInterrupt
            return step(batch)

        task.step = watched
        return task


def recipe(root, **options):
    given = {"size": 16, "channels": 3, "epochs": 3, "batch_size": 5, "widths": (4,) * 6, "hidden": 8, "dropout": 0.5}
    return Interrupted(**{**given, "data": str(root), "augment": ("flip",), "holdout": 0.3, **options})


def test_a_training_from_files_is_one_from_memory(root, tmp_path, pageless):
    """Dropout and all: reading files takes nothing from the random numbers of the training."""
    results = {}
    for memory in (0.0, 4.0):
        made = recipe(root, memory_limit=memory)
        assert isinstance(made.load_data().train, InMemoryLoader if memory else FileStreamingLoader)
        results[memory] = package.train(made, tmp_path / str(memory), **CPU)
    assert results[0.0] == results[4.0]
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("0.0", "4.0"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    for memory in ("0.0", "4.0"):
        lines = [json.loads(line) for line in (tmp_path / memory / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            assert ("waiting" in line) == (memory == "0.0" and line["phase"] == "train")
            assert 0 <= line.get("waiting", 0) <= 1


def test_a_training_from_files_resumes_bit_exactly(root, tmp_path, pageless, monkeypatch):
    """Cut off in the second pass, with crops, augmentation and dropout."""
    monkeypatch.setattr("fukami.engine.async_checkpoint.CheckpointWriter.is_due", True)
    whole = recipe(root, memory_limit=0.0, augment=("crop=0.3", "flip", "brightness=0.2"))
    package.train(whole, tmp_path / "whole", **CPU)
    with pytest.raises(KeyboardInterrupt):
        package.train(replace(whole, stop=6), tmp_path / "cut", **CPU)
    state = load_state(tmp_path / "cut" / "last.ckpt", torch.device("cpu"))
    assert (state["step"], state["loader"]) == (5, {"turn": 1, "position": 2, "broken": []})
    record = json.loads((tmp_path / "cut" / "recipe.json").read_text())
    record["fields"]["stop"] = 0
    (tmp_path / "cut" / "recipe.json").write_text(json.dumps(record))
    package.train(whole, tmp_path / "cut", **CPU, resume=True)
    one, other = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other


def test_what_is_judged_is_never_cropped(root, source):
    made = recipe(root, memory_limit=0.0, holdout=0.0, augment=("crop=0.3",))
    train = made.load_data().train
    assert train.num_crop_draws == 4
    assert train.augment is None
    judged = made.build_loader(source, LABELS, train=False)
    expected = source.decode(made.build_transform(LABELS))
    (batch,) = judged
    assert torch.equal(batch[0], expected.images)


# ---- data sets by table and by name ---------------------------------------------------------------------------------


def table(root, *lines, name="table.csv", encoding="utf-8"):
    (root / name).write_bytes("\n".join(lines).encode(encoding))
    return str(root / name)


def named(source, labels):
    return [(path.name, labels[target]) for path, target in zip(source.items, source.targets, strict=True)]


def test_a_table_without_parts_is_split(tmp_path):
    lines = [f"deep/{number}.png, {'even' if number % 2 == 0 else 'odd'}" for number in range(20)]
    spec = table(tmp_path, "\ufeffPath, Label", *lines)
    train, test, labels = labelled_images.load_labelled_images(spec, 0.3)
    assert labels == ("even", "odd")
    assert (len(train), len(test)) == (14, 6)
    assert test.targets.tolist().count(0) == 3
    found = dict(named(train, labels) + named(test, labels))
    assert found == {f"{number}.png": "even" if number % 2 == 0 else "odd" for number in range(20)}
    assert train.items[0].parent == tmp_path / "deep"


def test_a_table_with_parts(tmp_path):
    lines = ["x,train,a.png,1", "y,val,b.png,2", "x,,c.png,3", '"y, z",Testing,d.png,4', f"x,train,{tmp_path}/e.png,5"]
    train, test, labels = labelled_images.load_labelled_images(table(tmp_path, "label,split,path,note", *lines), 0.3)
    assert labels == ("x", "y", "y, z")
    assert named(train, labels) == [("a.png", "x"), ("c.png", "x"), ("e.png", "x")]
    assert named(test, labels) == [("b.png", "y"), ("d.png", "y, z")]
    assert train.items[2] == tmp_path / "e.png"


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        (["file,label", "a.png,x"], "columns path and label.*not file, label"),
        ([], "columns path and label.*not nothing"),
        (["path,label"], "names no image"),
        (["path,label", "a.png,x", ",y"], "line 3: expected a path"),
        (["path,label", "a.png,x", "b.png,x", "c.png"], "line 4: expected a path"),
        (["path,label,split", "a.png,x,train", "b.png,x,tset"], "line 3: .*tset"),
    ],
)
def test_a_wrong_table_is_refused_by_line(tmp_path, lines, hint):
    with pytest.raises(Error, match=hint) as caught:
        labelled_images.load_labelled_images(table(tmp_path, *lines), 0.2)
    assert "table.csv" in str(caught.value)


def test_a_table_in_another_code_is_refused(tmp_path):
    spec = table(tmp_path, "path,label", "é.png,x", encoding="latin-1")
    with pytest.raises(Error, match=r"table\.csv is not in UTF-8"):
        labelled_images.load_labelled_images(spec, 0.2)
    train, _, _ = labelled_images.load_labelled_images(table(tmp_path, "path,label", "é.png,x"), 0.2)
    assert train.items[0].name == "é.png"


def test_a_table_is_trained_from(root, tmp_path, fukami):
    files = sorted(root.rglob("*.png"))
    spec = table(tmp_path, "path,label", *(f"{file},{file.parent.name}" for file in files))
    words = [
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
    answer = fukami("train", "deep-convnet", *words, "--out", "run")
    assert answer.status == 0, answer.err
    assert answer.json[0]["count"] == 3
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["labels"] == list(LABELS)


def cifar_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_its_original_form(name, tmp_path, monkeypatch):
    """Five files of training images, or one; rows of red, then green, then blue."""
    import torchvision.datasets.cifar

    images = cifar_images(60)
    rows = images.transpose(0, 3, 1, 2).reshape(60, -1)
    labels = [number % 10 for number in range(60)]
    key, meta = ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    place = tmp_path / ("cifar-10-batches-py" if name == "cifar10" else "cifar-100-python")
    place.mkdir()
    parts = [f"data_batch_{n}" for n in range(1, 6)] if name == "cifar10" else ["train"]
    each = 50 // len(parts)
    for number, part in enumerate(parts):
        at = slice(each * number, each * (number + 1))
        (place / part).write_bytes(pickle.dumps({"data": rows[at], key: labels[at]}))
    test = "test_batch" if name == "cifar10" else "test"
    (place / test).write_bytes(pickle.dumps({"data": rows[50:], key: labels[50:]}))
    names = [f"class {number}" for number in range(10)]
    (place / ("batches.meta" if name == "cifar10" else "meta")).write_bytes(pickle.dumps({meta: names}))
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    with pytest.raises(Error, match=f"{name} was not found in .*damaged"):
        labelled_images.load_labelled_images(name, 0.2)  # torchvision knows the sums of the true files
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *arguments: True)
    train, test, found = labelled_images.load_labelled_images(name, 0.2)
    assert found == tuple(names)
    assert (train.targets.tolist(), test.targets.tolist()) == (labels[:50], labels[50:])
    assert np.array_equal(train.items, images[:50])
    prepared = test.decode(SquareTransform(channels=3, size=32))
    assert torch.equal(prepared.images, torch.from_numpy(images[50:]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_as_files(packed, tmp_path, monkeypatch):
    images = cifar_images(6)
    for number, image in enumerate(images):
        place = tmp_path / "data" / "cifar10" / ("train" if number < 4 else "test") / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    if packed:
        shutil.make_archive(str(tmp_path / "data" / "cifar10"), "zip", tmp_path / "data", "cifar10")
        shutil.rmtree(tmp_path / "data" / "cifar10")
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    train, test, labels = labelled_images.load_labelled_images("cifar10", 0.2)
    assert labels == ("cat", "dog")
    assert train.targets.tolist() == [0, 0, 1, 1]
    found = test.decode(SquareTransform(channels=3, size=32))
    assert torch.equal(found.images, torch.from_numpy(images[4:]).permute(0, 3, 1, 2))


def test_the_shared_cifar_has_its_counts():
    place = Path(os.environ.get("FUKAMI_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (place / "cifar10.zip").exists():
        pytest.skip(f"needs CIFAR-10 as files: no {place}/cifar10.zip; set FUKAMI_DATA to the folder that holds it")
    import zipfile

    with zipfile.ZipFile(place / "cifar10.zip") as archive:
        names = [Path(name).parts for name in archive.namelist() if name.endswith(".jpg")]
    counts = {part: sum(name[-3] == part for name in names) for part in ("train", "test")}
    assert counts == {"train": 50_000, "test": 10_000}
    assert len({name[-2] for name in names}) == 10


def test_imagenet_as_folders(root, tmp_path, monkeypatch):
    for part in ("train", "val"):
        shutil.copytree(root, tmp_path / "imagenet" / part)
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    train, test, labels = labelled_images.load_labelled_images("imagenet", 0.2)
    assert labels == LABELS
    assert (len(train), len(test)) == (21, 21)
    assert {path.parts[-3] for path in test.items} == {"val"}
    shutil.rmtree(tmp_path / "imagenet" / "val")
    assert (
        len(labelled_images.load_labelled_images("imagenet", 0.2)[1]) == 0
    )  # nothing is held out of what is for training


def test_imagenet_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(Error, match=r"nowhere/imagenet.*ILSVRC2012_img_train\.tar.*image-net\.org.*FUKAMI_DATA"):
        labelled_images.load_labelled_images("imagenet", 0.2)
    (tmp_path / "nowhere" / "imagenet").mkdir(parents=True)
    (tmp_path / "nowhere" / "imagenet" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"cut")
    with pytest.raises(Error, match="imagenet holds no complete ImageNet"):
        labelled_images.load_labelled_images("imagenet", 0.2)


@pytest.mark.parametrize("aspect", [0.4, 1.0, 2.5])
def test_a_crop_for_one_image_is_that_of_the_batch(aspect):
    """The quick formula for one against the one for a whole batch on the device."""
    torch.manual_seed(0)
    draws = torch.rand(50, 4)
    whole = torch.stack(augment.compute_crops(draws, 0.1, aspect), 1)
    for row, expected in zip(draws.tolist(), whole.tolist(), strict=True):
        assert streaming.compute_crop(row, 0.1, aspect) == pytest.approx(expected, abs=1e-5)


def test_a_signal_to_the_whole_group_still_saves(root, tmp_path):
    """Ctrl-C in a terminal, and torchrun, signal the processes that decode as well."""
    words = ["train", "deep-convnet", "--data", str(root), "--size", "16", "--channels", "3", "--epochs", "2000"]
    words += ["--batch-size", "5", "--memory-limit", "0", "--hidden", "8", "--convention", "image", "--device", "cpu"]
    command = [sys.executable, "-m", "fukami", *words, "--out", str(tmp_path / "run"), "--augment"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=threads(1))
    wait_until(lambda: len(lines(tmp_path / "run")) > 8 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "go on with" in err
    assert "Traceback" not in err
    assert "DataLoader" not in err
