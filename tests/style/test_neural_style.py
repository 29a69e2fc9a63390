"""Tests of neural style transfer: losses, network, optimizer, image pyramid and command line."""

import json
import logging
import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import check_task
from fukami import Error, UsageError, models, train
from fukami.engine import pretrained, run_record
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io
from fukami.style import data as style_data
from fukami.style import losses as style_losses
from fukami.style.lbfgs import LBFGS
from fukami.style.neural_style import NeuralStyle
from fukami.style.task import (
    RANGE_PENALTY_WEIGHT,
    STYLE_WEIGHT,
    StyleInputs,
    StyleTransferTask,
    compute_level_sizes,
    load_image,
    match_luminance,
)

# style layers and content layer: the ReLUs among torchvision's features
LAYERS = {"vgg16": ([1, 6, 11, 18, 25], 20), "vgg19": ([1, 6, 11, 20, 29], 22)}
SMALL = {"size": 96, "levels": 2, "iterations": 16, "eval_every": 8}


def test_default_images_are_those_of_scikit_learn_and_scikit_image():
    from skimage.data import hubble_deep_field
    from sklearn.datasets import load_sample_image

    assert np.array_equal(style_data.load_content_image(), load_sample_image("china.jpg"))
    assert np.array_equal(style_data.load_style_image(), hubble_deep_field())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files of a content image and two style images."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    down, across = np.mgrid[:72, :96]
    for name, pattern in {"content": down + across, "style": (9 * down) % 97, "other": across * down}.items():
        pixels = np.stack([pattern, pattern * 2, 255 - pattern], 2) % 256
        Image.fromarray((pixels * 0.8 + random.integers(0, 50, pixels.shape)).astype(np.uint8)).save(
            folder / f"{name}.png"
        )
    return folder


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch, tmp_path):
    """Hide local weights, so that the filters are random."""
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def build_task(recipe, precision="float32"):
    """Build the initialized task of a recipe and its batch."""
    torch.manual_seed(0)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", precision))
    task.prepare_training()
    recipe.initialize_task(task)
    return task, data.train[0]


@pytest.mark.parametrize(("name", "convolutions"), [("vgg16", 11), ("vgg19", 13)])
def test_feature_maps_are_those_of_vgg_with_average_pooling(name, convolutions):
    """torchvision's weights load unchanged; the feature maps follow the ReLUs that the paper names."""
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None).features
    network = getattr(models, f"neural_style_{name}")()
    state = network.state_dict()
    assert len(state) == 2 * convolutions
    network.load_state_dict(
        {key: value for key, value in reference.state_dict(prefix="features.").items() if key in state}
    )
    image = torch.randn(1, 3, 48, 64)
    style_layers, content_layer = LAYERS[name]
    expected, x = {}, image
    for index, layer in enumerate(reference):
        x = nn.functional.avg_pool2d(x, 2) if isinstance(layer, nn.MaxPool2d) else layer(x)
        expected[index] = x.clone()
    style_maps, content_maps = network(image)
    for index, maps in zip(style_layers, style_maps, strict=True):
        torch.testing.assert_close(maps, expected[index])
    torch.testing.assert_close(content_maps, expected[content_layer])
    assert [maps.shape[1] for maps in style_maps] == network.style_channels == [64, 128, 256, 512, 512]


def test_loss_equals_the_papers_equations_in_float64(images):
    """Equations 1, 3, 4, 5 and 7 in NumPy, for an image that is neither the content nor the style image."""
    recipe = NeuralStyle(content=str(images / "content.png"), style=(str(images / "style.png"),), size=64, levels=1)
    task, batch = build_task(recipe)
    image = torch.rand(3, 48, 64)
    task.model.double()
    task.pyramid.double()
    task.content_targets.clear()

    def compute_maps(image):
        style_maps, content_maps = task.model(task.normalize_image(image.double()))
        return [maps[0].flatten(1).detach().numpy() for maps in (*style_maps, content_maps)]

    content = compute_maps(batch.content[0] / 255)[-1]
    *image_style, image_content = compute_maps(image)
    *style, _ = compute_maps(batch.styles[0][0] / 255)
    terms = []
    for F, S in zip(image_style, style, strict=True):
        (N, M), m = F.shape, S.shape[1]
        G, A = np.einsum("ik,jk->ij", F, F), np.einsum("ik,jk->ij", S, S) * M / m  # scaled to the number of positions
        terms.append(np.sum((G - A) ** 2) / (4 * N**2 * M**2))
    expected = {"content_loss": np.sum((image_content - content) ** 2) / 2, "style_loss": sum(terms) / 5}
    loss, losses = task.compute_losses(image, batch.content, 0)
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-4), name
    total = expected["content_loss"] + STYLE_WEIGHT * content.size * expected["style_loss"]
    assert float(loss) == pytest.approx(total, rel=1e-4)
    bright = 2 * image - 0.3
    loss, losses = task.compute_losses(bright, batch.content, 0)
    excess = np.maximum(bright.numpy() - 1, 0) + np.maximum(-bright.numpy(), 0)
    total = float(losses["content_loss"]) + STYLE_WEIGHT * content.size * float(losses["style_loss"])
    assert float(loss) - total == pytest.approx(RANGE_PENALTY_WEIGHT * np.sum(excess**2), rel=1e-3)


