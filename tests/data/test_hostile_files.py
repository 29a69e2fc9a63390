"""Untrusted datasets: nothing outside of them is read or written, and small files do not expand to large data."""

import bz2
import gzip
import io
import json
import lzma
import os
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fukami import Error
from fukami.cli import doctor
from fukami.data import (
    archives,
    captions,
    coco,
    label_tables,
    labeled_images,
    mnist,
    tar,
    voc,
    yaml_file,
    yolo,
)
from fukami.data.sources import identify_source
from fukami.detection import data as detection_data
from fukami.engine import pretrained, state_dicts, tensor_files
from fukami.image import io as image_io
from fukami.segmentation import data as segmentation_data
from fuzz_cases import LAUGHS, OUTSIDE, QUADRATIC, create_archive_bomb, create_png


@pytest.fixture
def cache():
    """Return the folder that archives are unpacked into."""
    return Path(os.environ["XDG_CACHE_HOME"]) / "fukami" / "unpacked"


def write_tar(path, members, mode="w", **options):
    """Write a tar archive of names, contents and member types."""
    with tarfile.open(path, mode, **options) as archive:
        for name, content, *kind in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if kind:
                member.type, member.linkname = kind
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path, members):
    """Write a zip archive of names and contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def assert_rejected(archive, message, cache):
    """Assert that the archive is rejected with this message, and that no file is left."""
    files_before = set(archive.parent.rglob("*"))
    with pytest.raises(Error, match=message):
        archives.unpack(archive)
    assert list(cache.iterdir()) == []
    assert set(archive.parent.rglob("*")) == files_before


# ---- archives --------------------------------------------------------------------------------------------------------

OUTSIDE_NAMES = ["../out.png", "a/../../out.png", "/tmp/fukami-out.png", "..", "a\\..\\..\\out.png", "C:/out.png"]


@pytest.mark.parametrize("name", OUTSIDE_NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archive_members_are_not_written_outside(kind, name, tmp_path, cache):
    members = [("a/1.png", create_png()), (name, b"out"), ("b/2.png", create_png())]
    archive = (write_tar if kind == "tar" else write_zip)(tmp_path / f"x.{kind}", members)
    assert_rejected(archive, "leads outside it", cache)
    assert not Path("/tmp/fukami-out.png").exists()


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, "a"),
        (tarfile.LNKTYPE, "a/1.png"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
        (tarfile.GNUTYPE_SPARSE, ""),
    ],
)
def test_links_and_devices_in_a_tar_archive_are_rejected(kind, where, tmp_path, cache):
    members = [("a/1.png", create_png()), ("link", b"", kind, where), ("link/2.png", create_png())]
    assert_rejected(write_tar(tmp_path / "x.tar", members), "'link' is a link or a device", cache)


@pytest.mark.parametrize("encoding", ["utf-8", "cp932"])
def test_names_of_zip_members_without_the_mark_of_utf8(tmp_path, cache, encoding):
    """macOS writes UTF-8 and Japanese versions of Windows write code page 932, both without the mark."""
    name = "猫/写真1.png"
    archive = write_zip(tmp_path / "a.zip", [("x" * len(name.encode(encoding)), b"1"), ("café.png", b"2")])
    content = archive.read_bytes().replace(b"x" * len(name.encode(encoding)), name.encode(encoding))
    archive.write_bytes(content)
    folder = archives.unpack(archive)
    assert (folder / name).read_bytes() == b"1"
    assert (folder / "café.png").read_bytes() == b"2"


def test_names_of_zip_members_in_an_extra_field(tmp_path, cache, monkeypatch):
    """Since Python 3.13, zipfile reads them from the field for Unicode paths (0x7075)."""
    archive = write_zip(tmp_path / "a.zip", [("x/1.png", b"1"), ("y/1.png", b"2")])

    def list_members(file):
        infos = [*file.filelist]
        for info, name in zip(infos, ("猫/1.png", "犬/1.png"), strict=True):
            info.filename, info.flag_bits = name, 0
        return infos

    monkeypatch.setattr(zipfile.ZipFile, "infolist", list_members)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda file, info: io.BytesIO(info.orig_filename.encode()))
    folder = archives.unpack(archive)
    assert (folder / "猫" / "1.png").read_bytes() == b"x/1.png"
    assert (folder / "犬" / "1.png").read_bytes() == b"y/1.png"


def test_folders_of_an_archive_count_as_content(tmp_path, cache, monkeypatch):
    """Each member may create 32 folders, which take a block of a disk each."""
    members = [(f"{number}/" + "a/" * 20 + "1.png", b"") for number in range(100)]
    archive = write_tar(tmp_path / "x.tar.gz", members, "w:gz")
    monkeypatch.setattr(archives, "BASE_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MAX_RATIO", 20)
    assert archive.stat().st_size < 5000
    assert_rejected(archive, "unpacks to more than", cache)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_an_archive_that_ends_between_two_members_is_rejected(tmp_path, cache, suffix):
    archive = write_tar(tmp_path / "x.tar", [("a/1.png", b"1"), ("b/2.png", b"2")])
    content = archive.read_bytes()[:1024]  # header and content of the first member
    archive.unlink()
    archive = tmp_path / f"y.{suffix}"
    archive.write_bytes(gzip.compress(content) if suffix == "tar.gz" else content)
    assert_rejected(archive, "no end marker", cache)


def test_the_checksum_of_a_compressed_archive_is_verified(tmp_path, cache):
    archive = write_tar(tmp_path / "x.tar.gz", [("a/1.png", b"1")], "w:gz")
    content = bytearray(archive.read_bytes())
    content[-8] ^= 1  # the checksum is followed by the size
    archive.write_bytes(content)
    assert_rejected(archive, "CRC", cache)


def test_a_link_in_a_zip_archive_is_rejected(tmp_path, cache):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert_rejected(
        write_zip(tmp_path / "x.zip", [("a/1.png", create_png()), (link, "/etc")]), "is a link or a device", cache
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_decompression_bomb_is_rejected_and_leaves_no_files(seed, tmp_path, cache, random):
    """Zeros in a zip and in each type of compressed tar, names of two megabytes, and overlapping members."""
    import random as randomness

    suffix, content = create_archive_bomb(randomness.Random(seed))
    (tmp_path / f"x.{suffix}").write_bytes(content)
    assert_rejected(
        tmp_path / f"x.{suffix}", "unpacks to more than|overlaps another member|a header has a name of", cache
    )


@pytest.mark.parametrize("with_members", [False, True])
def test_headers_of_a_compressed_archive_are_limited(with_members, tmp_path, cache):
    """100 MB of headers that no member follows, or one after each, in some kilobytes."""
    pair = header("", 1 << 20, tarfile.XGLTYPE) + bytes(1 << 20)
    if with_members:
        pair += header("x", 0)
    (tmp_path / "x.tar.bz2").write_bytes(bz2.compress(pair * 100))
    assert_rejected(tmp_path / "x.tar.bz2", "unpacks to more than", cache)


def test_overlapping_members_are_rejected(tmp_path, cache):
    """Both entries of the central directory refer to the first member."""
    archive = write_zip(tmp_path / "x.zip", [("a/1.png", create_png()), ("a/2.png", create_png())])
    content = archive.read_bytes()
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    archive.write_bytes(content[: second + 42] + bytes(4) + content[second + 46 :])
    assert_rejected(archive, "overlaps another member", cache)


def test_the_unpacked_size_is_limited_by_the_free_disk_space(tmp_path, cache, monkeypatch):
    archive = write_zip(tmp_path / "x.zip", [("a/1.bin", os.urandom(5000)), ("b/2.bin", os.urandom(5000))])
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert_rejected(archive, r"unpacks to more than 9,000 bytes.* free space", cache)


def test_number_and_names_of_archive_members_are_limited(tmp_path, cache, monkeypatch):
    deep, long = "d/" * 32 + "x", "x" * 1025
    assert_rejected(write_zip(tmp_path / "deep.zip", [(deep, b"")]), "more than 32 folders", cache)
    assert_rejected(write_tar(tmp_path / "long.tar", [(long, b"")]), "more than 32 folders or 1024 bytes", cache)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    assert_rejected(write_zip(tmp_path / "many.zip", [(f"{n}", b"") for n in range(4)]), "more than 3 members", cache)


def test_interrupted_unpacking_leaves_no_files(tmp_path, cache, monkeypatch):
    archive = write_zip(tmp_path / "x.zip", [("a/1.png", create_png())])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "_check_member_path", interrupt)
    with pytest.raises(KeyboardInterrupt):
        archives.unpack(archive)
    assert list(cache.iterdir()) == []


FORMATS = [("w", tarfile.GNU_FORMAT), *((mode, tarfile.PAX_FORMAT) for mode in ("w", "w:gz", "w:bz2", "w:xz"))]


@pytest.mark.parametrize(("mode", "format"), FORMATS)
def test_a_tar_archive_is_unpacked_as_tarfile_unpacks_it(mode, format, tmp_path):
    """Folders, empty files, long names, Japanese names, and a repeated member."""
    members = [
        ("a", b"", tarfile.DIRTYPE, ""), ("a/1.png", create_png()), ("./b/empty", b""),
        ("写真/" + "長" * 60 + ".png", os.urandom(3000)), ("b/" + "x" * 200, os.urandom(512)),
        ("a/1.png", create_png(1)),
        ("b/large", bytes(3 << 20)),
    ]  # fmt: skip
    archive = write_tar(tmp_path / "x.tar", members, mode, format=format)
    with tarfile.open(archive) as expected:
        expected.extractall(tmp_path / "expected", filter="data")
    unpacked = archives.unpack(archive)
    names = {path.relative_to(unpacked) for path in unpacked.rglob("*")}
    assert names == {path.relative_to(tmp_path / "expected") for path in (tmp_path / "expected").rglob("*")}
    for name in names:
        if (unpacked / name).is_file():
            assert (unpacked / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.mark.parametrize("at", [100, 3000, 5700])
def test_concatenated_compressed_streams_are_one_archive(at, tmp_path):
    """``cat`` and parallel packers write such archives; a stream ends in a header, in a file, or in the next header."""
    plain = write_tar(tmp_path / "plain.tar", [("a/1", os.urandom(5000)), ("b/2", os.urandom(5000))]).read_bytes()
    for suffix, pack in (("gz", gzip.compress), ("xz", lzma.compress)):
        packed = tmp_path / f"x.tar.{suffix}"
        packed.write_bytes(pack(plain[:at]) + pack(plain[at:]))
        assert sorted(path.name for path in archives.unpack(packed).rglob("*")) == ["1", "2", "a", "b"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_empty_long_name_is_skipped(suffix, tmp_path):
    content = header("", 0, tarfile.GNUTYPE_LONGNAME) + header("x", 0) + bytes(1024)
    pack = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}[suffix]
    (tmp_path / f"x.{suffix}").write_bytes(pack(content))
    assert [path.name for path in archives.unpack(tmp_path / f"x.{suffix}").iterdir()] == ["x"]


@pytest.mark.slow
def test_xz_with_a_dictionary_of_gigabytes_is_rejected(tmp_path, cache):
    content = lzma.compress(create_png(), filters=[{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 30}])
    (tmp_path / "x.tar.xz").write_bytes(content)
    assert_rejected(tmp_path / "x.tar.xz", "emory", cache)


def test_an_mnist_file_that_unpacks_to_too_many_bytes_is_rejected(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(mnist.MAX_FILE_BYTES + 1), 1))
    with pytest.raises(Error, match="more than 47,040,016 bytes"):
        mnist.read_idx(tmp_path / "x", "")


# ---- tar headers -----------------------------------------------------------------------------------------------------


def header(name, size, kind=tarfile.REGTYPE):
    """Build a tar header with a size in base 256, which may be negative."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    return bytes(block)


