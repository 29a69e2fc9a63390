"""FCN and SegNet against torchvision's networks, the classifiers that they are made of, and what their figures say."""

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
from fukami.layers.upsample import BilinearConvTranspose2d, apply_with_padding, interpolate_bilinear
from fukami.models.fcn import FCNVGG
from fukami.models.segnet import unpool
from models.test_models import count, randomise, weightless

VGG = 14_714_688  # of its 13 convolutions
BN = 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)  # of the normalisation after each
HEAD = (25_088 + 1) * 4096 + 4097 * 4096  # the affine layers
DECODER = (  # 3×3 filters, and a bias and a normalisation for each of their channels but the last ones
    9 * (5 * 512 * 512 + 512 * 256 + 2 * 256 * 256 + 256 * 128 + 128 * 128 + 128 * 64 + 64 * 64 + 64 * 11)
    + 3 * (5 * 512 + 3 * 256 + 2 * 128 + 2 * 64)
    + 11
)
PARAMETERS = {
    "fcn32s_vgg16": VGG + HEAD + 4097 * 21 + 21 * 64**2,
    "fcn16s_vgg16": VGG + HEAD + 4097 * 21 + 513 * 21 + 21 * (4**2 + 32**2),
    "fcn8s_vgg16": VGG + HEAD + 4097 * 21 + 513 * 21 + 257 * 21 + 21 * (2 * 4**2 + 16**2),
    "fcn_resnet50": 35_322_218,  # torchvision's with the second answer
    "fcn_resnet101": 54_314_346,
    "segnet_vgg16": VGG + BN + DECODER,
    # 7×7 filters of 3 and of 64 channels, biases, normalisations, and the classes
    "segnet_basic": 49 * 64 * (3 + 7 * 64) + 3 * 8 * 64 + 65 * 11,
}


def small(name, classes=5):
    """A network with every layer of its kind and few channels, without chance."""
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
def test_size(name):
    assert count(weightless(name)) == PARAMETERS[name]
    millions = {"segnet_vgg16": 29.45, "segnet_basic": 1.42}.get(name)  # table 6 of the paper, and table 1
    assert millions is None or PARAMETERS[name] / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "101" not in name])
def test_shapes_and_gradients(name):
    """A score for each pixel of an image of any size, and every parameter learns."""
    torch.manual_seed(0)
    network = small(name)
    assert network.eval()(torch.rand(1, 3, 45, 70)).shape == (1, 5, 45, 70)
    answers = network.train()(torch.rand(2, 3, 64, 96))
    answers = answers if isinstance(answers, tuple) else (answers,)
    assert [scores.shape for scores in answers] == [(2, 5, 64, 96)] * (2 if "resnet" in name else 1)
    sum(F.cross_entropy(scores, torch.randint(0, 5, (2, 64, 96))) for scores in answers).backward()
    for key, parameter in network.named_parameters():
        after_norm = "segnet" in name and key.endswith("bias")  # which the normalisation takes out
        assert parameter.grad is not None, key
        assert after_norm or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["fcn_resnet50", "fcn_resnet101"])
