"""Tests of the annotation readers (VOC, COCO, YOLO): small files of every variant, with boxes computed by hand."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fukami import Error, UsageError
from fukami.data import yolo
from fukami.data.samples import CROWD, DIFFICULT, REGULAR
from fukami.data.sources import identify_source
from fukami.detection import data as detection_data


def write_image(path, width=40, height=30, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), "white").save(path, exif=exif)
    return path


def voc_object(name, box, difficult=0):
    """VOC XML of an object; its box is xmin, ymin, xmax, ymax."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object>\n<name>{name}</name>\n<difficult>{difficult}</difficult>\n<bndbox>{inner}</bndbox>\n</object>"


def voc_xml(*objects, size=(40, 30), filename="x.jpg"):
    size_tag = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return "\n".join(["<annotation>", f"<filename>{filename}</filename>", size_tag, *objects, "</annotation>"])


def write_voc(root, annotations, lists=None):
    """Write a dataset in VOC's layout: the XML text by stem, and the image lists."""
    for stem, text in annotations.items():
        if not (root / "JPEGImages" / f"{stem}.jpg").exists():
            write_image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for name, stems in (lists or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
    return root


def load_only_sample(root):
    """Load a dataset with a single sample; return the sample and the class names."""
    train, _, _, labels = detection_data.load_dataset(str(root), 0.0)
    assert len(train) == 1
    return train[0], labels


def get_stems(samples):
    return [Path(sample.name).stem for sample in samples]


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


def test_voc_counts_from_one_and_includes_the_last_pixel(tmp_path):
    boxes = [
        voc_object("dog", (1, 1, 40, 30)),
        voc_object("cat", (11, 6, 20, 15), 1),
        voc_object("dog", (5.5, 2.25, 9.0, 4)),
    ]
    sample, labels = load_only_sample(write_voc(tmp_path, {"x": voc_xml(*boxes)}))
    assert labels == ("cat", "dog")
    assert sample.size == (40, 30)
    assert sample.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15], [4.5, 1.25, 9, 4]]
    assert sample.boxes.dtype == np.float32
    assert sample.classes.tolist() == [1, 0, 1]
    assert sample.kinds.tolist() == [REGULAR, DIFFICULT, REGULAR]


def test_boxes_are_clipped_and_invalid_ones_skipped_with_one_warning(tmp_path, caplog):
    boxes = [
        voc_object("dog", (-5, 0, 12, 99)),  # exceeds three sides
        voc_object("dog", (7, 7, 7, 7)),  # a single pixel
        voc_object("dog", (8, 2, 7, 9)),  # zero width
        voc_object("dog", (20, 2, 7, 9)),  # inverted
        voc_object("dog", (50, 2, 60, 9)),  # outside
        voc_object("dog", ("nan", 2, 60, 9)),
        voc_object("dog", ("", 2, 60, 9)),
        "<object><name>dog</name></object>",
        voc_object(" ", (1, 1, 9, 9)),
    ]
    with caplog.at_level(logging.WARNING):
        sample, _ = load_only_sample(write_voc(tmp_path, {"x": voc_xml(*boxes)}))
    assert sample.boxes.tolist() == [[0, 0, 12, 30], [6, 6, 7, 7]]
    assert len(caplog.records) == 1
    assert "7 of 9 boxes are skipped" in caplog.text
    assert "fukami doctor" in caplog.text


def test_images_without_objects_and_boxes_of_body_parts(tmp_path):
    """A head within a person (VOC's person layout) is not an object."""
    person = voc_object("person", (2, 2, 30, 30)).replace(
        "</object>", "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part></object>"
    )
    write_voc(tmp_path, {"a": voc_xml(), "b": voc_xml(person)})
    train, _, _, labels = detection_data.load_dataset(str(tmp_path), 0.0)
    assert labels == ("person",)
    assert [sample.boxes.shape for sample in train] == [(0, 4), (1, 4)]
    assert train[0].classes.dtype == np.int64


@pytest.mark.parametrize(
    ("lists", "train", "val", "test"),
    [
        ({"train": "ab", "val": "c", "trainval": "abc", "test": "d"}, "ab", "c", "d"),
        ({"train": "ab", "val": "c", "test": "d"}, "ab", "c", "d"),
        ({"train": "ab", "val": "c", "trainval": "abc"}, "ab", "c", ""),
        ({"train": "ab", "val": "c", "test": ["secret1", "secret2"]}, "ab", "c", ""),  # as in VOC 2012
        ({"trainval": "abc", "test": "d"}, "b", "ac", "d"),  # a part of trainval is used for validation
        ({"train": "ab", "test": "cd"}, "b", "a", "cd"),
        ({"train": ["a  1", "b -1", "c  0"], "val": "d", "cat_train": "d"}, "abc", "d", ""),  # list of a class, signs
        ({"train": ["a.jpg", "JPEGImages/b.jpg"], "val": ["JPEGImages\\c", "d"]}, "ab", "cd", ""),
        ({"trainval": "abcd", "val": "cd"}, "ab", "cd", ""),
        ({"trainval": "abcd", "train": "ab"}, "ab", "cd", ""),
        ({"train": "abba", "val": "cc"}, "ab", "c", ""),  # a name listed twice is one image
    ],
)
def test_voc_image_lists(tmp_path, lists, train, val, test):
    write_voc(tmp_path, {stem: voc_xml(voc_object("dog", (1, 1, 9, 9))) for stem in "abcd"}, lists)
    splits = detection_data.load_dataset(str(tmp_path), 0.5)[:3]
    assert [get_stems(split) for split in splits] == [list(train), list(val), list(test)]


