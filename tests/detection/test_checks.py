"""The doctor on images with boxes: each bad annotation by file and line, and silence about healthy ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.test_annotations import coco, note, shot, thing, voc, xml, yolo


def draw(path, seed, size=(40, 30), **options):
    """An image of noise; the seed decides its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


GOOD = (1, 1, 20, 20)


@pytest.fixture
def data(tmp_path):
    """VOC's layout with two healthy images of two classes in each part."""
    root = tmp_path / "data"
    entries = {}
    for number, stem in enumerate("abcd"):
        draw(root / "JPEGImages" / f"{stem}.jpg", number)
        entries[stem] = xml(thing("cat", GOOD), thing("dog", (21, 2, 40, 30)))
    return voc(root, entries, {"train": "ab", "val": "cd"})


def rewrite(data, *objects, stem="a", size=(40, 30)):
    """Another annotation of an image, whose last line but one is that of the last object's box."""
    healthy = [thing("cat", GOOD), thing("dog", (21, 2, 40, 30))]
    (data / "Annotations" / f"{stem}.xml").write_text(xml(*healthy, *objects, size=size))


def found(answer, problem):
    """The only finding of this kind."""
    assert answer.status == 1, answer
    those = [line for line in answer.json if line["problem"] == problem]
    assert len(those) == 1, answer.out
    return those[0]


def one(answer, problem):
    """The only finding of all."""
    assert len(answer.json) == 1, answer.out
    return found(answer, problem)


def test_healthy_annotations_are_passed_in_silence(fukami, data):
    answer = fukami("doctor", data)
    assert (answer.status, answer.out) == (0, "")
    assert answer.err == "no problem among 4 readable images with 8 boxes of 2 classes\n"


@pytest.mark.parametrize(
    ("box", "problem", "words"),
    [
        ((9, 5, 8, 9), "empty box", "no area"),
        ((9, 5, 3, 9), "inverted box", "ends before it begins"),
        (("nan", 5, 3, 9), "not a number", "four finite numbers"),
        (("x", 5, 3, 9), "not a number", "four finite numbers"),
        ((60, 5, 70, 9), "outside", "outside of its image"),
        ((30, 5, 46.5, 28), "crosses the border", "by 6.5 pixels"),
        ((0, 5, 30, 28), "counts from 0", "VOC counts pixels from 1"),
        ((5, 5, 7, 28), "tiny box", "3×24 pixels"),
        (GOOD, "duplicate box", "is there already, in line 7"),
    ],
)
def test_bad_boxes_are_named_with_their_line(fukami, data, box, problem, words):
    rewrite(data, thing("cat", box))
    answer = one(fukami("doctor", data), problem)
    text = (data / "Annotations" / "a.xml").read_text().splitlines()
    assert answer["file"] == str(data / "Annotations" / "a.xml")
    assert answer["line"] == len(text) - 2
    assert "<bndbox>" in text[answer["line"] - 1]
    assert words in answer["detail"]


def test_names_of_classes(fukami, data):
    rewrite(data, thing("Dog", (3, 3, 30, 30)), thing("", (3, 3, 31, 30)))
    rewrite(data, thing("Dog", (3, 3, 30, 30)), stem="c")
    answer = fukami("doctor", data)
    file = data / "Annotations" / "a.xml"
    lines = file.read_text().splitlines()
    name = found(answer, "class name")
    assert (name["file"], name["class"]) == (str(file), "Dog")
    assert "<xmin>3</xmin>" in lines[name["line"] - 1]
    assert "differs from 'dog' only in case or whitespace" in name["detail"]
    nameless = found(answer, "no class")
    assert lines[nameless["line"] - 1 : nameless["line"] + 1] == ["<object>", "<name></name>"]


