"""Layers of one bit: their gradients by hand, and their packed form bit for bit as the floats they stand for."""

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


@pytest.fixture(params=["words", "cpu"])
def kernels(request, monkeypatch):
    """The kernels in plain torch, and those that numba compiles."""
    module = binary_reference if request.param == "words" else pytest.importorskip("fukami.quantization.binary_cpu")
    monkeypatch.setattr(binary_layers, "get_kernels", lambda device: module)
    return module


def randomise(network):
    """Statistics, scales of both signs, thresholds and latent weights such as a training leaves."""
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
    """1 at 0; the gradient passes between -1 and 1, both included, and nowhere else (BNN, equation 4)."""
    x = torch.tensor([-2.0, -1.0, -0.3, -0.0, 0.0, 0.7, 1.0, 1.1], requires_grad=True)
    y = binary.binarize(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    (y * torch.arange(1.0, 9.0)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


def test_convolution_by_hand():
    """Four signs of inputs under four signs of weights, scaled by the mean size of the latent weights."""
    layer = BinaryConv2d(1, 1, 2, scaling_factors=True)
    layer.weight.data = torch.tensor([[[[0.5, -0.1], [-0.2, 1.0]]]])
    x = torch.tensor([[[[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]]]])
    # + - over 1 1 is 0, - + over -1 1 is 2; + - over 1 -1 is 2, - + over 1 1 is 0; times (0.5 + 0.1 + 0.2 + 1) / 4
    torch.testing.assert_close(layer(x), torch.tensor([[[[0.9, 0.9]]]]))
    layer.scaling_factors = False
    assert layer(x).tolist() == [[[[2.0, 2.0]]]]


def test_the_gradient_reaches_the_latent_weights():
    """Without scaling it is that of the signs where a latent weight lies in its bounds (BNN, algorithm 1)."""
    layer = BinaryLinear(3, 2)
    layer.weight.data = torch.tensor([[0.2, -1.0, 0.9], [-0.4, 1.0, 0.0]])
    x = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
    (layer(x) * torch.tensor([[1.0, 2.0], [3.0, 5.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[4.0, 2.0, -2.0], [7.0, 3.0, -3.0]]


def test_thresholds_are_learned():
    """Each channel's sign turns at its threshold, whose gradient is minus that of what passes."""
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
def test_training_keeps_the_latent_weights_in_their_bounds(options, tmp_path):
    """At a rate that would drive them far away, they end between -1 and 1, some at the bound, and turn back."""
    recipe = BinaryDeepConvNet(epochs=1, lr=0.5, batch_size=100, widths=(8,) * 6, hidden=16, **options)
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    latent = binary.get_latent_weights(package.load(tmp_path / "run", device="cpu").model)
    assert len(latent) == 6  # of eight layers the first and the last have full precision
    largest = torch.stack([weight.abs().max() for weight in latent])
    assert (largest == 1).any()
    assert (largest <= 1).all()
    weight = torch.ones(1, 1, requires_grad=True)  # at the bound: a gradient turns it back
    binary.binarize(weight).sum().backward()
    assert weight.grad.item() == 1


def test_ends_of_full_precision_or_of_one_bit():
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


def test_every_convolution_of_the_resnet_has_its_shortcut():
    """A block is its input, in full precision, plus what the signs say (Bi-Real Net, figure 3 b)."""
    network = randomise(binary_resnet18(5))
    blocks = [block for stage in (1, 2, 3, 4) for block in network.get_submodule(f"layer{stage}")]
    assert len(blocks) == 16
    x = torch.randn(2, 64, 8, 8)
    block = blocks[0]
    signs = torch.where(x >= 0, 1.0, -1.0)
    weight = torch.where(block.residual[1].weight >= 0, 1.0, -1.0)
    expected = block.residual[2](F.conv2d(signs, weight, padding=1)) + x
    torch.testing.assert_close(block(x), expected)


def test_eight_digits_are_learned_by_heart():
    """Through the signs, with scaling factors and thresholds."""
    check_task.check_overfits(
        lambda **fields: BinaryDeepConvNet(scaling_factors=True, learned_thresholds=True, **fields)
    )


def test_the_binarized_deep_convnet_sees_what_the_other_does():
    """Only how it is trained, how wide it is, and its bits differ."""
    ours, theirs = vars(BinaryDeepConvNet()), vars(DeepConvNet())
    assert theirs.keys() - ours.keys() == {"batch_norm"}  # signs need it, so nobody chooses
    differ = {name for name, value in theirs.items() if ours.get(name, value) != value}
    assert differ == {"epochs", "optimizer", "lr", "weight_decay", "dropout", "widths", "hidden"}


# kernels


@pytest.mark.parametrize("channels", [1, 31, 64, 65, 200])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [
    ((5, 7), 3, 1, 1), ((9, 4), 3, 2, 1), ((7, 7), 3, 3, 0), ((6, 5), 5, 2, 2), ((4, 4), 1, 1, 0), ((8, 3), 2, 1, 1),
    ((16, 16), 3, 1, 2),
])  # fmt: skip
@pytest.mark.parametrize("outputs", [1, 16, 70])
def test_packed_convolution_is_the_convolution(kernels, channels, size, kernel, stride, padding, outputs):
    """Whole numbers without a sign behind, and signs behind a normalisation, as float32 convolutions give them."""
    layer = BinaryConv2d(channels, outputs, kernel, stride, padding)
    step = [nn.BatchNorm2d(outputs), Sign(outputs)]
    randomise(nn.Sequential(layer, *step))
    signs = torch.randint(0, 2, (3, channels, *size)).float() * 2 - 1
    bits = binary_reference.pack_words(signs.permute(0, 2, 3, 1) > 0)
    with torch.no_grad():
        sums = layer(signs)
        answer = step[1](step[0](sums))
    assert torch.equal(PackedLayer(layer, [], channels)(bits), sums)
    assert torch.equal(
        PackedLayer(layer, step, channels)(bits), binary_reference.pack_words(answer.permute(0, 2, 3, 1) > 0)
    )


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (63, 10), (200, 65)])
@pytest.mark.parametrize("pixels", [1, 6])
def test_packed_affine_layer_is_the_affine_layer(kernels, inputs, outputs, pixels):
    """Also behind a flattening, where the channels of each pixel have words of their own."""
    layer = BinaryLinear(inputs * pixels, outputs, scaling_factors=True)
    step = [nn.BatchNorm1d(outputs), Sign()]
    randomise(nn.Sequential(layer, *step))
    signs = torch.randint(0, 2, (5, inputs, pixels)).float() * 2 - 1
    bits = binary_reference.pack_words(signs.mT > 0).flatten(1)
    with torch.no_grad():
        scores = layer(signs.flatten(1))
        answer = step[1](step[0](scores))
    assert torch.equal(PackedLayer(layer, [], inputs)(bits), scores)
    assert torch.equal(PackedLayer(layer, step, inputs)(bits), binary_reference.pack_words(answer > 0))


@pytest.mark.parametrize("channels", [3, 64, 77])
def test_packed_sign_is_the_sign_of_the_normalisation(kernels, channels):
    """Bit for bit, for every kind of float: an edge lies between two neighbours of them."""
    step = [nn.BatchNorm2d(channels), Sign(channels)]
    randomise(nn.Sequential(*step))
    norm = step[0]
    with torch.no_grad():
        norm.weight[0], norm.weight[1] = 0.0, 1e-30  # the first has one answer, the second hardly turns
        edges = norm.running_mean + (step[1].threshold - norm.bias) * (norm.running_var + norm.eps).sqrt() / norm.weight
        near = torch.stack([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1), -edges]).nan_to_num(0.5)
        x = torch.cat(
            [near, torch.randn(6, channels), torch.tensor([[0.0], [-0.0], [1e-41], [1e38]]).expand(4, channels)]
        )
        x = x.view(2, 7, 1, channels).permute(0, 3, 1, 2)
        expected = step[1](norm(x))
    assert torch.equal(PackedSign(step, channels)(x), binary_reference.pack_words(expected.permute(0, 2, 3, 1) > 0))


@pytest.mark.parametrize(("size", "window", "stride"), [((4, 4), 2, 2), ((7, 5), 2, 2), ((7, 6), 3, 2)])
def test_packed_pooling_is_the_sign_of_the_largest_sum(kernels, size, window, stride):
    """Where the sign falls with the sum, the largest sum has the smallest sign."""
    sums, falling = torch.randn(2, 70, *size), torch.rand(70) < 0.5
    direction = (1 - 2 * falling.float()).view(-1, 1, 1)
    signs = binary_reference.pack_words((sums * direction >= 0.3).permute(0, 2, 3, 1))
    largest = F.max_pool2d(sums, window, stride) * direction >= 0.3
    found = PackedPool(nn.MaxPool2d(window, stride), falling)(signs)
    assert torch.equal(found, binary_reference.pack_words(largest.permute(0, 2, 3, 1)))


def test_the_compiled_kernels_are_those_that_answer():
    """Not plain torch, which would give the same bits."""
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
def test_packed_network_answers_bit_for_bit(kernels, name, ends, options):
    network = randomise(NETWORKS[name](end_layers=ends, **options))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = network(images)
        found = pack_model(network)(images)
    assert expected.unique().numel() > 3
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("size", "layout"), [((64, 64), "contiguous_format"), ((65, 37), "channels_last")])
def test_packed_resnet_answers_bit_for_bit(kernels, size, layout):
    network = randomise(binary_resnet18(5, scaling_factors=True, learned_thresholds=True)).to(
        memory_format=getattr(torch, layout)
    )
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(pack_model(network)(images), network(images))