def test_gradients_of_the_losses_equal_finite_differences():
    torch.manual_seed(0)
    maps, target = torch.randn(1, 5, 6, 7, dtype=torch.double), torch.randn(5, 5, dtype=torch.double)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(style_losses.compute_gram_matrix, maps)
    assert torch.autograd.gradcheck(
        lambda x: style_losses.compute_style_loss([style_losses.compute_gram_matrix(x)], [target]), maps
    )
    assert torch.autograd.gradcheck(
        lambda x: style_losses.compute_content_loss(x, torch.zeros(1, 5, 6, 7).double()), maps
    )
    assert torch.autograd.gradcheck(lambda x: style_losses.compute_total_variation(x[0]), maps)


def test_gradient_of_the_pixels_equals_finite_differences(images):
    """The gradient of the total loss, in a random direction."""
    recipe = NeuralStyle(content=str(images / "content.png"), size=48, levels=1, tv_weight=2.0)
    task, batch = build_task(recipe)
    task.model.double()
    task.pyramid.double()
    image = (1.2 * torch.rand(3, 36, 48) - 0.1).double().requires_grad_()
    direction = torch.randn_like(image)
    task.compute_losses(image, batch.content, 0)[0].backward()
    step = 1e-8  # small, so that few ReLUs change their sign
    with torch.no_grad():
        after, before = (task.compute_losses(image + sign * step * direction, batch.content, 0)[0] for sign in (1, -1))
    assert float((after - before) / (2 * step)) == pytest.approx(float((image.grad * direction).sum()), rel=1e-4)


def test_gram_gradient_in_16_bits_equals_32_bits():
    torch.manual_seed(0)
    maps = torch.randn(1, 64, 20, 24).contiguous(memory_format=torch.channels_last)
    target = torch.randn(64, 64)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        copy = maps.to(dtype).detach().requires_grad_()
        style_losses.compute_style_loss([style_losses.compute_gram_matrix(copy)], [target]).backward()
        assert copy.grad.is_contiguous(memory_format=torch.channels_last)
        gradients.append(copy.grad.float())
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[0].norm()


def test_lbfgs_equals_torchs():
    """15 steps equal one step of torch's with 15 iterations."""
    torch.manual_seed(0)
    matrix, start = torch.randn(12, 12), torch.randn(12)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))

    def loss(x):
        return ((matrix @ x) ** 2).sum() + (x**4).sum()

    def closure():
        reference.zero_grad()
        value = loss(theirs)
        value.backward()
        return value

    reference = torch.optim.LBFGS([theirs], max_iter=15, history_size=20, tolerance_grad=0, tolerance_change=0)
    reference.step(closure)
    loss(ours).backward()
    first = (ours.grad / ours.grad.abs().sum()).abs().max().item()  # change in torch's first step
    optimizer = LBFGS([ours], max_first_change=first, max_change=100.0)
    for _ in range(15):
        optimizer.zero_grad()
        loss(ours).backward()
        optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert loss(ours) < 0.01 * loss(start)


def test_lbfgs_limits_the_change_of_a_step():
    """The maximum change holds for any gradient, and the first step is not too short."""
    torch.manual_seed(0)
    value = torch.rand(1000, requires_grad=True)
    optimizer = LBFGS([value], max_first_change=0.02, max_change=0.1)
    scale = torch.logspace(0, 6, 1000)
    for step in range(12):
        before = value.detach().clone()
        optimizer.zero_grad()
        (scale * (value - 0.5) ** 2).sum().backward()
        optimizer.step()
        change = (value.detach() - before).abs().max().item()
        assert change == pytest.approx(0.02, rel=1e-4) if step == 0 else change <= 0.1 * 1.0001
    assert (scale * (value - 0.5) ** 2).sum() < 0.02 * (scale * (torch.tensor(0.25))).sum()


