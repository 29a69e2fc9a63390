"""FCN and SegNet: agreement with torchvision, with their classifiers and with the papers' figures."""

from functools import partial

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import fx, nn
from torch.nn import functional as F

from fukami import models
from fukami.engine import pretrained
from fukami.errors import Error
from fukami.explain import summary as analysis
from fukami.layers.activation_scaling import rescale_activations
from fukami.layers.sync_layers import convert_sync_layers
from fukami.layers.upsample import BilinearConvTranspose2d, apply_with_padding, interpolate_bilinear
from fukami.models.fcn import FCNVGG
from fukami.models.segnet import unpool
from models.test_models import build_on_meta, count_parameters, randomize

VGG = 14_714_688  # 13 convolutions
BN = 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)  # batch normalization after each convolution
HEAD = (25_088 + 1) * 4096 + 4097 * 4096  # fully connected layers
DECODER = (  # 3×3 filters; bias and batch normalization of each channel except the scores
    9 * (5 * 512 * 512 + 512 * 256 + 2 * 256 * 256 + 256 * 128 + 128 * 128 + 128 * 64 + 64 * 64 + 64 * 11)
    + 3 * (5 * 512 + 3 * 256 + 2 * 128 + 2 * 64)
    + 11
)
PARAMETERS = {
    "fcn32s_vgg16": VGG + HEAD + 4097 * 21 + 21 * 64**2,
    "fcn16s_vgg16": VGG + HEAD + 4097 * 21 + 513 * 21 + 21 * (4**2 + 32**2),
    "fcn8s_vgg16": VGG + HEAD + 4097 * 21 + 513 * 21 + 257 * 21 + 21 * (2 * 4**2 + 16**2),
    "fcn_resnet50": 35_322_218,  # torchvision's with the auxiliary classifier
    "fcn_resnet101": 54_314_346,
    "segnet_vgg16": VGG + BN + DECODER,
    # 7×7 filters of 3 and of 64 channels, biases, batch normalization, and the score layer
    "segnet_basic": 49 * 64 * (3 + 7 * 64) + 3 * 8 * 64 + 65 * 11,
}


def build_small(name, classes=5):
    """Build a network with few channels and without dropout."""
    options = {
        "fcn_resnet50": {},
        "fcn_resnet101": {},
        "segnet_basic": {"num_filters": 8},
        "segnet_vgg16": {"width_multiplier": 1 / 16},
    }
    return getattr(models, name)(
        classes, **options.get(name, {"width_multiplier": 1 / 16, "hidden": 12, "dropout": 0.0})
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    assert count_parameters(build_on_meta(name)) == PARAMETERS[name]
    millions = {"segnet_vgg16": 29.45, "segnet_basic": 1.42}.get(name)  # tables 6 and 1 of the paper
    assert millions is None or PARAMETERS[name] / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "101" not in name])
def test_shapes_and_gradients(name):
    """Scores have the image's size, whatever it is, and every parameter has a gradient."""
    torch.manual_seed(0)
    network = build_small(name)
    assert network.eval()(torch.rand(1, 3, 45, 70)).shape == (1, 5, 45, 70)
    outputs = network.train()(torch.rand(2, 3, 64, 96))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [scores.shape for scores in outputs] == [(2, 5, 64, 96)] * (2 if "resnet" in name else 1)
    sum(F.cross_entropy(scores, torch.randint(0, 5, (2, 64, 96))) for scores in outputs).backward()
    for key, parameter in network.named_parameters():
        after_norm = "segnet" in name and key.endswith("bias")  # batch normalization cancels it
        assert parameter.grad is not None, key
        assert after_norm or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["fcn_resnet50", "fcn_resnet101"])
