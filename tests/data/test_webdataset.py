"""Shards: content, reading order, HTTP, resumption, corrupted and external shards."""

import contextlib
import gc
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from check_task import count_equal_batches
from fukami import Error, UsageError, train
from fukami.classification.deep_convnet import DeepConvNet
from fukami.data import augment, labeled_images, remote, shards, tar, webdataset, webdataset_writer
from fukami.data.loader import InMemoryLoader
from fukami.data.streaming import FileStreamingLoader, ImageDecoder
from fukami.data.webdataset import ShardStreamingLoader
from fukami.engine.checkpoint import decode_checkpoint
from fukami.image.transform import SquareTransform

LABELS = ("dark", "light", "red")
PREPARE = SquareTransform(channels=3, size=16)
COUNT = 63


@dataclass
class Process:
    """Runtime stub with the attributes that a loader uses."""

    rank: int
    world_size: int
    device = torch.device("cpu")

    def clock(self, part):
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Create 21 noise images for each of three classes, in several sizes and formats."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label, low, suffix in (("dark", 0, ".png"), ("light", 120, ".jpg"), ("red", 60, ".JPEG")):
        (root / label).mkdir()
        for index in range(COUNT // 3):
            pixels = generator.integers(low, low + 130, (24 + index, 40 - index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{label[0]}.{index}{suffix}")
    return root


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """Write them as training shards of eight images; the last has seven."""
    out = tmp_path_factory.mktemp("shards") / "out"
    counts = webdataset_writer.write_shards(str(root), out, val_fraction=0.0, samples_per_shard=8)
    assert counts == {"out": str(out), "train": COUNT, "val": 0, "test": 0, "shards": 8, "skipped": 0}
    return out


@pytest.fixture
def copied(folder, tmp_path):
    """Copy the shards, to be corrupted."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def _collect_garbage():
    """Collect garbage in cycles, such as a loader in a traceback, before the next test starts."""
    yield
    gc.collect()


def build_loader(spec, *, rank=0, world=1, **options):
    source, _, _, labels = labeled_images.load_labeled_images(str(spec), 0.0)
    loader = ShardStreamingLoader(source.items, torch.from_numpy(source.targets), labels, PREPARE, **options)
    loader.setup(Process(rank, world))
    return loader


def list_originals(folder, root):
    """List the original file of each sample in shard order, as tarfile lists them."""
    files = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as shard:
            for name in shard.getnames():
                if not name.endswith(".cls"):
                    label, base = name.split("/")
                    files.append(root / label / re.sub(r"^(\w)_", r"\1.", base))
    return files


def test_images_without_a_known_suffix_are_written_with_that_of_their_format(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "1.image", "PNG")
    Image.new("RGB", (20, 20)).save(tmp_path / "2", "JPEG")
    (tmp_path / "labels.csv").write_text("path,label\n1.image,cat\n2,dog\n")
    webdataset_writer.write_shards(str(tmp_path / "labels.csv"), tmp_path / "out", val_fraction=0.0)
    source, _, _, labels = labeled_images.load_labeled_images(str(tmp_path / "out"), 0.0)
    assert labels == ("cat", "dog")
    assert source.decode(PREPARE).images.shape == (2, 3, 16, 16)


def test_samples_of_an_index_do_not_overlap(copied):
    """Otherwise a small file could have any number of bytes in samples."""
    index = json.loads((copied / "index.json").read_text())
    shard = next(shard for shard in index["train"] if len(shard["starts"]) > 1)
    shard["starts"][1] = shard["starts"][0]
    with pytest.raises(ValueError, match="has samples that overlap"):
        shards.check_index(index)


def test_batches_of_large_images_are_small(copied):
    """The bytes of many batches are in memory at a time."""
    samples = labeled_images.load_labeled_images(str(copied), 0.0)[0].items
    assert webdataset.compute_sequential_batch_size(samples) == 256
    samples.lengths[:] = 5_000_000
    assert webdataset.compute_sequential_batch_size(samples) == 1


@pytest.mark.parametrize(("length", "factor"), [(110_000, 4), (1_000_000, 1)])
def test_large_images_are_prefetched_less(copied, monkeypatch, length, factor):
    """Batches of 256 by 16 workers, of two processes that share the batch size."""
    monkeypatch.setattr(webdataset, "count_workers", lambda: 16)
    monkeypatch.setenv("WORLD_SIZE", "2")
    source, _, _, labels = labeled_images.load_labeled_images(str(copied), 0.0)
    source.items.lengths[:] = length
    loader = ShardStreamingLoader(source.items, torch.from_numpy(source.targets), labels, PREPARE, batch_size=512)
    assert loader.prefetch_factor == factor


def test_shards_without_a_training_image(copied, tmp_path):
    with pytest.raises(Error, match="there is no training image"):
        train("resnet20", tmp_path / "run", data=str(copied), val_fraction=1.0, size=16, device="cpu")


def test_a_member_of_any_size_that_is_no_file_is_a_problem(tmp_path):
    """Numbers of more than 11 digits are in base 256."""
    info = tarfile.TarInfo("folder")
    info.type, info.size = tarfile.DIRTYPE, 1 << 80
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    (problem,) = tar.scan_shard(str(tmp_path / "a.tar")).problems
    assert "the file ends inside a member" in problem
    members = io.BytesIO()
    with tarfile.open(fileobj=members, mode="w") as archive:
        for name in ("1.jpg", "1.cls"):
            part = tarfile.TarInfo(name)
            part.size = 1
            archive.addfile(part, io.BytesIO(b"0"))
    (tmp_path / "b.tar").write_bytes(members.getvalue()[:2048] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    contents = tar.scan_shard(str(tmp_path / "b.tar"))
    assert (contents.classes, len(contents.problems)) == (["0"], 1)  # the sample before it is complete


def test_a_sample_above_the_limit_is_a_problem(copied, monkeypatch):
    """The longest sample is not in the index, which would be invalid."""
    index = json.loads((copied / "index.json").read_text())
    lengths = [length for shard in index["train"] for length in shard["lengths"]]
    (copied / "index.json").unlink()
    monkeypatch.setattr(tar, "MAX_SAMPLE_BYTES", max(lengths) - 1)
    index = shards.load_index(str(copied))[1]
    shards.check_index(index)
    problems = [problem for shard in index["train"] for problem in shard.get("problems", ())]
    assert len(problems) == lengths.count(max(lengths))
    assert all(f"has {max(lengths):,} bytes, more than the limit of {max(lengths) - 1:,}" in text for text in problems)
    monkeypatch.setattr(webdataset_writer, "MAX_IMAGE_BYTES", 1100)
    counts = webdataset_writer.write_shards(str(copied), copied / "out", val_fraction=0.0)
    assert counts["train"] + counts["skipped"] == COUNT - len(problems)
    assert counts["skipped"] > 0


@pytest.mark.parametrize(
    ("spec", "separator", "base"),
    [
        ("/train.tar", "/", "/"),
        ("/", "/", "/"),
        ("train.tar", "/", ""),
        ("a/b/{train,val}.tar", "/", "a/b"),
        ("C:\\a\\train.tar", "\\", "C:/a"),
        ("https://host/a/train.tar", "\\", "https://host/a"),
    ],
)
def test_base_location(spec, separator, base, monkeypatch):
    monkeypatch.setattr(shards.os, "sep", separator)
    assert shards.get_base_location(spec) == base


# ---- writing --------------------------------------------------------------------------------------------------------


def test_shards_contain_the_original_files_in_mixed_order(folder, root):
    """tarfile finds each file once, byte for byte, with its class index; the index of the shards agrees."""
    index = json.loads((folder / "index.json").read_text())
    files, num_mixed = [], 0
    for shard in index["train"]:
        path = folder / shard["name"]
        assert path.stat().st_size == shard["bytes"]
        with tarfile.open(path) as tar_file:
            members = tar_file.getmembers()
            keys = [member.name.partition(".")[0] for member in members]
            assert keys[::2] == keys[1::2]
            assert shard["starts"] == [member.offset for member in members[::2]]
            assert all((member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "") for member in members)
            for image, label, target in zip(members[::2], members[1::2], shard["classes"], strict=True):
                assert int(tar_file.extractfile(label).read()) == target
                (original,) = find_originals(root, image.name)
                assert tar_file.extractfile(image).read() == original.read_bytes()
                assert index["labels"][target] == original.parent.name
                files.append(original)
        num_mixed += len(set(shard["classes"])) > 1
    assert sorted(files) == sorted(root.rglob("*.*"))
    assert num_mixed == len(index["train"])


def find_originals(root, name):
    label, base = name.split("/")
    return [file for file in (root / label).iterdir() if file.stem.replace(".", "_") + file.suffix == base]


def test_equal_datasets_give_equal_bytes(folder, root, tmp_path):
    webdataset_writer.write_shards(str(root), tmp_path / "again", val_fraction=0.0, samples_per_shard=8)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    webdataset_writer.write_shards(str(root), tmp_path / "other", val_fraction=0.0, samples_per_shard=8, seed=1)
    assert (tmp_path / "other" / "train-000000.tar").read_bytes() != (folder / "train-000000.tar").read_bytes()


def test_splits_shard_sizes_and_arrays(root, tmp_path):
    """The splits equal those of training; by default a split has eight shards; arrays become PNG files."""
    counts = webdataset_writer.write_shards("digits", tmp_path / "digits")
    assert (counts["train"], counts["val"], counts["test"], counts["shards"]) == (1438, 359, 0, 16)
    train, val, _, labels = labeled_images.load_labeled_images(str(tmp_path / "digits"), 0.2)
    for split, expected in zip((train, val), labeled_images.load_labeled_images("digits", 0.2)[:2], strict=True):
        assert np.array_equal(np.bincount(split.targets), np.bincount(expected.targets))
        images = {np.asarray(Image.open(io.BytesIO(split.items[i]))).tobytes() for i in range(len(split))}
        assert images == {image.tobytes() for image in expected.items}
    assert labels == labeled_images.DIGIT_LABELS
    small_counts = webdataset_writer.write_shards("digits", tmp_path / "small", shard_megabytes=0.01)
    assert small_counts["shards"] > 16
    new_counts = webdataset_writer.write_shards(
        str(tmp_path / "digits"), tmp_path / "resharded", samples_per_shard=1000
    )
    assert (new_counts["train"], new_counts["val"], new_counts["shards"]) == (1438, 359, 3)


def test_unreadable_files_are_skipped_and_files_of_equal_name_kept(root, tmp_path, caplog):
    for name, source in (
        ("a/x.png", "dark/d.0.png"),
        ("a/deeper/x.png", "dark/d.1.png"),
        ("a b/é.png", "dark/d.2.png"),
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes((root / source).read_bytes())
    (tmp_path / "in" / "a" / "no.png").write_text("no image")
    counts = webdataset_writer.write_shards(
        str(tmp_path / "in"), tmp_path / "out", val_fraction=0.0, samples_per_shard=9
    )
    assert (counts["train"], counts["skipped"], counts["shards"]) == (3, 1, 1)
    assert "no.png is not an image" in caplog.text
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as shard:
        assert sorted(shard.getnames())[::2] == ["a/x-again2.cls", "a/x.cls", "a_b/é.cls"]


def test_failed_writing_leaves_no_files(root, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        webdataset_writer.write_shards(str(root), tmp_path / "used")
    with pytest.raises(UsageError, match="at least one sample"):
        webdataset_writer.write_shards(str(root), tmp_path / "new", samples_per_shard=0)

    def interrupt(index, out):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "save_index", interrupt)
    with pytest.raises(KeyboardInterrupt):
        webdataset_writer.write_shards(str(root), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


# ---- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "buffer"), [(1, 1), (5, 1), (5, 9), (40, 7), (1000, 64)])
def test_buffer_order_equals_a_simulated_buffer(count, buffer):
    """Simulate the buffer slot by slot, with the same random slots."""
    order = webdataset.compute_buffer_order(count, buffer, torch.Generator().manual_seed(3)).tolist()
    length = min(buffer, count)
    slots = torch.randint(length, (count - length,), generator=torch.Generator().manual_seed(3)).tolist()
    content, departed = list(range(length)), []
    for index, slot in enumerate(slots):
        departed.append(content[slot])
        content[slot] = length + index
    assert order[: count - length] == departed
    assert sorted(order[count - length :]) == sorted(content)
    assert sorted(order) == list(range(count))


def test_an_epoch_has_each_sample_once_in_its_own_order(folder):
    loader = build_loader(folder, batch_size=6, seed=4)
    assert loader.num_readers == 6  # the largest divisor of 6 that does not exceed 8 shards
    assert len(loader) == 10
    orders = [loader._plan_epoch(epoch)[0].tolist() for epoch in range(3)]
    for order in orders:
        assert len(set(order)) == len(order) == 60
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == build_loader(folder, batch_size=6, seed=4)._plan_epoch(0)[0].tolist()
    assert orders[0] != build_loader(folder, batch_size=6, seed=5)._plan_epoch(0)[0].tolist()
    assert orders[1] != build_loader(folder, batch_size=6, seed=5)._plan_epoch(0)[0].tolist()


def test_a_lane_reads_few_shards_sequentially(folder, monkeypatch):
    """A buffer of one shuffles only the shards: row i of all batches is a contiguous range."""
    monkeypatch.setattr(webdataset, "SHUFFLE_BUFFER_BYTES", 0)
    loader = build_loader(folder, batch_size=4, seed=0)
    order = loader._plan_epoch(0)[0].reshape(-1, 4)
    assert len(order) == 15
    for lane in order.T.tolist():
        shard_indices = loader.samples.shard_indices[lane].tolist()
        assert 2 <= len(set(shard_indices)) <= 4
        for one, other in pairwise(lane):
            assert other == one + 1 or loader.samples.shard_indices[one] != loader.samples.shard_indices[other]


@pytest.mark.parametrize("min_area", [None, 0.3])
def test_pixels_equal_those_of_the_files(folder, root, min_area):
    """Each image of two epochs, cropped or not, equals the output of ImageDecoder for its file."""
    loader = build_loader(folder, batch_size=6, seed=1, min_area=min_area)
    files = list_originals(folder, root)
    decoder = ImageDecoder(files, PREPARE, min_area or 1.0)
    for epoch in range(2):
        order, random_values = loader._plan_epoch(epoch)
        for index, (images, targets) in enumerate(loader):
            for row, (image, target) in enumerate(zip(images, targets, strict=True)):
                position = 6 * index + row
                assert files[order[position]].parent.name == LABELS[target]
                expected = decoder[int(order[position]), random_values[position, : loader.num_crop_values].tolist()]
                assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert index == 9


def test_evaluation_and_iteration_in_order_yield_each_image_once(folder, root):
    files = list_originals(folder, root)
    expected = torch.stack([torch.from_numpy(PREPARE.read_and_transform(file)) for file in files])
    evaluation = build_loader(folder, batch_size=10)
    images, targets = (torch.cat(column) for column in zip(*evaluation, strict=True))
    assert torch.equal(images, expected)
    assert [LABELS[target] for target in targets] == [file.parent.name for file in files]
    training = build_loader(folder, batch_size=6, seed=2, min_area=0.3)
    uninterrupted = list(build_loader(folder, batch_size=6, seed=2, min_area=0.3))
    iterator = iter(training)
    first = next(iterator)
    assert torch.equal(torch.cat([images for images, _ in training.iterate_in_order()]), expected)
    assert count_equal_batches([first, *iterator], uninterrupted) == 10


def test_lanes_are_read_forwards(folder, monkeypatch):
    """After resuming, no byte is read twice, and samples already yielded are skipped."""
    ranges = []

    def record(self, start, count, real=remote.DiskStream.read):
        ranges.append((self.file.name, start, start + count))
        return real(self, start, count)

    monkeypatch.setattr(remote.DiskStream, "read", record)
    loader = build_loader(folder, batch_size=4, seed=0)
    loader.load_state_dict({"epoch": 1, "position": 6, "unreadable": []})
    ranges.clear()
    (*batches,) = loader.iterate_requests()
    assert len(batches) == 9
    assert len(ranges) == len(set(ranges)) == 36


# ---- several processes and resumption -------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
def test_processes_split_the_batches_of_one_process(folder, world):
    augmentation = augment.parse_augmentation(["flip", "shift=2"], size=16, num_classes=3)
    options = {"batch_size": 8, "seed": 4, "min_area": 0.5, "augmentation": augmentation}
    batches = list(build_loader(folder, **options))
    assert len(batches) == 7
    loaders = [build_loader(folder, rank=rank, world=world, **options) for rank in range(world)]
    for rank, loader in enumerate(loaders):
        expected = [(images[rank::world], targets[rank::world]) for images, targets in batches]
        assert count_equal_batches(loader, expected) == 7
    evaluation = [build_loader(folder, rank=rank, world=world, batch_size=10) for rank in range(world)]
    all_images = torch.cat([images for loader in evaluation for images, _ in loader])
    assert torch.equal(all_images, torch.cat([images for images, _ in build_loader(folder, batch_size=10)]))


def test_a_number_of_processes_that_does_not_divide_the_lanes_is_rejected(folder):
    with pytest.raises(UsageError, match="write more shards, or change --batch-size"):
        build_loader(folder, world=4, batch_size=12, seed=0)
    with pytest.raises(UsageError, match="cannot share a batch of 6 evenly"):
        build_loader(folder, world=4, batch_size=6, seed=0)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_position_resumes(folder, world):
    """States of one process are resumed by one or two processes, in either of two epochs."""
    options = {"batch_size": 8, "seed": 6, "min_area": 0.4}
    loader = build_loader(folder, **options)
    batches, states = [], []
    for _ in range(2):
        states.append(loader.state_dict())
        for batch in loader:
            batches.append(batch)
            states.append(loader.state_dict())
    assert len(batches) == 14
    states = [state for index, state in enumerate(states) if index not in (7, 8)] + [states[7], states[8]]
    for state in states:
        num_finished = 7 * state["epoch"] + state["position"]
        for rank in range(world):
            resumed = build_loader(folder, rank=rank, world=world, **options)
            resumed.load_state_dict(json.loads(json.dumps(state)))
            remaining = list(resumed)
            expected = batches[num_finished : 7 * (state["epoch"] + 1)]
            assert count_equal_batches(remaining, [(p[rank::world], t[rank::world]) for p, t in expected]) == len(
                expected
            )


def test_no_worker_or_thread_is_left_running(folder):
    """This holds after a complete epoch, after an interrupted one, and after deletion of the loader."""
    loader = build_loader(folder, batch_size=8, seed=0)
    list(loader)
    iterator = iter(loader)
    next(iterator)
    workers = loader.reader._iterator._workers
    del iterator, loader
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    deadline = time.monotonic() + 10
    while any(thread.name == "shards" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "shards" for thread in threading.enumerate())


def test_a_program_that_fails_in_mid_epoch_exits(folder):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from data.test_webdataset import build_loader
for index, batch in enumerate(build_loader({str(folder)!r}, batch_size=2, seed=0)):
    if index == 3:
        raise RuntimeError("stop")
"""
    completed = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert completed.returncode == 1
    assert completed.stderr.rstrip().endswith("RuntimeError: stop")
    assert "ResourceWarning" not in completed.stderr


# ---- over HTTP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 100])
def test_a_server_that_does_not_tell_the_size_of_a_range(start):
    """``Content-Range: bytes 100-299/*`` has the first byte of the range (RFC 9110, section 14.4)."""
    content = bytes(range(256)) * 2

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/*")
            self.end_headers()
            self.wfile.write(content[first:])

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stream = remote.open_stream(f"http://127.0.0.1:{server.server_port}/a.tar")
        assert stream.read(start, 200) == content[start : start + 200]
        stream.close()
        server.shutdown()


@contextlib.contextmanager
def serve(*arguments, log=subprocess.DEVNULL):
    """Run a local server, and yield its URL."""
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, arguments)], stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        port = re.search(r"port (\d+)", process.stdout.readline())[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


RANGE = Path(__file__).parents[1].joinpath("range_server.py")


@pytest.mark.parametrize("kind", ["plain", "bare", "store", "unreadable"])
def test_http_gives_the_same_batches_as_a_disk(folder, kind, monkeypatch):
    """Servers without Range, with Range, and with interrupted and refused connections."""
    monkeypatch.setattr(remote, "RETRY_DELAY", 0.001)
    arguments = {
        "plain": ("-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder),
        "bare": (RANGE, folder, "bare"),
        "store": (RANGE, folder, 0),
        "unreadable": (RANGE, folder, 25),
    }
    local = build_loader(folder, batch_size=8, seed=3, min_area=0.4)
    with serve(*arguments[kind]) as url:
        loader = build_loader(url, batch_size=8, seed=3, min_area=0.4)
        assert count_equal_batches(loader, local) == 7
        assert count_equal_batches(loader.iterate_in_order(), local.iterate_in_order()) == 1
        loader.load_state_dict({"epoch": 1, "position": 4, "unreadable": []})
        assert count_equal_batches(loader, list(local)[4:]) == 3


def test_no_byte_is_requested_twice(folder, tmp_path):
    """Each lane sends one request per shard, from the first byte that it needs."""
    with (tmp_path / "log").open("w") as log, serve(RANGE, folder, 0, log=log) as url:
        loader = build_loader(url, batch_size=4, seed=0)
        list(loader)
    requests = re.findall(r"bytes=(\d+)- .*GET /(train-\d+\.tar)", (tmp_path / "log").read_text())
    assert len(requests) == len(set(requests)) <= 8 + 4 - 1
    assert {shard for _, shard in requests} == {file.name for file in folder.glob("*.tar")}


def test_lanes_are_opened_in_parallel(folder, monkeypatch, tmp_path):
    """The server responds to the first eight requests only after all of them have arrived."""
    # the first sample of a lane is then the first one that it reads
    monkeypatch.setattr(webdataset, "SHUFFLE_BUFFER_BYTES", 0)
    with (tmp_path / "log").open("w") as log, serve(RANGE, folder, 0, 8, log=log) as url:
        loader = build_loader(url, batch_size=8, seed=0)
        requests = loader.iterate_requests()
        assert len(next(requests)) == loader.num_readers == 8
        assert len(list(requests)) == 6  # before the server stops
    assert "timeout: a request waited" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("location", ["ftp://127.0.0.1:9/x", "file:///etc/passwd"])
def test_redirects_lead_only_to_http(location, monkeypatch):
    class RedirectHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", location)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(remote, "RETRY_DELAY", 0.001)
    with http.server.HTTPServer(("127.0.0.1", 0), RedirectHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Error, match=r"unknown url type: ftp|302"):
            remote.open_stream(f"http://127.0.0.1:{server.server_port}/x").read(0, 9)
        server.shutdown()


def test_an_unreachable_server_is_an_error_that_names_the_url(folder, monkeypatch, caplog):
    monkeypatch.setattr(remote, "RETRY_DELAY", 0.001)
    with serve(RANGE, folder, 0) as url:
        loader = build_loader(url, batch_size=4, seed=0)
        with pytest.raises(Error, match=r"nothing/index\.json cannot be read .*404.*by a pattern"):
            shards.load_shards(f"{url}/nothing/")
        with pytest.raises(Error, match=r"train-8\.tar cannot be read .*404"):
            shards.load_shards(f"{url}/train-{{8..9}}.tar")
    with pytest.raises(Error, match=rf"{url}/train-\d+\.tar cannot be read"):
        list(loader)
    assert re.search(rf"{url}/train-\d+\.tar: .*refused.*; retrying \(attempt 3 of 6\)", caplog.text)


# ---- corrupted shards ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_table_that_names_a_pipe(root, tmp_path, caplog):
    """Only regular files are opened; reading the pipe would wait."""
    os.mkfifo(tmp_path / "pipe")
    images = sorted(root.rglob("*.png"))[:3]
    rows = "".join(f"{path},a\n" for path in [*images, tmp_path / "pipe"])
    (tmp_path / "data.csv").write_text(f"path,label\n{rows}")
    counts = webdataset_writer.write_shards(str(tmp_path / "data.csv"), tmp_path / "shards", val_fraction=0.0)
    assert (counts["train"], counts["skipped"]) == (3, 1)
    assert "pipe is not a regular file" in caplog.text


def test_a_truncated_shard_and_an_unreadable_image_are_skipped(copied, folder, caplog):
    """The other images are unchanged; unreadable ones are reported once, counted, and stored in the state."""
    index = json.loads((copied / "index.json").read_text())
    truncated, corrupted = (copied / index["train"][i]["name"] for i in (2, 5))
    last_start = index["train"][2]["starts"][6]
    truncated.write_bytes(truncated.read_bytes()[: last_start + 600])  # inside an image; one more sample follows
    content = bytearray(corrupted.read_bytes())
    start = index["train"][5]["starts"][3]
    content[start + 512 : start + 700] = bytes(188)
    corrupted.write_bytes(content)
    with tarfile.open(corrupted) as shard:
        name = shard.getnames()[6]
    loader = build_loader(copied, batch_size=7, seed=0)
    complete = build_loader(folder, batch_size=7, seed=0)
    lost = {2 * 8 + 6, 2 * 8 + 7, 5 * 8 + 3}
    order = complete._plan_epoch(0)[0].reshape(-1, 7)
    for indices, (images, targets), (all_images, all_targets) in zip(order.tolist(), loader, complete, strict=True):
        kept = [row for row, index in enumerate(indices) if index not in lost]
        kept += kept[: 7 - len(kept)]  # other images take the places
        assert torch.equal(images, all_images[kept])
        assert torch.equal(targets, all_targets[kept])
    list(loader)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len({*order.flatten().tolist()} & lost) + len(lost - {*order.flatten().tolist()}) == 3
    for hint in (f"{corrupted.name}/{name} is", f"{truncated.name}/", f"{truncated.name}, sample 8, is missing"):
        assert any(hint in line for line in messages), (hint, messages)
    state = loader.state_dict()
    assert sorted(f"{error}; it is skipped" for error in state["unreadable"]) == sorted(messages)
    strict = build_loader(copied, batch_size=7, seed=0, max_unreadable=2)
    with pytest.raises(Error, match=r"3 images are unreadable, and --max-unreadable allows 2.*\n  train-"):
        list(chain(strict, strict))
    resumed = build_loader(copied, batch_size=7, seed=0, max_unreadable=3)
    resumed.load_state_dict(state)
    caplog.clear()
    list(resumed)
    assert not caplog.records


def test_evaluation_skips_a_missing_range_of_images(copied, folder, monkeypatch):
    """An empty shard does not change the batches of the other shards."""
    (copied / "train-000003.tar").write_bytes(b"")
    batches, complete = (list(build_loader(spec, batch_size=4)) for spec in (copied, folder))
    assert count_equal_batches(batches, [*complete[:6], *complete[8:]]) == 14
    monkeypatch.setattr(webdataset, "SEQUENTIAL_BATCH_SIZE", 4)
    batches, complete = (list(build_loader(spec, batch_size=4).iterate_in_order()) for spec in (copied, folder))
    assert count_equal_batches(batches, [*complete[:6], *complete[8:]]) == 14
    for path in copied.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(Error, match=r"no image can be read; the first: train-000000\.tar, sample 1, is missing"):
        list(build_loader(copied, batch_size=4))


def test_loading_into_memory_skips_unreadable_images(copied, caplog):
    index = json.loads((copied / "index.json").read_text())
    truncated = copied / index["train"][0]["name"]
    truncated.write_bytes(truncated.read_bytes()[: index["train"][0]["starts"][5]])
    source = labeled_images.load_labeled_images(str(copied), 0.0)[0]
    decoded = source.decode(PREPARE)
    assert len(decoded.images) == len(decoded.targets) == len(decoded.names) == COUNT - 3
    assert "3 of 63 images are skipped" in caplog.text
    with pytest.raises(Error, match="3 images are unreadable, and --max-unreadable allows 2"):
        source.decode(PREPARE, 2)


def test_file_streaming_respects_max_unreadable(root, tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for index in range(6):
            content = b"" if index < 2 else (root / "dark" / "d.0.png").read_bytes()
            (tmp_path / label / f"{index}.png").write_bytes(content)
    source = labeled_images.load_labeled_images(str(tmp_path), 0.0)[0]

    def stream(max_unreadable):
        return FileStreamingLoader(
            source.items,
            torch.from_numpy(source.targets),
            ("a", "b"),
            PREPARE,
            batch_size=12,
            seed=0,
            max_unreadable=max_unreadable,
        )

    loader = stream(4)
    assert [len(targets) for _, targets in loader] == [12]  # four readable images are used twice
    assert len(loader.state_dict()["unreadable"]) == 4
    with pytest.raises(Error, match="allows 3"):
        list(stream(3))


def test_a_missing_shard_is_an_immediate_error(copied):
    (copied / "train-000003.tar").unlink()
    with pytest.raises(Error, match=r"train-000003\.tar is missing"):
        shards.load_shards(str(copied))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("starts", -512),
        ("starts", 1.0),
        ("starts", 1 << 70),
        ("lengths", -1),
        ("lengths", 1 << 42),
        ("lengths", 1 << 29),
        ("classes", True),
        ("classes", 3),
        ("classes", -1),
        ("classes", "0"),
        ("classes", None),
    ],
)
def test_an_index_with_an_invalid_number_is_rejected(copied, column, value):
    index = json.loads((copied / "index.json").read_text())
    index["train"][1][column][2] = value
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(Error, match=r"index\.json is not an index of shards"):
        shards.load_shards(str(copied))


def test_a_pattern_has_at_most_a_million_names():
    assert len(shards.expand_pattern("{0..999}-{a,b}")) == 2000
    for pattern in ("{0..999999999999}.tar", "{0..999}" * 9, "{a,b}" * 40):
        with pytest.raises(UsageError, match="matches more than 1,000,000 shards"):
            shards.expand_pattern(pattern)


@pytest.mark.parametrize("text", ["", "[]", '{"labels": ["a"], "train": []}', '{"train": [{"name": "x"}], "test": []}'])
def test_a_corrupted_index_is_rejected(copied, text):
    (copied / "index.json").write_text(text)
    with pytest.raises(Error, match=r"index\.json is not an index of shards"):
        shards.load_shards(str(copied))


def test_unsupported_streaming_is_rejected(folder, tmp_path):
    with pytest.raises(UsageError, match="--balance loss"):
        DeepConvNet(data=str(folder), memory_limit=0.0, balance="sampling").load_data()
    (tmp_path / "train-000.tar.gz").touch()
    for spec in (tmp_path, tmp_path / "train-{000..001}.tar.gz"):
        assert shards.is_shard_spec(str(spec))
        with pytest.raises(UsageError, match="is compressed"):
            shards.load_shards(str(spec))
    with pytest.raises(UsageError, match="not a pattern of shards"):
        shards.load_shards(str(tmp_path / "{train,test" / "x.tar"))


# ---- shards of other tools ------------------------------------------------------------------------------------------


def write_tar(path, members, **options):
    """Write a tar file of names and contents with tarfile."""
    with tarfile.open(path, "w", **options) as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5e9
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            shard.addfile(info, io.BytesIO(content))


def png(value):
    packed_image = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(packed_image, "PNG")
    return packed_image.getvalue()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_of_other_tools_are_scanned(tmp_path, caplog, format):
    """Classes by number, JSON and folder; long names; samples without class or image are skipped and reported."""
    long = "x" * (60 if format == tarfile.USTAR_FORMAT else 150)
    numbered = [(f"./{i}.{suffix}", png(i) if suffix == "PNG" else b"%02d\n" % (i % 11)) for i in range(12)
                for suffix in ("cls", "PNG")]  # fmt: skip
    write_tar(tmp_path / "data-train-0.tar", [("sub/", b""), *numbered], format=format)
    members = [
        ("a/1.json", b'{"label": 3}'), ("a/1.png", png(201)), ("a/1.seg.png", b"no image"),
        (f"{long}/7/2.png", png(202)), ("3.png", png(203)), ("7/._4.png", b"of another system"), ("5.cls", b"1"),
    ]  # fmt: skip
    write_tar(tmp_path / "data-val-0.tar", members, format=format)
    splits, labels = shards.load_shards(str(tmp_path))
    assert labels == tuple(map(str, range(11)))
    assert splits.keys() == {"train", "val"}
    train, val = splits["train"], splits["val"]
    assert train[1].tolist() == [i % 11 for i in range(12)]
    assert [read_value(train[0][i]) for i in range(12)] == list(range(12))
    assert [labels[target] for target in val[1]] == ["3", "7"]
    assert [read_value(val[0][i]) for i in range(2)] == [201, 202]
    assert "scanning 2 shards; write one with `fukami shard" in caplog.text
    assert "data-val-0.tar/3 has no class" in caplog.text
    assert "data-val-0.tar/5 has no image" in caplog.text
    assert len(val[0].problems) == 2
    counts = webdataset_writer.write_index(str(tmp_path), tmp_path)
    assert (counts["train"], counts["val"], counts["test"], counts["skipped"]) == (12, 2, 0, 2)
    caplog.clear()
    reloaded, _ = shards.load_shards(f"{tmp_path}/data-{{train,val}}-0.tar")
    assert np.array_equal(reloaded["train"][0].starts, train[0].starts)
    assert "scanning" not in caplog.text


def read_value(content):
    return Image.open(io.BytesIO(content)).getpixel((0, 0))[0]


def test_shards_without_splits_are_split(folder, tmp_path):
    """Both splits read the same shards; an index in another folder works once the shards are copied there."""
    counts = webdataset_writer.write_index(f"{folder}/train-{{000000..000007}}.tar", tmp_path / "index")
    assert (counts["train"], counts["shards"]) == (COUNT, 8)
    with pytest.raises(Error, match=r"index/train-000000\.tar is missing"):
        labeled_images.load_labeled_images(str(tmp_path / "index"), 0.3)
    for file in folder.glob("*.tar"):
        (tmp_path / "index" / file.name).write_bytes(file.read_bytes())
    train, val, _, labels = labeled_images.load_labeled_images(str(tmp_path / "index"), 0.3)
    assert labels == LABELS
    assert (len(train), len(val)) == (45, 18)
    assert np.bincount(val.targets).tolist() == [6, 6, 6]
    names = {(split.items.names[i]) for split in (train, val) for i in range(len(split))}
    assert len(names) == COUNT
    loader = ShardStreamingLoader(train.items, torch.from_numpy(train.targets), labels, PREPARE, batch_size=9, seed=0)
    assert sum(len(targets) for _, targets in loader) == 45


def test_a_truncated_shard_without_index_is_reported(folder, tmp_path, caplog):
    content = (folder / "train-000000.tar").read_bytes()
    with tarfile.open(folder / "train-000000.tar") as shard:
        last = shard.getmembers()[-2]
    for index, (end, count) in enumerate([(last.offset_data + 9, 7), (last.offset + 100, 6), (last.offset, 7)]):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "train-0.tar").write_bytes(content[:end])
        train = shards.load_shards(str(tmp_path / str(index)))[0]["train"]
        assert len(train[0]) == count
        assert len(train[0].problems) == 1
        assert "truncated" in train[0].problems[0]


@pytest.mark.parametrize("name", ["/etc/b.tar", "https://other/b.tar", "../b.tar", "a/../../b.tar", "C:\\b.tar", ""])
@pytest.mark.parametrize("base", ["http://host/a", "here", ""])
def test_an_index_cannot_refer_to_shards_outside_of_its_folder(base, name):
    with pytest.raises(Error, match=r"is not below .*copy the index"):
        shards.locate_shard(base, name)


def test_an_index_refers_to_the_shards_in_its_folder():
    assert shards.locate_shard("here", "b.tar") == "here/b.tar"
    assert shards.locate_shard("http://host/a", "b/c.tar") == "http://host/a/b/c.tar"
    assert shards.locate_shard("", "b.tar") == "b.tar"


@pytest.mark.parametrize("location", ["folder", "web"])
def test_existing_files_outside_of_the_index_folder_are_rejected(copied, location, monkeypatch):
    """The index names an existing file by absolute path, by relative path and by URL."""
    index = json.loads((copied / "index.json").read_text())
    (copied / "below").mkdir()
    for name in (str(copied / "train-000000.tar"), "../train-000000.tar", "http://127.0.0.1:9/train-000000.tar"):
        index["train"][0]["name"] = name
        (copied / "below" / "index.json").write_text(json.dumps(index))
        with contextlib.ExitStack() as stack:
            spec = str(copied / "below")
            if location == "web":
                spec = stack.enter_context(serve(RANGE, copied, 0)) + "/below"
            with pytest.raises(Error, match="is not below"):
                shards.load_shards(spec)


def test_the_index_of_remote_shards_is_stored_in_the_cache_folder(folder, tmp_path, monkeypatch, caplog):
    """The location of the shards, which the user gives, identifies it."""
    with serve(RANGE, folder, 0) as url:
        spec = f"{url}/train-{{000000..000007}}.tar"
        monkeypatch.setattr(shards, "INDEX_FILE", "other.json")  # the server has no such file
        counts = webdataset_writer.write_index(spec)
        assert Path(counts["out"]).is_relative_to(Path(os.environ["XDG_CACHE_HOME"]) / "fukami")
        with pytest.raises(UsageError, match="exists already"):
            webdataset_writer.write_index(spec)
        monkeypatch.setattr(tar, "scan_shard", None)
        assert len(shards.load_shards(spec)[0]["train"][0]) == COUNT
        assert f"is read with the index {counts['out']}" in caplog.text


def test_an_index_is_written_next_to_the_shards(copied):
    (copied / "index.json").unlink()
    assert webdataset_writer.write_index(str(copied))["out"] == str(copied / "index.json")
    assert len(shards.load_shards(str(copied))[0]["train"][0]) == COUNT


def test_a_folder_is_read_as_shards_if_it_has_more_tar_files_than_images(root, folder, copied, tmp_path_factory):
    """A few files of the other kind do not matter; with equal numbers, the folder counts as images."""
    photographs = tmp_path_factory.mktemp("photographs")
    shutil.copytree(root, photographs, dirs_exist_ok=True)
    (photographs / "backup.tar").write_bytes((folder / "train-000000.tar").read_bytes())
    assert not shards.is_shard_spec(str(photographs))
    assert len(labeled_images.load_labeled_images(str(photographs), 0.0)[0]) == COUNT
    (copied / "figures").mkdir()
    Image.new("RGB", (9, 9)).save(copied / "figures" / "preview.png")
    assert shards.is_shard_spec(str(copied))
    assert len(labeled_images.load_labeled_images(str(copied), 0.0)[0]) == COUNT
    for index in range(8):
        Image.new("RGB", (9, 9)).save(copied / f"{index}.png")
    assert not shards.is_shard_spec(str(copied))


def test_patterns_are_expanded():
    assert shards.expand_pattern("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert shards.expand_pattern("{x,y}-{1..2}") == ["x-1", "x-2", "y-1", "y-2"]
    assert shards.expand_pattern("plain.tar") == ["plain.tar"]


def test_members_equal_those_of_tarfile(folder):
    """Compare name, offsets and size of every member of every shard."""
    for path in folder.glob("*.tar"):
        content = path.read_bytes()
        members = list(tar.iterate_members(lambda start, count, content=content: content[start : start + count]))
        with tarfile.open(path) as shard:
            expected = [(member.name, member.offset, member.offset_data, member.size) for member in shard]
        assert [(member.name, member.start, member.content_start, member.size) for member in members] == expected


# ---- training -------------------------------------------------------------------------------------------------------

OPTIONS = ["--size", "16", "--channels", "3", "--epochs", "6", "--eval-every", "3", "--batch-size", "8",
         "--memory-limit", "0", "--hidden", "8", "--augment", "crop=0.3", "flip", "--convention",
         "image", "--balance", "loss"]  # fmt: skip
QUICK = (
    "from fukami.cli.main import main; from fukami.engine import async_checkpoint; "
    "async_checkpoint.CheckpointWriter.is_due = True; main()"
)


@pytest.mark.slow
def test_killed_training_from_shards_resumes_bit_exactly(root, tmp_path, fukami, forked_python):
    """Run on the command line, kill with SIGKILL, resume; then evaluate on its own data and on the files."""

    def run(*arguments, wait=True):
        command = [forked_python.executable, "-c", QUICK, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if not wait:
            return process
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out)

    (counts,) = fukami("shard", root, "shards", "--val-fraction", "0.3", "--samples", "6").json
    assert (counts["train"], counts["val"]) == (45, 18)
    train = ("train", "deep-convnet", "--data", "shards", *OPTIONS)
    uninterrupted = run(*train, "--out", "whole")
    process = run(*train, "--out", "cut", wait=False)
    log, deadline = tmp_path / "cut" / "metrics.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_text().count("train") >= 12 and (tmp_path / "cut" / "last.ckpt").exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    state = decode_checkpoint(tmp_path / "cut" / "last.ckpt", torch.device("cpu"))
    assert 0 < state["step"] < 30
    resumed = run("train", "deep-convnet", "--out", "cut", "--resume")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert {**uninterrupted, "run": 0, "report": 0} == {**resumed, "run": 0, "report": 0}
    (metrics,) = fukami("eval", "whole").json
    assert (metrics["accuracy"], metrics["count"]) == (uninterrupted["accuracy"], 18)
    (metrics,) = fukami("eval", "whole", "--data", root).json
    assert metrics["count"] == COUNT


def test_show_and_doctor_accept_shards(copied, fukami, doctor):
    result = fukami("show", copied, "--num-images", "3", "--out", "grid.png")
    assert result.status == 0, result.err
    assert sorted(result.json[0]["labels"]) == list(LABELS)
    result = doctor(copied)
    assert (result.status, result.out) == (0, "")
    index = json.loads((copied / "index.json").read_text())
    truncated = copied / "train-000004.tar"
    truncated.write_bytes(truncated.read_bytes()[: index["train"][4]["starts"][7] + 600])
    content = bytearray((copied / "train-000001.tar").read_bytes())
    content[512:700] = bytes(188)
    (copied / "train-000001.tar").write_bytes(content)
    (copied / "train-000006.tar").unlink()
    result = doctor(copied)
    assert result.status == 1
    problems = {(line["problem"], line["file"].partition("/")[0]) for line in result.json if "file" in line}
    assert {
        ("unreadable", "train-000004.tar, sample 8"),
        ("unreadable", "train-000004.tar"),
        ("unreadable", "train-000001.tar"),
        ("missing", "train-000006.tar"),
    } <= problems


def test_shards_that_fit_are_loaded_into_memory(folder, monkeypatch):
    """Images equal the streamed ones; worker processes decode many images."""
    options = {"data": str(folder), "size": 16, "channels": 3, "convention": "image", "val_fraction": 0.3}
    assert isinstance(DeepConvNet(**options, memory_limit=0.0).load_data().train, ShardStreamingLoader)
    data = DeepConvNet(**options).load_data()
    assert isinstance(data.train, InMemoryLoader)
    assert isinstance(data.val, InMemoryLoader)
    assert len(data.train.targets) + len(data.val.targets) == COUNT
    source = labeled_images.load_labeled_images(str(folder), 0.0)[0]
    decoded = source.decode(PREPARE)
    assert torch.equal(decoded.images, torch.cat([images for images, _ in build_loader(folder, batch_size=10)]))
    assert decoded.names[8] == "train-000001.tar, sample 1"
    monkeypatch.setattr(webdataset, "MIN_PARALLEL_FILES", 1)
    assert torch.equal(source.decode(PREPARE).images, decoded.images)
