"""Tests of transfer learning: pretrained weights, frozen features and layer-wise learning rates."""

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
from fukami.cli import import_weights
from fukami.data.class_tables import VOC_LABELS
from fukami.engine import fine_tuning, pretrained, state_dicts
from fukami.engine.runtime import Runtime
from fukami.layers.ensemble import compute_member_log_probs
from fukami.layers.sync_layers import convert_sync_layers

SHARED = Path(__file__).parents[3] / "shared"
CPU = {"device": "cpu", "precision": "float32"}


def build_meta_model(name, *args, **options):
    """Build a network on the meta device."""
    with torch.device("meta"):
        return getattr(models, name)(*args, **options)


def are_equal(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.fixture(scope="module")
def color_images(tmp_path_factory):
    """Three classes of red, green and blue images of 32×32, eight of each."""
    root = tmp_path_factory.mktemp("colors")
    generator = torch.Generator().manual_seed(0)
    for channel, label in enumerate(("red", "green", "blue")):
        (root / label).mkdir()
        for index in range(8):
            pixels = torch.randint(0, 100, (32, 32, 3), generator=generator, dtype=torch.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels.numpy()).save(root / label / f"{index}.png")
    return root


def build_small_recipe(color_images, name="resnet20", **fields):
    """Build a recipe that trains a few steps on the color images."""
    small = {"epochs": 2, "batch_size": 6, "size": 32, "augment": (), "warmup": 0.0, "schedule": "constant", "lr": 0.01}
    return package.get_recipe(name)(**{**small, "data": str(color_images), **fields})


# ---- head and layer-wise learning rates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("alexnet", {}, {"classifier"}),
        ("vgg16", {}, {"classifier"}),
        ("vgg11_bn", {"hidden": 0}, {"classifier"}),
        ("googlenet", {}, {"fc", "aux1", "aux2"}),
        ("googlenet", {"aux_loss": False}, {"fc"}),
        ("resnet18", {}, {"fc"}),
        ("resnet20", {}, {"fc"}),
        ("deep_convnet", {}, {"19"}),
        ("binary_deep_convnet", {"end_layers": "binary"}, {"25", "26"}),  # with batch normalization
    ],
)
def test_only_the_head_depends_on_the_number_of_classes(name, options, expected):
    """All other parameters have the same shapes for another number of classes."""
    network, other = (build_meta_model(name, classes, **options) for classes in (7, 8))
    head = fine_tuning.find_head(network)
    assert set(head) == expected
    assert len(head) == len(expected)
    others = dict(other.named_parameters())
    different = {key.partition(".")[0] for key, p in network.named_parameters() if p.shape != others[key].shape}
    assert different == expected


