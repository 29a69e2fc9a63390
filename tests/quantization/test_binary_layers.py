"""1-bit layers: gradients, and equality of packed and simulated layers bit for bit."""

import json
import logging
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import check_task
import fukami as package
from fukami.classification.binary import BinaryDeepConvNet
from fukami.classification.deep_convnet import DeepConvNet
from fukami.engine.load_run import load_task
from fukami.errors import Error
from fukami.layers import binary
from fukami.layers.binary import BinaryConv2d, BinaryLinear, Sign
from fukami.models import binary_convnet, binary_deep_convnet, binary_resnet18, deep_convnet
from fukami.quantization import binary_layers, binary_reference
from fukami.quantization.binary_layers import PackedLayer, PackedPool, PackedSign, pack_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "cpu"])
def kernels(request, monkeypatch):
    """The reference kernels in plain torch, and the numba kernels."""
    module = binary_reference if request.param == "reference" else pytest.importorskip("fukami.quantization.binary_cpu")
    monkeypatch.setattr(binary_layers, "get_kernels", lambda device: module)
    return module


def randomize(network):
    """Set random statistics, scales of both signs, thresholds and latent weights, as after training."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean, std=3)
            nn.init.uniform_(layer.running_var, 0.5, 30)
        elif isinstance(layer, Sign) and layer.threshold is not None:
            nn.init.normal_(layer.threshold, std=0.3)
        elif isinstance(layer, BinaryConv2d | BinaryLinear):
            nn.init.uniform_(layer.weight, -1, 1)
    return network.eval()


# training


def test_sign_and_its_gradient():
    """The sign of 0 is 1; the gradient passes only in [-1, 1] (Courbariaux et al. 2016, equation 4)."""
    x = torch.tensor([-2.0, -1.0, -0.3, -0.0, 0.0, 0.7, 1.0, 1.1], requires_grad=True)
    y = binary.binarize(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    (y * torch.arange(1.0, 9.0)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


def test_convolution_values():
    """Signs of inputs times signs of weights, scaled by the mean absolute latent weight."""
    layer = BinaryConv2d(1, 1, 2, scaling_factors=True)
    layer.weight.data = torch.tensor([[[[0.5, -0.1], [-0.2, 1.0]]]])
    x = torch.tensor([[[[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]]]])
    # (+ -)·(1 1) = 0, (- +)·(-1 1) = 2; (+ -)·(1 -1) = 2, (- +)·(1 1) = 0; times (0.5 + 0.1 + 0.2 + 1) / 4
    torch.testing.assert_close(layer(x), torch.tensor([[[[0.9, 0.9]]]]))
    layer.scaling_factors = False
    assert layer(x).tolist() == [[[[2.0, 2.0]]]]


def test_gradient_of_latent_weights():
    """Without scaling factors it equals that of the signs, for latent weights in [-1, 1] (BNN, algorithm 1)."""
    layer = BinaryLinear(3, 2)
    layer.weight.data = torch.tensor([[0.2, -1.0, 0.9], [-0.4, 1.0, 0.0]])
    x = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
    (layer(x) * torch.tensor([[1.0, 2.0], [3.0, 5.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[4.0, 2.0, -2.0], [7.0, 3.0, -3.0]]


def test_gradient_of_thresholds():
    """Each channel has a threshold, whose gradient is the negative sum of the input gradient."""
    layer = Sign(2)
    layer.threshold.data = torch.tensor([0.5, -2.0])
    x = torch.tensor([[[[0.4, 0.6]], [[-2.5, -1.5]]]])
    y = layer(x)
    assert y.tolist() == [[[[-1, 1]], [[-1, 1]]]]
    y.sum().backward()
    assert layer.threshold.grad.tolist() == [-2, -2]


@pytest.mark.parametrize(
    "options", [{}, {"scaling_factors": True, "learned_thresholds": True}], ids=["plain", "scaled"]
)
def test_training_clips_latent_weights(options, tmp_path):
    """A high learning rate would drive them far away, but they stay in [-1, 1]; gradients at the bound pass."""
    recipe = BinaryDeepConvNet(epochs=1, lr=0.5, batch_size=100, widths=(8,) * 6, hidden=16, **options)
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    latent = binary.get_latent_weights(load_task(tmp_path / "run", device="cpu").model)
    assert len(latent) == 6  # the first and the last of eight layers have full precision
    largest = torch.stack([weight.abs().max() for weight in latent])
    assert (largest == 1).any()
    assert (largest <= 1).all()
    weight = torch.ones(1, 1, requires_grad=True)  # at the bound, the gradient passes
    binary.binarize(weight).sum().backward()
    assert weight.grad.item() == 1


def test_end_layers_in_float_or_binary():
    for make in (binary_convnet, binary_deep_convnet):
        layers = [layer for layer in make() if isinstance(layer, nn.Conv2d | nn.Linear)]
        kinds = [isinstance(layer, BinaryConv2d | BinaryLinear) for layer in layers]
        assert kinds == [False, *[True] * (len(layers) - 2), False]
        with_bits = make(end_layers="binary")
        assert all(
            isinstance(x, BinaryConv2d | BinaryLinear) for x in with_bits if isinstance(x, nn.Conv2d | nn.Linear)
        )
        with pytest.raises(ValueError, match="not 'half'"):
            make(end_layers="half")


def test_every_convolution_of_the_resnet_has_a_shortcut():
    """A block adds the binary convolution to its real input (Bi-Real Net, Liu et al. 2018, figure 3 b)."""
    network = randomize(binary_resnet18(5))
    blocks = [block for stage in (1, 2, 3, 4) for block in network.get_submodule(f"layer{stage}")]
    assert len(blocks) == 16
    x = torch.randn(2, 64, 8, 8)
    block = blocks[0]
    signs = torch.where(x >= 0, 1.0, -1.0)
    weight = torch.where(block.residual[1].weight >= 0, 1.0, -1.0)
    expected = block.residual[2](F.conv2d(signs, weight, padding=1)) + x
    torch.testing.assert_close(block(x), expected)


def test_overfits_eight_digits():
    """Training works through the signs, with scaling factors and thresholds."""
    check_task.check_overfits(
        lambda **fields: BinaryDeepConvNet(scaling_factors=True, learned_thresholds=True, **fields)
    )


def test_binary_deep_convnet_has_the_fields_of_deep_convnet():
    """Only optimization settings and layer widths differ."""
    binary_fields, fields = vars(BinaryDeepConvNet()), vars(DeepConvNet())
    assert fields.keys() - binary_fields.keys() == {"batch_norm"}  # required by the signs
    differing = {name for name, value in fields.items() if binary_fields.get(name, value) != value}
    assert differing == {"epochs", "optimizer", "lr", "weight_decay", "dropout", "widths", "hidden"}


# kernels


@pytest.mark.parametrize("channels", [1, 31, 64, 65, 200])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [
    ((5, 7), 3, 1, 1), ((9, 4), 3, 2, 1), ((7, 7), 3, 3, 0), ((6, 5), 5, 2, 2), ((4, 4), 1, 1, 0), ((8, 3), 2, 1, 1),
    ((16, 16), 3, 1, 2),
])  # fmt: skip
@pytest.mark.parametrize("outputs", [1, 16, 70])
def test_packed_convolution_equals_convolution(kernels, channels, size, kernel, stride, padding, outputs):
    """Integer sums without a following sign, and signs after batch normalization."""
    layer = BinaryConv2d(channels, outputs, kernel, stride, padding)
    following = [nn.BatchNorm2d(outputs), Sign(outputs)]
    randomize(nn.Sequential(layer, *following))
    signs = torch.randint(0, 2, (3, channels, *size)).float() * 2 - 1
    bits = binary_reference.pack_words(signs.permute(0, 2, 3, 1) > 0)
    with torch.no_grad():
        sums = layer(signs)
        expected = following[1](following[0](sums))
    assert torch.equal(PackedLayer(layer, [], channels)(bits), sums)
    assert torch.equal(
        PackedLayer(layer, following, channels)(bits), binary_reference.pack_words(expected.permute(0, 2, 3, 1) > 0)
    )


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (63, 10), (200, 65)])
@pytest.mark.parametrize("pixels", [1, 6])
def test_packed_linear_layer_equals_linear_layer(kernels, inputs, outputs, pixels):
    """Also after flattening, where the channels of each pixel have their own words."""
    layer = BinaryLinear(inputs * pixels, outputs, scaling_factors=True)
    following = [nn.BatchNorm1d(outputs), Sign()]
    randomize(nn.Sequential(layer, *following))
    signs = torch.randint(0, 2, (5, inputs, pixels)).float() * 2 - 1
    bits = binary_reference.pack_words(signs.mT > 0).flatten(1)
    with torch.no_grad():
        scores = layer(signs.flatten(1))
        expected = following[1](following[0](scores))
    assert torch.equal(PackedLayer(layer, [], inputs)(bits), scores)
    assert torch.equal(PackedLayer(layer, following, inputs)(bits), binary_reference.pack_words(expected > 0))


@pytest.mark.parametrize("channels", [3, 64, 77])
def test_packed_sign_equals_sign_after_batch_norm(kernels, channels):
    """Bit for bit, also for the floats next to a threshold and for special values."""
    layers = [nn.BatchNorm2d(channels), Sign(channels)]
    randomize(nn.Sequential(*layers))
    norm = layers[0]
    with torch.no_grad():
        norm.weight[0], norm.weight[1] = 0.0, 1e-30  # a constant channel, and one with a tiny slope
        edges = (
            norm.running_mean + (layers[1].threshold - norm.bias) * (norm.running_var + norm.eps).sqrt() / norm.weight
        )
        near = torch.stack([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1), -edges]).nan_to_num(0.5)
        x = torch.cat(
            [near, torch.randn(6, channels), torch.tensor([[0.0], [-0.0], [1e-41], [1e38]]).expand(4, channels)]
        )
        x = x.view(2, 7, 1, channels).permute(0, 3, 1, 2)
        expected = layers[1](norm(x))
    assert torch.equal(PackedSign(layers, channels)(x), binary_reference.pack_words(expected.permute(0, 2, 3, 1) > 0))


@pytest.mark.parametrize(("size", "window", "stride"), [((4, 4), 2, 2), ((7, 5), 2, 2), ((7, 6), 3, 2)])
def test_packed_pooling_equals_sign_of_the_maximum(kernels, size, window, stride):
    """If the sign falls with the sum, the maximum sum has the minimum sign."""
    sums, falling = torch.randn(2, 70, *size), torch.rand(70) < 0.5
    direction = (1 - 2 * falling.float()).view(-1, 1, 1)
    signs = binary_reference.pack_words((sums * direction >= 0.3).permute(0, 2, 3, 1))
    largest = F.max_pool2d(sums, window, stride) * direction >= 0.3
    pooled = PackedPool(nn.MaxPool2d(window, stride), falling)(signs)
    assert torch.equal(pooled, binary_reference.pack_words(largest.permute(0, 2, 3, 1)))


def test_compiled_kernels_are_selected():
    """The reference kernels would return the same bits."""
    module = pytest.importorskip("fukami.quantization.binary_cpu")
    binary_layers.get_kernels.cache_clear()
    assert binary_layers.get_kernels(CPU) is module


def test_population_count():
    numbers = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x5555555555555555])
    assert binary_reference.popcount(numbers).tolist() == [0, 1, 64, 63, 1, 32]


# whole networks

NETWORKS = {
    "convnet": lambda **o: binary_convnet(10, size=16, widths=(32, 70), hidden=(40,), **o),
    "deep_convnet": lambda **o: binary_deep_convnet(10, channels=3, size=16, **o),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ends", ["float", "binary"])
@pytest.mark.parametrize(
    "options", [{}, {"scaling_factors": True, "learned_thresholds": True}], ids=["plain", "scaled"]
)
def test_packed_network_is_equal_bit_for_bit(kernels, name, ends, options):
    network = randomize(NETWORKS[name](end_layers=ends, **options))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = network(images)
        predictions = pack_model(network)(images)
    assert expected.unique().numel() > 3
    assert torch.equal(predictions, expected)


@pytest.mark.parametrize(("size", "layout"), [((64, 64), "contiguous_format"), ((65, 37), "channels_last")])
def test_packed_resnet_is_equal_bit_for_bit(kernels, size, layout):
    network = randomize(binary_resnet18(5, scaling_factors=True, learned_thresholds=True)).to(
        memory_format=getattr(torch, layout)
    )
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(pack_model(network)(images), network(images))


def test_unsupported_networks_are_rejected():
    with pytest.raises(Error, match=r"the first is 0 \(StemConv2d\), of full precision"):
        pack_model(deep_convnet())
    with pytest.raises(Error, match="1×1 is too small for a kernel of 3×3"):
        PackedLayer(BinaryConv2d(8, 8, 3), [], 8)(torch.zeros(1, 1, 1, 1, dtype=torch.long))


def test_fallback_without_a_compiler_warns_once(monkeypatch, caplog):
    """The reference kernels return the same predictions, with one warning."""
    monkeypatch.setitem(sys.modules, "fukami.quantization.binary_cpu", None)
    binary_layers.get_kernels.cache_clear()
    network = randomize(NETWORKS["convnet"]())
    images = torch.randn(2, 3, 16, 16)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert torch.equal(pack_model(network)(images), network(images))
        pack_model(network)(images)
    (message,) = caplog.messages
    assert "they run in plain torch" in message
    assert "pip install 'fukami[binary]'" in message
    binary_layers.get_kernels.cache_clear()


# runs


def test_exported_run_is_small_and_predicts_the_same(fukami, binarized, digit_files, tmp_path):
    """28 times smaller; all ways of evaluation give the same metrics and probabilities."""
    exported = fukami("export", binarized, "--to", "binary")
    assert exported.status == 0, exported.err
    (summary,) = exported.json
    assert summary["run"] == "runs/digits-binary"
    assert summary["bytes"] == (tmp_path / summary["file"]).stat().st_size
    assert summary["compression_ratio"] > 20
    commands = [
        [binarized],
        [binarized, "--precision", "binary"],
        [summary["run"]],
        [summary["run"], "--precision", "binary"],
    ]
    evaluated = [fukami("eval", *arguments).json[0] for arguments in commands]
    assert [metrics["precision"] for metrics in evaluated] == ["float32", "binary", "binary", "binary"]
    assert len({(metrics["accuracy"], metrics["loss"], metrics["count"]) for metrics in evaluated}) == 1
    files = sorted(digit_files.rglob("*.png"))[:6]
    assert fukami("predict", "runs/digits-binary", *files).json == fukami("predict", binarized, *files).json
    record = json.loads((tmp_path / "runs/digits-binary/recipe.json").read_text())
    assert record["exported"] == {"to": "binary", "from": str(binarized)}
    assert sorted(path.name for path in (tmp_path / "runs/digits-binary").iterdir()) == [
        "recipe.json",
        "weights.safetensors",
    ]


def test_exported_run_has_a_fixed_precision(fukami, binarized, tmp_path):
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    other_precision = fukami("eval", "bits", "--precision", "float16")
    assert other_precision.status == 2
    assert "exported to binary and cannot be computed in float16" in other_precision.err
    again = fukami("export", "bits", "--to", "binary", "--out", "more")
    assert again.status == 2
    assert "exported to binary already" in again.err
    used_folder = fukami("export", binarized, "--to", "binary", "--out", "bits")
    assert used_folder.status == 2
    assert used_folder.err.endswith("not empty; use another --out\n")


def test_run_of_full_precision_has_no_binary_export(fukami, trained):
    rejected = fukami("export", trained, "--to", "binary")
    assert rejected.status == 1
    assert "0 (StemConv2d), of full precision" in rejected.err
    assert not rejected.out


def test_corrupted_export_is_rejected(fukami, binarized, tmp_path):
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    record = json.loads((tmp_path / "bits/recipe.json").read_text())
    (tmp_path / "bits/recipe.json").write_text(json.dumps(record | {"exported": {"to": "ternary"}}))
    rejected = fukami("eval", "bits")
    assert rejected.status == 1
    assert "exported to 'ternary'" in rejected.err
    (tmp_path / "bits/recipe.json").write_text(json.dumps(record))
    (tmp_path / "bits/weights.safetensors").write_bytes(b"\x00" * 100)
    rejected = fukami("eval", "bits")
    assert rejected.status == 1
    assert "weights.safetensors is corrupted" in rejected.err


@torch.inference_mode()
def test_a_packed_fully_connected_layer_rejects_another_number_of_inputs():
    """The kernels would read beyond the words of the image."""
    packed = pack_model(binary_convnet(10, size=32, widths=(32, 70), hidden=(40,)).eval())
    packed(torch.randn(1, 3, 32, 32))
    for size in (28, 40):
        with pytest.raises(Error, match="words and needs"):
            packed(torch.randn(1, 3, size, size))
