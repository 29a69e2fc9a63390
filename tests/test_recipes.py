"""Tests of classification metrics, recipes, corrupted runs, the report and the result list."""

import copy
import dataclasses
import html.parser
import importlib.metadata
import json
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch.nn import functional as F

import fukami as package
from fukami import Error, UsageError
from fukami.catalogue import RECIPES
from fukami.classification import metrics
from fukami.classification.deep_convnet import DeepConvNet
from fukami.classification.recipe import ClassificationRecipe
from fukami.classification.resnet import ResNet18, ResNet20
from fukami.engine import recipe, run_folder, run_record, run_weights
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.layers.ensemble import Ensemble, compute_member_log_probs
from fukami.segmentation.recipe import SegmentationRecipe

LARGEST_RECIPES = ("faster-rcnn-resnet50-fpn", "fcn-resnet50", "fcn-resnet101", "resnet152")  # their tests take longest


def test_confusion_matrix_equals_scikit_learns(random):
    target, predicted = random.integers(0, 7, (2, 500))
    scores = torch.nn.functional.one_hot(torch.from_numpy(predicted), 7).float().log_softmax(1)
    results = metrics.ClassificationResults(7, 1, torch.device("cpu"))
    for batch in (slice(0, 300), slice(300, 500)):
        images = torch.zeros(len(scores[batch]), 1, 1, 1)
        results.update(scores[batch].unsqueeze(0), scores[batch], torch.from_numpy(target)[batch], images)
    expected = confusion_matrix(target, predicted, labels=range(7))
    assert np.array_equal(results.confusion_matrix.numpy(), expected)
    result = results.compute_metrics()
    assert result["accuracy"] == (target == predicted).mean()
    assert (result["errors"], result["count"]) == ((target != predicted).sum(), 500)


def test_only_the_most_confident_mistakes_are_kept():
    """As many as the report shows, whatever the number of images."""
    torch.manual_seed(0)
    scores, targets = torch.randn(400, 4).log_softmax(1), torch.randint(0, 4, (400,))
    results = metrics.ClassificationResults(4, 1, torch.device("cpu"))
    images = torch.arange(400.0).view(400, 1, 1, 1)
    for batch in range(0, 400, 40):
        part = slice(batch, batch + 40)
        results.update(scores[part].unsqueeze(0), scores[part], targets[part], images[part])
    confidence, predicted = scores.exp().max(1)
    expected = torch.where(predicted == targets, 0, confidence).topk(metrics.MAX_MISTAKES).indices
    kept, kept_images, kept_targets, kept_predictions = results.mistakes
    assert kept_images.flatten().tolist() == expected.tolist()
    assert torch.equal(kept, confidence[expected])
    assert torch.equal(kept_targets, targets[expected])
    assert torch.equal(kept_predictions, predicted[expected])


def test_top5_accuracy_equals_scikit_learns():
    """Top-5 accuracy is reported for eleven classes, but not for ten."""
    torch.manual_seed(0)
    for classes in (10, 11):
        scores, targets = torch.randn(300, classes).log_softmax(1), torch.randint(0, classes, (300,))
        results = metrics.ClassificationResults(classes, 1, torch.device("cpu"))
        for batch in (slice(0, 200), slice(200, 300)):
            results.update(scores[batch].unsqueeze(0), scores[batch], targets[batch], torch.zeros(300, 1, 1, 1)[batch])
        result = results.compute_metrics()
        assert result["accuracy"] == top_k_accuracy_score(targets, scores, k=1)
        assert result["loss"] == pytest.approx(F.nll_loss(scores, targets).item(), rel=1e-5)
        expected = None if classes == 10 else top_k_accuracy_score(targets, scores, k=5)
        assert result.get("top5_accuracy") == expected


