"""Load the task of a run, ready to predict and evaluate; reading a run executes no code."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fukami.data.parsing import parse_json, read_bytes
from fukami.engine import precision as precisions
from fukami.engine import run_folder, run_record, run_weights
from fukami.engine.ensemble import build_ensemble
from fukami.engine.recipe import Recipe, is_built_in, parse_fields, parse_overrides
from fukami.engine.runtime import PRECISIONS, Runtime
from fukami.engine.task import Task
from fukami.errors import Error, UsageError
from fukami.layers.meta_device import use_meta_device

MAX_ONNX_BYTES = 2 << 30  # the limit of ONNX
_build_lock = threading.RLock()  # build_task of a custom recipe may load another run
MAX_MODEL_PARTS = 50_000  # layers and tensors of a network; ResNet-152 has about a thousand


def load_task(
    *runs: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    vote: bool = False,
    overrides: Mapping[str, Any] | None = None,
    recipe: run_record.RecipeSource | None = None,
) -> Task:
    """Load the task of a run, ready to predict and evaluate; several runs form an ensemble.

    The arguments and the errors are those of :func:`fukami.load`.
    """
    if not runs:
        raise UsageError("specify at least one run: a folder, or the name of bundled weights")
    first, *others = (_load_run(run_folder.locate_run(run), device, precision, overrides or {}, recipe) for run in runs)
    return build_ensemble([first, *others], vote=vote) if others or vote else first


def parse_run_overrides(
    runs: Sequence[str], overrides: Sequence[str], recipe: run_record.RecipeSource | None = None
) -> dict[str, Any]:
    """Parse overrides such as ``beam_size=3`` into values of the fields of the first run's recipe.

    Raises the errors of :func:`load`.
    """
    if not (runs and overrides):
        return {}
    first, _ = run_record.read_recipe(run_folder.locate_run(runs[0]), recipe)
    return parse_overrides(type(first), overrides)


def _load_run(
    folder: Path, device: str, precision: str, overrides: Mapping[str, Any], source: run_record.RecipeSource | None
) -> Task:
    recipe, labels = run_record.read_recipe(folder, source)
    overrides = parse_fields(type(recipe), overrides)
    recipe.check_overrides(overrides)
    recipe = dataclasses.replace(recipe, **overrides)
    stored_precision = run_record.read_precision(folder)
    precision = precisions.resolve_precision(precision, stored_precision, folder)
    built_in = is_built_in(type(recipe))  # tasks of built-in recipes have no tensors outside of their networks
    with use_meta_device() if built_in else contextlib.nullcontext():
        task = _build_task(folder, recipe, labels)
        modules = task.get_modules()
        if stored_precision == "binary":
            from fukami.quantization.binary_layers import pack_model

            modules = {name: pack_model(module) for name, module in modules.items()}
    if stored_precision in precisions.ONNX_PRECISIONS:
        from fukami.quantization.onnx_export import OnnxNetwork

        contents = {name: read_bytes(folder / f"{name}.onnx", max_bytes=MAX_ONNX_BYTES) for name in modules}
        networks = {name: OnnxNetwork(content, len(labels)) for name, content in contents.items()}
        for name, network in networks.items():
            with contextlib.suppress(ValueError):
                stored_labels = parse_json(network.metadata.get("labels", "null"))
                num_scores = network.num_scores if built_in else None  # other outputs of custom tasks have other sizes
                if stored_labels in (None, [*labels]) and num_scores in (None, len(labels)):
                    continue
            raise Error(f"{folder / name}.onnx has other classes than its recipe.json; export the run again")
        modules = {**networks}
    else:
        run_weights.assign_weights(modules, run_weights.read_weights(folder), run_weights.locate_weights(folder))
    if built_in or stored_precision in precisions.CONVERTED_PRECISIONS:
        task.replace_modules(modules)
    task.setup(Runtime.start(*precisions.resolve_device_and_precision(device, precision)))
    for module in modules.values():
        module.to(PRECISIONS.get(precision, torch.float32)).eval()
    if precision in precisions.CONVERTED_PRECISIONS and precision != stored_precision:
        task.replace_modules(precisions.convert_task(task, precision, recipe))
    return task


def _build_task(folder: Path, recipe: Recipe, labels: tuple[str, ...]) -> Task:
    """Build the task of a run's recipe; raise an Error if its fields describe no valid network."""
    count = 0

    def check_count(*parts: object) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODEL_PARTS:
            raise Error(
                f"{folder / 'recipe.json'} describes a network of more than {MAX_MODEL_PARTS:,} layers and tensors"
            )

    with _build_lock:  # the hooks see the modules of all threads
        return _build_checked_task(folder, recipe, labels, check_count)


def _build_checked_task(
    folder: Path, recipe: Recipe, labels: tuple[str, ...], check_count: Callable[..., None]
) -> Task:
    hooks = (
        register_module_parameter_registration_hook(check_count),
        register_module_module_registration_hook(check_count),
    )
    try:
        return recipe.build_task(labels)
    except (Error, MemoryError):
        raise
    except Exception as error:
        raise Error(
            f"{folder / 'recipe.json'} describes a network that cannot be built ({type(error).__name__}: {error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
