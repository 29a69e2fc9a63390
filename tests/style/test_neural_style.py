"""Neural style: its losses by hand, its network against torchvision's, its optimizer, its sizes, and the command."""

import json
import logging
import os
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
from fukami import Error, UsageError, load, models, train
from fukami.engine import pretrained
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io
from fukami.style import losses as style_losses
from fukami.style.lbfgs import LBFGS
from fukami.style.neural_style import NeuralStyle
from fukami.style.task import RANGE_PENALTY_WEIGHT, STYLE_WEIGHT, StyleInputs, compute_level_sizes, load_image

READ = {"vgg16": ([1, 6, 11, 18, 25], 20), "vgg19": ([1, 6, 11, 20, 29], 22)}  # ReLUs of torchvision's features
SMALL = {"size": 96, "levels": 2, "iterations": 16, "eval_every": 8}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A content and two styles, files."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    down, across = np.mgrid[:72, :96]
    for name, kind in {"content": down + across, "style": (9 * down) % 97, "other": across * down}.items():
        pixels = np.stack([kind, kind * 2, 255 - kind], 2) % 256
        Image.fromarray((pixels * 0.8 + random.integers(0, 50, pixels.shape)).astype(np.uint8)).save(
            folder / f"{name}.png"
        )
    return folder


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch, tmp_path):
    """Filters of chance, whatever lies about."""
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def begun(recipe, precision="float32"):
    """The task of a recipe at its first step, and its batch."""
    torch.manual_seed(0)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", precision))
    recipe.initialize_task(task)
    return task, data.train[0]