def test_outputs_equal_torchvision(name):
    """Torchvision's weights load; outputs are equal, in training mode also the auxiliary scores."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    randomize(theirs)
    ours = build_on_meta(name)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = torch.randn(2, 3, 65, 97)
    with torch.inference_mode():
        expected, scores = theirs.eval()(images)["out"], ours.eval()(images)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        for network in (theirs, ours):
            network.train()
            for layer in network.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.0
        expected, (scores, aux_scores) = theirs(images), ours(images)
    for output, reference in ((scores, expected["out"]), (aux_scores, expected["aux"])):
        torch.testing.assert_close(output, reference, rtol=0, atol=1e-4 * reference.abs().max().item())


def test_fully_connected_layers_become_convolutions():
    """Figure 2: at the center of an image, the convolutions equal the fully connected layers."""
    torch.manual_seed(0)
    classifier = models.vgg16(4, hidden=32, dropout=0.0).eval()
    for layer in classifier.classifier:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    network = models.fcn32s_vgg16(4, hidden=32).eval()
    missing = network.load_state_dict(
        network.convert_classifier_weights(classifier.state_dict()), strict=False
    ).missing_keys
    assert sorted(missing) == ["head.score.bias", "head.score.weight", "upsample.weight"]
    last = classifier.classifier[-1]
    network.head.score.load_state_dict({"weight": last.weight.view(4, 32, 1, 1), "bias": last.bias})
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        maps = network.head(network.features(images))
        assert maps.shape == (2, 4, 7, 7)
        torch.testing.assert_close(maps[:, :, 3, 3], classifier(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_transposed_convolution_starts_as_bilinear_interpolation(factor):
    maps = torch.randn(2, 3, 5, 6)
    expected = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor // 2, -factor // 2), slice(factor // 2, -factor // 2))  # the border differs
    torch.testing.assert_close(BilinearConvTranspose2d(3, factor)(maps)[inside], expected[inside])


@pytest.mark.parametrize("size", [(40, 56), (33, 90), (5, 7), (3, 4)])
def test_interpolate_bilinear_equals_torch(size):
    """Values and gradients are equal to those of torch."""
    maps = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    resized = interpolate_bilinear(maps, *size)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(resized, expected, rtol=1e-5, atol=1e-5)
    gradient, expected_gradient = (
        torch.autograd.grad((output * weights).sum(), maps)[0] for output in (resized, expected)
    )
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    assert torch.equal(interpolate_bilinear(maps.detach(), *size), expected.detach())


def test_finer_network_starts_with_predictions_of_coarser_one(tmp_path):
    """The additional scores start at zero (Long et al. 2015, section 4.2), and the common layers are copied."""
    torch.manual_seed(0)
    coarse, fine = build_small("fcn32s_vgg16").eval(), build_small("fcn16s_vgg16").eval()
    torch.save(coarse.state_dict(), tmp_path / "coarse.pt")
    pretrained.initialize_segmenter(fine, "vgg16", str(tmp_path / "coarse.pt"))
    images = torch.rand(1, 3, 128, 160)
    assert torch.equal(coarse.head(coarse.features(images)), fine.head(fine.features(images)))
    inside = (..., slice(32, -32), slice(32, -32))
    coarse_scores, fine_scores = coarse(images)[inside], fine(images)[inside]
    # not equal, because fine interpolates in two steps
    assert (coarse_scores - fine_scores).abs().max() < 0.1 * (coarse_scores.max() - coarse_scores.min())
    assert not torch.equal(coarse_scores, fine_scores)


def compute_scores_with_padding(network, images, padding):
    """Compute FCN-32s scores as the authors' prototxt: padding in conv1_1, scores not cropped."""
    maps = images
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            maps = F.conv2d(maps, layer.weight, layer.bias, padding=padding if layer is network.features[0] else 1)
        else:
            maps = F.max_pool2d(maps, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(maps)
    fc6, fc7, score = network.head.fc6, network.head.fc7, network.head.score
    maps = score(F.conv2d(F.conv2d(maps, fc6.weight, fc6.bias).relu(), fc7.weight, fc7.bias).relu())
    return F.conv_transpose2d(maps, network.upsample.weight, stride=32, groups=maps.shape[1])


@pytest.mark.parametrize(("height", "width"), [(180, 240), (448, 480)])
@torch.inference_mode()
def test_padding_of_paper_gives_other_scores(height, width):
    """The paper's padding of 100 pixels shifts the grid by 3 pixels, so the scores differ at every pixel.

    With a padding of 97 pixels the scores are equal at 208 or more pixels from all borders.
    """
    torch.manual_seed(0)
    network = build_small("fcn32s_vgg16").eval().double()
    images = torch.randn(1, 3, height, width, dtype=torch.float64)
    ours = network(images)
    for padding, crop in ((100, 19), (97, 16)):
        theirs = compute_scores_with_padding(network, images, padding)[..., crop : crop + height, crop : crop + width]
        equal = ((theirs - ours).abs() < 1e-6 * ours.abs().max()).all(1)[0]
        expected = torch.zeros_like(equal)
        if padding == 97:
            expected[208 : max(208, height - 208), 208 : max(208, width - 208)] = True
        assert torch.equal(equal, expected)


def test_unpool_restores_positions():
    """Unpool the example of Badrinarayanan et al. 2017, figure 3, and check the gradients."""
    maps = torch.tensor([[[[1.0, 9, 2, 2], [3, 4, 8, 5], [7, 0, 0, 1], [0, 0, 6, 0]]]])
    pooled, indices = F.max_pool2d(maps, 2, return_indices=True)
    expected = torch.tensor([[[[0.0, 9, 0, 0], [0, 0, 8, 0], [7, 0, 0, 0], [0, 0, 6, 0]]]])
    assert torch.equal(unpool(pooled, indices), expected)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpool(*F.max_pool2d(x, 2, return_indices=True)), x)


