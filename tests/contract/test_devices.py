"""What a device other than the CPU has to hold: it learns and answers what the CPU does, and repeats itself.

Each test takes a device. ``cpu`` proves that the test itself works, and is kept cheap; ``cuda`` is skipped where there
is no NVIDIA GPU. ``pytest -m gpu`` runs what needs one. Nothing here is left to a forked process, in which CUDA cannot
be begun.
"""

import importlib.util
import itertools
import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

import check_task
import fukami as package
from fukami import timing
from fukami.data import augment
from fukami.data.samples import PROPOSAL, REGULAR, PaddedBatch
from fukami.detection.task import DetectionTask
from fukami.engine import async_checkpoint
from fukami.engine import export as engine_export
from fukami.engine import train as engine_train
from fukami.engine.cuda_graph import GraphedCallable
from fukami.engine.resume import set_random_seed
from fukami.engine.runtime import Runtime
from fukami.engine.state_file import load_state
from fukami.engine.task import Task
from fukami.explain import feature_visualization
from fukami.explain import summary as explain_summary
from fukami.generation.task import GANTask
from fukami.quantization import binary_layers

# A library may warn on a GPU of what it does not on a CPU: that is told in pytest's summary and fails nothing.
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.filterwarnings("default")])


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return there(request.param)


def there(device):
    """The name of a device, which is there."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return device


def on_both(*cheap, without=()):
    """The families on CUDA, and the cheap ones on the CPU as well: the others' CPU is the business of test_tasks.py."""
    pairs = [pytest.param(name, "cpu", id=f"{name}-cpu") for name in cheap]
    every = [name for name in FAMILIES if name not in without]
    pairs += [pytest.param(name, "cuda", id=f"{name}-cuda", marks=CUDA.marks) for name in every]
    return pytest.mark.parametrize(("family", "device"), pairs)


# ---- the families, each with a recipe of a few steps. What is learned is smooth in the weights (momentum, where Adam
# makes a full step of a gradient that is 0 but for rounding), and nothing is dropped, as CUDA draws other numbers.

SLOW = {"optimizer": "momentum", "epochs": 1}


def deep_convnet(data, **fields):
    return package.get_recipe("deep-convnet")(**{**SLOW, "lr": 0.01, "batch_size": 100, "dropout": 0.0} | fields)


def resnet20(data, **fields):
    return package.get_recipe("resnet20")(**{**SLOW, "data": "digits", "lr": 0.02, "batch_size": 100} | fields)


def binary(data, **fields):
    small = {"widths": (8, 8, 16, 16, 16, 16), "hidden": 16}
    return package.get_recipe("binary-deep-convnet")(**{**SLOW, "lr": 0.01, "batch_size": 100, **small} | fields)


def vgg_detector(data, **fields):
    small = {
        "min_size": 96,
        "max_size": 160,
        "width_multiplier": 0.125,
        "hidden": 32,
        "anchor_sizes": (24.0, 48.0, 96.0),
        "dropout": 0.0,
    }
    return package.get_recipe("faster-rcnn-vgg16")(
        **{**SLOW, "data": data("scene_files"), "lr": 1e-2, "batch_size": 2, "augment": ("flip",), **small} | fields
    )


def pyramid_detector(data, **fields):
    small = {"min_size": 64, "max_size": 96}
    return package.get_recipe("faster-rcnn-resnet50-fpn")(
        **{**SLOW, "data": data("scene_files"), "lr": 1e-3, "batch_size": 2, **small} | fields
    )


def fcn(data, **fields):
    small = {
        "width_multiplier": 0.125,
        "hidden": 32,
        "dropout": 0.0,
        "augment": ("flip", "crop=0.6", "hue"),
        "min_size": 96,
    }
    return package.get_recipe("fcn8s-vgg16")(
        **{**SLOW, "data": data("mask_files"), "lr": 1e-2, "batch_size": 2, "balance": "median", **small} | fields
    )


def segnet(data, **fields):
    small = {"filters": 8, "min_size": 64}
    return package.get_recipe("segnet-basic")(
        **{**SLOW, "data": data("mask_files"), "lr": 1e-2, "batch_size": 2, **small} | fields
    )


def captioner(data, **fields):
    small = {"encoder": "resnet20", "size": 32, "hidden": 64, "dropout": 0.0, "augment": ("flip",), "beam_size": 2}
    return package.get_recipe("show-and-tell")(
        **{**SLOW, "data": data("told_files"), "lr": 0.1, "batch_size": 8, "min_word_count": 1, **small} | fields
    )