def list_members(content):
    """Return the names in a tar file, and the reads."""
    reads = []

    def read(start, count):
        reads.append((start, count))
        assert len(reads) < 100, "endless loop"
        return content[start : start + count]

    return [member.name for member in tar.iterate_members(read)], reads


@pytest.mark.parametrize("size", [-512, -1, -1024, -(1 << 60)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_negative_size_in_a_tar_header_is_an_error(size, kind):
    """A size of -512 led to an endless loop on the same header."""
    with pytest.raises(tarfile.HeaderError, match="a header has a size of -"):
        list_members(header("x", 0) + header("y", size, kind))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGLINK])
def test_a_long_name_of_terabytes_is_not_read(kind):
    with pytest.raises(tarfile.HeaderError, match="a header has a name of"):
        list_members(header("x", 1 << 40, kind) + bytes(512))


def test_a_size_beyond_the_end_of_the_file_ends_the_iteration():
    assert list_members(header("x", 1 << 62))[0] == ["x"]


def test_the_last_of_several_long_names_is_used():
    long = header("", 512, tarfile.GNUTYPE_LONGNAME) + b"first".ljust(512, b"\0")
    assert list_members(long + long.replace(b"first", b"other") + header("x", 0))[0] == ["other"]


def test_a_pax_header_contains_name_and_size():
    payload = b"13 size=1000\n19 path=long name\n"
    content = (
        header("", len(payload), tarfile.XHDTYPE)
        + payload.ljust(512, b"\0")
        + header("x", 0)
        + bytes(1024)
        + header("y", 0)
    )
    assert list_members(content)[0] == ["long name", "y"]


