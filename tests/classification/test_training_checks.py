"""Data and settings with which a classifier cannot learn."""

import pytest
from PIL import Image

import fukami as package
from fukami import UsageError
from fukami.classification.resnet import ResNet20

CPU = {"device": "cpu", "precision": "float32"}
SMALL = {"size": 16, "channels": 1, "batch_size": 8, "val_fraction": 0.0}


def write_images(folder, **counts):
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (16, 16), index).save(folder / label / f"{index}.png")
    return str(folder)


def test_a_single_class_is_refused(tmp_path, fukami):
    data = write_images(tmp_path / "data", images=9)
    result = fukami("train", "resnet20", "--data", data, "--out", tmp_path / "run")
    assert result.status == 2
    assert "the data have the class 'images' only, and a classifier needs at least two" in result.err


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_refused(tmp_path, fukami, split):
    for name in ("train", "val", "test"):
        write_images(tmp_path / "data" / name, a=0 if name == split else 3, b=0 if name == split else 3)
    result = fukami("train", "resnet20", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert result.status in (1, 2)
    assert f"no images in the folders of {tmp_path / 'data' / split}" in result.err


def test_a_training_without_a_useful_step_is_refused(tmp_path):
    """The batch size is larger than the training data, so that one epoch is one step, in which the warm-up is at 0."""
    data = write_images(tmp_path / "data", a=3, b=3)
    with pytest.raises(UsageError, match="learning rate is 0 in all 1 optimizer steps"):
        package.train(ResNet20(data=data, epochs=1, **SMALL), tmp_path / "run", **CPU)
    package.train(ResNet20(data=data, epochs=2, **SMALL), tmp_path / "two-epochs", **CPU)
    package.train(ResNet20(data=data, epochs=1, warmup=0.0, **SMALL), tmp_path / "no-warmup", **CPU)


def test_small_classes_are_reported(tmp_path, caplog):
    data = write_images(tmp_path / "data", a=5, b=4, c=1, d=8)
    package.train(ResNet20(data=data, epochs=2, **SMALL), tmp_path / "run", **CPU)
    (message,) = [record.getMessage() for record in caplog.records if "training images" in record.getMessage()]
    assert message.startswith("2 of 4 classes have fewer than 5 training images")
    assert message.endswith(": b (4), c (1)")