def test_what_cannot_be_packed_is_named():
    with pytest.raises(Error, match=r"the first is 0 \(StemConv2d\), of full precision"):
        pack_model(deep_convnet())
    with pytest.raises(Error, match="1×1 is too small for a kernel of 3×3"):
        PackedLayer(BinaryConv2d(8, 8, 3), [], 8)(torch.zeros(1, 1, 1, 1, dtype=torch.long))


def test_without_a_compiler_plain_torch_answers_and_says_so_once(monkeypatch, caplog):
    """One clear message, and the same answers."""
    monkeypatch.setitem(sys.modules, "fukami.quantization.binary_cpu", None)
    binary_layers.get_kernels.cache_clear()
    network = randomise(NETWORKS["convnet"]())
    images = torch.randn(2, 3, 16, 16)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert torch.equal(pack_model(network)(images), network(images))
        pack_model(network)(images)
    (message,) = caplog.messages
    assert "plain torch computes them" in message
    assert "pip install numba" in message
    binary_layers.get_kernels.cache_clear()


# runs


def test_exported_run_is_small_and_answers_the_same(fukami, binarized, digit_files, tmp_path):
    """28 times smaller; the same metrics and probabilities, whichever way they are asked for."""
    exported = fukami("export", binarized, "--to", "binary")
    assert exported.status == 0, exported.err
    (facts,) = exported.json
    assert facts["run"] == "runs/digits-binary"
    assert facts["bytes"] == (tmp_path / facts["file"]).stat().st_size
    assert facts["smaller"] > 20
    ways = [[binarized], [binarized, "--precision", "binary"], [facts["run"]], [facts["run"], "--precision", "binary"]]
    judged = [fukami("eval", *words).json[0] for words in ways]
    assert [each["precision"] for each in judged] == ["float32", "binary", "binary", "binary"]
    assert len({(each["accuracy"], each["loss"], each["count"]) for each in judged}) == 1
    files = sorted(digit_files.rglob("*.png"))[:6]
    assert fukami("predict", "runs/digits-binary", *files).json == fukami("predict", binarized, *files).json
    record = json.loads((tmp_path / "runs/digits-binary/recipe.json").read_text())
    assert record["exported"] == {"to": "binary", "from": str(binarized)}
    assert sorted(path.name for path in (tmp_path / "runs/digits-binary").iterdir()) == [
        "recipe.json",
        "weights.safetensors",
    ]