def test_exported_unpool_equals_unpool(monkeypatch):
    pooled, indices = F.max_pool2d(torch.randn(2, 3, 8, 6), 2, return_indices=True)
    expected = unpool(pooled, indices)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(unpool(pooled, indices), expected)


def test_segnet_equals_figure():
    """The result equals that of the figure's layers in sequence."""
    torch.manual_seed(0)
    network = build_small("segnet_basic").eval()
    randomize(network)
    images = torch.rand(2, 3, 48, 32)
    x, pooling_indices = images, []
    for start in range(0, 16, 4):
        x = network.features[start + 1](network.features[start](x)).relu()
        x, indices = F.max_pool2d(x, 2, return_indices=True)
        pooling_indices.append(indices)
    for stage, indices in zip(network.decoder, pooling_indices[::-1], strict=True):
        x = F.max_unpool2d(x, indices, 2)
        for layer in stage:
            x = layer(x)
    torch.testing.assert_close(network(images), x)
    assert len(network.decoder[-1]) == 3  # convolution, batch normalization and score layer: no ReLU
    assert [len(stage) for stage in build_small("segnet_vgg16").decoder] == [9, 9, 9, 6, 4]


def test_other_sizes_are_padded_and_cropped():
    inputs = []

    def record_inputs(images):
        inputs.append(images)
        return images

    images = torch.rand(1, 3, 33, 64)
    assert torch.equal(apply_with_padding(record_inputs, images, 32), images)
    assert inputs[0].shape == (1, 3, 64, 64)
    assert not inputs[0][..., 33:, :].any()


DEPTHS = {  # layers with weights in a row: VGG's 13, fc6, fc7, score, upsamplings; the ResNet's, two of the head
    "fcn32s_vgg16": 17, "fcn16s_vgg16": 18, "fcn8s_vgg16": 19, "fcn_resnet50": 51, "fcn_resnet101": 102,
    "segnet_vgg16": 26, "segnet_basic": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_layer_summary(name):
    """The summary contains every layer with weights; output shape and depth equal the paper's."""
    network = build_on_meta(name)
    steps = analysis.summarize_layers(network.get_traceable_module(), (3, 64, 96))
    auxiliary = sum(p.numel() for key, p in network.named_parameters() if key.startswith("aux"))
    assert sum(step.num_parameters for step in steps) == PARAMETERS[name] - auxiliary
    assert steps[-1].output_shape == ((11 if "segnet" in name else 21), *((8, 12) if "resnet" in name else (64, 96)))
    assert max(step.depth for step in steps) == DEPTHS[name]


def test_receptive_field_and_strides_equal_paper():
    """Figure 3: strides of 32, 16 and 8. Section 3.1: the receptive field of fc7 is 404 pixels."""
    with torch.device("meta"):
        network = FCNVGG(21, 8, 64, 0.5, 0.125)
    steps = {step.name: step for step in analysis.summarize_layers(network.get_traceable_module(), (3, 64, 64))}
    assert steps["head.fc7"].receptive_field == (404, 404)
    assert [steps[name].effective_stride[0] for name in ("head.score", "score4", "score3")] == [32, 16, 8]


@pytest.mark.parametrize("build", [models.segnet_vgg16, partial(models.fcn8s_vgg16, hidden=8, batch_norm=True)])
@pytest.mark.parametrize("source", ["vgg16", "vgg16_bn"])
def test_networks_with_batch_norm_load_vgg_weights(source, build, tmp_path, caplog):
    """Published weights load into the matching convolutions, with or without batch normalization."""
    torch.manual_seed(0)
    classifier = getattr(models, source)(3, size=32, hidden=8)
    torch.save(classifier.state_dict(), tmp_path / "vgg.pt")
    network = build(5)
    without_batch_norm = pretrained.initialize_segmenter(
        network, "vgg16_bn", str(tmp_path / "vgg.pt"), ("a", "b", "c", "d", "e")
    )
    assert without_batch_norm == (source == "vgg16")
    theirs = [layer for layer in classifier.features if isinstance(layer, nn.Conv2d)]
    ours = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert len(ours) == 13
    for layer, reference in zip(ours, theirs, strict=True):
        assert torch.equal(layer.weight, reference.weight)
        assert torch.equal(layer.bias, reference.bias)
    assert caplog.text == ""


def test_pretrained_layers_have_lower_learning_rate(tmp_path):
    """The lower rate applies only to the classifier's layers, and only with pretrained weights."""
    from fukami.engine.recipe import get_recipe

    torch.save(models.vgg16(3, size=32, hidden=8).state_dict(), tmp_path / "vgg.pt")
    for init, groups in ((str(tmp_path / "vgg.pt"), 2), ("", 1)):
        task = get_recipe("fcn8s-vgg16")(hidden=8, init=init, lr=0.5, backbone_lr_factor=0.1).build_task(("a", "b"))
        optimizer = task.make_optimizer(task.model.parameters())
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05][:groups]
        slow_parameters = {id(parameter) for parameter in optimizer.param_groups[-1]["params"]}
        expected = {id(parameter) for parameter in (task.model.features if init else task.model).parameters()}
        assert slow_parameters == expected
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.model.parameters()))


