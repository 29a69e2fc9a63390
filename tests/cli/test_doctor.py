"""``fukami doctor``: every kind of problem in handmade datasets, and no output for valid ones."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save_noise_image(path, seed, side=16, **options):
    """Save an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def data(tmp_path):
    """A dataset of two classes with four images each."""
    for index in range(4):
        save_noise_image(tmp_path / "data" / "cat" / f"{index}.png", index)
        save_noise_image(tmp_path / "data" / "dog" / "deeper" / f"{index}.png", 100 + index)
    return tmp_path / "data"


@pytest.fixture
def splits(tmp_path):
    """A dataset of two classes with train and test."""
    for split, start in (("train", 0), ("test", 1000)):
        for index in range(3):
            for label, offset in (("cat", 0), ("dog", 100)):
                save_noise_image(tmp_path / "parts" / split / label / f"{index}.png", start + offset + index)
    return tmp_path / "parts"


def get_only_problem(result):
    """Check that there is one problem, and return it."""
    assert result.status == 1, result
    assert len(result.json) == 1, result.out
    assert "1 problem among" in result.err
    return result.json[0]


def test_valid_datasets_give_no_output(doctor, data, splits):
    (data / "README.md").write_text("notes next to the class folders")
    (data / "cat" / ".DS_Store").write_bytes(b"x")
    for dataset, images in ((data, 8), (splits, 12)):
        result = doctor(dataset)
        assert (result.status, result.out) == (0, "")
        assert result.err == (
            f"class folders: {images} images, 2 classes; for resnet18, vgg16 and other classification recipes\n"
            f"no problem among {images} readable images of 2 classes\n"
        )


def test_built_in_dataset(doctor):
    result = doctor("digits")
    assert (result.status, result.out) == (0, "")
    assert "1,797 readable images of 10 classes" in result.err


def test_unknown_dataset_is_a_usage_error(doctor):
    result = doctor("digts")
    assert result.status == 2
    assert "'digits'" in result.err


