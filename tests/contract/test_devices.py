"""Tests of devices: training and prediction equal those of the CPU, and are repeatable.

Each test takes a device. ``cpu`` checks the test itself and is kept cheap; ``cuda`` is skipped without an NVIDIA GPU.
``pytest -m gpu`` runs the tests that need one. No test uses a forked process, which cannot initialize CUDA.
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
from fukami.data.random_states import set_random_seed
from fukami.data.samples import PROPOSAL, REGULAR, PaddedBatch
from fukami.detection.task import DetectionTask
from fukami.engine import async_checkpoint
from fukami.engine import export as engine_export
from fukami.engine import train as engine_train
from fukami.engine.checkpoint import decode_checkpoint
from fukami.engine.cuda_graph import GraphedCallable
from fukami.engine.load_run import load_task
from fukami.engine.resumable_loader import wrap_batches
from fukami.engine.runtime import Runtime
from fukami.engine.task import Task, apply_gradients, supports_capture
from fukami.explain import feature_visualization
from fukami.explain import summary as explain_summary
from fukami.generation.task import GANTask
from fukami.quantization import binary_layers

# Libraries may emit other warnings on a GPU than on a CPU; pytest lists them in its summary instead of failing.
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.filterwarnings("default")])


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return require_device(request.param)


def require_device(device):
    """Return the name of a device; skip the test if it is not available."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return device


def parametrize_families(*cheap, without=()):
    """Parametrize a test with all families on CUDA and the cheap ones on the CPU; test_tasks.py tests the others."""
    pairs = [pytest.param(name, "cpu", id=f"{name}-cpu") for name in cheap]
    families = [name for name in FAMILIES if name not in without]
    pairs += [pytest.param(name, "cuda", id=f"{name}-cuda", marks=CUDA.marks) for name in families]
    return pytest.mark.parametrize(("family", "device"), pairs)


# ---- families, each with a recipe of a few steps. They use SGD with momentum, because Adam takes a full step even for
# a gradient that is 0 except for rounding, and no dropout, because CUDA draws other random numbers.

SLOW = {"optimizer": "momentum", "epochs": 1}


def create_deep_convnet(data, **fields):
    return package.get_recipe("deep-convnet")(**{**SLOW, "lr": 0.01, "batch_size": 100, "dropout": 0.0} | fields)


def create_resnet20(data, **fields):
    return package.get_recipe("resnet20")(**{**SLOW, "data": "digits", "lr": 0.02, "batch_size": 100} | fields)


def create_binary(data, **fields):
    small = {"widths": (8, 8, 16, 16, 16, 16), "hidden": 16}
    return package.get_recipe("binary-deep-convnet")(**{**SLOW, "lr": 0.01, "batch_size": 100, **small} | fields)


def create_vgg_detector(data, **fields):
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


def create_pyramid_detector(data, **fields):
    small = {"min_size": 64, "max_size": 96}
    return package.get_recipe("faster-rcnn-resnet50-fpn")(
        **{**SLOW, "data": data("scene_files"), "lr": 1e-3, "batch_size": 2, **small} | fields
    )


def create_fcn(data, **fields):
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


def create_segnet(data, **fields):
    small = {"num_filters": 8, "min_size": 64}
    return package.get_recipe("segnet-basic")(
        **{**SLOW, "data": data("mask_files"), "lr": 1e-2, "batch_size": 2, **small} | fields
    )


def create_captioner(data, **fields):
    small = {"encoder": "resnet20", "size": 32, "hidden": 64, "dropout": 0.0, "augment": ("flip",), "beam_size": 2}
    return package.get_recipe("show-and-tell")(
        **{**SLOW, "data": data("caption_files"), "lr": 0.1, "batch_size": 8, "min_word_count": 1, **small} | fields
    )


def create_dcgan(data, **fields):
    small = {"base_channels": 4, "batch_size": 8, "eval_samples": 40, "size": 28, "channels": 1}
    return package.get_recipe("dcgan")(
        **{**SLOW, "data": data("digit_files"), "epochs": 3, "lr": 0.01, **small} | fields
    )


def create_dqn(data, **fields):
    """Create the recipe with random actions only: rounding of nearly equal Q values would select other actions."""
    small = {
        "steps": 240,
        "learning_starts": 160,
        "buffer_size": 240,
        "epsilon_end": 1.0,
        "hidden": 16,
        "eval_episodes": 4,
    }
    return package.get_recipe("dqn")(**{"eval_every": 40, "optimizer": "rmsprop", "lr": 1e-3, **small} | fields)


