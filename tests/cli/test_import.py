"""``fukami import``: a run of the note's NumPy parameters predicts the same probabilities."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fukami import scratch
from fukami.engine.load_run import load_task


@pytest.fixture
def numpy_network():
    """An untrained network of the note's program whose scores differ between classes."""
    np.random.seed(0)
    network = scratch.DeepConvNet()
    network.params["b8"][...] = np.random.randn(10)
    network.params["b3"][...] = np.random.randn(32) * 0.1
    return network


@pytest.mark.parametrize("name", ["params.pkl", "params.safetensors"])
def test_probabilities_equal_those_of_the_numpy_network(fukami, numpy_network, random, tmp_path, name):
    numpy_network.save_params(tmp_path / name)
    result = fukami("import", name, "--out", "runs/imported")
    assert result.status == 0, result.err
    assert result.json == [{"run": "runs/imported"}]
    images = random.integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)
    scores = numpy_network.predict(images.astype(np.float64) / 255)
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert expected.std(0).max() > 1e-3
    task = load_task(tmp_path / "runs" / "imported")
    probabilities = task.predict_log_probabilities(torch.from_numpy(images)).softmax(1).detach().numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert fukami("eval", "runs/imported", "--data", "digits").json[0]["count"] == 1797


def test_widths_are_read_from_the_file(fukami, tmp_path):
    first = {"filter_num": 8, "filter_size": 3, "pad": 1, "stride": 1}
    scratch.DeepConvNet(conv_param_1=first, hidden_size=30).save_params(tmp_path / "params.pkl")
    assert fukami("import", "params.pkl", "--out", "run").status == 0
    assert load_task(tmp_path / "run").model[0].weight.shape == (8, 1, 3, 3)


def test_hostile_pickle_is_rejected_without_execution(fukami, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    (tmp_path / "params.pkl").write_bytes(pickle.dumps({"W1": Hostile()}))
    result = fukami("import", "params.pkl", "--out", "run")
    assert result.status == 1
    assert "system" in result.err
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run").exists()


def test_wrong_parameters_are_rejected_and_leave_no_run(fukami, numpy_network, tmp_path):
    valid_params = numpy_network.params
    cases = {
        "missing": ({name: value for name, value in valid_params.items() if name != "W5"}, "W1..W8"),
        "shape": ({**valid_params, "W7": np.zeros((9, 50))}, "W7"),
        "bias": ({**valid_params, "b2": np.zeros(5)}, "b2"),
        "flat": ({**valid_params, "W2": np.zeros(16)}, "four dimensions"),
    }
    for name, (params, hint) in cases.items():
        save_file({key: np.ascontiguousarray(value) for key, value in params.items()}, tmp_path / f"{name}.safetensors")
        result = fukami("import", f"{name}.safetensors", "--out", "run")
        assert result.status == 1, name
        assert hint in result.err
        assert not (tmp_path / "run").exists()
    assert fukami("import", "nothing.pkl", "--out", "run").status == 1