@pytest.mark.parametrize(("name", "convolutions"), [("vgg16", 11), ("vgg19", 13)])
def test_maps_are_those_of_vgg_with_averages(name, convolutions):
    """torchvision's tensors load as they are; each map is that after the ReLU that the paper names."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).features
    network = getattr(models, f"neural_style_{name}")()
    own = network.state_dict()
    assert len(own) == 2 * convolutions
    network.load_state_dict({key: value for key, value in theirs.state_dict(prefix="features.").items() if key in own})
    image = torch.randn(1, 3, 48, 64)
    layers, content = READ[name]
    maps, x = {}, image
    for number, layer in enumerate(theirs):
        x = nn.functional.avg_pool2d(x, 2) if isinstance(layer, nn.MaxPool2d) else layer(x)
        maps[number] = x.clone()
    found, shown = network(image)
    for number, own in zip(layers, found, strict=True):
        torch.testing.assert_close(own, maps[number])
    torch.testing.assert_close(shown, maps[content])
    assert [own.shape[1] for own in found] == network.style_channels == [64, 128, 256, 512, 512]


def test_the_loss_is_the_papers_in_float64(images):
    """Equations 1, 3, 4, 5 and 7 with NumPy, at an image that is neither content nor style."""
    recipe = NeuralStyle(content=str(images / "content.png"), style=(str(images / "style.png"),), size=64, levels=1)
    task, batch = begun(recipe)
    image = torch.rand(3, 48, 64)
    task.model.double()
    task.pyramid.double()
    task.content_targets.clear()

    def maps(image):
        found, shown = task.model(task.normalize_image(image.double()))
        return [each[0].flatten(1).detach().numpy() for each in (*found, shown)]

    content = maps(batch.content[0] / 255)[-1]
    *own, shown = maps(image)
    *painted, _ = maps(batch.styles[0][0] / 255)
    terms = []
    for F, S in zip(own, painted, strict=True):
        (N, M), m = F.shape, S.shape[1]
        G, A = np.einsum("ik,jk->ij", F, F), np.einsum("ik,jk->ij", S, S) * M / m  # the style's, of as many positions
        terms.append(np.sum((G - A) ** 2) / (4 * N**2 * M**2))
    expected = {"content_loss": np.sum((shown - content) ** 2) / 2, "style_loss": sum(terms) / 5}
    loss, parts = task.compute_losses(image, batch.content, 0)
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-4), name
    whole = expected["content_loss"] + STYLE_WEIGHT * content.size * expected["style_loss"]
    assert float(loss) == pytest.approx(whole, rel=1e-4)
    bright = 2 * image - 0.3
    loss, parts = task.compute_losses(bright, batch.content, 0)
    outside = np.maximum(bright.numpy() - 1, 0) + np.maximum(-bright.numpy(), 0)
    whole = float(parts["content_loss"]) + STYLE_WEIGHT * content.size * float(parts["style_loss"])
    assert float(loss) - whole == pytest.approx(RANGE_PENALTY_WEIGHT * np.sum(outside**2), rel=1e-3)


def test_gradients_agree_with_differences():
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


def test_the_gradient_at_the_pixels_agrees_with_differences(images):
    """Of the whole loss, in a random direction."""
    recipe = NeuralStyle(content=str(images / "content.png"), size=48, levels=1, tv_weight=2.0)
    task, batch = begun(recipe)
    task.model.double()
    task.pyramid.double()
    image = (1.2 * torch.rand(3, 36, 48) - 0.1).double().requires_grad_()
    way = torch.randn_like(image)
    task.compute_losses(image, batch.content, 0)[0].backward()
    step = 1e-8  # few ReLUs change their side
    with torch.no_grad():
        after, before = (task.compute_losses(image + sign * step * way, batch.content, 0)[0] for sign in (1, -1))
    assert float((after - before) / (2 * step)) == pytest.approx(float((image.grad * way).sum()), rel=1e-4)


def test_gram_in_16_bits_has_the_gradient_of_32():
    torch.manual_seed(0)
    maps = torch.randn(1, 64, 20, 24).contiguous(memory_format=torch.channels_last)
    target = torch.randn(64, 64)
    slopes = []
    for dtype in (torch.float32, torch.bfloat16):
        own = maps.to(dtype).detach().requires_grad_()
        style_losses.compute_style_loss([style_losses.compute_gram_matrix(own)], [target]).backward()
        assert own.grad.is_contiguous(memory_format=torch.channels_last)
        slopes.append(own.grad.float())
    assert (slopes[0] - slopes[1]).norm() < 0.01 * slopes[0].norm()


def test_lbfgs_goes_where_torchs_goes():
    """So many steps of ours are one of torch's with so many iterations."""
    torch.manual_seed(0)
    matrix, begin = torch.randn(12, 12), torch.randn(12)
    ours, theirs = (begin.clone().requires_grad_() for _ in range(2))

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
    first = (ours.grad / ours.grad.abs().sum()).abs().max().item()  # that of torch's first step
    optimizer = LBFGS([ours], max_first_change=first, max_change=100.0)
    for _ in range(15):
        optimizer.zero_grad()
        loss(ours).backward()
        optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert loss(ours) < 0.01 * loss(begin)


def test_lbfgs_never_leaps():
    """No value changes by more than is said, whatever the slope, and the first step is no whisper."""
    torch.manual_seed(0)
    value = torch.rand(1000, requires_grad=True)
    optimizer = LBFGS([value], max_first_change=0.02, max_change=0.1)
    scale = torch.logspace(0, 6, 1000)
    for number in range(12):
        before = value.detach().clone()
        optimizer.zero_grad()
        (scale * (value - 0.5) ** 2).sum().backward()
        optimizer.step()
        change = (value.detach() - before).abs().max().item()
        assert change == pytest.approx(0.02, rel=1e-4) if number == 0 else change <= 0.1 * 1.0001
    assert (scale * (value - 0.5) ** 2).sum() < 0.02 * (scale * (torch.tensor(0.25))).sum()


def test_sizes_from_coarse_to_fine():
    assert compute_level_sizes((512, 384), 3) == [(96, 128), (192, 256), (384, 512)]
    assert compute_level_sizes((512, 384), 1) == [(384, 512)]
    assert compute_level_sizes((512, 384), 0) == compute_level_sizes((512, 384), 3)
    coarsest = {size: compute_level_sizes((size, size), 0)[0][0] for size in (100, 128, 255, 256, 700, 1024, 2047)}
    assert coarsest == {100: 100, 128: 128, 255: 255, 256: 128, 700: 175, 1024: 128, 2047: 256}
    with pytest.raises(Error, match="512×20 pixels is too narrow: no side may have less than 32"):
        compute_level_sizes((512, 20), 3)


