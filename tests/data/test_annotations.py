"""Images with boxes, read: every quirk of the formats in files by hand, with boxes worked out by hand."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fukami import Error, UsageError
from fukami.data.samples import CROWD, DIFFICULT, REGULAR
from fukami.detection import data as detection_data


def image(path, width=40, height=30, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), "white").save(path, exif=exif)
    return path


def thing(name, box, difficult=0):
    """An object in VOC's XML, its box as xmin, ymin, xmax, ymax."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object>\n<name>{name}</name>\n<difficult>{difficult}</difficult>\n<bndbox>{inner}</bndbox>\n</object>"


def xml(*objects, size=(40, 30), filename="x.jpg"):
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return "\n".join(["<annotation>", f"<filename>{filename}</filename>", stated, *objects, "</annotation>"])


def voc(root, entries, lists=None):
    """VOC's layout: the XML of each image, and the lists."""
    for stem, text in entries.items():
        if not (root / "JPEGImages" / f"{stem}.jpg").exists():
            image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for name, stems in (lists or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
    return root


def one(root):
    """The only image of a data set."""
    train, _, labels = detection_data.load_dataset(str(root), 0.0)
    assert len(train) == 1
    return train[0], labels


def stems(part):
    return [Path(sample.name).stem for sample in part]


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


def test_voc_counts_from_one_and_includes_the_last_pixel(tmp_path):
    boxes = [thing("dog", (1, 1, 40, 30)), thing("cat", (11, 6, 20, 15), 1), thing("dog", (5.5, 2.25, 9.0, 4))]
    sample, labels = one(voc(tmp_path, {"x": xml(*boxes)}))
    assert labels == ("cat", "dog")
    assert sample.size == (40, 30)
    assert sample.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15], [4.5, 1.25, 9, 4]]
    assert sample.boxes.dtype == np.float32
    assert sample.classes.tolist() == [1, 0, 1]
    assert sample.kinds.tolist() == [REGULAR, DIFFICULT, REGULAR]


def test_boxes_are_cut_and_bad_ones_left_out_with_one_warning(tmp_path, caplog):
    boxes = [
        thing("dog", (-5, 0, 12, 99)),  # leaves on three sides
        thing("dog", (7, 7, 7, 7)),  # a single pixel
        thing("dog", (8, 2, 7, 9)),  # no column
        thing("dog", (20, 2, 7, 9)),  # inverted
        thing("dog", (50, 2, 60, 9)),  # outside
        thing("dog", ("nan", 2, 60, 9)),
        thing("dog", ("", 2, 60, 9)),
        "<object><name>dog</name></object>",
        thing(" ", (1, 1, 9, 9)),
    ]
    with caplog.at_level(logging.WARNING):
        sample, _ = one(voc(tmp_path, {"x": xml(*boxes)}))
    assert sample.boxes.tolist() == [[0, 0, 12, 30], [6, 6, 7, 7]]
    assert len(caplog.records) == 1
    assert "7 of 9 boxes are left out" in caplog.text
    assert "fukami doctor" in caplog.text


def test_images_without_objects_and_boxes_of_parts(tmp_path):
    """A head inside of a person (VOC's layout challenge) is no object of its own."""
    person = thing("person", (2, 2, 30, 30)).replace(
        "</object>", "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part></object>"
    )
    voc(tmp_path, {"a": xml(), "b": xml(person)})
    train, _, labels = detection_data.load_dataset(str(tmp_path), 0.0)
    assert labels == ("person",)
    assert [sample.boxes.shape for sample in train] == [(0, 4), (1, 4)]
    assert train[0].classes.dtype == np.int64


