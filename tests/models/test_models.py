"""Models: shapes, number of parameters, gradients, and agreement with the papers and with torchvision."""

import ast
import copy
import inspect
import operator
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

from fukami import models
from fukami.engine import recipe
from fukami.layers.binary import Sign
from fukami.layers.meta_device import use_meta_device
from fukami.layers.stem import StemConv2d
from fukami.models import deep_convnet, googlenet, resnet18, resnet20, resnet50, vgg11, vgg16_bn

# Computed from the paper's figure or table where the sum is shown, otherwise published by torchvision.
PARAMETERS = {
    "alexnet": 61_100_840,
    # 3×3 convolutions with batch normalization, then fully connected layers with batch normalization
    "binary_convnet": 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
    + 4 * (128 + 256 + 512)
    + 16 * 512 * 1024
    + 1024 * 1024
    + 4 * 1024
    + 10_250,
    "binary_deep_convnet": 9 * (32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    + 4 * (32 + 64 + 128)
    + 16 * 128 * 128
    + 2 * 128
    + 1290,
    "binary_resnet18": 11_689_512,  # as the network without signs
    "deep_convnet": 123_552,  # 160 + 2320 + 4640 + 9248 + 18496 + 36928 + 51250 + 510
    "googlenet": 6_624_904 + 3_188_968 + 3_191_016,  # aux1: 512 × 128 + 2 × 128 + 2049 × 1024 + 1025 × 1000
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    # stem 3 × 16 × 9 + 2 × 16; stage 1: 6 × (16 × 16 × 9 + 2 × 16); stage 2: (16 + 5 × 32) × 32 × 9 + 6 × 2 × 32;
    # stage 3: (32 + 5 × 64) × 64 × 9 + 6 × 2 × 64; fc 65 × 10
    "resnet20": 464 + 14_016 + 51_072 + 203_520 + 650,
    "resnet32": 269_722 + 2 * 97_216,  # a block more in each stage adds 2 × (2336 + 9280 + 36992)
    "resnet44": 269_722 + 4 * 97_216,
    "resnet56": 269_722 + 6 * 97_216,
    "resnet110": 269_722 + 15 * 97_216,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}
CIFAR = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}  # table 6, millions
NAMES = list(PARAMETERS)
# tested in test_faster_rcnn.py and test_rcnn.py
DETECTORS = ["faster_rcnn_resnet50_fpn", "faster_rcnn_vgg16", "rcnn_alexnet", "rcnn_vgg16"]
SEGMENTERS = [  # tested in test_segmentation.py
    *(f"fcn{stride}s_vgg16" for stride in (8, 16, 32)), "fcn_resnet50", "fcn_resnet101", "segnet_basic", "segnet_vgg16",
]  # fmt: skip
GENERATORS = ["dcgan_discriminator", "dcgan_generator"]  # tested in test_dcgan.py
Q_NETWORKS = ["dqn"]  # tested in test_dqn.py
CAPTIONERS = ["show_and_tell"]  # tested in captioning/test_task.py
STYLE_NETWORKS = ["neural_style_vgg16", "neural_style_vgg19"]  # tested in test_neural_style.py
TORCHVISION = [name for name in NAMES if name not in CIFAR and "convnet" not in name and "binary" not in name]
# the names of the other models contain their depth
DEPTHS = {"alexnet": 8, "deep_convnet": 8, "binary_deep_convnet": 8, "binary_convnet": 9, "googlenet": 22}
LAYER_TYPES = (
    nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.Flatten, nn.Dropout, nn.Identity, Sign,
)  # fmt: skip