def test_each_size_begins_as_the_one_before_ended(images):
    """Enlarged, with the details of the content that were too fine before; and then comes a step."""
    recipe = NeuralStyle(content=str(images / "content.png"), **SMALL)
    task, batch = begun(recipe)
    for step in range(8):
        task.schedule(step / 24)
        task.step(batch)
    coarse = task.pyramid.images[0].detach().clone()
    assert not task.pyramid.images[1].any()
    task.schedule(8 / 24)
    task.advance_level(batch.content)

    def resized(image, *size):
        return nn.functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0]

    content = batch.content[0] / 255
    details = resized(content, 72, 96) - resized(resized(content, 36, 48), 72, 96)
    torch.testing.assert_close(task.pyramid.images[1], resized(coarse, 72, 96) + details)
    assert int(task.pyramid.level) == 1
    task.step(batch)
    assert torch.equal(task.pyramid.images[0], coarse)
    assert [task.count_work(step) for step in (0, 8, 16, 24)] == [
        0,
        8 * 36 * 48,
        8 * 36 * 48 + 8 * 72 * 96,
        8 * 36 * 48 + 16 * 72 * 96,
    ]


def test_styles_are_mixed_by_their_weights(images):
    """The style of 1 and 3 parts lies a quarter of the way from the second to the first."""
    names = [str(images / f"{name}.png") for name in ("style", "other")]
    recipe = NeuralStyle(content=str(images / "content.png"), style=tuple(names), style_weights=(1.0, 3.0), **SMALL)
    task, batch = begun(recipe)
    for layer, target in enumerate(task.pyramid.get_style_targets(1)):
        maps = (task.model(task.normalize_image(each[0] / 255))[0][layer] for each in batch.styles)
        first, second = map(style_losses.compute_gram_matrix, maps)
        torch.testing.assert_close(target, 0.25 * first + 0.75 * second, rtol=1e-3, atol=1e-4)


def test_noise_does_not_begin_as_the_content(images):
    for init, expected in (("content", 0.0), ("noise", 0.05)):
        recipe = NeuralStyle(content=str(images / "content.png"), init=init, **SMALL)
        task, batch = begun(recipe)
        content = nn.functional.interpolate(batch.content / 255, (36, 48), mode="bicubic", antialias=True)[0]
        far = (task.pyramid.images[0] - content).abs().mean()
        assert far <= 1e-6 if expected == 0 else far > expected


def test_the_contents_own_colors_stay(images):
    """Only the lightness is painted: what YCbCr calls colour is the content's."""
    recipe = NeuralStyle(content=str(images / "content.png"), colors="content", **SMALL)
    task, batch = begun(recipe)
    for step in range(24):
        task.schedule(step / 24)
        task.step(batch)
    task.evaluate([batch])
    content = Image.fromarray(batch.content[0].permute(1, 2, 0).numpy())
    found, given = (np.asarray(each.convert("YCbCr")).astype(int) for each in (task.preview(), content))
    lightness, *colour = np.abs(found - given).mean((0, 1))
    assert lightness > 3
    assert max(colour) < 3  # which clipping moves a little


def test_less_strength_leaves_more_of_the_content(images):
    found = {}
    for strength in (1e-6, 1.0):
        recipe = NeuralStyle(content=str(images / "content.png"), strength=strength, **SMALL)
        task, batch = begun(recipe)
        for step in range(24):
            task.schedule(step / 24)
            task.step(batch)
        found[strength] = task.evaluate([batch])
    assert found[1e-6]["content_loss"] < 0.5 * found[1.0]["content_loss"]
    assert found[1e-6]["style_loss"] > found[1.0]["style_loss"]


