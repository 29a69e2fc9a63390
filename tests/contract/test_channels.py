"""Images of four channels and of 16 bits, from training to prediction: only what is kept can be learned."""

import io
import json
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

import fukami as package
from fukami import UsageError
from fukami.classification.resnet import ResNet18, ResNet20
from fukami.engine.pretrained import adapt_first_layer
from fukami.image import io as image_io
from fukami.models import resnet18
from fukami.segmentation.segnet import SegNetBasic
from fukami.serving.app import create_app

CPU = {"device": "cpu", "precision": "float32"}
RUN_INFO = {"recipe": "resnet18", "members": 1, "labels": ["forest", "water"], "precision": "float32", "versions": {}}
SMALL = {"size": 16, "batch_size": 8, "lr": 0.05, "epochs": 6, "augment": ()}


def write_tiff(path, samples):
    """Write samples ``(H, W, C)`` of a pixel, or of a grayscale image ``(H, W)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"planarconfig": "contig"} if samples.ndim == 3 else {}
    tifffile.imwrite(path, samples, photometric="minisblack", compression="lzw", **options)
    return path


def make_band_image(random, label):
    """Make an image whose first three channels are noise, and whose fourth is brighter in the second class."""
    samples = random.integers(0, 40_000, (16, 16, 4), np.uint16)
    samples[..., 3] = samples[..., 3] // 4 + 40_000 * label
    return samples


@pytest.fixture
def bands(random, tmp_path):
    """Classes that differ only in the fourth channel."""
    for split, count in (("train", 16), ("val", 8)):
        for label, name in enumerate(("forest", "water")):
            for index in range(count):
                write_tiff(tmp_path / "bands" / split / name / f"{index}.tif", make_band_image(random, label))
    return tmp_path / "bands"


@pytest.fixture
def depths(random, tmp_path):
    """Classes that differ only in the low byte of 16 bits, in gray files that Pillow reads."""
    for split, count in (("train", 16), ("val", 8)):
        for label, name in enumerate(("low", "high")):
            for index in range(count):
                low_byte = random.integers(0, 60, (16, 16)) + 150 * label
                file = tmp_path / "depths" / split / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((90 * 256 + low_byte).astype(np.uint16)).save(file)
    return tmp_path / "depths"


def test_classes_that_differ_in_the_fourth_channel(bands, tmp_path, fukami):
    flags = ("--data", bands, "--size", 16, "--batch-size", 8, "--lr", 0.05, "--epochs", 6, "--augment")
    (result,) = fukami("train", "resnet20", *flags, "--channels", 4, "--out", tmp_path / "run").json
    assert result["accuracy"] == 1
    files = sorted((bands / "val" / "water").iterdir())
    lines = fukami("predict", tmp_path / "run", *files, "--format", "jsonl", "--out", tmp_path / "drawn").json
    assert [line["label"] for line in lines] == ["water"] * 8
    assert (tmp_path / "drawn" / "0.png").is_file()
    model = package.load(tmp_path / "run", **CPU)
    assert model.predict(tifffile.imread(files[0])) == {k: v for k, v in lines[0].items() if k != "file"}
    assert model.predict(files[0].read_bytes())["label"] == "water"
    (evaluated,) = fukami("eval", tmp_path / "run").json
    assert evaluated["accuracy"] == 1

    three_channels = tmp_path / "rgb"
    for file in bands.rglob("*.tif"):
        write_tiff(three_channels / file.relative_to(bands), tifffile.imread(file)[..., :3])
    recipe = ResNet20(data=str(three_channels), channels=3, **SMALL)
    assert 0.25 <= package.train(recipe, tmp_path / "without", **CPU).metrics["accuracy"] <= 0.75


def test_another_number_of_channels_is_an_error_of_the_file(bands, tmp_path, fukami, random):
    recipe = ResNet20(data=str(bands), channels=4, **SMALL | {"epochs": 1})
    package.train(recipe, tmp_path / "run", **CPU)
    good = bands / "val" / "water" / "0.tif"
    bad = write_tiff(tmp_path / "bad.tif", random.integers(0, 255, (9, 9, 5), np.uint8))
    result = fukami("predict", tmp_path / "run", bad, good, "--format", "jsonl")
    assert result.status == 1
    assert [json.loads(line)["file"] for line in result.out.splitlines()] == [str(good)]
    assert "bad.tif has 5 channels, and the network expects 4" in result.err
    result = fukami("train", "resnet20", "--data", bands, "--channels", 5, "--size", 16)
    assert result.status == 1
    assert "has 4 channels, and the network expects 5; use images with 5, or train with --channels 4" in result.err


def test_classes_that_differ_in_the_low_byte(depths, tmp_path):
    """Normalization leaves a difference of 0.01; batch normalization scales it up, and 8 bits would have none."""
    recipe = ResNet20(data=str(depths), channels=1, **SMALL | {"epochs": 20, "lr": 0.01})
    assert package.train(recipe, tmp_path / "run", **CPU).metrics["accuracy"] == 1
    for file in depths.rglob("*.png"):
        eight = Image.fromarray((np.asarray(Image.open(file)) // 256).astype(np.uint8))
        eight.save(file)
    recipe = ResNet20(data=str(depths), channels=1, **SMALL | {"epochs": 1})
    assert package.train(recipe, tmp_path / "without", **CPU).metrics["accuracy"] == 0.5


@pytest.mark.slow
def test_streamed_and_in_memory_training_are_equal_to_shards(bands, tmp_path, fukami):
    """The same images from memory, from files and from shards: each reaches accuracy 1."""
    assert fukami("shard", bands, tmp_path / "shards").status == 0
    for data, limit in ((bands, 0), (tmp_path / "shards", 4), (tmp_path / "shards", 0)):
        recipe = ResNet20(data=str(data), channels=4, memory_limit=limit, **SMALL)
        result = package.train(recipe, tmp_path / f"run{data.name}{limit}", **CPU).metrics
        assert result["accuracy"] == 1, (data, limit)


@pytest.fixture
def fields(random, tmp_path):
    """Images whose mask can be seen only in their fourth channel."""
    for split, count in (("train", 12), ("val", 4)):
        for index in range(count):
            mask = np.zeros((32, 48), np.uint8)
            top, left = random.integers(0, 16, 2)
            mask[top : top + 14, left : left + 24] = 1
            samples = random.integers(0, 30_000, (32, 48, 4), np.uint16)
            samples[..., 3] = samples[..., 3] // 8 + 40_000 * (mask > 0)
            write_tiff(tmp_path / "fields" / split / "images" / f"{index}.tif", samples)
            folder = tmp_path / "fields" / split / "masks"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(folder / f"{index}.png")
    return tmp_path / "fields"


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [4, 0])
def test_masks_that_are_visible_in_the_fourth_channel(fields, tmp_path, fukami, memory_limit):
    settings = {
        "epochs": 40,
        "eval_every": 40,
        "batch_size": 4,
        "num_filters": 8,
        "lr": 0.01,
        "augment": ("flip", "brightness=0.1"),
    }
    recipe = SegNetBasic(data=str(fields), channels=4, memory_limit=memory_limit, **settings)
    metrics = package.train(recipe, tmp_path / "run", **CPU).metrics
    assert metrics["miou"] > 0.9
    file = fields / "val" / "images" / "0.tif"
    (line,) = fukami("predict", tmp_path / "run", file, "--format", "jsonl", "--out", tmp_path / "drawn").json
    model = package.load(tmp_path / "run", **CPU)
    truth = np.asarray(Image.open(fields / "val" / "masks" / "0.png"))
    prediction = model.predict(tifffile.imread(file))
    assert (model.task.decode_masks(prediction) == truth).mean() > 0.95
    assert line["masks"] == prediction["masks"]
    for image in fields.rglob("*.tif"):
        write_tiff(image, tifffile.imread(image)[..., :3])
    recipe = SegNetBasic(data=str(fields), memory_limit=memory_limit, **settings)
    assert package.train(recipe, tmp_path / "without", **CPU).metrics["miou"] < 0.7


def test_doctor_describes_channels_and_depth(bands, fields, tmp_path, fukami):
    for data, count in ((bands, 48), (fields, 16)):
        result = fukami("doctor", data)
        assert f"{count} images of 4 channels with more than 8 bits; --channels 4 keeps them" in result.err
        assert result.out == ""


@pytest.mark.slow
def test_show_explain_export_and_serve(bands, tmp_path, fukami):
    recipe = ResNet18(data=str(bands), channels=4, stem="3x3", **SMALL | {"epochs": 1})
    package.train(recipe, tmp_path / "run", **CPU)
    run = package.load(tmp_path / "run", **CPU)
    file = bands / "val" / "water" / "0.tif"
    fukami("show", bands, "--channels", 4, "--augment", "flip", "brightness", "--out", tmp_path / "shown.png")
    assert image_io.read_image(tmp_path / "shown.png").width > 100
    fukami("explain", tmp_path / "run", file, "--out", tmp_path / "explained")
    assert (tmp_path / "explained" / "index.html").is_file()
    expected = run.predict(file)
    for precision in ("onnx", "int8"):
        fukami("export", tmp_path / "run", "--to", precision, "--out", tmp_path / precision)
        assert package.load(tmp_path / precision).predict(file)["label"] == expected["label"]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `httpx`")  # deprecation warning of Starlette
        from fastapi.testclient import TestClient
    with TestClient(create_app(run.task, RUN_INFO), "http://localhost") as client:
        response = client.post("/predict", files={"file": ("x.tif", io.BytesIO(file.read_bytes()), "image/tiff")})
        assert response.status_code == 200
        assert response.json()[0]["ranking"] == expected["ranking"]
        assert client.post("/", files={"file": ("x.tif", file.read_bytes(), "image/tiff")}).status_code == 200


def test_weights_of_color_images_initialize_other_channels():
    """Sums and repetitions of the filters against an image whose channels repeat its colors."""
    import torch

    torch.manual_seed(0)
    color = resnet18(2).eval()
    images = torch.rand(1, 3, 64, 64)
    for channels in (1, 6):
        tensors = {name: value.clone() for name, value in color.state_dict().items()}
        network = resnet18(2, channels=channels).eval()
        adapt_first_layer(tensors, network.state_dict())
        network.load_state_dict(tensors)
        inputs, reference = (images.repeat(1, 2, 1, 1), images) if channels == 6 else (
            images[:, :1], images[:, :1].expand(-1, 3, -1, -1)
        )  # fmt: skip
        assert torch.allclose(network(inputs), color(reference), atol=1e-4)


def test_init_with_four_channels(bands, fields, tmp_path):
    color = tmp_path / "color"
    for file in bands.rglob("*.tif"):
        write_tiff(color / file.relative_to(bands), tifffile.imread(file)[..., :3])
    small = SMALL | {"epochs": 1}
    package.train(ResNet20(data=str(color), **small), tmp_path / "first", **CPU)
    recipe = ResNet20(data=str(bands), channels=4, init=str(tmp_path / "first"), **small)
    assert package.train(recipe, tmp_path / "second", **CPU).metrics["count"] == 16


@pytest.mark.parametrize("name", ["saturation", "hue=0.1", "grayscale", "trivial", "rand=3"])
def test_color_augmentation_of_four_channels_is_refused(name, tmp_path):
    for recipe in (ResNet20, SegNetBasic):
        with pytest.raises(UsageError, match=r"is for grayscale and color; with --channels 4, use brightness"):
            recipe(data=str(tmp_path), channels=4, augment=("flip", name))
        recipe(data=str(tmp_path), channels=1, augment=("flip", name))


@pytest.mark.parametrize("channels", [0, 65])
def test_number_of_channels_is_checked(channels):
    with pytest.raises(UsageError, match="channels should be between 1 and 64"):
        ResNet20(channels=channels)