def test_a_normalization_of_other_size_after_the_last_layer_is_no_head():
    """It was registered last, and normalizes the maps of the convolution."""
    network = nn.Module()
    network.conv, network.fc, network.norm = nn.Conv2d(3, 4, 3), nn.Linear(4, 10), nn.BatchNorm2d(4)
    assert fine_tuning.find_head(network) == ("fc",)
    network.output_norm = nn.BatchNorm1d(10)
    assert fine_tuning.find_head(network) == ("fc", "output_norm")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        # stages from the head down, each identified by one of its layers
        ("alexnet", ["classifier.1", "features.6", "features.3", "features.0"]),
        ("vgg16", ["classifier.0", "features.24", "features.17", "features.10", "features.5", "features.0"]),
        ("resnet18", ["fc", "layer4.1", "layer3.0", "layer2.0", "layer1.0", "conv1"]),
        ("googlenet", ["fc", *(f"inception{n}" for n in ("5b", "5a", "4e", "4d", "4c", "4b", "4a", "3b", "3a")),
                       "conv3", "conv2", "conv1"]),
        ("deep_convnet", ["19", "16", "12", "10", "7", "5", "2", "0"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_synchronized", [False, True])
def test_learning_rates_decay_from_the_head_down(name, stages, is_synchronized):
    network = build_meta_model(name, 5)
    if is_synchronized:  # over several processes
        convert_sync_layers(network)
    groups = fine_tuning.build_layerwise_groups(network, 0.4, 0.5)
    assert [group["lr"] for group in groups] == [0.4 * 0.5**depth for depth in range(len(stages))]
    lrs = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(lrs) == len(list(network.parameters()))
    for depth, prefix in enumerate(stages):
        stage_lrs = {lrs[id(p)] for key, p in network.named_parameters() if key.startswith(f"{prefix}.")}
        assert stage_lrs == {0.4 * 0.5**depth}, prefix
    head = fine_tuning.find_head(network)
    assert {lrs[id(p)] for key, p in network.named_parameters() if key.partition(".")[0] in head} == {0.4}


def test_stages_of_a_network_with_normalization_first_and_own_parameters():
    """A normalization belongs to the convolution before it, and forms a stage if it is the first layer."""
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    network.register_parameter("token", nn.Parameter(torch.zeros(1)))
    groups = fine_tuning.build_layerwise_groups(network, 1.0, 0.5)
    lrs = {id(p): group["lr"] for group in groups for p in group["params"]}
    named_lrs = {key: lrs[id(p)] for key, p in network.named_parameters() if not key.endswith("bias")}
    assert named_lrs == {"4.weight": 1, "1.weight": 0.5, "2.weight": 0.5, "0.weight": 0.25, "token": 0.25}
    assert len(lrs) == len(list(network.parameters()))


def test_training_uses_the_learning_rates_of_the_stages(color_images, tmp_path):
    """The first step of plain SGD equals one computed by hand with autograd."""
    fields = {"optimizer": "sgd", "weight_decay": 0.0, "layer_lr_decay": 0.5, "lr": 0.1}
    recipe = build_small_recipe(color_images, epochs=1, batch_size=18, **fields)
    data = recipe.load_data()
    torch.manual_seed(recipe.seed)
    network = recipe.build_model(3)
    torch.manual_seed(recipe.seed)
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start(**CPU))
    task.prepare_training()
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


def test_layer_lr_decay_0_trains_only_the_head(color_images, tmp_path):
    initial = build_small_recipe(color_images).build_model(3).state_dict()
    save_file(initial, tmp_path / "start.safetensors")
    init = str(tmp_path / "start.safetensors")
    recipe = build_small_recipe(color_images, epochs=1, layer_lr_decay=0.0, init=init)
    package.train(recipe, tmp_path / "run", **CPU)
    trained = load_file(tmp_path / "run" / "weights.safetensors")
    for key, value in initial.items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(trained[f"model.{key}"], value) == (not key.startswith("fc")), key


# ---- frozen features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.5}, {"layer_lr_decay": 0.5}], ids=str)
def test_frozen_features_keep_weights_and_statistics(color_images, tmp_path, fields):
    torch.manual_seed(5)
    network = build_small_recipe(color_images).build_model(3)
    network.train()(torch.rand(4, 3, 32, 32))  # statistics other than the initial ones
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save(before, tmp_path / "start.pth")
    recipe = build_small_recipe(color_images, freeze=True, init=str(tmp_path / "start.pth"), **fields)
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    changed = {key for key, value in before.items() if not torch.equal(after[f"model.{key}"], value)}
    assert changed == {"fc.weight", "fc.bias"}


def test_freezing_needs_weights(color_images):
    with pytest.raises(UsageError, match="--init"):
        build_small_recipe(color_images, freeze=True)


def test_the_moving_average_starts_at_the_pretrained_weights(color_images, tmp_path):
    """A decay near 1 keeps the average near its start, which are the pretrained weights and not random ones."""
    torch.manual_seed(5)
    start = build_small_recipe(color_images).build_model(3).state_dict()
    save_file(start, tmp_path / "start.safetensors")
    init = str(tmp_path / "start.safetensors")
    recipe = build_small_recipe(color_images, epochs=1, ema_decay=0.9999, init=init)
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    torch.testing.assert_close(after["model.conv1.weight"], start["conv1.weight"], atol=1e-3, rtol=0)
    assert not torch.equal(after["model.conv1.weight"], start["conv1.weight"])


# ---- sources of weights ---------------------------------------------------------------------------------------------


@pytest.fixture
def start():
    """A network of three classes and its state dict."""
    torch.manual_seed(1)
    network = models.resnet20(3)
    return network, network.state_dict()


def load_initialized(path, classes=3, seed=2, name="resnet20", **options):
    """Return the state dict of a network that is initialized from the file."""
    torch.manual_seed(seed)
    network = getattr(models, name)(classes, **options)
    pretrained.initialize_classifier(network, name, str(path))
    return network.state_dict()


def test_weights_are_loaded_from_files_of_every_kind(start, tmp_path):
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
        assert are_equal(load_initialized(tmp_path / name), tensors), name
    loaded = load_initialized(tmp_path / "h.safetensors")
    assert are_equal(loaded, {k: v.float() if v.is_floating_point() else v for k, v in half.items()})
    assert loaded["conv1.weight"].dtype == torch.float32


def test_weights_are_loaded_from_a_run_with_a_random_head_for_other_classes(color_images, tmp_path, caplog):
    package.train(build_small_recipe(color_images, epochs=1), tmp_path / "first", **CPU)
    run = {k.removeprefix("model."): v for k, v in load_file(tmp_path / "first" / "weights.safetensors").items()}
    assert are_equal(load_initialized(tmp_path / "first"), run)
    assert not caplog.text
    torch.manual_seed(2)
    random = models.resnet20(5).state_dict()
    loaded = load_initialized(tmp_path / "first", classes=5)
    for key, value in loaded.items():
        assert torch.equal(value, random[key] if key.startswith("fc.") else run[key]), key
    assert "has no fc.weight, fc.bias for this network: they are initialized randomly" in caplog.text


def test_training_starts_from_the_given_weights(color_images, start, tmp_path):
    """A run with a learning rate of 0 keeps them, except for the statistics of batch normalization."""
    save_file(start[1], tmp_path / "start.safetensors")
    init = str(tmp_path / "start.safetensors")
    recipe = build_small_recipe(color_images, epochs=1, lr=0.0, head_epochs=0, init=init)
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    for key, parameter in start[0].named_parameters():
        assert torch.equal(after[f"model.{key}"], parameter), key


def test_torchvisions_googlenet_fits_other_classes(tmp_path, caplog):
    """Heads of another size are initialized randomly; auxiliary heads are ignored if the network has none."""
    torch.manual_seed(0)
    published = torchvision.models.googlenet(num_classes=6, aux_logits=True, init_weights=False).state_dict()
    save_file(published, tmp_path / "published.safetensors")
    for auxiliary in (True, False):
        loaded = load_initialized(tmp_path / "published.safetensors", classes=4, name="googlenet", aux_loss=auxiliary)
        for key, value in loaded.items():
            matches = published[key].shape == value.shape
            assert matches == (key.rpartition(".")[0] not in ("fc", "aux1.fc2", "aux2.fc2")), key
            assert not matches or torch.equal(value, published[key]), key
    assert "fc.weight, fc.bias" in caplog.text


def test_published_features_fit_a_vgg16_with_one_linear_layer(caplog):
    folder = Path(os.environ.get("FUKAMI_DATA", SHARED / "data")).parent
    path = folder / "weights" / "vgg16_features_imagenet.safetensors"
    if not path.exists():
        pytest.skip(f"needs VGG-16's published features: no {path}")
    published = load_file(path)
    loaded = load_initialized(path, classes=4, name="vgg16", hidden=0)
    features = {key: value for key, value in loaded.items() if key.startswith("features.")}
    assert are_equal(features, {key: published[key].float() for key in features})
    assert len(features) == 26
    assert "has no classifier.0.weight, classifier.0.bias for this network" in caplog.text


def test_three_mismatches_are_listed(start, tmp_path):
    wrong = {key: value for key, value in start[1].items() if key != "layer1.0.conv1.weight"}
    wrong |= {"layer9.weight": torch.zeros(1), "conv1.weight": torch.zeros(16, 3, 5, 5), "fc.bias": torch.zeros(9)}
    del wrong["bn1.bias"]
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(Error, match=r"wrong\.safetensors does not match resnet20") as error:
        load_initialized(tmp_path / "wrong.safetensors")
    for hint in (
        "layer1.0.conv1.weight is missing",
        "bn1.bias is missing",
        "conv1.weight is (16, 3, 5, 5) instead of (16, 3, 3, 3)",
        "and 1 more",  # layer9.weight is unexpected
    ):
        assert hint in str(error.value)
    assert "fc" not in str(error.value)  # a head that does not match is initialized randomly


def test_weights_of_another_network_are_named(tmp_path):
    """In one line, however many tensors differ."""
    vgg16 = {key: value for key, value in torchvision_state("vgg16").items() if key.startswith("features.")}
    save_file(vgg16, tmp_path / "features.safetensors")
    torch.save(torchvision_state("resnet18"), tmp_path / "resnet18.pth")
    for name, file, title in (
        ("resnet18", "features.safetensors", "VGG-16"),
        ("vgg19", "features.safetensors", "VGG-16"),
        ("resnet152", "resnet18.pth", "ResNet-18"),
    ):
        with pytest.raises(
            Error, match=rf"these are {title} weights; {name} needs its own \(.* and \d+ more\)$"
        ) as error:
            pretrained.initialize_classifier(build_meta_model(name, 3), name, str(tmp_path / file))
        assert len(str(error.value)) - len(str(tmp_path)) < 300
    with pytest.raises(Error, match=r"these are ResNet-18 weights; resnet50 needs its own"):
        pretrained.initialize_segmenter(models.fcn_resnet50(3), "resnet50", str(tmp_path / "resnet18.pth"))


def torchvision_state(name):
    """The state dict of torchvision's network with random weights."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    return {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in network.state_dict().items()}


def test_files_without_weights_are_rejected(start, tmp_path):
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
        ("cut.pth", "corrupted"), ("text.pth", "corrupted"), ("text.safetensors", "corrupted"),
        ("list.pth", "no state dict"), ("numbers.pth", "no state dict"),
        ("empty.pth", "no state dict"), ("folder", "cannot be read"), ("nowhere.pth", "No such file"),
    ):  # fmt: skip
        with pytest.raises(Error, match=hint) as error:
            load_initialized(tmp_path / name)
        assert name in str(error.value)


def test_a_pickle_with_code_is_rejected_and_not_executed(start, tmp_path):
    class MaliciousObject:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/harmed",)

    torch.save({**start[1], "evil": MaliciousObject()}, tmp_path / "malicious.pth")
    torch.save(start[0], tmp_path / "module.pth")  # a pickled module refers to code, too
    for name in ("malicious.pth", "module.pth"):
        with pytest.raises(Error, match=f"{name} is corrupted, or contains more than tensors"):
            load_initialized(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg11_bn"])
def test_color_weights_are_converted_to_grayscale(name, tmp_path):
    """A grayscale image has the output of a color image with three equal channels."""
    torch.manual_seed(1)
    options = {"hidden": 0} if name.startswith("vgg") else {}
    color = getattr(models, name)(3, **options).eval()
    save_file(color.state_dict(), tmp_path / "color.safetensors")
    grayscale = getattr(models, name)(3, channels=1, **options).eval()
    pretrained.initialize_classifier(grayscale, name, str(tmp_path / "color.safetensors"))
    image = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(grayscale(image), color(image.expand(-1, 3, -1, -1)))


# ---- published weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "fields"), [("resnet18", {}), ("vgg11", {"batch_norm": True}), ("vgg11", {})])
def test_imagenet_fetches_torchvisions_weights_of_the_network(recipe, fields, monkeypatch, color_images):
    """The weights are those of the network's name, with a hash check and without pickled code."""
    calls = []

    def get_state_dict(self, **options):
        calls.append((self, options))
        return {}

    recipe = build_small_recipe(color_images, recipe, init="imagenet", **fields)
    weights = torchvision.models.get_model_weights(recipe.architecture)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(Error, match="does not match"):
        pretrained.initialize_classifier(build_meta_model(recipe.architecture, 3), recipe.architecture, recipe.init)
    assert calls == [(weights.IMAGENET1K_V1, {"progress": False, "check_hash": True, "weights_only": True})]


def test_training_uses_the_published_weights(monkeypatch, color_images, tmp_path):
    torch.manual_seed(3)
    published = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, **options: published)
    recipe = build_small_recipe(color_images, "resnet18", epochs=1, batch_size=18, init="imagenet", freeze=True)
    package.train(recipe, tmp_path / "run", **CPU)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(after[f"model.{key}"], published[key]) for key in published if not key.startswith("fc."))


