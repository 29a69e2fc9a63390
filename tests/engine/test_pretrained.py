"""Transfer: published weights come in whole, what is frozen stays, and each stage learns at its own rate."""

import os
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import fukami as package
from fukami import Error, UsageError, models
from fukami.engine import pretrained
from fukami.engine.runtime import Runtime

SHARED = Path(__file__).parents[3] / "shared"
CPU = {"device": "cpu", "precision": "float32"}


def meta(name, *args, **options):
    """A network without memory for its weights."""
    with torch.device("meta"):
        return getattr(models, name)(*args, **options)


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three classes of plainly coloured images of 32×32, eight of each."""
    root = tmp_path_factory.mktemp("colours")
    generator = torch.Generator().manual_seed(0)
    for channel, label in enumerate(("red", "green", "blue")):
        (root / label).mkdir()
        for number in range(8):
            pixels = torch.randint(0, 100, (32, 32, 3), generator=generator, dtype=torch.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels.numpy()).save(root / label / f"{number}.png")
    return root


def small(colours, name="resnet20", **fields):
    """A recipe that trains a few steps on the coloured images."""
    given = {"epochs": 2, "batch_size": 6, "size": 32, "augment": (), "warmup": 0.0, "schedule": "constant", "lr": 0.01}
    return package.get_recipe(name)(**{**given, "data": str(colours), **fields})


# ---- the head, and what learns at which rate ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vgg16", {}, {"classifier"}),
        ("vgg11_bn", {"hidden": 0}, {"classifier"}),
        ("googlenet", {}, {"fc", "aux1", "aux2"}),
        ("googlenet", {"aux_loss": False}, {"fc"}),
        ("resnet18", {}, {"fc"}),
        ("resnet20", {}, {"fc"}),
        ("deep_convnet", {}, {"19"}),
    ],
)
def test_the_head_is_what_depends_on_the_classes(name, options, expected):
    """And nothing else does: the shapes of all other parts are the same for another number of classes."""
    network, other = (meta(name, classes, **options) for classes in (7, 8))
    head = pretrained.find_head(network)
    assert set(head) == expected
    assert len(head) == len(expected)
    wider = dict(other.named_parameters())
    different = {key.partition(".")[0] for key, p in network.named_parameters() if p.shape != wider[key].shape}
    assert different == expected


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        # from the head down, each stage by a parameter of it
        ("vgg16", ["classifier.0", "features.24", "features.17", "features.10", "features.5", "features.0"]),
        ("resnet18", ["fc", "layer4.1", "layer3.0", "layer2.0", "layer1.0", "conv1"]),
        ("googlenet", ["fc", *(f"inception{n}" for n in ("5b", "5a", "4e", "4d", "4c", "4b", "4a", "3b", "3a")),
                       "conv3", "conv2", "conv1"]),
        ("deep_convnet", ["19", "16", "12", "10", "7", "5", "2", "0"]),
    ],
)  # fmt: skip
def test_each_stage_learns_more_slowly_than_the_one_above(name, stages):
    network = meta(name, 5)
    groups = pretrained.build_layerwise_groups(network, 0.4, 0.5)
    assert [group["lr"] for group in groups] == [0.4 * 0.5**depth for depth in range(len(stages))]
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(list(network.parameters()))
    for depth, prefix in enumerate(stages):
        found = {rates[id(p)] for key, p in network.named_parameters() if key.startswith(f"{prefix}.")}
        assert found == {0.4 * 0.5**depth}, prefix
    head = pretrained.find_head(network)
    assert {rates[id(p)] for key, p in network.named_parameters() if key.partition(".")[0] in head} == {0.4}


def test_stages_of_networks_that_begin_otherwise():
    """With a normalisation, or a parameter of the whole network; what normalises goes with what it normalises."""
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    network.register_parameter("token", nn.Parameter(torch.zeros(1)))
    groups = pretrained.build_layerwise_groups(network, 1.0, 0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {key: rates[id(p)] for key, p in network.named_parameters() if not key.endswith("bias")}
    assert found == {"4.weight": 1, "1.weight": 0.5, "2.weight": 0.5, "0.weight": 0.25, "token": 0.25}
    assert len(rates) == len(list(network.parameters()))


def test_a_training_steps_at_the_rates_of_the_stages(colours, tmp_path, pageless):
    """The first step of plain SGD, worked out by hand with autograd."""
    recipe = small(colours, epochs=1, batch_size=18, optimizer="sgd", weight_decay=0.0, layer_lr_decay=0.5, lr=0.1)
    data = recipe.load_data()
    torch.manual_seed(recipe.seed)
    network = recipe.build_model(3)
    torch.manual_seed(recipe.seed)
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start(**CPU))
    batch = next(iter(recipe.load_data().train))
    assert len(batch[1]) == 18
    task.schedule(0.0)
    task.step(batch)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (recipe.build_transform(()).mean, recipe.build_transform(()).std)
    )
    nn.functional.cross_entropy(network((batch[0].float() / 255 - mean) / std), batch[1]).backward()
    depth = {"fc": 0, "layer3": 1, "layer2": 2, "layer1": 3, "bn1": 4, "conv1": 4}
    trained = dict(task.model.named_parameters())
    for key, p in network.named_parameters():
        expected = p - 0.1 * 0.5 ** depth[key.partition(".")[0]] * p.grad
        torch.testing.assert_close(trained[key], expected, atol=1e-6, rtol=1e-4)
        assert not torch.equal(trained[key], p), key


def test_layer_decay_0_trains_the_head_alone(colours, tmp_path, pageless):
    started = small(colours).build_model(3).state_dict()
    save_file(started, tmp_path / "start.safetensors")
    recipe = small(colours, epochs=1, layer_lr_decay=0.0, init=str(tmp_path / "start.safetensors"))
    package.train(recipe, tmp_path / "run", **CPU)
    trained = load_file(tmp_path / "run" / "weights.safetensors")
    for key, value in started.items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(trained[f"model.{key}"], value) == (not key.startswith("fc")), key


# ---- frozen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.5}, {"layer_lr_decay": 0.5}], ids=str)
def test_frozen_features_keep_weights_and_statistics(colours, tmp_path, pageless, fields):
    torch.manual_seed(5)
    network = small(colours).build_model(3)
    network.train()(torch.rand(4, 3, 32, 32))  # statistics that are not the first ones
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save(before, tmp_path / "start.pth")
    recipe = small(colours, freeze=True, init=str(tmp_path / "start.pth"), **fields)
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    moved = {key for key, value in before.items() if not torch.equal(after[f"model.{key}"], value)}
    assert moved == {"fc.weight", "fc.bias"}


def test_freezing_needs_weights(colours):
    with pytest.raises(UsageError, match="--init"):
        small(colours, freeze=True)


def test_a_moving_average_begins_at_the_weights_given(colours, tmp_path, pageless):
    """With a decay near 1 it stays there; from random weights it would stay at those."""
    torch.manual_seed(5)
    start = small(colours).build_model(3).state_dict()
    save_file(start, tmp_path / "start.safetensors")
    recipe = small(colours, epochs=1, ema_decay=0.9999, init=str(tmp_path / "start.safetensors"))
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    torch.testing.assert_close(after["model.conv1.weight"], start["conv1.weight"], atol=1e-3, rtol=0)
    assert not torch.equal(after["model.conv1.weight"], start["conv1.weight"])


# ---- where weights come from ----------------------------------------------------------------------------------------


@pytest.fixture
def start():
    """A network of three classes, and its state dict."""
    torch.manual_seed(1)
    network = models.resnet20(3)
    return network, network.state_dict()


def initialised(path, classes=3, seed=2, name="resnet20", **options):
    torch.manual_seed(seed)
    network = getattr(models, name)(classes, **options)
    pretrained.initialize_classifier(network, name, str(path))
    return network.state_dict()


def test_weights_come_from_files_of_every_kind(start, tmp_path):
    network, tensors = start
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pth")
    torch.save({"state_dict": tensors, "epoch": 90, "best": 0.5}, tmp_path / "c.pth")
    torch.save({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "d.pt")
    torch.save(torch.nn.DataParallel(network).state_dict(), tmp_path / "e.pt")
    save_file({f"model.{key}": value for key, value in tensors.items()}, tmp_path / "f.safetensors")
    torch.save({k: v for k, v in tensors.items() if "tracked" not in k}, tmp_path / "g.pth")  # as before 2019
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(half, tmp_path / "h.safetensors")
    for name in ("a.safetensors", "b.pth", "c.pth", "d.pt", "e.pt", "f.safetensors", "g.pth"):
        assert same(initialised(tmp_path / name), tensors), name
    found = initialised(tmp_path / "h.safetensors")
    assert same(found, {k: v.float() if v.is_floating_point() else v for k, v in half.items()})
    assert found["conv1.weight"].dtype == torch.float32


def test_weights_come_from_a_run_and_the_head_is_drawn_anew(colours, tmp_path, caplog, pageless):
    package.train(small(colours, epochs=1), tmp_path / "first", **CPU)
    run = {k.removeprefix("model."): v for k, v in load_file(tmp_path / "first" / "weights.safetensors").items()}
    assert same(initialised(tmp_path / "first"), run)
    assert not caplog.text
    torch.manual_seed(2)
    drawn = models.resnet20(5).state_dict()
    found = initialised(tmp_path / "first", classes=5)
    for key, value in found.items():
        assert torch.equal(value, drawn[key] if key.startswith("fc.") else run[key]), key
    assert "has no fc.weight, fc.bias for this network: they begin at random" in caplog.text


def test_a_run_that_begins_with_weights_begins_with_them(colours, start, tmp_path, pageless):
    """A training at rate 0 leaves what it was given, up to the statistics of batch normalisation."""
    save_file(start[1], tmp_path / "start.safetensors")
    recipe = small(colours, epochs=1, lr=0.0, init=str(tmp_path / "start.safetensors"))
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    for key, parameter in start[0].named_parameters():
        assert torch.equal(after[f"model.{key}"], parameter), key


def test_googlenets_published_form_fits_other_classes(tmp_path, caplog):
    """Heads of another size are drawn anew, the auxiliary ones too; they are passed over by a network without."""
    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(num_classes=6, aux_logits=True, init_weights=False).state_dict()
    save_file(theirs, tmp_path / "theirs.safetensors")
    for auxiliary in (True, False):
        found = initialised(tmp_path / "theirs.safetensors", classes=4, name="googlenet", aux_loss=auxiliary)
        for key, value in found.items():
            fits = theirs[key].shape == value.shape
            assert fits == (key.rpartition(".")[0] not in ("fc", "aux1.fc2", "aux2.fc2")), key
            assert not fits or torch.equal(value, theirs[key]), key
    assert "fc.weight, fc.bias" in caplog.text


def test_published_features_alone_fit_a_vgg16_that_is_one_layer_on_them(caplog):
    folder = Path(os.environ.get("FUKAMI_DATA", SHARED / "data")).parent
    path = folder / "weights" / "vgg16_features_imagenet.safetensors"
    if not path.exists():
        pytest.skip(f"needs VGG-16's published features: no {path}")
    published = load_file(path)
    found = initialised(path, classes=4, name="vgg16", hidden=0)
    features = {key: value for key, value in found.items() if key.startswith("features.")}
    assert same(features, {key: published[key].float() for key in features})
    assert len(features) == 26
    assert "has no classifier.0.weight, classifier.0.bias for this network" in caplog.text


def test_every_misfit_is_listed(start, tmp_path):
    wrong = {key: value for key, value in start[1].items() if key != "layer1.0.conv1.weight"}
    wrong |= {"layer9.weight": torch.zeros(1), "conv1.weight": torch.zeros(16, 3, 5, 5), "fc.bias": torch.zeros(9)}
    del wrong["bn1.bias"]
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(Error, match=r"wrong\.safetensors does not fit resnet20") as caught:
        initialised(tmp_path / "wrong.safetensors")
    for hint in (
        "layer1.0.conv1.weight is missing",
        "bn1.bias is missing",
        "conv1.weight is (16, 3, 5, 5) instead of (16, 3, 3, 3)",
        "layer9.weight is not known",
    ):
        assert hint in str(caught.value)
    assert "fc" not in str(caught.value)  # of the head, what does not fit begins anew


def test_what_holds_no_weights_is_refused(start, tmp_path):
    good = tmp_path / "good.pth"
    torch.save(start[1], good)
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:9000])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    torch.save({}, tmp_path / "empty.pth")
    (tmp_path / "folder").mkdir()
    for name, hint in (
        ("cut.pth", "damaged"), ("text.pth", "damaged"), ("text.safetensors", "damaged"), ("list.pth", "no state dict"),
        ("numbers.pth", "no state dict"), ("empty.pth", "no state dict"), ("folder", "cannot be read"),
        ("nowhere.pth", "No such file"),
    ):  # fmt: skip
        with pytest.raises(Error, match=hint) as caught:
            initialised(tmp_path / name)
        assert name in str(caught.value)


def test_a_pickle_that_runs_code_is_refused_and_not_run(start, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/harmed",)

    torch.save({**start[1], "evil": Hostile()}, tmp_path / "hostile.pth")
    torch.save(start[0], tmp_path / "whole.pth")  # a whole module is a pickle of code, too
    for name in ("hostile.pth", "whole.pth"):
        with pytest.raises(Error, match=f"{name} is damaged, or holds more than tensors"):
            initialised(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg11_bn"])
def test_a_first_layer_for_colour_becomes_one_for_grey(name, tmp_path):
    """A grey image gives what it would give as a colour image of three equal channels."""
    torch.manual_seed(1)
    options = {"hidden": 0} if name.startswith("vgg") else {}
    colour = getattr(models, name)(3, **options).eval()
    save_file(colour.state_dict(), tmp_path / "colour.safetensors")
    grey = getattr(models, name)(3, channels=1, **options).eval()
    pretrained.initialize_classifier(grey, name, str(tmp_path / "colour.safetensors"))
    image = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)))


# ---- published weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "fields"), [("resnet18", {}), ("vgg11", {"batch_norm": True}), ("vgg11", {})])
def test_imagenet_asks_torchvision_for_the_weights_of_that_network(recipe, fields, monkeypatch, colours):
    """For those that torchvision publishes under the network's name, checked by their hash, and tensors alone."""
    asked = []

    def answered(self, **options):
        asked.append((self, options))
        return {}

    recipe = small(colours, recipe, init="imagenet", **fields)
    weights = torchvision.models.get_model_weights(recipe.architecture)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", answered)
    with pytest.raises(Error, match="does not fit"):
        pretrained.initialize_classifier(meta(recipe.architecture, 3), recipe.architecture, recipe.init)
    assert asked == [(weights.IMAGENET1K_V1, {"progress": False, "check_hash": True, "weights_only": True})]


