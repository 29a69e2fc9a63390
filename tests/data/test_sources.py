"""Tests of the identification of data sources: small datasets of every kind as folder, archive, file and shards."""

import io
import json
import os
import re
import shutil
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from fukami import Error, UsageError
from fukami.captioning import data as captioning_data
from fukami.catalogue import RECIPES
from fukami.cli.doctor import validate_source
from fukami.data import archives, labeled_images, sources, tar, webdataset_writer
from fukami.data.sources import identify_source
from fukami.detection import data as detection_data
from fukami.generation import data as generation_data
from fukami.segmentation import data as segmentation_data

LOADERS = {
    "labels": labeled_images.load_labeled_images,
    "boxes": detection_data.load_dataset,
    "masks": segmentation_data.load_dataset,
    "captions": captioning_data.load_dataset,
    "images": generation_data.load_dataset,
}
XML = (
    "<annotation><object><name>dog</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    "</object></annotation>"
)
OUTLINE = [[1, 1, 9, 1, 9, 9, 1, 9]]
IMAGES = {"images": [{"id": 1, "file_name": "1.png", "width": 12, "height": 12}]}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}
CATEGORIES = {"categories": [{"id": 1, "name": "dog", "supercategory": "none"}]}
BOXES = json.dumps({**IMAGES, "annotations": [BOX], **CATEGORIES})
OUTLINES = json.dumps({**IMAGES, "annotations": [{**BOX, "segmentation": OUTLINE}], **CATEGORIES})
CAPTIONS = json.dumps({**IMAGES, "annotations": [{"image_id": 1, "caption": "a dog"}]})
KARPATHY = json.dumps({"images": [{"filename": "1.png", "split": "train", "sentences": [{"raw": "a dog"}]}]})
LABELS_CSV, CAPTIONS_CSV = "path,label\n1.png,dog\n", "image,caption\n1.png,a dog\n"

# files of each dataset (None: an image) and the format of each kind of annotations
FOLDERS = {
    "classes": ({"cat/1.png": None, "dog/2.png": None}, {"labels": "image folder"}),
    "classes and splits": ({"train/cat/1.png": None, "val/cat/2.png": None}, {"labels": "image folder"}),
    "one class": ({"faces/1.png": None, "faces/2.png": None}, {"labels": "image folder"}),
    "classes and names for YOLO": (
        {"cat/1.png": None, "dog/2.png": None, "data.yaml": "names: [cat, dog]"},
        {"labels": "image folder", "boxes": "YOLO"},
    ),
    "images": ({"1.png": None, "2.png": None}, {}),
    "text": ({"notes/a.md": "x"}, {}),
    "VOC": ({"JPEGImages/1.png": None, "Annotations/1.xml": XML}, {"boxes": "VOC"}),
    "VOC with masks": (
        {"JPEGImages/1.png": None, "Annotations/1.xml": XML, "SegmentationClass/1.png": None},
        {"boxes": "VOC", "masks": "mask folder"},
    ),
    "XML next to images": ({"train/1.png": None, "train/1.xml": XML}, {"boxes": "VOC"}),
    "COCO": (
        {"val2017/1.png": None, "annotations/instances_val2017.json": OUTLINES},
        {"boxes": "COCO", "masks": "COCO"},
    ),
    "COCO with captions": (
        {"val/1.png": None, "annotations/instances_val.json": BOXES, "annotations/captions_val.json": CAPTIONS},
        {"boxes": "COCO", "captions": "caption files"},
    ),
    "COCO's captions": (
        {"val2017/1.png": None, "annotations/captions_val2017.json": CAPTIONS},
        {"captions": "caption files"},
    ),
    "Karpathy's captions": ({"images/1.png": None, "dataset.json": KARPATHY}, {"captions": "caption files"}),
    "Roboflow": ({"train/1.png": None, "train/_annotations.coco.json": BOXES}, {"boxes": "COCO"}),
    "YOLO": (
        {"images/1.png": None, "labels/1.txt": "0 0.5 0.5 0.4 0.4", "data.yaml": "train: images\nnames: [dog]"},
        {"boxes": "YOLO"},
    ),
    "YOLO with splits": (
        {"train/images/1.png": None, "train/labels/1.txt": "0 0.5 0.5 0.4 0.4", "classes.txt": "dog"},
        {"boxes": "YOLO"},
    ),
    "CamVid": ({"train/1.png": None, "trainannot/1.png": None}, {"masks": "mask folder"}),
    "masks": ({"images/1.png": None, "masks/1.png": None}, {"masks": "mask folder"}),
    "Flickr8k": ({"Images/1.png": None, "captions.txt": "image,caption\n1.png,a dog\n"}, {"captions": "caption files"}),
}
FILES = {
    "labels.csv": (LABELS_CSV, {"labels": "CSV", "images": "CSV"}),
    "captions.csv": (CAPTIONS_CSV, {"captions": "caption files"}),
    "captions.txt": ("1.png\ta dog\n", {"captions": "caption files"}),
    "boxes.json": (BOXES, {"boxes": "COCO"}),
    "outlines.json": (OUTLINES, {"boxes": "COCO", "masks": "COCO"}),
    "captions.json": (CAPTIONS, {"captions": "caption files"}),
    "data.yaml": ("train: images\nnames: [dog]", {"boxes": "YOLO"}),
}