def create_style(data, **fields):
    return package.get_recipe("neural-style")(**{"size": 48, "levels": 1, "iterations": 6, "eval_every": 6} | fields)


FAMILIES = {
    "deep-convnet": create_deep_convnet,
    "resnet20": create_resnet20,
    "binary": create_binary,
    "vgg-detector": create_vgg_detector,
    "pyramid-detector": create_pyramid_detector,
    "fcn": create_fcn,
    "segnet": create_segnet,
    "captioner": create_captioner,
    "dcgan": create_dcgan,
    "dqn": create_dqn,
    "style": create_style,
}


@pytest.fixture
def make(request):
    """Function that creates the recipe of a family with additional fields."""
    data = lambda name: str(request.getfixturevalue(name))  # noqa: E731
    return lambda family, **fields: FAMILIES[family](data, **fields)


def test_a_training_on_the_cpu_does_not_start_cuda(digit_files, tmp_path, monkeypatch):
    """It would take memory of a GPU that other processes use."""

    def fail():
        raise AssertionError("CUDA is started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", fail)
    small = {"widths": (4, 4, 8, 8, 8, 8), "hidden": 16, "batch_size": 8, "epochs": 1, "convention": "image"}
    recipe = package.get_recipe("deep-convnet")(data=str(digit_files), memory_limit=0.0, **small)
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32", resume=True)


def prepare_training(recipe, device, precision, folder):
    """Prepare the task, the iterator of its batches and the data of a recipe on a device."""
    runtime = Runtime.start(device, precision)
    set_random_seed(recipe.seed)
    data, loader = engine_train.prepare_data(recipe, runtime, folder)
    set_random_seed(recipe.seed)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.prepare_training()
    recipe.initialize_task(task)
    fix_random_draws(task)
    return task, iter(task.iterate_batches(loader)), data