@pytest.mark.parametrize(
    ("lists", "train", "judged"),
    [
        ({"train": "ab", "val": "c", "trainval": "abc", "test": "d"}, "abc", "d"),
        ({"train": "ab", "val": "c", "test": "d"}, "abc", "d"),
        ({"train": "ab", "val": "c", "trainval": "abc"}, "ab", "c"),
        ({"train": "ab", "val": "c", "test": ["secret1", "secret2"]}, "ab", "c"),  # as VOC 2012's
        ({"trainval": "ab", "test": "cd"}, "ab", "cd"),
        ({"train": ["a  1", "b -1", "c  0"], "val": "d", "cat_train": "d"}, "abc", "d"),  # a class's list, with signs
        ({"trainval": "abcd", "val": "cd"}, "ab", "cd"),
        ({"trainval": "abcd", "train": "ab"}, "ab", "cd"),
    ],
)
def test_lists_of_voc(tmp_path, lists, train, judged):
    voc(tmp_path, {stem: xml(thing("dog", (1, 1, 9, 9))) for stem in "abcd"}, lists)
    found = detection_data.load_dataset(str(tmp_path), 0.5)
    assert [stems(part) for part in found[:2]] == [list(train), list(judged)]


def test_without_a_list_a_share_is_held_out_the_same_each_time(tmp_path):
    """Of the images of each class; the choice does not hang on the order of the files."""
    boxes = {
        f"{i:02}": xml(thing("rare" if i < 4 else "dog", (1, 1, 9, 9)), thing("dog", (1, 1, 9, 9))) for i in range(20)
    }
    voc(tmp_path, boxes)
    train, judged, _ = detection_data.load_dataset(str(tmp_path), 0.25)
    assert len(train) == 15
    assert len(judged) == 5
    assert sum("rare" in boxes[stem] for stem in stems(judged)) == 1
    again = detection_data.load_dataset(str(tmp_path), 0.25)
    assert stems(again[1]) == stems(judged)


@pytest.mark.parametrize("layout", ["flat", "parts", "kaggle"])
def test_xml_beside_images(tmp_path, layout):
    """As labelImg writes them, as Roboflow exports them, and in ``images`` and ``annotations``."""
    places = {"flat": [("", "")] * 2, "parts": [("train", "train"), ("valid", "valid")],
              "kaggle": [("images", "annotations")] * 2}[layout]  # fmt: skip
    for number, (images, annotations) in enumerate(places):
        image(tmp_path / images / f"{number}.png")
        (tmp_path / annotations).mkdir(exist_ok=True)
        (tmp_path / annotations / f"{number}.xml").write_text(xml(thing("dog", (2, 2, 3, 3))))
    train, judged, labels = detection_data.load_dataset(str(tmp_path), 0.5)
    assert (len(train), len(judged), labels) == (1, 1, ("dog",))
    if layout == "parts":
        assert [stems(train), stems(judged)] == [["0"], ["1"]]


def test_of_two_images_of_one_name_the_one_that_the_file_names(tmp_path):
    for suffix, size in (("jpg", (40, 30)), ("png", (20, 10))):
        image(tmp_path / "JPEGImages" / f"x.{suffix}", *size)
    voc(tmp_path, {"x": xml(thing("dog", (1, 1, 9, 9)), filename="x.jpg")})
    assert one(tmp_path)[0].size == (40, 30)
    voc(tmp_path, {"x": xml(thing("dog", (1, 1, 9, 9)), filename="x.png", size=(20, 10))})
    assert one(tmp_path)[0].size == (20, 10)
    assert detection_data.read_annotations(tmp_path).unannotated_images == [tmp_path / "JPEGImages" / "x.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "euc-kr", "shift_jis", "latin-1", "utf-16"])
def test_encodings_of_xml(tmp_path, encoding):
    name = "straße" if encoding == "latin-1" else "犬" if encoding != "euc-kr" else "개"
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + xml(thing(name, (1, 1, 9, 9)))
    voc(tmp_path, {"x": ""})
    (tmp_path / "Annotations" / "x.xml").write_bytes(text.encode(encoding))
    assert one(tmp_path)[1] == (name,)


def test_an_encoding_that_nobody_knows(tmp_path, caplog):
    text = xml(thing("dog", (1, 1, 9, 9)))
    voc(tmp_path, {"a": text, "x": f'<?xml version="1.0" encoding="klingon"?>{text}'})
    assert Path(one(tmp_path)[0].name).stem == "a"
    assert "x.xml, line 1: is not in klingon, its declared encoding; save it in UTF-8" in caplog.text


def test_the_image_that_a_file_names(tmp_path):
    """Where none has the name of the file itself."""
    image(tmp_path / "JPEGImages" / "photo.JPG")
    voc(tmp_path, {})
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "other.xml").write_text(xml(thing("dog", (1, 1, 9, 9)), filename="photo.JPG"))
    assert Path(one(tmp_path)[0].name).name == "photo.JPG"