def dcgan(data, **fields):
    small = {"base_channels": 4, "batch_size": 8, "eval_samples": 40, "size": 28, "channels": 1}
    return package.get_recipe("dcgan")(
        **{**SLOW, "data": data("digit_files"), "epochs": 3, "lr": 0.01, **small} | fields
    )


def dqn(data, **fields):
    """All actions are by chance: one that two values decide which differ by their rounding would lead elsewhere."""
    small = {
        "steps": 240,
        "learning_starts": 160,
        "buffer_size": 240,
        "epsilon_end": 1.0,
        "hidden": 16,
        "eval_episodes": 4,
    }
    return package.get_recipe("dqn")(**{"eval_every": 40, "optimizer": "rmsprop", "lr": 1e-3, **small} | fields)


def style(data, **fields):
    return package.get_recipe("neural-style")(**{"size": 48, "levels": 1, "iterations": 6, "eval_every": 6} | fields)


FAMILIES = {
    "deep-convnet": deep_convnet,
    "resnet20": resnet20,
    "binary": binary,
    "vgg-detector": vgg_detector,
    "pyramid-detector": pyramid_detector,
    "fcn": fcn,
    "segnet": segnet,
    "captioner": captioner,
    "dcgan": dcgan,
    "dqn": dqn,
    "style": style,
}


@pytest.fixture
def make(request):
    """The recipe of a family, with fields of its own."""
    data = lambda name: str(request.getfixturevalue(name))  # noqa: E731
    return lambda family, **fields: FAMILIES[family](data, **fields)


def begin(recipe, device, precision, folder):
    """The task of a recipe at its beginning, and its batches, on a device."""
    runtime = Runtime.start(device, precision)
    set_random_seed(recipe.seed)
    data, loader = engine_train.prepare_data(recipe, folder, runtime)
    set_random_seed(recipe.seed)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.count_steps(loader)
    recipe.initialize_task(task)
    fix(task)
    return task, iter(task.iterate_batches(loader)), data