def fix_random_draws(task):
    """Use the same random numbers and region proposals on all devices.

    The noise of a generator is drawn on the device. The proposals of a detector depend on the order of its scores,
    which in an untrained network differ only by rounding.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(task, GANTask):
        task.sample_training_latents = lambda count: (
            2 * torch.rand(count, task.latent_dim, generator=generator) - 1
        ).to(task.runtime.device)
    if isinstance(task, DetectionTask):

        def prepare_training_inputs(batch):
            images, sizes, truth = type(task).prepare_training_inputs(task, batch)
            draws = torch.rand(len(images), 40, 4, generator=generator).to(images.device)
            corner = 0.6 * draws[..., :2]
            boxes = torch.cat([corner, corner + 0.1 + 0.3 * draws[..., 2:]], 2) * sizes.flip(1).repeat(1, 2)[:, None]
            return images, sizes, truth, (boxes, torch.ones(boxes.shape[:2], dtype=torch.bool, device=draws.device))

        task.prepare_training_inputs = prepare_training_inputs


def run_steps(recipe, device, steps, folder, precision="float32"):
    """Run some steps; return their metrics and the change of each tensor of the networks."""
    task, batches, _ = prepare_training(recipe, device, precision, folder)
    networks = {name: item for name, item in task.state.items() if isinstance(item, torch.nn.Module)}
    before = copy_weights(networks)
    metrics = []
    for step in range(steps):
        task.schedule(step / steps)
        metrics.append({name: float(value) for name, value in task.step(next(batches)).items()})
    after = copy_weights(networks)
    return metrics, {name: (after[name] - before[name]).double().flatten() for name in after}


def copy_weights(modules):
    """Copy all floating-point tensors of some modules to the CPU, by name."""
    return {
        f"{module_name}.{name}": value.detach().cpu().clone()
        for module_name, module in modules.items()
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }


def compute_norm(changes):
    """Compute the norm of all changes together."""
    return math.sqrt(sum(float(change.square().sum()) for change in changes))


# ---- equality with the CPU -------------------------------------------------------------------------------------------

# Devices add in different orders. Tolerances relative to the CPU for the loss of the first step, the loss of later
# steps, and the change of all weights together. They are at least three times the effect of changing each weight by
# 1e-5 on the CPU; the rounding of float32 is 6e-8. A sign (binary) or a slope (dcgan) that rounding changes has a
# larger effect.
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
COUNTS = (
    "accuracy",
    "discriminator_accuracy",
)  # fractions of a few decisions, which rounding may change


@parametrize_families("deep-convnet", "vgg-detector", "fcn", "captioner", "dcgan", "dqn")
def test_steps_equal_those_of_the_cpu(family, device, make, tmp_path):
    """Compare losses and weight changes in float32, with the same weights, batches and random draws."""
    require_device(device)
    steps = 2 if family == "pyramid-detector" else 4
    expected, expected_changes = run_steps(make(family), "cpu", steps, tmp_path / "cpu")
    metrics, changes = run_steps(make(family), device, steps, tmp_path / "device")
    first, later, change = TOLERANCES[family]
    for step, (values, expected_values) in enumerate(zip(metrics, expected, strict=True)):
        for name, value in values.items():
            tolerance = {"rel": later if step else first, "abs": 1e-6 * max(1, expected_values.get("loss", 1))}
            if name not in COUNTS:
                assert value == pytest.approx(expected_values[name], **tolerance), (step, name)
    assert changes.keys() == expected_changes.keys()
    assert compute_norm(expected_changes.values()) > 0
    difference = compute_norm(changes[name] - expected_changes[name] for name in expected_changes)
    assert difference <= change * compute_norm(expected_changes.values())


@pytest.mark.parametrize("stage", ["rcnn-finetune", "rcnn-svm", "rcnn-boxes"])
def test_stages_of_rcnn_equal_those_of_the_cpu(stage, device):
    """Train or solve each stage on three images with regions; features are rounded to float16 in between."""
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
    no_masks = torch.zeros(1, 0, 0, dtype=torch.uint8)
    batches = [
        PaddedBatch(image, sides, sides, boxes, classes, kinds, torch.tensor([i]), torch.tensor([i]), no_masks)
        for i, image in enumerate(images)
    ]
    changes = []
    for name in ("cpu", device):
        runtime = Runtime.start(name, "float32")
        set_random_seed(0)
        task = recipe.build_task(("one", "other"))
        task.setup(runtime)
        task.prepare_training()
        steps = task.epochs * len(batches)
        before = copy_weights({"model": task.model})
        for step, batch in zip(range(min(steps, 6)), task.iterate_batches(wrap_batches(batches)), strict=False):
            task.schedule(step / 6)
            task.step(batch)
        after = copy_weights({"model": task.model})
        changes.append(torch.cat([(after[key] - before[key]).flatten() for key in after]))
        with task.evaluation_mode(), torch.inference_mode():
            (detections,) = task.detect_batch(batches[0])
        assert detections.boxes.device.type == name
    assert changes[0].norm() > 0
    assert (changes[1] - changes[0]).norm() <= 0.05 * changes[0].norm()


def test_batches_equal_those_of_the_cpu(device, make, tmp_path):
    """Order, targets and flips are the same, resampled pixels within half a level; no batch is overwritten later."""
    for family, operations in (
        ("deep-convnet", ("shift=2", "rotate=10", "scale=0.1", "shear=0.1")),
        ("resnet20", ("flip", "pad-crop=4", "brightness", "erase", "mixup", "cutmix")),
        ("vgg-detector", ("flip", "crop=0.6", "hue", "contrast")),
        ("fcn", ("rotate", "saturation")),
    ):
        recipe = make(family, augment=operations)
        batches = []
        for name in ("cpu", device):
            _, loader = engine_train.prepare_data(recipe, Runtime.start(name, "float32"), tmp_path / name)
            batches.append([[value.cpu() for value in batch] for batch in list(loader)])
        assert len(batches[0]) == len(batches[1]) > 3
        for expected, batch in zip(*batches, strict=True):
            for value, expected_value in zip(batch, expected, strict=True):
                assert_similar_images(value, expected_value)


def assert_similar_images(actual, expected):
    """Assert equal integers, and floats within half a brightness level except for edges that rounding shifts."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if not actual.is_floating_point():
        num_different = int((actual != expected).sum())  # in masks, rounding may select another nearest pixel
        assert num_different <= (0.005 * actual.numel() if actual.ndim == 3 else 0)
        return
    difference = (actual - expected).abs()
    assert (difference > 0.5).float().mean() <= 0.002
    assert difference.mean() <= 0.01


