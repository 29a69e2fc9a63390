"""Small parts: metrics, recipes on disk, the report, errors."""

import csv
import html.parser
import json
from collections import defaultdict
from statistics import fmean

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
from fukami.engine import checkpoint, recipe
from fukami.engine.runtime import Runtime
from fukami.layers.ensemble import Ensemble


def test_confusion_agrees_with_scikit_learn(random):
    target, predicted = random.integers(0, 7, (2, 500))
    found = metrics.compute_confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(target), 7)
    assert np.array_equal(found.numpy(), confusion_matrix(target, predicted, labels=range(7)))
    assert metrics.compute_accuracy(found) == {
        "accuracy": (target == predicted).mean(), "errors": (target != predicted).sum(), "count": 500,
    }  # fmt: skip


def test_top_five_agree_with_scikit_learn():
    """Of eleven classes; of ten there is no such number."""
    torch.manual_seed(0)
    for classes in (10, 11):
        scores, targets = torch.randn(300, classes).log_softmax(1), torch.randint(0, classes, (300,))
        found = metrics.ClassificationResults(classes, 1, torch.device("cpu"))
        for part in (slice(0, 200), slice(200, 300)):
            found.update(scores[part].unsqueeze(0), scores[part], targets[part], torch.zeros(300, 1, 1, 1)[part])
        result = found.compute_metrics()
        assert result["accuracy"] == top_k_accuracy_score(targets, scores, k=1)
        assert result["loss"] == pytest.approx(F.nll_loss(scores, targets).item(), rel=1e-5)
        expected = None if classes == 10 else top_k_accuracy_score(targets, scores, k=5)
        assert result.get("top5_accuracy") == expected