def test_without_lists_the_validation_split_is_stratified_and_repeatable(tmp_path):
    """Each class has the same fraction, and repeated calls select the same images."""
    boxes = {
        f"{i:02}": voc_xml(voc_object("rare" if i < 4 else "dog", (1, 1, 9, 9)), voc_object("dog", (1, 1, 9, 9)))
        for i in range(20)
    }
    write_voc(tmp_path, boxes)
    train, val, _, _ = detection_data.load_dataset(str(tmp_path), 0.25)
    assert len(train) == 15
    assert len(val) == 5
    assert sum("rare" in boxes[stem] for stem in get_stems(val)) == 1
    repeated = detection_data.load_dataset(str(tmp_path), 0.25)
    assert get_stems(repeated[1]) == get_stems(val)


@pytest.mark.parametrize("layout", ["flat", "splits", "kaggle"])
def test_other_layouts_of_voc_xml(tmp_path, layout):
    """Layouts of labelImg (one folder), Roboflow (a folder per split) and Kaggle (``images`` and ``annotations``)."""
    folders = {"flat": [("", "")] * 2, "splits": [("train", "train"), ("valid", "valid")],
               "kaggle": [("images", "annotations")] * 2}[layout]  # fmt: skip
    for index, (images, annotations) in enumerate(folders):
        write_image(tmp_path / images / f"{index}.png")
        (tmp_path / annotations).mkdir(exist_ok=True)
        (tmp_path / annotations / f"{index}.xml").write_text(voc_xml(voc_object("dog", (2, 2, 3, 3))))
    train, val, _, labels = detection_data.load_dataset(str(tmp_path), 0.5)
    assert (len(train), len(val), labels) == (1, 1, ("dog",))
    if layout == "splits":
        assert [get_stems(train), get_stems(val)] == [["0"], ["1"]]


def test_filename_element_selects_among_images_with_the_same_stem(tmp_path):
    for suffix, size in (("jpg", (40, 30)), ("png", (20, 10))):
        write_image(tmp_path / "JPEGImages" / f"x.{suffix}", *size)
    write_voc(tmp_path, {"x": voc_xml(voc_object("dog", (1, 1, 9, 9)), filename="x.jpg")})
    assert load_only_sample(tmp_path)[0].size == (40, 30)
    write_voc(tmp_path, {"x": voc_xml(voc_object("dog", (1, 1, 9, 9)), filename="x.png", size=(20, 10))})
    assert load_only_sample(tmp_path)[0].size == (20, 10)
    annotations = detection_data.read_annotations(identify_source(str(tmp_path)))
    assert annotations.unannotated_images == [tmp_path / "JPEGImages" / "x.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "euc-kr", "shift_jis", "latin-1", "utf-16"])
def test_encodings_of_xml(tmp_path, encoding):
    name = "straße" if encoding == "latin-1" else "犬" if encoding != "euc-kr" else "개"
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + voc_xml(voc_object(name, (1, 1, 9, 9)))
    write_voc(tmp_path, {"x": ""})
    (tmp_path / "Annotations" / "x.xml").write_bytes(text.encode(encoding))
    assert load_only_sample(tmp_path)[1] == (name,)


def test_xml_with_an_unknown_encoding(tmp_path, caplog):
    text = voc_xml(voc_object("dog", (1, 1, 9, 9)))
    write_voc(tmp_path, {"a": text, "x": f'<?xml version="1.0" encoding="klingon"?>{text}'})
    assert Path(load_only_sample(tmp_path)[0].name).stem == "a"
    assert "x.xml, line 1: is not in klingon, its declared encoding; save it in UTF-8" in caplog.text


def test_filename_element_is_used_if_no_image_has_the_stem_of_the_xml(tmp_path):
    write_image(tmp_path / "JPEGImages" / "photo.JPG")
    write_voc(tmp_path, {})
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "other.xml").write_text(voc_xml(voc_object("dog", (1, 1, 9, 9)), filename="photo.JPG"))
    assert Path(load_only_sample(tmp_path)[0].name).name == "photo.JPG"


def test_missing_images_and_unreadable_files_are_skipped_and_reported(tmp_path, caplog):
    write_voc(tmp_path, {stem: voc_xml(voc_object("dog", (1, 1, 9, 9))) for stem in "abcd"})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "JPEGImages" / "b.jpg").write_bytes(b"")
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation>\n<object>\n</annotation>")
    with caplog.at_level(logging.WARNING):
        sample, _ = load_only_sample(tmp_path)
    assert Path(sample.name).stem == "d"
    assert "3 of 4 images are skipped" in caplog.text
    assert "c.xml, line 3: is not XML (mismatched tag" in caplog.text
    assert "a.xml, line 3: its image" in caplog.text
    assert "b.jpg is empty" in caplog.text
    with pytest.raises(Error, match="3 images are unreadable, and --max-unreadable allows 2"):
        detection_data.load_dataset(str(tmp_path), 0.0, max_unreadable=2)


# ---- sizes and rotation ---------------------------------------------------------------------------------------------