def write_files(root, files):
    """Write the files of a dataset; each image has other pixels."""
    for index, (name, text) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.fromarray(np.full((12, 12), index + 1, np.uint8)).save(path)
        else:
            path.write_text(text)
    return root


def list_formats(spec):
    """Return the format of each kind of annotations that is found at a path."""
    source = identify_source(str(spec))
    found = {kind: source.find(kind) for kind in sources.KINDS}
    assert {kind: source.has(kind) for kind in found} == {kind: bool(entry) for kind, entry in found.items()}
    return {kind: entry.name for kind, entry in found.items() if entry}


def write_tar(path, files, *, mode="w"):
    """Write a tar file of members with this content."""
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return path


def write_sample_tar(path, *, mode="w"):
    """Write four samples in the WebDataset layout."""
    files = {}
    for index in range(4):
        image = io.BytesIO()
        Image.fromarray(np.full((12, 12), index, np.uint8)).save(image, "png")
        files |= {f"{index}.cls": b"dog", f"{index}.png": image.getvalue()}
    return write_tar(path, files, mode=mode)


@pytest.mark.parametrize("name", FOLDERS)
def test_formats_of_folders_and_archives(name, tmp_path, monkeypatch):
    """A folder and its archives, with and without a top folder, have the same formats; each is unpacked once."""
    files, expected = FOLDERS[name]
    root = write_files(tmp_path / "data", files)
    if name != "text":
        expected = {**expected, "images": "image files"}
    assert list_formats(root) == expected
    extracted = []
    extract = archives._extract
    monkeypatch.setattr(archives, "_extract", lambda *arguments: (extracted.append(arguments), extract(*arguments)))
    for number, (kind, base) in enumerate((("zip", None), ("zip", "data"), ("tar", "data"), ("gztar", None))):
        archive = shutil.make_archive(str(tmp_path / f"packed{number}"), kind, tmp_path if base else root, base)
        if base and not expected.keys() - {"images"} and name == "images":
            continue  # the top folder of loose images is a class folder
        assert list_formats(archive) == expected, (kind, base)
        assert len(extracted) == 1
        extracted.clear()


@pytest.mark.parametrize("name", FILES)
def test_formats_of_annotation_files(name, tmp_path):
    text, expected = FILES[name]
    assert list_formats(write_files(tmp_path, {name: text}) / name) == expected


def test_formats_of_shards(tmp_path, monkeypatch):
    """A tar file of samples is a shard that is not unpacked; a tar file of a folder is an archive."""
    monkeypatch.setattr(archives, "unpack", None)
    (tmp_path / "shards").mkdir()
    single = write_sample_tar(tmp_path / "shards" / "train.tar")
    packed = write_sample_tar(tmp_path / "train.tar.gz", mode="w:gz")
    shards = {"labels": "shards", "images": "shards"}
    for spec in (single, packed, tmp_path / "shards", f"{tmp_path}/train-{{000..009}}.tar"):
        assert list_formats(spec) == shards
    assert list_formats("https://host/train.tar") == shards
    train, val, _, labels = labeled_images.load_labeled_images(str(single), 0.25)
    assert (len(train), len(val), labels) == (3, 1, ("dog",))
    with pytest.raises(UsageError, match="compressed"):
        labeled_images.load_labeled_images(str(packed), 0.25)
    report = validate_source(identify_source(str(single)))
    assert {problem.kind for problem in report.problems} == {"single class"}