def test_lbfgs_with_a_gradient_of_0():
    """Such as that of an image in its own style; a later gradient is used."""
    value = torch.ones(2, requires_grad=True)
    optimizer = LBFGS([value])
    for target in (1.0, 0.0):
        optimizer.zero_grad()
        ((value - target) ** 2).sum().backward()
        optimizer.step()
        torch.testing.assert_close(value.detach(), torch.full((2,), 1.0 if target else 0.98))


def test_level_sizes_from_coarse_to_fine():
    assert compute_level_sizes((512, 384), 3) == [(96, 128), (192, 256), (384, 512)]
    assert compute_level_sizes((512, 384), 1) == [(384, 512)]
    assert compute_level_sizes((512, 384), 0) == compute_level_sizes((512, 384), 3)
    coarsest = {size: compute_level_sizes((size, size), 0)[0][0] for size in (100, 128, 255, 256, 700, 1024, 2047)}
    assert coarsest == {100: 100, 128: 128, 255: 255, 256: 128, 700: 175, 1024: 128, 2047: 256}
    with pytest.raises(Error, match="512×20 pixels is too narrow: each side should be at least 32"):
        compute_level_sizes((512, 20), 3)


def test_each_level_starts_with_the_upsampled_result_of_the_previous_one(images):
    """The content's details that were too fine for the previous level are added; then a step follows."""
    recipe = NeuralStyle(content=str(images / "content.png"), **SMALL)
    task, batch = build_task(recipe)
    for step in range(8):
        task.schedule(step / 24)
        task.step(batch)
    coarse = task.pyramid.images[0].detach().clone()
    assert not task.pyramid.images[1].any()
    task.schedule(8 / 24)
    task.advance_level(batch.content)

    def resize(image, *size):
        return nn.functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0]

    content = batch.content[0] / 255
    details = resize(content, 72, 96) - resize(resize(content, 36, 48), 72, 96)
    torch.testing.assert_close(task.pyramid.images[1], resize(coarse, 72, 96) + details)
    assert int(task.pyramid.level) == 1
    task.step(batch)
    assert torch.equal(task.pyramid.images[0], coarse)


def test_style_targets_are_weighted_means(images):
    """The weights 1 and 3 give a quarter of the first and three quarters of the second style."""
    names = [str(images / f"{name}.png") for name in ("style", "other")]
    recipe = NeuralStyle(content=str(images / "content.png"), style=tuple(names), style_weights=(1.0, 3.0), **SMALL)
    task, batch = build_task(recipe)
    for layer, target in enumerate(task.pyramid.get_style_targets(1)):
        maps = (task.model(task.normalize_image(style[0] / 255))[0][layer] for style in batch.styles)
        first, second = map(style_losses.compute_gram_matrix, maps)
        torch.testing.assert_close(target, 0.25 * first + 0.75 * second, rtol=1e-3, atol=1e-4)


def test_initial_image_is_the_content_or_noise(images):
    for init, expected in (("content", 0.0), ("noise", 0.05)):
        recipe = NeuralStyle(content=str(images / "content.png"), init=init, **SMALL)
        task, batch = build_task(recipe)
        content = nn.functional.interpolate(batch.content / 255, (36, 48), mode="bicubic", antialias=True)[0]
        distance = (task.pyramid.images[0] - content).abs().mean()
        assert distance <= 1e-6 if expected == 0 else distance > expected


def test_content_colors_are_preserved(images):
    """Only the luminance changes; the chrominance in YCbCr is the content's."""
    recipe = NeuralStyle(content=str(images / "content.png"), colors="content", **SMALL)
    task, batch = build_task(recipe)
    for step in range(24):
        task.schedule(step / 24)
        task.step(batch)
    task.evaluate([batch])
    content = Image.fromarray(batch.content[0].permute(1, 2, 0).numpy())
    output, original = (np.asarray(image.convert("YCbCr")).astype(int) for image in (task.render_image(), content))
    luminance, *chrominance = np.abs(output - original).mean((0, 1))
    assert luminance > 3
    assert max(chrominance) < 3  # above 0 because of clipping


