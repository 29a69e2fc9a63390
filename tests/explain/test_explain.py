"""Tests of ``fukami explain`` against published numbers, gradients and values computed by hand."""

import doctest
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fukami import models
from fukami.classification.deep_convnet import DeepConvNet
from fukami.cli.explain import build_model
from fukami.errors import Error, UsageError
from fukami.explain import feature_visualization, receptive_field, stacked_filters
from fukami.explain import summary as analysis


def create_meta_model(name, *arguments, **keywords):
    """Create a model on the meta device, without weights."""
    with torch.device("meta"):
        return getattr(models, name)(*arguments, **keywords)


@pytest.mark.parametrize(
    ("name", "shape", "depth", "parameters", "billions"),
    [
        ("vgg16", (3, 224, 224), 16, 138_357_544, 15.470),
        ("vgg19", (3, 224, 224), 19, 143_667_240, 19.632),
        ("resnet18", (3, 224, 224), 18, 11_689_512, 1.814),
        ("resnet50", (3, 224, 224), 50, 25_557_032, 4.089),
        ("googlenet", (3, 224, 224), 22, 6_624_904, 1.498),
        ("resnet20", (3, 32, 32), 20, 269_722, 0.041),
        ("deep_convnet", (1, 28, 28), 8, 123_552, 0.00877),
    ],
)
def test_depth_parameters_and_cost_equal_the_published_ones(name, shape, depth, parameters, billions):
    """Depths are those in the names; GoogLeNet's parameters exclude its auxiliary classifiers."""
    model = create_meta_model(name)
    layers = analysis.summarize_layers(model, shape)
    assert max(layer.depth for layer in layers) == depth
    assert sum(layer.num_parameters for layer in layers) == parameters
    assert analysis.count_multiply_adds(model, shape) / 1e9 == pytest.approx(billions, abs=0.0006)
    if name != "googlenet":
        assert analysis.count_parameters(model) == parameters


@pytest.mark.parametrize("name", [name for name in models.__all__ if name != "dcgan_generator"])
def test_multiply_adds_of_every_model_are_half_of_torchs_flops(name):
    """``torch.utils.flop_counter`` counts a multiply-add as two operations, at run time."""
    with torch.device("meta"):
        model, shape = build_model(name, None, None)
    module = analysis.copy_with_tensors(analysis.get_traceable_module(model), lambda tensor: tensor.to("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, *shape, device="meta"))
    assert analysis.count_multiply_adds(module, shape) == counter.get_total_flops() / 2 > 0


def test_multiply_adds_of_grouped_and_dilated_convolutions_are_half_of_torchs_flops():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2),
        nn.Conv2d(6, 6, (1, 5), dilation=(1, 2)),
        nn.Flatten(),
        nn.Linear(6 * 18 * 12, 7),
    )
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 4, 18, 20))
    assert analysis.count_multiply_adds(model, (4, 18, 20)) == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("name", "keywords", "field"),
    [
        ("vgg16", {}, 212),
        ("resnet50", {"stride_in": "1x1"}, 483),
        ("resnet101", {"stride_in": "1x1"}, 1027),
        ("resnet152", {"stride_in": "1x1"}, 1507),
    ],
)
def test_theoretical_receptive_fields_equal_araujos(name, keywords, field):
    """Values of Araujo et al. 2019; their ResNets stride in the first 1×1 convolution, as in the ResNet paper."""
    layers = [
        layer
        for layer in analysis.summarize_layers(create_meta_model(name, **keywords), (3, 224, 224))
        if layer.receptive_field
    ]
    assert layers[-1].receptive_field == (field, field)


def test_receptive_fields_of_vgg16_layer_by_layer():
    layers = analysis.summarize_layers(create_meta_model("vgg16"), (3, 224, 224))
    convolutions = [layer.receptive_field[0] for layer in layers if layer.op_type.endswith("Conv2d")]
    assert convolutions == [3, 5, 10, 14, 24, 32, 40, 60, 76, 92, 132, 164, 196]
    assert [layer.receptive_field for layer in layers if layer.op_type == "Linear"] == [None] * 3
    assert [layer.receptive_field[0] for layer in analysis.find_stages(layers)] == [5, 14, 40, 92, 196]