def fix(task):
    """Give every device the same numbers where it would draw its own, or where rounding decides what is learned from.

    The noise of a generator is drawn on the device. Which regions a detector proposes, and so which it learns from,
    depends on the order of scores that differ by no more than their rounding in a network that knows nothing yet.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(task, GANTask):
        task.sample_noise = lambda count: (2 * torch.rand(count, task.latent_dim, generator=generator) - 1).to(
            task.runtime.device
        )
    if isinstance(task, DetectionTask):

        def asked(batch):
            images, sizes, truth = type(task).prepare_training_inputs(task, batch)
            draws = torch.rand(len(images), 40, 4, generator=generator).to(images.device)
            corner = 0.6 * draws[..., :2]
            places = torch.cat([corner, corner + 0.1 + 0.3 * draws[..., 2:]], 2) * sizes.flip(1).repeat(1, 2)[:, None]
            return images, sizes, truth, (places, torch.ones(places.shape[:2], dtype=torch.bool, device=draws.device))

        task.prepare_training_inputs = asked


def follow(recipe, device, steps, folder, precision="float32"):
    """What some steps return, and by how much they change each tensor of the networks."""
    task, batches, _ = begin(recipe, device, precision, folder)
    networks = {name: part for name, part in task.get_stateful_objects().items() if isinstance(part, torch.nn.Module)}
    before = weights(networks)
    found = []
    for step in range(steps):
        task.schedule(step / steps)
        found.append({name: float(value) for name, value in task.step(next(batches)).items()})
    after = weights(networks)
    return found, {name: (after[name] - before[name]).double().flatten() for name in after}


def weights(modules):
    """Copies of all floating tensors of some modules on the CPU, by name."""
    return {
        f"{part}.{name}": value.detach().cpu().clone()
        for part, module in modules.items()
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }


def size(changes):
    """The norm of all changes together."""
    return math.sqrt(sum(float(change.square().sum()) for change in changes))


# ---- the same steps as on the CPU ------------------------------------------------------------------------------------

# Each device adds up in an order of its own. Relative to the CPU, what it may do to a loss of the first step, to one of
# the later steps, and to the change of all weights together: at least thrice what came of weights that were changed by
# a hundred thousandth each, on the CPU; the rounding of float32 is 6e-8. A sign (binary) or a slope (dcgan) that
# rounding decides otherwise is more than rounding.
TOLERANCES = {
    "deep-convnet": (1e-4, 1e-3, 3e-2),
    "resnet20": (1e-4, 1e-3, 2e-2),
    "binary": (1e-2, 0.1, 0.2),
    "vgg-detector": (1e-4, 1e-3, 1e-2),
    "pyramid-detector": (2e-3, 1e-2, 5e-2),
    "fcn": (1e-4, 1e-3, 5e-2),
    "segnet": (1e-3, 1e-2, 5e-2),
    "captioner": (1e-4, 1e-3, 2e-2),
    "dcgan": (2e-3, 5e-2, 3e-2),
    "dqn": (1e-3, 1e-3, 1e-2),
    "style": (1e-3, 1e-2, 5e-2),
}
COUNTS = ("accuracy", "discriminator_accuracy", "right")  # shares of a few decisions, each of which rounding may turn round


@on_both("deep-convnet", "vgg-detector", "fcn", "captioner", "dcgan", "dqn")
def test_steps_are_those_of_the_cpu(family, device, make, tmp_path):
    """Losses and updates in float32, from the same weights, batches and draws."""
    there(device)
    steps = 2 if family == "pyramid-detector" else 4
    expected, own = follow(make(family), "cpu", steps, tmp_path / "cpu")
    found, changes = follow(make(family), device, steps, tmp_path / "device")
    first, later, update = TOLERANCES[family]
    for step, (values, others) in enumerate(zip(found, expected, strict=True)):
        for name, value in values.items():
            allowed = {"rel": later if step else first, "abs": 1e-6 * max(1, others.get("loss", 1))}
            if name not in COUNTS:
                assert value == pytest.approx(others[name], **allowed), (step, name)
    assert changes.keys() == own.keys()
    assert size(own.values()) > 0
    assert size(changes[name] - own[name] for name in own) <= update * size(own.values())


@pytest.mark.parametrize("stage", ["rcnn-finetune", "rcnn-svm", "rcnn-boxes"])
def test_stages_of_rcnn_are_those_of_the_cpu(stage, device):
    """What they learn or solve on three images with regions; features are rounded to float16 in between."""
    generator = torch.Generator().manual_seed(0)
    small = {
        "min_size": 96,
        "max_size": 128,
        "size": 63,
        "context_padding": 4,
        "width_multiplier": 0.125,
        "hidden": 16,
        "cache_limit": 0.0,
    }
    recipe = package.get_recipe(stage)(
        **small | ({"batch_size": 1, "dropout": 0.0} if stage == "rcnn-finetune" else {})
    )
    objects = torch.tensor([[8.0, 8, 56, 56], [64, 16, 112, 88]])
    near = (objects.repeat(10, 1) + 8 * torch.rand(20, 4, generator=generator) - 4).clamp(0, 96)
    far = 40 * torch.rand(20, 4, generator=generator) + torch.tensor([0.0, 0, 40, 40])
    boxes = torch.cat([objects, near, far])[None]
    kinds = torch.tensor([REGULAR] * 2 + [PROPOSAL] * 40, dtype=torch.uint8)[None]
    classes = torch.tensor([0, 1] + [-1] * 40)[None]
    sides = torch.tensor([[96.0, 128.0]])
    images = [torch.randint(256, (1, 3, 96, 128), generator=generator, dtype=torch.uint8) for _ in range(3)]
    nothing = torch.zeros(1, 0, 0, dtype=torch.uint8)
    batches = [
        PaddedBatch(image, sides, sides, boxes, classes, kinds, torch.tensor([at]), torch.tensor([at]), nothing)
        for at, image in enumerate(images)
    ]
    learned = []
    for place in ("cpu", device):
        runtime = Runtime.start(place, "float32")
        set_random_seed(0)
        task = recipe.build_task(("one", "other"))
        task.setup(runtime)
        steps, _ = task.count_steps(batches)
        before = weights({"model": task.model})
        for step in range(min(steps, 6)):
            task.schedule(step / 6)
            task.step(batches[step % 3])
        after = weights({"model": task.model})
        learned.append(torch.cat([(after[name] - before[name]).flatten() for name in after]))
        with task.inference_mode(), torch.inference_mode():
            (found,) = task.detect_batch(batches[0])
        assert found.boxes.device.type == place
    assert learned[0].norm() > 0
    assert (learned[1] - learned[0]).norm() <= 0.05 * learned[0].norm()


def test_batches_are_those_of_the_cpu(device, make, tmp_path):
    """Order, targets and mirrors the same, whatever is resampled within half a level; none is overwritten later."""
    for family, words in (
        ("deep-convnet", ("shift=2", "rotate=10", "scale=0.1", "shear=0.1")),
        ("resnet20", ("flip", "pad-crop=4", "brightness", "erase", "mixup", "cutmix")),
        ("vgg-detector", ("flip", "crop=0.6", "hue", "contrast")),
        ("fcn", ("rotate", "saturation")),
    ):
        recipe = make(family, augment=words)
        every = []
        for place in ("cpu", device):
            _, loader = engine_train.prepare_data(recipe, tmp_path / place, Runtime.start(place, "float32"))
            every.append([[value.cpu() for value in batch] for batch in list(loader)])
        assert len(every[0]) == len(every[1]) > 3
        for one, other in zip(*every, strict=True):
            for value, own in zip(other, one, strict=True):
                assert_alike(value, own)


def assert_alike(found, expected):
    """Equal where they are whole numbers; else within half a level of brightness, but for edges that rounding moves."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if not found.is_floating_point():
        turned = int((found != expected).sum())  # of masks, whose nearest pixel may be another
        assert turned <= (0.005 * found.numel() if found.ndim == 3 else 0)
        return
    apart = (found - expected).abs()
    assert (apart > 0.5).float().mean() <= 0.002
    assert apart.mean() <= 0.01


