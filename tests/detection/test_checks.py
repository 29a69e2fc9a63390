"""Validation of detection datasets by fukami doctor: each problem is reported by file and line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.test_annotations import (
    annotation_record,
    coco_json,
    image_record,
    voc_object,
    voc_xml,
    write_voc,
    write_yolo,
)


def draw(path, seed, size=(40, 30), **options):
    """Write an image of noise from a seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


GOOD = (1, 1, 20, 20)


@pytest.fixture
def data(tmp_path):
    """A valid dataset in VOC format with two classes, and two images in each split."""
    root = tmp_path / "data"
    entries = {}
    for seed, stem in enumerate("abcd"):
        draw(root / "JPEGImages" / f"{stem}.jpg", seed)
        entries[stem] = voc_xml(voc_object("cat", GOOD), voc_object("dog", (21, 2, 40, 30)))
    return write_voc(root, entries, {"train": "ab", "val": "cd"})


def rewrite(data, *objects, stem="a", size=(40, 30)):
    """Add objects to the annotation of an image; its last but one line has the box of the last object."""
    valid = [voc_object("cat", GOOD), voc_object("dog", (21, 2, 40, 30))]
    (data / "Annotations" / f"{stem}.xml").write_text(voc_xml(*valid, *objects, size=size))


def get_problem(result, kind):
    """Return the only problem of a kind."""
    assert result.status == 1, result
    problems = [line for line in result.json if line["problem"] == kind]
    assert len(problems) == 1, result.out
    return problems[0]


def get_single_problem(result, kind):
    """Return the only problem of the dataset."""
    assert len(result.json) == 1, result.out
    return get_problem(result, kind)


def test_valid_annotations_have_no_output(doctor, data):
    result = doctor(data)
    assert (result.status, result.out) == (0, "")
    assert result.err == (
        "VOC boxes: 4 images, 2 classes; for faster-rcnn-vgg16, rcnn and other detection recipes\n"
        "no problem among 4 readable images with 8 boxes of 2 classes\n"
    )


@pytest.mark.parametrize(
    ("box", "kind", "text"),
    [
        ((9, 5, 8, 9), "empty box", "has no area"),
        ((9, 5, 3, 9), "inverted box", "has right < left or bottom < top"),
        (("nan", 5, 3, 9), "not a number", "four finite numbers"),
        (("x", 5, 3, 9), "not a number", "four finite numbers"),
        ((60, 5, 70, 9), "outside", "is outside its image"),
        ((30, 5, 46.5, 28), "crosses the border", "by 6.5 pixels"),
        ((0, 5, 30, 28), "counts from 0", "VOC counts pixels from 1"),
        ((5, 5, 7, 28), "tiny box", "3×24 pixels"),
        (GOOD, "duplicate box", "repeats the box in line 7"),
    ],
)
def test_bad_boxes_are_reported_with_their_line(doctor, data, box, kind, text):
    rewrite(data, voc_object("cat", box))
    problem = get_single_problem(doctor(data), kind)
    lines = (data / "Annotations" / "a.xml").read_text().splitlines()
    assert problem["file"] == str(data / "Annotations" / "a.xml")
    assert problem["line"] == len(lines) - 2
    assert "<bndbox>" in lines[problem["line"] - 1]
    assert text in problem["detail"]


def test_class_names(doctor, data):
    rewrite(data, voc_object("Dog", (3, 3, 30, 30)), voc_object("", (3, 3, 31, 30)))
    rewrite(data, voc_object("Dog", (3, 3, 30, 30)), stem="c")
    result = doctor(data)
    file = data / "Annotations" / "a.xml"
    lines = file.read_text().splitlines()
    name = get_problem(result, "class name")
    assert (name["file"], name["class"]) == (str(file), "Dog")
    assert "<xmin>3</xmin>" in lines[name["line"] - 1]
    assert "differs from 'dog' only in case or whitespace" in name["detail"]
    unlabeled = get_problem(result, "no class")
    assert lines[unlabeled["line"] - 1 : unlabeled["line"] + 1] == ["<object>", "<name></name>"]