def test_samples_of_a_tar_file_are_searched_in_its_first_members_only(tmp_path):
    read_ends = []
    content = write_sample_tar(tmp_path / "x.tar").read_bytes()

    def read(start, count):
        read_ends.append(start + count)
        return content[start : start + count]

    assert tar.contains_sample(read)
    assert max(read_ends) < len(content) / 2
    for name, text in (("x.txt", "dog"), ("x.json", '{"shapes": []}'), ("x.cls", "")):
        folder = write_files(tmp_path / name, {"a/x.png": None, f"a/{name}": text})
        archive = shutil.make_archive(str(folder), "tar", folder)
        assert not archives.contains_samples(tmp_path / archive)
    labeled = write_files(tmp_path / "labeled", {"x.png": None, "x.json": '{"label": "dog"}'})
    assert archives.contains_samples(tmp_path / shutil.make_archive(str(labeled), "tar", labeled))


def test_a_member_of_any_size_does_not_delay_the_search_for_samples(tmp_path):
    """Only the start of a compressed file is unpacked."""
    path = tmp_path / "x.tar.gz"
    members = {"x.bin": bytes(tar.MAX_INSPECTED_BYTES), "1.cls": b"dog", "1.png": b""}
    write_tar(path, members, mode="w:gz")
    assert not archives.contains_samples(path)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".zip"])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_broken_archive_is_named(kind, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes({".tar.gz": b"\x1f\x8b", ".tar.xz": b"\xfd7zXZ\x00"}.get(suffix, b"") + b"broken" * 200)
    source = identify_source(str(path))
    assert not source.has(kind)
    with pytest.raises(Error, match=re.escape(f"{path} cannot be unpacked")):
        LOADERS[kind](str(path), 0.2)
    (problem,) = validate_source(identify_source(str(path))).problems
    assert (problem.kind, problem.file) == ("unreadable", str(path))


def test_pipes_are_not_opened(tmp_path):
    root = write_files(tmp_path / "data", {"cat/1.png": None, "dog/2.png": None})
    (root / "annotations").mkdir()
    for name in ("table.csv", "data.yaml", "labels.json", "annotations/instances_train.json"):
        os.mkfifo(root / name)
    results = []
    thread = threading.Thread(target=lambda: results.append(list_formats(root)), daemon=True)
    thread.start()  # opening a pipe without a writer waits forever
    thread.join(60)
    assert results == [{"boxes": "COCO", "images": "image files"}]


@pytest.mark.parametrize(
    ("dataset", "needed", "message"),
    [
        ("classes", "boxes", r"class folders: 2 images, 2 classes; for resnet18, .* boxes: images with XML"),
        ("classes", "masks", r"class folders: .* Segmentation recipes such as fcn8s-vgg16 need masks: a folder of"),
        ("classes", "captions", r"class folders: .* Captioning recipes .* need captions: captions\.txt"),
        ("VOC", "labels", r"VOC boxes: 1 image, 1 class; for faster-rcnn-vgg16, .* need class labels: one f"),
        ("COCO", "labels", r"COCO boxes: 1 image, 1 class; .* It also contains COCO masks: 1 image, 2 classes; for f"),
        ("YOLO", "labels", r"YOLO boxes: 1 image, 1 class"),
        ("YOLO", "captions", r"YOLO boxes: 1 image, 1 class"),
        ("masks", "boxes", r"masks in files: 1 image, 1 class; for fcn8s-vgg16, .* need bounding boxes"),
        (
            "Flickr8k",
            "labels",
            r"captions: 1 image, 1 caption; for show-and-tell\. Classification .* need class labels",
        ),
        ("Flickr8k", "boxes", r"captions: 1 image, 1 caption"),
    ],
)
def test_data_of_another_kind_is_described(dataset, needed, message, tmp_path):
    root = write_files(tmp_path / "data", FOLDERS[dataset][0])
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    for path in (root, archive):
        with pytest.raises(UsageError, match=f"^{re.escape(str(path))} contains .*{message}") as error:
            LOADERS[needed](str(path), 0.2)
        assert len(str(error.value)) <= 400 + len(str(path))


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        ("labels", "no images in folders of classes; expected one folder"),
        ("boxes", r"no bounding boxes in a known format; expected images with XML"),
        ("masks", "no images with masks; expected a folder of images"),
        ("captions", r"no captions; expected captions\.txt"),
    ],
)
def test_data_of_no_kind(needed, message, tmp_path):
    write_files(tmp_path / "data", FOLDERS["text"][0])
    with pytest.raises(Error, match=f"data contains {message}") as error:
        LOADERS[needed](str(tmp_path / "data"), 0.2)
    assert not isinstance(error.value, UsageError)


