"""Broken and hostile files, from a seed: each is read in this process, and either works or is refused by name.

    python tests/fuzz_cases.py [--cases 2000] [--seed 0] [--first 0] [--only coco]

Case ``number`` of a seed is always the same, so a failure is repeated by ``--seed S --first NUMBER --cases 1``.
``test_fuzz.py`` and ``benchmarks/fuzz.py`` start this as a process of its own: a limit on its address space makes an
allocation that is too large an error, and a crash or a hang ends this process alone, which has noted the case.
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
import torch
from PIL import Image

from fukami import leaderboard
from fukami.captioning import data as captioning_data
from fukami.cli import dataset_checks, import_weights
from fukami.data import class_tables, image_folder, labelled_images, remote, shards
from fukami.detection import data as detection_data
from fukami.engine import checkpoint, pretrained
from fukami.errors import Error
from fukami.generation import data as generation_data
from fukami.segmentation import data as segmentation_data

SECONDS = 20  # that a case may take: a hang, on a machine that is busy
HEADROOM = 700 << 20  # bytes of address space beyond what is mapped before the first case
GROWTH = 200 << 20  # bytes that the process may grow by while it reads a case, and over all cases
LARGEST = 2 << 20  # bytes of a file of text
Random = random.Random


class TooLong(BaseException):
    """A case that takes too long; no reader catches it."""


class TooMuch(BaseException):
    """A case in which reading takes too much memory; likewise."""


@dataclass(frozen=True)
class Target:
    """A kind of file: ``make(random, folder)`` writes a mutated one, ``read(folder)`` reads it as the library does."""

    make: Callable[[Random, Path], None]
    read: Callable[[Path], object]


# ---- mutations of bytes, text and JSON -------------------------------------------------------------------------------


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Truncate, flip, overwrite, splice or repeat, once or a few times."""
    found = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice([1, 2, 4, 8, 64, 512]))
        kind = random.randrange(7)
        if kind == 0:
            del found[at:]
        elif kind == 1 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif kind == 2:
            found[at:end] = bytes([random.choice([0, 0x7F, 0x80, 0xFF])]) * (end - at)
        elif kind == 3:
            found[at:end] = random.randbytes(end - at)
        elif kind == 4:
            other = random.randrange(len(found) + 1)
            found[at:at] = found[other : other + 512]
        elif kind == 5:
            del found[at:end]
        else:
            found[at:end] = struct.pack("<q", random.choice([-1, -512, 1 << 31, 1 << 40, (1 << 63) - 1]))[: end - at]
    return bytes(found)


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
    """Replace, insert or repeat a word or a line, or treat it as bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, content.encode())
    for _ in range(random.choice([1, 1, 2, 4])):
        lines = content.split("\n")
        at = random.randrange(len(lines))
        words = lines[at].split(" ")
        place = random.randrange(len(words))
        kind = random.randrange(5)
        if kind < 3:
            old = words[place]
            new = random.choice(NUMBERS if random.random() < 0.5 else WORDS)
            cut = random.randrange(len(old) + 1)
            words[place] = random.choice([new, old[:cut] + new + old[cut:], old[:cut] + new])
            lines[at] = " ".join(words)
        elif kind == 3:
            again = lines[random.randrange(len(lines))]
            lines[at:at] = [again] * min(random.choice([1, 1000]), LARGEST // (len(again) + 1))
        else:
            lines[at] = random.choice(
                ["[" * 5000, "- " * 5000, "<a>" * 5000, "{a: " * 2000, (lines[at] * 500)[:LARGEST], " " * 50_000 + "x"]
            )
        content = "\n".join(lines)[:LARGEST]
    return content.encode("utf-8", "surrogatepass")


def values(random: Random, old: object) -> object:
    """What stands in JSON in place of a value."""
    deep: object = 0
    for _ in range(random.choice([5, 60, 300])):  # three of them in one another can still be written
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    return random.choice([
        None, True, False, 0, -1, 1, 0.5, float("nan"), float("inf"), -float("inf"), 1e308, 10**30, -(10**30), 1 << 63,
        -512, "", "0", "a" * 10_000, "\ud800", "../../../etc/passwd", "/etc/passwd", "\0", "a" * 300, [], {}, [[]],
        [None], [old], {"a": old}, [old] * 300, list(range(3000)), deep, "nan", "1e999", "x.py",
        {"size": [1 << 20, 1 << 20]},
    ])  # fmt: skip


def mutate_json(random: Random, content: str) -> bytes:
    """Replace, remove, repeat or rename parts, or treat it as text."""
    kind = random.random()
    if kind < 0.15:
        return mutate_bytes(random, content.encode())
    if kind < 0.25:
        return mutate_text(random, content)
    root = json.loads(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places: list[tuple[object, object]] = []
        stack: list[object] = [root]
        while stack and len(places) < 10_000:
            node = stack.pop()
            children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, child in children:
                places.append((node, key))
                stack.append(child)
        if not places:
            break
        node, key = random.choice(places)
        how = random.randrange(6)
        if len(json.dumps(root)) > LARGEST // 500:  # as large as it may become
            break
        if how < 4:
            node[key] = values(random, node[key])  # type: ignore[index]
        elif how == 4:
            del node[key]  # type: ignore[attr-defined]
        elif isinstance(node, list):
            node.extend(node[:1] * random.choice([1, 500]))
        else:
            node[random.choice(WORDS[3:])] = values(random, None)  # type: ignore[index]
    text = json.dumps(root)
    if random.random() < 0.05:
        at = random.randrange(len(text))
        text = text[:at] + random.choice(["[" * 100_000, '{"a":' * 50_000, "9" * 5000, "1e999"]) + text[at:]
    return text.encode()


# ---- runs ------------------------------------------------------------------------------------------------------------


def run_with(run: Path, name: str, change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Path], None]:
    """A copy of a run in which one file is changed."""

    def make(random: Random, place: Path) -> None:
        (place / "run").mkdir()
        for file in run.iterdir():
            if file.is_file() and file.name != name:
                (place / "run" / file.name).symlink_to(file)
        (place / "run" / name).write_bytes(change(random, (run / name).read_bytes()))

    return make


def mutate_safetensors(random: Random, content: bytes) -> bytes:
    """Change the header, its length, or the numbers."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
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
        at = 4 * random.randrange(len(rest) // 4)
        rest = rest[:at] + struct.pack("<f", value) + rest[at + 4 :]
    return len(header).to_bytes(8, "little") + header + rest


def mutate_torch(random: Random, content: bytes) -> bytes:
    """Change the bytes, or one of the parts of the archive, which may come out compressed."""
    if random.random() < 0.4 or not content.startswith(b"PK"):
        return mutate_bytes(random, content)
    found = io.BytesIO()
    method = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(found, "w", method) as new:
        names = old.namelist()
        changed = random.choice(names)
        for name in names:
            part = old.read(name)
            if name == changed:
                part = random.choice([mutate_bytes(random, part), b"", bytes(1 << 20), part + part])
            new.writestr(name, part)
    return found.getvalue()


def weights_file(random: Random, place: Path) -> None:
    """A file of weights as a user gives it, with tensors that no network can begin with."""
    tensors = {"features.0.weight": torch.randn(4, 3, 3, 3), "features.0.bias": torch.randn(4)}
    odd = (
        torch.zeros(1).expand(1 << 36), torch.ones(3, dtype=torch.complex64), torch.eye(3).to_sparse(),
        torch.empty(1 << 40, device="meta"), torch.full((2,), float("nan")), torch.ones(2, dtype=torch.bool),
        torch.zeros(0, 1 << 40), "text", [torch.ones(1)], {"a": 1}, None, torch.zeros(1).half().expand(1 << 30),
    )  # fmt: skip
    if random.random() < 0.7:
        tensors[random.choice(["features.0.weight", "other", ""])] = random.choice(odd)
    found = io.BytesIO()
    torch.save(tensors, found, _use_new_zipfile_serialization=random.random() < 0.7)
    content = found.getvalue()
    (place / "weights.pth").write_bytes(mutate_torch(random, content) if random.random() < 0.6 else content)


def params_file(random: Random, place: Path) -> None:
    """Parameters of a NumPy program, a pickle, of a DeepConvNet as small as there is."""
    import pickle

    convolutions = {f"W{n}": np.ones((1, 1, 3, 3), np.float32) for n in range(1, 7)}
    params = {**convolutions, "W7": np.ones((16, 1), np.float32), "W8": np.ones((1, 2), np.float32)}
    params |= {f"b{n}": np.zeros(2 if n == 8 else 1, np.float32) for n in range(1, 9)}
    if random.random() < 0.4:
        shape = random.choice([(0, 1 << 40), (1 << 16, 1), (1, 1 << 16), (0,), (), (1 << 14, 1, 1, 1), (1, 0, 3, 3)])
        params[random.choice([*params])] = np.ones(shape, random.choice([np.float32, np.float16, np.int64]))
    content = pickle.dumps(params, random.choice([0, 2, 4]))
    (place / "params.pkl").write_bytes(mutate_bytes(random, content) if random.random() < 0.6 else content)


# ---- shards and archives ---------------------------------------------------------------------------------------------


def png(value: int = 9) -> bytes:
    """A small image."""
    found = io.BytesIO()
    Image.new("L", (9, 8), value).save(found, "PNG")
    return found.getvalue()


def tar_bytes() -> bytes:
    """A shard of four samples, one with a long name."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, name in enumerate(("a/1", "b/2", "a/" + "x" * 150, "b/4")):
            for suffix, content in ((".png", png(number)), (".cls", str(number % 2).encode())):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return found.getvalue()


def mutate_tar(random: Random, content: bytes) -> bytes:
    """Change the size, the kind or the name in one of the headers, and the checksum with it; or any bytes."""
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    found = bytearray(content)
    for _ in range(random.choice([1, 1, 3])):
        at = 512 * random.randrange(len(found) // 512)
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
            big = [-512, -1, 1 << 40, 1 << 62, -(1 << 62)]
            large = [(b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True) for size in big]
            found[at + 124 : at + 136] = random.choice(sizes + large)
        elif kind == 1:
            found[at + 156 : at + 157] = random.choice(
                [b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"3", b"5", b"6", b"\0", b"Z"]
            )
        else:
            name = random.choice(
                [b"../../out", b"/tmp/out", b"a/../../../out", b"", b".", b"\xff\xfe", b"a\\..\\..\\b", b"C:/x"]
            )
            found[at : at + 100] = name.ljust(100, b"\0")
        header = bytes(found[at : at + 148]) + b" " * 8 + bytes(found[at + 156 : at + 512])
        found[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(found)


def shards_folder(random: Random, place: Path) -> None:
    """Two shards, with a broken one or a broken index."""
    content = tar_bytes()
    (place / "shards").mkdir()
    for part in ("train-0.tar", "train-1.tar"):
        (place / "shards" / part).write_bytes(content)
    if random.random() < 0.5:
        (place / "shards" / "train-1.tar").write_bytes(mutate_tar(random, content))
    else:
        size = len(content)
        each = {"bytes": size, "classes": [0, 1], "starts": [0, 2048], "lengths": [2048, 2048], "problems": ["one"]}
        index = {"labels": ["a", "b"], "train": [{"name": f"train-{n}.tar", **each} for n in (0, 1)], "test": []}
        (place / "shards" / "index.json").write_bytes(mutate_json(random, json.dumps(index)))


def read_shards(place: Path) -> None:
    """Every sample."""
    dataset_checks.validate_dataset(str(place / "shards"))
    train, _, _ = labelled_images.load_labelled_images(str(place / "shards"), 0.0)
    items = train.items
    assert isinstance(items, shards.ShardSamples)
    for number in range(min(len(items), 20)):
        items[number]


def bomb(random: Random) -> tuple[str, bytes]:
    """An archive that unpacks to far more than it is."""
    kind = random.randrange(5)
    if kind == 0:  # members that share their bytes
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
                        20 << 20, 1, 0, 0, 0, 0, 0, 0) + bytes([65 + number % 60])
            for number in range(300)
        )  # fmt: skip
        end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 300, 300, len(entries), len(local + body), 0)
        return "zip", local + body + entries + end
    found = io.BytesIO()
    if kind == 1:
        with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number in range(8):
                archive.writestr(f"{number}.png", bytes(20 << 20))
        return "zip", found.getvalue()
    with tarfile.open(fileobj=found, mode=f"w:{('gz', 'bz2', 'xz')[kind - 2]}") as compressed:
        member = tarfile.TarInfo("a/1.png")
        member.size = 70 << 20 if kind == 2 else 1 << 20
        compressed.addfile(member, io.BytesIO(bytes(member.size)))
        name = tarfile.TarInfo("x" * (2 << 20))  # a header of its own, which a reader holds whole
        compressed.addfile(name)
    return f"tar.{('gz', 'bz2', 'xz')[kind - 2]}", found.getvalue()


def linked_tar(random: Random) -> bytes:
    """A tar archive with a member that leads out of it."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as archive:
        member = tarfile.TarInfo(random.choice(["a/1.png", "../escaped.png", "/tmp/escaped.png", "a"]))
        member.type = random.choice(
            [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE]
        )
        member.linkname = random.choice(["..", "../../..", "/etc", "/etc/passwd"])
        archive.addfile(member)
        inside = tarfile.TarInfo("a/1.png/escaped.png")
        inside.size = 4
        archive.addfile(inside, io.BytesIO(b"text"))
    return found.getvalue()


def archive_file(random: Random, place: Path) -> None:
    """A zip or tar archive of images by class, broken, hostile, or larger than it looks."""
    kind = random.random()
    if kind < 0.04:
        suffix, content = bomb(random)
    elif kind < 0.2:
        suffix, content = "tar", linked_tar(random)
    elif kind < 0.5:
        suffix, content = "tar", mutate_tar(random, tar_bytes())
    elif kind < 0.65:
        suffix = random.choice(["tar.gz", "tar.bz2", "tar.xz"])
        found = io.BytesIO()
        with tarfile.open(fileobj=found, mode=f"w:{suffix[4:]}") as archive:
            for label in "ab":
                member = tarfile.TarInfo(f"{label}/1.png")
                member.size = len(png())
                archive.addfile(member, io.BytesIO(png()))
        content = mutate_bytes(random, found.getvalue())
        if random.random() < 0.5:
            pack = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}[suffix]
            content = pack(mutate_tar(random, tar_bytes()))
    else:
        found, suffix = io.BytesIO(), "zip"
        with zipfile.ZipFile(
            found, "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
        ) as packed:
            for name in (
                "a/1.png",
                "b/2.png",
                random.choice(["b/3.png", "../escaped.png", "/escaped.png", "d/" * 40 + "x.png"]),
            ):
                packed.writestr(name, png())
        content = mutate_bytes(random, found.getvalue()) if random.random() < 0.7 else found.getvalue()
    (place / f"images.{suffix}").write_bytes(content)