def test_missing_images_and_broken_files_are_left_out_and_named(tmp_path, caplog):
    voc(tmp_path, {stem: xml(thing("dog", (1, 1, 9, 9))) for stem in "abcd"})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "JPEGImages" / "b.jpg").write_bytes(b"")
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation>\n<object>\n</annotation>")
    with caplog.at_level(logging.WARNING):
        sample, _ = one(tmp_path)
    assert Path(sample.name).stem == "d"
    assert "3 of 4 images are left out" in caplog.text
    assert "c.xml, line 3: is not XML (mismatched tag" in caplog.text
    assert "a.xml, line 3: its image" in caplog.text
    assert "b.jpg is empty" in caplog.text
    with pytest.raises(Error, match="3 images are broken, and --max-broken allows 2"):
        detection_data.load_dataset(str(tmp_path), 0.0, max_broken=2)


# ---- sizes and rotation ---------------------------------------------------------------------------------------------

UPRIGHT = {  # where the left upper corner (1 wide, 2 high) of a stored image of 40×30 comes to lie
    1: (0, 0, 1, 2), 2: (39, 0, 40, 2), 3: (39, 28, 40, 30), 4: (0, 28, 1, 30), 5: (0, 0, 2, 1), 6: (28, 0, 30, 1),
    7: (28, 39, 30, 40), 8: (0, 39, 2, 40),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_an_image_whose_stored_size_is_stated(tmp_path, orientation, suffix):
    """Beside the mark in the stored image, once Pillow has turned it."""
    path = tmp_path / "JPEGImages" / f"x.{suffix}"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked = Image.new("RGB", (40, 30), "white")
    marked.paste((255, 0, 0), (0, 0, 1, 2))
    marked.save(path, exif=exif)
    sample, _ = one(voc_png(tmp_path, xml(thing("mark", (1, 1, 1, 2)))))
    assert sample.size == ((30, 40) if orientation > 4 else (40, 30))
    assert sample.boxes.tolist() == [list(UPRIGHT[orientation])]
    from fukami.image import io as image_io

    pixels = np.asarray(image_io.read_image(path))
    rows, columns = np.nonzero((pixels == (255, 0, 0)).all(2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == UPRIGHT[orientation]


def voc_png(root, text):
    (root / "Annotations").mkdir()
    (root / "Annotations" / "x.xml").write_text(text)
    return root


@pytest.mark.parametrize("size", [(30, 40), None, (0, 0), (999, 7)])
def test_boxes_belong_to_the_upright_image_otherwise(tmp_path, size):
    """Where its size is stated, or none, or one that is neither; the file is trusted."""
    image(tmp_path / "JPEGImages" / "x.jpg", orientation=6)
    sample, _ = one(voc(tmp_path, {"x": xml(thing("dog", (1, 2, 30, 40)), size=size)}))
    assert sample.size == (30, 40)
    assert sample.boxes.tolist() == [[0, 1, 30, 40]]


# ---- COCO -----------------------------------------------------------------------------------------------------------


def coco(images, annotations, categories=((3, "cat"), (7, "dog"))):
    named = [{"id": number, "name": name, "supercategory": "animal"} for number, name in categories]
    return {"info": {"year": 2024}, "images": images, "annotations": annotations, "categories": named}


def shot(number, name, size=(40, 30)):
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def note(number, of, category, box, **others):
    return {"id": number, "image_id": of, "category_id": category, "bbox": box, **others}


def test_coco(tmp_path, caplog):
    """Numbers with gaps in the file's order, floats, crowds, cuts, what is not there."""
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    annotations = [
        note(1, 5, 7, [0.5, 1.25, 10.5, 8], iscrowd=0),
        note(2, 5, 3, [30, 20, 50.5, 50], iscrowd=1, segmentation={"counts": [], "size": [30, 40]}),
        note(3, 5, 3, [3, 3, 0, 5]),
        note(4, 5, 3, [3, 3, -4, 5]),
        note(5, 5, 99, [3, 3, 4, 5]),
        note(6, 99, 3, [3, 3, 4, 5]),
        {"id": 7, "image_id": 5, "category_id": 3},
    ]
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(coco([shot(5, "a.jpg"), shot(6, "b.jpg")], annotations, ((7, "dog"), (3, "cat")))))
    for spec in (file, tmp_path):
        with caplog.at_level(logging.WARNING):
            train, judged, labels = detection_data.load_dataset(str(spec), 0.0)
        assert labels == ("dog", "cat")
        assert stems(train) == ["a", "b"]
        assert judged == ()
        assert train[0].boxes.tolist() == [[0.5, 1.25, 11, 9.25], [30, 20, 40, 30]]
        assert train[0].classes.tolist() == [0, 1]
        assert train[0].kinds.tolist() == [REGULAR, CROWD]
        assert len(train[1].boxes) == 0
    assert "4 of 6 boxes are left out" in caplog.text


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "."])
def test_places_of_cocos_images(tmp_path, folder):
    for part in ("train2017", "val2017"):
        place = folder.replace("train2017", part)
        image(tmp_path / place / f"{part}.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = coco([shot(1, f"{part}.jpg")], [note(1, 1, 7, [1, 1, 5, 5])])
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content, indent=1))
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    train, judged, labels = detection_data.load_dataset(str(tmp_path), 0.2)
    assert [stems(train), stems(judged), labels] == [["train2017"], ["val2017"], ("cat", "dog")]