def test_sizes_rotation_and_files(doctor, data):
    rewrite(data, size=(400, 300))
    draw(data / "JPEGImages" / "b.jpg", 7, (40, 30), exif=build_rotation())
    draw(data / "JPEGImages" / "new.jpg", 8)
    (data / "JPEGImages" / "c.jpg").write_bytes(b"")
    (data / "JPEGImages" / "d.jpg").unlink()
    result = doctor(data)
    wrong_size = get_problem(result, "wrong size")
    assert wrong_size["line"] == 3
    assert "states 400×300 pixels, and a.jpg has 40×30" in wrong_size["detail"]
    assert "rotated by its EXIF data" in get_problem(result, "EXIF rotation")["detail"]
    assert get_problem(result, "no annotation")["file"].endswith("new.jpg")
    assert get_problem(result, "unreadable")["file"].endswith("c.jpg")
    missing = [line for line in result.json if line["problem"] == "missing"]
    assert [(Path(line["file"]).name, line["line"]) for line in missing] == [("d.xml", 3)]


def build_rotation():
    """EXIF data of an image to be rotated by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_broken_xml(doctor, data):
    file = data / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("</bndbox>", "", 1))
    broken = get_problem(doctor(data), "unreadable")
    assert broken["file"] == str(file)
    assert broken["line"] == 8
    assert "mismatched tag" in broken["detail"]


def test_the_same_image_in_two_splits(doctor, data):
    shutil.copy(data / "JPEGImages" / "a.jpg", data / "JPEGImages" / "d.jpg")
    duplicate = get_single_problem(doctor(data), "duplicate across splits")
    assert duplicate["file"].endswith("d.jpg")
    assert "'train', the other in 'val'" in duplicate["detail"]
    shutil.copy(data / "ImageSets" / "Main" / "train.txt", data / "ImageSets" / "Main" / "val.txt")
    result = doctor(data)
    assert {line["problem"] for line in result.json} == {"duplicate across splits"} | {
        line["problem"] for line in result.json if line["problem"] == "missing in split"
    }
    assert "is listed in 'train' and in 'val'" in result.json[0]["detail"]


def test_unbalanced_classes(doctor, data):
    boxes = [voc_object("cat", (1, 1 + i, 20, 9 + i)) for i in range(21)]
    rewrite(data, *boxes)
    unbalanced = get_single_problem(doctor(data), "unbalanced")
    assert unbalanced["class"] == "dog"
    assert unbalanced["detail"] == "has 2 boxes, and 'cat' has 23: more than 10 times as many"


@pytest.mark.parametrize("indent", [1, None])
def test_coco(doctor, tmp_path, indent):
    """The annotation number identifies an annotation in a file of one line, as COCO's own."""
    draw(tmp_path / "coco" / "a.jpg", 1)
    draw(tmp_path / "coco" / "b.jpg", 2)
    draw(tmp_path / "coco" / "loose.jpg", 3)
    annotations = [
        annotation_record(1, 5, 7, [0, 0, 20, 20]),
        annotation_record(2, 6, 3, [2, 2, 20, 20]),
        annotation_record(3, 6, 3, [2, 2, 0, 20]),
        annotation_record(4, 6, 99, [2, 2, 20, 20]),
        annotation_record(5, 99, 3, [2, 2, 20, 20]),
        annotation_record(6, 6, 3, [2, 2, 20, 20]),
    ]
    images = [image_record(5, "a.jpg"), image_record(6, "b.jpg"), image_record(7, "gone.jpg")]
    file = tmp_path / "coco" / "labels.json"
    content = coco_json(images, annotations, ((3, "cat"), (7, "dog"), (8, "bird")))
    file.write_text(json.dumps(content, indent=indent))
    result = doctor(tmp_path / "coco")
    lines = file.read_text().splitlines()
    for kind, text in (
        ("empty box", "annotation 3 (cat) has no area"),
        ("no class", "annotation 4 is of category 99"),
        ("no image", "annotation 5 is of image 99"),
        ("duplicate box", "annotation 6 (cat) repeats annotation 2"),
        ("missing", "gone.jpg does not exist"),
    ):
        problem = get_problem(result, kind)
        assert problem["file"] == str(file)
        assert text in problem["detail"]
        assert lines[problem["line"] - 1].strip().startswith("{")
        if indent and kind != "missing":
            assert lines[problem["line"]].strip() == f'"id": {text.split()[1]},'
    assert get_problem(result, "no annotation")["file"].endswith("loose.jpg")
    assert get_problem(result, "empty")["class"] == "bird"
    file.write_text(file.read_text()[:-20])
    broken = get_single_problem(doctor(tmp_path / "coco"), "unreadable")
    assert broken["line"] == len(file.read_text().split("\n"))