# ---- annotations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "declares an entity"),
        (QUADRATIC, "declares an entity"),
        (OUTSIDE, "declares an entity"),
        ("<a>" * 60, "more than 50 nested elements"),
        ("<a>" * 200_000, "more than 50 nested elements"),
        (" " * (9 << 20), "more than the limit of 8,388,608"),
    ],
)
def test_unsafe_or_oversized_xml_is_rejected(text, message, tmp_path):
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(Error, match=message):
        voc.parse_xml(tmp_path / "x.xml")


def test_xml_in_a_python_specific_encoding_is_not_decoded(tmp_path, monkeypatch):
    """Punycode has quadratic run time."""

    def decode(content, errors):
        assert len(content) < 1000  # expat decodes only the 256 byte values
        raise UnicodeError

    monkeypatch.setattr("encodings.punycode.punycode_decode", decode)
    (tmp_path / "x.xml").write_text('<?xml version="1.0" encoding="punycode"?>-' + "a" * 1_000_000)
    with pytest.raises(Error, match="is not in punycode"):
        voc.parse_xml(tmp_path / "x.xml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nnames: [*a, *a]\n", "line 1: is not valid YAML .anchors"),
        ("names: " + "[" * 20_000, "nested too deeply"),
        ("names: " + "x" * (3 << 20), "more than the limit of 262,144"),
        ("names: [a\n", "is not valid YAML"),
    ],
)
def test_unsafe_or_invalid_yaml_is_rejected(text, message, tmp_path):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(Error, match=message):
        yaml_file.load_yaml(tmp_path / "data.yaml")