def read_archive(place: Path) -> None:
    """Unpack; nothing may be written elsewhere, and nothing may stay of what is refused."""
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "fukami" / "unpacked"
    (archive,) = place.glob("images.*")
    try:
        labelled_images.load_labelled_images(str(archive), 0.2)
    finally:
        escaped = [path for root in (place, cache.parent, Path("/tmp")) for path in root.glob("escaped*")]
        left = [path for path in cache.iterdir() if not path.name.startswith("images")] if cache.exists() else []
        links = [path for path in cache.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
        shutil.rmtree(cache, ignore_errors=True)
        assert not escaped and not left and not links, (escaped, left, links)  # noqa: PT018


def name_of(random: Random) -> str:
    """What may stand for ``--data``, in a run's recipe too."""
    braces = ["{0..999999999999}.tar", "{a,b}" * 40 + ".tar", "{9..1}.tar", "{}.tar", "x{a,{1..3}}.tar", "{0..9}/x.tar"]
    return random.choice(
        [*WORDS, *NUMBERS, *braces, "scenes.tar", "x.csv", "https:", "http://", "http://\u00fc/x{1..2}.tar"]
    )


def read_name(place: Path) -> None:
    """Look for a data set of every kind under a name."""
    name = (place / "name").read_text()
    readers = [
        labelled_images.load_labelled_images,
        detection_data.load_dataset,
        segmentation_data.load_dataset,
        captioning_data.load_dataset,
        generation_data.load_dataset,
    ]
    refusals = []
    for read in readers:
        try:
            read(name, 0.2)
        except Error as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


# ---- annotations -----------------------------------------------------------------------------------------------------


def image_files(place: Path) -> None:
    """Two images of 9×8 pixels."""
    for name in ("1.png", "2.png"):
        (place / name).write_bytes(png())


def coco_json() -> str:
    """An annotation file of two images with polygons, run lengths of both kinds, and a crowd."""
    outlines = [
        [[1, 1, 5, 1, 5, 5]],
        {"size": [8, 9], "counts": [3, 4, 65]},
        {"size": [8, 9], "counts": "34m1"},
        [[0, 0, 9, 0, 9, 8, 0, 8]],
    ]
    return json.dumps({
        "images": [{"id": n, "file_name": f"{n}.png", "width": 9, "height": 8} for n in (1, 2)],
        "annotations": [
            {"id": n, "image_id": 1 + n % 2, "category_id": 1 + n % 2, "bbox": [1, 1, 4, 4], "area": 9.5,
             "iscrowd": n % 2, "segmentation": outline}
            for n, outline in enumerate(outlines)
        ],
        "categories": [{"id": n, "name": f"thing {n}", "supercategory": "none"} for n in (1, 2)],
    })  # fmt: skip


def coco_folder(random: Random, place: Path) -> None:
    """COCO's layout."""
    image_files(place)
    (place / "annotations.json").write_bytes(mutate_json(random, coco_json()))


def read_boxes(place: Path) -> None:
    """Every box, and every mask where there are any; as training reads them, and as the doctor does."""
    dataset_checks.validate_dataset(str(place))
    if segmentation_data.is_segmentation_dataset(str(place)):
        train, test, _ = segmentation_data.load_dataset(str(place), 0.0)
        for sample in (*train, *test):
            assert sample.mask is not None
            sample.mask.read()
    detection_data.load_dataset(str(place), 0.0)


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


def voc_folder(random: Random, place: Path) -> None:
    """VOC's layout, with a list."""
    image_files(place)
    (place / "2.xml").write_text(VOC.replace("1.png", "2.png"))
    special = (
        LAUGHS,
        QUADRATIC,
        OUTSIDE,
        VOC.replace("?>", f' encoding="{random.choice(["punycode", "idna", "zip", "gbk", "utf-7", "x"])}"?>') + "é" * 9,
        "<a>" * 100_000,
    )
    text = random.choice(special) if random.random() < 0.15 else ""
    (place / "1.xml").write_bytes(text.encode() or mutate_text(random, VOC))
    if random.random() < 0.4:
        for name, pattern in (("Annotations", "*.xml"), ("JPEGImages", "*.png")):
            (place / name).mkdir()
            for file in place.glob(pattern):
                file.rename(place / name / file.name)
        (place / "ImageSets" / "Main").mkdir(parents=True)
        (place / "ImageSets" / "Main" / "train.txt").write_bytes(mutate_text(random, "1  1\n2 -1\n3\n"))


def yolo_folder(random: Random, place: Path) -> None:
    """YOLO's layout: a YAML file, images and their labels."""
    for name in ("images", "labels"):
        (place / name).mkdir()
    image_files(place / "images")
    labels, data = (
        "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.3 0.1 0.3 0.3\n",
        "train: images\nval: images\nnames:\n  0: cat\n  1: dog\n",
    )
    bomb = (
        "a: &a [x,x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)},' * 9}]\n" for n in range(9))
        + "names: *j\n"
    )
    other = random.choice(
        [
            bomb,
            "names: 1" + ":59" * 20_000,
            "names: " + "[" * 20_000,
            "names: !!python/object/apply:os.system [x]",
            "names: 2001-99-99",
        ]
    )
    which = random.random()
    (place / "data.yaml").write_bytes(
        other.encode() if which < 0.1 else mutate_text(random, data) if which < 0.5 else data.encode()
    )
    (place / "labels" / "1.txt").write_bytes(mutate_text(random, labels))
    if random.random() < 0.3:  # as Darknet has it
        (place / "data.yaml").unlink()
        (place / "obj.data").write_bytes(
            mutate_text(random, "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
        )
        (place / "obj.names").write_bytes(mutate_text(random, "cat\ndog\n"))
        (place / "train.txt").write_bytes(mutate_text(random, "data/images/1.png\ndata/images/2.png\n"))


def csv_file(random: Random, place: Path) -> None:
    """A CSV file of images and labels."""
    image_files(place)
    text = "path,label,split\n1.png,a,train\n2.png,b,test\n"
    (place / "list.csv").write_bytes(mutate_text(random, text.replace(",", random.choice([",", ", "]))))


def captions_folder(random: Random, place: Path) -> None:
    """Images with sentences, in one of the formats."""
    image_files(place)
    both = [{"id": n, "file_name": f"{n}.png"} for n in (1, 2)]
    said = [{"image_id": n, "caption": "a thing", "id": n} for n in (1, 2)]
    karpathy = [{"filename": f"{n}.png", "split": "train", "sentences": [{"raw": "a thing"}]} for n in (1, 2)]
    name, content = random.choice([
        ("captions_train.json", json.dumps({"images": both, "annotations": said})),
        ("dataset.json", json.dumps({"images": karpathy})),
        ("captions.txt", "image,caption\n1.png,a thing, red\n2.png,two things\n"),
        ("results.csv", "image_name| comment_number| comment\n1.png| 0| a thing\n2.png| 0| a thing\n"),
        ("said.token", "1.png#0\ta thing\n2.png#1\ttwo things\n"),
        ("list.csv", "image,caption,split\n1.png,a thing,train\n2.png,a thing,test\n"),
    ])  # fmt: skip
    change = mutate_json if name.endswith(".json") else mutate_text
    (place / name).write_bytes(change(random, content))


def masks_folder(random: Random, place: Path) -> None:
    """Images and masks, with a class table."""
    for name in ("images", "masks"):
        (place / name).mkdir()
        image_files(place / name)
    text = random.choice(
        ["road\nsky\n", "road 9\nsky 1\n", "road,128,64,128\nsky,9,9,9\n", "# label: r, g, b\nsky: 9, 9, 9\n"]
    )
    (place / random.choice(["classes.txt", "class_dict.csv"])).write_bytes(mutate_text(random, text))


def read_masks(place: Path) -> None:
    """Every mask, and the class table."""
    dataset_checks.validate_dataset(str(place))
    class_tables.find_class_table(place)
    train, _, _ = segmentation_data.load_dataset(str(place), 0.0)
    for sample in train:
        assert sample.mask is not None
        sample.mask.read()


def read_table(place: Path) -> None:
    """Every row."""
    dataset_checks.validate_dataset(str(place / "list.csv"))
    image_folder.read_csv(place / "list.csv")


def read_captions(place: Path) -> None:
    """Every sentence."""
    dataset_checks.validate_dataset(str(place))
    captioning_data.load_dataset(str(place), 0.2)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


@functools.cache
def onnx_model() -> bytes:
    """A small classifier as ``fukami export`` writes it."""
    from fukami.quantization.onnx_export import export_onnx

    return export_onnx(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), (1, 2, 2), {"labels": "a b"})