def test_roboflows_coco(tmp_path):
    """A file in each part, and a first category that heads the others and has no boxes."""
    for part in ("train", "valid", "test"):
        image(tmp_path / part / f"{part}.jpg")
        content = coco([shot(0, f"{part}.jpg")], [note(1, 0, 1, [1, 1, 5, 5])], ())
        content["categories"] = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "RBC", "supercategory": "cells"},
        ]
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(content))
    train, judged, labels = detection_data.load_dataset(str(tmp_path), 0.2)
    assert [stems(train), stems(judged), labels] == [["train", "valid"], ["test"], ("RBC",)]


def test_two_records_of_one_image_are_one(tmp_path):
    """As merged exports have it: each would teach that what the other has is background."""
    image(tmp_path / "a.jpg")
    boxes = [note(1, 1, 3, [1, 1, 5, 5]), note(2, 2, 7, [9, 9, 5, 5]), note(3, 2, 7, [3, 9, 5, 5], iscrowd="0")]
    (tmp_path / "x.json").write_text(json.dumps(coco([shot(1, "a.jpg"), shot(2, "a.jpg")], boxes)))
    sample, _ = one(tmp_path)
    assert sample.classes.tolist() == [0, 1, 1]
    assert sample.kinds.tolist() == [REGULAR] * 3


