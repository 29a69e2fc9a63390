"""Tests of exports, of evaluation at lower precision, and of the precision comparison, from the command line."""

import contextlib
import copy
import json
import logging
import math
import os
from multiprocessing import resource_tracker

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import fukami as package
from fukami.classification import precision_comparison
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.resnet import ResNet20
from fukami.engine import precision, run_weights
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.errors import Error, UsageError
from fukami.quantization import half_precision


def select_metrics(result):
    return {name: result[name] for name in ("accuracy", "errors", "count", "loss")}


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_export_to_half_precision_halves_the_bytes(fukami, trained, tmp_path, to):
    """The exported run has the metrics of the trained one at that precision, and can be evaluated at another."""
    (export,) = fukami("export", trained, "--to", to).json
    tensors = load_file(tmp_path / export["file"])
    assert {value.dtype for value in tensors.values()} == {getattr(torch, to)}
    assert export["compression_ratio"] == pytest.approx(2, abs=0.05)
    (exported,), (converted,) = fukami("eval", export["run"]).json, fukami("eval", trained, "--precision", to).json
    assert exported["precision"] == to
    assert select_metrics(exported) == select_metrics(converted)
    (full,) = fukami("eval", export["run"], "--precision", "float32").json
    assert full["precision"] == "float32"
    assert full["loss"] == pytest.approx(exported["loss"], rel=0.02)


def test_weights_beyond_the_range_of_a_precision(tmp_path):
    """float16 ends at 65,504, bfloat16 does not."""
    tensors = {"layer.weight": torch.tensor([1.0, 1e5])}
    with pytest.raises(Error, match=r"layer\.weight has values above 65,504, the limit of float16"):
        run_weights.write_weights(tmp_path, tensors, torch.float16)
    assert not [*tmp_path.iterdir()]
    run_weights.write_weights(tmp_path, tensors, torch.bfloat16)
    run_weights.write_weights(tmp_path, {"a": torch.tensor([math.inf])}, torch.float16)  # is not finite before, too


def test_calibration_with_other_data_than_the_annotations_of_the_run(digit_files, tmp_path):
    """A run of images and annotations is calibrated with ``--calibration`` and not with its own data."""
    name = str(next(iter(digit_files.rglob("*.png"))).relative_to(digit_files))
    (tmp_path / "labels.csv").write_text(f"path,label\n{name},0\n{name},1\n")
    recipe = DeepConvNet(
        images=str(digit_files), annotations=str(tmp_path / "labels.csv"), batch_size=4, val_fraction=0.0
    )
    shapes = [
        [len(batch) for batch in precision._load_calibration_images(lambda batch: batch[0].float(), recipe, spec)]
        for spec in (None, str(digit_files))
    ]
    assert [sum(lengths) for lengths in shapes] == [2, 40]