def test_a_description_of_empty_lines_is_searched_in_linear_time(tmp_path):
    """A search that starts at each of 300,000 lines and reads to the end would take minutes."""
    (tmp_path / "x.yaml").write_text("\n" * 300_000)
    assert yolo.find_description_files(tmp_path) == []


def test_yaml_names_are_plain_text(tmp_path):
    """Booleans, dates and base-60 numbers are not converted; long base-60 numbers take hours to compute."""
    (tmp_path / "images").mkdir()
    text = "train: images\nval:\ntest: ~\nnames: [yes, no, 2001-01-01, '7', 1:30, " + "1" + ":59" * 70_000 + "]"
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "images" / "1.png").write_bytes(create_png())
    assert yolo.read_yolo(tmp_path).labels[:5] == ("yes", "no", "2001-01-01", "7", "1:30")


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_too_deeply_is_rejected(deep, tmp_path):
    (tmp_path / "x.json").write_text(f'{{"images": {deep}')
    with pytest.raises(Error, match="nested too deeply"):
        coco.read_coco(tmp_path / "x.json")
    (tmp_path / "dataset.json").write_text(f'{{"sentences": 1, "images": {deep}')
    with pytest.raises(Error, match="nested too deeply"):
        captions.parse_caption_files(tmp_path)