@pytest.mark.parametrize("word", augment.OPERATIONS)
def test_augmentation_is_that_of_the_cpu(word, device):
    """A function of the images and the draws alone, wherever they lie."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 24, 24), generator=generator, dtype=torch.uint8)
    images = torch.nn.functional.interpolate(images.float(), (48, 48), mode="bilinear").round().to(torch.uint8)
    change = augment.parse_augmentation([word], size=48, num_classes=5)
    given = images, torch.arange(40) % 5, torch.rand(40, change.num_draws, generator=generator)
    expected = change(*given)
    found = [value.cpu() for value in change(*(value.to(device) for value in given))]
    if word.startswith("flip"):
        assert torch.equal(found[0], expected[0])
    elif word in ("trivial", "rand"):  # where a level is rounded, equalized or inverted, the next one may be far away
        assert ((found[0] - expected[0]).abs() > 1).float().mean() <= 0.01
    else:
        assert_alike(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


# ---- captured steps --------------------------------------------------------------------------------------------------

CAPTURED = {
    "adamw": (
        "deep-convnet",
        {"optimizer": "adamw", "dropout": 0.5, "batch_norm": True, "ema_decay": 0.9, "clip_norm": 1.0},
    ),
    "nesterov": ("deep-convnet", {"optimizer": "nesterov"}),
    "rmsprop": ("deep-convnet", {"optimizer": "rmsprop", "lr": 1e-3}),
    "adagrad": ("deep-convnet", {"optimizer": "adagrad"}),
    "dcgan": ("dcgan", {"optimizer": "adam", "lr": 2e-4}),
    "stable dcgan": ("dcgan", {"optimizer": "adam", "stable": True}),
    "dqn": ("dqn", {"optimizer": "adam"}),
    "dqn rmsprop": ("dqn", {"clip_norm": 0.1}),
}


def replay(recipe, device, precision, folder, *, capture):
    """What ten steps return and leave, the sixth of them with half a batch, as they are or as a CUDA graph."""
    task, batches, _ = begin(recipe, device, precision, folder)
    if isinstance(task, GANTask):
        del task.sample_noise  # drawn on the device, also while it replays
    update = task.runtime.capture(task.step, task.supports_cuda_graph) if capture else task.step
    found = []
    for step in range(10):
        task.schedule(step / 10)
        batch = next(batches)
        if step == 5:
            halves = [value[: len(value) // 2] if value.ndim else value for value in batch]
            batch = type(batch)(*halves) if hasattr(batch, "_fields") else tuple(halves)
        found.append({name: value.clone() for name, value in update(batch).items()})
    if isinstance(update, GraphedCallable):
        assert update.graph is not None
    parts = [part.state_dict() for part in task.get_stateful_objects().values() if hasattr(part, "state_dict")]
    return task, update, pytree.tree_leaves([found, parts])


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "float32") for name in CAPTURED]
    + [("adamw", "bfloat16"), ("adamw", "float16"), ("nesterov", "float16"), ("rmsprop", "float16")],
)
def test_captured_steps_are_those_that_are_not(name, precision, device, make, tmp_path):
    """Bit for bit, since a resumed run launches what the other one replayed: losses, weights and optimizer state.

    Over steps whose learning rates and dropouts differ, and with a batch of another shape between.
    """
    if device == "cpu" and (precision != "float32" or name not in ("adamw", "stable dcgan", "dqn")):
        pytest.skip("nothing is captured on a CPU; the others prove the test")
    family, fields = CAPTURED[name]
    _, _, expected = replay(make(family, **fields), device, precision, tmp_path / "launched", capture=False)
    task, update, found = replay(make(family, **fields), device, precision, tmp_path / "replayed", capture=True)
    assert isinstance(update, GraphedCallable) == (device == "cuda" and task.supports_cuda_graph)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("optimizer", "precision", "supports_cuda_graph"),
    [
        ("adamw", "float32", True),
        ("adamw", "float16", True),
        ("rmsprop", "float32", True),
        ("rmsprop", "float16", False),  # the scaler asks the processor whether the gradients are finite
        ("adagrad", "float32", False),  # it counts its steps on the processor
    ],
)
def test_what_asks_the_processor_is_not_captured(optimizer, precision, supports_cuda_graph, make, tmp_path):
    task, _, _ = begin(make("deep-convnet", optimizer=optimizer), "cpu", precision, tmp_path)
    assert task.supports_cuda_graph == supports_cuda_graph


# ---- whole trainings -------------------------------------------------------------------------------------------------

STOPS = {"dqn": 7, "style": 3, "deep-convnet": 9, "dcgan": 6}  # else during the first steps, which are never captured


@on_both("deep-convnet", "dcgan", without=("resnet20", "binary"))
def test_a_run_resumed_is_as_if_never_stopped(family, device, make, tmp_path, monkeypatch, pageless):
    """Bit for bit the weights, the last checkpoint and the log; also with dropout and noise drawn on the device."""
    there(device)
    fields = {"deep-convnet": {"dropout": 0.5}, "captioner": {"dropout": 0.5}, "dqn": {"epsilon_end": 0.1}}.get(
        family, {}
    )
    fields |= {"optimizer": "adamw"} if family in ("deep-convnet", "fcn", "captioner") else {}
    recipe, how = make(family, **fields), {"device": device, "precision": "float32"}
    package.train(recipe, tmp_path / "whole", **how)
    with pytest.MonkeyPatch.context() as patch:
        kind = type(recipe.build_task(recipe.load_data().labels))
        schedule, calls = kind.schedule, itertools.count(1)

        def stop(task, progress):
            if next(calls) == STOPS.get(family, 2):
                signal.raise_signal(signal.SIGTERM)
            return schedule(task, progress)

        patch.setattr(kind, "schedule", stop)  # which is called before each step, also where the step is replayed
        with pytest.raises(SystemExit) as left:
            package.train(recipe, tmp_path / "cut", **how)
        assert left.value.code == 128 + signal.SIGTERM
    stopped = load_state(tmp_path / "cut" / "last.ckpt", torch.device("cpu"))["step"]
    assert stopped == STOPS.get(family, 2)
    package.train(recipe, tmp_path / "cut", **how, resume=True)
    check_task.check_same_run(tmp_path / "cut", tmp_path / "whole")


LEARNING = {  # what has to be seen by then: fields for a training that is a little longer
    "deep-convnet": {"batch_size": 50, "optimizer": "adamw", "lr": 3e-3},
    "vgg-detector": {"epochs": 5, "eval_every": 5, "optimizer": "adamw", "lr": 1e-3},
    "captioner": {"epochs": 6, "eval_every": 6, "optimizer": "adamw", "lr": 3e-3},
}


@on_both("deep-convnet", "vgg-detector", without=("resnet20", "binary"))
def test_a_run_answers_as_on_the_cpu(family, device, make, digit_files, tmp_path, pageless):
    """What the device trained is evaluated and predicted with there, after it was loaded again, and on the CPU."""
    there(device)
    recipe, out = make(family, **LEARNING.get(family, {})), tmp_path / "run"
    result = package.train(recipe, out, device=device, precision="float32")
    own, plain = (package.load(out, device=place) for place in (device, "cpu"))
    assert next(own.model.parameters()).device.type == device
    assert next(plain.model.parameters()).device.type == "cpu"
    name = next(iter(result))
    for task in (own, plain):
        found = task.evaluate(recipe.load_data().val)
        assert found["count"] == result["count"]
        assert found[name] == pytest.approx(result[name], rel=0.05, abs=0.05), name
    inputs = sorted(digit_files.rglob("*.png"))[:5]
    if family in ("vgg-detector", "pyramid-detector", "fcn", "segnet", "captioner"):
        inputs = sorted(Path(recipe.data).rglob("*.png"))[:4]
    for one, other in zip(own.predict(inputs), plain.predict(inputs), strict=True):
        assert one.keys() == other.keys()
        ALIKE.get(family, numbers_alike)(one, other)


def numbers_alike(one, other):
    """Every number of an answer is nearly the same, and every word the same."""
    for name, value in one.items():
        if isinstance(value, float):
            assert value == pytest.approx(other[name], rel=1e-2, abs=2e-3), name
        elif name == "values":
            numbers_alike(value, other[name])
        elif not isinstance(value, dict | list):
            assert value == other[name], name


def classes_alike(one, other):
    """The same class with the same probability, unless two are equally likely."""
    best = [entry["probability"] for entry in other["ranking"]]
    assert one["probability"] == pytest.approx(other["probability"], rel=1e-2, abs=2e-3)
    if best[0] - best[1] > 4e-3:
        assert one["label"] == other["label"]


def shares_alike(one, other):
    """The classes of all but a few pixels; one that is nearly nowhere may be there or not."""
    for label in one["fractions"].keys() | other["fractions"].keys():
        assert one["fractions"].get(label, 0) == pytest.approx(other["fractions"].get(label, 0), abs=0.01), label


def boxes_alike(one, other):
    """Each box of the better half has its like: an order that rounding decides lets another one through."""
    better = [box for box in other["boxes"] if box["score"] > 0.1]
    left = [box for box in better if not any(is_like(box, found) for found in one["boxes"])]
    assert len(left) <= 0.1 * len(better)


def is_like(box, found):
    apart = [abs(a - b) for a, b in zip(box["box"], found["box"], strict=True)]
    return box["label"] == found["label"] and max(apart) < 1 and abs(box["score"] - found["score"]) < 0.02


ALIKE = {
    "deep-convnet": classes_alike,
    "vgg-detector": boxes_alike,
    "pyramid-detector": boxes_alike,
    "fcn": shares_alike,
    "segnet": shares_alike,
}


def test_streamed_batches_are_those_in_memory(device, make, digit_files, tmp_path):
    """Decoded by other processes, pinned and sent along while the device computes: none is overwritten on its way."""
    if device == "cpu":
        pytest.skip("test_streaming.py has it")
    every = []
    for memory, place in ((4.0, "cpu"), (0.0, device)):
        recipe = make("deep-convnet", data=str(digit_files), memory_limit=memory, batch_size=4, augment=("shift=1",))
        _, loader = engine_train.prepare_data(recipe, tmp_path / place, Runtime.start(place, "float32"))
        every.append([[value.cpu() for value in batch] for batch in [*loader, *loader]])
    for one, other in zip(*every, strict=True):
        for value, own in zip(other, one, strict=True):
            assert_alike(value, own)


# ---- precisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
@on_both("deep-convnet", without=("resnet20", "binary", "pyramid-detector", "segnet", "style"))
def test_precisions_learn(family, device, precision, make, tmp_path):
    """Six steps at a lower precision: finite, in weights of float32, and near the losses of float32 at first."""
    there(device)
    if device == "cpu" and precision != "bfloat16":
        pytest.skip("test_precision.py has float16, and tf32 is a precision of GPUs")
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an NVIDIA GPU since Ampere")
    task, batches, _ = begin(make(family), device, precision, tmp_path)
    update = task.runtime.capture(task.step, task.supports_cuda_graph)
    found = []
    for step in range(6):
        task.schedule(step / 6)
        found.append({name: value.clone() for name, value in update(next(batches)).items()})
    assert all(value.isfinite() for values in found for value in values.values())
    for name, value in weights(task.get_modules()).items():
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name
    if precision == "float16":
        assert task.scaler.is_enabled()
        assert task.scaler.get_scale() >= 1
    (exact, *_), _ = follow(make(family), device, 1, tmp_path / "exact")
    loss = next(iter(exact))
    assert float(found[0][loss]) == pytest.approx(exact[loss], rel=0.1)


def test_float32_is_float32(device):
    """Products and convolutions have 23 bits behind the point; tf32, which has 10, is seen at once."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1024, 64, generator=generator).double() + 0.5 for _ in range(2))
    images, filters = (torch.rand(4, 16, side, side, generator=generator).double() + 0.5 for side in (24, 3))
    exact = one @ other.T, torch.nn.functional.conv2d(images, filters)

    def off():
        """The greatest relative error of sums of 64 products, and of a convolution, which has faster ways."""
        narrow = [value.float().to(device) for value in (one, other, images, filters)]
        found = narrow[0] @ narrow[1].T, torch.nn.functional.conv2d(*narrow[2:])
        return [float(((value.cpu() - right) / right).abs().max()) for value, right in zip(found, exact, strict=True)]

    def check_exact():
        Runtime.start(device, "float32")
        product, convolution = off()
        assert product < 5e-6
        assert convolution < 4e-5

    check_exact()
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        Runtime.start(device, "tf32")
        assert off()[0] > 5e-5
        check_exact()