def onnx_file(content: bytes) -> Callable[[Random, Path], None]:
    """The model changed: its bytes, its weights, its operations or its shapes."""

    def make(random: Random, place: Path) -> None:
        import onnx

        model = onnx.ModelProto.FromString(content)
        kind, graph = random.randrange(6), model.graph
        if kind == 0:
            tensor = random.choice(graph.initializer)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            where = random.choice(["weights.bin", "/etc/passwd", "../weights.bin", "*/_ORT_MEM_ADDR_/*", ""])
            tensor.external_data.add(key="location", value=where)
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
        (place / "model.onnx").write_bytes(mutate_bytes(random, content) if kind > 3 else model.SerializeToString())

    return make


def read_onnx(place: Path) -> None:
    """Load the network and compute with it."""
    from fukami.quantization.onnx_export import OnnxNetwork

    OnnxNetwork((place / "model.onnx").read_bytes())(torch.zeros(2, 1, 2, 2))


# ---- all of them -----------------------------------------------------------------------------------------------------


def all_targets(run: Path | None) -> dict[str, Target]:
    """The kinds of files by name; those of a run only where there is a run."""
    found = {
        "name": Target(lambda random, place: (place / "name").write_text(name_of(random), errors="replace"), read_name),
        "shards": Target(shards_folder, read_shards),
        "archive": Target(archive_file, read_archive),
        "coco": Target(coco_folder, read_boxes),
        "voc": Target(voc_folder, read_boxes),
        "yolo": Target(yolo_folder, read_boxes),
        "csv": Target(csv_file, read_table),
        "captions": Target(captions_folder, read_captions),
        "masks": Target(masks_folder, read_masks),
        "onnx": Target(onnx_file(onnx_model()), read_onnx),
        "weights": Target(weights_file, lambda place: pretrained.read_state_dict(place / "weights.pth")),
        "params": Target(
            params_file, lambda place: import_weights.import_deep_convnet(place / "params.pkl", place / "out")
        ),
    }
    if run is None:
        return found

    def load(place: Path) -> None:
        checkpoint.load(place / "run", device="cpu")

    def state(place: Path) -> None:
        checkpoint.read_state(place / "run", torch.device("cpu"))

    def survey(place: Path) -> None:
        leaderboard.load_leaderboards(place)

    def described(place: Path) -> None:
        checkpoint.read_recipe(place / "run")

    def of_run(name: str, change: Callable[[Random, bytes], bytes], read: Callable[[Path], object]) -> Target:
        return Target(run_with(run, name, change), read)

    def text(random: Random, content: bytes) -> bytes:
        return mutate_json(random, content.decode())

    def lines(random: Random, content: bytes) -> bytes:
        some = content.decode().split("\n")
        at = random.randrange(len(some))
        changed = mutate_json(random, some[at]) if some[at] else mutate_text(random, "x")
        return b"\n".join([*map(str.encode, some[:at]), changed, *map(str.encode, some[at + 1 :])])

    return {
        **found,
        "recipe.json": of_run("recipe.json", text, described),
        "recipe.json on a board": of_run("recipe.json", text, survey),
        "recipe.json loaded": of_run("recipe.json", text, load),
        "weights.safetensors": of_run("weights.safetensors", mutate_safetensors, load),
        "weights.safetensors on a board": of_run("weights.safetensors", mutate_safetensors, survey),
        "last.ckpt": of_run("last.ckpt", mutate_torch, state),
        "metrics.jsonl": of_run("metrics.jsonl", lines, survey),
    }


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error came of an allocation that was too large, however it is called by now."""
    while error is not None:
        words = (
            "bad_alloc",
            "bad allocation",
            "allocate memory",
            "Unable to allocate",
            "out of memory",
            "Failed to allocate",
        )
        if isinstance(error, MemoryError) or any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def memory(field: str) -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def peak_from_now() -> int:
    """Let the peak of the memory count from here; the bytes that are taken now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def run_case(target: Target, number: int, seed: int, work: Path) -> tuple[str, str]:
    """``worked``, ``refused`` or ``failed``, and why."""
    place = work / "case"
    place.mkdir()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    try:
        target.make(Random(f"{seed} {number}"), place)
        before = peak_from_now()
        os.chdir(place)
        try:
            target.read(place)
        finally:
            if (grown := memory("VmHWM") - before) > GROWTH:
                raise TooMuch(f"the process grew by {grown:,} bytes")
        return "worked", ""
    except Error as error:
        if out_of_memory(error):
            return "failed", f"out of memory: {error}"[:400]
        str(error).encode()  # it can be printed
        return "refused", str(error)
    except TooLong:
        return "failed", f"took longer than {SECONDS} s: {traceback.format_exc(limit=-4)}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-4:]
        lines = " < ".join(f"{Path(each.filename).name}:{each.lineno}" for each in reversed(where))
        return "failed", f"{type(error).__name__}: {str(error)[:300]!a} at {lines}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        os.chdir(work)
        shutil.rmtree(place, ignore_errors=True)