@pytest.mark.parametrize("text", ["path,label\n" + "x" * 200_000 + ",a\n", 'path,label\n"1.png' + "x" * 200_000])
def test_an_oversized_csv_field_is_an_error_with_its_line(text, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(Error, match=r"x\.csv, line \d+: is not valid CSV"):
        label_tables.read_csv(tmp_path / "x.csv")


def build_coco(outline, width=9, height=8):
    """Build COCO JSON of one object in one image."""
    return {
        "images": [{"id": 1, "file_name": "1.png", "width": width, "height": height}],
        "annotations": [
            {"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 9, "segmentation": outline}
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


ZIGZAG = [value for index in range(100_000) for value in (index % 2 * 9, index % 3)]


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [1 << 20, 1 << 20], "counts": "0"},
        {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
        {"size": [8, 9], "counts": [1 << 40]},
        {"size": [8, 9], "counts": "oooooooooooo"},
        {"size": [8, 9], "counts": [3, 4]},  # the library would not set the other pixels
        {"size": [8, 9], "counts": []},
        {"size": [8, 9], "counts": [80, -8]},
        {"size": [8, 9], "counts": "34"},
        [[[0, 0], [4, 0], [4, 4]]],
        {"counts": [72]},
        [[1e12, 0, 5, 5, 0, 5]],
        [[float("nan"), 0, 5, 5, 0, 5]],
        [ZIGZAG],
    ],
    ids=range(13),
)
def test_an_invalid_outline_is_an_error_with_its_annotation(outline, tmp_path):
    (tmp_path / "1.png").write_bytes(create_png())
    (tmp_path / "x.json").write_text(json.dumps(build_coco(outline)))
    dataset = segmentation_data.index_dataset(identify_source(str(tmp_path / "x.json")))
    ((_, mask),) = dataset.splits[""]
    with pytest.raises(Error, match="annotation 7 has an invalid outline"):
        mask.read()


def test_run_lengths_of_another_size_are_not_decoded(tmp_path, monkeypatch):
    from faster_coco_eval.core import mask as coco_mask

    monkeypatch.setattr(coco_mask, "decode", None)
    (tmp_path / "1.png").write_bytes(create_png())
    (tmp_path / "x.json").write_text(json.dumps(build_coco({"size": [1 << 14, 1 << 14], "counts": "0"})))
    ((_, mask),) = segmentation_data.index_dataset(identify_source(str(tmp_path / "x.json"))).splits[""]
    with pytest.raises(Error, match="its size is not that of the image"):
        mask.read()


@pytest.mark.parametrize(("width", "height"), [(1 << 20, 1 << 20), (-1, 8), (0, 0)])
def test_masks_of_impossible_image_sizes_are_rejected(width, height, tmp_path):
    (tmp_path / "1.png").write_bytes(create_png())
    (tmp_path / "x.json").write_text(json.dumps(build_coco([[0, 0, 5, 5, 0, 5]], width, height)))
    ((_, mask),) = segmentation_data.index_dataset(identify_source(str(tmp_path / "x.json"))).splits[""]
    with pytest.raises(Error, match=f"states an image of {width}×{height}"):
        mask.read()


# ---- paths in annotations --------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    """Create an image outside of every dataset, and a file of words."""
    folder = tmp_path / "private"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (9, 8), "red").save(folder / "images" / "secret.png")
    (folder / "words.txt").write_text("secret\nwords\n")
    return folder


def test_a_csv_in_an_archive_cannot_refer_to_images_outside(secret, tmp_path, cache):
    text = f"path,label\n{secret / 'images' / 'secret.png'},a\n"
    write_zip(tmp_path / "x.zip", [("labels.csv", text), ("1.png", create_png())])
    with pytest.raises(Error, match=r"labels.csv, line 2: .*secret.png lies outside the archive"):
        labeled_images.load_labeled_images(str(tmp_path / "x.zip"))
    findings = doctor.validate_source(identify_source(str(tmp_path / "x.zip")))
    assert [problem.detail.split(",")[0] for problem in findings.problems][:1] == ["lies outside the archive"]
    assert findings.image_counts == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_opened_as_an_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(Error, match=r"pipe.png is not a regular file"):
        image_io.read_image(tmp_path / "pipe.png")


def test_repeated_images_of_a_coco_file_do_not_multiply_its_boxes(tmp_path):
    """Each of 3,000 entries of one image id would otherwise have all 3,000 boxes."""
    coco = build_coco([])
    image, category = coco["images"][0], coco["categories"][0]["id"]
    coco["images"] = [image] * 3000
    coco["annotations"] = [
        {"id": n, "image_id": image["id"], "category_id": category, "bbox": [0, 0, n % 7 + 1, 2]} for n in range(3000)
    ]
    Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    annotations = detection_data.read_annotations(identify_source(str(tmp_path)))
    (entry,) = annotations.splits[""]
    assert len(entry.boxes) == 3000
    assert sum(problem.kind == "duplicate" for problem in annotations.orphan_annotations) == 2999


@pytest.mark.parametrize("up", [False, True])
def test_annotations_in_an_archive_cannot_refer_to_images_outside(up, secret, tmp_path, cache):
    """The user's own annotations can."""
    name = "../../../../../../../../../../.." * up + str(secret / "images" / "secret.png")
    text = json.dumps(build_coco([])).replace("1.png", name)
    write_zip(tmp_path / "x.zip", [("data/annotations.json", text)])
    annotations = detection_data.read_annotations(identify_source(str(tmp_path / "x.zip")))
    assert annotations.splits == {"": []}
    assert "lies outside the archive" in annotations.unreadable_images[0].detail
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "annotations.json").write_text(text)
    assert len(detection_data.read_annotations(identify_source(str(tmp_path / "own"))).splits[""]) == 1


@pytest.mark.parametrize("key", ["train", "names", "list"])
def test_yaml_in_an_archive_cannot_refer_to_paths_outside(key, secret, tmp_path):
    description = {"train": "images", "names": "names.txt"} | {
        "train": {"train": str(secret / "images")},
        "names": {"names": str(secret / "words.txt")},
        "list": {"train": "list.txt"},
    }[key]
    text = "".join(f"{name}: {value}\n" for name, value in description.items())
    members = [
        ("images/1.png", create_png()),
        ("labels/1.txt", "0 .5 .5 .1 .1"),
        ("names.txt", "a\n"),
        ("data.yaml", text),
    ]
    members.append(("list.txt", f"images/1.png\n{secret}/images/secret.png\n"))
    write_zip(tmp_path / "x.zip", members)
    if key == "list":
        annotations = detection_data.read_annotations(identify_source(str(tmp_path / "x.zip")))
        assert [entry.image_path.name for entry in annotations.splits["train"]] == ["1.png"]
        assert "lies outside the archive" in annotations.unreadable_images[0].detail
    else:
        with pytest.raises(Error, match=f"refers to {secret}"):
            detection_data.read_annotations(identify_source(str(tmp_path / "x.zip")))