def test_smoothness(images):
    found = {}
    for tv in (0.0, 1e4):
        recipe = NeuralStyle(content=str(images / "content.png"), init="noise", tv_weight=tv, **SMALL)
        task, batch = begun(recipe)
        for step in range(24):
            task.schedule(step / 24)
            task.step(batch)
        found[tv] = float(style_losses.compute_total_variation(task.pyramid.get_image(1).detach()))
    assert found[1e4] < 0.7 * found[0.0]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_loss_falls(optimizer, images, tmp_path, pageless):
    recipe = NeuralStyle(content=str(images / "content.png"), optimizer=optimizer, **{**SMALL, "iterations": 40})
    task, batch = begun(recipe)
    task.schedule(0.9)
    before = task.evaluate([batch])["loss"]
    found = train(recipe, tmp_path / "run", device="cpu", precision="float32")
    assert found["loss"] < 0.8 * before
    preview = image_io.read_image(tmp_path / "run" / "preview.png")
    assert preview.size == (96, 72)


def test_a_run_paints_other_images(images, tmp_path, pageless):
    """Its own content again as in its training, others at their own shape."""
    content = images / "content.png"
    recipe = NeuralStyle(content=str(content), style=(str(images / "style.png"),), **SMALL)
    train(recipe, tmp_path / "run", device="cpu", precision="float32")
    task = load(tmp_path / "run", device="cpu")
    Image.open(content).crop((0, 0, 60, 72)).save(tmp_path / "tall.png")
    same, tall = task.predict([content, tmp_path / "tall.png"])
    assert (same["width"], same["height"], tall["width"], tall["height"]) == (96, 72, 80, 96)
    assert np.array_equal(task.draw_prediction(content, same), image_io.read_image(tmp_path / "run" / "preview.png"))
    assert task.draw_prediction(tmp_path / "tall.png", tall).size == (80, 96)
    other = load(tmp_path / "run", device="cpu")
    assert np.array_equal(other.draw_prediction(content, same), task.draw_prediction(content, same))  # not asked before
    (narrow,) = task.predict([Image.new("RGB", (400, 20))])
    assert "too narrow" in narrow["error"]


def test_weights_are_found(tmp_path, monkeypatch, caplog):
    """VGG-19's before VGG-16's, where data lie and beside them; what is no VGG is refused."""
    assert pretrained.load_vgg("") == ("vgg16", {})
    begun(NeuralStyle(**SMALL))
    assert caplog.text.count("its filters are random") == 1
    networks = {
        name: torchvision.models.get_model(name, weights=None).features for name in ("vgg16", "vgg19", "vgg16_bn")
    }
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("vgg16", "vgg19"):
        own = {key: value.half() for key, value in networks[name].state_dict(prefix="features.").items()}
        path = tmp_path / ("weights" if name == "vgg16" else "data") / f"{name}-imagenet.safetensors"
        save_file(own, path)
        found, tensors = pretrained.load_vgg("")
        assert found == name
        assert torch.equal(tensors["features.0.weight"], own["features.0.weight"].float())
        assert pretrained.load_vgg(str(path))[0] == name
    whole = torchvision.models.vgg11(weights=None)
    torch.save(networks["vgg16_bn"].state_dict(prefix="features."), tmp_path / "bn.pth")
    save_file(whole.features.state_dict(prefix="features."), tmp_path / "vgg11.safetensors")
    for file in ("bn.pth", "vgg11.safetensors"):
        with pytest.raises(Error, match=r"not of VGG-16 or VGG-19 without batch normalisation"):
            pretrained.load_vgg(str(tmp_path / file))
    with pytest.raises(Error, match="cannot be read"):
        pretrained.load_vgg(str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": -1}, "size should be at least 0"),
        ({"strength": -0.5}, "strength"),
        ({"levels": -1}, "levels should be between 0 and 12"),
        ({"style": ("a", "b"), "style_weights": (1.0,)}, "as many style-weights as styles, 2, not 1"),
        ({"style": ("a",), "style_weights": (0.0,)}, "not all 0"),
        ({"lr": 0.0}, "lr should be"),
    ],
)
def test_what_no_run_can_have_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        NeuralStyle(**fields)