def test_an_ensemble_averages_the_probabilities():
    torch.manual_seed(0)
    members = [torch.nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(5, 4)
    expected = sum(F.softmax(member(x), 1) for member in members) / 3
    torch.testing.assert_close(Ensemble(members)(x).exp(), expected)


def test_members_of_an_ensemble_may_compute_on_the_cpu():
    """As ONNX Runtime does, while another member is on a GPU; the meta device stands for the GPU."""
    on_cpu, on_device = torch.nn.Module(), torch.nn.Linear(4, 3, device="meta")
    on_cpu.forward = lambda x: torch.zeros(len(x), 3)
    result = compute_member_log_probs(Ensemble([on_cpu, on_device]), torch.zeros(5, 4, device="meta"))
    assert (result.device.type, result.shape) == ("meta", (2, 5, 3))


def test_evaluation_equals_a_manual_loop(trained):
    task = load_task(trained, device="cpu")
    val = DeepConvNet().load_data().val
    with torch.inference_mode():
        scores = torch.cat([task.model(images.float() / 255) for images, _ in val])
    targets = torch.cat([targets for _, targets in val])
    result = task.evaluate(val)
    assert result["errors"] == (scores.argmax(1) != targets).sum()
    assert result["loss"] == pytest.approx(F.cross_entropy(scores, targets).item(), rel=1e-5)


def test_recipes_are_listed_by_name_and_restored_from_json():
    resnets = [f"resnet{depth}" for depth in (18, 20, 32, 34, 44, 50, 56, 101, 110, 152)]
    binary = ["binary-convnet", "binary-deep-convnet", "binary-resnet18"]
    detectors = ["faster-rcnn-resnet50-fpn", "faster-rcnn-vgg16"]
    regions = ["rcnn", "rcnn-boxes", "rcnn-finetune", "rcnn-svm"]
    fcns = [*(f"fcn-resnet{depth}" for depth in (50, 101)), *(f"fcn{stride}s-vgg16" for stride in (16, 32, 8))]
    segnets = ["segnet-basic", "segnet-vgg16"]
    others = [
        "dcgan",
        "deep-convnet",
        "dqn",
        *detectors,
        *fcns,
        "googlenet",
        "neural-style",
        *regions,
        *resnets,
        *segnets,
        "show-and-tell",
    ]
    assert recipe.list_recipes() == [
        "alexnet",
        "alphago-policy",
        "alphago-zero",
        *binary,
        *others,
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
    ]
    assert package.get_recipe("deep-convnet") is DeepConvNet
    original = DeepConvNet(lr=0.5, widths=(1, 2, 3, 4, 5, 6), data="mnist")
    fields = json.loads(json.dumps(dataclasses.asdict(original)))
    assert recipe.build_recipe(DeepConvNet, fields) == original
    assert (
        recipe.build_train_command(original) == "fukami train deep-convnet --data mnist --lr 0.5 --widths 1 2 3 4 5 6"
    )
    with pytest.raises(Error, match="did you mean 'epochs'"):
        recipe.build_recipe(DeepConvNet, {"epoch": 3})
    with pytest.raises(Error, match=r"'epochs'.*int"):
        recipe.build_recipe(DeepConvNet, {"epochs": "many"})


def compute_depth(cls):
    """Compute the length of the longest chain of classes of the package below a class."""
    classes = [subclass for subclass in cls.__subclasses__() if subclass.__module__.startswith("fukami.")]
    return max((1 + compute_depth(subclass) for subclass in classes), default=0)


def test_no_recipe_is_more_than_four_classes_below_the_base_class():
    for name in recipe.list_recipes():
        package.get_recipe(name)
    assert compute_depth(package.Recipe) == 4  # those of Faster R-CNN and R-CNN share a base recipe in their family
    assert compute_depth(ClassificationRecipe) == compute_depth(SegmentationRecipe) == 1


def test_quantization_aware_training_has_no_stage_of_the_head():
    with pytest.raises(UsageError, match="omit --freeze, --head-epochs, --layer-lr-decay and --cycles"):
        ResNet20(init="run", quantize="int8", head_epochs=2)


def test_an_unknown_field_is_rejected_with_the_closest_names():
    with pytest.raises(UsageError, match="unknown field of resnet18 'epoch'; did you mean 'epochs'"):
        ResNet18(epoch=5)
    with pytest.raises(UsageError, match="unknown field of resnet18 'learning_rate'"):
        dataclasses.replace(ResNet18(), learning_rate=0.1)
    original = ResNet18(epochs=5, augment=("flip",))
    assert dataclasses.replace(original, lr=0.5) == ResNet18(epochs=5, augment=("flip",), lr=0.5)
    assert copy.deepcopy(original) == pickle.loads(pickle.dumps(original)) == original


def test_repr_of_a_recipe_has_the_fields_that_differ_from_their_defaults():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(ResNet20):
        names: tuple[str, ...] = dataclasses.field(default_factory=lambda: ("a", "b"))
        half: float = dataclasses.field(init=False, default=0.5)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Named(Own):
        def __repr__(self):
            return "named"

    assert repr(ResNet18()) == "ResNet18()"
    assert repr(ResNet18(epochs=5, data="flowers")) == "ResNet18(data='flowers', epochs=5)"
    assert repr(DeepConvNet(batch_norm=True, seed=0)) == "DeepConvNet(batch_norm=True)"
    assert repr(Own(names=("c",), lr=0.5)) == "Own(lr=0.5, names=('c',))"
    assert repr(Own()) == "Own()"
    assert repr(Named()) == "named"
    assert recipe.build_train_command(Own(lr=0.5)).endswith(" --lr 0.5")


def test_a_recipe_that_extends_a_built_in_one_has_its_network():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(ResNet20):
        shortcut: str = "B"

    assert Own().architecture == "resnet20"
    assert Own().build_model(3).state_dict().keys() == ResNet20(shortcut="B").build_model(3).state_dict().keys()


# the later stages of R-CNN need the run of an earlier one: test_rcnn.py trains them
def test_run_of_an_older_version_is_rejected_with_both_versions(tmp_path):
    """Its fields had other names; the error names the version that wrote them and this one."""
    record = json.loads((run_folder.BUNDLED_WEIGHTS_DIR / "deep-convnet" / "recipe.json").read_text())
    fields = {"dataset" if name == "data" else name: value for name, value in record["fields"].items()}
    versions = {**record["versions"], "fukami": "0.0.9"}
    (tmp_path / "recipe.json").write_text(json.dumps({**record, "fields": fields, "versions": versions}))
    installed = re.escape(importlib.metadata.version("fukami"))
    with pytest.raises(
        Error, match=rf"'dataset'; did you mean 'data'.* fukami 0\.0\.9 wrote the run, and this is fukami {installed}"
    ):
        run_record.read_recipe(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGEST_RECIPES else ())
        for name in recipe.list_recipes()
        if name not in ("rcnn-svm", "rcnn-boxes", "alphago-policy")  # these need another run, or games
    ],
)
def test_every_recipe_trains_two_steps_on_bundled_data(name, digit_files, few_scenes, tmp_path):
    cls, family = package.get_recipe(name), RECIPES[name].task
    if family == "detection":
        smaller = {"batch_size": 4, "min_size": 64, "max_size": 96, "memory_limit": 0.1}
        smaller |= {"width_multiplier": 0.125, "hidden": 16} if "resnet" not in name else {}
        smaller |= {"size": 63, "eval_every": 1} if name.startswith("rcnn") else {}
    elif family == "segmentation":
        smaller = {"batch_size": 4, "min_size": 32 if "resnet" in name else 64}
        smaller |= (
            {"num_filters": 8} if name == "segnet-basic" else {"width_multiplier": 0.125} if "vgg" in name else {}
        )
        smaller |= {"hidden": 16} if name.startswith("fcn") and "vgg" in name else {}
    elif family == "captioning":
        smaller = {"encoder": "resnet20", "size": 32, "batch_size": 4, "hidden": 8, "beam_size": 2, "max_tokens": 5}
    elif family == "generation":
        smaller = {
            "data": str(digit_files),
            "batch_size": 20,
            "base_channels": 4,
            "size": 28,
            "channels": 1,
            "eval_samples": 10,
        }
    elif family == "reinforcement":
        smaller = {
            "steps": 168,
            "learning_starts": 160,
            "buffer_size": 160,
            "hidden": 4,
            "eval_episodes": 4,
            "eval_every": 8,
        }
    elif family == "self-play":
        smaller = {
            "game": ("tic-tac-toe",),
            "positions": 164,
            "learning_starts": 100,
            "batch_size": 64,
            "num_games": 16,
            "self_play_simulations": 2,
            "simulations": 4,
            "num_channels": 4,
            "eval_games": 2,
        }
    elif family == "style":
        smaller = {"iterations": 2, "size": 64, "levels": 1, "eval_every": 2}
    else:
        smaller = {"data": str(digit_files), "batch_size": 15} | ({} if name == "deep-convnet" else {"size": 32})
        smaller |= {"size": 63, "hidden": 16} if name == "alexnet" else {}
    epochs = {} if family in ("style", "reinforcement", "self-play") else {"epochs": 1}
    result = package.train(cls(**epochs, **smaller), tmp_path / "run", device="cpu").metrics
    assert result["count"] == {"classification": 10, "generation": 10, "style": 1, "self-play": 2}.get(family, 4)
    if name != "rcnn":  # the last stage of R-CNN has a step for each image
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_with_data_keeps_the_validation_split_of_the_runs_own_dataset(tmp_path):
    recipe_on_folder = DeepConvNet(data=str(tmp_path))
    assert recipe_on_folder.with_data(str(tmp_path)) is recipe_on_folder
    assert recipe_on_folder.with_data(f"{tmp_path}/../{tmp_path.name}") is recipe_on_folder
    assert recipe_on_folder.with_data("digits").val_fraction == 1.0
    with pytest.raises(UsageError, match="does not take --data"):
        type("Own", (package.Recipe,), {"__module__": __name__})().with_data("mnist")