def test_the_luminance_of_a_style_image_is_matched_to_the_content(images, tmp_path):
    """So a darker copy of the style image has the same targets (Gatys et al., Preserving Color, section 4.2)."""
    torch.manual_seed(0)
    content, style = torch.rand(1, 9, 8), 0.2 * torch.rand(1, 9, 8)
    matched = match_luminance(style, content)
    assert matched.mean() == pytest.approx(content.mean().item(), abs=1e-6)
    assert matched.std() == pytest.approx(content.std().item(), abs=1e-6)
    dark = Image.open(images / "style.png").point(lambda level: level // 2)
    dark.save(tmp_path / "dark.png")
    targets = []
    for file in (images / "style.png", tmp_path / "dark.png"):
        recipe = NeuralStyle(content=str(images / "content.png"), style=(str(file),), colors="content", **SMALL)
        targets.append(build_task(recipe)[0].pyramid.get_style_targets(1))
    for one, other in zip(*targets, strict=True):
        assert (one - other).norm() < 0.02 * one.norm()


@pytest.mark.slow
def test_lower_strength_preserves_more_of_the_content(images):
    metrics = {}
    for strength in (1e-6, 1.0):
        recipe = NeuralStyle(content=str(images / "content.png"), strength=strength, **SMALL)
        task, batch = build_task(recipe)
        for step in range(24):
            task.schedule(step / 24)
            task.step(batch)
        metrics[strength] = task.evaluate([batch])
    assert metrics[1e-6]["content_loss"] < 0.5 * metrics[1.0]["content_loss"]
    assert metrics[1e-6]["style_loss"] > metrics[1.0]["style_loss"]


def test_predictions_from_noise_do_not_depend_on_other_images(images):
    task, _ = build_task(NeuralStyle(content=str(images / "content.png"), init="noise", **SMALL | {"iterations": 2}))
    first, second = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")
    expected = task.predict([first])[0]["loss"]
    assert task.predict([second, first])[1]["loss"] == expected


@pytest.mark.slow
def test_tv_weight_smooths_the_image(images):
    variation = {}
    for tv in (0.0, 1e4):
        recipe = NeuralStyle(content=str(images / "content.png"), init="noise", tv_weight=tv, **SMALL)
        task, batch = build_task(recipe)
        for step in range(24):
            task.schedule(step / 24)
            task.step(batch)
        variation[tv] = float(style_losses.compute_total_variation(task.pyramid.get_image(1).detach()))
    assert variation[1e4] < 0.7 * variation[0.0]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_training_lowers_the_loss(optimizer, images, tmp_path):
    recipe = NeuralStyle(content=str(images / "content.png"), optimizer=optimizer, **{**SMALL, "iterations": 24})
    task, batch = build_task(recipe)
    task.schedule(0.9)
    before = task.evaluate([batch])["loss"]
    metrics = train(recipe, tmp_path / "run", device="cpu", precision="float32").metrics
    assert metrics["loss"] < 0.8 * before
    preview = image_io.read_image(tmp_path / "run" / "preview.png")
    assert preview.size == (96, 72)


@pytest.mark.slow
def test_a_run_stylizes_other_images(images, tmp_path):
    """The content image of the run has the same result as in training; others keep their aspect ratio."""
    content = images / "content.png"
    recipe = NeuralStyle(content=str(content), style=(str(images / "style.png"),), **SMALL)
    train(recipe, tmp_path / "run", device="cpu", precision="float32")
    task = load_task(tmp_path / "run", device="cpu")
    Image.open(content).crop((0, 0, 60, 72)).save(tmp_path / "tall.png")
    same, tall = task.predict([content, tmp_path / "tall.png"])
    assert (same["width"], same["height"], tall["width"], tall["height"]) == (96, 72, 80, 96)
    image = image_io.read_image(content)
    assert np.array_equal(task.draw(image, same), image_io.read_image(tmp_path / "run" / "preview.png"))
    assert task.draw(image, tall).size == (80, 96)
    other = load_task(tmp_path / "run", device="cpu")
    assert np.array_equal(other.draw(image, json.loads(json.dumps(same))), task.draw(image, same))
    (narrow,) = task.predict([Image.new("RGB", (400, 20))])
    assert "too narrow" in narrow["error"]


def test_a_run_is_evaluated_without_the_weights_that_it_names(images, tmp_path, monkeypatch):
    recipe = NeuralStyle(content=str(images / "content.png"), style=(str(images / "style.png"),), **SMALL)
    train(recipe, tmp_path / "run", device="cpu", precision="float32")
    monkeypatch.setattr(pretrained, "load_vgg", lambda weights: pytest.fail("the weights are read"))
    recipe, _ = run_record.read_recipe(tmp_path / "run")
    task = load_task(tmp_path / "run", device="cpu")
    assert task.evaluate(recipe.load_eval_data().eval_batches)["loss"] > 0


@pytest.mark.slow
def test_local_vgg_weights_are_located(tmp_path, monkeypatch, caplog):
    """VGG-19 is preferred, in dataset folders and next to them; weights of other networks are errors."""
    assert pretrained.load_vgg("") == ("vgg16", {})
    build_task(NeuralStyle(**SMALL))
    assert caplog.text.count("random filters are used") == 1
    networks = {
        name: torchvision.models.get_model(name, weights=None).features for name in ("vgg16", "vgg19", "vgg16_bn")
    }
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("vgg16", "vgg19"):
        state = {key: value.half() for key, value in networks[name].state_dict(prefix="features.").items()}
        path = tmp_path / ("weights" if name == "vgg16" else "data") / f"{name}-imagenet.safetensors"
        save_file(state, path)
        loaded_name, tensors = pretrained.load_vgg("")
        assert loaded_name == name
        assert torch.equal(tensors["features.0.weight"], state["features.0.weight"].float())
        assert pretrained.load_vgg(str(path))[0] == name
    vgg11 = torchvision.models.vgg11(weights=None)
    torch.save(networks["vgg16_bn"].state_dict(prefix="features."), tmp_path / "bn.pth")
    save_file(vgg11.features.state_dict(prefix="features."), tmp_path / "vgg11.safetensors")
    for file in ("bn.pth", "vgg11.safetensors"):
        with pytest.raises(Error, match=r"not of VGG-16 or VGG-19 without batch normalization"):
            pretrained.load_vgg(str(tmp_path / file))
    with pytest.raises(Error, match="cannot be read"):
        pretrained.load_vgg(str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": -1}, "size should be between 0 and 4096"),
        ({"iterations": 10**6}, "iterations should be between 1 and 100000"),
        ({"strength": -0.5}, "strength"),
        ({"levels": -1}, "levels should be between 0 and 12"),
        ({"style": ("a", "b"), "style_weights": (1.0,)}, "one style-weight per style, 2, not 1"),
        ({"style": ("a",), "style_weights": (0.0,)}, "not all 0"),
        ({"lr": 0.0}, "lr should be"),
    ],
)
def test_invalid_fields_are_errors(fields, message):
    with pytest.raises(UsageError, match=message):
        NeuralStyle(**fields)