@pytest.mark.parametrize("operation", augment.TRANSFORMS)
def test_augmentation_equals_that_of_the_cpu(operation, device):
    """Augmentation depends only on the images and the random draws, not on the device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 24, 24), generator=generator, dtype=torch.uint8)
    images = torch.nn.functional.interpolate(images.float(), (48, 48), mode="bilinear").round().to(torch.uint8)
    augmentation = augment.parse_augmentation([operation], size=48, num_classes=5)
    inputs = images, torch.arange(40) % 5, torch.rand(40, augmentation.num_random_values, generator=generator)
    expected = augmentation(*inputs)
    outputs = [value.cpu() for value in augmentation(*(value.to(device) for value in inputs))]
    if operation.startswith("flip"):
        assert torch.equal(outputs[0], expected[0])
    elif operation in ("trivial", "rand"):  # posterize, equalize and invert may amplify a difference of one level
        assert ((outputs[0] - expected[0]).abs() > 1).float().mean() <= 0.01
    else:
        assert_similar_images(outputs[0], expected[0])
    torch.testing.assert_close(outputs[1], expected[1])


# ---- CUDA graphs -----------------------------------------------------------------------------------------------------

CAPTURED_TASKS = {
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


def run_ten_steps(recipe, device, precision, folder, *, capture):
    """Run ten steps, the sixth with half a batch, as a CUDA graph or not; return metrics and states as a list."""
    task, batches, _ = prepare_training(recipe, device, precision, folder)
    if isinstance(task, GANTask):
        del task.sample_training_latents  # use latent vectors drawn on the device, also in replays
    step_function = task.runtime.capture(task.step, task.supports_cuda_graph) if capture else task.step
    metrics = []
    for step in range(10):
        task.schedule(step / 10)
        batch = next(batches)
        if step == 5:
            halves = [value[: len(value) // 2] if value.ndim else value for value in batch]
            batch = type(batch)(*halves) if hasattr(batch, "_fields") else tuple(halves)
        metrics.append({name: value.clone() for name, value in step_function(batch).items()})
    if isinstance(step_function, GraphedCallable):
        assert step_function.graph is not None
    states = [item.state_dict() for item in task.state.values() if hasattr(item, "state_dict")]
    return task, step_function, pytree.tree_leaves([metrics, states])


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "float32") for name in CAPTURED_TASKS]
    + [("adamw", "bfloat16"), ("adamw", "float16"), ("nesterov", "float16"), ("rmsprop", "float16")],
)
def test_captured_steps_equal_uncaptured_ones(name, precision, device, make, tmp_path):
    """Losses, weights and optimizer states are bit-exact, because a resumed run launches steps that another replayed.

    The steps have different learning rates and dropout masks, and one batch has another shape.
    """
    if device == "cpu" and (precision != "float32" or name not in ("adamw", "stable dcgan", "dqn")):
        pytest.skip("a CPU captures no steps; other cases check the test itself")
    family, fields = CAPTURED_TASKS[name]
    _, _, expected = run_ten_steps(make(family, **fields), device, precision, tmp_path / "launched", capture=False)
    task, step_function, values = run_ten_steps(
        make(family, **fields), device, precision, tmp_path / "replayed", capture=True
    )
    assert isinstance(step_function, GraphedCallable) == (device == "cuda" and task.supports_cuda_graph)
    assert len(values) == len(expected)
    for value, expected_value in zip(values, expected, strict=True):
        assert torch.equal(value, expected_value) if isinstance(value, torch.Tensor) else value == expected_value


@pytest.mark.parametrize(
    ("optimizer", "precision", "supports_cuda_graph"),
    [
        ("adamw", "float32", True),
        ("adamw", "float16", True),
        ("rmsprop", "float32", True),
        ("rmsprop", "float16", False),  # the scaler checks on the CPU whether the gradients are finite
        ("adagrad", "float32", False),  # it counts its steps on the CPU
    ],
)
def test_optimizers_that_use_the_cpu_are_not_captured(optimizer, precision, supports_cuda_graph, make, tmp_path):
    task, _, _ = prepare_training(make("deep-convnet", optimizer=optimizer), "cpu", precision, tmp_path)
    assert supports_capture(task.optimizer, task.scaler) == supports_cuda_graph


# ---- training --------------------------------------------------------------------------------------------------------

STOPS = {"dqn": 7, "style": 3, "deep-convnet": 9, "dcgan": 6}  # default: 2, in the first steps, which are not captured


@parametrize_families("deep-convnet", "dcgan", without=("resnet20", "binary"))
def test_a_resumed_run_equals_an_uninterrupted_one(family, device, make, tmp_path, monkeypatch):
    """Weights, last checkpoint and log are bit-exact, also with dropout and noise drawn on the device."""
    require_device(device)
    fields = {"deep-convnet": {"dropout": 0.5}, "captioner": {"dropout": 0.5}, "dqn": {"epsilon_end": 0.1}}.get(
        family, {}
    )
    fields |= {"optimizer": "adamw"} if family in ("deep-convnet", "fcn", "captioner") else {}
    recipe, options = make(family, **fields), {"device": device, "precision": "float32"}
    package.train(recipe, tmp_path / "uninterrupted", **options)
    with pytest.MonkeyPatch.context() as patch:
        task_class = type(recipe.build_task(recipe.load_data().labels))
        schedule, calls = task_class.schedule, itertools.count(1)

        def stop(task, progress):
            if next(calls) == STOPS.get(family, 2):
                signal.raise_signal(signal.SIGTERM)
            return schedule(task, progress)

        patch.setattr(task_class, "schedule", stop)  # called before each step, also before a replayed one
        with pytest.raises(SystemExit) as system_exit:
            package.train(recipe, tmp_path / "resumed", **options)
        assert system_exit.value.code == 128 + signal.SIGTERM
    last_step = decode_checkpoint(tmp_path / "resumed" / "last.ckpt", torch.device("cpu"))["step"]
    assert last_step == STOPS.get(family, 2)
    package.train(recipe, tmp_path / "resumed", **options, resume=True)
    check_task.check_same_run(tmp_path / "resumed", tmp_path / "uninterrupted")


LONGER_RUNS = {  # fields of slightly longer runs, after which the task predicts something
    "deep-convnet": {"batch_size": 50, "optimizer": "adamw", "lr": 3e-3},
    "vgg-detector": {"epochs": 5, "eval_every": 5, "optimizer": "adamw", "lr": 1e-3},
    "captioner": {"epochs": 6, "eval_every": 6, "optimizer": "adamw", "lr": 3e-3},
}


@parametrize_families("deep-convnet", "vgg-detector", without=("resnet20", "binary"))
def test_predictions_equal_those_of_the_cpu(family, device, make, digit_files, tmp_path):
    """A run trained on the device is loaded, evaluated and used for prediction there and on the CPU."""
    require_device(device)
    recipe, out = make(family, **LONGER_RUNS.get(family, {})), tmp_path / "run"
    result = package.train(recipe, out, device=device, precision="float32").metrics
    device_task, cpu_task = (load_task(out, device=name) for name in (device, "cpu"))
    assert next(device_task.model.parameters()).device.type == device
    assert next(cpu_task.model.parameters()).device.type == "cpu"
    name = next(iter(result))
    for task in (device_task, cpu_task):
        metrics = task.evaluate(recipe.load_data().val)
        assert metrics["count"] == result["count"]
        assert metrics[name] == pytest.approx(result[name], rel=0.05, abs=0.05), name
    inputs = sorted(digit_files.rglob("*.png"))[:5]
    if family in ("vgg-detector", "pyramid-detector", "fcn", "segnet", "captioner"):
        inputs = sorted(Path(recipe.data).rglob("*.png"))[:4]
    for prediction, expected in zip(device_task.predict(inputs), cpu_task.predict(inputs), strict=True):
        assert prediction.keys() == expected.keys()
        PREDICTION_CHECKS.get(family, assert_similar_numbers)(prediction, expected)


def assert_similar_numbers(prediction, expected):
    """Assert that floats of a prediction are nearly the same, and that other values are equal."""
    for name, value in prediction.items():
        if isinstance(value, float):
            assert value == pytest.approx(expected[name], rel=1e-2, abs=2e-3), name
        elif name == "values":
            assert_similar_numbers(value, expected[name])
        elif not isinstance(value, dict | list):
            assert value == expected[name], name


def assert_similar_classes(prediction, expected):
    """Assert the same class with the same probability, unless two classes are equally probable."""
    probabilities = [entry["probability"] for entry in expected["ranking"]]
    assert prediction["probability"] == pytest.approx(expected["probability"], rel=1e-2, abs=2e-3)
    if probabilities[0] - probabilities[1] > 4e-3:
        assert prediction["label"] == expected["label"]


def assert_similar_fractions(prediction, expected):
    """Assert the same classes except for a few pixels; a class of few pixels may be missing."""
    fractions, expected_fractions = prediction["fractions"], expected["fractions"]
    for label in fractions.keys() | expected_fractions.keys():
        assert fractions.get(label, 0) == pytest.approx(expected_fractions.get(label, 0), abs=0.01), label


def assert_similar_boxes(prediction, expected):
    """Assert that nearly all boxes with high scores match; rounding may change the order of non-maximum suppression."""
    boxes = [box for box in expected["boxes"] if box["score"] > 0.1]
    unmatched = [box for box in boxes if not any(is_similar_box(box, other) for other in prediction["boxes"])]
    assert len(unmatched) <= 0.1 * len(boxes)


def is_similar_box(box, other):
    differences = [abs(a - b) for a, b in zip(box["box"], other["box"], strict=True)]
    return box["label"] == other["label"] and max(differences) < 1 and abs(box["score"] - other["score"]) < 0.02


PREDICTION_CHECKS = {
    "deep-convnet": assert_similar_classes,
    "vgg-detector": assert_similar_boxes,
    "pyramid-detector": assert_similar_boxes,
    "fcn": assert_similar_fractions,
    "segnet": assert_similar_fractions,
}


def test_streamed_batches_equal_those_in_memory(device, make, digit_files, tmp_path):
    """Batches that other processes decode and that are copied asynchronously are not overwritten."""
    if device == "cpu":
        pytest.skip("test_streaming.py tests the CPU")
    batches = []
    for memory, name in ((4.0, "cpu"), (0.0, device)):
        recipe = make("deep-convnet", data=str(digit_files), memory_limit=memory, batch_size=4, augment=("shift=1",))
        _, loader = engine_train.prepare_data(recipe, Runtime.start(name, "float32"), tmp_path / name)
        batches.append([[value.cpu() for value in batch] for batch in [*loader, *loader]])
    for expected, batch in zip(*batches, strict=True):
        for value, expected_value in zip(batch, expected, strict=True):
            assert_similar_images(value, expected_value)


# ---- precisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
@parametrize_families("deep-convnet", without=("resnet20", "binary", "pyramid-detector", "segnet", "style"))
def test_training_at_lower_precisions(family, device, precision, make, tmp_path):
    """Six steps at a lower precision have finite losses, float32 weights, and a first loss close to float32's."""
    require_device(device)
    if device == "cpu" and precision != "bfloat16":
        pytest.skip("test_precision.py tests float16, and tf32 needs a GPU")
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an NVIDIA GPU of the Ampere generation or later")
    task, batches, _ = prepare_training(make(family), device, precision, tmp_path)
    step_function = task.runtime.capture(task.step, task.supports_cuda_graph)
    metrics = []
    for step in range(6):
        task.schedule(step / 6)
        metrics.append({name: value.clone() for name, value in step_function(next(batches)).items()})
    assert all(value.isfinite() for values in metrics for value in values.values())
    for name, value in copy_weights(task.get_modules()).items():
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name
    if precision == "float16":
        assert task.scaler.is_enabled()
        assert task.scaler.get_scale() >= 1
    (expected, *_), _ = run_steps(make(family), device, 1, tmp_path / "float32")
    loss = next(iter(expected))
    assert float(metrics[0][loss]) == pytest.approx(expected[loss], rel=0.1)