def run_cases(targets: dict[str, Target], numbers: Sequence[int], seed: int, note: Path) -> dict[str, object]:
    """Run every case; ``note`` has the number of the one that runs, for whoever finds this process dead."""

    def end(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, end)
    names, failures = [*targets], []
    counts = Counter(worked=0, refused=0, failed=0)
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = f"{work}/cache"
        for number in range(len(names)):  # what is imported and started once is no growth
            run_case(targets[names[number]], -1 - number, seed, Path(work))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + HEADROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))
        before = memory("VmRSS")
        began = time.monotonic()
        for number in numbers:
            name = names[number % len(names)]
            note.write_text(f"case {number} of seed {seed} ({name})")
            how, why = run_case(targets[name], number, seed, Path(work))
            counts[how] += 1
            if how == "failed":
                failures.append({"case": number, "seed": seed, "target": name, "why": why})
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what is free already is no growth
        growth = memory("VmRSS") - before
    if growth > GROWTH:
        failures.append({"why": f"the process grew by {growth:,} bytes over all cases"})
    return {
        "cases": len(numbers),
        **counts,
        "growth": growth,
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures,
    }


def main() -> int:
    """Run the cases that the command line asks for; print one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0)
    options.add_argument(
        "--run", type=Path, help="a run of an image classifier, small; without it its files are left out"
    )
    options.add_argument("--only", help="kinds of files, by name, separated by commas")
    options.add_argument("--note", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-case.txt")
    given = options.parse_args()
    remote.RETRY_DELAY = 0.0
    logging.disable(logging.CRITICAL)
    threading.stack_size(1 << 20)
    targets = all_targets(given.run.resolve() if given.run else None)
    numbers = range(given.first, given.first + given.cases)
    only = given.only.split(",") if given.only else [*targets]
    found = run_cases(targets, [n for n in numbers if [*targets][n % len(targets)] in only], given.seed, given.note)
    sys.stdout.write(json.dumps(found))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
