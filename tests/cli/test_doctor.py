"""The doctor: each kind of problem in data made by hand, and silence about healthy ones."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw(path, seed, side=16, **options):
    """An image of noise at the path; the seed decides its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def data(tmp_path):
    """Four images of each of two classes."""
    for number in range(4):
        draw(tmp_path / "data" / "cat" / f"{number}.png", number)
        draw(tmp_path / "data" / "dog" / "deeper" / f"{number}.png", 100 + number)
    return tmp_path / "data"


@pytest.fixture
def parts(tmp_path):
    """The same in train and test."""
    for part, start in (("train", 0), ("test", 1000)):
        for number in range(3):
            for label, offset in (("cat", 0), ("dog", 100)):
                draw(tmp_path / "parts" / part / label / f"{number}.png", start + offset + number)
    return tmp_path / "parts"


def one(answer):
    """The only finding, and the status that goes with it."""
    assert answer.status == 1, answer
    assert len(answer.json) == 1, answer.out
    assert "1 problem among" in answer.err
    return answer.json[0]


def test_healthy_data_are_passed_in_silence(fukami, data, parts):
    (data / "README.md").write_text("beside the classes is room for that")
    (data / "cat" / ".DS_Store").write_bytes(b"x")
    for place, images in ((data, 8), (parts, 12)):
        answer = fukami("doctor", place)
        assert (answer.status, answer.out) == (0, "")
        assert answer.err == f"no problem among {images} readable images of 2 classes\n"


def test_known_names(fukami):
    answer = fukami("doctor", "digits")
    assert (answer.status, answer.out) == (0, "")
    assert "1,797 readable images of 10 classes" in answer.err


def test_no_such_data_is_wrong_usage(fukami):
    answer = fukami("doctor", "digts")
    assert answer.status == 2
    assert "'digits'" in answer.err