def test_float32_does_not_use_tf32(device):
    """Matrix products and convolutions have the error of 23 fraction bits, and not of tf32's 10 bits."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1024, 64, generator=generator).double() + 0.5 for _ in range(2))
    images, filters = (torch.rand(4, 16, side, side, generator=generator).double() + 0.5 for side in (24, 3))
    expected = one @ other.T, torch.nn.functional.conv2d(images, filters)

    def compute_errors():
        """Compute the maximum relative errors of sums of 64 products, and of a convolution."""
        inputs = [value.float().to(device) for value in (one, other, images, filters)]
        outputs = inputs[0] @ inputs[1].T, torch.nn.functional.conv2d(*inputs[2:])
        pairs = zip(outputs, expected, strict=True)
        return [float(((value.cpu() - exact) / exact).abs().max()) for value, exact in pairs]

    def check_exact():
        Runtime.start(device, "float32")
        product, convolution = compute_errors()
        assert product < 5e-6
        assert convolution < 4e-5

    check_exact()
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        Runtime.start(device, "tf32")
        assert compute_errors()[0] > 5e-5
        check_exact()


# ---- commands and other uses of a device -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Function that returns a run of DeepConvNet on the bundled digits, trained on a device."""
    runs = {}

    def train(device):
        if device not in runs:
            runs[device] = tmp_path_factory.mktemp("runs") / device
            recipe = package.get_recipe("deep-convnet")(epochs=4, batch_size=50, augment=(), dropout=0.0)
            with pytest.MonkeyPatch.context() as patch:
                check_task.disable_reports(patch)
                package.train(recipe, runs[device], device=device, precision="float32")
        return runs[device]

    return train