def linearize(model):
    """Make a network linear with positive weights, so that each path to a pixel adds to its gradient."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                size = (child.kernel_size, child.stride, child.padding)
                setattr(module, name, nn.AvgPool2d(*size, ceil_mode=child.ceil_mode))
            elif isinstance(child, nn.ReLU | nn.BatchNorm2d | nn.LocalResponseNorm):
                setattr(module, name, nn.Identity())
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1 / max(1, parameter[0].numel()))
    return model.double().eval()


def compute_gradient_region(model, layer, shape, row, column):
    """Compute the bounding box of the pixels with a non-zero gradient of a unit."""
    image = torch.rand(1, *shape, dtype=torch.double, requires_grad=True)
    (maps,) = analysis.create_feature_extractor(model, [layer.name])(image)
    (gradient,) = torch.autograd.grad(maps[0, :, row, column].sum(), image)
    nonzero = gradient[0].abs().sum(0) > 0
    rows, columns = (torch.nonzero(nonzero.any(axis)).flatten() for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


class Branches(nn.Module):
    """Network of two concatenated branches with different receptive fields, and a residual branch."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.shifted = nn.Conv2d(3, 4, (1, 7), stride=2, padding=(0, 1))
        self.tall = nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=(2, 1))

    def forward(self, x):
        shifted = nn.functional.pad(self.shifted(x), (0, 2))
        x = torch.cat([self.wide(x), shifted], 1)
        return x + nn.functional.avg_pool2d(self.tall(x), 3, 1, 1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 4, 3, 1), nn.Conv2d(2, 2, 3, padding=2, dilation=2)), (1, 60, 66)),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.ConvTranspose2d(2, 2, 2, 2), nn.Conv2d(2, 1, 3)), (1, 41, 41)),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(8), nn.Conv2d(2, 1, 2)), (1, 50, 50)),
        (Branches, (3, 64, 64)),
        (lambda: models.deep_convnet(channels=3, size=64), (3, 64, 64)),
        (lambda: models.resnet20(), (3, 128, 128)),
        (lambda: models.googlenet(), (3, 448, 448)),
        (lambda: models.resnet18(), (3, 448, 448)),
    ],
    ids=["strides", "transposed", "adaptive", "branches", "deep_convnet", "resnet20", "googlenet", "resnet18"],
)
def test_the_gradient_covers_exactly_the_theoretical_receptive_field(make, shape):
    model = linearize(make())
    last = [layer for layer in analysis.summarize_layers(model, shape) if layer.receptive_field][-1]
    row, column = (
        side // 4 * 2 for side in last.output_shape[1:]
    )  # even: after upsampling, odd units have their field
    top, left, bottom, right = last.get_input_region(row, column)
    assert (bottom - top, right - left) == last.receptive_field
    clipped = max(top, 0), max(left, 0), min(bottom, shape[1]), min(right, shape[2])
    assert compute_gradient_region(model, last, shape, row, column) == clipped


def test_output_memory_counts_only_new_memory():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Dropout(), nn.Flatten())
    assert [layer.output_bytes for layer in analysis.summarize_layers(model, (1, 6, 5))] == [96, 0, 96, 0, 0]


def test_a_module_used_twice_is_two_layers_with_one_set_of_weights():
    convolution = nn.Conv2d(2, 2, 3, padding=1)
    layers = analysis.summarize_layers(nn.Sequential(convolution, nn.ReLU(), convolution), (2, 8, 8))
    assert [layer.num_parameters for layer in layers] == [38, 0, 0]
    assert [layer.receptive_field for layer in layers] == [(3, 3), (3, 3), (5, 5)]
    assert [layer.name for layer in layers] == ["0", "1", "0:2"]