def test_a_failed_download_names_the_url(monkeypatch, fukami, color_images):
    import urllib.error

    def offline(self, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    arguments = ["--data", color_images, "--size", "32", "--init", "imagenet", "--batch-size", "4"]
    result = fukami("train", "resnet18", *arguments)
    assert result.status == 1
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    assert url.startswith("https://")
    for hint in ("no network", url, f"the file {url.rpartition('/')[2]} instead of the name"):
        assert hint in result.err
    with pytest.raises(Error, match="there are no published weights for resnet20"):
        pretrained.initialize_classifier(build_meta_model("resnet20", 3), "resnet20", "imagenet")


def test_images_are_normalized_as_the_published_weights_expect(color_images):
    """Mean and deviation are those of torchvision's transforms; GoogLeNet was trained with 0.5 and 0.5."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    for name in ("resnet18", "vgg16"):
        transform = build_small_recipe(color_images, name).build_transform(("a",))
        assert (list(transform.mean), list(transform.std)) == (weights.mean, weights.std)
    for channels in (1, 3):
        transform = build_small_recipe(color_images, "googlenet", channels=channels).build_transform(("a",))
        assert (transform.mean, transform.std) == ((0.5,), (0.5,))
    grayscale = build_small_recipe(color_images, "resnet18", channels=1).build_transform(("a",))
    assert grayscale.mean == pytest.approx((sum(weights.mean) / 3,))
    assert grayscale.std == pytest.approx((sum(weights.std) / 3,))


def test_the_last_snapshot_of_a_run_is_loaded(digit_files, tmp_path):
    """The schedule has three cycles; the next run starts from the weights at the end of the last one."""
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
def test_an_invalid_record_next_to_weights_is_ignored(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    assert state_dicts.read_init_labels(str(tmp_path)) == ()
    assert state_dicts._read_export_precision(tmp_path) is None


def test_processes_need_the_folder_of_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="need the same folder; specify it with --out"):
        package.train("deep-convnet", epochs=1)
    assert not [*tmp_path.iterdir()]


def test_published_weights_of_an_fcn_keep_the_scores_only_of_their_own_classes(monkeypatch, caplog):
    """As many other classes are initialized randomly."""
    published = models.fcn_resnet50(21)
    monkeypatch.setattr(state_dicts, "load_pretrained", lambda *_: published.state_dict())
    scores = []
    for labels in (VOC_LABELS, tuple(f"class {label}" for label in VOC_LABELS)):
        model = models.fcn_resnet50(21)
        pretrained.initialize_segmenter(model, "resnet50", "coco", labels)
        assert torch.equal(model.backbone.conv1.weight, published.backbone.conv1.weight)
        scores.append(model.classifier[4].weight)
    assert torch.equal(scores[0], published.classifier[4].weight)
    assert not torch.equal(scores[1], published.classifier[4].weight)
    assert "classifier.4.weight" in caplog.text


@pytest.mark.slow
def test_weights_with_batch_normalization_do_not_fit_an_fcn_without_it(tmp_path):
    save_file(models.vgg16_bn(10).state_dict(), tmp_path / "vgg16_bn.safetensors")
    with pytest.raises(Error, match="has batch normalization, and the network has none"):
        pretrained.initialize_segmenter(
            models.fcn32s_vgg16(3, hidden=8), "vgg16", str(tmp_path / "vgg16_bn.safetensors")
        )


def test_ranges_of_a_quantization_aware_run_are_not_loaded(tmp_path):
    network = models.resnet20(3)
    save_file(network.state_dict() | {"ranges.relu.activation_range": torch.ones(2)}, tmp_path / "aware.safetensors")
    other = models.resnet20(3)
    pretrained.initialize_classifier(other, "resnet20", str(tmp_path / "aware.safetensors"))
    assert are_equal(other.state_dict(), network.state_dict())


def test_published_segmenters_without_an_auxiliary_classifier_are_torchvisions(tmp_path):
    save_file(models.fcn_resnet50(3, aux_loss=False).state_dict(), tmp_path / "fcn.safetensors")
    assert import_weights.is_torchvision(str(tmp_path / "fcn.safetensors"))


def test_images_are_moved_to_the_device_of_each_network():
    """An ensemble may contain a network of ONNX Runtime, on the CPU, and others on a GPU."""
    log_probs = compute_member_log_probs(nn.Linear(4, 2, device="meta"), torch.zeros(3, 4))
    assert log_probs.device.type == "meta"