def build_on_meta(name, **options):
    """Build a model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return getattr(models, name)(**options)


def build_small(name):
    """Build a model for 32×32 images with few hidden units and without dropout."""
    options = {"num_classes": 5, "channels": 3, "size": 32, "hidden": 24, "dropout": 0.0, "dropout_aux": 0.0}
    if name == "alexnet":
        options["size"] = 63
    if name == "binary_convnet":
        options |= {"widths": (16, 16, 32, 32), "hidden": (24, 24)}
    model = getattr(models, name)
    return model(**{key: options[key] for key in inspect.signature(model).parameters if key in options})


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def as_list(outputs):
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def test_all_models_are_tested():
    assert sorted(models.__all__) == sorted(
        [*NAMES, *DETECTORS, *SEGMENTERS, *STYLE_NETWORKS, *CAPTIONERS, *GENERATORS, *Q_NETWORKS, "alphago_zero"]
    )


def test_models_are_imported_on_first_use():
    """The names for type checkers are those that the package imports, each from its file."""
    for name in models.__all__:
        assert getattr(models, name).__name__ == name
    assert {*models.__all__} <= {*dir(models)}
    tree = ast.parse(Path(models.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {node.module.rpartition(".")[2]: tuple(alias.name for alias in node.names) for node in block.body}
    assert typed == models._MODELS
    assert sorted(models.__all__) == sorted(name for names in typed.values() for name in names)
    with pytest.raises(AttributeError, match="no attribute 'resnet19'; it has alexnet"):
        models.resnet19  # noqa: B018


def test_networks_on_the_meta_device_skip_their_initialization():
    """They have the same tensors otherwise; afterwards, tensors are on the CPU and get values again."""
    with use_meta_device():
        network = models.deep_convnet()
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    expected = models.deep_convnet().state_dict()
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert torch.zeros(100).normal_().std() > 0.5


def test_number_of_parameters_of_detectors():
    """Compare with a sum for VOC's 20 classes and with torchvision's published number."""
    expected_vgg16 = (
        14_714_688 + (9 * 512 * 512 + 512 + 513 * 9 * 5) + (25_088 + 1) * 4096 + 4097 * 4096 + 4097 * 21 * 5
    )
    with torch.device("meta"):
        assert count_parameters(models.faster_rcnn_vgg16(20)) == expected_vgg16
        assert count_parameters(models.faster_rcnn_resnet50_fpn(90)) == 41_755_286


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters(name):
    assert count_parameters(build_on_meta(name)) == PARAMETERS[name]


def test_number_of_parameters_equals_papers():
    for name, millions in CIFAR.items():
        assert PARAMETERS[name] / 1e6 == pytest.approx(millions, abs=0.05 if name == "resnet110" else 0.005)
    assert count_parameters(build_on_meta("googlenet", aux_loss=False)) == 6_624_904
    # option B adds 1×1 convolutions with batch normalization, 16 × 32 + 2 × 32 and 32 × 64 + 2 × 64
    assert count_parameters(build_on_meta("resnet20", shortcut="B")) == PARAMETERS["resnet20"] + 576 + 2176


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients(name):
    torch.manual_seed(0)
    # in training mode, batch normalization cancels the biases before it: those of VGG have no gradient
    network = build_small(name).train(not name.endswith("_bn"))
    side = 63 if name == "alexnet" else 32
    outputs = as_list(network(torch.rand(3, 3, side, side)))
    assert [scores.shape for scores in outputs] == [(3, 5)] * (3 if name == "googlenet" else 1)
    sum(F.cross_entropy(scores, torch.tensor([0, 1, 2])) for scores in outputs).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    if "convnet" not in name:
        assert network.eval()(torch.rand(1, 3, side + 43, side + 8)).shape == (1, 5)  # another size and shape


@pytest.mark.parametrize("name", NAMES)
def test_other_channels_and_classes(name):
    network = build_on_meta(name, num_classes=7, channels=1).eval()
    side = {"deep_convnet": 28, "binary_deep_convnet": 28, "binary_convnet": 32}.get(name, 96)
    assert network(torch.empty(2, 1, side, side, device="meta")).shape == (2, 7)


class LayerTracer(fx.Tracer):
    """Tracer that also treats binary layers as leaf modules."""

    def is_leaf_module(self, module, name):
        return isinstance(module, Sign | nn.Conv2d | nn.Linear) or super().is_leaf_module(module, name)


def compute_depth(traced):
    """Compute the maximum number of layers with weights on a path from the input to the scores."""
    depths = {}
    for node in traced.graph.nodes:
        has_weights = node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Conv2d | nn.Linear)
        depths[node] = has_weights + max((depths[previous] for previous in node.all_input_nodes), default=0)
    return depths[node]


@pytest.mark.parametrize("name", NAMES)
def test_traced_model_has_expected_layers_and_depth(name):
    """The torch.fx graph contains only torch layers, additions, concatenations and the zero padding of option A."""
    network = build_on_meta(name, channels=3)
    side = {"deep_convnet": 28, "binary_deep_convnet": 28, "binary_convnet": 32}.get(name, 64)
    for training in (True, False):
        traced = fx.GraphModule(network, LayerTracer().trace(network.train(training)))
        nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
        layers = [traced.get_submodule(node.target) for node in nodes if node.op == "call_module"]
        functions = {node.target for node in nodes if node.op != "call_module"}
        assert all(isinstance(layer, LAYER_TYPES) for layer in layers)
        assert functions <= {operator.add, torch.cat, *([operator.getitem, F.pad] if name in CIFAR else [])}
        assert type(layers[0]) is StemConv2d
        images = torch.empty(2, 3, side, side, device="meta")
        assert [s.shape for s in as_list(traced(images))] == [s.shape for s in as_list(network(images))]
    assert compute_depth(traced) == (DEPTHS.get(name) or int("".join(filter(str.isdigit, name))))


def randomize(network):
    """Initialize all parameters and statistics randomly, with a scale that preserves the activations' magnitude."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = (6 / layer.weight[0].numel()) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            layer.num_batches_tracked.zero_()
        if getattr(layer, "bias", None) is not None:
            nn.init.uniform_(layer.bias, -0.1, 0.1)