def test_the_callers_network_is_not_modified():
    model = models.deep_convnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    analysis.summarize_layers(model, (1, 28, 28))
    receptive_field.compute_effective_receptive_field(model, (1, 28, 28), num_samples=1)
    feature_visualization.compute_grad_cam(model, torch.rand(1, 28, 28), 3)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_errors_for_unsupported_networks_and_shapes():
    class DataDependent(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(Error, match="depends on its values"):
        analysis.summarize_layers(DataDependent(), (1, 4, 4))
    with pytest.raises(UsageError, match=r"does not accept images of 3x28x28 \(layer 0"):
        analysis.summarize_layers(models.deep_convnet(), (3, 28, 28))
    with pytest.raises(UsageError, match="channels, height and width"):
        analysis.summarize_layers(models.deep_convnet(), (28, 28))
    with pytest.raises(UsageError, match="no convolution"):
        analysis.find_last_activation(
            analysis.summarize_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
        )


def test_the_effective_receptive_field_of_equal_weights_is_a_repeatedly_convolved_box():
    depth, side = 6, 31
    model = linearize(nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1) for _ in range(depth))))
    field = receptive_field.compute_effective_receptive_field(model, (1, side, side), num_samples=2)
    profile = np.ones(1)
    for _ in range(depth):
        profile = np.convolve(profile, np.ones(3) / 3)
    expected = np.pad(np.outer(profile, profile), (side - len(profile)) // 2)
    np.testing.assert_allclose(field.gradient_map.numpy(), expected, atol=1e-12)
    assert field.region == (9, 9, 22, 22)
    smallest = next(
        2 * radius + 1
        for radius in range(7)
        if expected[15 - radius : 16 + radius, 15 - radius : 16 + radius].sum() >= 0.9545
    )
    assert field.size == smallest
    gaussian = 2 * 2.276 * math.sqrt(depth * 2 / 3)  # side of the square with 95.45 % of a Gaussian of this variance
    assert abs(field.size - gaussian) <= 2


def test_errors_of_the_effective_receptive_field():
    with pytest.raises(UsageError, match="'30' has no receptive field; choose one of: 0, 1, 2"):
        receptive_field.compute_effective_receptive_field(models.deep_convnet(), (1, 28, 28), "30")
    with pytest.raises(UsageError, match="num_samples"):
        receptive_field.compute_effective_receptive_field(models.deep_convnet(), (1, 28, 28), num_samples=0)


def test_savings_of_stacked_filters_equal_the_note():
    assert doctest.testmod(stacked_filters).failed == 0
    assert round(stacked_filters.compute_weight_savings(3, 3), 2) == 0.45
    assert round(stacked_filters.compute_weight_savings(4, 3), 2) == 0.56
    for n in range(1, 8):
        for m in range(2, 8):
            denominator = m**2 * n**2 - 2 * m * n**2 + n**2 + 2 * n * m - 2 * n + 1  # expanded as in the note
            assert stacked_filters.compute_weight_savings(n, m) == pytest.approx((denominator - m**2 * n) / denominator)
            stack = sum(nn.Conv2d(3, 3, m, bias=False, device="meta").weight.numel() for _ in range(n))
            single = nn.Conv2d(
                3, 3, stacked_filters.compute_receptive_field(n, m), bias=False, device="meta"
            ).weight.numel()
            assert stacked_filters.compute_weight_savings(n, m) == pytest.approx(1 - stack / single)
    assert stacked_filters.tabulate_weight_savings()[2] == (3, 7, 27, 49, pytest.approx(22 / 49))
    assert len(stacked_filters.plot_weight_savings().axes[0].get_lines()) == 3


@pytest.mark.parametrize("arguments", [(0, 3), (3, 1), (2.0, 3), (3, "3")])
def test_invalid_numbers_and_sizes_of_filters_are_rejected(arguments):
    with pytest.raises(UsageError, match="should be an integer"):
        stacked_filters.compute_weight_savings(*arguments)


def test_grad_cam_of_a_network_that_ends_in_average_pooling_is_its_class_activation_map():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True))
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    image = torch.rand(3, 6, 8)
    maps = body(image[None])[0].detach()
    for target in range(4):
        weights = model[4].weight[target].detach()
        activation = torch.einsum("k,khw->hw", weights, maps).relu()
        heatmap = feature_visualization.compute_grad_cam(model, image, target)
        torch.testing.assert_close(heatmap, activation / (6 * 8))


