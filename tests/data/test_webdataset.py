"""Shards: what they hold, the order in which it is read, over any wire, cut off anywhere, and broken in every way."""

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

from check_task import same
from fukami import Error, UsageError
from fukami.classification.deep_convnet import DeepConvNet
from fukami.data import augment, labelled_images, remote, shards, tar, webdataset, webdataset_writer
from fukami.data.loader import InMemoryLoader
from fukami.data.streaming import FileStreamingLoader, ImageDecoder
from fukami.data.webdataset import ShardStreamingLoader
from fukami.engine.state_file import load_state
from fukami.image.transform import SquareTransform

LABELS = ("dark", "light", "red")
PREPARE = SquareTransform(channels=3, size=16)
COUNT = 63


@dataclass
class Process:
    """What a loader asks a runtime for."""

    rank: int
    world_size: int
    device = torch.device("cpu")

    def clock(self, part):
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twenty-one noisy images of each of three classes, of several sizes and formats."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label, low, suffix in (("dark", 0, ".png"), ("light", 120, ".jpg"), ("red", 60, ".JPEG")):
        (root / label).mkdir()
        for number in range(COUNT // 3):
            pixels = generator.integers(low, low + 130, (24 + number, 40 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{label[0]}.{number}{suffix}")
    return root


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """All of them as training shards of eight, the last of seven."""
    out = tmp_path_factory.mktemp("shards") / "out"
    found = webdataset_writer.write_shards(str(root), out, holdout=0.0, samples_per_shard=8)
    assert found == {"out": str(out), "train": COUNT, "test": 0, "shards": 8, "left_out": 0}
    return out


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the shards to damage."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def _collected():
    """What a test leaves in a cycle, such as a loader in an error's traceback, ends with it and not in another test."""
    yield
    gc.collect()


def loader(spec, *, rank=0, world=1, **options):
    source, _, labels = labelled_images.load_labelled_images(str(spec), 0.0)
    made = ShardStreamingLoader(source.items, torch.from_numpy(source.targets), labels, PREPARE, **options)
    made.setup(Process(rank, world))
    return made


def originals(folder, root):
    """The file that each sample was made of, in the order of the shards, as tarfile lists them."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as shard:
            for name in shard.getnames():
                if not name.endswith(".cls"):
                    label, base = name.split("/")
                    found.append(root / label / re.sub(r"^(\w)_", r"\1.", base))
    return found


# ---- what is written ------------------------------------------------------------------------------------------------


def test_shards_hold_the_files_unchanged_and_mixed(folder, root):
    """Read by tarfile: each file once, byte for byte, beside the number of its class; the index says the same."""
    index = json.loads((folder / "index.json").read_text())
    seen, runs = [], 0
    for shard in index["train"]:
        path = folder / shard["name"]
        assert path.stat().st_size == shard["bytes"]
        with tarfile.open(path) as tar_file:
            members = tar_file.getmembers()
            keys = [member.name.partition(".")[0] for member in members]
            assert keys[::2] == keys[1::2]
            assert shard["starts"] == [member.offset for member in members[::2]]
            assert all((member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "") for member in members)
            for image, number, target in zip(members[::2], members[1::2], shard["classes"], strict=True):
                assert int(tar_file.extractfile(number).read()) == target
                (original,) = originals_of(root, image.name)
                assert tar_file.extractfile(image).read() == original.read_bytes()
                assert index["labels"][target] == original.parent.name
                seen.append(original)
        runs += len(set(shard["classes"])) > 1
    assert sorted(seen) == sorted(root.rglob("*.*"))
    assert runs == len(index["train"])


def originals_of(root, name):
    label, base = name.split("/")
    return [file for file in (root / label).iterdir() if file.stem.replace(".", "_") + file.suffix == base]


def test_the_same_data_give_the_same_bytes(folder, root, tmp_path):
    webdataset_writer.write_shards(str(root), tmp_path / "again", holdout=0.0, samples_per_shard=8)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    webdataset_writer.write_shards(str(root), tmp_path / "other", holdout=0.0, samples_per_shard=8, seed=1)
    assert (tmp_path / "other" / "train-000000.tar").read_bytes() != (folder / "train-000000.tar").read_bytes()


def test_parts_sizes_and_arrays(root, tmp_path):
    """The parts are those that training would have; by default a part has eight shards; arrays become PNG files."""
    found = webdataset_writer.write_shards("digits", tmp_path / "digits")
    assert (found["train"], found["test"], found["shards"]) == (1438, 359, 16)
    train, test, labels = labelled_images.load_labelled_images(str(tmp_path / "digits"), 0.2)
    for part, expected in zip((train, test), labelled_images.load_labelled_images("digits", 0.2)[:2], strict=True):
        assert np.array_equal(np.bincount(part.targets), np.bincount(expected.targets))
        images = {np.asarray(Image.open(io.BytesIO(part.items[i]))).tobytes() for i in range(len(part))}
        assert images == {image.tobytes() for image in expected.items}
    assert labels == labelled_images.DIGIT_LABELS
    small = webdataset_writer.write_shards("digits", tmp_path / "small", shard_megabytes=0.01)
    assert small["shards"] > 16
    again = webdataset_writer.write_shards(str(tmp_path / "digits"), tmp_path / "resharded", samples_per_shard=1000)
    assert (again["train"], again["test"], again["shards"]) == (1438, 359, 3)


def test_broken_files_are_left_out_and_namesakes_kept(root, tmp_path, caplog):
    for name, source in (
        ("a/x.png", "dark/d.0.png"),
        ("a/deeper/x.png", "dark/d.1.png"),
        ("a b/é.png", "dark/d.2.png"),
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes((root / source).read_bytes())
    (tmp_path / "in" / "a" / "no.png").write_text("no image")
    found = webdataset_writer.write_shards(str(tmp_path / "in"), tmp_path / "out", holdout=0.0, samples_per_shard=9)
    assert (found["train"], found["left_out"], found["shards"]) == (3, 1, 1)
    assert "no.png is not an image" in caplog.text
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as shard:
        assert sorted(shard.getnames())[::2] == ["a/x-again2.cls", "a/x.cls", "a_b/é.cls"]


def test_what_cannot_be_written_leaves_nothing(root, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        webdataset_writer.write_shards(str(root), tmp_path / "used")
    with pytest.raises(UsageError, match="at least one sample"):
        webdataset_writer.write_shards(str(root), tmp_path / "new", samples_per_shard=0)

    def interrupted(index, out):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "save_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        webdataset_writer.write_shards(str(root), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


# ---- the order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "buffer"), [(1, 1), (5, 1), (5, 9), (40, 7), (1000, 64)])
def test_a_buffer_is_a_buffer(count, buffer):
    """Played through slot by slot, with the same slots drawn."""
    found = webdataset.compute_buffer_order(count, buffer, torch.Generator().manual_seed(3)).tolist()
    held = min(buffer, count)
    slots = torch.randint(held, (count - held,), generator=torch.Generator().manual_seed(3)).tolist()
    content, left = list(range(held)), []
    for after, slot in enumerate(slots):
        left.append(content[slot])
        content[slot] = held + after
    assert found[: count - held] == left
    assert sorted(found[count - held :]) == sorted(content)
    assert sorted(found) == list(range(count))


def test_every_sample_once_in_a_pass_in_another_order_each_time(folder):
    made = loader(folder, batch_size=6, seed=4)
    assert made.num_readers == 6  # the largest divisor of 6 that is not above 8 shards
    assert len(made) == 10
    passes = [made._plan_epoch(turn)[0].tolist() for turn in range(3)]
    for order in passes:
        assert len(set(order)) == len(order) == 60
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] == loader(folder, batch_size=6, seed=4)._plan_epoch(0)[0].tolist()
    assert passes[0] != loader(folder, batch_size=6, seed=5)._plan_epoch(0)[0].tolist()
    assert passes[1] != loader(folder, batch_size=6, seed=5)._plan_epoch(0)[0].tolist()


def test_a_lane_reads_few_shards_from_end_to_end(folder, monkeypatch):
    """With a buffer of one there is no shuffle but that of the shards: row i of all batches is a stretch of shards."""
    monkeypatch.setattr(webdataset, "SHUFFLE_BUFFER_BYTES", 0)
    made = loader(folder, batch_size=4, seed=0)
    order = made._plan_epoch(0)[0].reshape(-1, 4)
    assert len(order) == 15
    for lane in order.T.tolist():
        where = made.samples.shard_indices[lane].tolist()
        assert 2 <= len(set(where)) <= 4
        for one, other in pairwise(lane):
            assert other == one + 1 or made.samples.shard_indices[one] != made.samples.shard_indices[other]


@pytest.mark.parametrize("smallest", [None, 0.3])
def test_the_pixels_are_those_of_the_files(folder, root, smallest):
    """Of each image in two passes, cropped by its draws or whole; as Decoder reads the file itself."""
    made = loader(folder, batch_size=6, seed=1, min_area=smallest)
    files = originals(folder, root)
    decoder = ImageDecoder(files, PREPARE, smallest or 1.0)
    for turn in range(2):
        order, draws = made._plan_epoch(turn)
        for number, (images, targets) in enumerate(made):
            for row, (image, target) in enumerate(zip(images, targets, strict=True)):
                place = 6 * number + row
                assert files[order[place]].parent.name == LABELS[target]
                expected = decoder[int(order[place]), draws[place, : made.num_crop_draws].tolist()]
                assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert number == 9


def test_judged_and_ordered_see_each_once_in_order(folder, root):
    files = originals(folder, root)
    expected = torch.stack([torch.from_numpy(PREPARE.read_and_transform(file)) for file in files])
    judged = loader(folder, batch_size=10)
    images, targets = (torch.cat(column) for column in zip(*judged, strict=True))
    assert torch.equal(images, expected)
    assert [LABELS[target] for target in targets] == [file.parent.name for file in files]
    training = loader(folder, batch_size=6, seed=2, min_area=0.3)
    undisturbed = list(loader(folder, batch_size=6, seed=2, min_area=0.3))
    begun = iter(training)
    first = next(begun)
    assert torch.equal(torch.cat([images for images, _ in training.iterate_in_order()]), expected)
    assert same([first, *begun], undisturbed) == 10


def test_a_lane_is_read_forwards(folder, monkeypatch):
    """From the first pass on and after a resumption: no byte twice, and what was emitted is passed over."""
    read = []

    def watched(self, start, count, real=remote.DiskStream.read):
        read.append((self.file.name, start, start + count))
        return real(self, start, count)

    monkeypatch.setattr(remote.DiskStream, "read", watched)
    made = loader(folder, batch_size=4, seed=0)
    made.load_state_dict({"turn": 1, "position": 6, "broken": []})
    read.clear()
    (*batches,) = made.iterate_requests()
    assert len(batches) == 9
    assert len(read) == len(set(read)) == 36


# ---- several processes, and going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_one(folder, world):
    change = augment.parse_augmentation(["flip", "shift=2"], size=16, num_classes=3)
    options = {"batch_size": 8, "seed": 4, "min_area": 0.5, "augment": change}
    whole = list(loader(folder, **options))
    assert len(whole) == 7
    parts = [loader(folder, rank=rank, world=world, **options) for rank in range(world)]
    for rank, part in enumerate(parts):
        mine = [(images[rank::world], targets[rank::world]) for images, targets in whole]
        assert same(part, mine) == 7
    judged = [loader(folder, rank=rank, world=world, batch_size=10) for rank in range(world)]
    everything = torch.cat([images for part in judged for images, _ in part])
    assert torch.equal(everything, torch.cat([images for images, _ in loader(folder, batch_size=10)]))


def test_processes_that_do_not_fit_the_lanes_are_refused(folder):
    with pytest.raises(UsageError, match="write more shards, or change --batch-size"):
        loader(folder, world=4, batch_size=12, seed=0)
    with pytest.raises(UsageError, match="cannot share a batch of 6 evenly"):
        loader(folder, world=4, batch_size=6, seed=0)


@pytest.mark.parametrize("world", [1, 2])
def test_every_position_resumes(folder, world):
    """Written by one process, taken up by one or two, in either of two passes."""
    options = {"batch_size": 8, "seed": 6, "min_area": 0.4}
    made = loader(folder, **options)
    whole, states = [], []
    for _ in range(2):
        states.append(made.state_dict())
        for batch in made:
            whole.append(batch)
            states.append(made.state_dict())
    assert len(whole) == 14
    states = [state for number, state in enumerate(states) if number not in (7, 8)] + [states[7], states[8]]
    for state in states:
        done = 7 * state["turn"] + state["position"]
        for rank in range(world):
            other = loader(folder, rank=rank, world=world, **options)
            other.load_state_dict(json.loads(json.dumps(state)))
            rest = list(other)
            expected = whole[done : 7 * (state["turn"] + 1)]
            assert same(rest, [(p[rank::world], t[rank::world]) for p, t in expected]) == len(expected)


def test_nothing_is_left_running(folder):
    """Neither after a pass, nor after one that was left, nor when the loader goes."""
    made = loader(folder, batch_size=8, seed=0)
    list(made)
    begun = iter(made)
    next(begun)
    workers = made.reader._iterator._workers
    del begun, made
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    deadline = time.monotonic() + 10
    while any(thread.name == "shards" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "shards" for thread in threading.enumerate())


def test_a_program_that_fails_in_mid_pass_ends(folder):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from data.test_webdataset import loader
for number, batch in enumerate(loader({str(folder)!r}, batch_size=2, seed=0)):
    if number == 3:
        raise RuntimeError("enough")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: enough")
    assert "ResourceWarning" not in done.stderr


# ---- over HTTP ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(*words, log=subprocess.DEVNULL):
    """A server on this machine; gives its URL."""
    process = subprocess.Popen([sys.executable, "-u", *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        port = re.search(r"port (\d+)", process.stdout.readline())[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


RANGE = Path(__file__).parents[1].joinpath("range_server.py")


@pytest.mark.parametrize("kind", ["plain", "bare", "store", "broken"])
def test_over_http_as_from_the_disk(folder, kind, monkeypatch):
    """From a server without Range, from one with it, and from one that breaks off most answers and refuses others."""
    monkeypatch.setattr(remote, "RETRY_DELAY", 0.001)
    words = {
        "plain": ("-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder),
        "bare": (RANGE, folder, "bare"),
        "store": (RANGE, folder, 0),
        "broken": (RANGE, folder, 25),
    }
    local = loader(folder, batch_size=8, seed=3, min_area=0.4)
    with serving(*words[kind]) as url:
        made = loader(url, batch_size=8, seed=3, min_area=0.4)
        assert same(made, local) == 7
        assert same(made.iterate_in_order(), local.iterate_in_order()) == 1
        made.load_state_dict({"turn": 1, "position": 4, "broken": []})
        assert same(made, list(local)[4:]) == 3


def test_a_store_is_asked_for_no_byte_twice(folder, tmp_path):
    """Of each lane of a pass: one answer for each shard, from the first byte that is wanted on."""
    with (tmp_path / "log").open("w") as log, serving(RANGE, folder, 0, log=log) as url:
        made = loader(url, batch_size=4, seed=0)
        list(made)
    asked = re.findall(r"bytes=(\d+)- .*GET /(train-\d+\.tar)", (tmp_path / "log").read_text())
    assert len(asked) == len(set(asked)) <= 8 + 4 - 1
    assert {shard for _, shard in asked} == {file.name for file in folder.glob("*.tar")}


def test_lanes_are_opened_together(folder, monkeypatch, tmp_path):
    """The server answers none of the eight first requests before all of them have arrived."""
    # so that the first sample of a lane is the first that it reads
    monkeypatch.setattr(webdataset, "SHUFFLE_BUFFER_BYTES", 0)
    with (tmp_path / "log").open("w") as log, serving(RANGE, folder, 0, 8, log=log) as url:
        made = loader(url, batch_size=8, seed=0)
        requests = made.iterate_requests()
        assert len(next(requests)) == made.num_readers == 8
        assert len(list(requests)) == 6  # before the server goes
    assert "in vain" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("there", ["ftp://127.0.0.1:9/x", "file:///etc/passwd"])
def test_a_server_sends_on_to_the_web_alone(there, monkeypatch):
    class Redirection(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", there)
            self.end_headers()

        def log_message(self, *words):
            pass

    monkeypatch.setattr(remote, "RETRY_DELAY", 0.001)
    with http.server.HTTPServer(("127.0.0.1", 0), Redirection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Error, match=r"unknown url type: ftp|302"):
            remote.open_stream(f"http://127.0.0.1:{server.server_port}/x").read(0, 9)
        server.shutdown()


def test_a_server_that_is_gone_is_an_error_that_names_the_url(folder, monkeypatch, caplog):
    monkeypatch.setattr(remote, "RETRY_DELAY", 0.001)
    with serving(RANGE, folder, 0) as url:
        made = loader(url, batch_size=4, seed=0)
        with pytest.raises(Error, match=r"nothing/index\.json cannot be read .*404.*given by a pattern"):
            shards.load_shards(f"{url}/nothing/")
        with pytest.raises(Error, match=r"train-8\.tar cannot be read .*404"):
            shards.load_shards(f"{url}/train-{{8..9}}.tar")
    with pytest.raises(Error, match=rf"{url}/train-\d+\.tar cannot be read"):
        list(made)
    assert re.search(rf"{url}/train-\d+\.tar: .*refused.*; retrying \(attempt 3 of 6\)", caplog.text)


# ---- broken shards --------------------------------------------------------------------------------------------------


def test_a_truncated_shard_and_a_damaged_image_are_left_out(copied, folder, caplog):
    """The rest is as it was; the broken ones are named once, counted, and remembered in the state."""
    index = json.loads((copied / "index.json").read_text())
    cut, hurt = (copied / index["train"][number]["name"] for number in (2, 5))
    place = index["train"][2]["starts"][6]
    cut.write_bytes(cut.read_bytes()[: place + 600])  # in mid-image; one more is after it
    content = bytearray(hurt.read_bytes())
    start = index["train"][5]["starts"][3]
    content[start + 512 : start + 700] = bytes(188)
    hurt.write_bytes(content)
    with tarfile.open(hurt) as shard:
        name = shard.getnames()[6]
    made = loader(copied, batch_size=7, seed=0)
    whole = loader(folder, batch_size=7, seed=0)
    lost = {2 * 8 + 6, 2 * 8 + 7, 5 * 8 + 3}
    order = whole._plan_epoch(0)[0].reshape(-1, 7)
    for members, (images, targets), (others, numbers) in zip(order.tolist(), made, whole, strict=True):
        kept = [row for row, member in enumerate(members) if member not in lost]
        assert torch.equal(images, others[kept])
        assert torch.equal(targets, numbers[kept])
    list(made)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len({*order.flatten().tolist()} & lost) + len(lost - {*order.flatten().tolist()}) == 3
    for hint in (f"{hurt.name}/{name} is", f"{cut.name}/", f"{cut.name}, sample 8, is missing"):
        assert any(hint in line for line in told), (hint, told)
    state = made.state_dict()
    assert sorted(f"{each}; it is left out" for each in state["broken"]) == sorted(told)
    strict = loader(copied, batch_size=7, seed=0, max_broken=2)
    with pytest.raises(Error, match=r"3 images are broken, and --max-broken allows 2.*\n  train-"):
        list(chain(strict, strict))
    resumed = loader(copied, batch_size=7, seed=0, max_broken=3)
    resumed.load_state_dict(state)
    caplog.clear()
    list(resumed)
    assert not caplog.records


def test_a_stretch_that_is_missing_is_passed_over_in_judging(copied, folder, monkeypatch):
    """Batches of four from two shards, one of which is empty: those of the other one."""
    (copied / "train-000003.tar").write_bytes(b"")
    made, whole = (list(loader(spec, batch_size=4)) for spec in (copied, folder))
    assert same(made, [*whole[:6], *whole[8:]]) == 14
    monkeypatch.setattr(webdataset, "SEQUENTIAL_BATCH_SIZE", 4)
    made, whole = (list(loader(spec, batch_size=4).iterate_in_order()) for spec in (copied, folder))
    assert same(made, [*whole[:6], *whole[8:]]) == 14
    for path in copied.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(Error, match=r"not one image can be read; the first: train-000000\.tar, sample 1, is missing"):
        list(loader(copied, batch_size=4))


def test_in_memory_the_same_are_left_out(copied, caplog):
    index = json.loads((copied / "index.json").read_text())
    cut = copied / index["train"][0]["name"]
    cut.write_bytes(cut.read_bytes()[: index["train"][0]["starts"][5]])
    source = labelled_images.load_labelled_images(str(copied), 0.0)[0]
    found = source.decode(PREPARE)
    assert len(found.images) == len(found.targets) == len(found.names) == COUNT - 3
    assert "3 of 63 images are left out" in caplog.text
    with pytest.raises(Error, match="3 images are broken, and --max-broken allows 2"):
        source.decode(PREPARE, 2)


def test_streams_from_files_stop_at_the_limit_too(root, tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(6):
            content = b"" if number < 2 else (root / "dark" / "d.0.png").read_bytes()
            (tmp_path / label / f"{number}.png").write_bytes(content)
    source = labelled_images.load_labelled_images(str(tmp_path), 0.0)[0]

    def streamed(broken):
        return FileStreamingLoader(
            source.items,
            torch.from_numpy(source.targets),
            ("a", "b"),
            PREPARE,
            batch_size=12,
            seed=0,
            max_broken=broken,
        )

    made = streamed(4)
    assert [len(targets) for _, targets in made] == [8]
    assert len(made.state_dict()["broken"]) == 4
    with pytest.raises(Error, match="allows 3"):
        list(streamed(3))


def test_a_missing_shard_is_an_error_at_once(copied):
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
def test_an_index_with_a_number_that_is_none_is_refused(copied, column, value):
    index = json.loads((copied / "index.json").read_text())
    index["train"][1][column][2] = value
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(Error, match=r"index\.json is not an index of shards"):
        shards.load_shards(str(copied))


def test_a_pattern_names_a_million_shards_at_most():
    assert len(shards.expand_pattern("{0..999}-{a,b}")) == 2000
    for pattern in ("{0..999999999999}.tar", "{0..999}" * 9, "{a,b}" * 40):
        with pytest.raises(UsageError, match="names more than 1,000,000 shards"):
            shards.expand_pattern(pattern)


@pytest.mark.parametrize("text", ["", "[]", '{"labels": ["a"], "train": []}', '{"train": [{"name": "x"}], "test": []}'])
def test_a_damaged_index_is_refused(copied, text):
    (copied / "index.json").write_text(text)
    with pytest.raises(Error, match=r"index\.json is not an index of shards"):
        shards.load_shards(str(copied))


def test_what_cannot_be_streamed_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="--balance loss"):
        DeepConvNet(data=str(folder), memory_limit=0.0, balance="sampling").load_data()
    (tmp_path / "train-000.tar.gz").touch()
    for spec in (tmp_path, tmp_path / "train-{000..001}.tar.gz"):
        assert shards.is_shard_spec(str(spec))
        with pytest.raises(UsageError, match="is compressed"):
            shards.load_shards(str(spec))
    with pytest.raises(UsageError, match="not a pattern of shards"):
        shards.load_shards(str(tmp_path / "{train,test" / "x.tar"))


# ---- shards that others wrote ---------------------------------------------------------------------------------------


def packed(path, members, **options):
    """A tar file of names and contents, as plain tarfile writes it."""
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


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_of_others_are_scanned(tmp_path, caplog, form):
    """Classes by number, by JSON, by folder; long names; what has no class or no image is named and left out."""
    long = "x" * (60 if form == tarfile.USTAR_FORMAT else 150)
    numbered = [(f"./{i}.{suffix}", png(i) if suffix == "PNG" else b"%02d\n" % (i % 11)) for i in range(12)
                for suffix in ("cls", "PNG")]  # fmt: skip
    packed(tmp_path / "data-train-0.tar", [("sub/", b""), *numbered], format=form)
    others = [
        ("a/1.json", b'{"label": 3}'), ("a/1.png", png(201)), ("a/1.seg.png", b"no image"),
        (f"{long}/7/2.png", png(202)), ("3.png", png(203)), ("7/._4.png", b"of another system"), ("5.cls", b"1"),
    ]  # fmt: skip
    packed(tmp_path / "data-val-0.tar", others, format=form)
    train, test, labels = shards.load_shards(str(tmp_path))
    assert labels == tuple(map(str, range(11)))
    assert train[1].tolist() == [i % 11 for i in range(12)]
    assert [tar_value(train[0][i]) for i in range(12)] == list(range(12))
    assert [labels[target] for target in test[1]] == ["3", "7"]
    assert [tar_value(test[0][i]) for i in range(2)] == [201, 202]
    assert "scanning 2 shards; write one with `fukami shard" in caplog.text
    assert "data-val-0.tar/3 has no class" in caplog.text
    assert "data-val-0.tar/5 has no image" in caplog.text
    assert len(test[0].problems) == 2
    made = webdataset_writer.write_index(str(tmp_path), tmp_path)
    assert (made["train"], made["test"], made["left_out"]) == (12, 2, 2)
    caplog.clear()
    again, _, _ = shards.load_shards(f"{tmp_path}/data-{{train,val}}-0.tar")
    assert np.array_equal(again[0].starts, train[0].starts)
    assert "scanning" not in caplog.text


def tar_value(content):
    return Image.open(io.BytesIO(content)).getpixel((0, 0))[0]


def test_a_test_part_is_held_out_of_shards(folder, tmp_path):
    """Both parts stream through the same shards; an index that was written elsewhere leads to them once it is there."""
    found = webdataset_writer.write_index(f"{folder}/train-{{000000..000007}}.tar", tmp_path / "index")
    assert (found["train"], found["shards"]) == (COUNT, 8)
    with pytest.raises(Error, match=r"index/train-000000\.tar is missing"):
        labelled_images.load_labelled_images(str(tmp_path / "index"), 0.3)
    for file in folder.glob("*.tar"):
        (tmp_path / "index" / file.name).write_bytes(file.read_bytes())
    train, test, labels = labelled_images.load_labelled_images(str(tmp_path / "index"), 0.3)
    assert labels == LABELS
    assert (len(train), len(test)) == (45, 18)
    assert np.bincount(test.targets).tolist() == [6, 6, 6]
    names = {(part.items.names[i]) for part in (train, test) for i in range(len(part))}
    assert len(names) == COUNT
    whole = ShardStreamingLoader(train.items, torch.from_numpy(train.targets), labels, PREPARE, batch_size=9, seed=0)
    assert sum(len(targets) for _, targets in whole) == 45


def test_a_truncated_shard_without_index_is_told(folder, tmp_path, caplog):
    content = (folder / "train-000000.tar").read_bytes()
    with tarfile.open(folder / "train-000000.tar") as shard:
        last = shard.getmembers()[-2]
    for number, (end, count) in enumerate([(last.offset_data + 9, 7), (last.offset + 100, 6), (last.offset, 7)]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "train-0.tar").write_bytes(content[:end])
        train, _, _ = shards.load_shards(str(tmp_path / str(number)))
        assert len(train[0]) == count
        assert len(train[0].problems) == 1
        assert "cut short" in train[0].problems[0]


@pytest.mark.parametrize("name", ["/etc/b.tar", "https://other/b.tar", "../b.tar", "a/../../b.tar", "C:\\b.tar", ""])
@pytest.mark.parametrize("base", ["http://host/a", "here", ""])
def test_an_index_leads_to_no_shard_outside_of_its_folder(base, name):
    with pytest.raises(Error, match=r"is not below .*copy the index"):
        shards.locate_shard(base, name)


def test_an_index_leads_to_the_shards_in_its_folder():
    assert shards.locate_shard("here", "b.tar") == "here/b.tar"
    assert shards.locate_shard("http://host/a", "b/c.tar") == "http://host/a/b/c.tar"
    assert shards.locate_shard("", "b.tar") == "b.tar"


@pytest.mark.parametrize("place", ["folder", "web"])
def test_what_an_index_names_outside_is_refused_unread(copied, place, monkeypatch):
    """A file that exists is named by its whole path, and by the way up to it."""
    index = json.loads((copied / "index.json").read_text())
    (copied / "below").mkdir()
    for name in (str(copied / "train-000000.tar"), "../train-000000.tar", "http://127.0.0.1:9/train-000000.tar"):
        index["train"][0]["name"] = name
        (copied / "below" / "index.json").write_text(json.dumps(index))
        with contextlib.ExitStack() as stack:
            spec = str(copied / "below")
            if place == "web":
                spec = stack.enter_context(serving(RANGE, copied, 0)) + "/below"
            with pytest.raises(Error, match="is not below"):
                shards.load_shards(spec)


def test_an_index_of_shards_elsewhere_is_kept_in_the_cache_folder(folder, tmp_path, monkeypatch, caplog):
    """It is found by where the shards are, which the user says; none of its names leads elsewhere."""
    with serving(RANGE, folder, 0) as url:
        spec = f"{url}/train-{{000000..000007}}.tar"
        monkeypatch.setattr(shards, "INDEX_FILE", "other.json")  # there is none on the server
        found = webdataset_writer.write_index(spec)
        assert Path(found["out"]).is_relative_to(Path(os.environ["XDG_CACHE_HOME"]) / "fukami")
        with pytest.raises(UsageError, match="exists already"):
            webdataset_writer.write_index(spec)
        monkeypatch.setattr(tar, "scan_shard", None)
        assert len(shards.load_shards(spec)[0][0]) == COUNT
        assert f"is read with the index {found['out']}" in caplog.text


def test_an_index_is_written_beside_the_shards(copied):
    (copied / "index.json").unlink()
    assert webdataset_writer.write_index(str(copied))["out"] == str(copied / "index.json")
    assert len(shards.load_shards(str(copied))[0][0]) == COUNT


def test_a_tar_file_among_images_makes_no_shards_of_them(root, folder, copied, tmp_path_factory):
    """And an image among shards no folder of images; where there are as many, they are images."""
    photographs = tmp_path_factory.mktemp("photographs")
    shutil.copytree(root, photographs, dirs_exist_ok=True)
    (photographs / "backup.tar").write_bytes((folder / "train-000000.tar").read_bytes())
    assert not shards.is_shard_spec(str(photographs))
    assert len(labelled_images.load_labelled_images(str(photographs), 0.0)[0]) == COUNT
    (copied / "figures").mkdir()
    Image.new("RGB", (9, 9)).save(copied / "figures" / "preview.png")
    assert shards.is_shard_spec(str(copied))
    assert len(labelled_images.load_labelled_images(str(copied), 0.0)[0]) == COUNT
    for number in range(8):
        Image.new("RGB", (9, 9)).save(copied / f"{number}.png")
    assert not shards.is_shard_spec(str(copied))


def test_patterns_are_expanded():
    assert shards.expand_pattern("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert shards.expand_pattern("{x,y}-{1..2}") == ["x-1", "x-2", "y-1", "y-2"]
    assert shards.expand_pattern("plain.tar") == ["plain.tar"]


def test_a_block_is_read_as_tarfile_reads_it(folder):
    """Every member of every shard: name, place and size."""
    for path in folder.glob("*.tar"):
        content = path.read_bytes()
        found = list(tar.iterate_members(lambda start, count, content=content: content[start : start + count]))
        with tarfile.open(path) as shard:
            expected = [(member.name, member.offset, member.offset_data, member.size) for member in shard]
        assert [(member.name, member.start, member.content_start, member.size) for member in found] == expected


# ---- trainings ------------------------------------------------------------------------------------------------------

WORDS = ["--size", "16", "--channels", "3", "--epochs", "6", "--eval-every", "3", "--batch-size", "8",
         "--memory-limit", "0", "--hidden", "8", "--augment", "crop=0.3", "flip", "--convention",
         "image", "--balance", "loss"]  # fmt: skip
QUICK = (
    "from fukami.cli.main import main; from fukami.engine import async_checkpoint; "
    "async_checkpoint.CheckpointWriter.is_due = True; main()"
)


def test_a_training_from_shards_that_is_killed_resumes_bit_exactly(root, tmp_path, fukami):
    """By the command line and SIGKILL; then judged, on its own data and on the files."""

    def run(*words, wait=True):
        command = [sys.executable, "-c", QUICK, *map(str, words)]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if not wait:
            return process
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out)

    (made,) = fukami("shard", root, "shards", "--holdout", "0.3", "--samples", "6").json
    assert (made["train"], made["test"]) == (45, 18)
    train = ("train", "deep-convnet", "--data", "shards", *WORDS)
    whole = run(*train, "--out", "whole")
    process = run(*train, "--out", "cut", wait=False)
    record, deadline = tmp_path / "cut" / "metrics.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if record.exists() and record.read_text().count("train") >= 12 and (tmp_path / "cut" / "last.ckpt").exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    state = load_state(tmp_path / "cut" / "last.ckpt", torch.device("cpu"))
    assert 0 < state["step"] < 30
    resumed = run("train", "deep-convnet", "--out", "cut", "--resume")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert {**whole, "run": 0, "report": 0} == {**resumed, "run": 0, "report": 0}
    (judged,) = fukami("eval", "whole").json
    assert (judged["accuracy"], judged["count"]) == (whole["accuracy"], 18)
    (judged,) = fukami("eval", "whole", "--data", root).json
    assert judged["count"] == COUNT


def test_show_and_doctor_take_shards(copied, fukami):
    answer = fukami("show", copied, "--num-images", "3", "--out", "grid.png")
    assert answer.status == 0, answer.err
    assert sorted(answer.json[0]["labels"]) == list(LABELS)
    answer = fukami("doctor", copied)
    assert (answer.status, answer.out) == (0, "")
    index = json.loads((copied / "index.json").read_text())
    cut = copied / "train-000004.tar"
    cut.write_bytes(cut.read_bytes()[: index["train"][4]["starts"][7] + 600])
    content = bytearray((copied / "train-000001.tar").read_bytes())
    content[512:700] = bytes(188)
    (copied / "train-000001.tar").write_bytes(content)
    (copied / "train-000006.tar").unlink()
    answer = fukami("doctor", copied)
    assert answer.status == 1
    found = {(line["problem"], line["file"].partition("/")[0]) for line in answer.json if "file" in line}
    assert {
        ("broken", "train-000004.tar, sample 8"),
        ("broken", "train-000004.tar"),
        ("broken", "train-000001.tar"),
        ("missing", "train-000006.tar"),
    } <= found


def test_in_memory_where_it_fits(folder, monkeypatch):
    """The same images as from the shards one by one; decoded by other processes where there are many."""
    options = {"data": str(folder), "size": 16, "channels": 3, "convention": "image", "holdout": 0.3}
    assert isinstance(DeepConvNet(**options, memory_limit=0.0).load_data().train, ShardStreamingLoader)
    data = DeepConvNet(**options).load_data()
    assert isinstance(data.train, InMemoryLoader)
    assert isinstance(data.val, InMemoryLoader)
    assert len(data.train.targets) + len(data.val.targets) == COUNT
    source = labelled_images.load_labelled_images(str(folder), 0.0)[0]
    found = source.decode(PREPARE)
    assert torch.equal(found.images, torch.cat([images for images, _ in loader(folder, batch_size=10)]))
    assert found.names[8] == "train-000001.tar, sample 1"
    monkeypatch.setattr(webdataset, "MIN_PARALLEL_FILES", 1)
    assert torch.equal(source.decode(PREPARE).images, found.images)
