"""The Python interface: train by name, and predict, evaluate and draw with the loaded model."""

import tempfile
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import fukami
from fukami import Error, UsageError
from fukami.engine import run_record
from fukami.engine.export import export_run
from fukami.image import io as image_io


@pytest.fixture(scope="module")
def run(tmp_path_factory, digit_files):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        run = fukami.train("deep-convnet", data=str(digit_files), epochs=2, device="cpu", precision="float32")
        return fukami.Run(run.folder.resolve(), run.metrics, run.recipe)


@pytest.fixture(scope="module")
def model(run):
    return run.load(device="cpu")


@pytest.fixture
def file(digit_files):
    return sorted(digit_files.rglob("*.png"))[0]


def test_runs_are_numbered_as_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [fukami.train("deep-convnet", epochs=1, device="cpu").folder for _ in range(2)]
    assert list(map(str, folders)) == ["runs/deep-convnet", "runs/deep-convnet-2"]
    resumed = fukami.train("deep-convnet", device="cpu", resume=True)  # with the fields of the run
    assert str(resumed.folder) == "runs/deep-convnet-2"
    assert resumed.recipe.epochs == 1


def test_a_recipe_object_takes_fields_too(tmp_path):
    recipe = fukami.get_recipe("deep-convnet")(epochs=7)
    run = fukami.train(recipe, tmp_path / "run", epochs=1, device="cpu")
    stored, _ = run_record.read_recipe(run.folder)
    assert stored.epochs == 1


def test_a_custom_recipe_is_loaded_with_its_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(DeepConvNet):\n    epochs: int = 1\n"
    )
    run = fukami.train("mine.py", device="cpu")
    assert run.load(device="cpu").evaluate()["count"] == run.metrics["count"]
    again = fukami.train(type(run.recipe), "again", device="cpu")
    assert again.metrics == run.metrics


def test_repr_of_a_run_has_its_folder_and_metrics(run):
    text = repr(run)
    assert text.startswith(f"Run({str(run.folder)!r}, accuracy=")
    assert f"count={run.metrics['count']}" in text
    assert len(text) < 200


def test_repr_of_a_model_has_its_recipe_run_and_size(model, run):
    size = sum(parameter.numel() for parameter in model.task.model.parameters())
    assert repr(model) == f"Model(deep-convnet, {str(run.folder)!r}, {size:,} parameters)"
    assert repr(model.task) == f"ClassificationTask(10 labels, {size:,} parameters)"


def check_predictions(predictions, expected, count):
    """Check that several predictions equal one, but for the rounding of a larger batch."""
    assert len(predictions) == count
    for prediction in predictions:
        assert {**prediction, "probability": 0, "ranking": 0} == {**expected, "probability": 0, "ranking": 0}
        assert prediction["probability"] == pytest.approx(expected["probability"], abs=1.5e-4)


def test_one_input_has_one_answer_and_several_have_a_list(model, file):
    (expected,) = model.task.predict([file])
    assert model.predict(str(file)) == model.predict(file) == expected
    assert model.predict([file]) == [expected]
    assert model.predict(path for path in [file]) == [expected]
    assert model.predict([]) == []
    check_predictions(model.predict((file, str(file))), expected, 2)


def test_images_of_every_type_have_the_same_prediction(model, file):
    image = Image.open(file).convert("RGB")
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = {name: value for name, value in model.predict(file).items() if name != "file"}
    with file.open("rb") as opened:
        assert model.predict(opened) == expected
    for source in (image, array, array[:, :, 0], tensor, tensor[0], tensor.float() / 255, file.read_bytes()):
        assert model.predict(source) == expected
        check_predictions(model.predict([source, source]), expected, 2)


def test_a_folder_is_all_its_files(model, tmp_path, file):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.png").write_bytes(file.read_bytes())
    (tmp_path / "b.png").write_bytes(b"no image")
    for name in (".hidden", ".folder/a.png", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    unreadable, prediction = model.predict(tmp_path)
    assert unreadable["file"] == str(tmp_path / "b.png")
    assert "b.png" in unreadable["error"]
    assert prediction["file"] == str(tmp_path / "more" / "a.png")
    assert model.predict(f"{tmp_path}/") == [unreadable, prediction]


@pytest.mark.parametrize("source", ["nowhere.png", "x" * 10_000, "a\0b", b"no image"])
def test_the_only_input_that_cannot_be_read_is_an_error(model, source):
    with pytest.raises(Error):
        model.predict(source)
    with pytest.raises(Error):
        model.draw(source)
    (prediction,) = model.predict([source])
    assert "error" in prediction


def test_a_batch_tensor_is_not_an_image(model):
    with pytest.raises(UsageError, match=r"\(C, H, W\) or \(H, W\), not \(2, 3, 8, 8\); pass a list"):
        model.predict(torch.zeros(2, 3, 8, 8))
    assert len(model.predict(list(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)))) == 2


def test_evaluate_uses_the_own_test_split_or_another_dataset(run, model, digit_files, tmp_path):
    metrics = model.evaluate()
    assert {**metrics, "loss": 0} == {**run.metrics, "loss": 0}
    other = tmp_path / "other"
    for folder in sorted(digit_files.iterdir())[:2]:
        (other / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:2]:
            (other / folder.name / path.name).write_bytes(path.read_bytes())
    assert model.evaluate(data=str(other))["count"] == 4  # a new dataset without a test split is used as a whole
    with pytest.raises(UsageError, match="mnits"):
        model.evaluate("mnits")
    assert model.evaluate(other)["count"] == 4
    with pytest.raises(UsageError, match="name or the path of a dataset, not 3"):
        model.evaluate(3)