def test_same_as_torchvision(name):
    """Its tensors load as they are; the same answers, in training the second one, too."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    randomise(theirs)
    ours = weightless(name)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = torch.randn(2, 3, 65, 97)
    with torch.inference_mode():
        expected, found = theirs.eval()(images)["out"], ours.eval()(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        for network in (theirs, ours):
            network.train()
            for layer in network.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.0
        expected, (scores, second) = theirs(images), ours(images)
    for found, wanted in ((scores, expected["out"]), (second, expected["aux"])):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_a_classifiers_affine_layers_are_convolutions():
    """Figure 2: at the middle of an image of its size, the convolutions see what the affine layers see."""
    torch.manual_seed(0)
    classifier = models.vgg16(4, hidden=32, dropout=0.0).eval()
    for layer in classifier.classifier:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    network = models.fcn32s_vgg16(4, hidden=32).eval()
    missing = network.load_state_dict(
        network.convert_classifier_weights(classifier.state_dict()), strict=False
    ).missing_keys
    assert sorted(missing) == ["enlarge.weight", "head.score.bias", "head.score.weight"]
    last = classifier.classifier[-1]
    network.head.score.load_state_dict({"weight": last.weight.view(4, 32, 1, 1), "bias": last.bias})
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        maps = network.head(network.features(images))
        assert maps.shape == (2, 4, 7, 7)
        torch.testing.assert_close(maps[:, :, 3, 3], classifier(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_enlarging_begins_as_bilinear_interpolation(factor):
    maps = torch.randn(2, 3, 5, 6)
    expected = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor // 2, -factor // 2), slice(factor // 2, -factor // 2))  # beyond, it fades out
    torch.testing.assert_close(BilinearConvTranspose2d(3, factor)(maps)[inside], expected[inside])


@pytest.mark.parametrize("size", [(40, 56), (33, 90), (5, 7), (3, 4)])
def test_interpolation_that_is_trained_is_torchs(size):
    """Values and gradients."""
    maps = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    found = interpolate_bilinear(maps, *size)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    one, other = (torch.autograd.grad((each * weights).sum(), maps)[0] for each in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(interpolate_bilinear(maps.detach(), *size), expected.detach())


def test_a_finer_network_begins_with_the_answers_of_the_coarser_one(tmp_path):
    """The scores that it adds are zero at first (section 4.2), and what they share is taken over."""
    torch.manual_seed(0)
    coarse, fine = small("fcn32s_vgg16").eval(), small("fcn16s_vgg16").eval()
    torch.save(coarse.state_dict(), tmp_path / "coarse.pt")
    pretrained.initialize_segmenter(fine, "vgg16", str(tmp_path / "coarse.pt"))
    images = torch.rand(1, 3, 128, 160)
    assert torch.equal(coarse.head(coarse.features(images)), fine.head(fine.features(images)))
    inside = (..., slice(32, -32), slice(32, -32))
    one, other = coarse(images)[inside], fine(images)[inside]
    assert (one - other).abs().max() < 0.1 * (one.max() - one.min())  # interpolated in two steps
    assert not torch.equal(one, other)


def padded(network, images, padding):
    """FCN-32s as the authors' prototxt has it: the image is padded for conv1_1; the scores are not cropped."""
    maps = images
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            maps = F.conv2d(maps, layer.weight, layer.bias, padding=padding if layer is network.features[0] else 1)
        else:
            maps = F.max_pool2d(maps, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(maps)
    fc6, fc7, score = network.head.fc6, network.head.fc7, network.head.score
    maps = score(F.conv2d(F.conv2d(maps, fc6.weight, fc6.bias).relu(), fc7.weight, fc7.bias).relu())
    return F.conv_transpose2d(maps, network.enlarge.weight, stride=32, groups=maps.shape[1])


@pytest.mark.parametrize(("height", "width"), [(180, 240), (448, 480)])
@torch.inference_mode()
def test_the_papers_padding_gives_other_scores(height, width):
    """At no pixel the same: the scored places are 3 pixels apart. With 97 pixels they are not, and then the scores are
    the same from 208 pixels of all borders on.
    """
    torch.manual_seed(0)
    network = small("fcn32s_vgg16").eval().double()
    images = torch.randn(1, 3, height, width, dtype=torch.float64)
    ours = network(images)
    for padding, crop in ((100, 19), (97, 16)):
        theirs = padded(network, images, padding)[..., crop : crop + height, crop : crop + width]
        same = ((theirs - ours).abs() < 1e-6 * ours.abs().max()).all(1)[0]
        expected = torch.zeros_like(same)
        if padding == 97:
            expected[208 : max(208, height - 208), 208 : max(208, width - 208)] = True
        assert torch.equal(same, expected)


def test_unpooling_puts_values_where_they_were():
    """Figure 3, by hand; what is exported instead gives the same, and so do the gradients."""
    maps = torch.tensor([[[[1.0, 9, 2, 2], [3, 4, 8, 5], [7, 0, 0, 1], [0, 0, 6, 0]]]])
    pooled, places = F.max_pool2d(maps, 2, return_indices=True)
    expected = torch.tensor([[[[0.0, 9, 0, 0], [0, 0, 8, 0], [7, 0, 0, 0], [0, 0, 6, 0]]]])
    assert torch.equal(unpool(pooled, places), expected)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpool(*F.max_pool2d(x, 2, return_indices=True)), x)