def build_pair(name):
    """Build torchvision's model and ours with the same random weights."""
    torch.manual_seed(0)
    options = {"aux_logits": True, "init_weights": False, "dropout_aux": 0.0} if name == "googlenet" else {}
    if not name.startswith("resnet"):
        options["dropout"] = 0.0
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, **options)
    randomize(theirs.to_empty(device="cpu"))
    own_options = {"dropout": 0.0, "dropout_aux": 0.0} if name == "googlenet" else {}
    ours = build_on_meta(name, **own_options)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return theirs, ours


def assert_equal_scores(ours, theirs):
    """Assert scores equal within 1e-5 of the largest score, and different between images."""
    assert theirs.isfinite().all()
    largest = theirs.abs().max().item()
    assert (theirs[0] - theirs[1]).abs().max() > 1e-3 * largest
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("name", TORCHVISION)
def test_scores_equal_torchvision(name):
    theirs, ours = build_pair(name)
    side = 224 if name in ("googlenet", "resnet50", "vgg16") else 64
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        assert_equal_scores(ours.eval()(images), theirs.eval()(images))


def test_googlenet_training_outputs_equal_torchvision():
    theirs, ours = build_pair("googlenet")
    images = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        expected = theirs.train()(images)
        scores, aux1_scores, aux2_scores = ours.train()(images)
    assert_equal_scores(scores, expected.logits)
    assert_equal_scores(aux1_scores, expected.aux_logits1)
    assert_equal_scores(aux2_scores, expected.aux_logits2)
    assert {m.momentum for m in ours.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_googlenet_without_auxiliary_heads_returns_only_scores():
    network = build_on_meta("googlenet", aux_loss=False)
    assert network.train()(torch.empty(2, 3, 15, 15, device="meta")).shape == (2, 1000)  # minimum size
    network.load_state_dict({k: v for k, v in build_on_meta("googlenet").state_dict().items() if "aux" not in k})


def test_googlenet_with_kernel_size_of_paper():
    network = googlenet(5, kernel_size=5, aux_loss=False).eval()
    names_5x5 = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (5, 5)]
    modules = ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    assert names_5x5 == [f"inception{module}.branch3.1.conv" for module in modules]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    # table 1, row 3a: 16 × 32 filters with 25 weights
    assert network.get_submodule("inception3a.branch3.1.conv").weight.numel() == 12_800
    with pytest.raises(ValueError, match="not 4"):
        googlenet(kernel_size=4)