def test_commands_on_a_device(device, run, digit_files, fukami):
    """The results of eval and predict are close to the CPU's at each precision; bench reports the device."""
    folder, image = run(device), sorted(digit_files.rglob("*.png"))[0]
    (expected,) = fukami("predict", folder, image, "--device", "cpu").json
    for precision in ("float32", "bfloat16", "float16")[: 3 if device == "cuda" else 1]:
        flags = ("--device", device, "--precision", precision)
        evaluated, predicted = fukami("eval", folder, *flags), fukami("predict", folder, image, *flags)
        assert (evaluated.status, predicted.status) == (0, 0), evaluated.err + predicted.err
        assert evaluated.json[0]["accuracy"] > 0.8
        assert predicted.json[0]["probability"] == pytest.approx(expected["probability"], abs=0.05)
    if device == "cuda":  # the default of --device; test_explain.py and test_task.py test these commands on a CPU
        explained = fukami("explain", folder, image, "--out", "page")
        assert explained.status == 0, explained.err
        rates = fukami("find-lr", "deep-convnet", "--device", device, "--num-steps", "20", "--max-lr", "0.1")
        assert rates.status == 0, rates.err
    bench = fukami("bench", "--device", device, "--precision", "float32")
    assert bench.status == 0, bench.err
    assert bench.json[0]["device"].startswith(device)
    assert bench.json[0]["multiply_adds_per_second"] > 0


