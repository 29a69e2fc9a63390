"""ONNX export: equality with torch for any batch size, metadata, and errors."""

import re

import onnx
import pytest
import torch
from torch import nn

from fukami import models
from fukami.errors import Error
from fukami.layers import anchors
from fukami.layers.ensemble import Ensemble
from fukami.models.faster_rcnn import DetectionLimits, FasterRCNN, RegionProposalNetwork, RoIHeads
from fukami.quantization.onnx_export import DETECTOR, OnnxNetwork, export_onnx

SMALL = {
    "alexnet": (lambda: models.alexnet(10, size=63, hidden=16), (3, 63, 63)),
    "deep_convnet": (lambda: models.deep_convnet(), (1, 28, 28)),
    "vgg11": (lambda: models.vgg11(10, size=32, hidden=16), (3, 32, 32)),
    "resnet18": (lambda: models.resnet18(10, stem="3x3"), (3, 16, 16)),
    "resnet20": (lambda: models.resnet20(), (3, 32, 32)),
    "googlenet": (lambda: models.googlenet(10), (3, 32, 32)),
    "binary_convnet": (lambda: models.binary_convnet(size=16, widths=(8, 8, 8, 8), hidden=(16,)), (3, 16, 16)),
    "binary_deep_convnet": (
        lambda: models.binary_deep_convnet(learned_thresholds=True, scaling_factors=True),
        (1, 28, 28),
    ),
    "binary_resnet18": (lambda: models.binary_resnet18(10, stem="3x3"), (3, 8, 8)),
}


def randomize_norms(network):
    """Set random statistics and parameters of the batch normalization layers, as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_model_equals_torch(name):
    make, shape = SMALL[name]
    torch.manual_seed(0)
    network = randomize_norms(make()).train()
    content = export_onnx(network, shape, {})
    assert network.training, "it is exported in evaluation mode, but not modified"
    network.eval()
    onnx.checker.check_model(content, full_check=True)
    exported = OnnxNetwork(content)
    for count in (1, 2, 7):
        images = torch.randn(count, *shape)
        expected, scores = network(images), exported(images)
        assert scores.dtype == torch.float32
        assert scores.shape == expected.shape
        assert (scores - expected).abs().max() < 1e-4 * expected.std()


class PyramidBackbone(nn.Module):
    """Backbone with five feature maps of strides 4 to 64."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, stride=4)
        self.others = nn.ModuleList(nn.Conv2d(8, 8, 2, stride=2) for _ in range(4))

    def forward(self, images):
        maps = [self.first(images)]
        for layer in self.others:
            maps.append(layer(maps[-1]))
        return maps