def test_initialization_equals_torchvision():
    torch.manual_seed(0)
    network = vgg16_bn(hidden=64, size=32)
    assert network.features[3].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(m.bias.any() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert resnet18().layer2[0].conv1.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)
    network = googlenet()
    for layer in (network.conv3.conv, network.fc, network.aux2.fc1):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("size", "inputs"), [(32, 512), (63, 512), (64, 4 * 512), (224, 49 * 512), (448, 49 * 512)])
def test_vgg_classifier_fits_image_size(size, inputs):
    network = build_on_meta("vgg11", size=size)
    assert network.classifier[0].in_features == inputs
    assert network(torch.empty(1, 3, size, size, device="meta")).shape == (1, 1000)


def test_vgg_as_a_linear_probe():
    network = vgg11(4, hidden=0).eval()
    assert set(network.classifier.state_dict()) == {"0.weight", "0.bias"}
    images = torch.rand(2, 3, 64, 64)
    features = network.features(images).mean((2, 3))
    last = network.classifier[0]
    torch.testing.assert_close(network(images), features @ last.weight.T + last.bias)


def test_vgg_rejects_tiny_images():
    with pytest.raises(ValueError, match="at least 32×32, not 31×31"):
        vgg11(size=31)


def test_resnet_stem_for_small_images():
    """Equal to torchvision's without max pooling and with a 3×3 stem; 11,173,962 is the published parameter count."""
    torch.manual_seed(0)
    ours, theirs = resnet18(10, stem="3x3").eval(), torchvision.models.resnet18(num_classes=10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert sum(parameter.numel() for parameter in ours.parameters()) == 11_173_962
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert ours[:4](images).shape == (2, 64, 32, 32)
    with pytest.raises(ValueError, match="not '5x5'"):
        resnet50(stem="5x5")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_recipe_passes_stem_to_model(name):
    for stem, side in (("7x7", 8), ("3x3", 32)):
        network = recipe.get_recipe(name)(stem=stem).build_model(10)
        stem_layers = network[: list(dict(network.named_children())).index("layer1")]
        assert stem_layers(torch.rand(2, 3, 32, 32)).shape == (2, 64, side, side)


def test_resnet_stride_in_selects_strided_convolution():
    """The first block of a stage has stride 2 in the 3×3 convolution, or in the 1×1 convolution before it."""
    torch.manual_seed(0)
    strided_3x3, strided_1x1 = resnet50(9).eval(), resnet50(9, stride_in="1x1").eval()
    strided_1x1.load_state_dict(strided_3x3.state_dict())
    sides = {}
    for network in (strided_3x3, strided_1x1):
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            for layer in (stage[0].conv1, stage[0].conv2):
                layer.register_forward_hook(
                    lambda _, __, out, key=network: sides.setdefault(key, []).append(out.shape[2])
                )
    images = torch.rand(2, 3, 64, 64)
    assert not torch.allclose(strided_3x3(images), strided_1x1(images), rtol=0.01)
    assert sides[strided_3x3] == [16, 16, 16, 8, 8, 4, 4, 2]
    assert sides[strided_1x1] == [16, 16, 8, 8, 4, 4, 2, 2]
    with pytest.raises(ValueError, match="not '2x2'"):
        resnet50(stride_in="2x2")


@pytest.mark.parametrize("side", [8, 7])
def test_resnet_shortcut_a_subsamples_and_pads_channels(side):
    torch.manual_seed(0)
    network = resnet20().eval()
    randomize(network)
    for block, channels in ((network.layer2[0], 16), (network.layer3[0], 32)):
        x = torch.randn(2, channels, side, side)
        half = (side + 1) // 2
        shortcut = torch.zeros(2, 2 * channels, half, half)
        for row in range(half):
            for column in range(half):
                shortcut[:, channels // 2 : channels // 2 + channels, row, column] = x[:, :, 2 * row, 2 * column]
        residual = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        torch.testing.assert_close(block(x), (residual + shortcut).relu())
    assert not any("downsample" in name for name in network.state_dict())


def test_resnet_shortcut_b_is_convolution():
    names = set(build_on_meta("resnet20", shortcut="B").state_dict()) - set(build_on_meta("resnet20").state_dict())
    assert {name.rsplit(".", 1)[0] for name in names} == {
        f"layer{stage}.0.downsample.{part}" for stage in (2, 3) for part in (0, 1)
    }
    with pytest.raises(ValueError, match="not 'C'"):
        resnet20(shortcut="C")


def test_deep_convnet_equals_figure():
    """The result equals that of the book's layer order, conv - relu - conv - relu - pool."""
    torch.manual_seed(0)
    network = deep_convnet().eval()
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    images = torch.rand(4, 1, 28, 28)
    x, sides = images, []
    for index, layer in enumerate(layers[:6]):
        x = F.conv2d(x, layer.weight, layer.bias, padding=2 if index == 3 else 1).relu()
        if index % 2:
            x = F.max_pool2d(x, 2)
            sides.append(x.shape[-1])
    assert sides == [14, 8, 4]
    x = F.linear(x.flatten(1), layers[6].weight, layers[6].bias).relu()
    torch.testing.assert_close(network(images), F.linear(x, layers[7].weight, layers[7].bias))


def test_deep_convnet_uses_he_initialization():
    """The standard deviation is sqrt(2 / fan-in), with the fan-ins 9, 144, 144, 288, 288, ... of the book."""
    torch.manual_seed(0)
    layers = [layer for layer in deep_convnet(hidden=5000) if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, fan_in in zip(layers, [9, 144, 144, 288, 288, 576, 1024, 5000], strict=True):
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
        assert not layer.bias.any()


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 3, 4), (8, 1, 2), (65, 1, 100)])
def test_deep_convnet_supports_other_image_sizes(size, channels, classes):
    assert deep_convnet(classes, size=size, channels=channels)(torch.rand(2, channels, size, size)).shape == (
        2,
        classes,
    )


def test_deep_convnet_rejects_tiny_images():
    with pytest.raises(ValueError, match="at least 4×4"):
        deep_convnet(size=3)


def test_stem_padding_does_not_change_result(monkeypatch):
    """Run the CUDA path on the CPU: padding to eight channels gives the same convolution."""
    torch.manual_seed(0)
    stem = StemConv2d(3, 6, 3, stride=2, padding=1)
    images = torch.rand(2, 3, 9, 9)
    expected = F.conv2d(images, stem.weight, stem.bias, stride=2, padding=1)
    torch.testing.assert_close(stem(images), expected)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float32)
    torch.testing.assert_close(stem(images), expected)


def test_stem_keeps_its_class_when_copied_and_pickled():
    """The class is StemConv2d after a copy and after pickling, and a leaf module for torch.fx."""
    stem = StemConv2d(1, 2, 3, bias=False)
    for other in (copy.deepcopy(stem), pickle.loads(pickle.dumps(stem))):
        assert type(other) is StemConv2d
        assert torch.equal(other.weight, stem.weight)
        assert len(fx.symbolic_trace(nn.Sequential(other)).graph.nodes) == 3