def test_exports_predict_on_a_device_as_on_the_cpu(device, run, digit_files, tmp_path):
    """An exported run of the device predicts on the device and on the CPU."""
    inputs = sorted(digit_files.rglob("*.png"))[:5]
    for to in ("float16", "bfloat16")[: 2 if device == "cuda" else 1]:
        out = tmp_path / to
        engine_export.export_run(run(device), to, out)
        predictions, expected = (load_task(out, device=name).predict(inputs) for name in (device, "cpu"))
        for prediction, expected_prediction in zip(predictions, expected, strict=True):
            assert prediction["probability"] == pytest.approx(expected_prediction["probability"], abs=0.05)


@pytest.mark.parametrize("device", [CUDA])
def test_a_packed_binary_network_predicts_as_the_unpacked_one(device, request, digit_files, tmp_path):
    """Predictions are the same except for signs that rounding changes; test_binary_layers.py tests the CPU."""
    require_device(device)
    binarized = request.getfixturevalue("binarized")
    engine_export.export_run(binarized, "binary", tmp_path / "bits")
    packed, unpacked = (
        load_task(tmp_path / "bits", device=device),
        load_task(binarized, device=device),
    )
    name = binary_layers.get_kernels(next(packed.model.parameters()).device).__name__
    assert name in (f"fukami.quantization.binary_{device}", "fukami.quantization.binary_reference")
    inputs = sorted(digit_files.rglob("*.png"))[:20]
    pairs = zip(packed.predict(inputs), unpacked.predict(inputs), strict=True)
    assert sum(one["label"] == other["label"] for one, other in pairs) >= 18


def test_explanations_equal_those_of_the_cpu(device, run, digit_files):
    """Compare Grad-CAM heatmaps and feature maps."""
    tasks = [load_task(run(device), device=name) for name in ("cpu", device)]
    image = torch.from_numpy(tasks[0].transform.read_and_transform(sorted(digit_files.rglob("*.png"))[0]))
    layers = explain_summary.summarize_layers(tasks[0].model, (1, 28, 28))
    names = [layer.name for layer in explain_summary.find_stages(layers)]
    heatmaps, maps = [], []
    for task in tasks:
        normalized = task.normalize_images(image[None].to(task.runtime.device))[0]
        heatmaps.append(feature_visualization.compute_grad_cam(task.model, normalized, 3))
        maps.append(feature_visualization.compute_feature_maps(task.model, normalized, names))
    torch.testing.assert_close(heatmaps[1], heatmaps[0], rtol=1e-3, atol=1e-4 * float(heatmaps[0].max()))
    assert heatmaps[0].max() > 0
    assert len(names) > 1
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using `httpx`")
def test_a_server_predicts_on_a_device(device, run, digit_files):
    """The server predicts in its own thread."""
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    from fukami.serving import app as serving

    file = sorted(digit_files.rglob("*.png"))[0]
    task = load_task(run(device), device=device)
    info = {"recipe": "deep-convnet", "members": 1, "labels": list("0123456789"), "precision": "float32"}
    form = [("file", (file.name, file.read_bytes(), "image/png"))]
    with TestClient(serving.create_app(task, info | {"versions": {}}), base_url="http://localhost") as client:
        (prediction,) = client.post("/predict", files=form).json()
    (expected,) = load_task(run(device), device="cpu").predict([file])
    assert prediction["label"] == expected["label"]
    assert prediction["probability"] == pytest.approx(expected["probability"], abs=1e-3)