def test_onnx_metadata_suffice_to_reproduce_predictions(fukami, trained, digit_files, tmp_path):
    """Preprocessing as in the metadata gives the probabilities of ``fukami predict`` within 1e-4."""
    (export,) = fukami("export", trained, "--to", "onnx", "--out", "onnx").json
    session = onnxruntime.InferenceSession(tmp_path / export["file"], providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    preprocessing, labels = json.loads(metadata["preprocessing"]), json.loads(metadata["labels"])
    assert preprocessing["values"] == "(image / 255 - mean) / std"
    files = sorted(digit_files.rglob("*.png"))[:3]
    images = np.stack([load_task(trained).transform.read_and_transform(file) for file in files])  # as in MNIST
    mean, std = (np.array(preprocessing[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    (scores,) = session.run(["scores"], {"images": ((images / 255 - mean) / std).astype(np.float32)})
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    for predictions in (fukami("predict", trained, *files).json, fukami("predict", "onnx", *files).json):
        for prediction, expected in zip(predictions, probabilities, strict=True):
            assert prediction["label"] == labels[expected.argmax()]
            assert prediction["probability"] == pytest.approx(expected.max(), abs=1e-4)


@pytest.mark.slow
def test_int8_run_is_evaluated_like_any_other(fukami, trained, digit_files):
    """A third of the bytes and nearly the same metrics, whether exported or converted for the evaluation."""
    (export,) = fukami("export", trained, "--to", "int8").json
    assert export["compression_ratio"] > 3
    (float32,), (int8,) = fukami("eval", trained).json, fukami("eval", export["run"]).json
    assert int8["precision"] == "int8"
    assert abs(int8["accuracy"] - float32["accuracy"]) < 0.02
    assert int8["loss"] == pytest.approx(float32["loss"], rel=0.1)
    assert int8["loss"] != float32["loss"]
    (converted,) = fukami("eval", trained, "--precision", "int8").json
    assert select_metrics(converted) == select_metrics(int8)
    ensemble = fukami("eval", trained, export["run"], "--vote")
    assert ensemble.json[0]["members"] == 2


@pytest.mark.slow
def test_quantization_aware_training(fukami, trained):
    """Training starts from the run in --init, and the exported network has the metrics of the training run."""
    arguments = ["--init", trained, "--quantize", "int8", "--epochs", "1", "--lr", "0.0002", "--out", "aware"]
    (initial,) = fukami("eval", trained).json
    (final,) = fukami("train", "deep-convnet", *arguments, "--precision", "float32").json
    assert final["accuracy"] > initial["accuracy"] - 0.02
    (half,) = fukami("eval", "aware", "--precision", "bfloat16").json
    assert half["loss"] == pytest.approx(final["loss"], rel=0.1)
    (export,) = fukami("export", "aware", "--to", "int8").json
    (exported,) = fukami("eval", export["run"]).json
    assert exported["loss"] == pytest.approx(final["loss"], rel=0.02)
    rejected = fukami("export", "aware", "--to", "int8", "--calibration", "digits", "--out", "more")
    assert rejected.status == 2
    assert "needs no calibration" in rejected.err
    rejected = fukami("train", "deep-convnet", "--quantize", "int8")
    assert rejected.status == 2
    assert "specify the run with --init" in rejected.err


@pytest.mark.slow
def test_calibration_data_unlike_the_training_data_give_a_warning(fukami, trained, random, tmp_path, caplog):
    """Noise gives warnings that name the statistics that differ; images like the training data give none."""
    for name in ("a", "b"):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for index in range(20):
            noise = random.integers(0, 256, (28, 28), dtype=np.uint8)
            noise[0], noise[-1], noise[:, 0], noise[:, -1] = 0, 0, 0, 0
            Image.fromarray(noise).save(tmp_path / "noise" / name / f"{index}.png")
    with caplog.at_level(logging.WARNING):
        assert fukami("export", trained, "--to", "int8", "--calibration", "digits", "--out", "one").status == 0
        assert not caplog.messages
        assert fukami("export", trained, "--to", "int8", "--calibration", "noise", "--out", "two").status == 0
    assert len(caplog.messages) == 3
    assert all("noise differ from the training data" in message for message in caplog.messages)
    assert "more detail" in caplog.messages[2]
    rejected = fukami("export", trained, "--to", "float16", "--calibration", "noise", "--out", "three")
    assert rejected.status == 2
    assert "float16 needs no calibration" in rejected.err


def test_image_statistics_by_hand():
    """Means of 1 and 0 with a deviation of 1: only the brightness differs, by one standard deviation."""
    reference = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    assert list(precision.compare_image_statistics(reference, reference)) == []
    (difference,) = precision.compare_image_statistics(reference + 1, reference)
    assert difference == "0.9 standard deviations more brightness"  # the unbiased deviation is 1.15


def test_accumulation_in_half_precision_is_detected(monkeypatch):
    """A sum that stops at 2,048 shows that the accumulators are float16."""
    assert precision.describe_dtypes("float32", torch.device("cpu"))["accumulators"] == "float32"
    assert precision.describe_dtypes("float16", torch.device("cpu"))["accumulators"] == "float32"
    monkeypatch.setattr(precision, "has_native_arithmetic", lambda dtype, device: True)
    monkeypatch.setattr(precision.F, "conv2d", lambda x, w: torch.tensor([[[[2048.0]]]], dtype=x.dtype))
    assert precision.describe_dtypes("float16", torch.device("cpu"))["accumulators"] == "float16"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_without_native_arithmetic(dtype, monkeypatch):
    """Each layer equals float64 arithmetic on the rounded inputs, rounded once; other operations do not change."""
    monkeypatch.setattr(half_precision.torch.cpu, "get_capabilities", lambda: {"avx2": True})
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(100, 2)).to(dtype)
    x = torch.randn(2, 3, 5, 5).to(dtype)
    with half_precision.enable_float32_fallback(network), torch.no_grad():
        output = network(x)
        other = torch.ones(2, dtype=dtype) + 1
    double = copy.deepcopy(network).double()
    hidden = double[0](x.double()).to(dtype)
    expected = double[2](hidden.double().flatten(1))
    assert output.dtype == other.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
    assert isinstance(half_precision.enable_float32_fallback(network.float()), contextlib.nullcontext)


def test_device_and_dtype_of_each_precision():
    assert precision.resolve_device_and_precision("auto", "int8") == ("cpu", "float32")
    assert precision.resolve_device_and_precision("cuda", "float16") == ("cuda", "float16")
    with pytest.raises(UsageError, match="int8 is computed on the CPU"):
        precision.resolve_device_and_precision("cuda", "int8")
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        precision.resolve_precision("int4", "float32", "run")


def test_a_failed_export_leaves_no_run(trained, tmp_path, monkeypatch):
    """The folder becomes a run only when all files are written."""
    from fukami.engine.export import export_run

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(run_weights, "write_weights", fail)
    with pytest.raises(OSError, match="no space"):
        export_run(trained, "float16", tmp_path / "half")
    with pytest.raises(UsageError, match="neither a run's folder"):
        load_task(tmp_path / "half")


def test_runs_exported_to_binary_cannot_be_explained_or_trained(fukami, binarized):
    """Their weights are packed into bits."""
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    explained = fukami("explain", "bits")
    assert explained.status == 2
    assert "exported to binary" in explained.err
    trained = fukami("train", "binary-deep-convnet", "--init", "bits", "--out", "more")
    assert trained.status == 1
    assert "has no weights to train" in trained.err


@pytest.mark.slow
def test_an_export_for_another_input_size_is_used_at_it(fukami, digit_files, tmp_path):
    """An ONNX file has one input size, which is that of its recipe."""
    run = package.train(
        ResNet20(data=str(digit_files), size=16, epochs=1, batch_size=8), tmp_path / "run", device="cpu"
    )
    result = fukami("export", run.folder, "--to", "onnx", "--set", "size=24", "--out", tmp_path / "exported")
    assert result.status == 0, result.err
    assert json.loads((tmp_path / "exported" / "recipe.json").read_text())["fields"]["size"] == 24
    assert fukami("predict", tmp_path / "exported", next(digit_files.rglob("*.png"))).status == 0


def test_the_error_of_a_corrupted_or_missing_onnx_file_names_it(fukami, trained, tmp_path):
    fukami("export", trained, "--to", "onnx", "--out", "onnx")
    (tmp_path / "onnx/model.onnx").write_bytes(b"nothing")
    corrupted = fukami("eval", "onnx")
    assert corrupted.status == 1
    assert "the ONNX file is corrupted" in corrupted.err
    (tmp_path / "onnx/model.onnx").unlink()
    missing = fukami("eval", "onnx")
    assert missing.status == 1
    assert "model.onnx cannot be read" in missing.err


def test_a_layer_that_onnx_does_not_support_is_named(tmp_path):
    """The layer is user-defined, as in a custom recipe."""

    class Odd(torch.nn.Module):
        def forward(self, x):
            return x * float(x.detach().sum())  # depends on the values

    recipe = DeepConvNet(epochs=1)
    task = recipe.build_task(tuple("0123456789"))
    task.model[3] = Odd()
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    for to in ("onnx", "int8"):
        with pytest.raises(Error, match=r"3 \(Odd\) cannot be"):
            precision.convert_task(task, to, recipe)


@pytest.fixture
def quick_comparison(forked_python, monkeypatch):
    """Measure each precision once, in a process that is forked instead of started."""
    monkeypatch.setattr(precision_comparison, "NUM_ROUNDS", 1)
    resource_tracker.ensure_running()  # for the whole session
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(forked_python.executable))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", "binarized"])
def test_precision_comparison(fukami, name, request, tmp_path, monkeypatch, quick_comparison):
    """Each precision has its metrics, equal to those of a single evaluation; a skipped one has its reason."""
    run = request.getfixturevalue(name)
    monkeypatch.setattr(
        precision_comparison,
        "COMPARED_PRECISIONS",
        ("float32", "bfloat16", "binary") if name == "binarized" else ("float32", "binary"),
    )
    command = fukami("eval", run, "--precision", "all", "--out", "page")
    assert command.status == 0, command.err
    (result,) = command.json
    (single,) = fukami("eval", run).json
    assert select_metrics(result) == select_metrics(single)
    steps = {step["precision"]: step for step in result["precisions"]}
    assert steps["float32"]["agreement"] == 1
    for step in steps.values():
        assert min(step[key] for key in ("bytes", "memory_1", "memory_256", "latency", "throughput")) > 0
        assert step["memory_256"] >= step["memory_1"]
    if name == "binarized":
        assert {"accuracy": steps["binary"]["accuracy"], "agreement": 1.0} == {
            "accuracy": steps["float32"]["accuracy"], "agreement": steps["binary"]["agreement"],
        }  # fmt: skip
        assert steps["float32"]["bytes"] > 20 * steps["binary"]["bytes"]
        assert result["skipped"] == {}
    else:
        assert "full precision" in result["skipped"]["binary"]
        assert "skipped binary: the network has no binarized layer" in command.err
    page = (tmp_path / "page/report.html").read_text()
    assert "Precision comparison" in page
    assert "data:image/svg+xml" in page


@pytest.mark.slow
def test_precision_comparison_of_a_custom_recipe_on_other_data(
    fukami, digit_files, tmp_path, monkeypatch, quick_comparison
):
    """The other processes load the class of the recipe, too."""
    (tmp_path / "custom.py").write_text(
        "from dataclasses import dataclass\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Custom(DeepConvNet):\n    widths: tuple[int, int, int, int, int, int] = (4, 4, 4, 4, 4, 4)\n"
    )
    assert fukami("train", "./custom.py", "--epochs", "1", "--batch-size", "100", "--out", "run").status == 0
    monkeypatch.setattr(precision_comparison, "COMPARED_PRECISIONS", ("float32", "bfloat16"))
    command = fukami("eval", "run", "--precision", "all", "--data", digit_files, "--recipe", "custom.py")
    assert command.status == 0, command.err
    assert [step["count"] for step in command.json[0]["precisions"]] == [40, 40]


def test_precision_comparison_needs_exactly_one_run(fukami, trained):
    rejected = fukami("eval", trained, trained, "--precision", "all")
    assert rejected.status == 2
    assert "one run" in rejected.err


def test_precision_comparison_of_an_exported_or_corrupted_run_is_rejected(fukami, binarized, tmp_path):
    """The error names the reason, and nothing is measured."""
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    rejected = fukami("eval", "bits", "--precision", "all")
    assert rejected.status == 2
    assert "exported to binary already" in rejected.err
    fukami("export", binarized, "--to", "float16", "--out", "half")
    (tmp_path / "half/weights.safetensors").write_bytes(b"\x00" * 100)
    corrupted = fukami("eval", "half", "--precision", "all")
    assert corrupted.status == 1
    assert "weights.safetensors is corrupted" in corrupted.err