def test_an_ensemble_is_the_mean_of_the_probabilities():
    torch.manual_seed(0)
    members = [torch.nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(5, 4)
    expected = sum(F.softmax(member(x), 1) for member in members) / 3
    torch.testing.assert_close(Ensemble(members)(x).exp(), expected)


def test_evaluation_agrees_with_a_loop_by_hand(trained):
    task = package.load(trained, device="cpu")
    val = DeepConvNet().load_data().val
    with torch.inference_mode():
        scores = torch.cat([task.model(images.float() / 255) for images, _ in val])
    targets = torch.cat([targets for _, targets in val])
    found = task.evaluate(val)
    assert found["errors"] == (scores.argmax(1) != targets).sum()
    assert found["loss"] == pytest.approx(F.cross_entropy(scores, targets).item(), rel=1e-5)


def test_recipes_are_found_by_name_and_come_back_from_json():
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
    assert recipe.list_recipes() == [*binary, *others, "vgg11", "vgg13", "vgg16", "vgg19"]
    assert package.get_recipe("deep-convnet") is DeepConvNet
    original = DeepConvNet(lr=0.5, widths=(1, 2, 3, 4, 5, 6), data="mnist")
    import dataclasses

    fields = json.loads(json.dumps(dataclasses.asdict(original)))
    assert recipe.build_recipe(DeepConvNet, fields) == original
    assert (
        recipe.build_train_command(original) == "fukami train deep-convnet --data mnist --lr 0.5 --widths 1 2 3 4 5 6"
    )
    with pytest.raises(Error, match="did you mean 'epochs'"):
        recipe.build_recipe(DeepConvNet, {"epoch": 3})
    with pytest.raises(Error, match=r"'epochs'.*int"):
        recipe.build_recipe(DeepConvNet, {"epochs": "many"})


# the later stages of R-CNN take an earlier one's run: test_rcnn.py trains them
@pytest.mark.parametrize("name", [name for name in recipe.list_recipes() if name not in ("rcnn-svm", "rcnn-boxes")])
def test_every_recipe_trains_two_steps_on_embedded_data(name, digit_files, few_scenes, pageless, tmp_path):
    cls, family = package.get_recipe(name), RECIPES[name].task
    if family == "detection":
        smaller = {"batch_size": 4, "min_size": 64, "max_size": 96, "memory_limit": 0.1}
        smaller |= {"width_multiplier": 0.125, "hidden": 16} if "resnet" not in name else {}
        smaller |= {"size": 63, "eval_every": 1} if name.startswith("rcnn") else {}
    elif family == "segmentation":
        smaller = {"batch_size": 4, "min_size": 64}
        smaller |= {"filters": 8} if name == "segnet-basic" else {"width_multiplier": 0.125} if "vgg" in name else {}
        smaller |= {"hidden": 16} if name.startswith("fcn") and "vgg" in name else {}
    elif family == "captioning":
        smaller = {"encoder": "resnet20", "size": 32, "batch_size": 4, "hidden": 8, "beam_size": 2, "max_words": 5}
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
    elif family == "style":
        smaller = {"iterations": 2, "size": 64, "levels": 1, "eval_every": 2}
    else:
        smaller = {"data": str(digit_files), "batch_size": 15} | ({} if name == "deep-convnet" else {"size": 32})
    passes = {} if family in ("style", "reinforcement") else {"epochs": 1}
    result = package.train(cls(**passes, **smaller), tmp_path / "run", device="cpu")
    assert result["count"] == {"classification": 10, "generation": 10, "style": 1}.get(family, 4)
    if name != "rcnn":  # whose last stage has a step for each image
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_on_keeps_the_held_out_part_of_the_runs_own_data(tmp_path):
    own = DeepConvNet(data=str(tmp_path))
    assert own.with_data(str(tmp_path)) is own
    assert own.with_data(f"{tmp_path}/../{tmp_path.name}") is own
    assert own.with_data("digits").holdout == 1.0
    with pytest.raises(UsageError, match="takes no --data"):
        type("Own", (package.Recipe,), {"__module__": __name__})().with_data("mnist")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, to be damaged."""
    copy = tmp_path / "run"
    copy.mkdir()
    for path in trained.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_damaged_weights_are_refused_and_every_misfit_is_listed(run):
    good = load_file(run / "weights.safetensors")
    bad = {**good, "model.extra": torch.zeros(1), "model.0.bias": torch.zeros(3)}
    del bad["model.0.weight"]
    save_file(bad, run / "weights.safetensors")
    with pytest.raises(
        Error, match=r"0\.bias is \(3,\) instead of \(16,\); .*0\.weight is missing; .*extra is not known"
    ):
        package.load(run)
    for content in (b"", b"garbage", save_bytes(good)[:5000], b"\xff" * 64):
        (run / "weights.safetensors").write_bytes(content)
        with pytest.raises(Error, match=r"weights\.safetensors is damaged"):
            package.load(run)
    (run / "weights.safetensors").unlink()
    with pytest.raises(Error, match=r"no weights\.safetensors yet"):
        package.load(run)


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
def test_damaged_recipes_are_refused(run, content):
    (run / "recipe.json").write_text(content)
    with pytest.raises(Error):
        package.load(run)


def test_loading_never_unpickles(run, monkeypatch):
    import pickle

    def forbidden(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    (run / "last.ckpt").write_bytes(b"hostile")
    assert package.load(run).labels == tuple("0123456789")


def test_shipped_weights_are_what_their_card_says(mnist_folder):
    """26 errors of 10,000, and float16 changes nothing, as the note claims."""
    record = json.loads((checkpoint.SHIPPED_WEIGHTS_DIR / "deep-convnet" / "recipe.json").read_text())
    val = DeepConvNet(data="mnist").load_data().val
    errors = record["card"]["test errors of 10,000"]
    for precision in ("float32", "float16"):
        found = package.load("deep-convnet", device="cpu", precision=precision).evaluate(val)
        assert found["count"] == 10_000
        assert abs(found["errors"] - errors[precision]) <= 2
        assert found["accuracy"] >= 0.9965
    stored = load_file(checkpoint.SHIPPED_WEIGHTS_DIR / "deep-convnet" / "weights.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


class Page(html.parser.HTMLParser):
    """Collects headings, and every address that a page would fetch."""

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
        ("Intel(R) Xeon(R) Processor", False, True, "float32"),  # the same, its tiles hidden by a hypervisor
        ("AMD EPYC", False, True, "bfloat16"),  # Zen 4 and 5
        ("AMD EPYC", False, False, "float32"),  # Zen 3
    ],
)
def test_a_cpu_trains_in_the_precision_that_is_fast_on_it(monkeypatch, name, amx, avx512_bf16, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert Runtime.start("cpu").precision == expected
    assert Runtime.start("cpu", "float32").precision == "float32"


def test_the_report_is_one_self_contained_file(trained):
    page = Page((trained / "report.html").read_text())
    assert page.fetched == []
    for section in (
        "Repeat it",
        "Training",
        "Confusion matrix",
        "Accuracy per class",
        "Most confidently wrong",
        "What made it",
    ):
        assert section in page.text
    record = json.loads((trained / "recipe.json").read_text())
    assert record["command"] in page.text
    assert record["command"].startswith("fukami train deep-convnet --epochs 8")
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert any(f"accuracy {last['accuracy']:.4f}" in text and f"errors {last['errors']}" in text for text in page.text)


def test_numbers_in_the_list_stand_in_the_results():
    """What ``fukami list`` claims for us was measured."""
    from pathlib import Path

    with (Path(__file__).parents[1] / "benchmarks" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in recipe.list_recipes():
        claim = RECIPES[name].result
        if not claim:
            continue  # nothing is claimed
        number = claim.split()[0]
        decimals = len(number.partition(".")[2])
        seeds = int(claim.partition("mean of ")[2].partition(" seeds")[0] or 1)
        found = defaultdict(list)
        for row in rows:
            if name in row["benchmark"] + row["command"]:
                one = () if seeds > 1 else (row["command"], row["value"])
                value = float(row["value"]) * (1 if row["metric"] == "return" else 100)
                found[row["benchmark"], row["metric"], row["commit"], *one].append(value)
        means = [fmean(values) for values in found.values() if seeds == 1 or len(values) == seeds]
        assert any(f"{value:.{decimals}f}" == number for value in means), claim