def test_pycocotools_reads_the_same(tmp_path, random):
    """The reference reader: the boxes of each image, and which are crowds."""
    from pycocotools.coco import COCO

    images = [shot(number * 3, f"{number}.jpg", (64, 48)) for number in range(5)]
    for each in images:
        image(tmp_path / each["file_name"], 64, 48)
    annotations = []
    for number in range(12):
        left, top = random.uniform(0, 30, 2).round(2).tolist()
        wide, high = random.uniform(1, 15, 2).round(2).tolist()
        crowd = int(random.random() < 0.3)
        of = images[random.integers(5)]["id"]
        annotations.append(
            note(number, of, [3, 7][number % 2], [left, top, wide, high], iscrowd=crowd, area=wide * high)
        )
    (tmp_path / "x.json").write_text(json.dumps(coco(images, annotations)))
    reference = COCO(tmp_path / "x.json")
    train, _, labels = detection_data.load_dataset(str(tmp_path / "x.json"), 0.0)
    ids = reference.getCatIds()
    assert [each["name"] for each in reference.loadCats(ids)] == list(labels)
    for each, sample in zip(images, train, strict=True):
        expected = reference.loadAnns(reference.getAnnIds(each["id"]))
        corners = [[b[0], b[1], b[0] + b[2], b[1] + b[3]] for b in (found["bbox"] for found in expected)]
        np.testing.assert_allclose(sample.boxes, np.reshape(corners, (-1, 4)), atol=1e-4)
        assert sample.classes.tolist() == [ids.index(found["category_id"]) for found in expected]
        assert sample.kinds.tolist() == [CROWD * found["iscrowd"] for found in expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"images": [],\n"annotations": [\n{"id": 1,}\n]}', r"x.json, line 4: is no JSON"),
        ('{\n"images": [\n', r"x.json, line 3: is no JSON"),
        ('{"images": [], "annotations": []}', "no list categories"),
        ("[]", "line 1: is no JSON"),
    ],
)
def test_json_that_is_broken(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(Error, match=message):
        detection_data.load_dataset(str(tmp_path / "x.json"), 0.0)


# ---- YOLO -----------------------------------------------------------------------------------------------------------


def yolo(root, part, stem, *lines):
    image(root / "images" / part / f"{stem}.jpg")
    (root / "labels" / part).mkdir(parents=True, exist_ok=True)
    (root / "labels" / part / f"{stem}.txt").write_text("\n".join(lines) + "\n")


def test_yolo(tmp_path, caplog):
    """Shares of the image; a polygon stands for its box; a bad line costs its box; no file means no objects."""
    lines = ["1 0.5 0.5 0.25 0.2", "0 0.1 0.1 0.5 0.3 0.4 0.9", "", "0 1.0 0.5 0.5 1.0", "9 .5 .5 .1 .1", "0 x y"]
    yolo(tmp_path, "", "a", *lines)
    image(tmp_path / "images" / "b.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    with caplog.at_level(logging.WARNING):
        train, _, labels = detection_data.load_dataset(str(tmp_path), 0.0)
    assert labels == ("cat", "dog")
    assert stems(train) == ["a", "b"]
    np.testing.assert_allclose(train[0].boxes, [[15, 12, 25, 18], [4, 3, 20, 27], [30, 0, 40, 30]], atol=1e-5)
    assert train[0].classes.tolist() == [1, 0, 0]
    assert len(train[1].boxes) == 0
    assert "2 of 5 boxes are left out" in caplog.text


@pytest.mark.parametrize(
    "names",
    ["names: [cat, dog]", "names:\n  0: cat\n  1: dog", "nc: 2\nnames:\n- cat\n- dog"],
    ids=["list", "dict", "nc"],
)
@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "list"])
def test_yaml_of_yolo(tmp_path, names, layout):
    if layout == "roboflow":
        for part in ("train", "valid"):
            yolo(tmp_path / part, "", part, "1 0.5 0.5 0.5 0.5")
        paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images"
    else:
        yolo(tmp_path, "train", "train", "1 0.5 0.5 0.5 0.5")
        yolo(tmp_path, "val", "valid", "1 0.5 0.5 0.5 0.5")
        paths = "path: .\ntrain: images/train\nval: [images/val]\ntest:"
        if layout == "list":
            (tmp_path / "train.txt").write_text("./images/train/train.jpg\n")
            paths = "train: train.txt\nval: images/val"
    (tmp_path / "data.yaml").write_text(f"{paths}\n{names}\n")
    for spec in (tmp_path, tmp_path / "data.yaml"):
        train, judged, labels = detection_data.load_dataset(str(spec), 0.2)
        assert [stems(train), stems(judged), labels] == [["train"], ["valid"], ("cat", "dog")]
        assert train[0].boxes.tolist() == [[10, 7.5, 30, 22.5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [cat\ntrain: x", r"data.yaml, line \d: is not valid YAML"),
        ("names: [cat]\ntrain: nowhere", "names nowhere, and there is no"),
        ("names: {a: cat}\ntrain: images", "names must be a list"),
        ("names: 7\ntrain: images", "names must be a list"),
        ("names: absent.txt\ntrain: images", r"names absent.txt, and there is no"),
        ("names: [cat]\ntrain: images\nval: ../test/images", r"names \.\./test/images, and there is no"),
    ],
)
def test_yaml_that_is_broken(tmp_path, content, message):
    yolo(tmp_path, "", "a", "0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(Error, match=message):
        detection_data.load_dataset(str(tmp_path), 0.0)


def test_yolo_without_names(tmp_path):
    yolo(tmp_path, "", "a", "0 .5 .5 .5 .5")
    with pytest.raises(Error, match=r"classes\.txt"):
        detection_data.load_dataset(str(tmp_path), 0.0)
    for content in ("train: images\nnames:\n", "train: images\n"):
        (tmp_path / "data.yaml").write_text(content)
        with pytest.raises(Error, match=r"names must be a list, .* got None"):
            detection_data.load_dataset(str(tmp_path / "data.yaml"), 0.0)


def beside(root, stem, *lines):
    """An image and its labels in the same folder."""
    image(root / f"{stem}.jpg")
    (root / f"{stem}.txt").write_bytes("\n".join(lines).encode("utf-8-sig"))


@pytest.mark.parametrize("tool", ["labelImg", "labelImg, parts", "Label Studio", "CVAT"])
def test_yolo_as_tools_leave_it(tmp_path, tool):
    box = "1 0.5 0.5 0.5 0.5"
    names = tmp_path / "classes.txt"
    if tool == "labelImg":
        for stem in "ab":
            beside(tmp_path, stem, box)
    elif tool == "labelImg, parts":
        beside(tmp_path / "train", "a", box)
        beside(tmp_path / "valid", "b", box)
        names = tmp_path / "train" / "classes.txt"
    elif tool == "Label Studio":
        for stem in "ab":
            yolo(tmp_path, "", stem, box)
        notes = {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {"year": 2024}}
        (tmp_path / "notes.json").write_text(json.dumps(notes))
    else:
        for stem in "ab":
            beside(tmp_path / "obj_train_data", stem, box)
        names = tmp_path / "obj.names"
        (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
        described = "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
        (tmp_path / "obj.data").write_text(described)
    names.write_text("cat\ndog\n")
    train, judged, labels = detection_data.load_dataset(str(tmp_path), 0.5)
    assert labels == ("cat", "dog")
    assert sorted(stems(train) + stems(judged)) == ["a", "b"]
    if tool == "labelImg, parts":
        assert [stems(train), stems(judged)] == [["a"], ["b"]]
    for sample in (*train, *judged):
        assert sample.boxes.tolist() == [[10, 7.5, 30, 22.5]]
        assert sample.classes.tolist() == [1]


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["YOLO", "COCO"])
def test_a_part_without_a_box_is_not_judged_on(tmp_path, layout, caplog):
    for part in ("train", "val", "test"):
        if layout == "YOLO":
            yolo(tmp_path, part, part, *["0 0.5 0.5 0.5 0.5"] * (part != "test"))
        else:
            image(tmp_path / part / f"{part}.jpg")
            (tmp_path / "annotations").mkdir(exist_ok=True)
            content = coco([shot(1, f"{part}.jpg")], [note(1, 1, 7, [1, 1, 5, 5])] * (part != "test"))
            (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("cat\n")
    train, judged, _ = detection_data.load_dataset(str(tmp_path), 0.0)
    assert [stems(train), stems(judged)] == [["train"], ["val"]]
    assert "the test part has no box, and is not judged on" in caplog.text


def test_what_is_judged_on_needs_no_training_images(tmp_path):
    voc(tmp_path, {stem: xml(thing("dog", (1, 1, 9, 9))) for stem in "abcd"}, {"train": "abc", "test": "d"})
    for stem in "abc":
        (tmp_path / "JPEGImages" / f"{stem}.jpg").unlink()
    train, judged, labels = detection_data.load_dataset(str(tmp_path), 0.0, 0, include_train=False)
    assert (train, stems(judged), labels) == ((), ["d"], ("dog",))
    with pytest.raises(Error, match="3 images are broken, and --max-broken allows 0"):
        detection_data.load_dataset(str(tmp_path), 0.0, 0)


# ---- by name, archives, nothing at all ------------------------------------------------------------------------------


def test_an_archive_of_a_folder(tmp_path):
    voc(tmp_path / "deep" / "er", {"x": xml(thing("dog", (1, 1, 9, 9)))})
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "deep")
    assert one(tmp_path / "packed.zip")[1] == ("dog",)


def test_known_names_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    for name, missing in (("voc2007", "VOCtest_06-Nov-2007.tar"), ("voc2012", "VOCdevkit"), ("bccd", "bccd.zip"),
                          ("coco", "instances_train2017.json")):  # fmt: skip
        with pytest.raises(Error, match=missing):
            detection_data.load_dataset(name, 0.2)
    voc(tmp_path / "VOCdevkit" / "VOC2007", {"x": xml(thing("dog", (1, 1, 9, 9)))})
    voc(tmp_path / "bccd", {"x": xml(thing("RBC", (1, 1, 9, 9)))})
    assert detection_data.load_dataset("voc2007", 0.0)[2] == ("dog",)
    assert detection_data.load_dataset("bccd", 0.0)[2] == ("RBC",)
    image(tmp_path / "coco" / "train2017" / "x.jpg")
    for part in ("train", "val"):
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        file = tmp_path / "coco" / "annotations" / f"instances_{part}2017.json"
        file.write_text(json.dumps(coco([shot(1, "x.jpg")] if part == "train" else [], [])))
    assert len(detection_data.load_dataset("coco", 0.0)[0]) == 1
    with pytest.raises(UsageError, match="'scenes'"):
        detection_data.load_dataset("scene", 0.2)


def test_a_folder_in_no_layout(tmp_path):
    image(tmp_path / "cat" / "x.jpg")
    with pytest.raises(Error, match=r"Annotations/\*\.xml .* data\.yaml"):
        detection_data.load_dataset(str(tmp_path), 0.2)
    voc(tmp_path / "empty", {"x": xml()})
    with pytest.raises(Error, match="no box of any class"):
        detection_data.load_dataset(str(tmp_path / "empty"), 0.2)


def test_real_data(real_boxes):
    """As many images and boxes as a search of the files finds, each box inside of its image."""
    train, judged, labels = detection_data.load_dataset(real_boxes, 0.2)
    counts = {"bccd": (292, 72, 4888), "voc-animals": (500, 250, 1602)}
    boxes = sum(len(sample.boxes) for sample in (*train, *judged))
    assert (len(train), len(judged), boxes) == counts[real_boxes]
    assert labels == tuple(sorted(labels))
    for sample in (*train, *judged):
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert (sample.boxes[:, 2:] <= sample.size).all()