UPRIGHT = {  # by orientation: upright box of the top left corner (1 wide, 2 high) of a stored 40×30 image
    1: (0, 0, 1, 2), 5: (0, 0, 2, 1), 6: (28, 0, 30, 1), 7: (28, 39, 30, 40), 8: (0, 39, 2, 40),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_boxes_rotate_with_an_image_whose_stored_size_is_stated(tmp_path, orientation, suffix):
    """The box matches a red mark in the image after Pillow applies the orientation."""
    path = tmp_path / "JPEGImages" / f"x.{suffix}"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked = Image.new("RGB", (40, 30), "white")
    marked.paste((255, 0, 0), (0, 0, 1, 2))
    marked.save(path, exif=exif)
    sample, _ = load_only_sample(write_voc_xml(tmp_path, voc_xml(voc_object("mark", (1, 1, 1, 2)))))
    assert sample.size == ((30, 40) if orientation > 4 else (40, 30))
    assert sample.boxes.tolist() == [list(UPRIGHT[orientation])]
    from fukami.image import io as image_io

    pixels = np.asarray(image_io.read_image(path))
    rows, columns = np.nonzero((pixels == (255, 0, 0)).all(2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == UPRIGHT[orientation]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_boxes_refer_to_the_upright_image_where_its_size_equals_the_stored_one(tmp_path, orientation):
    """Tools such as labelme show and measure the upright image."""
    path = tmp_path / "JPEGImages" / "x.png"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    sample, _ = load_only_sample(write_voc_xml(tmp_path, voc_xml(voc_object("mark", (1, 1, 1, 2)))))
    assert sample.boxes.tolist() == [[0, 0, 1, 2]]


def write_voc_xml(root, text):
    (root / "Annotations").mkdir()
    (root / "Annotations" / "x.xml").write_text(text)
    return root


@pytest.mark.parametrize("size", [(30, 40), None, (0, 0), (999, 7)])
def test_boxes_otherwise_refer_to_the_upright_image(tmp_path, size):
    """The stated size is that of the upright image, missing, zero or wrong; the image file decides."""
    write_image(tmp_path / "JPEGImages" / "x.jpg", orientation=6)
    sample, _ = load_only_sample(write_voc(tmp_path, {"x": voc_xml(voc_object("dog", (1, 2, 30, 40)), size=size)}))
    assert sample.size == (30, 40)
    assert sample.boxes.tolist() == [[0, 1, 30, 40]]


# ---- COCO -----------------------------------------------------------------------------------------------------------


def coco_json(images, annotations, categories=((3, "cat"), (7, "dog"))):
    records = [{"id": index, "name": name, "supercategory": "animal"} for index, name in categories]
    return {"info": {"year": 2024}, "images": images, "annotations": annotations, "categories": records}


def image_record(identifier, name, size=(40, 30)):
    return {"id": identifier, "file_name": name, "width": size[0], "height": size[1]}


def annotation_record(identifier, image_id, category, box, **fields):
    return {"id": identifier, "image_id": image_id, "category_id": category, "bbox": box, **fields}


def test_coco(tmp_path, caplog):
    """Category ids with gaps, in the file's order; float boxes, crowds, clipping and missing references."""
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    annotations = [
        annotation_record(1, 5, 7, [0.5, 1.25, 10.5, 8], iscrowd=0),
        annotation_record(2, 5, 3, [30, 20, 50.5, 50], iscrowd=1, segmentation={"counts": [], "size": [30, 40]}),
        annotation_record(3, 5, 3, [3, 3, 0, 5]),
        annotation_record(4, 5, 3, [3, 3, -4, 5]),
        annotation_record(5, 5, 99, [3, 3, 4, 5]),
        annotation_record(6, 99, 3, [3, 3, 4, 5]),
        {"id": 7, "image_id": 5, "category_id": 3},
    ]
    file = tmp_path / "labels.json"
    file.write_text(
        json.dumps(
            coco_json([image_record(5, "a.jpg"), image_record(6, "b.jpg")], annotations, ((7, "dog"), (3, "cat")))
        )
    )
    for spec in (file, tmp_path):
        with caplog.at_level(logging.WARNING):
            train, val, _, labels = detection_data.load_dataset(str(spec), 0.0)
        assert labels == ("dog", "cat")
        assert get_stems(train) == ["a", "b"]
        assert val == ()
        assert train[0].boxes.tolist() == [[0.5, 1.25, 11, 9.25], [30, 20, 40, 30]]
        assert train[0].classes.tolist() == [0, 1]
        assert train[0].kinds.tolist() == [REGULAR, CROWD]
        assert len(train[1].boxes) == 0
    assert "4 of 6 boxes are skipped" in caplog.text


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "."])
def test_folders_of_coco_images(tmp_path, folder):
    for split in ("train2017", "val2017"):
        image_folder = folder.replace("train2017", split)
        write_image(tmp_path / image_folder / f"{split}.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = coco_json([image_record(1, f"{split}.jpg")], [annotation_record(1, 1, 7, [1, 1, 5, 5])])
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content, indent=1))
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    train, val, _, labels = detection_data.load_dataset(str(tmp_path), 0.2)
    assert [get_stems(train), get_stems(val), labels] == [["train2017"], ["val2017"], ("cat", "dog")]


def test_coco_as_exported_by_roboflow(tmp_path):
    """A file in each split, and a supercategory without boxes as the first category."""
    for split in ("train", "valid", "test"):
        write_image(tmp_path / split / f"{split}.jpg")
        content = coco_json([image_record(0, f"{split}.jpg")], [annotation_record(1, 0, 1, [1, 1, 5, 5])], ())
        content["categories"] = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "RBC", "supercategory": "cells"},
        ]
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    *splits, labels = detection_data.load_dataset(str(tmp_path), 0.2)
    assert [*map(get_stems, splits), labels] == [["train"], ["valid"], ["test"], ("RBC",)]