@pytest.fixture
def run(trained, tmp_path):
    """Copy of the trained run that a test may damage."""
    copy = tmp_path / "run"
    copy.mkdir()
    for path in trained.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_corrupted_weights_are_rejected_and_all_mismatches_are_listed(run):
    weights = load_file(run_weights.locate_weights(run))
    bad = {**weights, "model.extra": torch.zeros(1), "model.0.bias": torch.zeros(3)}
    del bad["model.0.weight"]
    save_file(bad, run_weights.locate_weights(run))
    with pytest.raises(
        Error, match=r"0\.bias is \(3,\) instead of \(16,\); .*0\.weight is missing; .*extra is unexpected"
    ):
        load_task(run)
    for content in (b"", b"garbage", save_bytes(weights)[:5000], b"\xff" * 64):
        run_weights.locate_weights(run).write_bytes(content)
        with pytest.raises(Error, match=r"best\.safetensors is corrupted"):
            load_task(run)
    (run / "best.safetensors").unlink()
    (run / "weights.safetensors").unlink()
    with pytest.raises(Error, match=r"no weights\.safetensors yet"):
        load_task(run)


def save_bytes(tensors):
    from safetensors.torch import save

    return save(tensors)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"recipe": 3, "fields": {}, "labels": []}',
        '{"recipe": "deep-convnet", "fields": {}, "labels": 3}',
        '{"recipe": "deep-convnet", "fields": {"lr": "fast"}, "labels": []}',
        '{"recipe": "no-such", "fields": {}, "labels": []}',
    ],
)
def test_corrupted_recipes_are_rejected(run, content):
    (run / "recipe.json").write_text(content)
    with pytest.raises(Error):
        load_task(run)