# ---- what else takes a device ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs of DeepConvNet on the embedded digits, one of each device."""
    made = {}

    def train(device):
        if device not in made:
            made[device] = tmp_path_factory.mktemp("runs") / device
            recipe = package.get_recipe("deep-convnet")(epochs=4, batch_size=50, augment=(), dropout=0.0)
            with pytest.MonkeyPatch.context() as patch:
                check_task.leave_out_pages(patch)
                package.train(recipe, made[device], device=device, precision="float32")
        return made[device]

    return train


def test_commands_answer_there(device, run, digit_files, fukami):
    """eval, predict and bench say what the CPU says, at each precision; bench names the device."""
    folder, image = run(device), sorted(digit_files.rglob("*.png"))[0]
    (expected,) = fukami("predict", folder, image, "--device", "cpu").json
    for precision in ("float32", "bfloat16", "float16")[: 3 if device == "cuda" else 1]:
        how = ("--device", device, "--precision", precision)
        evaluated, predicted = fukami("eval", folder, *how), fukami("predict", folder, image, *how)
        assert (evaluated.status, predicted.status) == (0, 0), evaluated.err + predicted.err
        assert evaluated.json[0]["accuracy"] > 0.8
        assert predicted.json[0]["probability"] == pytest.approx(expected["probability"], abs=0.05)
    if device == "cuda":  # which --device auto is; on a CPU test_explain.py and test_task.py have these
        explained = fukami("explain", folder, image, "--out", "page")
        assert explained.status == 0, explained.err
        rates = fukami("find-lr", "deep-convnet", "--device", device, "--steps", "20", "--max-lr", "0.1")
        assert rates.status == 0, rates.err
    measured = fukami("bench", "--device", device, "--precision", "float32")
    assert measured.status == 0, measured.err
    assert measured.json[0]["device"].startswith(device)
    assert measured.json[0]["multiply_adds_per_second"] > 0