@pytest.mark.parametrize("device", [CUDA])
def test_compiled_training(device, make, tmp_path):
    """The loss is close to that of an uncompiled training; test_speed.py tests the CPU."""
    require_device(device)
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    recipe, options = make("deep-convnet", epochs=1, augment=()), {"device": device, "precision": "float32"}
    uncompiled = package.train(recipe, tmp_path / "uncompiled", **options).metrics
    compiled = package.train(recipe, tmp_path / "compiled", **options, compile=True).metrics
    assert compiled["loss"] == pytest.approx(uncompiled["loss"], rel=1e-2)
    assert json.loads((tmp_path / "compiled" / "recipe.json").read_text())["compile"] is True


# ---- pending kernels and limited memory ------------------------------------------------------------------------------


class PendingEvent:
    """Event of a GPU with pending kernels: like torch's events, it has no time before it was synchronized."""

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


def test_a_pending_step_can_be_timed(device, monkeypatch):
    """An interrupted training logs its times at once, even if the GPU has pending kernels."""
    if device == "cpu":
        monkeypatch.setattr(timing, "_create_event", PendingEvent)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    timer = timing.PhaseTimer(torch.device("cuda"))
    with timer("forward"):
        if device == "cuda":
            torch.cuda._sleep(200_000_000)
    assert timer.compute_seconds(1)["forward"] > 0


def test_a_checkpoint_is_copied_on_the_gpu_of_the_training(monkeypatch):
    """The default GPU of a new thread would be the first one."""
    calls = []

    class Stream:
        def __init__(self, device=None):
            calls.append(device)

        def wait_event(self, event):
            calls.append(event)

    ready = SimpleNamespace(device=torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    async_checkpoint._use_copy_stream(ready)
    assert calls == [ready.device, ready]


def test_resumed_metrics_are_moved_to_the_device(device):
    """A stage that is solved on the CPU, such as R-CNN's SVMs, adds CPU metrics to those of the checkpoint."""
    runtime = Runtime(torch.device("meta" if device == "cpu" else device), "float32")
    metrics = engine_train.MetricBuffer(runtime)
    metrics.load_state_dict({"names": ["training_regions"], "processes": [[torch.ones(1)]]})
    metrics.add({"training_regions": torch.tensor(2.0)})
    assert torch.stack(metrics.rows).device.type == runtime.device.type


def test_a_replay_buffer_larger_than_the_gpu_stays_on_the_cpu(device, make, tmp_path, monkeypatch):
    """Sampled batches are copied to the device and are the same."""
    monkeypatch.setattr("fukami.reinforcement.replay.MAX_GPU_FRACTION", 0.0)
    if device == "cpu":
        _, batches, data = prepare_training(make("dqn"), "cpu", "float32", tmp_path)
        next(batches)
        data.train.device = torch.device("meta")
        assert all(value.is_meta for value in data.train.sample_batch())
        return
    recipe = make("dqn")
    metrics, changes = run_steps(recipe, device, 4, tmp_path / "cpu")
    with monkeypatch.context() as patch:
        patch.setattr("fukami.reinforcement.replay.MAX_GPU_FRACTION", 1.0)
        expected, expected_changes = run_steps(recipe, device, 4, tmp_path / "device")
    assert metrics == expected
    assert all(torch.equal(changes[name], expected_changes[name]) for name in expected_changes)


def test_a_skipped_first_step_does_not_affect_the_momentum(device, monkeypatch):
    """Fused SGD in float16 equals unfused SGD, also if the first gradients are not finite, as is common.

    NaN in uninitialized memory makes a read of it visible.
    """
    monkeypatch.setattr(torch, "empty_like", lambda value, **options: torch.full_like(value, torch.nan))
    task = Task(torch.nn.Identity())
    weights = []
    for fused in (True, False):
        weight = torch.nn.Parameter(torch.ones(5, device=device))
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, nesterov=True, fused=fused)
        scaler = torch.amp.GradScaler(device, init_scale=4.0)
        for gradient in (torch.inf, 4.0, 8.0):
            scaler.scale(torch.zeros((), device=device))
            weight.grad = torch.full_like(weight, gradient)
            apply_gradients(optimizer, scaler, task.clip_norm)
        weights.append(weight.detach())
    assert weights[0].isfinite().all()
    torch.testing.assert_close(weights[0], weights[1])