def build_command(images, out, *options):
    """Return the arguments of a short ``fukami stylize`` command."""
    short = [
        "--size",
        96,
        "--levels",
        2,
        "--iterations",
        12,
        "--eval-every",
        8,
        "--device",
        "cpu",
        "--precision",
        "float32",
    ]
    return ["stylize", images / "content.png", "--style", images / "style.png", "--out", out, *short, *options]


def test_the_command_writes_an_image(fukami, images, tmp_path):
    result = fukami(*build_command(images, "art.png"))
    assert result.status == 0
    (metrics,) = result.json
    assert metrics["image"] == "art.png"
    assert metrics["file"] == str(images / "content.png")
    assert metrics["style"] == [str(images / "style.png")]
    assert metrics["loss"] > metrics["content_loss"] > 0
    assert metrics["count"] == 1
    assert image_io.read_image("art.png").size == (96, 72)
    assert sorted(path.name for path in Path().iterdir()) == ["art.png"]  # the run folder is deleted
    assert fukami(*build_command(images, "art.jpg")).status == 0
    with Image.open("art.jpg") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("art.txt", (), "--out should be a .png"),
        ("art", (), "--out should be a .png"),
        ("nowhere/art.png", (), "the folder nowhere of the image does not exist"),
        ("art.png", ("--weights", "none.pth"), "none.pth cannot be read"),
        ("art.png", ("--style-weights", "1", "2"), "one style-weight per style"),
        ("art.png", ("--strenght", "2"), "--strength"),
    ],
)
def test_the_command_reports_errors(fukami, images, out, options, message):
    result = fukami(*build_command(images, out, *options))
    assert result.status in (1, 2)
    assert message in result.err
    assert "Traceback" not in result.err
    assert list(Path().iterdir()) == []


def test_a_folder_that_cannot_be_resumed_is_kept(fukami, images):
    Path("art.run").mkdir()
    Path("art.run", "recipe.json").write_text("{}")
    Path("art.run", "notes").symlink_to(images)
    assert fukami(*build_command(images, "art.png", "--resume")).status == 1
    assert Path("art.run", "recipe.json").exists()