def test_exports_answer_there(device, run, digit_files, tmp_path):
    """What is exported of a run of the device answers on it, and as on the CPU."""
    inputs = sorted(digit_files.rglob("*.png"))[:5]
    for to in ("float16", "bfloat16")[: 2 if device == "cuda" else 1]:
        out = tmp_path / to
        engine_export.export_run(run(device), to, out)
        own, plain = (package.load(out, device=each).predict(inputs) for each in (device, "cpu"))
        for one, other in zip(own, plain, strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=0.05)


@pytest.mark.parametrize("device", [CUDA])
def test_one_bit_answers_there(device, request, digit_files, tmp_path):
    """Packed, a binarized network answers on the device as unpacked, but for signs that rounding decides.

    On a CPU, test_binary_layers.py has it.
    """
    there(device)
    binarized = request.getfixturevalue("binarized")
    engine_export.export_run(binarized, "binary", tmp_path / "bits")
    task, plain = package.load(tmp_path / "bits", device=device), package.load(binarized, device=device)
    name = binary_layers.get_kernels(next(task.model.parameters()).device).__name__
    assert name in (f"fukami.quantization.binary_{device}", "fukami.quantization.binary_reference")
    inputs = sorted(digit_files.rglob("*.png"))[:20]
    pairs = zip(task.predict(inputs), plain.predict(inputs), strict=True)
    assert sum(one["label"] == other["label"] for one, other in pairs) >= 18