def make_pyramid_detector():
    """Build a detector like Faster R-CNN with FPN, with a small backbone."""
    cells = [anchors.compute_cell_anchors([scale]) for scale in (16, 32, 64, 128, 256)]
    rpn = RegionProposalNetwork(8, cells, inside_only=False)
    heads = RoIHeads(8, 3, (4, 8, 16, 32), 16, 0.0, "align")
    return FasterRCNN(PyramidBackbone(), rpn, heads, DetectionLimits((200, 100), (200, 100)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: models.faster_rcnn_vgg16(5, anchor_sizes=(16, 32, 64), hidden=16, width_multiplier=1 / 16),
        make_pyramid_detector,
    ],
)
def test_detectors_equal_torch(make):
    """Boxes, classes and scores agree for images of any size."""
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    content = export_onnx(network, (3, 128, 192), {}, DETECTOR)
    onnx.checker.check_model(content, full_check=True)
    exported = OnnxNetwork(content)
    for height, width in ((128, 192), (320, 160)):
        images, sizes = torch.randn(2, 3, height, width), torch.tensor([[height, width], [height - 9, width - 30.0]])
        for detections, expected in zip(exported(images, sizes), network(images, sizes), strict=True):
            assert len(expected.boxes) > 10
            torch.testing.assert_close(detections.boxes, expected.boxes, rtol=0, atol=1e-2)
            assert torch.equal(detections.classes, expected.classes)
            torch.testing.assert_close(detections.scores, expected.scores, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_detector_predicts_only_classes_of_its_run():
    torch.manual_seed(0)
    network = models.faster_rcnn_vgg16(5, anchor_sizes=(16, 32, 64), hidden=16, width_multiplier=1 / 16).eval()
    for parameter in network.requires_grad_(False).parameters():
        nn.init.normal_(parameter, std=0.1)
    content = export_onnx(network, (3, 128, 192), {}, DETECTOR)
    inputs = torch.randn(1, 3, 128, 192), torch.tensor([[128, 192.0]])
    (detections,) = OnnxNetwork(content, 5)(*inputs)
    with pytest.raises(Error, match="boxes or classes that its run does not have"):
        OnnxNetwork(content, int(detections.classes.max()))(*inputs)


def test_every_model_family_is_tested():
    others = {"rcnn", "fcn", "segnet", "style", "tell", "dcgan", "dqn", "alphago"}
    classifiers = [name for name in models.__all__ if not others & set(re.split("[_0-9]", name))]
    assert {name.removesuffix("_bn").rstrip("0123456789") for name in classifiers} == {
        name.removesuffix("_bn").rstrip("0123456789") for name in SMALL
    }


@pytest.mark.parametrize("vote", [False, True])
def test_ensemble_is_exported(vote):
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(4)]
    snapshots = Ensemble(members[1:], num_active=2)  # its second snapshot does not exist yet
    network = Ensemble([members[0], snapshots], vote=vote).eval().requires_grad_(False)
    exported = OnnxNetwork(export_onnx(network, (1, 2, 2), {}))
    images = torch.randn(7, 1, 2, 2)
    torch.testing.assert_close(exported(images), network(images), rtol=0, atol=1e-5)
    assert int(snapshots.num_active) == 2, "the network is not modified"


def test_channels_last():
    network = randomize_norms(models.resnet20())
    images = torch.randn(2, 3, 32, 32)
    exported = OnnxNetwork(export_onnx(network.to(memory_format=torch.channels_last), (3, 32, 32), {}))
    scores = exported(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(scores, network(images), rtol=0, atol=1e-4)


def test_metadata_is_complete_and_has_no_source_paths():
    metadata = {"labels": '["猫", "犬"]', "mean": "0.5"}
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    content = export_onnx(network, (1, 4, 4), metadata)
    assert OnnxNetwork(content).metadata == metadata
    assert b".py" not in content, "the file contains no paths of the exporting machine"
    (images,), (scores,) = (
        [(value.name, [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]) for value in values]
        for values in (onnx.load_from_string(content).graph.input, onnx.load_from_string(content).graph.output)
    )
    assert images == ("images", ["N", 1, 4, 4])
    assert scores == ("scores", ["N", 2])


def test_onnx_network_is_a_module():
    exported = OnnxNetwork(export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), {}))
    assert [len(value) for value in exported.parameters()] == [0]  # nothing to train, but a device
    assert exported.train().training
    images = torch.randn(2, 1, 2, 2, requires_grad=True)
    assert torch.equal(exported(images), exported.eval()(images))
    assert exported.session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_corrupted_files_are_rejected():
    content = export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), {})
    for corrupted in (b"", b"no network", content[: len(content) // 2]):
        with pytest.raises(Error, match="export it again"):
            OnnxNetwork(corrupted)
    renamed = onnx.load_from_string(content)
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "pixels"
    with pytest.raises(Error, match="has the inputs pixels and the outputs scores, so fukami did not export it"):
        OnnxNetwork(renamed.SerializeToString())


class FunctionLayer(nn.Module):
    """Layer that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def fail(x):
    raise ValueError(f"expects images of 9 pixels, not {x.shape[1]}")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (torch.special.bessel_j0, "No ONNX function found for .*bessel_j0"),
        (lambda x: x if x.sum() > 0 else -x, "data-dependent"),
        (fail, "expects images of 9 pixels, not 4"),
    ],
)
def test_unsupported_layer_is_named(function, reason, capfd):
    network = nn.Sequential(nn.Sequential(nn.Flatten(), FunctionLayer(function)), nn.Linear(4, 2))
    with pytest.raises(Error, match=rf"^0.1 \(FunctionLayer\) cannot be exported to ONNX: .*{reason}"):
        export_onnx(network, (1, 2, 2), {})
    assert capfd.readouterr().err == ""