def test_broken_files_are_named(fukami, data):
    whole = (data / "cat" / "0.png").read_bytes()
    (data / "cat" / "zero.png").write_bytes(b"")
    (data / "cat" / "half.png").write_bytes(whole[: len(whole) // 2])
    (data / "cat" / "text.jpg").write_text("<html>404</html>")
    (data / "dog" / "link.png").symlink_to("nowhere.png")
    answer = fukami("doctor", data)
    assert answer.status == 1
    assert {line["problem"] for line in answer.json} == {"broken"}
    found = {Path(line["file"]).name: line["detail"] for line in answer.json}
    assert found.keys() == {"zero.png", "half.png", "text.jpg", "link.png"}
    assert "is empty" in found["zero.png"]
    assert "damaged or incomplete" in found["half.png"]
    assert "not an image" in found["text.jpg"]
    assert "does not exist" in found["link.png"]
    assert answer.err.strip() == "fukami: 4 problems among 8 readable images of 2 classes: 4 broken"


def test_files_that_training_passes_over(fukami, data):
    (data / "cat" / "clip.mp4").write_bytes(b"no image")
    found = one(fukami("doctor", data))
    assert found == {
        "problem": "not an image",
        "file": str(data / "cat" / "clip.mp4"),
        "detail": "ends in '.mp4' and is not read; images end in .png, .jpg ...",
    }


def test_content_and_name_that_disagree(fukami, data):
    draw(data / "cat" / "photo.jpg", 7, format="PNG")
    draw(data / "dog" / "photo", 8, format="PNG")
    draw(data / "dog" / "same.jpeg", 9, format="JPEG")
    draw(data / "dog" / "lost.dat", 10, format="JPEG")
    answer = fukami("doctor", data)
    found = {Path(line["file"]).name: line["detail"] for line in answer.json}
    assert {line["problem"] for line in answer.json} == {"wrong suffix"}
    assert found["photo.jpg"] == "is PNG by content, not JPEG as its name says"
    assert "has no suffix, so it is not read; rename it to photo.png" in found["photo"]
    assert "is JPEG by content but ends in '.dat', so it is not read; rename it to lost.jpg" in found["lost.dat"]
    assert len(found) == 3


@pytest.mark.parametrize("other", ["Cat", "cat "])
def test_class_names_that_read_alike(fukami, data, other):
    shutil.copytree(data / "dog", data / other)
    shutil.rmtree(data / "dog")
    found = one(fukami("doctor", data))
    assert found["problem"] == "class name"
    assert found["class"] in ("cat", other)
    assert "only in case or blanks" in found["detail"]


def test_class_name_with_a_blank_at_its_end(fukami, data):
    (data / "dog").rename(data / "dog ")
    assert one(fukami("doctor", data))["detail"] == "begins or ends with a blank"


def test_images_without_a_class(fukami, data, parts):
    draw(data / "loose.png", 50)
    assert one(fukami("doctor", data))["file"] == str(data / "loose.png")
    draw(parts / "train" / "loose.png", 50)
    found = one(fukami("doctor", parts))
    assert found["problem"] == "no class"
    assert found["file"] == str(parts / "train" / "loose.png")


def test_class_in_one_part_only(fukami, parts):
    shutil.rmtree(parts / "test" / "dog")
    found = one(fukami("doctor", parts))
    assert found["problem"] == "part missing"
    assert found["class"] == "dog"
    assert found["detail"] == "has images in 'train' and none in 'test'"


def test_folder_beside_the_parts(fukami, parts):
    draw(parts / "more" / "cat" / "1.png", 60)
    assert one(fukami("doctor", parts))["file"] == str(parts / "more")


def test_parts_without_one_to_learn_from(fukami, parts):
    (parts / "train").rename(parts / "val")
    assert "nothing to learn from" in fukami("doctor", parts).json[0]["detail"]


def test_same_image_twice(fukami, data, parts):
    """By its pixels: another name, another format or another compression do not hide it."""
    Image.open(data / "cat" / "0.png").save(data / "cat" / "copy.bmp")
    found = one(fukami("doctor", data))
    assert found["problem"] == "duplicate"
    assert found["file"] == str(data / "cat" / "copy.bmp")
    assert str(data / "cat" / "0.png") in found["detail"]

    Image.open(parts / "train" / "cat" / "0.png").save(parts / "test" / "cat" / "new.png", compress_level=0)
    found = one(fukami("doctor", parts))
    assert found["problem"] == "duplicate across parts"
    assert found["file"] == str(parts / "test" / "cat" / "new.png")
    assert {"'train'", "'test'"} <= set(found["detail"].replace(",", "").split())


def test_same_image_in_grey_and_colour(fukami, data):
    grey = Image.open(data / "cat" / "0.png").convert("L")
    grey.save(data / "cat" / "grey.png")
    grey.convert("RGB").save(data / "cat" / "rgb.png")
    assert one(fukami("doctor", data))["problem"] == "duplicate"


def test_same_image_under_two_classes(fukami, parts):
    shutil.copy(parts / "train" / "cat" / "0.png", parts / "test" / "dog" / "x.png")
    found = one(fukami("doctor", parts))
    assert found["problem"] == "two classes"
    assert "'cat'" in found["detail"]
    assert "'dog'" in found["detail"]
    assert "'test'" in found["detail"]


def test_empty_classes(fukami, data):
    (data / "bird").mkdir()
    found = one(fukami("doctor", data))
    assert (found["problem"], found["class"]) == ("empty", "bird")
    (data / "bird" / "a.png").write_bytes(b"")
    answer = fukami("doctor", data)
    assert [line["problem"] for line in answer.json] == ["broken", "empty"]
    assert "not one of its images can be read" in answer.json[1]["detail"]


def test_empty_folder(fukami, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert fukami("doctor", "nothing").json[0]["problem"] == "empty"


def test_one_class(fukami, data):
    shutil.rmtree(data / "dog")
    assert one(fukami("doctor", data))["problem"] == "lone class"


def test_unbalanced_classes(fukami, tmp_path):
    """Ten times as many are allowed, eleven are told."""
    for number in range(20):
        draw(tmp_path / "data" / "cat" / f"{number}.png", number)
    for number in range(2):
        draw(tmp_path / "data" / "dog" / f"{number}.png", 100 + number)
    assert fukami("doctor", "data").status == 0
    draw(tmp_path / "data" / "cat" / "20.png", 20)
    found = one(fukami("doctor", "data"))
    assert (found["problem"], found["class"]) == ("unbalanced", "dog")
    assert found["detail"] == "has 2 images, and 'cat' has 21: more than 10 times as many"


def test_class_of_a_single_image(fukami, data):
    draw(data / "bird" / "1.png", 70)
    found = one(fukami("doctor", data))
    assert (found["problem"], found["class"]) == ("too few", "bird")


def test_tiny_images(fukami, data):
    draw(data / "cat" / "dot.png", 80, side=4)
    assert "4×4 pixels" in one(fukami("doctor", data))["detail"]


def test_archive(fukami, parts, tmp_path):
    """Files are named as they lie in the archive; an archive that cannot be unpacked is broken itself."""
    (parts / "train" / "cat" / "zero.png").write_bytes(b"")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "parts")
    assert one(fukami("doctor", "packed.zip"))["file"] == "packed.zip/parts/train/cat/zero.png"
    (tmp_path / "half.zip").write_bytes((tmp_path / "packed.zip").read_bytes()[:500])
    answer = fukami("doctor", "half.zip")
    assert answer.status == 1
    assert answer.json[0]["problem"] == "broken"


def test_file_name_that_is_no_text(fukami, data):
    try:
        (data / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes text only")
    assert one(fukami("doctor", data))["problem"] == "broken"


# lists


def listed(data, *rows, header="path,label"):
    path = data / "list.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


GOOD = [
    f"{label}/{number}.png,{name}" for label, name in (("cat", "cat"), ("dog/deeper", "dog")) for number in range(4)
]


def test_healthy_list(fukami, data):
    answer = fukami("doctor", listed(data, *GOOD))
    assert (answer.status, answer.out) == (0, "")
    splits = [f"{row},{'test' if number % 2 else 'train'}" for number, row in enumerate(GOOD)]
    assert fukami("doctor", listed(data, *splits, header="path,label,split")).status == 0


def test_list_without_its_columns(fukami, data):
    found = one(fukami("doctor", listed(data, "a.png;cat", header="path;label")))
    assert found["problem"] == "no column"
    assert "'path;label'" in found["detail"]


def test_list_that_is_no_text(fukami, data):
    (data / "list.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    assert fukami("doctor", data / "list.csv").json[0]["problem"] == "broken"


@pytest.mark.parametrize(
    ("row", "problem", "detail"),
    [
        ("cat/gone.png,cat", "missing", "does not exist, but line 10"),
        ("cat,cat", "missing", "is no file"),
        (",cat", "missing", "line 10"),
        ("cat/0.png,", "no class", "line 10"),
        ("cat/0.png,cat", "duplicate", "is listed twice"),
        ("cat/0.png,dog", "two classes", "'cat' and not 'dog'"),
        ("dog/copy.png,dog", "two classes", "the same image as"),
        ("dog/new.png,Dog", "class name", "only in case or blanks"),
        ("dog/text.png,dog", "broken", "not an image"),
    ],
)
def test_rows_of_a_list(fukami, data, row, problem, detail):
    shutil.copy(data / "cat" / "0.png", data / "dog" / "copy.png")
    draw(data / "dog" / "new.png", 90)
    (data / "dog" / "text.png").write_text("text")
    found = fukami("doctor", listed(data, *GOOD, row)).json
    assert found[0]["problem"] == problem
    assert detail in found[0]["detail"]


def test_splits_of_a_list(fukami, data):
    splits = [f"{row},train" for row in GOOD]
    header = "path,label,split"
    assert one(fukami("doctor", listed(data, *splits, "cat/0.png,cat,test", header=header)))["problem"].endswith(
        "parts"
    )
    draw(data / "cat" / "new.png", 91)
    for split in ("", "trian"):
        answer = fukami("doctor", listed(data, *splits, f"cat/new.png,cat,{split}", header=header))
        assert answer.json[0]["problem"] == "no split"
