"""Fuzz test of file readers: corrupted and malicious files from a seed either work or are rejected with an error.

    python tests/fuzz_cases.py [--cases 2000] [--seed 0] [--first 0] [--only coco]

A case is determined by its seed and index: ``--seed S --first INDEX --cases 1`` repeats a failure. ``test_fuzz.py``
and ``benchmarks/fuzz.py`` start this in its own process. A limit on the address space turns large allocations into
errors, and a crash or a hang ends only this process, which has written the case to the note file.
"""

import argparse
import bz2
import ctypes
import faulthandler
import functools
import gc
import gzip
import io
import json
import logging
import lzma
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from fukami.captioning import data as captioning_data
from fukami.cli import doctor, import_weights
from fukami.data import class_tables, label_tables, labeled_images, remote, shards, sources
from fukami.data.sources import identify_source
from fukami.detection import data as detection_data
from fukami.engine import checkpoint, run_record, state_dicts
from fukami.engine.load_run import load_task
from fukami.errors import Error
from fukami.generation import data as generation_data
from fukami.image.channels import ArrayImage, read_channels
from fukami.leaderboard import runs as leaderboard_runs
from fukami.segmentation import data as segmentation_data

TIMEOUT = 20  # seconds per case; longer is a hang, even on a busy machine
HEADROOM = 700 << 20  # address space in bytes beyond what is mapped before the first case
MAX_GROWTH = 200 << 20  # maximum growth of the process in bytes, for one case and over all cases
MAX_TEXT_BYTES = 2 << 20  # maximum size of a text file
Random = random.Random


class CaseTimeout(BaseException):
    """Timeout of a case; a BaseException, so that no reader catches it."""


class MemoryGrowth(BaseException):
    """Too much memory growth in a case; a BaseException, so that no reader catches it."""


@dataclass(frozen=True)
class Target:
    """Type of file: ``make(random, folder)`` writes a mutated file, ``read(folder)`` reads it with the library."""

    make: Callable[[Random, Path], None]
    read: Callable[[Path], object]


