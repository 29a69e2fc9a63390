"""Runs at fewer bits, from the command line: exported, computed without a new run, and measured side by side."""

import contextlib
import copy
import json
import logging

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
from fukami.engine import checkpoint, precision
from fukami.engine.runtime import Runtime
from fukami.errors import Error, UsageError
from fukami.quantization import half_precision


def numbers(result):
    return {name: result[name] for name in ("accuracy", "errors", "count", "loss")}


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_half_the_bytes_and_the_same_answers(fukami, trained, tmp_path, to):
    """The exported run is computed as the trained one at that precision, and at another where that is asked for."""
    (facts,) = fukami("export", trained, "--to", to).json
    tensors = load_file(tmp_path / facts["file"])
    assert {value.dtype for value in tensors.values()} == {getattr(torch, to)}
    assert facts["smaller"] == pytest.approx(2, abs=0.05)
    (own,), (asked,) = fukami("eval", facts["run"]).json, fukami("eval", trained, "--precision", to).json
    assert own["precision"] == to
    assert numbers(own) == numbers(asked)
    (wide,) = fukami("eval", facts["run"], "--precision", "float32").json
    assert wide["precision"] == "float32"
    assert wide["loss"] == pytest.approx(own["loss"], rel=0.02)


def test_onnx_answers_the_same_by_what_its_metadata_say(fukami, trained, digit_files, tmp_path):
    """A program that knows the file alone prepares an image and gets the probabilities of ``predict`` within 1e-4."""
    (facts,) = fukami("export", trained, "--to", "onnx", "--out", "onnx").json
    session = onnxruntime.InferenceSession(tmp_path / facts["file"], providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    preprocessing, labels = json.loads(about["preprocessing"]), json.loads(about["labels"])
    assert preprocessing["values"] == "(image / 255 - mean) / std"
    files = sorted(digit_files.rglob("*.png"))[:3]
    seen = np.stack([package.load(trained).transform.read_and_transform(file) for file in files])  # MNIST's form
    mean, std = (np.array(preprocessing[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    (scores,) = session.run(["scores"], {"images": ((seen / 255 - mean) / std).astype(np.float32)})
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    for answers in (fukami("predict", trained, *files).json, fukami("predict", "onnx", *files).json):
        for answer, share in zip(answers, shares, strict=True):
            assert answer["label"] == labels[share.argmax()]
            assert answer["probability"] == pytest.approx(share.max(), abs=1e-4)


def test_int8_is_a_run_like_any_other(fukami, trained, digit_files):
    """A third of the bytes, nearly the same answers, whether exported or computed without a new run."""
    (facts,) = fukami("export", trained, "--to", "int8").json
    assert facts["smaller"] > 3
    (exact,), (own,) = fukami("eval", trained).json, fukami("eval", facts["run"]).json
    assert own["precision"] == "int8"
    assert abs(own["accuracy"] - exact["accuracy"]) < 0.02
    assert own["loss"] == pytest.approx(exact["loss"], rel=0.1)
    assert own["loss"] != exact["loss"]
    (asked,) = fukami("eval", trained, "--precision", "int8").json
    assert numbers(asked) == numbers(own)
    together = fukami("eval", trained, facts["run"], "--vote")
    assert together.json[0]["members"] == 2


def test_quantization_aware_training(fukami, trained):
    """It begins where the run ended, and what is exported answers as it did while it was rounding."""
    words = ["--init", trained, "--quantize", "int8", "--epochs", "1", "--lr", "0.0002", "--out", "aware"]
    (begun,) = fukami("eval", trained).json
    (found,) = fukami("train", "deep-convnet", *words, "--precision", "float32").json
    assert found["accuracy"] > begun["accuracy"] - 0.02
    (half,) = fukami("eval", "aware", "--precision", "bfloat16").json
    assert half["loss"] == pytest.approx(found["loss"], rel=0.1)
    (facts,) = fukami("export", "aware", "--to", "int8").json
    (exported,) = fukami("eval", facts["run"]).json
    assert exported["loss"] == pytest.approx(found["loss"], rel=0.02)
    refused = fukami("export", "aware", "--to", "int8", "--calibration", "digits", "--out", "more")
    assert refused.status == 2
    assert "nothing is to calibrate" in refused.err
    refused = fukami("train", "deep-convnet", "--quantize", "int8")
    assert refused.status == 2
    assert "give it with --init" in refused.err


def test_calibration_with_other_images_is_warned_about(fukami, trained, random, tmp_path, caplog):
    """Noise is warned about by what is different in it; images like those of the training are not."""
    for name in ("a", "b"):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for number in range(20):
            noise = random.integers(0, 256, (28, 28), dtype=np.uint8)
            noise[0], noise[-1], noise[:, 0], noise[:, -1] = 0, 0, 0, 0
            Image.fromarray(noise).save(tmp_path / "noise" / name / f"{number}.png")
    with caplog.at_level(logging.WARNING):
        assert fukami("export", trained, "--to", "int8", "--calibration", "digits", "--out", "one").status == 0
        assert not caplog.messages
        assert fukami("export", trained, "--to", "int8", "--calibration", "noise", "--out", "two").status == 0
    assert len(caplog.messages) == 3
    assert all("do not look like the training data" in message for message in caplog.messages)
    assert "more detail" in caplog.messages[2]
    refused = fukami("export", trained, "--to", "float16", "--calibration", "noise", "--out", "three")
    assert refused.status == 2
    assert "float16 needs no calibration" in refused.err


def test_differences_by_hand():
    """Means 0 and 1 with deviations of 1 of the usual: one standard deviation of brightness, none of the others."""
    usual = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    assert list(precision.compare_image_statistics(usual, usual)) == []
    (found,) = precision.compare_image_statistics(usual + 1, usual)
    assert found == "they have 0.9 standard deviations more brightness"  # the unbiased deviation is 1.15


def test_halves_are_said_to_be_added_as_they_are(monkeypatch):
    """Sums that stop at 2,048 are found out."""
    assert precision.describe_dtypes("float32", torch.device("cpu"))["sums"] == "float32"
    assert precision.describe_dtypes("float16", torch.device("cpu"))["sums"] == "float32"
    monkeypatch.setattr(precision, "has_native_arithmetic", lambda dtype, device: True)
    monkeypatch.setattr(precision.F, "conv2d", lambda x, w: torch.tensor([[[[2048.0]]]], dtype=x.dtype))
    assert precision.describe_dtypes("float16", torch.device("cpu"))["sums"] == "float16"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_without_arithmetic_for_them(dtype, monkeypatch):
    """Each layer gives what float64 gives of the rounded numbers, rounded once; nothing else is changed."""
    monkeypatch.setattr(half_precision.torch.cpu, "get_capabilities", lambda: {"avx2": True})
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(100, 2)).to(dtype)
    x = torch.randn(2, 3, 5, 5).to(dtype)
    with half_precision.enable_float32_fallback(network), torch.no_grad():
        found = network(x)
        other = torch.ones(2, dtype=dtype) + 1
    wide = copy.deepcopy(network).double()
    between = wide[0](x.double()).to(dtype)
    expected = wide[2](between.double().flatten(1))
    assert found.dtype == other.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
    assert isinstance(half_precision.enable_float32_fallback(network.float()), contextlib.nullcontext)


def test_where_a_precision_is_computed():
    assert precision.resolve_device_and_precision("auto", "int8") == ("cpu", "float32")
    assert precision.resolve_device_and_precision("cuda", "float16") == ("cuda", "float16")
    with pytest.raises(UsageError, match="int8 is computed on the CPU"):
        precision.resolve_device_and_precision("cuda", "int8")
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        precision.resolve_precision("int4", "float32", "run")


def test_a_failed_export_leaves_no_run(trained, tmp_path, monkeypatch):
    """The folder is a run only once everything is in it."""
    from fukami.engine.export import export_run

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "write_weights", fail)
    with pytest.raises(OSError, match="no space"):
        export_run(trained, "float16", tmp_path / "half")
    with pytest.raises(UsageError, match="neither a run's folder"):
        package.load(tmp_path / "half")


def test_what_has_no_weights_any_more_says_so(fukami, binarized):
    """It can neither be explained nor trained on."""
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    explained = fukami("explain", "bits")
    assert explained.status == 2
    assert "exported to binary" in explained.err
    trained = fukami("train", "binary-deep-convnet", "--init", "bits", "--out", "more")
    assert trained.status == 1
    assert "has no weights to train" in trained.err


def test_a_damaged_or_missing_onnx_file_is_named(fukami, trained, tmp_path):
    fukami("export", trained, "--to", "onnx", "--out", "onnx")
    (tmp_path / "onnx/model.onnx").write_bytes(b"nothing")
    damaged = fukami("eval", "onnx")
    assert damaged.status == 1
    assert "the ONNX file is damaged" in damaged.err
    (tmp_path / "onnx/model.onnx").unlink()
    missing = fukami("eval", "onnx")
    assert missing.status == 1
    assert "model.onnx cannot be read" in missing.err


def test_a_layer_that_onnx_does_not_know_is_named(tmp_path):
    """Of a private recipe, as a user would have it."""

    class Odd(torch.nn.Module):
        def forward(self, x):
            return x * float(x.detach().sum())  # decided by values

    recipe = DeepConvNet(epochs=1)
    task = recipe.build_task(tuple("0123456789"))
    task.model[3] = Odd()
    task.setup(Runtime.start("cpu", "float32"))
    for to in ("onnx", "int8"):
        with pytest.raises(Error, match=r"3 \(Odd\) cannot be"):
            precision.convert_task(task, to, recipe)


@pytest.mark.parametrize("name", ["trained", "binarized"])
def test_the_ladder(fukami, name, request, tmp_path, monkeypatch):
    """Every step with its numbers, each as when it is asked for alone; what is left out says why."""
    run = request.getfixturevalue(name)
    monkeypatch.setattr(precision_comparison, "NUM_ROUNDS", 1)
    monkeypatch.setattr(
        precision_comparison,
        "PRECISIONS",
        ("float32", "bfloat16", "binary") if name == "binarized" else ("float32", "binary"),
    )
    found = fukami("eval", run, "--precision", "all", "--out", "page")
    assert found.status == 0, found.err
    (result,) = found.json
    (alone,) = fukami("eval", run).json
    assert numbers(result) == numbers(alone)
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
        assert result["left_out"] == {}
    else:
        assert "full precision" in result["left_out"]["binary"]
        assert "skipped binary: no layer" in found.err
    page = (tmp_path / "page/report.html").read_text()
    assert "How many bits" in page
    assert "data:image/png" in page


def test_the_ladder_of_a_private_recipe_on_other_data(fukami, digit_files, tmp_path, monkeypatch):
    """Its class is found by the other processes, too."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(DeepConvNet):\n    widths: tuple[int, int, int, int, int, int] = (4, 4, 4, 4, 4, 4)\n"
    )
    assert fukami("train", "./mine.py", "--epochs", "1", "--batch-size", "100", "--out", "run").status == 0
    monkeypatch.setattr(precision_comparison, "NUM_ROUNDS", 1)
    monkeypatch.setattr(precision_comparison, "PRECISIONS", ("float32", "bfloat16"))
    found = fukami("eval", "run", "--precision", "all", "--data", digit_files, "--recipe", "mine.py")
    assert found.status == 0, found.err
    assert [step["count"] for step in found.json[0]["precisions"]] == [40, 40]


def test_the_ladder_is_of_one_run(fukami, trained):
    refused = fukami("eval", trained, trained, "--precision", "all")
    assert refused.status == 2
    assert "one run" in refused.err


def test_the_ladder_of_what_is_no_run(fukami, binarized, tmp_path):
    """Exported already, or damaged: it says which, and measures nothing."""
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    refused = fukami("eval", "bits", "--precision", "all")
    assert refused.status == 2
    assert "exported to binary already" in refused.err
    fukami("export", binarized, "--to", "float16", "--out", "half")
    (tmp_path / "half/weights.safetensors").write_bytes(b"\x00" * 100)
    damaged = fukami("eval", "half", "--precision", "all")
    assert damaged.status == 1
    assert "weights.safetensors is damaged" in damaged.err