def test_class_names_are_not_read_from_files_outside_of_the_dataset(secret, tmp_path):
    """They become the labels of a run, which may be published."""
    (tmp_path / "own" / "images").mkdir(parents=True)
    (tmp_path / "own" / "images" / "1.png").write_bytes(create_png())
    (tmp_path / "own" / "data.yaml").write_text(f"train: {secret}/images\nnames: {secret}/words.txt\n")
    with pytest.raises(Error, match=r"refers to .*words\.txt, but there is no"):
        detection_data.read_annotations(identify_source(str(tmp_path / "own")))
    (tmp_path / "own" / "data.yaml").write_text(f"train: {secret}/images\nnames: [a]\n")
    assert len(detection_data.read_annotations(identify_source(str(tmp_path / "own"))).splits["train"]) == 1


# ---- weights ---------------------------------------------------------------------------------------------------------


def save(path, value, **options):
    torch.save(value, path, **options)
    return path


UNUSABLE_TENSORS = {
    "nan": (torch.tensor([1.0, float("nan")]), "has values that are not finite"),
    "inf": (torch.tensor([1.0, float("inf")]), "has values that are not finite"),
    "complex": (torch.ones(2, dtype=torch.complex64), "is complex64"),
    "sparse": (torch.eye(2).to_sparse(), "is sparse"),
    "meta": (torch.empty(1 << 40, device="meta"), "is sparse, quantized, nested or without values"),
    "expanded": (torch.zeros(1).half().expand(1 << 36), r"is .68719476736,., which is more than the file contains"),
    "eight bits": (torch.ones(2).to(torch.float8_e4m3fn), "is float8_e4m3fn"),
}


@pytest.mark.parametrize("kind", UNUSABLE_TENSORS)
def test_unusable_tensors_are_named(kind, tmp_path):
    tensor, message = UNUSABLE_TENSORS[kind]
    with pytest.raises(Error, match=rf"x\.pth contains tensors that cannot be weights: b {message}"):
        state_dicts.read_state_dict(save(tmp_path / "x.pth", {"a": torch.ones(2), "b": tensor}))
    if kind in ("nan", "inf", "complex", "eight bits"):
        save_file({"a": torch.ones(2), "b": tensor}, tmp_path / "x.safetensors")
        with pytest.raises(Error, match=rf"x\.safetensors contains tensors that cannot be weights: b {message}"):
            state_dicts.read_state_dict(tmp_path / "x.safetensors")


def test_weights_of_another_dtype_or_shape_are_named():
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros(2), "c": torch.zeros((), dtype=torch.int64)}
    weights = {"a": torch.zeros(3, 2), "b": torch.zeros(2, dtype=torch.int64), "c": torch.zeros(())}
    assert dict(pretrained.find_mismatches(weights, expected)) == {
        "a": "is (3, 2) instead of (2, 3)",
        "b": "is int64 instead of float32",
        "c": "is float32 instead of int64",
    }
    half = {"a": torch.zeros(2, 3).half(), "b": torch.zeros(2).double(), "c": expected["c"]}
    assert dict(pretrained.find_mismatches(half, expected)) == {}


def test_compressed_weights_are_rejected(tmp_path):
    """torch unpacks a file of 400 kB to 400 MB without a warning."""
    stored = save(tmp_path / "stored.pth", {"a": torch.zeros(1 << 20)})
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert (tmp_path / "x.pth").stat().st_size < 20_000
    with pytest.raises(Error, match=r"it is compressed, which torch\.save never does"):
        state_dicts.read_state_dict(tmp_path / "x.pth")
    assert state_dicts.read_state_dict(stored)["a"].shape == (1 << 20,)


def test_huge_weights_are_rejected_before_they_are_read(tmp_path, monkeypatch):
    """Sparse files, which take no disk space, by their size or their header."""
    monkeypatch.setattr(tensor_files, "MAX_SAFETENSORS_BYTES", 1 << 31)
    monkeypatch.setattr(tensor_files, "MAX_TORCH_BYTES", 1 << 29)
    monkeypatch.setattr(tensor_files, "MAX_TENSOR_BYTES", 1 << 29)
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]}}).encode()
    content = struct.pack("<Q", len(header)) + header
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, start, size, message in (
        ("a.safetensors", content, len(content) + (1 << 30), r"a is \(268435456,\), which is 1,073,741,824 bytes"),
        ("b.safetensors", b"", (1 << 31) + 1, "has 2,147,483,649 bytes, more than 2,147,483,648"),
        ("c.pth", b"PK", 1 << 30, "has 1,073,741,824 bytes, more than 536,870,912"),
    ):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(size)
        with pytest.raises(Error, match=message):
            state_dicts.read_state_dict(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(Error, match="is not a regular file"):
        state_dicts.read_state_dict(tmp_path / "pipe.pth")


def test_the_advice_of_torch_to_disable_weights_only_is_not_repeated(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    with pytest.raises(Error, match=r"it contains (builtins\.)?print, which is not a tensor") as caught:
        state_dicts.read_state_dict(save(tmp_path / "x.pth", {"a": Code()}))
    assert "weights_only" not in str(caught.value)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def modify_onnx(modify):
    """Serialize a modified small ONNX network."""
    import onnx

    from fuzz_cases import create_onnx_model

    model = onnx.ModelProto.FromString(create_onnx_model())
    modify(model, onnx)
    return model.SerializeToString()


def use_external_data(model, onnx):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def use_nested_external_data(model, onnx):
    """Add external data in the body of an operation."""
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "inside")
    use_external_data(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])), onnx)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    body = onnx.helper.make_graph([], "body", [], [], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))