def test_unpooling_as_it_is_exported(monkeypatch):
    pooled, places = F.max_pool2d(torch.randn(2, 3, 8, 6), 2, return_indices=True)
    expected = unpool(pooled, places)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(unpool(pooled, places), expected)


def test_segnet_is_its_layers_one_after_another():
    """The same function as the figure, written out."""
    torch.manual_seed(0)
    network = small("segnet_basic").eval()
    randomise(network)
    images = torch.rand(2, 3, 48, 32)
    x, places = images, []
    for at in range(0, 16, 4):
        x = network.features[at + 1](network.features[at](x)).relu()
        x, indices = F.max_pool2d(x, 2, return_indices=True)
        places.append(indices)
    for stage, indices in zip(network.decoder, places[::-1], strict=True):
        x = F.max_unpool2d(x, indices, 2)
        for layer in stage:
            x = layer(x)
    torch.testing.assert_close(network(images), x)
    assert len(network.decoder[-1]) == 3  # a convolution, its normalisation, and the classes: no ReLU
    assert [len(stage) for stage in small("segnet_vgg16").decoder] == [9, 9, 9, 6, 4]


def test_other_sizes_are_filled_up_and_cut_off():
    seen = []

    def scores(images):
        seen.append(images)
        return images

    images = torch.rand(1, 3, 33, 64)
    assert torch.equal(apply_with_padding(scores, images, 32), images)
    assert seen[0].shape == (1, 3, 64, 64)
    assert not seen[0][..., 33:, :].any()


@pytest.mark.parametrize("name", PARAMETERS)
def test_explained(name):
    """Every layer with weights is there, with its place and its cost, as deep as the paper says."""
    network = weightless(name)
    steps = analysis.summarize_layers(network.get_traceable_module(), (3, 64, 96))
    auxiliary = sum(p.numel() for key, p in network.named_parameters() if key.startswith("aux"))
    assert sum(step.num_parameters for step in steps) == PARAMETERS[name] - auxiliary
    assert steps[-1].output_shape == ((11 if "segnet" in name else 21), *((8, 12) if "resnet" in name else (64, 96)))
    depth = max(step.depth for step in steps)
    assert depth == {"segnet_vgg16": 26, "segnet_basic": 9}.get(name, depth)


def test_vgg_sees_as_far_as_the_paper_says():
    """Figure 3 counts strides of 32, 16 and 8; 404 pixels is the field of fc7 (section 3.1)."""
    with torch.device("meta"):
        network = FCNVGG(21, 8, 64, 0.5, 0.125)
    steps = {step.name: step for step in analysis.summarize_layers(network.get_traceable_module(), (3, 64, 64))}
    assert steps["head.fc7"].receptive_field == (404, 404)
    assert [steps[name].effective_stride[0] for name in ("head.score", "score4", "score3")] == [32, 16, 8]


@pytest.mark.parametrize("make", [models.segnet_vgg16, partial(models.fcn8s_vgg16, hidden=8, batch_norm=True)])
@pytest.mark.parametrize("source", ["vgg16", "vgg16_bn"])
def test_normalised_networks_begin_with_vgg(source, make, tmp_path, caplog):
    """Published weights of either kind are put where they belong."""
    torch.manual_seed(0)
    classifier = getattr(models, source)(3, size=32, hidden=8)
    torch.save(classifier.state_dict(), tmp_path / "vgg.pt")
    network = make(5)
    plain = pretrained.initialize_segmenter(network, "vgg16_bn", str(tmp_path / "vgg.pt"), ("a", "b", "c", "d", "e"))
    assert plain == (source == "vgg16")
    theirs = [layer for layer in classifier.features if isinstance(layer, nn.Conv2d)]
    ours = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert len(ours) == 13
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)
    assert caplog.text == ""