def test_shards_and_files_of_another_kind_are_described(tmp_path):
    shard = write_sample_tar(tmp_path / "x.tar")
    with pytest.raises(UsageError, match=r"x\.tar contains WebDataset shards; for resnet18"):
        detection_data.load_dataset(str(shard), 0.2)
    with pytest.raises(UsageError, match=r"^https://host/x/ contains WebDataset shards; for resnet18"):
        detection_data.load_dataset("https://host/x/", 0.2)
    write_files(tmp_path, {"1.png": None} | {name: text for name, (text, _) in FILES.items()})
    with pytest.raises(UsageError, match=r"boxes\.json contains COCO boxes: 1 image, 1 class; .* need captions"):
        captioning_data.load_dataset(str(tmp_path / "boxes.json"), 0.2)
    with pytest.raises(UsageError, match=r"captions\.json contains captions: 1 image, 1 caption; .* bounding boxes"):
        detection_data.load_dataset(str(tmp_path / "captions.json"), 0.2)
    with pytest.raises(UsageError, match=r"labels\.csv contains CSV of labels: 1 image, 1 class; .* need masks"):
        segmentation_data.load_dataset(str(tmp_path / "labels.csv"), 0.2)
    with pytest.raises(UsageError, match=r"boxes\.json contains COCO boxes: .* need images"):
        generation_data.load_dataset(str(tmp_path / "boxes.json"), 0.2)


def test_names(tmp_path, monkeypatch):
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    assert {kind: set(sources.list_names(kind)) for kind in sources.KINDS} == {
        "labels": {"digits", "mnist", "cifar10", "cifar100", "imagenet"},
        "boxes": {"scenes", "bccd", "voc-animals", "voc2007", "voc2012", "coco"},
        "masks": {"scenes", "camvid", "cityscapes", "voc2012", "coco"},
        "captions": {"scenes", "coco", "flickr8k", "flickr30k"},
        "images": {"scenes", "digits", "mnist", "cifar10", "cifar100", "imagenet"},
        "games": set(),
    }
    for kind, load in LOADERS.items():
        with pytest.raises(
            UsageError, match=r"no file or folder 'nowhere', and no built-in dataset of that name; the valid ones are "
        ) as error:
            load("nowhere", 0.2)
        assert str(error.value).partition(" are ")[2].split(", ") == sorted(sources.list_names(kind))
        other = next(name for name, source in sources.BUILT_IN.items() if kind not in source.kinds)
        with pytest.raises(
            UsageError, match=rf"^{other} contains .* need .*: {', '.join(sources.list_names(kind))} or"
        ):
            load(other, 0.2)


def test_the_suggested_recipes_are_of_their_family():
    for description in sources.KINDS.values():
        assert {RECIPES[name].task for name in description.recipes} == {description.family}


def test_names_are_found_in_the_data_folder(tmp_path, monkeypatch):
    """Any family finds a folder or a zip archive by name; a path takes precedence."""
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "data" / "flowers", FOLDERS["classes"][0])
    root = write_files(tmp_path / "voc", FOLDERS["VOC"][0])
    shutil.make_archive(str(tmp_path / "data" / "dogs"), "zip", root)
    assert labeled_images.load_labeled_images("flowers", 0.0).labels == ("cat", "dog")
    assert detection_data.load_dataset("dogs", 0.0).labels == ("dog",)
    write_files(tmp_path / "data" / "VOC2012", FOLDERS["VOC"][0])
    with pytest.raises(Error, match=r"VOC2012 contains no images with masks"):
        segmentation_data.load_dataset("voc2012", 0.0)
    write_files(tmp_path / "flowers", {"rose/1.png": None})
    assert labeled_images.load_labeled_images("flowers", 0.0).labels == ("rose",)


@pytest.mark.parametrize("name", ["COCO's captions", "Karpathy's captions"])
def test_doctor_checks_captions_in_json(name, tmp_path):
    report = validate_source(identify_source(str(write_files(tmp_path, FOLDERS[name][0]))))
    assert str(report) == "no problem among 1 readable image with 1 caption"


def test_shard_index_of_one_file(tmp_path):
    single = write_sample_tar(tmp_path / "x.tar")
    assert webdataset_writer.write_index(str(single))["train"] == 4