# ---- mutations of bytes, text and JSON -------------------------------------------------------------------------------


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Truncate, flip, overwrite, splice or repeat bytes, once or a few times."""
    result = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        start = random.randrange(len(result) + 1)
        end = min(len(result), start + random.choice([1, 2, 4, 8, 64, 512]))
        kind = random.randrange(7)
        if kind == 0:
            del result[start:]
        elif kind == 1 and start < len(result):
            result[start] ^= 1 << random.randrange(8)
        elif kind == 2:
            result[start:end] = bytes([random.choice([0, 0x7F, 0x80, 0xFF])]) * (end - start)
        elif kind == 3:
            result[start:end] = random.randbytes(end - start)
        elif kind == 4:
            source = random.randrange(len(result) + 1)
            result[start:start] = result[source : source + 512]
        elif kind == 5:
            del result[start:end]
        else:
            number = random.choice([-1, -512, 1 << 31, 1 << 40, (1 << 63) - 1])
            result[start:end] = struct.pack("<q", number)[: end - start]
    return bytes(result)


NUMBERS = (
    "0", "-1", "1", "0.5", "-0.0", "nan", "inf", "-inf", "1e308", "1e999", "-1e999", "2147483648", "1" * 30, "9" * 5000,
    "-512", "true", "0x10", "1_000", "\u0663", "1e-320",
)  # fmt: skip
WORDS = (
    "", " ", "\0", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a" * 300, "a" * 200_000, "\ud800", "é\u202e", "'",
    '"' * 99, ",", "\n", "\r", ":", "{", "[", "&a *a", "<x>", "%s%n", "..", "#" * 999, "<<", '"',
    "http://127.0.0.1:9/x",
)  # fmt: skip


def mutate_text(random: Random, content: str) -> bytes:
    """Replace, insert or repeat a word or a line, or mutate the bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, content.encode())
    for _ in range(random.choice([1, 1, 2, 4])):
        lines = content.split("\n")
        row = random.randrange(len(lines))
        words = lines[row].split(" ")
        column = random.randrange(len(words))
        kind = random.randrange(5)
        if kind < 3:
            old = words[column]
            new = random.choice(NUMBERS if random.random() < 0.5 else WORDS)
            cut = random.randrange(len(old) + 1)
            words[column] = random.choice([new, old[:cut] + new + old[cut:], old[:cut] + new])
            lines[row] = " ".join(words)
        elif kind == 3:
            repeated = lines[random.randrange(len(lines))]
            lines[row:row] = [repeated] * min(random.choice([1, 1000]), MAX_TEXT_BYTES // (len(repeated) + 1))
        else:
            long = lines[row] * min(500, MAX_TEXT_BYTES // (len(lines[row]) + 1))
            lines[row] = random.choice(["[" * 5000, "- " * 5000, "<a>" * 5000, "{a: " * 2000, long, " " * 50_000 + "x"])
        content = "\n".join(lines)[:MAX_TEXT_BYTES]
    return content.encode("utf-8", "surrogatepass")


def choose_json_value(random: Random, old: object) -> object:
    """Choose a replacement for a value in JSON."""
    deep: object = 0
    for _ in range(random.choice([5, 60, 300])):  # three of them nested can still be written
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    return random.choice([
        None, True, False, 0, -1, 1, 0.5, float("nan"), float("inf"), -float("inf"), 1e308, 10**30, -(10**30), 1 << 63,
        -512, "", "0", "a" * 10_000, "\ud800", "../../../etc/passwd", "/etc/passwd", "\0", "a" * 300, [], {}, [[]],
        [None], [old], {"a": old}, [old] * 300, list(range(3000)), deep, "nan", "1e999", "x.py",
        {"size": [1 << 20, 1 << 20]},
    ])  # fmt: skip


def mutate_json(random: Random, content: str) -> bytes:
    """Replace, remove, repeat or rename items, or mutate the text."""
    fraction = random.random()
    if fraction < 0.15:
        return mutate_bytes(random, content.encode())
    if fraction < 0.25:
        return mutate_text(random, content)
    root = json.loads(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        locations: list[tuple[object, object]] = []
        stack: list[object] = [root]
        while stack and len(locations) < 10_000:
            node = stack.pop()
            children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, child in children:
                locations.append((node, key))
                stack.append(child)
        if not locations:
            break
        node, key = random.choice(locations)
        kind = random.randrange(6)
        if len(json.dumps(root)) > MAX_TEXT_BYTES // 500:  # a repetition may multiply the size by 500
            break
        if kind < 4:
            node[key] = choose_json_value(random, node[key])  # type: ignore[index]
        elif kind == 4:
            del node[key]  # type: ignore[attr-defined]
        elif isinstance(node, list):
            node.extend(node[:1] * random.choice([1, 500]))
        else:
            node[random.choice(WORDS[3:])] = choose_json_value(random, None)  # type: ignore[index]
    text = json.dumps(root)
    if random.random() < 0.05:
        cut = random.randrange(len(text))
        text = text[:cut] + random.choice(["[" * 100_000, '{"a":' * 50_000, "9" * 5000, "1e999"]) + text[cut:]
    return text.encode()


# ---- runs ------------------------------------------------------------------------------------------------------------


def build_run_mutator(run: Path, name: str, mutate: Callable[[Random, bytes], bytes]) -> Callable[[Random, Path], None]:
    """Build a function that writes a copy of a run with one mutated file."""

    def make(random: Random, folder: Path) -> None:
        (folder / "run").mkdir()
        for file in run.iterdir():
            if file.is_file() and file.name != name:
                (folder / "run" / file.name).symlink_to(file)
        (folder / "run" / name).write_bytes(mutate(random, (run / name).read_bytes()))

    return make


def mutate_safetensors(random: Random, content: bytes) -> bytes:
    """Mutate the header, its length, or the values."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = random.randrange(5)
    if kind == 0:
        return mutate_bytes(random, content)
    if kind == 1:
        return random.choice([0, 1, length + 1, 1 << 33, 1 << 63]).to_bytes(8, "little") + content[8:]
    if kind == 2:
        tensors = json.loads(header)
        name = random.choice([name for name in tensors if name != "__metadata__"])
        field = random.choice(["dtype", "shape", "data_offsets"])
        tensors[name][field] = random.choice([
            "F16", "C64", "I64", "BOOL", "U8", [0], [1 << 40], [-1], [1 << 62, 4], [0, 1 << 40], [5, 1], [], None,
        ])  # fmt: skip
        header = json.dumps(tensors).encode()
    elif kind == 3:
        header = mutate_json(random, header.decode())
    else:
        value = random.choice([float("nan"), float("inf"), 3e38])
        start = 4 * random.randrange(len(data) // 4)
        data = data[:start] + struct.pack("<f", value) + data[start + 4 :]
    return len(header).to_bytes(8, "little") + header + data


def mutate_torch(random: Random, content: bytes) -> bytes:
    """Mutate the bytes, or one member of the archive, which may become compressed."""
    if random.random() < 0.4 or not content.startswith(b"PK"):
        return mutate_bytes(random, content)
    buffer = io.BytesIO()
    method = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        names = old.namelist()
        mutated_name = random.choice(names)
        for name in names:
            member = old.read(name)
            if name == mutated_name:
                member = random.choice([mutate_bytes(random, member), b"", bytes(1 << 20), member + member])
            new.writestr(name, member)
    return buffer.getvalue()


def write_weights_file(random: Random, folder: Path) -> None:
    """Write a state-dict file, with tensors that no network can use as initial weights."""
    tensors = {"features.0.weight": torch.randn(4, 3, 3, 3), "features.0.bias": torch.randn(4)}
    invalid = (
        torch.zeros(1).expand(1 << 36), torch.ones(3, dtype=torch.complex64), torch.eye(3).to_sparse(),
        torch.empty(1 << 40, device="meta"), torch.full((2,), float("nan")), torch.ones(2, dtype=torch.bool),
        torch.zeros(0, 1 << 40), "text", [torch.ones(1)], {"a": 1}, None, torch.zeros(1).half().expand(1 << 30),
    )  # fmt: skip
    if random.random() < 0.7:
        tensors[random.choice(["features.0.weight", "other", ""])] = random.choice(invalid)
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=random.random() < 0.7)
    content = buffer.getvalue()
    (folder / "weights.pth").write_bytes(mutate_torch(random, content) if random.random() < 0.6 else content)


def write_params_file(random: Random, folder: Path) -> None:
    """Write the parameters of a minimal DeepConvNet as a pickle of a NumPy program."""
    import pickle

    convolutions = {f"W{n}": np.ones((1, 1, 3, 3), np.float32) for n in range(1, 7)}
    params = {**convolutions, "W7": np.ones((16, 1), np.float32), "W8": np.ones((1, 2), np.float32)}
    params |= {f"b{n}": np.zeros(2 if n == 8 else 1, np.float32) for n in range(1, 9)}
    if random.random() < 0.4:
        shape = random.choice([(0, 1 << 40), (1 << 16, 1), (1, 1 << 16), (0,), (), (1 << 14, 1, 1, 1), (1, 0, 3, 3)])
        params[random.choice([*params])] = np.ones(shape, random.choice([np.float32, np.float16, np.int64]))
    content = pickle.dumps(params, random.choice([0, 2, 4]))
    (folder / "params.pkl").write_bytes(mutate_bytes(random, content) if random.random() < 0.6 else content)


# ---- shards and archives ---------------------------------------------------------------------------------------------


def create_png(value: int = 9) -> bytes:
    """Create a small PNG image."""
    buffer = io.BytesIO()
    Image.new("L", (9, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def create_tiff(random: Random) -> bytes:
    """Create a small TIFF of five channels, in a random layout."""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.arange(16 * 16 * 5, dtype=np.uint16).reshape(16, 16, 5),
        photometric="minisblack", planarconfig="contig", byteorder=random.choice("<>"), bigtiff=random.random() < 0.3,
        compression=random.choice((None, "deflate", "lzw", "zstd")), tile=random.choice((None, (16, 16))),
    )  # fmt: skip
    return buffer.getvalue()


def write_tiff(random: Random, folder: Path) -> None:
    (folder / "image.tif").write_bytes(mutate_bytes(random, create_tiff(random)))


def read_tiff(folder: Path) -> None:
    image = read_channels(folder / "image.tif", 5)
    assert isinstance(image, ArrayImage)
    assert image.levels.shape[2] == 5


def create_tar() -> bytes:
    """Create a shard of four samples, one with a long name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for index, name in enumerate(("a/1", "b/2", "a/" + "x" * 150, "b/4")):
            for suffix, content in ((".png", create_png(index)), (".cls", str(index % 2).encode())):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def mutate_tar(random: Random, content: bytes) -> bytes:
    """Mutate the size, type or name in a header and correct its checksum, or mutate any bytes."""
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    result = bytearray(content)
    for _ in range(random.choice([1, 1, 3])):
        start = 512 * random.randrange(len(result) // 512)
        kind = random.randrange(3)
        if kind == 0:
            sizes = [
                b"00000000000\0",
                b"77777777777\0",
                b"-0000001000\0",
                b"            ",
                b"0000000100x\0",
                b"\x80" + bytes(11),
            ]
            numbers = [-512, -1, 1 << 40, 1 << 62, -(1 << 62)]
            binary = [(b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True) for size in numbers]
            result[start + 124 : start + 136] = random.choice(sizes + binary)
        elif kind == 1:
            result[start + 156 : start + 157] = random.choice(
                [b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"3", b"5", b"6", b"\0", b"Z"]
            )
        else:
            name = random.choice(
                [b"../../out", b"/tmp/out", b"a/../../../out", b"", b".", b"\xff\xfe", b"a\\..\\..\\b", b"C:/x"]
            )
            result[start : start + 100] = name.ljust(100, b"\0")
        header = bytes(result[start : start + 148]) + b" " * 8 + bytes(result[start + 156 : start + 512])
        result[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(result)


def write_shards(random: Random, folder: Path) -> None:
    """Write two shards, one of them corrupted, or a corrupted index."""
    content = create_tar()
    (folder / "shards").mkdir()
    for part in ("train-0.tar", "train-1.tar"):
        (folder / "shards" / part).write_bytes(content)
    if random.random() < 0.5:
        (folder / "shards" / "train-1.tar").write_bytes(mutate_tar(random, content))
    else:
        size = len(content)
        entry = {"bytes": size, "classes": [0, 1], "starts": [0, 2048], "lengths": [2048, 2048], "problems": ["one"]}
        index = {"labels": ["a", "b"], "train": [{"name": f"train-{n}.tar", **entry} for n in (0, 1)], "test": []}
        (folder / "shards" / "index.json").write_bytes(mutate_json(random, json.dumps(index)))


def read_shards(folder: Path) -> None:
    """Read all samples of the shards."""
    doctor.validate_source(identify_source(str(folder / "shards")))
    train, _, _, _ = labeled_images.load_labeled_images(str(folder / "shards"), 0.0)
    items = train.items
    assert isinstance(items, shards.ShardSamples)
    for index in range(min(len(items), 20)):
        items[index]


def create_archive_bomb(random: Random) -> tuple[str, bytes]:
    """Create an archive whose content is far larger than its file."""
    kind = random.randrange(5)
    if kind == 0:  # members with the same bytes
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = packer.compress(bytes(20 << 20)) + packer.flush()
        local = (
            struct.pack(
                "<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 0, zlib.crc32(bytes(20 << 20)), len(body), 20 << 20, 1, 0
            )
            + b"x"
        )
        entries = b"".join(
            struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 8, 0, 0, zlib.crc32(bytes(20 << 20)), len(body),
                        20 << 20, 1, 0, 0, 0, 0, 0, 0) + bytes([65 + index % 60])
            for index in range(300)
        )  # fmt: skip
        end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 300, 300, len(entries), len(local + body), 0)
        return "zip", local + body + entries + end
    buffer = io.BytesIO()
    if kind == 1:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for index in range(8):
                archive.writestr(f"{index}.png", bytes(20 << 20))
        return "zip", buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=f"w:{('gz', 'bz2', 'xz')[kind - 2]}") as compressed:
        member = tarfile.TarInfo("a/1.png")
        member.size = 70 << 20 if kind == 2 else 1 << 20
        compressed.addfile(member, io.BytesIO(bytes(member.size)))
        name = tarfile.TarInfo("x" * (2 << 20))  # needs an extra header, which a reader holds in memory
        compressed.addfile(name)
    return f"tar.{('gz', 'bz2', 'xz')[kind - 2]}", buffer.getvalue()


def create_linked_tar(random: Random) -> bytes:
    """Create a tar archive with a member that points outside the archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(random.choice(["a/1.png", "../escaped.png", "/tmp/escaped.png", "a"]))
        member.type = random.choice(
            [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE]
        )
        member.linkname = random.choice(["..", "../../..", "/etc", "/etc/passwd"])
        archive.addfile(member)
        inside = tarfile.TarInfo("a/1.png/escaped.png")
        inside.size = 4
        archive.addfile(inside, io.BytesIO(b"text"))
    return buffer.getvalue()


def write_archive(random: Random, folder: Path) -> None:
    """Write a zip or tar archive of images in class folders: corrupted, malicious or an archive bomb."""
    kind = random.random()
    if kind < 0.04:
        suffix, content = create_archive_bomb(random)
    elif kind < 0.2:
        suffix, content = "tar", create_linked_tar(random)
    elif kind < 0.5:
        suffix, content = "tar", mutate_tar(random, create_tar())
    elif kind < 0.65:
        suffix = random.choice(["tar.gz", "tar.bz2", "tar.xz"])
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{suffix[4:]}") as archive:
            for label in "ab":
                member = tarfile.TarInfo(f"{label}/1.png")
                member.size = len(create_png())
                archive.addfile(member, io.BytesIO(create_png()))
        content = mutate_bytes(random, buffer.getvalue())
        if random.random() < 0.5:
            compress = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}[suffix]
            content = compress(mutate_tar(random, create_tar()))
    else:
        buffer, suffix = io.BytesIO(), "zip"
        with zipfile.ZipFile(
            buffer, "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
        ) as packed:
            for name in (
                "a/1.png",
                "b/2.png",
                random.choice(["b/3.png", "../escaped.png", "/escaped.png", "d/" * 40 + "x.png"]),
            ):
                packed.writestr(name, create_png())
        content = mutate_bytes(random, buffer.getvalue()) if random.random() < 0.7 else buffer.getvalue()
    (folder / f"images.{suffix}").write_bytes(content)


def read_archive(folder: Path) -> None:
    """Unpack the archive; nothing may be written elsewhere, and a rejected archive may leave no files."""
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "fukami" / "unpacked"
    (archive,) = folder.glob("images.*")
    try:
        labeled_images.load_labeled_images(str(archive), 0.2)
    finally:
        escaped = [path for root in (folder, cache.parent, Path("/tmp")) for path in root.glob("escaped*")]
        unexpected = [path for path in cache.iterdir() if not path.name.startswith("images")] if cache.exists() else []
        links = [path for path in cache.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
        shutil.rmtree(cache, ignore_errors=True)
        assert not escaped and not unexpected and not links, (escaped, unexpected, links)  # noqa: PT018


def choose_dataset_name(random: Random) -> str:
    """Choose a value of ``--data`` or of the same field of a run's recipe."""
    braces = ["{0..999999999999}.tar", "{a,b}" * 40 + ".tar", "{9..1}.tar", "{}.tar", "x{a,{1..3}}.tar", "{0..9}/x.tar"]
    return random.choice(
        [*WORDS, *NUMBERS, *braces, "scenes.tar", "x.csv", "https:", "http://", "http://\u00fc/x{1..2}.tar"]
    )


def read_name(folder: Path) -> None:
    """Load a name as a dataset of every task."""
    name = (folder / "name").read_text()
    readers = [
        labeled_images.load_labeled_images,
        detection_data.load_dataset,
        segmentation_data.load_dataset,
        captioning_data.load_dataset,
        generation_data.load_dataset,
    ]
    errors = []
    for read in readers:
        try:
            read(name, 0.2)
        except Error as error:
            errors.append(error)
    if errors:
        raise errors[0]


# ---- annotations -----------------------------------------------------------------------------------------------------


def write_images(folder: Path) -> None:
    """Write two images of 9×8 pixels."""
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(create_png())


def create_coco_json() -> str:
    """Create COCO annotations of two images with polygons, RLE masks of both types, and a crowd."""
    segmentations = [
        [[1, 1, 5, 1, 5, 5]],
        {"size": [8, 9], "counts": [3, 4, 65]},
        {"size": [8, 9], "counts": "34m1"},
        [[0, 0, 9, 0, 9, 8, 0, 8]],
    ]
    return json.dumps({
        "images": [{"id": n, "file_name": f"{n}.png", "width": 9, "height": 8} for n in (1, 2)],
        "annotations": [
            {"id": n, "image_id": 1 + n % 2, "category_id": 1 + n % 2, "bbox": [1, 1, 4, 4], "area": 9.5,
             "iscrowd": n % 2, "segmentation": segmentation}
            for n, segmentation in enumerate(segmentations)
        ],
        "categories": [{"id": n, "name": f"thing {n}", "supercategory": "none"} for n in (1, 2)],
    })  # fmt: skip


def write_coco_dataset(random: Random, folder: Path) -> None:
    """Write a COCO dataset."""
    write_images(folder)
    (folder / "annotations.json").write_bytes(mutate_json(random, create_coco_json()))


def read_boxes(folder: Path) -> None:
    """Read all boxes and masks, as training and ``fukami doctor`` do."""
    doctor.validate_source(identify_source(str(folder)))
    if sources.identify_source(str(folder)).has("masks"):
        train, _val, test, _ = segmentation_data.load_dataset(str(folder), 0.0)
        for sample in (*train, *test):
            assert sample.mask is not None
            sample.mask.read()
    detection_data.load_dataset(str(folder), 0.0)


VOC = """<?xml version="1.0"?>
<annotation><folder>x</folder><filename>1.png</filename>
<size><width>9</width><height>8</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>7.5</xmax><ymax>8</ymax></bndbox></object>
</annotation>
"""
LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]>\n<annotation><filename>&a9;</filename></annotation>"
)
QUADRATIC = f'<!DOCTYPE a [<!ENTITY a "{"x" * 50_000}">]>\n<annotation>{"&a;" * 20_000}</annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n<annotation><filename>&a;</filename></annotation>'