def test_weights_that_do_not_fit_are_rejected(tmp_path):
    torch.save(models.vgg11(3, size=32, hidden=8).state_dict(), tmp_path / "vgg11.pt")
    with pytest.raises(Error, match=r"these are VGG-11 weights; vgg16 needs its own \(features\.\d+\.(weight|bias)"):
        pretrained.initialize_segmenter(models.fcn32s_vgg16(3, hidden=8), "vgg16", str(tmp_path / "vgg11.pt"))
    with pytest.raises(Error, match="no published COCO weights of an FCN on vgg16"):
        pretrained.initialize_segmenter(models.fcn32s_vgg16(3, hidden=8), "vgg16", "coco")
    with pytest.raises(Error, match="no published weights for this network"):
        pretrained.initialize_segmenter(build_small("segnet_basic"), "", "imagenet")


def test_score_layers_of_other_classes_are_initialized_randomly(tmp_path, caplog):
    """The score layers are initialized even if the number of classes is equal."""
    torch.manual_seed(0)
    other = build_small("fcn8s_vgg16")
    torch.save(other.state_dict(), tmp_path / "other.pt")
    same = build_small("fcn8s_vgg16")
    pretrained.initialize_segmenter(same, "vgg16", str(tmp_path / "other.pt"), tuple("abcde"))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in same.state_dict().items())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text('{"labels": ["v", "w", "x", "y", "z"]}')
    save_file(
        {f"model.{key}": value for key, value in other.state_dict().items()}, tmp_path / "run" / "weights.safetensors"
    )
    fresh = build_small("fcn8s_vgg16")
    initial_weight = fresh.head.score.weight.clone()
    pretrained.initialize_segmenter(fresh, "vgg16", str(tmp_path / "run"), tuple("abcde"))
    assert torch.equal(fresh.head.score.weight, initial_weight)
    assert torch.equal(fresh.head.fc7.weight, other.head.fc7.weight)
    assert "they are initialized randomly" in caplog.text


def test_traced_module_equals_network():
    torch.manual_seed(0)
    network = build_small("fcn8s_vgg16").eval()
    traced = fx.GraphModule(network.get_traceable_module(), analysis._Tracer().trace(network.get_traceable_module()))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(traced(images), network(images))


@pytest.mark.parametrize("name", ["segnet_vgg16", "fcn8s_vgg16"])
@pytest.mark.parametrize("is_synchronized", [False, True])
def test_rescaled_layers_keep_their_function(name, is_synchronized):
    """The output changes only by a factor, whatever the scale of the activations, also with batch normalization.

    The batch normalization of several processes is used here in evaluation mode only.
    """
    torch.manual_seed(0)
    classifier = models.vgg16(3, hidden=16, dropout=0.0)
    for layer in classifier.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= 1.7  # activations grow, and biases become negligible
            nn.init.normal_(layer.bias, std=30)
    images = torch.randn(4, 3, 96, 64)
    with torch.no_grad():
        expected = classifier.features(images)
    network = getattr(models, name)(5, **({"hidden": 16, "dropout": 0.0} if "fcn" in name else {}))
    network.load_state_dict(network.convert_classifier_weights(classifier.state_dict()), strict=False)
    if is_synchronized:
        convert_sync_layers(network)
    rescale_activations(network.list_backbone_layers(), images)
    for training in (False,) if is_synchronized else (True, False):
        with torch.no_grad():
            output = network.features.train(training)(images)
        factor = expected.norm() / output.norm()
        torch.testing.assert_close(factor * output, expected, rtol=1e-2, atol=1e-3 * expected.max().item())
        assert factor > 100
    rms_values = []
    for layer in network.features:
        images = layer(images)
        if isinstance(layer, nn.ReLU):
            rms_values.append(images.square().mean().sqrt().item())
    assert len(rms_values) == 13
    assert all(0.3 < rms <= 1.01 for rms in rms_values)