def test_an_exported_run_is_only_computed_as_it_is(fukami, binarized, tmp_path):
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    refused = fukami("eval", "bits", "--precision", "float16")
    assert refused.status == 2
    assert "exported to binary and is computed so, not in float16" in refused.err
    again = fukami("export", "bits", "--to", "binary", "--out", "more")
    assert again.status == 2
    assert "exported to binary already" in again.err
    taken = fukami("export", binarized, "--to", "binary", "--out", "bits")
    assert taken.status == 2
    assert taken.err.endswith("not empty; give another --out\n")


def test_a_run_of_full_precision_has_no_single_bits(fukami, trained):
    refused = fukami("export", trained, "--to", "binary")
    assert refused.status == 1
    assert "0 (StemConv2d), of full precision" in refused.err
    assert not refused.out


def test_a_damaged_export_is_refused(fukami, binarized, tmp_path):
    fukami("export", binarized, "--to", "binary", "--out", "bits")
    record = json.loads((tmp_path / "bits/recipe.json").read_text())
    (tmp_path / "bits/recipe.json").write_text(json.dumps(record | {"exported": {"to": "ternary"}}))
    refused = fukami("eval", "bits")
    assert refused.status == 1
    assert "exported to 'ternary'" in refused.err
    (tmp_path / "bits/recipe.json").write_text(json.dumps(record))
    (tmp_path / "bits/weights.safetensors").write_bytes(b"\x00" * 100)
    refused = fukami("eval", "bits")
    assert refused.status == 1
    assert "weights.safetensors is damaged" in refused.err