def test_what_is_explained_is_the_same(device, run, digit_files):
    """Heat maps and feature maps."""
    tasks = [package.load(run(device), device=place) for place in ("cpu", device)]
    image = torch.from_numpy(tasks[0].transform.read_and_transform(sorted(digit_files.rglob("*.png"))[0]))
    steps = explain_summary.summarize_layers(tasks[0].model, (1, 28, 28))
    names = [layer.name for layer in explain_summary.find_stages(steps)]
    heats, maps = [], []
    for task in tasks:
        given = task.normalize_images(image[None].to(task.runtime.device))[0]
        heats.append(feature_visualization.compute_grad_cam(task.model, given, 3))
        maps.append(feature_visualization.compute_feature_maps(task.model, given, names))
    torch.testing.assert_close(heats[1], heats[0], rtol=1e-3, atol=1e-4 * float(heats[0].max()))
    assert heats[0].max() > 0
    assert len(names) > 1
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using `httpx`")
def test_is_served_from_there(device, run, digit_files):
    """From a thread of its own, as a server predicts."""
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    from fukami.serving import app as serving

    file = sorted(digit_files.rglob("*.png"))[0]
    task = package.load(run(device), device=device)
    about = {"recipe": "deep-convnet", "members": 1, "labels": list("0123456789"), "precision": "float32"}
    form = [("file", (file.name, file.read_bytes(), "image/png"))]
    with TestClient(serving.create_app(task, about | {"versions": {}}), base_url="http://localhost") as client:
        (answer,) = client.post("/predict", files=form).json()
    (expected,) = package.load(run(device), device="cpu").predict([file])
    assert answer["label"] == expected["label"]
    assert answer["probability"] == pytest.approx(expected["probability"], abs=1e-3)