def test_two_records_of_one_image_are_merged(tmp_path):
    """Merged exports list an image twice; otherwise each record's boxes are background in the other."""
    write_image(tmp_path / "a.jpg")
    boxes = [
        annotation_record(1, 1, 3, [1, 1, 5, 5]),
        annotation_record(2, 2, 7, [9, 9, 5, 5]),
        annotation_record(3, 2, 7, [3, 9, 5, 5], iscrowd="0"),
    ]
    (tmp_path / "x.json").write_text(json.dumps(coco_json([image_record(1, "a.jpg"), image_record(2, "a.jpg")], boxes)))
    sample, _ = load_only_sample(tmp_path)
    assert sample.classes.tolist() == [0, 1, 1]
    assert sample.kinds.tolist() == [REGULAR] * 3


def test_coco_boxes_equal_those_of_pycocotools(tmp_path, random):
    """The reference reader returns the same boxes, classes and crowd flags for each image."""
    from pycocotools.coco import COCO

    images = [image_record(i * 3, f"{i}.jpg", (64, 48)) for i in range(5)]
    for record in images:
        write_image(tmp_path / record["file_name"], 64, 48)
    annotations = []
    for annotation_id in range(12):
        left, top = random.uniform(0, 30, 2).round(2).tolist()
        width, height = random.uniform(1, 15, 2).round(2).tolist()
        crowd = int(random.random() < 0.3)
        image_id = images[random.integers(5)]["id"]
        box = [left, top, width, height]
        annotations.append(
            annotation_record(
                annotation_id, image_id, [3, 7][annotation_id % 2], box, iscrowd=crowd, area=width * height
            )
        )
    (tmp_path / "x.json").write_text(json.dumps(coco_json(images, annotations)))
    reference = COCO(tmp_path / "x.json")
    train, _, _, labels = detection_data.load_dataset(str(tmp_path / "x.json"), 0.0)
    ids = reference.getCatIds()
    assert [category["name"] for category in reference.loadCats(ids)] == list(labels)
    for record, sample in zip(images, train, strict=True):
        expected = reference.loadAnns(reference.getAnnIds(record["id"]))
        corners = [[b[0], b[1], b[0] + b[2], b[1] + b[3]] for b in (annotation["bbox"] for annotation in expected)]
        np.testing.assert_allclose(sample.boxes, np.reshape(corners, (-1, 4)), atol=1e-4)
        assert sample.classes.tolist() == [ids.index(annotation["category_id"]) for annotation in expected]
        assert sample.kinds.tolist() == [CROWD * annotation["iscrowd"] for annotation in expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"images": [],\n"annotations": [\n{"id": 1,}\n]}', r"x.json, line 4: is not valid JSON"),
        ('{\n"images": [\n', r"x.json, line 3: is not valid JSON"),
        ('{"images": [], "annotations": []}', "no list categories"),
        ("[]", "line 1: is not valid JSON"),
    ],
)
def test_invalid_coco_json_is_reported(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(Error, match=message):
        detection_data.load_dataset(str(tmp_path / "x.json"), 0.0)


# ---- YOLO -----------------------------------------------------------------------------------------------------------


def write_yolo(root, split, stem, *lines):
    write_image(root / "images" / split / f"{stem}.jpg")
    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    (root / "labels" / split / f"{stem}.txt").write_text("\n".join(lines) + "\n")


def test_yolo(tmp_path, caplog):
    """Relative boxes, a polygon converted to its box, invalid lines skipped, no file for an image without objects."""
    lines = ["1 0.5 0.5 0.25 0.2", "0 0.1 0.1 0.5 0.3 0.4 0.9", "", "0 1.0 0.5 0.5 1.0", "9 .5 .5 .1 .1", "0 x y"]
    write_yolo(tmp_path, "", "a", *lines)
    write_image(tmp_path / "images" / "b.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    with caplog.at_level(logging.WARNING):
        train, _, _, labels = detection_data.load_dataset(str(tmp_path), 0.0)
    assert labels == ("cat", "dog")
    assert get_stems(train) == ["a", "b"]
    np.testing.assert_allclose(train[0].boxes, [[15, 12, 25, 18], [4, 3, 20, 27], [30, 0, 40, 30]], atol=1e-5)
    assert train[0].classes.tolist() == [1, 0, 0]
    assert len(train[1].boxes) == 0
    assert "2 of 5 boxes are skipped" in caplog.text


@pytest.mark.parametrize("dimensions", [2, 3])
def test_keypoints_of_yolo_are_skipped(tmp_path, dimensions):
    """Poses as Ultralytics writes them: class, box, and two or three numbers for each keypoint."""
    keypoints = " ".join("0.9" for _ in range(4 * dimensions))
    write_yolo(tmp_path, "train", "a", f"0 0.5 0.5 0.2 0.1 {keypoints}")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: [tiger]\nkpt_shape: [4, {dimensions}]\n")
    train, _, _, labels = detection_data.load_dataset(str(tmp_path), 0.0)
    assert labels == ("tiger",)
    np.testing.assert_allclose(train[0].boxes, [[16, 13.5, 24, 16.5]], atol=1e-5)
    assert not yolo.has_polygons(tmp_path)


@pytest.mark.parametrize(
    "names",
    ["names: [cat, dog]", "names:\n  0: cat\n  1: dog", "nc: 2\nnames:\n- cat\n- dog"],
    ids=["list", "dict", "nc"],
)
@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "windows", "list"])
def test_yolo_yaml(tmp_path, names, layout):
    if layout in ("roboflow", "windows"):
        for split in ("train", "valid"):
            write_yolo(tmp_path / split, "", split, "1 0.5 0.5 0.5 0.5")
        paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images"
        paths = paths.replace("/", "\\") if layout == "windows" else paths
    else:
        write_yolo(tmp_path, "train", "train", "1 0.5 0.5 0.5 0.5")
        write_yolo(tmp_path, "val", "valid", "1 0.5 0.5 0.5 0.5")
        paths = "path: .\ntrain: images/train\nval: [images/val]\ntest:"
        if layout == "list":
            (tmp_path / "train.txt").write_text("./images/train/train.jpg\n")
            paths = "train: train.txt\nval: images/val"
    (tmp_path / "data.yaml").write_text(f"{paths}\n{names}\n")
    for spec in (tmp_path, tmp_path / "data.yaml"):
        train, val, _, labels = detection_data.load_dataset(str(spec), 0.2)
        assert [get_stems(train), get_stems(val), labels] == [["train"], ["valid"], ("cat", "dog")]
        assert train[0].boxes.tolist() == [[10, 7.5, 30, 22.5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [cat\ntrain: x", r"data.yaml, line \d: is not valid YAML"),
        ("names: [cat]\ntrain: nowhere", "refers to nowhere, but there is no"),
        ("names: {a: cat}\ntrain: images", "names must be a list"),
        ("names: 7\ntrain: images", "names must be a list"),
        ("names: absent.txt\ntrain: images", r"refers to absent.txt, but there is no"),
        ("names: [cat]\ntrain: images\nval: ../test/images", r"refers to \.\./test/images, but there is no"),
    ],
)
def test_invalid_yolo_yaml_is_reported(tmp_path, content, message):
    write_yolo(tmp_path, "", "a", "0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(Error, match=message):
        detection_data.load_dataset(str(tmp_path), 0.0)


def test_yolo_without_names(tmp_path):
    """Classes are named by their numbers; a description has to name them."""
    write_yolo(tmp_path, "", "a", "7 .5 .5 .5 .5", "2 .5 .5 .2 .2")
    sample, labels = load_only_sample(tmp_path)
    assert (sample.classes.tolist(), labels) == ([1, 0], ("2", "7"))
    for content in ("train: images\nnames:\n", "train: images\n"):
        (tmp_path / "data.yaml").write_text(content)
        with pytest.raises(Error, match=r"names must be a list, .* got None"):
            detection_data.load_dataset(str(tmp_path / "data.yaml"), 0.0)


def test_text_files_elsewhere_are_not_the_labels_of_an_image_without_objects(tmp_path):
    """Such as predictions beside the dataset."""
    write_yolo(tmp_path, "train", "a", "0 .5 .5 .5 .5")
    write_image(tmp_path / "images" / "train" / "background.jpg")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "background.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "labels" / "train" / "._a.txt").write_bytes(b"\0")  # of macOS
    dataset = yolo.read_yolo(tmp_path)
    assert {entry.image_path.stem: len(entry.boxes) for entry in dataset.splits["train"]} == {"a": 1, "background": 0}
    assert dataset.orphan_annotations == []


def test_labels_of_a_split_may_be_elsewhere(tmp_path):
    """The files of the other split, in the usual place, are not those of images of the same names."""
    write_yolo(tmp_path, "train", "a", "0 .5 .5 .5 .5")
    for stem in "ab":
        write_image(tmp_path / "val" / f"{stem}.jpg")
    (tmp_path / "val_boxes").mkdir()
    (tmp_path / "val_boxes" / "b.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: val\nnames: [cat]\n")
    counts = {
        (split, entry.image_path.stem): len(entry.boxes)
        for split, entries in yolo.read_yolo(tmp_path).splits.items()
        for entry in entries
    }
    assert counts == {("train", "a"): 1, ("val", "a"): 0, ("val", "b"): 1}


def test_a_list_of_yolo_with_a_line_that_is_no_file(tmp_path):
    write_yolo(tmp_path, "train", "a", "0 .5 .5 .5 .5")
    (tmp_path / "train.txt").write_text("/\nimages/train/a.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    dataset = yolo.read_yolo(tmp_path)
    assert [entry.image_path.stem for entry in dataset.splits["train"]] == ["a"]
    assert len(dataset.unreadable_images) == 1
    assert not yolo.has_polygons(tmp_path)


def test_at_most_four_descriptions_are_parsed(tmp_path, monkeypatch):
    """YAML takes ten seconds per megabyte; only files with the key names are candidates."""
    from fukami.data import yaml_file

    parsed = []
    monkeypatch.setattr(yaml_file, "load_yaml", lambda path: parsed.append(path.name) or {})
    for index in range(20):
        (tmp_path / f"{index:02}.yaml").write_text("names: []\n" if index % 2 else "other: 1  # names\n")
    assert not yolo.is_yolo_dataset(tmp_path)
    assert parsed == ["01.yaml", "03.yaml", "05.yaml", "07.yaml"]


def write_flat_yolo(root, stem, *lines):
    """Write an image and its labels to the same folder."""
    write_image(root / f"{stem}.jpg")
    (root / f"{stem}.txt").write_bytes("\n".join(lines).encode("utf-8-sig"))


@pytest.mark.parametrize("tool", ["labelImg", "labelImg, splits", "Label Studio", "CVAT"])
def test_yolo_as_exported_by_tools(tmp_path, tool):
    box = "1 0.5 0.5 0.5 0.5"
    names = tmp_path / "classes.txt"
    if tool == "labelImg":
        for stem in "ab":
            write_flat_yolo(tmp_path, stem, box)
    elif tool == "labelImg, splits":
        write_flat_yolo(tmp_path / "train", "a", box)
        write_flat_yolo(tmp_path / "valid", "b", box)
        names = tmp_path / "train" / "classes.txt"
    elif tool == "Label Studio":
        for stem in "ab":
            write_yolo(tmp_path, "", stem, box)
        notes = {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {"year": 2024}}
        (tmp_path / "notes.json").write_text(json.dumps(notes))
    else:
        for stem in "ab":
            write_flat_yolo(tmp_path / "obj_train_data", stem, box)
        names = tmp_path / "obj.names"
        (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
        description = "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
        (tmp_path / "obj.data").write_text(description)
    names.write_text("cat\ndog\n")
    train, val, _, labels = detection_data.load_dataset(str(tmp_path), 0.5)
    assert labels == ("cat", "dog")
    assert sorted(get_stems(train) + get_stems(val)) == ["a", "b"]
    if tool == "labelImg, splits":
        assert [get_stems(train), get_stems(val)] == [["a"], ["b"]]
    if tool == "CVAT":
        described = detection_data.load_dataset(str(tmp_path / "obj.data"), 0.5)
        assert [sample.name for split in described[:3] for sample in split] == [s.name for s in (*train, *val)]
    for sample in (*train, *val):
        assert sample.boxes.tolist() == [[10, 7.5, 30, 22.5]]
        assert sample.classes.tolist() == [1]


# ---- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["YOLO", "COCO"])
def test_a_split_without_boxes_is_not_used_for_evaluation(tmp_path, layout, caplog):
    for split in ("train", "val", "test"):
        if layout == "YOLO":
            write_yolo(tmp_path, split, split, *["0 0.5 0.5 0.5 0.5"] * (split != "test"))
        else:
            write_image(tmp_path / split / f"{split}.jpg")
            (tmp_path / "annotations").mkdir(exist_ok=True)
            annotations = [annotation_record(1, 1, 7, [1, 1, 5, 5])] * (split != "test")
            content = coco_json([image_record(1, f"{split}.jpg")], annotations)
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("cat\n")
    *splits, _ = detection_data.load_dataset(str(tmp_path), 0.0)
    assert [*map(get_stems, splits)] == [["train"], ["val"], []]
    assert "the test split has no box and is not used for evaluation" in caplog.text


def test_a_split_of_difficult_objects_is_not_used_for_evaluation(tmp_path, caplog):
    """Its evaluation would have no object to count, and stop the training."""
    difficult = voc_xml(voc_object("dog", (2, 2, 20, 20), difficult=1))
    annotations = {"a": voc_xml(voc_object("dog", (2, 2, 20, 20))), "b": difficult, "c": voc_xml()}
    write_voc(tmp_path, annotations, {"train": ["a", "c"], "val": ["b"]})
    splits = detection_data.load_dataset(str(tmp_path), 0.0)
    assert (get_stems(splits.train), splits.val) == (["a", "c"], ())
    assert "the val split has no object that is counted" in caplog.text


def test_a_validation_split_without_objects_is_not_split_off(tmp_path, caplog):
    """Of one image of a cat and three without objects, one without objects would be selected."""
    write_voc(tmp_path, {"a": voc_xml(voc_object("cat", (2, 2, 20, 20))), **{name: voc_xml() for name in "bcd"}})
    splits = detection_data.load_dataset(str(tmp_path), 0.25)
    assert (len(splits.train), splits.val) == (4, ())


def test_evaluation_needs_no_training_images(tmp_path):
    write_voc(
        tmp_path, {stem: voc_xml(voc_object("dog", (1, 1, 9, 9))) for stem in "abcd"}, {"train": "abc", "test": "d"}
    )
    for stem in "abc":
        (tmp_path / "JPEGImages" / f"{stem}.jpg").unlink()
    train, val, test, labels = detection_data.load_dataset(str(tmp_path), 0.0, 0, include_train=False)
    assert (train, val, get_stems(test), labels) == ((), (), ["d"], ("dog",))
    with pytest.raises(Error, match="3 images are unreadable, and --max-unreadable allows 0"):
        detection_data.load_dataset(str(tmp_path), 0.0, 0)


# ---- dataset names, archives, missing data --------------------------------------------------------------------------


def test_an_archive_of_a_folder(tmp_path):
    write_voc(tmp_path / "deep" / "er", {"x": voc_xml(voc_object("dog", (1, 1, 9, 9)))})
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "deep")
    assert load_only_sample(tmp_path / "packed.zip")[1] == ("dog",)


def test_named_datasets_are_loaded_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    for name, missing in (("voc2007", "VOCtest_06-Nov-2007.tar"), ("voc2012", "VOCdevkit"), ("bccd", "bccd.zip"),
                          ("coco", "instances_train2017.json")):  # fmt: skip
        with pytest.raises(Error, match=missing):
            detection_data.load_dataset(name, 0.2)
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {"x": voc_xml(voc_object("dog", (1, 1, 9, 9)))})
    write_voc(tmp_path / "bccd", {"x": voc_xml(voc_object("RBC", (1, 1, 9, 9)))})
    assert detection_data.load_dataset("voc2007", 0.0).labels == ("dog",)
    assert detection_data.load_dataset("bccd", 0.0).labels == ("RBC",)
    write_image(tmp_path / "coco" / "train2017" / "x.jpg")
    for split in ("train", "val"):
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        file = tmp_path / "coco" / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(coco_json([image_record(1, "x.jpg")] if split == "train" else [], [])))
    assert len(detection_data.load_dataset("coco", 0.0)[0]) == 1
    with pytest.raises(UsageError, match="'scenes'"):
        detection_data.load_dataset("scene", 0.2)


def test_a_folder_in_an_unknown_layout(tmp_path):
    write_image(tmp_path / "cat" / "x.jpg")
    with pytest.raises(UsageError, match=r"class folders: 1 image, 1 class; .* need bounding boxes: images with XML"):
        detection_data.load_dataset(str(tmp_path), 0.2)
    write_voc(tmp_path / "empty", {"x": voc_xml()})
    with pytest.raises(Error, match="no box of any class"):
        detection_data.load_dataset(str(tmp_path / "empty"), 0.2)


def test_real_data(real_boxes):
    """The numbers of images and boxes equal those counted in the files, and each box is within its image."""
    train, val, test, labels = detection_data.load_dataset(real_boxes, 0.2)
    counts = {"bccd": (205, 87, 72, 4888), "voc-animals": (500, 250, 0, 1602)}
    num_boxes = sum(len(sample.boxes) for sample in (*train, *val, *test))
    assert (len(train), len(val), len(test), num_boxes) == counts[real_boxes]
    assert labels == tuple(sorted(labels))
    for sample in (*train, *val, *test):
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert (sample.boxes[:, 2:] <= sample.size).all()


# ---- annotations elsewhere, missing images and classes ---------------------------------------------------------------


def test_labels_in_a_folder_of_their_own_are_not_those_in_the_usual_place(tmp_path):
    write_yolo(tmp_path, "", "a", "0 .5 .5 .2 .2")
    corrected = tmp_path / "labels_corrected"
    corrected.mkdir()
    (corrected / "a.txt").write_text("0 .5 .5 1 1\n")
    source = identify_source(str(corrected), "boxes", str(tmp_path / "images"))
    (entry,) = detection_data.read_annotations(source).splits[""]
    assert entry.boxes[0].corners == (0, 0, 1, 1)


@pytest.mark.parametrize("trainval", [False, True])
def test_a_missing_image_of_coco_is_not_that_of_another_split(tmp_path, trainval):
    """Only a file of both splits may have images in both folders."""
    for split, numbers in (("train", (1, 3)), ("val", (1, 2, 3))):
        for number in numbers:
            write_image(tmp_path / split / f"{number}.jpg")
        images = [image_record(number, f"{number}.jpg") for number in (1, 2, 3)]
        boxes = [annotation_record(number, number, 3, [1, 2, 3, 4]) for number in (1, 2, 3)]
        name = "trainval" if trainval and split == "train" else split
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(json.dumps(coco_json(images, boxes)))
    dataset = detection_data.read_annotations(identify_source(str(tmp_path), "boxes"))
    paths = [entry.image_path.relative_to(tmp_path).as_posix() for entry in dataset.splits["train"]]
    if trainval:  # the images of trainval that are not in val
        assert paths == ["train/1.jpg"]
    else:
        assert paths == ["train/1.jpg", "train/3.jpg"]
        assert [problem.kind for problem in dataset.unreadable_images] == ["missing"]
    assert [entry.image_path.parent.name for entry in dataset.splits["val"]] == ["val"] * 3


def test_annotations_of_a_deleted_image_do_not_belong_to_one_in_another_folder(tmp_path):
    for folder in "ab":
        for name in "12":
            write_image(tmp_path / folder / f"{name}.jpg")
            box = voc_object("cat" if folder == "a" else "dog", (1, 1, 9, 9))
            (tmp_path / folder / f"{name}.xml").write_text(voc_xml(box, filename=f"{name}.jpg"))
    (tmp_path / "a" / "1.jpg").unlink()
    dataset = detection_data.read_annotations(identify_source(str(tmp_path), "boxes"))
    assert [[box.label for box in entry.boxes] for entry in dataset.splits[""]] == [["cat"], ["dog"], ["dog"]]
    (problem,) = dataset.unreadable_images
    assert (problem.kind, problem.file) == ("missing", tmp_path / "a" / "1.xml")


def test_annotations_in_another_folder_are_merged(tmp_path):
    """A second folder of annotations of the same images, which has no images of its own."""
    for name in "12":
        write_image(tmp_path / "photos" / f"{name}.jpg")
        for folder, label in (("photos", "cat"), ("dogs", "dog")):
            (tmp_path / folder).mkdir(exist_ok=True)
            text = voc_xml(voc_object(label, (1, 1, 9, 9)), filename=f"{name}.jpg")
            (tmp_path / folder / f"{name}.xml").write_text(text)
    train, _, _, labels = detection_data.load_dataset(str(tmp_path), 0.0)
    assert labels == ("cat", "dog")
    assert [sorted(sample.classes.tolist()) for sample in train] == [[0, 1], [0, 1]]


def test_images_of_a_coco_file_may_lie_in_the_folder_of_another_split(tmp_path):
    """Training and validation images of one folder, beside a folder of validation images that no file lists."""
    for number in (1, 2, 3):
        write_image(tmp_path / "train2017" / f"{number}.jpg")
    write_image(tmp_path / "val2017" / "9.jpg")
    (tmp_path / "annotations").mkdir()
    for split, numbers in (("train", (1, 2)), ("val", (3,))):
        images = [image_record(number, f"{number}.jpg") for number in numbers]
        boxes = [annotation_record(number, number, 3, [1, 2, 3, 4]) for number in numbers]
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco_json(images, boxes)))
    dataset = detection_data.read_annotations(identify_source(str(tmp_path), "boxes"))
    assert [len(dataset.splits[split]) for split in ("train", "val")] == [2, 1]
    assert dataset.splits["val"][0].image_path == tmp_path / "train2017" / "3.jpg"