def test_the_command_does_not_overwrite_its_inputs(fukami, images):
    result = fukami(*build_command(images, images / "style.png"))
    assert result.status == 2
    assert "would overwrite" in result.err
    result = fukami("stylize", __file__, "--style", images / "style.png", "--out", "art.png")
    assert result.status == 1
    assert "test_neural_style.py is not an image" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(("step", "colors"), [(2, "content"), (6, "style")])  # before the first preview, and after it
def test_a_stopped_command_writes_the_current_image(fukami, images, monkeypatch, step, colors):
    """The command that it prints continues the run."""
    tasks, steps = [], []
    do_step = StyleTransferTask.step

    def step_and_stop(task, batch):
        metrics = do_step(task, batch)
        steps.append(metrics)
        task.content_image = batch.content  # render_image needs it before the first evaluation
        if len(steps) == step:
            tasks.append(task)
            signal.raise_signal(signal.SIGINT)
        return metrics

    options = ("--iterations", 8, "--eval-every", 4, "--colors", colors)
    assert fukami(*build_command(images, "full.png", *options)).status == 0
    monkeypatch.setattr(StyleTransferTask, "step", step_and_stop)
    result = fukami(*build_command(images, "my art.png", *options))
    assert (result.status, result.out) == (130, "")
    current = np.asarray(tasks[0].render_image())
    assert np.array_equal(image_io.read_image("my art.png"), current)
    preview = Path("my art.run", "preview.png")
    assert not np.array_equal(image_io.read_image(preview), current) if step > 4 else not preview.exists()
    assert result.err.count("my art.png contains the current image\n") == 1
    assert result.err.count("resume") == 2  # "resume with:" and the flag
    program, *words = shlex.split(result.err.partition("resume with: ")[2].splitlines()[0])
    assert (program, words[0]) == ("fukami", "stylize")
    assert fukami(*words).status == 0
    assert np.array_equal(image_io.read_image("my art.png"), image_io.read_image("full.png"))
    assert not Path("my art.run").exists()


@pytest.mark.slow
def test_resumed_image_equals_uninterrupted_image(images, tmp_path):
    """An interrupted command keeps its image and its run folder."""
    full = [str(word) for word in build_command(images, tmp_path / "full.png", "--iterations", 32)]
    resumed = [str(word) for word in build_command(images, tmp_path / "resumed.png", "--iterations", 32)]
    uninterrupted = check_task.CommandProcess(["fukami", *full])
    process = check_task.CommandProcess(["fukami", *resumed])
    check_task.wait_until(lambda: (tmp_path / "resumed.run" / "preview.png").exists() or not process.is_alive())
    os.kill(process.pid, signal.SIGINT)
    status, out, err = process.wait()
    assert status == 130
    assert out == ""
    assert f"{tmp_path / 'resumed.png'} contains the current image" in err
    assert image_io.read_image(tmp_path / "resumed.png").size == (96, 72)
    status, _, err = check_task.CommandProcess(["fukami", *resumed]).wait()
    assert status == 2
    assert "contains an interrupted run" in err
    status, out, _ = check_task.CommandProcess(["fukami", *resumed, "--resume"]).wait()
    assert status == 0
    assert uninterrupted.wait()[0] == 0
    assert json.loads(out)["image"] == str(tmp_path / "resumed.png")
    assert np.array_equal(image_io.read_image(tmp_path / "resumed.png"), image_io.read_image(tmp_path / "full.png"))


def test_load_image_resizes_the_longer_side(images):
    assert load_image(images / "content.png", 64).shape == (1, 3, 48, 64)
    assert load_image(images / "content.png", 0).shape == (1, 3, 72, 96)
    assert StyleInputs(load_image(images / "content.png", 192), ()).content.shape == (1, 3, 144, 192)


def test_trained_vgg_weights_are_located_next_to_the_datasets(monkeypatch, caplog):
    """Trained filters load without a warning."""
    shared = Path(__file__).parents[3] / "shared"
    if not (shared / "weights" / "vgg16_features_imagenet.safetensors").exists():
        pytest.skip("needs the weights of VGG-16: no ../shared/weights/vgg16_features_imagenet.safetensors")
    monkeypatch.setenv("FUKAMI_DATA", str(shared / "data"))
    caplog.set_level(logging.WARNING)
    name, tensors = pretrained.load_vgg("")
    assert name == "vgg16"
    assert len(tensors) == 26
    assert caplog.text == ""
