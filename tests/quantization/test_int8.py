"""int8 quantization, compared with integer arithmetic in NumPy, with its simulation, and on digits."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fukami import models
from fukami.data import labeled_images
from fukami.engine.load_run import load_task
from fukami.errors import Error
from fukami.layers.ensemble import Ensemble
from fukami.models.googlenet import Inception
from fukami.quantization.int8 import (
    FakeQuantActivation,
    calibrate,
    export_int8,
    fake_quantize_weight,
    prepare_fake_quantization,
    quantize,
)
from fukami.quantization.onnx_export import OnnxNetwork
from quantization.test_onnx_export import SMALL, FunctionLayer, randomize_norms


def inception():
    """Build a small GoogLeNet with two Inception modules."""
    modules = Inception(8, 4, (3, 8), (2, 4), 4, 3), Inception(20, 4, (3, 8), (2, 4), 4, 3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), *modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10)
    )


FLOAT = {name: SMALL[name] for name in ("deep_convnet", "vgg11", "resnet20")} | {
    "resnet20 of projections": (lambda: models.resnet20(shortcut="B"), (3, 16, 16)),
    "inception": (inception, (3, 8, 8)),
}
BYTES = {"QLinearConv", "QGemm", "QLinearAdd", "QLinearConcat", "NhwcMaxPool", "QLinearAveragePool"}
MOVES = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Slice", "Pad"}


def get_constants(content):
    return {c.name: onnx.numpy_helper.to_array(c) for c in onnx.load_from_string(content).graph.initializer}


def test_int8_network_equals_integer_arithmetic():
    """Convolution, ReLU and fully connected layer by Jacob et al., equations 3, 4 and 7."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).requires_grad_(False)
    images = torch.randn(50, 1, 3, 3)
    scores = OnnxNetwork(quantize(network, (1, 3, 3), [images[:20], images[20:]], {}))(images)

    def compute_qparams(x):
        low, high = min(x.min(), 0), max(x.max(), 0)
        step = (high - low) / 255
        return step, np.round(-low / step)

    def quantize_weight(weight):
        step = np.abs(weight).reshape(len(weight), -1).max(1) / 127
        return np.round(weight.reshape(len(weight), -1) / step[:, None]), step

    x = images.double().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], (2, 2), (1, 2)).reshape(50, 4, 4)
    weight, step = quantize_weight(network[0].weight.double().numpy())
    bias = network[0].bias.double().numpy()
    x_step, x_zero = compute_qparams(x)
    h_step, h_zero = compute_qparams(np.maximum(windows @ (weight * step[:, None]).T + bias, 0))
    bytes_in = np.clip(np.round(windows / x_step) + x_zero, 0, 255)
    sums = (bytes_in - x_zero) @ weight.T + np.round(bias / (step * x_step))  # integers (N, positions, 3)
    bytes_hidden = np.clip(np.round(sums * (step * x_step / h_step)) + h_zero, 0, 255)
    bytes_hidden = bytes_hidden.transpose(0, 2, 1).reshape(50, 12)
    weight, step = quantize_weight(network[3].weight.double().numpy())
    bias = np.round(network[3].bias.double().numpy() / (step * h_step))
    expected = ((bytes_hidden - h_zero) @ weight.T + bias) * (step * h_step)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOAT)
def test_every_model_runs_on_bytes(name, tmp_path):
    make, shape = FLOAT[name]
    torch.manual_seed(0)
    network = randomize_norms(make())
    simulated = prepare_fake_quantization(network)
    calibrate(simulated, [torch.randn(16, *shape)])
    content = export_int8(simulated.eval(), shape, {"mean": "0.5"})
    exported = OnnxNetwork(content)
    assert exported.metadata == {"mean": "0.5"}
    for count in (1, 2, 7):
        images = torch.randn(count, *shape)
        expected = simulated(images)
        spread = expected.std()
        assert (exported(images) - expected).abs().mean() < 0.03 * spread, "only the rounding of biases differs"
        assert (expected - network(images)).abs().mean() < 0.1 * spread
    kinds = Counter(node.op_type for node in optimize(content, tmp_path))
    assert kinds.keys() <= BYTES | MOVES | {"ReduceMean", "Add"}
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in simulated.modules())
    assert kinds["QLinearConv"] + kinds["QGemm"] == layers
    assert sum(weight.dtype == np.int8 and weight.ndim > 1 for weight in get_constants(content).values()) == layers