def test_loading_never_unpickles(run, monkeypatch):
    import pickle

    def forbidden(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    (run / "last.ckpt").write_bytes(b"corrupted")
    assert load_task(run).labels == tuple("0123456789")


def test_bundled_weights_have_the_accuracy_of_their_card(mnist_folder):
    """The errors in float32 and float16 are nearly those of the card, as in the note."""
    record = json.loads((run_folder.BUNDLED_WEIGHTS_DIR / "deep-convnet" / "recipe.json").read_text())
    test = DeepConvNet(data="mnist").load_eval_data().test
    errors = record["card"]["test errors of 10,000"]
    for precision in ("float32", "float16"):
        result = load_task("deep-convnet", device="cpu", precision=precision).evaluate(test)
        assert result["count"] == 10_000
        assert abs(result["errors"] - errors[precision]) <= 2
        assert result["accuracy"] >= 0.9965
    stored = load_file(run_folder.BUNDLED_WEIGHTS_DIR / "deep-convnet" / "weights.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


class Page(html.parser.HTMLParser):
    """Parser that collects the text and the external addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.fetched = [], []
        self.feed(text)

    def handle_data(self, data):
        self.text.append(data.strip())

    def handle_starttag(self, tag, attributes):
        self.fetched += [
            value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")
        ]


@pytest.mark.parametrize(
    ("name", "amx", "avx512_bf16", "expected"),
    [
        ("Intel(R) Xeon(R) Processor", True, True, "bfloat16"),  # Sapphire Rapids
        ("Intel(R) Xeon(R) Processor", False, True, "float32"),  # the same CPU, with AMX hidden by a hypervisor
        ("AMD EPYC", False, True, "bfloat16"),  # Zen 4 and 5
        ("AMD EPYC", False, False, "float32"),  # Zen 3
    ],
)
def test_the_default_precision_is_the_fast_one_of_the_cpu(monkeypatch, name, amx, avx512_bf16, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert Runtime.start("cpu").precision == expected
    assert Runtime.start("cpu", "float32").precision == "float32"


def test_the_report_is_one_self_contained_file(trained):
    page = Page((trained / "report.html").read_text())
    assert page.fetched == []
    for section in (
        "Confusion matrix",
        "Accuracy per class",
        "Most confident errors",
        "Training curves",
        "Commands",
        "Configuration",
    ):
        assert section in page.text
    record = json.loads((trained / "recipe.json").read_text())
    assert record["command"] in page.text
    assert record["command"].startswith("fukami train deep-convnet --epochs 8")
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert any(f"accuracy {last['accuracy']:.4f}" in text and f"errors {last['errors']}" in text for text in page.text)