def use_loop(model, onnx):
    model.graph.node[0].op_type = "Loop"


def use_foreign_domain(model, onnx):
    model.graph.node[0].domain = "evil.library"


def add_nested_functions(model, onnx):
    """Add functions that call the next one twice each, which would expand to 2**40 operators."""
    opset = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("local", 1)]
    for index in range(40):
        inner = ("Identity", "") if index == 39 else (f"f{index + 1}", "local")
        nodes = [onnx.helper.make_node(inner[0], ["a"], ["b"], domain=inner[1]),
                 onnx.helper.make_node(inner[0], ["b"], ["c"], domain=inner[1])]  # fmt: skip
        model.functions.append(onnx.helper.make_function("local", f"f{index}", ["a"], ["c"], nodes, opset))
    model.graph.node.insert(0, onnx.helper.make_node("f0", [model.graph.input[0].name], ["expanded"], domain="local"))


def add_recursive_function(model, onnx):
    opset = [onnx.helper.make_opsetid("local", 1)]
    nodes = [onnx.helper.make_node("f", ["a"], ["b"], domain="local")]
    model.functions.append(onnx.helper.make_function("local", "f", ["a"], ["b"], nodes, opset))
    model.graph.node.insert(0, onnx.helper.make_node("f", [model.graph.input[0].name], ["expanded"], domain="local"))


def add_operator_of_an_undeclared_domain(model, onnx):
    """Shape inference of onnx fails on an operator whose domain has no version, but ONNX Runtime loads it."""
    model.graph.node[0].domain = "ai.onnx"
    add_huge_tensor(model, onnx)


def add_sparse_tensor(model, onnx):
    values = onnx.helper.make_tensor("sparse", onnx.TensorProto.FLOAT, [1], [1.0])
    indices = onnx.helper.make_tensor("indices", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [1 << 34]))


def add_huge_tensor(model, onnx):
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1 << 28], np.int64), "huge"))
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["huge"], ["filled"]))


def add_huge_tensor_in_a_branch(model, onnx):
    shape = onnx.numpy_helper.from_array(np.array([1 << 28], np.int64), "huge")
    output = onnx.helper.make_tensor_value_info("filled", onnx.TensorProto.FLOAT, None)
    nodes = [onnx.helper.make_node("ConstantOfShape", ["huge"], ["filled"])]
    branch = onnx.helper.make_graph(nodes, "branch", [], [output], [shape])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "condition"))
    node = onnx.helper.make_node("If", ["condition"], ["result"], then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, node)


def add_huge_tensor_in_a_function(model, onnx):
    opset = [onnx.helper.make_opsetid("", model.opset_import[0].version)]
    shape = onnx.numpy_helper.from_array(np.array([1 << 28], np.int64))
    nodes = [onnx.helper.make_node("Constant", [], ["shape"], value=shape),
             onnx.helper.make_node("ConstantOfShape", ["shape"], ["c"])]  # fmt: skip
    model.functions.append(onnx.helper.make_function("local", "f", ["a"], ["c"], nodes, opset))
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    model.graph.node.insert(0, onnx.helper.make_node("f", [model.graph.input[0].name], ["filled"], domain="local"))


def add_function_of_another_version(model, onnx):
    """Replace an operator by a function that is not inlined, since it has another version."""
    opset = [onnx.helper.make_opsetid("", model.opset_import[0].version - 1)]
    shape = onnx.numpy_helper.from_array(np.array([1 << 28], np.int64))
    nodes = [onnx.helper.make_node("Constant", [], ["shape"], value=shape),
             onnx.helper.make_node("ConstantOfShape", ["shape"], ["c"])]  # fmt: skip
    model.functions.append(onnx.helper.make_function("", model.graph.node[0].op_type, ["a"], ["c"], nodes, opset))


def add_constant_of_unknown_size(model, onnx):
    """Add a power as a shape, which shape inference does not compute."""
    for name in ("base", "exponent"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([28], np.int64), name))
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["power"], ["filled"]))
    model.graph.node.insert(0, onnx.helper.make_node("Pow", ["base", "exponent"], ["power"]))


