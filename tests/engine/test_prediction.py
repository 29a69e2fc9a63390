"""The prediction loop: batches, errors, and images that are decoded once."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fukami import Error, Loader, Task, UsageError
from fukami.engine import prediction
from fukami.engine.resumable_loader import wrap_batches
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io


class MeanTask(Task):
    """Task that predicts the mean of the pixels and records its batches."""

    predict_batch_size = 4

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)))
        self.setup(Runtime.start("cpu", "float32"))
        self.prepare_training()
        self.batch_shapes, self.modes = [], []

    def prepare_image(self, image):
        if image.width == 13:
            raise Error("the width is 13")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

    def predict_batch(self, images):
        self.batch_shapes.append(tuple(images.shape))
        self.modes.append((self.model.training, torch.is_inference_mode_enabled()))
        if images.float().mean() == 77:
            raise RuntimeError("a bug")
        if images.max() == 66:
            raise Error("the maximum is 66")
        if images.max() == 55:
            return [{"values": {"mean": [1.0, float(image.max()) * float("inf")]}} for image in images]
        return [{"mean": image.float().mean().item()} for image in images]


@pytest.fixture
def files(tmp_path):
    """Six images of the gray values 0, 10 ... 50; the third has another size, the fifth cannot be decoded."""
    paths = []
    for index in range(6):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (8, 6) if index != 2 else (10, 6), (10 * index,) * 3).save(paths[-1])
    paths[4].write_bytes(paths[4].read_bytes()[:40])
    return paths


def test_images_of_one_shape_are_predicted_in_batches_and_errors_keep_their_place(files):
    task = MeanTask()
    predictions = task.predict(files)
    assert [entry["file"] for entry in predictions] == list(map(str, files))
    assert [entry.get("mean") for entry in predictions] == [0, 10, 20, 30, None, 50]
    assert "4.png" in predictions[4]["error"]
    assert task.batch_shapes == [(2, 3, 6, 8), (1, 3, 6, 10), (1, 3, 6, 8), (1, 3, 6, 8)]


def test_an_error_of_the_preprocessing_names_the_file(tmp_path):
    Image.new("RGB", (13, 6)).save(tmp_path / "thirteen.png")
    (named,) = MeanTask().predict([tmp_path / "thirteen.png"])
    assert named["error"] == f"{tmp_path / 'thirteen.png'}: the width is 13"
    (unnamed,) = MeanTask().predict([Image.new("RGB", (13, 6))])
    assert unnamed == {"error": "the width is 13"}


def test_an_error_of_the_network_concerns_one_input(tmp_path):
    """The others are predicted; a number that JSON does not have is an error, too."""
    files = [tmp_path / f"{index}.png" for index in range(4)]
    for file, value in zip(files, (10, 66, 20, 30), strict=True):
        Image.new("RGB", (8, 6), (value,) * 3).save(file)
    first, second, *others = MeanTask().predict(files)
    assert second == {"file": str(files[1]), "error": f"{files[1]}: the maximum is 66"}
    assert [entry["mean"] for entry in (first, *others)] == [10, 20, 30]
    (unnamed,) = MeanTask().predict([Image.new("RGB", (8, 6), (55, 55, 55))])
    assert unnamed["error"].startswith("the output of the network is not finite")


def test_networks_are_in_evaluation_mode_only_during_prediction(files):
    task = MeanTask()
    task.model[1].eval()  # such as a frozen layer
    task.predict(files[:2])
    assert task.modes == [(False, True)]
    assert [module.training for module in task.model.modules()] == [True, True, False]
    with pytest.raises(RuntimeError, match="a bug"):
        task.predict([Image.new("RGB", (8, 6), (77, 77, 77))])
    assert [module.training for module in task.model.modules()] == [True, True, False]


def test_each_file_is_decoded_once_and_few_are_in_memory(files, monkeypatch):
    decoded = []
    read = image_io.read_image
    monkeypatch.setattr(
        image_io, "read_image", lambda source, **options: decoded.append(source) or read(source, **options)
    )
    monkeypatch.setattr(prediction, "MAX_CHUNK_PIXELS", 180)
    results = prediction.iterate_predictions(MeanTask(), files, keep_images=True)
    image, first = next(results)
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert first["mean"] == 0
    assert decoded == files[:2]  # two images and their tensors have 192 pixels
    assert [image is None for image, _ in results] == [False, False, False, True, False]
    assert decoded == files


def test_predict_draws_the_image_that_it_decoded(fukami, digit_files, monkeypatch):
    decoded = []
    opened = image_io.open_image
    monkeypatch.setattr(
        image_io, "open_image", lambda source, **options: decoded.append(str(source)) or opened(source, **options)
    )
    files = list(map(str, sorted(digit_files.rglob("*.png"))[:3]))
    assert fukami("predict", "deep-convnet", *files, "--out", "out", "--device", "cpu").status == 0
    assert decoded == files


class FailingTask(MeanTask):
    """Task whose evaluation fails."""

    def collect_results(self, batches):
        assert not self.model.training
        raise Error("nothing to evaluate")


def test_a_failed_evaluation_restores_the_training_mode():
    task = FailingTask()
    with pytest.raises(Error, match="nothing to evaluate"):
        task.evaluate([])
    assert task.model.training


class CountingTask(MeanTask):
    """Task whose result is the number of evaluations."""

    num_evaluations = 0

    def collect_results(self, batches):
        self.num_evaluations += 1
        return self

    def compute_metrics(self):
        return {"count": self.num_evaluations}

    def plot_evaluation(self, batches):
        yield "count", self._get_results(batches).num_evaluations


def test_figures_reuse_the_last_evaluation_until_the_next_step():
    task, batches, others = CountingTask(), [1], [1]
    assert task.evaluate(batches) == {"count": 1}
    assert list(task.plot_evaluation(batches)) == [("count", 1)]
    assert list(task.plot_evaluation(others)) == [("count", 2)]
    task.schedule(0.0)
    assert list(task.plot_evaluation(others)) == [("count", 3)]
    assert task.evaluate(others) == {"count": 4}  # an evaluation is never skipped


def test_a_loader_has_defaults_for_all_that_the_loop_uses():
    class Minimal(Loader):
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([torch.ones(2, 1)] * 3)

    loader = Minimal()
    loader.setup(Runtime.start("cpu", "float32"))
    assert loader.iterate_items() is None
    assert loader.compute_wait_fraction() is None
    assert not loader.needs_checkpoint
    assert loader.count_samples({"images": torch.ones(5, 1), "n": 3}) == (5, "images")
    assert loader.describe_batch(4) == "batch 2"


class Shuffled(Loader):
    """Loader that defines only what it must, and draws its order from torch's random numbers."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(torch.randperm(4).tolist())


def test_a_loader_resumes_within_an_epoch_by_default():
    torch.manual_seed(0)
    loader = Shuffled()
    expected = [*loader.iterate_epoch(), *loader.iterate_epoch()]
    torch.manual_seed(0)
    first = loader.iterate_epoch()
    used = [next(first), next(first)]
    state, random_state = loader.state_dict(), torch.get_rng_state()
    torch.manual_seed(1)
    resumed = Shuffled()
    resumed.load_state_dict(state)
    torch.set_rng_state(random_state)
    assert [*used, *resumed.iterate_epoch(), *resumed.iterate_epoch()] == expected


def test_what_is_no_loader_but_looks_like_one_is_refused():
    class Similar(list):
        def setup(self, runtime):
            pass

    with pytest.raises(UsageError, match=r"derive it from fukami.Loader"):
        wrap_batches(Similar())
    with pytest.raises(UsageError, match="generator has none"):
        len(wrap_batches(index for index in range(3)))