def test_sizes_rotation_and_files(fukami, data):
    rewrite(data, size=(400, 300))
    draw(data / "JPEGImages" / "b.jpg", 7, (40, 30), exif=rotated())
    draw(data / "JPEGImages" / "new.jpg", 8)
    (data / "JPEGImages" / "c.jpg").write_bytes(b"")
    (data / "JPEGImages" / "d.jpg").unlink()
    answer = fukami("doctor", data)
    wrong = found(answer, "wrong size")
    assert wrong["line"] == 3
    assert "states 400×300 pixels, and a.jpg has 40×30" in wrong["detail"]
    assert "turned by its EXIF data" in found(answer, "EXIF rotation")["detail"]
    assert found(answer, "no annotation")["file"].endswith("new.jpg")
    assert found(answer, "broken")["file"].endswith("c.jpg")
    missing = [line for line in answer.json if line["problem"] == "missing"]
    assert [(Path(line["file"]).name, line["line"]) for line in missing] == [("d.xml", 3)]


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_broken_xml(fukami, data):
    file = data / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("</bndbox>", "", 1))
    broken = found(fukami("doctor", data), "broken")
    assert broken["file"] == str(file)
    assert broken["line"] == 8
    assert "mismatched tag" in broken["detail"]


def test_the_same_image_in_two_parts(fukami, data):
    shutil.copy(data / "JPEGImages" / "a.jpg", data / "JPEGImages" / "d.jpg")
    twice = one(fukami("doctor", data), "duplicate across splits")
    assert twice["file"].endswith("d.jpg")
    assert "'train', the other in 'val'" in twice["detail"]
    shutil.copy(data / "ImageSets" / "Main" / "train.txt", data / "ImageSets" / "Main" / "val.txt")
    answer = fukami("doctor", data)
    assert {line["problem"] for line in answer.json} == {"duplicate across splits"} | {
        line["problem"] for line in answer.json if line["problem"] == "missing in split"
    }
    assert "is listed in 'train' and in 'val'" in answer.json[0]["detail"]


def test_classes_of_unlike_sizes(fukami, data):
    boxes = [thing("cat", (1, 1 + i, 20, 9 + i)) for i in range(21)]
    rewrite(data, *boxes)
    rare = one(fukami("doctor", data), "unbalanced")
    assert rare["class"] == "dog"
    assert rare["detail"] == "has 2 boxes, and 'cat' has 23: more than 10 times as many"


@pytest.mark.parametrize("indent", [1, None])
def test_coco(fukami, tmp_path, indent):
    """In a file of one line as COCO's own, the number of the annotation tells."""
    draw(tmp_path / "coco" / "a.jpg", 1)
    draw(tmp_path / "coco" / "b.jpg", 2)
    draw(tmp_path / "coco" / "loose.jpg", 3)
    annotations = [
        note(1, 5, 7, [0, 0, 20, 20]),
        note(2, 6, 3, [2, 2, 20, 20]),
        note(3, 6, 3, [2, 2, 0, 20]),
        note(4, 6, 99, [2, 2, 20, 20]),
        note(5, 99, 3, [2, 2, 20, 20]),
        note(6, 6, 3, [2, 2, 20, 20]),
    ]
    images = [shot(5, "a.jpg"), shot(6, "b.jpg"), shot(7, "gone.jpg")]
    file = tmp_path / "coco" / "labels.json"
    content = coco(images, annotations, ((3, "cat"), (7, "dog"), (8, "bird")))
    file.write_text(json.dumps(content, indent=indent))
    answer = fukami("doctor", tmp_path / "coco")
    text = file.read_text().splitlines()
    for problem, words in (
        ("empty box", "annotation 3 (cat) has no area"),
        ("no class", "annotation 4 is of category 99"),
        ("no image", "annotation 5 is of image 99"),
        ("duplicate box", "annotation 6 (cat) is there already, as annotation 2"),
        ("missing", "gone.jpg does not exist"),
    ):
        line = found(answer, problem)
        assert line["file"] == str(file)
        assert words in line["detail"]
        assert text[line["line"] - 1].strip().startswith("{")
        if indent and problem != "missing":
            assert text[line["line"]].strip() == f'"id": {words.split()[1]},'
    assert found(answer, "no annotation")["file"].endswith("loose.jpg")
    assert found(answer, "empty")["class"] == "bird"
    file.write_text(file.read_text()[:-20])
    broken = one(fukami("doctor", tmp_path / "coco"), "broken")
    assert broken["line"] == len(file.read_text().split("\n"))