def write_numbered_coco(root, split, numbers):
    """Write a COCO file of a split, whose images have numbers."""
    root.mkdir(exist_ok=True)
    images = [image_record(number, f"{number}.jpg") for number in numbers]
    boxes = [annotation_record(number, number, 3, [1, 2, 3, 4]) for number in numbers]
    (root / f"instances_{split}.json").write_text(json.dumps(coco_json(images, boxes)))


def list_coco_images(root, path, images=None):
    """List the images of each split that exist, relative to the folder."""
    dataset = detection_data.read_annotations(identify_source(str(path), "boxes", str(images or "")))
    return {
        split: [entry.image_path.relative_to(root).as_posix() for entry in entries]
        for split, entries in dataset.splits.items()
    }


def test_images_of_coco_are_first_those_of_the_own_split(tmp_path):
    """Also in a folder of images, and where the names of folders and of files differ."""
    for split in ("test", "train", "val"):
        write_image(tmp_path / "images" / split / "1.jpg")
    for split in ("train2017", "val2017"):
        write_numbered_coco(tmp_path / "notes", split, (1,))
    listed = list_coco_images(tmp_path, tmp_path / "notes", tmp_path / "images")
    assert listed == {"train": ["images/train/1.jpg"], "val": ["images/val/1.jpg"]}