def write_voc_dataset(random: Random, folder: Path) -> None:
    """Write a VOC dataset, sometimes with a list of a split."""
    write_images(folder)
    (folder / "2.xml").write_text(VOC.replace("1.png", "2.png"))
    special = (
        LAUGHS,
        QUADRATIC,
        OUTSIDE,
        VOC.replace("?>", f' encoding="{random.choice(["punycode", "idna", "zip", "gbk", "utf-7", "x"])}"?>') + "é" * 9,
        "<a>" * 100_000,
    )
    text = random.choice(special) if random.random() < 0.15 else ""
    (folder / "1.xml").write_bytes(text.encode() or mutate_text(random, VOC))
    if random.random() < 0.4:
        for name, pattern in (("Annotations", "*.xml"), ("JPEGImages", "*.png")):
            (folder / name).mkdir()
            for file in folder.glob(pattern):
                file.rename(folder / name / file.name)
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        (folder / "ImageSets" / "Main" / "train.txt").write_bytes(mutate_text(random, "1  1\n2 -1\n3\n"))


def write_yolo_dataset(random: Random, folder: Path) -> None:
    """Write a YOLO dataset: a YAML file, images and their labels."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    write_images(folder / "images")
    labels, data = (
        "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.3 0.1 0.3 0.3\n",
        "train: images\nval: images\nnames:\n  0: cat\n  1: dog\n",
    )
    alias_bomb = (
        "a: &a [x,x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)},' * 9}]\n" for n in range(9))
        + "names: *j\n"
    )
    other = random.choice(
        [
            alias_bomb,
            "names: 1" + ":59" * 20_000,
            "names: " + "[" * 20_000,
            "names: !!python/object/apply:os.system [x]",
            "names: 2001-99-99",
        ]
    )
    fraction = random.random()
    (folder / "data.yaml").write_bytes(
        other.encode() if fraction < 0.1 else mutate_text(random, data) if fraction < 0.5 else data.encode()
    )
    (folder / "labels" / "1.txt").write_bytes(mutate_text(random, labels))
    if random.random() < 0.3:  # Darknet's format
        (folder / "data.yaml").unlink()
        (folder / "obj.data").write_bytes(
            mutate_text(random, "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
        )
        (folder / "obj.names").write_bytes(mutate_text(random, "cat\ndog\n"))
        (folder / "train.txt").write_bytes(mutate_text(random, "data/images/1.png\ndata/images/2.png\n"))


def write_labelme_dataset(random: Random, folder: Path) -> None:
    """Write labelme's JSON of two images, with shapes of all types."""
    write_images(folder)
    shapes = [
        {"label": "cat", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": "polygon", "flags": {}},
        {"label": "dog", "points": [[2, 2], [6, 7]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[4, 4], [4, 6]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[0, 0], [3, 3]], "shape_type": "line"},
    ]
    text = json.dumps({"imageWidth": 9, "imageHeight": 8, "shapes": shapes, "imageData": None})
    (folder / "1.json").write_bytes(mutate_json(random, text))
    (folder / "2.json").write_text(text)


def write_box_table(random: Random, folder: Path) -> None:
    """Write a CSV file of boxes."""
    write_images(folder)
    header = "filename,width,height,class,xmin,ymin,xmax,ymax,split\n"
    text = f"{header}1.png,9,8,cat,1,1,5,5,train\n2.png,9,8,dog,0,0,9,8,val\n"
    (folder / "boxes.csv").write_bytes(mutate_text(random, text.replace(",", random.choice([",", ", "]))))


def write_csv_file(random: Random, folder: Path) -> None:
    """Write a CSV file of images and labels."""
    write_images(folder)
    text = "path,label,split\n1.png,a,train\n2.png,b,test\n"
    (folder / "list.csv").write_bytes(mutate_text(random, text.replace(",", random.choice([",", ", "]))))


def write_captioning_dataset(random: Random, folder: Path) -> None:
    """Write a captioning dataset in one of its formats."""
    write_images(folder)
    images = [{"id": n, "file_name": f"{n}.png"} for n in (1, 2)]
    captions = [{"image_id": n, "caption": "a thing", "id": n} for n in (1, 2)]
    karpathy = [{"filename": f"{n}.png", "split": "train", "sentences": [{"raw": "a thing"}]} for n in (1, 2)]
    name, content = random.choice([
        ("captions_train.json", json.dumps({"images": images, "annotations": captions})),
        ("dataset.json", json.dumps({"images": karpathy})),
        ("captions.txt", "image,caption\n1.png,a thing, red\n2.png,two things\n"),
        ("results.csv", "image_name| comment_number| comment\n1.png| 0| a thing\n2.png| 0| a thing\n"),
        ("captions.token", "1.png#0\ta thing\n2.png#1\ttwo things\n"),
        ("list.csv", "image,caption,split\n1.png,a thing,train\n2.png,a thing,test\n"),
    ])  # fmt: skip
    mutate = mutate_json if name.endswith(".json") else mutate_text
    (folder / name).write_bytes(mutate(random, content))


def write_segmentation_dataset(random: Random, folder: Path) -> None:
    """Write images and masks with a class table."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
        write_images(folder / name)
    text = random.choice(
        ["road\nsky\n", "road 9\nsky 1\n", "road,128,64,128\nsky,9,9,9\n", "# label: r, g, b\nsky: 9, 9, 9\n"]
    )
    (folder / random.choice(["classes.txt", "class_dict.csv"])).write_bytes(mutate_text(random, text))


def read_masks(folder: Path) -> None:
    """Read all masks and the class table."""
    doctor.validate_source(identify_source(str(folder)))
    class_tables.find_class_table(folder)
    train, _, _, _ = segmentation_data.load_dataset(str(folder), 0.0)
    for sample in train:
        assert sample.mask is not None
        sample.mask.read()


def read_table(folder: Path) -> None:
    """Read all rows of the CSV file."""
    doctor.validate_source(identify_source(str(folder / "list.csv")))
    label_tables.read_csv(folder / "list.csv")


def read_captions(folder: Path) -> None:
    """Read all captions."""
    doctor.validate_source(identify_source(str(folder)))
    captioning_data.load_dataset(str(folder), 0.2)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


@functools.cache
def create_onnx_model() -> bytes:
    """Create a small classifier as ``fukami export`` writes it."""
    from fukami.quantization.onnx_export import export_onnx

    return export_onnx(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), (1, 2, 2), {"labels": "a b"})


def build_onnx_mutator(content: bytes) -> Callable[[Random, Path], None]:
    """Build a function that writes the model with mutated bytes, weights, operations or shapes."""

    def make(random: Random, folder: Path) -> None:
        import onnx

        model = onnx.ModelProto.FromString(content)
        kind, graph = random.randrange(6), model.graph
        if kind == 0:
            tensor = random.choice(graph.initializer)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            location = random.choice(["weights.bin", "/etc/passwd", "../weights.bin", "*/_ORT_MEM_ADDR_/*", ""])
            tensor.external_data.add(key="location", value=location)
        elif kind == 1:
            tensor = random.choice(graph.initializer)
            tensor.dims[:] = random.choice([[1 << 40], [-1], [0], [1 << 20, 1 << 20], []])
        elif kind == 2:
            node = random.choice(graph.node)
            node.op_type = random.choice(["Loop", "Scan", "If", "Python", "ConstantOfShape", "Einsum", ""])
            node.domain = random.choice(["", "", "evil.library", "com.microsoft"])
        elif kind == 3:
            size = random.choice([1 << 24, 1 << 28, 1 << 33, 1 << 50, -1])
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([size], np.int64), "huge"))
            graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["huge"], ["filled"]))
        (folder / "model.onnx").write_bytes(mutate_bytes(random, content) if kind > 3 else model.SerializeToString())

    return make


def read_onnx(folder: Path) -> None:
    """Load the network and run it."""
    from fukami.quantization.onnx_export import OnnxNetwork

    OnnxNetwork((folder / "model.onnx").read_bytes())(torch.zeros(2, 1, 2, 2))


# ---- cases -----------------------------------------------------------------------------------------------------------


def build_targets(run: Path | None) -> dict[str, Target]:
    """Build the targets by name; those of a run only if there is a run."""
    targets = {
        "name": Target(
            lambda random, folder: (folder / "name").write_text(choose_dataset_name(random), errors="replace"),
            read_name,
        ),
        "tiff": Target(write_tiff, read_tiff),
        "shards": Target(write_shards, read_shards),
        "archive": Target(write_archive, read_archive),
        "coco": Target(write_coco_dataset, read_boxes),
        "voc": Target(write_voc_dataset, read_boxes),
        "yolo": Target(write_yolo_dataset, read_boxes),
        "labelme": Target(write_labelme_dataset, read_boxes),
        "box table": Target(write_box_table, read_boxes),
        "csv": Target(write_csv_file, read_table),
        "captions": Target(write_captioning_dataset, read_captions),
        "masks": Target(write_segmentation_dataset, read_masks),
        "onnx": Target(build_onnx_mutator(create_onnx_model()), read_onnx),
        "weights": Target(write_weights_file, lambda folder: state_dicts.read_state_dict(folder / "weights.pth")),
        "params": Target(
            write_params_file, lambda folder: import_weights.import_deep_convnet(folder / "params.pkl", folder / "out")
        ),
    }
    if run is None:
        return targets

    def load(folder: Path) -> None:
        load_task(folder / "run", device="cpu")

    def decode_checkpoint(folder: Path) -> None:
        checkpoint.read_checkpoint(folder / "run", torch.device("cpu"))

    def load_leaderboard(folder: Path) -> None:
        leaderboard_runs.load_leaderboards(folder)

    def read_recipe(folder: Path) -> None:
        run_record.read_recipe(folder / "run")

    def build_target(name: str, mutate: Callable[[Random, bytes], bytes], read: Callable[[Path], object]) -> Target:
        return Target(build_run_mutator(run, name, mutate), read)

    def mutate_json_file(random: Random, content: bytes) -> bytes:
        return mutate_json(random, content.decode())

    def mutate_json_lines(random: Random, content: bytes) -> bytes:
        lines = content.decode().split("\n")
        row = random.randrange(len(lines))
        mutated = mutate_json(random, lines[row]) if lines[row] else mutate_text(random, "x")
        return b"\n".join([*map(str.encode, lines[:row]), mutated, *map(str.encode, lines[row + 1 :])])

    return {
        **targets,
        "recipe.json": build_target("recipe.json", mutate_json_file, read_recipe),
        "recipe.json in a leaderboard": build_target("recipe.json", mutate_json_file, load_leaderboard),
        "recipe.json of a loaded run": build_target("recipe.json", mutate_json_file, load),
        "weights.safetensors": build_target("weights.safetensors", mutate_safetensors, load),
        "weights.safetensors in a leaderboard": build_target(
            "weights.safetensors", mutate_safetensors, load_leaderboard
        ),
        "last.ckpt": build_target("last.ckpt", mutate_torch, decode_checkpoint),
        "metrics.jsonl": build_target("metrics.jsonl", mutate_json_lines, load_leaderboard),
    }


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes is a failed allocation."""
    while error is not None:
        messages = (
            "bad_alloc",
            "bad allocation",
            "allocate memory",
            "Unable to allocate",
            "out of memory",
            "Failed to allocate",
        )
        if isinstance(error, MemoryError) or any(message in str(error) for message in messages):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_memory(field: str) -> int:
    """Return the memory of this process in bytes: ``VmRSS`` current, ``VmHWM`` peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def reset_peak_memory() -> int:
    """Reset the peak memory of this process, and return its current memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_memory("VmRSS")


def run_case(target: Target, case_index: int, seed: int, work: Path) -> tuple[str, str]:
    """Run a case; return ``worked``, ``rejected`` or ``failed``, and the reason."""
    folder = work / "case"
    folder.mkdir()
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    faulthandler.dump_traceback_later(3 * TIMEOUT, exit=True)
    try:
        target.make(Random(f"{seed} {case_index}"), folder)
        before = reset_peak_memory()
        os.chdir(folder)
        try:
            target.read(folder)
        finally:
            if (growth := read_memory("VmHWM") - before) > MAX_GROWTH:
                raise MemoryGrowth(f"the process grew by {growth:,} bytes")
        return "worked", ""
    except Error as error:
        if is_out_of_memory(error):
            return "failed", f"out of memory: {error}"[:400]
        str(error).encode()  # fails if the message cannot be printed
        return "rejected", str(error)
    except CaseTimeout:
        return "failed", f"took longer than {TIMEOUT} s: {traceback.format_exc(limit=-4)}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        lines = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        return "failed", f"{type(error).__name__}: {str(error)[:300]!a} at {lines}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        os.chdir(work)
        shutil.rmtree(folder, ignore_errors=True)


def run_cases(targets: dict[str, Target], case_indices: Sequence[int], seed: int, note: Path) -> dict[str, object]:
    """Run all cases; the file ``note`` contains the current one, in case this process dies."""

    def raise_timeout(*_: object) -> None:
        raise CaseTimeout

    signal.signal(signal.SIGALRM, raise_timeout)
    names, failures = [*targets], []
    counts = Counter(worked=0, rejected=0, failed=0)
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = f"{work}/cache"
        for index in range(len(names)):  # imports and one-time initialization do not count as growth
            run_case(targets[names[index]], -1 - index, seed, Path(work))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + HEADROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))
        before = read_memory("VmRSS")
        start = time.monotonic()
        for case_index in case_indices:
            name = names[case_index % len(names)]
            note.write_text(f"case {case_index} of seed {seed} ({name})")
            outcome, reason = run_case(targets[name], case_index, seed, Path(work))
            counts[outcome] += 1
            if outcome == "failed":
                failures.append({"case": case_index, "seed": seed, "target": name, "reason": reason})
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # freed memory does not count as growth
        growth = read_memory("VmRSS") - before
    if growth > MAX_GROWTH:
        failures.append({"reason": f"the process grew by {growth:,} bytes over all cases"})
    return {
        "cases": len(case_indices),
        **counts,
        "growth": growth,
        "seconds": round(time.monotonic() - start, 1),
        "failures": failures,
    }


def main() -> int:
    """Run the cases selected on the command line, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument(
        "--run", type=Path, help="a run of a small image classifier; without it, the files of runs are omitted"
    )
    parser.add_argument("--only", help="names of targets, separated by commas")
    parser.add_argument("--note", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-case.txt")
    options = parser.parse_args()
    remote.RETRY_DELAY = 0.0
    logging.disable(logging.CRITICAL)
    threading.stack_size(1 << 20)
    targets = build_targets(options.run.resolve() if options.run else None)
    case_indices = range(options.first, options.first + options.cases)
    only = options.only.split(",") if options.only else [*targets]
    results = run_cases(
        targets, [n for n in case_indices if [*targets][n % len(targets)] in only], options.seed, options.note
    )
    sys.stdout.write(json.dumps(results))
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