def test_yolo(fukami, tmp_path):
    root = tmp_path / "yolo"
    yolo(root, "", "a", "0 0.5 0.5 0.5 0.5", "", "7 0.5 0.5 0.5 0.5", "0 0.5 0.5 1.5 0.5", "0 0.5 0.5")
    draw(root / "images" / "a.jpg", 1)
    draw(root / "images" / "b.jpg", 2)
    (root / "labels" / "lost.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "classes.txt").write_text("cat\n")
    answer = fukami("doctor", root)
    lines = {line["problem"]: line.get("line") for line in answer.json}
    assert lines == {"no class": 3, "crosses the border": 4, "not a number": 5, "missing": None, "no annotation": None}
    (root / "data.yaml").write_text("names: [cat\ntrain: x")
    assert one(fukami("doctor", root), "broken")["line"] == 2


def test_yolo_as_roboflow_leaves_it_is_healthy(fukami, tmp_path):
    """With a test part that is named and not there."""
    for number, part in enumerate(("train", "valid")):
        yolo(tmp_path / part, "", part, "0 0.5 0.5 0.5 0.5", "1 0.2 0.2 0.4 0.4")
        draw(tmp_path / part / "images" / f"{part}.jpg", number)
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat, dog]\n"
    )
    answer = fukami("doctor", tmp_path)
    assert (answer.status, answer.out) == (0, "")


def test_two_records_of_an_image(fukami, tmp_path):
    """Are told with the line of the second, whose bad boxes are, too."""
    draw(tmp_path / "coco" / "a.jpg", 1)
    images = [shot(1, "a.jpg"), shot(2, "a.jpg")]
    boxes = [note(1, 1, 3, [0, 0, 20, 20]), note(2, 2, 3, [2, 2, 0, 20])]
    file = tmp_path / "coco" / "labels.json"
    file.write_text(json.dumps(coco(images, boxes, ((3, "cat"),)), indent=1))
    answer = fukami("doctor", tmp_path / "coco")
    assert "annotation 2 (cat) has no area" in found(answer, "empty box")["detail"]
    twice = found(answer, "duplicate")
    assert twice["file"] == str(file)
    assert file.read_text().splitlines()[twice["line"]].strip() == '"id": 2,'
    assert twice["detail"] == "a.jpg is listed twice"
    file.write_text(json.dumps({"images": [], "annotations": []}))
    broken = one(fukami("doctor", file), "broken")
    assert broken["file"] == str(file)
    assert broken["detail"].startswith("has no list categories")


def test_archive(fukami, data, tmp_path):
    """Files are named as they lie in the archive."""
    rewrite(data, thing("cat", (60, 5, 70, 9)))
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "data")
    assert one(fukami("doctor", "packed.zip"), "outside")["file"] == "packed.zip/data/Annotations/a.xml"


def test_scenes_are_healthy(fukami, monkeypatch):
    from fukami.data import scenes

    monkeypatch.setattr(scenes, "NUM_TRAIN", 20)
    monkeypatch.setattr(scenes, "NUM_TEST", 20)
    answer = fukami("doctor", "scenes")
    assert "40 readable images with" in answer.err
    assert {line["problem"] for line in answer.json} <= {"missing in split", "unbalanced"}


def test_show_draws_boxes(fukami, data, tmp_path):
    answer = fukami(
        "show", data, "--augment", "flip", "rotate=20", "--num-images", "2", "--num-variants", "2", "--size", "48"
    )
    assert answer.status == 0, answer.err
    assert answer.json == [{"file": "augmented.png", "labels": ["cat, dog"] * 2, "variants": 2}]
    with Image.open(tmp_path / "augmented.png") as page:
        assert page.width > 300
    assert fukami("show", data, "--channels", "1").status == 2
    assert "mixup" in fukami("show", data, "--augment", "mixup").err