def test_a_missing_test_image_of_coco_is_not_that_of_trainval(tmp_path):
    for split, numbers in (("trainval", (1, 2, 3)), ("test", (1, 3))):
        for number in numbers:
            write_image(tmp_path / split / f"{number}.jpg")
        write_numbered_coco(tmp_path / "annotations", split, (1, 2, 3))
    listed = list_coco_images(tmp_path, tmp_path)
    assert listed["test"] == ["test/1.jpg", "test/3.jpg"]


def test_coco_files_of_several_splits_may_share_a_folder(tmp_path):
    """The validation images are some of the training images, and there is no folder of validation images."""
    for number in (1, 2):
        write_image(tmp_path / "train" / f"{number}.jpg")
    write_numbered_coco(tmp_path / "annotations", "train", (1, 2))
    write_numbered_coco(tmp_path / "annotations", "val", (2,))
    assert list_coco_images(tmp_path, tmp_path)["val"] == ["train/2.jpg"]


def test_a_single_coco_file_has_no_images_of_another_split(tmp_path):
    for split, numbers in (("train", (1,)), ("val", (1, 2))):
        for number in numbers:
            write_image(tmp_path / split / f"{number}.jpg")
    write_numbered_coco(tmp_path / "annotations", "train", (1, 2))
    listed = list_coco_images(tmp_path, tmp_path / "annotations" / "instances_train.json")
    assert listed == {"": ["train/1.jpg"]}