@pytest.mark.parametrize("device", [CUDA])
def test_compiled_training(device, make, tmp_path, pageless):
    """Nearly the losses of one that is not; on a CPU, test_speed.py has it."""
    there(device)
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    recipe, how = make("deep-convnet", epochs=1, augment=()), {"device": device, "precision": "float32"}
    plain = package.train(recipe, tmp_path / "plain", **how)
    compiled = package.train(recipe, tmp_path / "compiled", **how, compile=True)
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-2)
    assert json.loads((tmp_path / "compiled" / "recipe.json").read_text())["compile"] is True


# ---- where the device is behind or full ------------------------------------------------------------------------------


class Behind:
    """An event of a GPU that is behind: it refuses to be timed before it was waited for, as torch's do."""

    def __init__(self):
        self.pending = False

    def record(self):
        self.pending = True

    def synchronize(self):
        self.pending = False

    def elapsed_time(self, other):
        if other.pending:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return 1.0


def test_a_step_that_is_still_computed_can_be_timed(device, monkeypatch):
    """A training that is asked to stop writes down where its time went at once, however far the GPU is behind."""
    if device == "cpu":
        monkeypatch.setattr(timing, "_create_event", Behind)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    own = timing.PhaseTimer(torch.device("cuda"))
    with own("forward"):
        if device == "cuda":
            torch.cuda._sleep(200_000_000)
    assert own.compute_seconds(1)["forward"] > 0


def test_a_checkpoint_is_copied_on_the_gpu_of_the_training(monkeypatch):
    """A new thread's own GPU is the first one."""
    asked = []

    class Stream:
        def __init__(self, device=None):
            asked.append(device)

        def wait_event(self, event):
            asked.append(event)

    ready = SimpleNamespace(device=torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    async_checkpoint._use_copy_stream(ready)
    assert asked == [ready.device, ready]


def test_what_was_not_looked_at_is_gone_on_with_on_the_device(device):
    """A stage that is solved on the CPU, as R-CNN's machines are, gives its counts there, and goes on from GPU ones."""
    runtime = Runtime(torch.device("meta" if device == "cpu" else device), "float32")
    history = engine_train.MetricBuffer(runtime)
    history.load_state_dict({"names": ["pairs"], "rows": [torch.ones(1)]})
    history.add({"pairs": torch.tensor(2.0)})
    assert torch.stack(history.rows).device.type == runtime.device.type


def test_a_memory_that_does_not_fit_lies_on_the_cpu(device, make, tmp_path, monkeypatch):
    """What is learned from is sent to the device, and is the same."""
    monkeypatch.setattr("fukami.reinforcement.replay.MAX_GPU_FRACTION", 0.0)
    if device == "cpu":
        _, batches, data = begin(make("dqn"), "cpu", "float32", tmp_path)
        next(batches)
        data.train.device = torch.device("meta")
        assert all(value.is_meta for value in data.train.sample_batch())
        return
    recipe = make("dqn")
    found, changes = follow(recipe, device, 4, tmp_path / "cpu")
    with monkeypatch.context() as patch:
        patch.setattr("fukami.reinforcement.replay.MAX_GPU_FRACTION", 1.0)
        expected, own = follow(recipe, device, 4, tmp_path / "device")
    assert found == expected
    assert all(torch.equal(changes[name], own[name]) for name in own)


def test_a_first_step_that_is_left_out_leaves_no_momentum(device, monkeypatch):
    """Fused SGD in float16 is as the one that is not, also where the first gradients are not finite, as is usual.

    Memory that is not written to may hold anything.
    """
    monkeypatch.setattr(torch, "empty_like", lambda value, **how: torch.full_like(value, torch.nan))
    task = Task(torch.nn.Identity())
    found = []
    for fused in (True, False):
        weight = torch.nn.Parameter(torch.ones(5, device=device))
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, nesterov=True, fused=fused)
        scaler = torch.amp.GradScaler(device, init_scale=4.0)
        for gradient in (torch.inf, 4.0, 8.0):
            scaler.scale(torch.zeros((), device=device))
            weight.grad = torch.full_like(weight, gradient)
            task.apply_gradients(optimizer, scaler)
        found.append(weight.detach())
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[0], found[1])