def test_draw_equals_the_drawing_of_the_command_line(run, model, file, fukami, tmp_path):
    result = fukami("predict", run.folder, file, "--out", tmp_path / "out", "--device", "cpu")
    assert result.status == 0, result.err
    drawing = model.draw(file)
    assert np.array_equal(drawing, image_io.read_image(tmp_path / "out" / file.name))


def test_several_runs_are_an_ensemble(run):
    model = fukami.load(run.folder, run.folder, device="cpu")
    assert model.evaluate()["members"] == 2
    assert len(model.runs) == 2


def test_wrong_names_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        fukami.train("resnet-81")
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        fukami.train("deep-convnet", epoch=5)
    with pytest.raises(UsageError, match="nowhere"):
        fukami.train("deep-convnet", data="nowhere")
    with pytest.raises(UsageError, match="no-run"):
        fukami.load("no-run")
    for fields, message in (
        ({"epochs": "5"}, r"'epochs' of deep-convnet should be of type int, not '5'"),
        ({"epochs": 0}, "epochs should be at least 1, not 0"),
        ({"data": 3}, r"'data' of deep-convnet should be of type str, not 3"),
    ):
        with pytest.raises(UsageError, match=message):
            fukami.train("deep-convnet", **fields)
        with pytest.raises(UsageError, match=message):
            fukami.get_recipe("deep-convnet")(**fields)
    with pytest.raises(UsageError, match=r"a name such as 'resnet18', or a fukami.Recipe, not 3"):
        fukami.train(3)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_answered_with_similar_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "flowers").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no file or folder 'data/flowrs', .*; did you mean 'data/flowers'\?"):
        fukami.train("deep-convnet", data="data/flowrs")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_lists_and_paths_are_values_of_fields(tmp_path, digit_files):
    run = fukami.train("deep-convnet", tmp_path / "run", data=digit_files, augment=["shift=1"], epochs=2, device="cpu")
    stored, _ = run_record.read_recipe(run.folder)
    assert (stored.data, stored.augment) == (str(digit_files), ("shift=1",))


@pytest.mark.parametrize("source", [3, None, {"file": "a.png"}])
def test_inputs_of_other_types_are_refused(model, source):
    with pytest.raises(UsageError, match=f"not {type(source).__name__}"):
        model.predict(source)
    with pytest.raises(UsageError, match=f"not {type(source).__name__}"):
        model.draw(source)


def test_defaults_of_a_recipe_object_depend_on_the_new_fields(monkeypatch):
    """The same recipe by name, and as an object that gets its initial weights later."""
    trained = []
    monkeypatch.setattr("fukami.engine.run.run_training", lambda recipe, *_: trained.append(recipe) or {})
    fukami.train("vgg16", "a", data="digits", init="imagenet")
    fukami.train(fukami.get_recipe("vgg16")(data="digits"), "b", init="imagenet")
    fukami.train(fukami.get_recipe("vgg16")(data="digits", init="imagenet"), "c", freeze=True)
    assert trained[0] == trained[1]
    assert trained[2].head_epochs == 0


def test_values_of_a_recipe_are_converted(tmp_path):
    recipe = fukami.get_recipe("neural-style")(style=["a.jpg"], iterations=np.int64(3), content=tmp_path / "b.jpg")
    assert (recipe.style, recipe.content) == (("a.jpg",), str(tmp_path / "b.jpg"))
    assert type(recipe.iterations) is int
    assert isinstance(hash(recipe), int)
    with pytest.raises(UsageError, match="unknown field of deep-convnet 'views'"):
        fukami.load("deep-convnet", overrides={"views": "many"})


def test_a_training_leaves_the_threads_and_the_random_numbers(digit_files, tmp_path):
    torch.manual_seed(7)
    expected, threads = torch.get_rng_state(), torch.get_num_threads()
    fukami.train("deep-convnet", tmp_path / "run", data=str(digit_files), epochs=2, device="cpu")
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.get_num_threads() == threads


def test_an_evaluation_keeps_no_images(run):
    model = run.load(device="cpu")
    model.evaluate()
    assert model.task.last_evaluation is None


def test_wrappers_of_open_files_are_one_input(model, file):
    """Such as temporary files, and uploads of web frameworks, which iterate over lines."""
    with tempfile.NamedTemporaryFile() as opened:
        opened.write(file.read_bytes())
        opened.seek(0)
        prediction = model.predict(opened)
    assert prediction["label"] == model.predict(file)["label"]


def test_an_export_to_an_unknown_precision(run, tmp_path):
    with pytest.raises(UsageError, match="unknown precision 'fp16'; did you mean 'float16'"):
        export_run(run.folder, "fp16", tmp_path / "out")


def test_warnings_are_ignored_in_several_threads():
    """The filters of Python are shared by all threads, and those of before are restored at the end."""
    before = list(warnings.filters)
    barrier = threading.Barrier(2)

    def ignore(number):
        if number:
            barrier.wait()
        with image_io.ignore_warnings():
            if not number:
                barrier.wait()  # the other one starts here
                barrier.wait()
        if number:
            barrier.wait()

    threads = [threading.Thread(target=ignore, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