def add_many_constants(model, onnx):
    """Add ten tensors that are within the limit of one, and together are not."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1 << 25], np.int64), "large"))
    for index in range(10):
        model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["large"], [f"filled{index}"]))


def add_constant_of_a_fixed_input(model, onnx):
    """Add a power of the sides of the input, which are fixed: a constant whose size is not computed."""
    for side in model.graph.input[0].type.tensor_type.shape.dim:
        side.dim_value = 28
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([28], np.int64), "exponent"))
    name = model.graph.input[0].name
    for node in (onnx.helper.make_node("ConstantOfShape", ["power"], ["filled"]),
                 onnx.helper.make_node("Pow", ["sides", "exponent"], ["power"]),
                 onnx.helper.make_node("Shape", [name], ["sides"], start=1, end=2)):  # fmt: skip
        model.graph.node.insert(0, node)


def add_constant_of_a_fixed_input_in_a_branch(model, onnx):
    """Add the same to a branch."""
    add_constant_of_a_fixed_input(model, onnx)
    nodes = [model.graph.node.pop(0) for _ in range(3)]
    output = onnx.helper.make_tensor_value_info("filled", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph(nodes, "branch", [], [output])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "condition"))
    node = onnx.helper.make_node("If", ["condition"], ["result"], then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, node)


def add_function_with_default(model, onnx):
    """Add a function whose default weights are in another file."""
    opset = [onnx.helper.make_opsetid("", 18)]
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    node = onnx.helper.make_node("Constant", [], ["c"])
    node.attribute.append(onnx.AttributeProto(name="value", ref_attr_name="w", type=onnx.AttributeProto.TENSOR))
    function = onnx.helper.make_function("local", "f", ["a"], ["c"], [node], opset)
    function.attribute_proto.append(onnx.helper.make_attribute("w", tensor))
    model.functions.append(function)


@pytest.mark.parametrize(
    ("modify", "message"),
    [
        (use_external_data, "in another file"),
        (use_nested_external_data, "in another file"),
        (use_loop, r"operator \.Loop"),
        (use_foreign_domain, r"operator evil\.library"),
        (add_huge_tensor, "computes a tensor of 268,435,456 numbers"),
        (add_operator_of_an_undeclared_domain, "shapes of the ONNX file are not known"),
        (add_nested_functions, "more than 1,000,000 operators"),
        (add_recursive_function, "more than 1,000,000 operators"),
        (add_sparse_tensor, "sparse weights"),
        (add_huge_tensor_in_a_branch, "computes a tensor of 268,435,456 numbers"),
        (add_huge_tensor_in_a_function, "computes a tensor of 268,435,456 numbers"),
        (add_constant_of_unknown_size, "a constant of an unknown size, 'filled'"),
        (add_many_constants, "and 335,544,320 constants"),
        (add_constant_of_a_fixed_input, "a constant of an unknown size"),
        (add_constant_of_a_fixed_input_in_a_branch, "a constant of an unknown size"),
        (add_function_of_another_version, "functions of other operator versions"),
        (add_function_with_default, "functions with defaults or overloads"),
    ],
)
def test_onnx_files_with_external_data_or_unsupported_operations_are_rejected(modify, message, tmp_path, monkeypatch):
    """The external file exists where ONNX Runtime would read it."""
    from fukami.quantization.onnx_export import OnnxNetwork

    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(struct.pack("<8f", *range(8)))
    OnnxNetwork(modify_onnx(lambda model, onnx: None))
    with pytest.raises(Error, match=message):
        OnnxNetwork(modify_onnx(modify))


def test_the_memory_of_an_onnx_network_is_limited():
    """The size of a tensor is a power of the number of images, which shape inference does not compute."""
    code = """
import numpy as np, onnx
from fukami.errors import Error
from fukami.quantization import onnx_export
onnx_export.get_total_memory = lambda: 400 << 20
h = onnx.helper
planes = h.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 1])
scores = h.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, None)
exponent = onnx.numpy_helper.from_array(np.array([27], np.int64), "exponent")
nodes = [h.make_node("Shape", ["images"], ["sides"], end=1), h.make_node("Pow", ["sides", "exponent"], ["shape"]),
         h.make_node("ConstantOfShape", ["shape"], ["huge"]), h.make_node("ReduceSum", ["huge"], ["sum"]),
         h.make_node("Add", ["images", "sum"], ["scores"])]
graph = h.make_graph(nodes, "g", [planes], [scores], [exponent])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
try:
    onnx_export.OnnxNetwork(model.SerializeToString())(__import__("torch").zeros(2, 1))
except Error as error:
    print("Available memory" in str(error))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "True\n", result.stderr