def test_grad_cam_by_hand():
    """For one 2×2 map and the score 3·sum + 4, the gradient is 3 everywhere and the heatmap 3 times the map."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.fill_(2)
        model[3].weight.fill_(3)
        model[3].bias.fill_(4)
    image = torch.tensor([[[0.0, 1.0], [0.5, -1.0]]])
    torch.testing.assert_close(
        feature_visualization.compute_grad_cam(model, image, 0), torch.tensor([[0.0, 6.0], [3.0, 0.0]])
    )


def test_in_place_layers_do_not_change_feature_maps():
    model = models.deep_convnet().eval()
    image = torch.rand(1, 28, 28)
    maps = feature_visualization.compute_feature_maps(model, image, ["0", "1", "14"])
    with torch.no_grad():
        first = model[0](image[None])[0]
        torch.testing.assert_close(maps["0"], first)
        torch.testing.assert_close(maps["1"], first.relu())
        torch.testing.assert_close(maps["14"], model[:15](image[None])[0])
    assert (maps["0"] < 0).any()


def test_top_patches_contain_the_pattern_of_the_filter(random):
    pattern = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([2 * pattern - 1, -torch.ones(3, 3)])[:, None])
        model[0].bias.copy_(torch.tensor([0.0, 9.0]))
    images = torch.from_numpy(random.integers(40, 90, (7, 1, 12, 15), dtype=np.uint8))
    for index, (row, column) in {2: (4, 7), 5: (0, 11)}.items():
        images[index, 0, row : row + 3, column : column + 3] = (pattern * (200 + index)).to(torch.uint8)
    images[6, 0, :2, :2] = 0  # the second filter detects dark patches; padding is dark, so a corner is the darkest
    layers = analysis.summarize_layers(model, (1, 12, 15))
    patches = feature_visualization.find_top_patches(
        model, images.split(3), [(layers[-1], [0, 1])], normalize=lambda batch: batch / 255, num_patches=2
    )
    bright, dark = patches["1"]
    assert [int(patch.pixels.max()) for patch in bright] == [205, 202]
    for patch in bright:
        torch.testing.assert_close(patch.pixels[0].float() / patch.pixels.max(), pattern)
        assert patch.activation == pytest.approx(5 * int(patch.pixels.max()) / 255, rel=1e-5)
    gray = feature_visualization.PADDING_VALUE
    assert dark[0].pixels[0].tolist() == [[gray, gray, gray], [gray, 0, 0], [gray, 0, 0]]
    assert dark[0].activation == pytest.approx(9)
    with torch.no_grad():
        largest = model(images / 255)[:, 1].flatten(1).amax(1).sort(descending=True).values
    assert [patch.activation for patch in dark] == pytest.approx(largest[:2].tolist())  # at most one of an image
    maps = torch.tensor([[[0.0, 9.0]], [[5.0, 5.0]], [[8.0, 0.0]]])
    assert feature_visualization.select_strongest_maps(maps, 2) == [0, 2]
    assert len(dark) == 2


def test_explain_prints_the_layers_of_a_model(fukami):
    result = fukami("explain", "deep_convnet", "--input-shape", "3x32x32", "--num-classes", "7")
    assert result.status == 0, result.err
    header, *rows = result.out.split("\n\n")[0].splitlines()
    columns = ["layer", "kind", "output", "parameters", "multiply-adds", "memory", "receptive field", "stride"]
    assert re.split(r"  +", header) == columns
    assert {len(row.split()) for row in rows} == {8}
    assert rows[0].split() == ["0", "StemConv2d", "16×32×32", "448", "442,368", "65,536", "3×3", "1"]
    assert rows[-1].split() == ["19", "Linear", "7", "357", "350", "28", "all", "-"]
    cells = [[int(cell.replace(",", "")) for cell in row.split()[3:6]] for row in rows]
    parameters, cost, memory = (sum(column) for column in zip(*cells, strict=True))
    totals = dict(line.split("  ", 1) for line in result.out.split("\n\n")[1].splitlines())
    assert totals["parameters"].strip() == f"{parameters:,}"
    assert totals["multiply-adds"].split()[0] == f"{cost:,}"
    assert totals["memory"].split()[0] == f"{memory:,}"
    assert totals["depth"].split()[0] == "8"
    assert totals["receptive field"].split()[0] == "36×36"
    assert fukami("explain", "deep_convnet", "--input-shape", "3x32x32", "--num-classes", "7").out == result.out


def test_explain_writes_a_page_of_a_model(fukami, tmp_path):
    result = fukami("explain", "resnet20", "--out", "page")
    assert result.status == 0, result.err
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert text.count("<img") == 5
    assert "269,722" in text
    assert '<td class="number">0.449</td>' in text
    assert 'src="http' not in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "specify a model or a run"),
        (["vgg"], "'vgg16'"),
        (["deep-convnt"], "'deep-convnet'"),
        (["dqn", "--input-shape", "4x20x20"], "at least"),
        (["vgg16", "--input-shape", "3x22"], "such as 3x224x224, not '3x22'"),
        (["vgg16", "--input-shape", "3x0x22"], "3x224x224"),
        (["vgg16", "--input-shape", "3x16x16"], "at least 32×32"),
        (["deep_convnet", "--input-shape", "1x28x20"], "does not accept images of 1x28x20"),
        (["deep_convnet", "--num-classes", "0"], "--num-classes should be at least 1"),
        (["dcgan_generator"], "explain dcgan_discriminator"),
        (["resnet18", "cat.jpg"], "model without trained weights"),
        (["deep-convnet", "--input-shape", "1x28x28"], "remove them for the run deep-convnet"),
        (["deep-convnet", "deep-convnet", "cat.jpg"], "explain takes one run"),
    ],
)
def test_wrong_usage_of_explain(fukami, arguments, hint):
    result = fukami("explain", *arguments)
    assert result.status == 2, result
    assert hint in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


def test_explain_prints_the_layers_of_a_run(fukami, trained):
    result = fukami("explain", trained)
    assert result.status == 0, result.err
    assert "the run's weights" in result.out
    assert not (trained / "explain").exists()


def test_the_search_for_patches_is_limited(monkeypatch):
    from fukami.cli import explain

    monkeypatch.setattr(explain, "MAX_MULTIPLY_ADDS", 0)
    batches, note = explain.load_training_images(DeepConvNet(), 1)
    images = torch.cat([images for images, *_ in DeepConvNet().load_data().train.iterate_in_order()])
    assert note.startswith("96 of the 1,438 training images")
    assert torch.equal(torch.cat(batches), images[::15])


def test_explain_writes_one_page_for_images_and_names_unreadable_files(fukami, trained, digit_files, tmp_path):
    files = sorted(digit_files.rglob("*.png"))[:2]
    (tmp_path / "text.png").write_text("not an image")
    result = fukami("explain", trained, files[0], "text.png", files[1], "--out", "page")
    assert result.status == 1
    assert "text.png" in result.err
    assert "Traceback" not in result.err
    assert [line["file"] for line in result.json] == list(map(str, files))
    predicted = fukami("predict", trained, *files).json
    for line, prediction in zip(result.json, predicted, strict=True):
        assert {*line} == {"file", "label", "probability", "page"}
        assert (line["label"], line["probability"]) == (prediction["label"], prediction["probability"])
        assert line["page"] == "page/index.html"
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for title in (
        "Feature maps",
        "Filters of the first layer",
        "Training patches",
        "Receptive field of the last",
        "Layers",
    ):
        assert title in text
    assert all(file.name in text for file in files)
    assert "1,438 of the 1,438 training images" in text


def test_explain_continues_without_the_training_data(fukami, trained, digit_files, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("explain"))
    record = json.loads((run / "recipe.json").read_text())
    record["fields"]["data"] = "no-such-folder"
    (run / "recipe.json").write_text(json.dumps(record))
    result = fukami("explain", run, next(digit_files.rglob("*.png")))
    assert result.status == 0, result.err
    assert "no training patches" in result.err
    assert result.json[0]["page"] == str(run / "explain" / "index.html")
    assert "training patches" not in (run / "explain" / "index.html").read_text(encoding="utf-8")


def test_color_filters_are_plotted_in_color_and_grayscale_ones_in_gray():
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0] = 1.0  # only red
    image = feature_visualization.plot_filters(weights).axes[0].get_images()[0].get_array()
    assert tuple(image[0, 0]) == (1.0, 0.5, 0.5)
    grayscale = feature_visualization.plot_filters(torch.ones(2, 1, 2, 2)).axes[0].get_images()[0].get_array()
    assert np.ptp(grayscale[0, 0]) == 0


def test_a_grayscale_image_and_its_heatmap_are_plotted():
    heatmap = torch.zeros(4, 4)
    figure = feature_visualization.plot_prediction(
        torch.zeros(1, 28, 28, dtype=torch.uint8), heatmap, [("a price of $5$ and a very long name", 1.0)]
    )
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert Image.open(buffer).width > 100


def test_explain_of_dqn_for_images_of_another_size(fukami):
    result = fukami("explain", "dqn", "--input-shape", "4x42x42")
    assert result.status == 0, result.err
    assert "32×9×9" in result.out  # (42 - 8) // 4 + 1
