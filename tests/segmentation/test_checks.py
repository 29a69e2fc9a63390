"""Tests of the validation of segmentation datasets."""

import json

import numpy as np
import pytest
from PIL import Image

from fukami.cli import doctor
from fukami.data.sources import identify_source


def save(path, pixels):
    """Save an array as an image file, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


@pytest.fixture
def street(tmp_path):
    """Six good images with masks of three classes."""
    random = np.random.default_rng(0)
    for number in range(6):
        save(tmp_path / f"images/{number}.png", random.integers(0, 256, (20, 30, 3)))
        save(tmp_path / f"masks/{number}.png", np.tile([0, 1, 2], (20, 10)))
    (tmp_path / "classes.txt").write_text("road\ncar\nsign\n")
    return tmp_path


def find_problems(spec):
    """Return the kind, file and detail of each problem."""
    return [
        (problem.kind, problem.file, problem.detail)
        for problem in doctor.validate_source(identify_source(str(spec))).problems
    ]


def test_dataset_without_problems(street):
    findings = doctor.validate_source(identify_source(str(street)))
    assert findings.problems == []
    assert str(findings) == "no problem among 6 readable images with 3,600 pixels of 3 classes"


def test_unknown_values_are_reported_with_count_and_position(street):
    pixels = np.tile([0, 1, 2], (20, 10))
    pixels[3, 4:9], pixels[7, 0] = 37, 99
    file = save(street / "masks" / "1.png", pixels)
    assert find_problems(street) == [
        ("unknown value", str(file), "has the value 37 in 5 pixels, the first at column 4 of row 3, which the class "
         "table does not have"),
        ("unknown value", str(file), "has the value 99 in 1 pixel, the first at column 0 of row 7, which the class "
         "table does not have"),
    ]  # fmt: skip


def test_mask_saved_as_jpeg(street):
    noise = np.random.default_rng(0).integers(0, 200, (20, 30))
    save(street / "masks" / "2.png", noise)
    problems = find_problems(street)
    assert len(problems) == 6
    assert "was it saved as JPEG, or resized?" in problems[-1][2]


def test_unknown_colors(street):
    (street / "classes.txt").write_text("road 0 0 0\ncar 1 1 1\nsign 2 2 2\n")
    pixels = np.zeros((20, 30, 3))
    pixels[5, 6] = (200, 10, 0)
    file = save(street / "masks" / "3.png", pixels)
    assert find_problems(street) == [
        ("unknown color", str(file), "has the color (200, 10, 0) in 1 pixel, the first at column 6 of row 5, which "
         "the class table does not have")
    ]  # fmt: skip


def test_missing_and_unreadable_files_and_wrong_sizes(street):
    (street / "masks" / "0.png").unlink()
    save(street / "masks" / "1.png", np.zeros((20, 31)))
    (street / "masks" / "2.png").write_bytes(b"none")
    save(street / "masks" / "3.png", np.full((20, 30), 255))
    (street / "images" / "4.png").write_bytes(b"")
    stray = save(street / "masks" / "stray.png", np.zeros((20, 30)))
    problems = {(kind, file.rpartition("/")[2]): detail for kind, file, detail in find_problems(street)}
    assert problems.keys() == {
        ("no mask", "0.png"), ("wrong size", "1.png"), ("unreadable", "2.png"), ("unlabeled", "3.png"),
        ("unreadable", "4.png"), ("no image", "stray.png"),
    }  # fmt: skip
    assert "has 30×20 pixels, and its mask" in problems["wrong size", "1.png"]
    assert "31×20; make the mask the same size as the image" in problems["wrong size", "1.png"]
    assert problems["unreadable", "2.png"] == "is not an image in a known format; use a PNG, JPEG or other image file"
    assert stray.is_file()


def test_classes_missing_from_splits_and_duplicate_images(street, tmp_path):
    """Class counts are in pixels; one class is in no mask, and one is missing from a split."""
    for split in ("train", "val"):
        for number in range(2):
            image = Image.open(street / f"images/{number + 2 * (split == 'val')}.png")
            save(tmp_path / "splits" / split / f"images/{number}.png", image)
            top = 2 if split == "train" else 1
            save(tmp_path / "splits" / split / f"masks/{number}.png", np.tile([0, 1, top], (20, 10)))
    save(
        tmp_path / "splits" / "val" / "images" / "0.png", Image.open(tmp_path / "splits" / "train" / "images" / "0.png")
    )
    (tmp_path / "splits" / "classes.txt").write_text("road\ncar\nsign\nboat\n")
    kinds = [
        (problem.kind, problem.label)
        for problem in doctor.validate_source(identify_source(str(tmp_path / "splits"))).problems
    ]
    assert kinds == [("duplicate across splits", ""), ("empty", "boat"), ("missing in split", "sign")]


def test_coco_outlines(tmp_path):
    """Boxes and outlines are checked, and an invalid outline is reported with its annotation."""
    save(tmp_path / "1.png", np.zeros((20, 30, 3)))
    good = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "iscrowd": 0, "area": 81}
    good["segmentation"] = [[2, 2, 11, 2, 11, 11, 2, 11]]
    bad = {**good, "id": 2, "bbox": [12, 2, 9, 9], "segmentation": {"size": [20, 30], "counts": {"no": "counts"}}}
    other = {**good, "id": 3, "category_id": 2, "bbox": [2, 12, 5, 5]}
    content = {"images": [{"id": 1, "file_name": "1.png", "width": 30, "height": 20}],
               "annotations": [good, bad, other],
               "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "mug"}]}  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    problems = find_problems(tmp_path / "annotations.json")
    (problem,) = [detail for kind, _, detail in problems if kind == "unreadable"]
    assert "annotation 2 has an invalid outline" in problem
    assert {kind for kind, _, _ in problems} == {"unreadable", "too few"}
    (tmp_path / "annotations.json").write_text(json.dumps(content).removesuffix("}"))
    # the file is reported once, not for boxes and for masks
    ((kind, file, detail),) = find_problems(tmp_path / "annotations.json")
    assert (kind, file) == ("unreadable", str(tmp_path / "annotations.json"))
    assert "is not valid JSON" in detail


def test_unreadable_class_table(street):
    (street / "classes.txt").write_text("road 1 2\n")
    ((kind, file, detail),) = find_problems(street)
    assert (kind, file) == ("unreadable", str(street))
    assert "line 1: 'road 1 2' is not a class" in detail


def test_doctor_command(street, doctor):
    assert doctor(street).status == 0
    (street / "masks" / "0.png").unlink()
    result = doctor(street)
    assert result.status == 1
    assert result.json[0]["problem"] == "no mask"
    assert "1 problem among 6 readable images with 3,000 pixels of 3 classes: 1 no mask" in result.err


def test_bundled_dataset_has_boxes_and_masks(few_scenes):
    findings = doctor.validate_source(identify_source("scenes"))
    assert findings.unit == "box"
    assert findings.problems == [] or {problem.kind for problem in findings.problems} <= {"missing in split", "too few"}