def test_yolo(doctor, tmp_path):
    root = tmp_path / "yolo"
    write_yolo(root, "", "a", "0 0.5 0.5 0.5 0.5", "", "7 0.5 0.5 0.5 0.5", "0 0.5 0.5 1.5 0.5", "0 0.5 0.5")
    draw(root / "images" / "a.jpg", 1)
    draw(root / "images" / "b.jpg", 2)
    (root / "labels" / "lost.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "classes.txt").write_text("cat\n")
    result = doctor(root)
    lines = {line["problem"]: line.get("line") for line in result.json}
    assert lines == {"no class": 3, "crosses the border": 4, "not a number": 5, "missing": None, "no annotation": None}
    (root / "data.yaml").write_text("names: [cat\ntrain: x")
    assert get_single_problem(doctor(root), "unreadable")["line"] == 2


def test_yolo_datasets_of_roboflow_are_valid(doctor, tmp_path):
    """Their data.yaml names a test split that does not exist."""
    for seed, split in enumerate(("train", "valid")):
        write_yolo(tmp_path / split, "", split, "0 0.5 0.5 0.5 0.5", "1 0.2 0.2 0.4 0.4")
        draw(tmp_path / split / "images" / f"{split}.jpg", seed)
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat, dog]\n"
    )
    result = doctor(tmp_path)
    assert (result.status, result.out) == (0, "")


def test_duplicate_image_entries_are_reported_with_the_line_of_the_second(doctor, tmp_path):
    """Bad boxes of the second entry are reported, too."""
    draw(tmp_path / "coco" / "a.jpg", 1)
    images = [image_record(1, "a.jpg"), image_record(2, "a.jpg")]
    boxes = [annotation_record(1, 1, 3, [0, 0, 20, 20]), annotation_record(2, 2, 3, [2, 2, 0, 20])]
    file = tmp_path / "coco" / "labels.json"
    file.write_text(json.dumps(coco_json(images, boxes, ((3, "cat"),)), indent=1))
    result = doctor(tmp_path / "coco")
    assert "annotation 2 (cat) has no area" in get_problem(result, "empty box")["detail"]
    duplicate = get_problem(result, "duplicate")
    assert duplicate["file"] == str(file)
    assert file.read_text().splitlines()[duplicate["line"]].strip() == '"id": 2,'
    assert duplicate["detail"] == "a.jpg is listed twice"
    file.write_text(json.dumps({"images": [], "annotations": []}))
    broken = get_single_problem(doctor(file), "unreadable")
    assert broken["file"] == str(file)
    assert broken["detail"].startswith("has no list categories")


def test_archive(doctor, data, tmp_path):
    """Files are named by their path in the archive."""
    rewrite(data, voc_object("cat", (60, 5, 70, 9)))
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "data")
    assert get_single_problem(doctor("packed.zip"), "outside")["file"] == "packed.zip/data/Annotations/a.xml"


def test_scenes_are_valid(doctor, monkeypatch):
    from fukami.data import scenes

    monkeypatch.setattr(scenes, "NUM_TRAIN", 20)
    monkeypatch.setattr(scenes, "NUM_TEST", 20)
    result = doctor("scenes")
    assert "40 readable images with" in result.err
    assert {line["problem"] for line in result.json} <= {"missing in split", "unbalanced"}


def test_show_draws_boxes(fukami, data, tmp_path):
    result = fukami(
        "show", data, "--augment", "flip", "rotate=20", "--num-images", "2", "--num-variants", "2", "--size", "48"
    )
    assert result.status == 0, result.err
    assert result.json == [{"file": "augmented.png", "labels": ["cat, dog"] * 2, "variants": 2}]
    with Image.open(tmp_path / "augmented.png") as page:
        assert page.width > 300
    assert fukami("show", data, "--channels", "1").status == 2
    assert "mixup" in fukami("show", data, "--augment", "mixup").err