def test_layers_that_have_learned_go_on_more_slowly(tmp_path):
    """Those of the classifier alone, and only where there are weights to begin with."""
    from fukami.engine.recipe import get_recipe

    torch.save(models.vgg16(3, size=32, hidden=8).state_dict(), tmp_path / "vgg.pt")
    for init, groups in ((str(tmp_path / "vgg.pt"), 2), ("", 1)):
        task = get_recipe("fcn8s-vgg16")(hidden=8, init=init, lr=0.5, backbone_lr_factor=0.1).build_task(("a", "b"))
        optimizer = task.make_optimizer(task.model.parameters())
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05][:groups]
        slow = {id(parameter) for parameter in optimizer.param_groups[-1]["params"]}
        own = {id(parameter) for parameter in (task.model.features if init else task.model).parameters()}
        assert slow == own
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.model.parameters()))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save(models.vgg11(3, size=32, hidden=8).state_dict(), tmp_path / "vgg11.pt")
    with pytest.raises(Error, match=r"does not fit FCNVGG: features\.\d+\.(weight|bias)"):
        pretrained.initialize_segmenter(models.fcn32s_vgg16(3, hidden=8), "vgg16", str(tmp_path / "vgg11.pt"))
    with pytest.raises(Error, match="no published COCO weights of an FCN on vgg16"):
        pretrained.initialize_segmenter(models.fcn32s_vgg16(3, hidden=8), "vgg16", "coco")
    with pytest.raises(Error, match="no published weights for this network"):
        pretrained.initialize_segmenter(small("segnet_basic"), "", "imagenet")


def test_scores_of_other_classes_begin_anew(tmp_path, caplog):
    """Also where they are as many."""
    torch.manual_seed(0)
    other = small("fcn8s_vgg16")
    torch.save(other.state_dict(), tmp_path / "other.pt")
    same = small("fcn8s_vgg16")
    pretrained.initialize_segmenter(same, "vgg16", str(tmp_path / "other.pt"), tuple("abcde"))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in same.state_dict().items())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text('{"labels": ["v", "w", "x", "y", "z"]}')
    save_file(
        {f"model.{key}": value for key, value in other.state_dict().items()}, tmp_path / "run" / "weights.safetensors"
    )
    fresh = small("fcn8s_vgg16")
    before = fresh.head.score.weight.clone()
    pretrained.initialize_segmenter(fresh, "vgg16", str(tmp_path / "run"), tuple("abcde"))
    assert torch.equal(fresh.head.score.weight, before)
    assert torch.equal(fresh.head.fc7.weight, other.head.fc7.weight)
    assert "begin anew" in caplog.text


def test_the_trace_of_an_outline_is_the_network():
    torch.manual_seed(0)
    network = small("fcn8s_vgg16").eval()
    traced = fx.GraphModule(network.get_traceable_module(), analysis._Tracer().trace(network.get_traceable_module()))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(traced(images), network(images))


@pytest.mark.parametrize("name", ["segnet_vgg16", "fcn8s_vgg16"])
def test_calibrated_layers_compute_what_they_computed(name):
    """But for a factor, whatever the sizes of the classifier's maps; with normalisation, too, which takes them out."""
    torch.manual_seed(0)
    classifier = models.vgg16(3, hidden=16, dropout=0.0)
    for layer in classifier.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= 1.7  # so that maps grow, and biases are lost in them
            nn.init.normal_(layer.bias, std=30)
    images = torch.randn(4, 3, 96, 64)
    with torch.no_grad():
        expected = classifier.features(images)
    network = getattr(models, name)(5, **({"hidden": 16, "dropout": 0.0} if "fcn" in name else {}))
    network.load_state_dict(network.convert_classifier_weights(classifier.state_dict()), strict=False)
    rescale_activations(network.list_backbone_layers(), images)
    for training in (True, False):
        with torch.no_grad():
            found = network.features.train(training)(images)
        factor = expected.norm() / found.norm()
        torch.testing.assert_close(factor * found, expected, rtol=1e-2, atol=1e-3 * expected.max().item())
        assert factor > 100
    sizes = []
    for layer in network.features:
        images = layer(images)
        if isinstance(layer, nn.ReLU):
            sizes.append(images.square().mean().sqrt().item())
    assert len(sizes) == 13
    assert all(0.3 < size <= 1.01 for size in sizes)