def test_annotations_do_not_belong_to_images_of_another_split(tmp_path):
    """All training images are missing."""
    for split, numbers in (("train", (1, 2, 3)), ("val", (1, 2))):
        for number in numbers:
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
            text = voc_xml(voc_object("cat", (1, 1, 9, 9)), filename=f"{number}.jpg")
            (tmp_path / "labels" / split / f"{number}.xml").write_text(text)
            if split == "val":
                write_image(tmp_path / "images" / split / f"{number}.jpg")
    dataset = detection_data.read_annotations(identify_source(str(tmp_path), "boxes"))
    assert {split: len(entries) for split, entries in dataset.splits.items()} == {"val": 2}
    assert [problem.split for problem in dataset.unreadable_images] == ["train"] * 3


def test_a_box_without_a_class_is_reported(tmp_path):
    write_image(tmp_path / "1.jpg")
    (tmp_path / "boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax\n1.jpg,cat,1,1,9,9\n1.jpg,,1,1,5,5\n")
    dataset = detection_data.read_annotations(identify_source(str(tmp_path), "boxes"))
    (problem,) = dataset.orphan_annotations
    assert (problem.kind, problem.line) == ("no class", 3)


def test_problems_of_labelme_files(tmp_path):
    write_image(tmp_path / "1.jpg")
    shapes = [{"label": label, "points": [[1, 1], [9, 9]], "shape_type": "rectangle"} for label in ("cat", "", None)]
    for name in ("1", "2"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"shapes": shapes}))
    dataset = detection_data.read_annotations(identify_source(str(tmp_path), "boxes"))
    assert [(problem.kind, problem.detail[:7]) for problem in dataset.orphan_annotations] == [
        ("no class", "shape 2"),
        ("no class", "shape 3"),
    ]
    (problem,) = dataset.unreadable_images
    assert (problem.kind, problem.file.name) == ("missing", "2.json")
