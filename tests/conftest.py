"""Fixtures: real and generated datasets, trained runs, and the command line in this process."""

import ctypes
import gc
import itertools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CACHE_NUMBERS = itertools.count()
SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish():
    """Exclude what is imported from garbage collection, which otherwise takes half of the time of forked processes."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # packages with C++ code report what is not deallocated


@pytest.fixture(autouse=True, scope="module")
def _release_memory():
    """Return free memory to the system after each module: forking a process with gigabytes of memory is slow."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _isolate_cache(tmp_path_factory, monkeypatch):
    """Use a new cache folder, which does not exist yet, instead of the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache" / str(next(CACHE_NUMBERS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture(autouse=True)
def _skip_fsync(monkeypatch):
    """Do not wait for the disk: fsync protects against a loss of power, which no test simulates."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(autouse=True)
def _disable_reports(request, monkeypatch):
    """Disable the reports of training runs, except for tests with the marker ``report``."""
    import check_task

    if not request.node.get_closest_marker("report"):
        check_task.disable_reports(monkeypatch)


@pytest.fixture(scope="session")
def forked_python():
    """Interpreter whose processes start at once, since they are forked from one that has imported torch."""
    from forked_python import ForkedPython

    python = ForkedPython()
    yield python
    python.close()


@pytest.fixture
def mnist_folder(monkeypatch):
    """Folder that contains ``mnist/``, as ``FUKAMI_DATA``; skip the test without MNIST."""
    folder = Path(os.environ.get("FUKAMI_DATA", SHARED / "data"))
    if not (folder / "mnist" / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"needs MNIST: no {folder}/mnist; set FUKAMI_DATA to the folder above mnist/")
    monkeypatch.setenv("FUKAMI_DATA", str(folder))
    return folder


@pytest.fixture(params=["bccd", "voc-animals"])
def real_boxes(request, monkeypatch):
    """Name of a real detection dataset; skip the test without it."""
    folder = Path(os.environ.get("FUKAMI_DATA", SHARED / "data"))
    if not any((folder / f"{request.param}{suffix}").exists() for suffix in ("", ".zip")):
        pytest.skip(f"needs {request.param}: no {folder}/{request.param}.zip; set FUKAMI_DATA to the folder above it")
    monkeypatch.setenv("FUKAMI_DATA", str(folder))
    return request.param


@pytest.fixture
def camvid(monkeypatch):
    """Folder that contains ``camvid.zip``, as ``FUKAMI_DATA``; skip the test without it."""
    folder = Path(os.environ.get("FUKAMI_DATA", SHARED / "data"))
    if not any((folder / f"camvid{suffix}").exists() for suffix in ("", ".zip")):
        pytest.skip(f"needs CamVid: no {folder}/camvid.zip; set FUKAMI_DATA to the folder above it")
    monkeypatch.setenv("FUKAMI_DATA", str(folder))
    return folder


@dataclass
class CommandResult:
    """Exit status, stdout and stderr of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def fukami(capsys, monkeypatch, tmp_path):
    """Function ``fukami("eval", "run")`` that runs a command in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def command(*arguments):
        from fukami.cli.main import main

        with pytest.raises(SystemExit) as system_exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return CommandResult(system_exit.value.code, captured.out, captured.err)

    return command


@pytest.fixture
def doctor(fukami, tmp_path):
    """Function ``doctor(path)`` that runs ``fukami doctor``; ``out`` of the result is the list of all problems."""

    def command(*arguments):
        (tmp_path / "problems.jsonl").unlink(missing_ok=True)
        result = fukami("doctor", *arguments)
        if not result.json:
            return result
        return CommandResult(result.status, (tmp_path / "problems.jsonl").read_text(), result.err)

    return command


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """Folder of 40 of scikit-learn's digits as PNG files in class folders, black on white, 112×112."""
    from fukami.data import digits

    root = tmp_path_factory.mktemp("digits")
    images, labels = digits.load_digits()
    for index in range(40):
        folder = root / str(labels[index])
        folder.mkdir(exist_ok=True)
        large = Image.fromarray(255 - images[index]).resize((112, 112), Image.Resampling.BICUBIC)
        large.save(folder / f"{index}.png")
    return root


@pytest.fixture
def few_scenes(monkeypatch):
    """Reduce the dataset ``scenes`` to eight training and four validation images."""
    monkeypatch.setattr("fukami.data.scenes.NUM_TRAIN", 8)
    monkeypatch.setattr("fukami.data.scenes.NUM_TEST", 4)
    monkeypatch.setattr("fukami.data.scenes.NUM_CAPTIONED", 8)


@pytest.fixture(scope="session")
def scene_files(tmp_path_factory):
    """Folder of eight training and four validation scenes as PNG files, with COCO annotations."""
    from fukami.data import scenes

    root = tmp_path_factory.mktemp("scenes")
    categories = [{"id": index, "name": label} for index, label in enumerate(scenes.LABELS)]
    for split, indices in (("train", range(8)), ("valid", range(8, 12))):
        (root / split).mkdir()
        images, annotations = [], []
        for index in indices:
            scene = scenes.generate_scene(0, index)
            Image.fromarray(scene.image).save(root / split / f"{index}.png")
            height, width = scene.image.shape[:2]
            images.append({"id": index, "file_name": f"{index}.png", "width": width, "height": height})
            for (left, top, right, bottom), kind in zip(scene.boxes.tolist(), scene.classes.tolist(), strict=True):
                box = [left, top, right - left, bottom - top]
                entry = {"id": len(annotations), "image_id": index, "category_id": kind, "bbox": box, "iscrowd": 0}
                annotations.append({**entry, "area": box[2] * box[3]})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def caption_files(tmp_path_factory):
    """Folder of twelve scenes as PNG files, with two captions each."""
    from fukami.data import scenes

    root = tmp_path_factory.mktemp("captions")
    lines = ["image,caption"]
    for index, (image, (sentence,)) in enumerate(zip(*scenes.generate_captioned_images(0, 12), strict=True)):
        Image.fromarray(image).save(root / f"{index:02}.png")
        lines += [f"{index:02}.png,{caption}" for caption in (sentence, sentence.replace("a ", "one ", 1))]
    (root / "captions.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="session")
def mask_files(tmp_path_factory):
    """Folder of eight training and four validation scenes as PNG files, with index masks and a class table."""
    from fukami.data import scenes

    root = tmp_path_factory.mktemp("masks")
    for index, sample in enumerate(scenes.generate_mask_samples(0, 12)):
        split = "train" if index < 8 else "val"
        for folder, pixels in (("images", sample.source), ("masks", sample.mask.read() - 1)):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / folder / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(scenes.MASK_LABELS))
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Run of DeepConvNet on the bundled digits, trained for eight epochs."""
    import fukami

    out = tmp_path_factory.mktemp("runs") / "digits"
    recipe = fukami.get_recipe("deep-convnet")(epochs=8, batch_size=50, augment=("shift=1",))
    fukami.train(recipe, out, precision="float32")
    return out


@pytest.fixture(scope="session")
def binarized(tmp_path_factory, digit_files):
    """Run of the binarized DeepConvNet at full width, trained for one epoch on a few digits."""
    import fukami

    out = tmp_path_factory.mktemp("binarized") / "digits"
    recipe = fukami.get_recipe("binary-deep-convnet")(data=str(digit_files), epochs=1, batch_size=8)
    fukami.train(recipe, out, device="cpu", precision="float32")
    return out


@pytest.fixture
def random():
    return np.random.default_rng(0)