def test_published_weights_go_into_the_network(monkeypatch, colours, tmp_path, pageless):
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, **options: theirs)
    recipe = small(colours, "resnet18", epochs=1, batch_size=18, init="imagenet", freeze=True)
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(after[f"model.{key}"], theirs[key]) for key in theirs if not key.startswith("fc."))


def test_without_a_network_the_address_of_the_weights_is_named(monkeypatch, fukami, colours):
    import urllib.error

    def offline(self, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    answer = fukami("train", "resnet18", "--data", colours, "--size", "32", "--init", "imagenet", "--batch-size", "4")
    assert answer.status == 1
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    assert url.startswith("https://")
    for hint in ("no network", url, f"--init {url.rpartition('/')[2]}"):
        assert hint in answer.err
    with pytest.raises(Error, match="there are no published weights for resnet20"):
        pretrained.initialize_classifier(meta("resnet20", 3), "resnet20", "imagenet")


def test_images_are_normalised_as_the_published_weights_expect(colours):
    """torchvision's own transforms of its weights; those of GoogLeNet were made with 0.5 and 0.5."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    for name in ("resnet18", "vgg16"):
        prepare = small(colours, name).build_transform(("a",))
        assert (list(prepare.mean), list(prepare.std)) == (weights.mean, weights.std)
    for channels in (1, 3):
        prepare = small(colours, "googlenet", channels=channels).build_transform(("a",))
        assert (prepare.mean, prepare.std) == ((0.5,), (0.5,))
    grey = small(colours, "resnet18", channels=1).build_transform(("a",))
    assert grey.mean == pytest.approx((sum(weights.mean) / 3,))
    assert grey.std == pytest.approx((sum(weights.std) / 3,))


def test_a_run_with_snapshots_gives_its_last_one(digit_files, tmp_path):
    """Three courses of the learning rate: what the next run begins with is what the last of them reached."""
    from fukami.classification.resnet import ResNet20

    recipe = ResNet20(data=str(digit_files), epochs=3, cycles=3, batch_size=15, warmup=0.0)
    package.train(recipe, tmp_path / "run", device="cpu")
    network = recipe.build_model(10)
    pretrained.initialize_classifier(network, "resnet20", str(tmp_path / "run"))
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, saved[f"model.models.2.{name}"])


@pytest.mark.parametrize(
    "text", ['{"labels": null, "exported": null}', '{"labels": 3, "exported": {}}', "[]", "no JSON"]
)
def test_a_strange_record_beside_weights_says_nothing(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    assert pretrained._read_labels(str(tmp_path)) == ()
    assert pretrained._read_export_precision(tmp_path) is None