def optimize(content, folder):
    """Return the operators of a file after ONNX Runtime's optimization."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph.node


def test_precise_sums_without_vnni(monkeypatch):
    """ONNX Runtime then rewrites the weights, which fails if zero points are missing or shared by tensors."""
    torch.manual_seed(0)
    network = randomize_norms(models.deep_convnet())
    images = torch.randn(8, 1, 28, 28)
    content = quantize(network, (1, 28, 28), [images], {})
    expected = OnnxNetwork(content)(images)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})
    assert torch.equal(OnnxNetwork(content)(images), expected)


def test_weights_are_rounded_per_channel_and_keep_their_gradient():
    weight = torch.tensor([[[[1.27, -0.634]]], [[[0.0, -254.0]]]], requires_grad=True)
    result = fake_quantize_weight(weight)
    torch.testing.assert_close(result, torch.tensor([[[[1.27, -0.63]]], [[[0.0, -254.0]]]]))
    factors = torch.randn_like(weight)
    result.backward(factors)
    torch.testing.assert_close(weight.grad, factors)


def test_activations_keep_their_gradient_within_the_range():
    rounding = FakeQuantActivation().eval()
    rounding.activation_range.copy_(torch.tensor([-0.5, 2.05]))  # scale 0.01, zero point 50
    x = torch.tensor([-0.7, -0.494, 0.0, 0.3149, 2.04, 3.0], requires_grad=True)
    result = rounding(x)
    torch.testing.assert_close(result, torch.tensor([-0.5, -0.49, 0.0, 0.31, 2.04, 2.05]))
    result.backward(torch.arange(1.0, 7.0))
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 2.0, 3.0, 4.0, 5.0, 0.0]))


def test_ranges_are_updated_only_in_training():
    rounding = FakeQuantActivation()
    x = torch.tensor([-1.0, 3.0])
    assert torch.equal(rounding.eval()(x), x), "the range is not set yet"
    rounding.train()(x)
    torch.testing.assert_close(rounding.activation_range, torch.tensor([-1.0, 3.0]))
    rounding(torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(rounding.activation_range, torch.tensor([-0.99, 3.02]))  # the minimum includes 0
    rounding.eval()(torch.tensor([-9.0, 9.0]))
    torch.testing.assert_close(rounding.activation_range, torch.tensor([-0.99, 3.02]))


@pytest.mark.slow
def test_quantization_aware_training():
    """Mixed precision, a copy of the weights, saving and loading; the digits below use float32."""
    torch.manual_seed(0)
    make, shape = models.resnet20, (3, 16, 16)
    network = make()
    aware = prepare_fake_quantization(network).to(memory_format=torch.channels_last)
    average = copy.deepcopy(aware)
    images, targets = torch.randn(16, *shape).to(memory_format=torch.channels_last), torch.arange(16) % 10
    optimizer = torch.optim.SGD(aware.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(aware(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    loaded = prepare_fake_quantization(make())
    loaded.load_state_dict(aware.state_dict())
    with torch.no_grad():
        torch._foreach_copy_(list(average.parameters()), list(aware.parameters()))
        torch._foreach_copy_(list(average.buffers()), list(aware.buffers()))
        expected = aware.eval()(images)
        assert torch.equal(average.eval()(images), expected)
        assert torch.equal(loaded.eval()(images), expected)
        assert {*network.state_dict()} < {*aware.state_dict()}, "weights of the original network can be loaded"
    exported = OnnxNetwork(export_int8(aware, shape, {}))
    assert (exported(images) - expected).abs().mean() < 0.03 * expected.std()


def test_auxiliary_classifiers_are_removed():
    aware = prepare_fake_quantization(models.googlenet(5))
    scores = aware.train()(torch.randn(2, 3, 32, 32))
    assert scores.shape == (2, 5)
    assert not any(name.startswith("aux") for name, _ in aware.named_parameters())


def test_ensemble_is_quantized_member_by_member():
    torch.manual_seed(0)
    members = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)) for _ in range(3)]
    network = (
        Ensemble(members, num_active=2).eval().requires_grad_(False)
    )  # the third is not active and processes no image
    images = torch.randn(64, 1, 4, 4)
    exported = OnnxNetwork(quantize(network, (1, 4, 4), [images], {}))
    assert (exported(images) - network(images)).abs().max() < 0.05


def test_channel_with_tiny_weights_and_large_bias():
    """The bias would need more than 32 bits in units of the weights' scale."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        layers[1].weight.copy_(torch.tensor([1e-13, 0.0]))
        layers[1].bias.copy_(torch.tensor([1.0, -2.0]))
    images = torch.randn(16, 1, 1, 1)
    exported = OnnxNetwork(quantize(layers.eval().requires_grad_(False), (1, 1, 1), [images], {}))
    torch.testing.assert_close(exported(images), layers(images), rtol=0, atol=0.02)