def test_unreadable_files_are_reported(doctor, data):
    content = (data / "cat" / "0.png").read_bytes()
    (data / "cat" / "zero.png").write_bytes(b"")
    (data / "cat" / "half.png").write_bytes(content[: len(content) // 2])
    (data / "cat" / "text.jpg").write_text("<html>404</html>")
    (data / "dog" / "link.png").symlink_to("nowhere.png")
    result = doctor(data)
    assert result.status == 1
    assert {line["problem"] for line in result.json} == {"unreadable"}
    details = {Path(line["file"]).name: line["detail"] for line in result.json}
    assert details.keys() == {"zero.png", "half.png", "text.jpg", "link.png"}
    assert "is empty" in details["zero.png"]
    assert "is unreadable" in details["half.png"]
    assert "not an image" in details["text.jpg"]
    assert "does not exist" in details["link.png"]
    assert result.err.splitlines() == [
        "class folders: 12 images, 2 classes; for resnet18, vgg16 and other classification recipes",
        "fukami: 4 problems among 8 readable images of 2 classes: 4 unreadable; problems.jsonl lists each",
    ]


def test_a_kind_of_problem_is_listed_once(fukami, data, tmp_path):
    """Stdout has the number of problems and the first three names, and a file has all."""
    for index in range(20):
        (data / "cat" / f"x{index:02}.png").write_bytes(b"")
    (data / "dog" / "notes.txt").write_text("text")
    result = fukami("doctor", data, "--out", "all.jsonl")
    assert result.status == 1
    assert [(line["problem"], line["count"]) for line in result.json] == [("not an image", 1), ("unreadable", 20)]
    assert result.json[1]["first"] == [str(data / "cat" / f"x{index:02}.png") for index in range(3)]
    assert "all.jsonl lists each" in result.err
    problems = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [problem["problem"] for problem in problems] == ["not an image"] + ["unreadable"] * 20
    assert problems[-1]["file"] == str(data / "cat" / "x19.png")
    assert not (tmp_path / "problems.jsonl").exists()


def test_a_list_that_cannot_be_written(fukami, data):
    (data / "cat" / "zero.png").write_bytes(b"")
    result = fukami("doctor", data, "--out", "nowhere/all.jsonl")
    assert result.status == 1
    assert "nowhere/all.jsonl cannot be written (No such file or directory); choose another --out" in result.err


@pytest.mark.parametrize(
    "flags", [(), ("--images", "data"), ("data", "--images", "data"), ("data", "--annotations", "x")]
)
def test_a_dataset_or_two_places(fukami, data, flags):
    result = fukami("doctor", *flags)
    assert result.status == 2
    assert "specify either DATA, or --images and --annotations" in result.err


def test_files_that_training_ignores(doctor, data):
    (data / "cat" / "clip.mp4").write_bytes(b"no image")
    problem = get_only_problem(doctor(data))
    assert problem == {
        "problem": "not an image",
        "file": str(data / "cat" / "clip.mp4"),
        "detail": "ends in '.mp4' and is not read; images end in .png, .jpg ...",
    }


def test_suffix_that_contradicts_the_content(doctor, data):
    save_noise_image(data / "cat" / "photo.jpg", 7, format="PNG")
    save_noise_image(data / "dog" / "photo", 8, format="PNG")
    save_noise_image(data / "dog" / "same.jpeg", 9, format="JPEG")
    save_noise_image(data / "dog" / "lost.dat", 10, format="JPEG")
    result = doctor(data)
    details = {Path(line["file"]).name: line["detail"] for line in result.json}
    assert {line["problem"] for line in result.json} == {"wrong suffix"}
    assert details["photo.jpg"] == "is PNG by content, not JPEG as its suffix states"
    assert "has no suffix, so it is not read; rename it to photo.png" in details["photo"]
    assert "is JPEG by content but ends in '.dat', so it is not read; rename it to lost.jpg" in details["lost.dat"]
    assert len(details) == 3


@pytest.mark.parametrize("other", ["Cat", "cat "])
def test_class_names_that_differ_only_in_case_or_blanks(doctor, data, other):
    shutil.copytree(data / "dog", data / other)
    shutil.rmtree(data / "dog")
    problem = get_only_problem(doctor(data))
    assert problem["problem"] == "class name"
    assert problem["class"] in ("cat", other)
    assert "only in case or whitespace" in problem["detail"]


def test_class_name_with_a_trailing_blank(doctor, data):
    (data / "dog").rename(data / "dog ")
    assert get_only_problem(doctor(data))["detail"] == "starts or ends with whitespace"


def test_images_without_a_class(doctor, data, splits):
    save_noise_image(data / "loose.png", 50)
    assert get_only_problem(doctor(data))["file"] == str(data / "loose.png")
    save_noise_image(splits / "train" / "loose.png", 50)
    problem = get_only_problem(doctor(splits))
    assert problem["problem"] == "no class"
    assert problem["file"] == str(splits / "train" / "loose.png")


def test_class_in_one_split_only(doctor, splits):
    shutil.rmtree(splits / "test" / "dog")
    problem = get_only_problem(doctor(splits))
    assert problem["problem"] == "missing in split"
    assert problem["class"] == "dog"
    assert problem["detail"] == "has images in 'train' and none in 'test'"


def test_folder_next_to_the_splits(doctor, splits):
    save_noise_image(splits / "more" / "cat" / "1.png", 60)
    assert get_only_problem(doctor(splits))["file"] == str(splits / "more")


def test_splits_without_train(doctor, splits):
    (splits / "train").rename(splits / "val")
    assert "no training images" in doctor(splits).json[0]["detail"]


def test_same_image_twice(doctor, data, splits):
    """Pixels are compared: another name, format or compression does not hide a duplicate."""
    Image.open(data / "cat" / "0.png").save(data / "cat" / "copy.bmp")
    problem = get_only_problem(doctor(data))
    assert problem["problem"] == "duplicate"
    assert problem["file"] == str(data / "cat" / "copy.bmp")
    assert str(data / "cat" / "0.png") in problem["detail"]

    Image.open(splits / "train" / "cat" / "0.png").save(splits / "test" / "cat" / "new.png", compress_level=0)
    problem = get_only_problem(doctor(splits))
    assert problem["problem"] == "duplicate across splits"
    assert problem["file"] == str(splits / "test" / "cat" / "new.png")
    assert {"'train'", "'test'"} <= set(problem["detail"].replace(",", "").split())


def test_same_image_in_grayscale_and_color(doctor, data):
    gray = Image.open(data / "cat" / "0.png").convert("L")
    gray.save(data / "cat" / "gray.png")
    gray.convert("RGB").save(data / "cat" / "rgb.png")
    assert get_only_problem(doctor(data))["problem"] == "duplicate"


def test_same_image_under_two_classes(doctor, splits):
    shutil.copy(splits / "train" / "cat" / "0.png", splits / "test" / "dog" / "x.png")
    problem = get_only_problem(doctor(splits))
    assert problem["problem"] == "two classes"
    assert "'cat'" in problem["detail"]
    assert "'dog'" in problem["detail"]
    assert "'test'" in problem["detail"]


def test_empty_classes(doctor, data):
    (data / "bird").mkdir()
    problem = get_only_problem(doctor(data))
    assert (problem["problem"], problem["class"]) == ("empty", "bird")
    (data / "bird" / "a.png").write_bytes(b"")
    result = doctor(data)
    assert [line["problem"] for line in result.json] == ["unreadable", "empty"]
    assert "none of its images can be read" in result.json[1]["detail"]


def test_empty_folder(doctor, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert doctor("nothing").json[0]["problem"] == "empty"


def test_one_class(doctor, data):
    shutil.rmtree(data / "dog")
    assert get_only_problem(doctor(data))["problem"] == "single class"


def test_unbalanced_classes(doctor, tmp_path):
    """A ratio of ten is allowed, eleven is reported."""
    for index in range(20):
        save_noise_image(tmp_path / "data" / "cat" / f"{index}.png", index)
    for index in range(2):
        save_noise_image(tmp_path / "data" / "dog" / f"{index}.png", 100 + index)
    assert doctor("data").status == 0
    save_noise_image(tmp_path / "data" / "cat" / "20.png", 20)
    problem = get_only_problem(doctor("data"))
    assert (problem["problem"], problem["class"]) == ("unbalanced", "dog")
    assert problem["detail"] == "has 2 images, and 'cat' has 21: more than 10 times as many"


def test_class_of_a_single_image(doctor, data):
    save_noise_image(data / "bird" / "1.png", 70)
    problem = get_only_problem(doctor(data))
    assert (problem["problem"], problem["class"]) == ("too few", "bird")


def test_tiny_images(doctor, data):
    save_noise_image(data / "cat" / "dot.png", 80, side=4)
    assert "4×4 pixels" in get_only_problem(doctor(data))["detail"]


def test_archive(doctor, splits, tmp_path):
    """Files are named by their path in the archive; a truncated archive is a problem, too."""
    (splits / "train" / "cat" / "zero.png").write_bytes(b"")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "parts")
    assert get_only_problem(doctor("packed.zip"))["file"] == "packed.zip/parts/train/cat/zero.png"
    (tmp_path / "half.zip").write_bytes((tmp_path / "packed.zip").read_bytes()[:500])
    result = doctor("half.zip")
    assert result.status == 1
    assert result.json[0]["problem"] == "unreadable"


def test_file_name_that_is_not_valid_text(doctor, data):
    try:
        (data / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes text only")
    assert get_only_problem(doctor(data))["problem"] == "unreadable"


# CSV files


def write_csv(data, *rows, header="path,label"):
    path = data / "list.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


GOOD = [f"{label}/{index}.png,{name}" for label, name in (("cat", "cat"), ("dog/deeper", "dog")) for index in range(4)]


def test_valid_csv(doctor, data):
    result = doctor(write_csv(data, *GOOD))
    assert (result.status, result.out) == (0, "")
    splits = [f"{row},{'test' if index % 2 else 'train'}" for index, row in enumerate(GOOD)]
    assert doctor(write_csv(data, *splits, header="path,label,split")).status == 0


def test_csv_without_its_columns(doctor, data):
    problem = get_only_problem(doctor(write_csv(data, "a.png;cat", header="path;label")))
    assert problem["problem"] == "no column"
    assert "'path;label'" in problem["detail"]


def test_csv_that_is_not_text(doctor, data):
    (data / "list.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    assert doctor(data / "list.csv").json[0]["problem"] == "unreadable"


@pytest.mark.parametrize(
    ("row", "problem", "detail"),
    [
        ("cat/gone.png,cat", "missing", "does not exist, but line 10"),
        ("cat,cat", "missing", "is not a file"),
        (",cat", "missing", "line 10"),
        ("cat/0.png,", "no class", "line 10"),
        ("cat/0.png,cat", "duplicate", "is listed twice"),
        ("cat/0.png,dog", "two classes", "'cat' and not 'dog'"),
        ("dog/copy.png,dog", "two classes", "the same image as"),
        ("dog/new.png,Dog", "class name", "only in case or whitespace"),
        ("dog/text.png,dog", "unreadable", "not an image"),
    ],
)
def test_rows_of_a_csv(doctor, data, row, problem, detail):
    shutil.copy(data / "cat" / "0.png", data / "dog" / "copy.png")
    save_noise_image(data / "dog" / "new.png", 90)
    (data / "dog" / "text.png").write_text("text")
    problems = doctor(write_csv(data, *GOOD, row)).json
    assert problems[0]["problem"] == problem
    assert detail in problems[0]["detail"]


def test_splits_of_a_csv(doctor, data):
    rows = [f"{row},train" for row in GOOD]
    header = "path,label,split"
    assert get_only_problem(doctor(write_csv(data, *rows, "cat/0.png,cat,test", header=header)))["problem"].endswith(
        "splits"
    )
    save_noise_image(data / "cat" / "new.png", 91)
    for split in ("", "trian"):
        result = doctor(write_csv(data, *rows, f"cat/new.png,cat,{split}", header=header))
        assert result.json[0]["problem"] == "no split"


# images without annotations


@pytest.fixture
def plain(tmp_path):
    """A folder of four images without annotations and classes."""
    for index in range(4):
        save_noise_image(tmp_path / "plain" / f"{index}.png", index)
    return tmp_path / "plain"


def test_images_without_annotations(doctor, plain):
    """They are the usual dataset of DCGAN: classes are not expected."""
    (plain / "README.md").write_text("notes next to the images")
    result = doctor(plain)
    assert (result.status, result.out) == (0, "")
    assert result.err == "images without annotations: 4 images; for dcgan\nno problem among 4 readable images\n"


def test_problems_of_images_without_annotations(doctor, plain, tmp_path):
    (plain / "half.png").write_bytes((plain / "0.png").read_bytes()[:300])
    (plain / "link.png").symlink_to("nowhere.png")
    Image.open(plain / "1.png").save(plain / "copy.bmp")
    save_noise_image(plain / "dot.png", 80, side=4)
    result = doctor(plain)
    assert result.status == 1
    problems = {Path(line["file"]).name: (line["problem"], line["detail"]) for line in result.json}
    assert {name: problem for name, (problem, _) in problems.items()} == {
        "half.png": "unreadable", "link.png": "unreadable", "copy.bmp": "duplicate", "dot.png": "tiny"}  # fmt: skip
    assert "is the same image as" in problems["copy.bmp"][1]
    assert str(plain / "1.png") in problems["copy.bmp"][1]
    assert result.err.splitlines()[-1] == (
        "fukami: 4 problems among 6 readable images: 2 unreadable, 1 duplicate, 1 tiny; problems.jsonl lists each"
    )
    (plain / "link.png").unlink()
    shutil.make_archive(str(tmp_path / "packed"), "zip", plain)  # a top folder would be a class
    assert {line["file"] for line in doctor("packed.zip").json} == {
        f"packed.zip/{name}" for name in ("half.png", "copy.bmp", "dot.png")
    }


def test_too_few_images_for_a_training(doctor, plain):
    """Two are enough, as for DCGAN."""
    (plain / "0.png").unlink()
    (plain / "1.png").unlink()
    assert doctor(plain).status == 0
    (plain / "2.png").unlink()
    problem = get_only_problem(doctor(plain))
    assert (problem["problem"], problem["file"]) == ("too few", str(plain))
    assert problem["detail"] == "has 1 readable image; training needs at least 2"


def test_missing_annotations_of_images(fukami, plain, tmp_path):
    """With --annotations, images alone are a problem."""
    (tmp_path / "annotations").mkdir()
    result = fukami("doctor", "--images", plain, "--annotations", "annotations")
    assert result.status == 1
    assert result.json[0]["problem"] == "empty"