def words(images, out, *more):
    """The command that paints, quickly."""
    quick = [
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
    return ["stylize", images / "content.png", "--style", images / "style.png", "--out", out, *quick, *more]


def test_the_command_writes_an_image(fukami, images, tmp_path):
    answer = fukami(*words(images, "art.png"))
    assert answer.status == 0
    (found,) = answer.json
    assert found["image"] == "art.png"
    assert found["file"] == str(images / "content.png")
    assert found["style"] == [str(images / "style.png")]
    assert found["loss"] > found["content_loss"] > 0
    assert found["count"] == 1
    assert image_io.read_image("art.png").size == (96, 72)
    assert sorted(path.name for path in Path().iterdir()) == ["art.png"]  # the run is gone
    assert fukami(*words(images, "art.jpg")).status == 0
    with Image.open("art.jpg") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("art.txt", (), "--out should be a .png"),
        ("art", (), "--out should be a .png"),
        ("nowhere/art.png", (), "there is no folder nowhere"),
        ("art.png", ("--weights", "none.pth"), "none.pth cannot be read"),
        ("art.png", ("--style-weights", "1", "2"), "as many style-weights as styles"),
        ("art.png", ("--strenght", "2"), "--strength"),
    ],
)
def test_the_command_says_what_is_wrong(fukami, images, out, more, message):
    answer = fukami(*words(images, out, *more))
    assert answer.status in (1, 2)
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert list(Path().iterdir()) == []


def test_the_command_overwrites_no_image_it_is_made_from(fukami, images):
    answer = fukami(*words(images, images / "style.png"))
    assert answer.status == 2
    assert "would overwrite" in answer.err
    broken = fukami("stylize", __file__, "--style", images / "style.png", "--out", "art.png")
    assert broken.status == 1
    assert "test_neural_style.py is not an image" in broken.err


def test_interrupted_the_image_so_far_stays_and_goes_on(images, tmp_path):
    """Interrupted and resumed, the image is that of one never interrupted."""
    whole = [str(word) for word in words(images, tmp_path / "whole.png", "--iterations", 60)]
    parts = [str(word) for word in words(images, tmp_path / "parts.png", "--iterations", 60)]
    alone = check_task.Started(["fukami", *whole])
    process = check_task.Started(["fukami", *parts])
    check_task.wait_until(lambda: (tmp_path / "parts.run" / "preview.png").exists() or not process.is_alive())
    os.kill(process.pid, signal.SIGINT)
    status, out, err = process.ended()
    assert status == 130
    assert out == ""
    assert f"the image so far is in {tmp_path / 'parts.png'}" in err
    assert image_io.read_image(tmp_path / "parts.png").size == (96, 72)
    status, _, err = check_task.Started(["fukami", *parts]).ended()
    assert status == 2
    assert "holds an image that was interrupted" in err
    status, out, _ = check_task.Started(["fukami", *parts, "--resume"]).ended()
    assert status == 0
    assert alone.ended()[0] == 0
    assert json.loads(out)["image"] == str(tmp_path / "parts.png")
    assert np.array_equal(image_io.read_image(tmp_path / "parts.png"), image_io.read_image(tmp_path / "whole.png"))


def test_what_is_read_has_the_size_that_was_asked_for(images):
    assert load_image(images / "content.png", 64).shape == (1, 3, 48, 64)
    assert load_image(images / "content.png", 0).shape == (1, 3, 72, 96)
    assert StyleInputs(load_image(images / "content.png", 192), ()).content.shape == (1, 3, 144, 192)


def test_trained_weights_make_better_paintings_than_chance(monkeypatch, caplog):
    """Real filters are found beside the real data."""
    shared = Path(__file__).parents[3] / "shared"
    if not (shared / "weights" / "vgg16_features_imagenet.safetensors").exists():
        pytest.skip("needs the weights of VGG-16: no ../shared/weights/vgg16_features_imagenet.safetensors")
    monkeypatch.setenv("FUKAMI_DATA", str(shared / "data"))
    caplog.set_level(logging.WARNING)
    name, tensors = pretrained.load_vgg("")
    assert name == "vgg16"
    assert len(tensors) == 26
    assert caplog.text == ""