def test_other_layers_are_not_quantized():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        nn.GroupNorm(2, 4),
        FunctionLayer(lambda x: torch.cat((x.chunk(2, 1)[1], x), 1)),
        nn.Conv2d(6, 4, 3, padding="same", bias=False),
        FunctionLayer(lambda x: x.chunk(2, 1)[0].sigmoid()),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )
    network = randomize_norms(network)
    images = torch.randn(64, 1, 4, 4)
    content = quantize(network, (1, 4, 4), [images], {})
    expected = network(images)
    assert (OnnxNetwork(content)(images) - expected).abs().mean() < 0.1 * expected.std()
    assert sum(weight.dtype == np.int8 and weight.ndim > 1 for weight in get_constants(content).values()) == 3


def test_accuracy_on_digits_is_kept():
    """The bundled weights on another dataset, with post-training quantization and quantization-aware training."""

    task = load_task("deep-convnet", device="cpu")
    _, digits, _, _ = labeled_images.load_labeled_images("digits", 0.2)
    digits = digits.decode(task.transform)
    images, targets = task.normalize_images(digits.images), digits.targets
    shape = tuple(images.shape[1:])

    def count_correct(network):
        with torch.no_grad():
            return (network(images).argmax(1) == targets).sum().item()

    network = task.inference_model.eval()
    expected = count_correct(network)
    assert expected > 0.9 * len(targets)
    assert count_correct(OnnxNetwork(quantize(network, shape, images[:200].split(50), {}))) >= expected - 2
    aware = prepare_fake_quantization(network)
    optimizer = torch.optim.SGD(aware.parameters(), lr=1e-3)
    for batch, labels in zip(images.split(40), targets.split(40), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(aware(batch), labels).backward()
        optimizer.step()
    exported = OnnxNetwork(export_int8(aware, shape, {}))
    assert count_correct(exported) >= expected - 2
    with torch.no_grad():
        assert (exported(images).argmax(1) != aware.eval()(images).argmax(1)).sum() <= 2


@pytest.mark.slow
def test_mnist_accuracy_drops_by_at_most_a_tenth_of_a_percent(mnist_folder):

    task = load_task("deep-convnet", device="cpu")
    train, _val, test, _ = labeled_images.load_labeled_images("mnist", 0.2)
    test = test.decode(task.transform)
    images, targets = task.normalize_images(test.images[:2000]), test.targets[:2000]
    calibration = task.normalize_images(train.decode(task.transform).images[:200]).split(100)
    network = task.inference_model.eval().requires_grad_(False)
    quantized = OnnxNetwork(quantize(network, (1, 28, 28), calibration, {}))
    num_correct, num_correct_int8 = ((n(images).argmax(1) == targets).sum().item() for n in (network, quantized))
    assert num_correct_int8 >= num_correct - 2


def test_unsupported_networks_are_rejected():
    images = [torch.randn(2, 1, 2, 2)]
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(Error, match="no images to calibrate"):
        quantize(network, (1, 2, 2), [], {})
    with pytest.raises(Error, match="ranges of the network are not set"):
        export_int8(prepare_fake_quantization(network), (1, 2, 2), {})
    make, shape = SMALL["binary_convnet"]
    with pytest.raises(Error, match=r"^2 \(Sign\) is a 1-bit layer.* export the run as binary or onnx"):
        quantize(make(), shape, images, {})
    branching = nn.Sequential(nn.Sequential(FunctionLayer(lambda x: x if x.sum() > 0 else -x)), network)
    with pytest.raises(Error, match=r"^0.0 \(FunctionLayer\) cannot be quantized: .*control flow"):
        quantize(branching, (1, 2, 2), images, {})
