"""The Python interface: train a recipe by name, and predict, evaluate and draw with the trained model."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image

from fukami.data.files import list_inputs
from fukami.data.random_states import keep_random_states
from fukami.engine import run_folder, run_record
from fukami.engine.load_run import load_task
from fukami.engine.prediction import Prediction
from fukami.engine.recipe import (
    Recipe,
    check_data,
    get_changed_fields,
    get_recipe,
    get_recipe_name,
    is_built_in,
    parse_fields,
)
from fukami.engine.runtime import DEFAULT_TIMEOUT
from fukami.engine.task import Metrics, Task
from fukami.engine.train import RunOptions, prepare_eval_data, run_training
from fukami.errors import Error, UsageError
from fukami.image.io import ImageSource

ModelInput = ImageSource | torch.Tensor
SINGLE_INPUTS = (str, os.PathLike, bytes, Image, np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: folder of the run: weights, recipe, log and report.
        metrics: metrics of the last evaluation.
        recipe: recipe that was trained.
    """

    folder: Path
    metrics: Metrics = field(hash=False)
    recipe: Recipe

    def load(self, *, device: str = "auto", precision: str = "auto") -> "Model":
        """Load the trained model; the arguments are those of :func:`fukami.load`."""
        kind = type(self.recipe)
        source, overrides = None if is_built_in(kind) else kind, self.recipe.get_code_fields()
        return load(self.folder, device=device, precision=precision, overrides=overrides, recipe=source)

    def __repr__(self) -> str:
        numbers = {name: value for name, value in self.metrics.items() if not isinstance(value, dict)}
        values = "".join(
            f", {name}={value:.4g}" if isinstance(value, float) else f", {name}={value}"
            for name, value in numbers.items()
        )
        return f"Run({str(self.folder)!r}{values})"


class Model:
    """A trained model, or an ensemble of several, that predicts, evaluates and draws; for one thread at a time.

    Attributes:
        task: task with the weights.
        recipe: recipe of the (first) run, whose data :meth:`evaluate` uses by default.
        runs: folders or names of the runs.
    """

    def __init__(self, task: Task, recipe: Recipe, runs: Sequence[str]) -> None:
        self.task, self.recipe, self.runs = task, recipe, tuple(runs)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.task.labels

    def predict(self, inputs: ModelInput | Iterable[ModelInput]) -> Prediction | list[Prediction]:
        """Predict one input, each of several, or each file in a folder.

        Args:
            inputs: a path, a PIL image, an array ``(H, W)`` or ``(H, W, C)``, a tensor ``(C, H, W)`` or ``(H, W)``
                (uint8, or float in 0..1), the content of a file as bytes, or an open file; a folder; or an iterable of
                these.

        Returns:
            For one input a dict, such as ``{"label": ..., "probability": ...}``; for a folder or an iterable a list of
            them, in which an input that cannot be read has the key ``error``. A file has the key ``file``. A run of
            self-play takes files of positions, and always returns a list.

        Raises:
            Error: the only input cannot be read.
        """
        if isinstance(inputs, str | os.PathLike) and os.path.isdir(inputs):  # noqa: PTH112  it may be too long
            return self.task.predict(list_inputs(inputs))
        is_single = isinstance(inputs, (*SINGLE_INPUTS, Mapping)) or hasattr(inputs, "read")
        if is_single or not isinstance(inputs, Iterable):
            if self.task.reads_positions:
                return self.task.predict([_convert_tensor(inputs)])
            _, prediction = self._predict_one(inputs)
            return prediction
        return self.task.predict(map(_convert_tensor, inputs))

    def evaluate(self, data: str | os.PathLike[str] | None = None) -> Metrics:
        """Evaluate on the test split (or else the validation split) of a dataset, and return the metrics.

        They include the name of the ``split``.

        Args:
            data: name or path of another dataset, whose classes the model has; by default that of the run. Another
                dataset without test and validation splits is used as a whole.

        Raises:
            UsageError: the dataset is unknown, or has a class that the model does not have.
            Error: there is nothing to evaluate.
        """
        if data is None:
            check_data(self.recipe)
            recipe = self.recipe
        elif isinstance(data, str | os.PathLike):
            recipe = self.recipe.with_data(os.fspath(data), self.task.labels)
        else:
            raise UsageError(f"data should be the name or the path of a dataset, not {data!r:.100}")
        self.task.last_evaluation = None
        try:
            eval_data = prepare_eval_data(recipe, self.task.runtime)
            return {**self.task.evaluate(eval_data.eval_batches), "split": eval_data.eval_split}
        finally:
            self.task.last_evaluation = None  # it would keep the images in memory

    def draw(self, source: ModelInput) -> Image:
        """Draw the prediction for one image, as ``fukami predict --out`` does.

        Raises:
            UsageError: the task does not draw, or a file has several positions of a game.
            Error: the image cannot be read.
        """
        return self.task.draw(*self._predict_one(source))

    def _predict_one(self, source: object) -> tuple[Image, Prediction]:
        """Return the decoded image and the prediction of one input."""
        results = list(self.task.iterate_predictions([_convert_tensor(source)], keep_images=True))
        if len(results) != 1:
            raise UsageError(f"one position can be drawn, and the file has {len(results)}; use fukami predict --out")
        ((image, prediction),) = results
        if image is None or "error" in prediction:
            raise Error(prediction["error"])
        return image, prediction

    def __repr__(self) -> str:
        modules = self.task.get_modules().values()
        size = sum(parameter.numel() for module in modules for parameter in module.parameters())
        runs = ", ".join(map(repr, self.runs))
        details = f", {size:,} parameters" if size else ""  # ONNX Runtime holds those of some exported runs
        return f"Model({get_recipe_name(type(self.recipe))}, {runs}{details})"


def train(
    recipe: str | os.PathLike[str] | Recipe | type[Recipe],
    out: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    resume: bool = False,
    allow_changed_data: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    **fields: Any,
) -> Run:
    """Train a recipe, such as ``fukami.train("resnet18", data="flowers", epochs=5)``.

    Args:
        recipe: name of a recipe, path of a Python file that defines one, a recipe or its class.
        out: new or empty folder of the run; with ``resume`` the folder of an interrupted run. By default
            ``runs/RECIPE``, or ``runs/RECIPE-2`` ... if it exists; with ``resume`` the last of these.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``auto`` (bfloat16 where it is faster), ``float32``, ``tf32``, ``bfloat16`` or ``float16``.
        compile: compile the network (``torch.compile``) from the second step on, which takes a minute or two, for
            faster steps; a resumed run keeps it.
        resume: continue from the last checkpoint, with the fields of the run unless others are given; the result equals
            that of an uninterrupted run, bit for bit.
        allow_changed_data: resume although the data have changed since the checkpoint; the run records it.
        timeout: maximum time in seconds that processes wait for one another.
        fields: fields of the recipe, such as ``data`` and ``epochs``. Of a recipe object, the other fields that differ
            from their defaults are kept.

    Raises:
        UsageError: the recipe has no such field; ``out`` is not empty or another run is writing to it; or ``resume`` is
            set and ``out`` contains no run, or one with another recipe, precision, device or data.
        Error: the loss or the weights are not finite, or a file cannot be written; the last valid checkpoint is kept.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after a checkpoint is written.
    """
    if isinstance(recipe, Recipe):
        kind, base = type(recipe), recipe
    else:
        kind, base = _find_recipe_class(recipe), None
    folder = run_folder.choose_run_folder(get_recipe_name(kind), resume) if out is None else Path(out)
    if resume and base is None:
        base = run_record.read_resumed_recipe([folder], kind, check="data" not in fields)
    values = parse_fields(kind, fields)
    if base is None:
        experiment = kind(**values)
    elif resume or not values:
        experiment = replace(base, **values) if values else base
    else:  # so that defaults that depend on the new values apply
        changed: dict[str, Any] = get_changed_fields(base)
        experiment = kind(**changed | values)
    options = RunOptions(device, precision, compile, resume, allow_changed_data, timeout)
    num_threads = torch.get_num_threads()
    with keep_random_states():
        try:
            return Run(folder, run_training(experiment, folder, options), experiment)
        finally:
            torch.set_num_threads(num_threads)


def _find_recipe_class(recipe: str | os.PathLike[str] | type[Recipe]) -> type[Recipe]:
    """Return a recipe's class by its name or the path of its file.

    Raises:
        UsageError: there is no such recipe.
    """
    if isinstance(recipe, str | os.PathLike):
        return get_recipe(os.fspath(recipe))
    if isinstance(recipe, type) and issubclass(recipe, Recipe):
        return recipe
    raise UsageError(f"a recipe should be a name such as 'resnet18', or a fukami.Recipe, not {recipe!r:.100}")


def load(
    *runs: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    vote: bool = False,
    overrides: Mapping[str, Any] | None = None,
    recipe: run_record.RecipeSource | None = None,
) -> Model:
    """Load the model of a run, ready to predict and evaluate; several runs form an ensemble.

    Args:
        runs: folders, or names of bundled weights (``deep-convnet``).
        device: ``auto``, ``cpu``, ``cuda`` ...
        precision: ``float32``, ``bfloat16`` or ``float16`` (dtype of weights and activations); ``int8``, ``binary`` or
            ``onnx`` (converted as by ``fukami export``); ``auto`` (the exported precision, else float32).
        vote: ensemble by majority vote instead of averaged probabilities.
        overrides: new values of recipe fields by name, such as ``{"beam_size": 3}``.
        recipe: for runs of a custom recipe, its file (or class), since code is never loaded from a run. Its SHA-256
            must equal the one that the run recorded.

    On a GPU since Ampere, the model or training that was started last determines whether float32 operations use TF32.

    Raises:
        UsageError: a run does not exist, cannot be computed at this precision, or needs another ``recipe``.
        Error: a run is corrupted, its weights do not match its recipe, or a layer cannot be converted.
    """
    task = load_task(*runs, device=device, precision=precision, vote=vote, overrides=overrides, recipe=recipe)
    first, _ = run_record.read_recipe(run_folder.locate_run(runs[0]), recipe)
    return Model(task, replace(first, **(overrides or {})), [os.fspath(run) for run in runs])


def _convert_tensor(source: object) -> ImageSource:
    """Convert a tensor ``(C, H, W)`` or ``(H, W)``, uint8 or float in 0..1, to an array ``(H, W, C)`` or ``(H, W)``.

    Other sources are returned unchanged.

    Raises:
        UsageError: the tensor has another shape, or the source another type.
    """
    if hasattr(source, "read"):  # an open file, or a wrapper of one
        source = source.read()
    if isinstance(source, str | os.PathLike | bytes | Image | np.ndarray):
        return source
    if not isinstance(source, torch.Tensor):
        raise UsageError(
            f"an image should be a path, a PIL image, an array, a tensor, bytes or an open file, not "
            f"{type(source).__name__}"
        )
    if source.ndim not in (2, 3):
        raise UsageError(
            f"an image tensor should be (C, H, W) or (H, W), not {tuple(source.shape)}; pass a list for several images"
        )
    values = source.detach().float() if source.is_floating_point() else source
    array: npt.NDArray[np.generic] = (values.permute(1, 2, 0) if values.ndim == 3 else values).cpu().numpy()
    return array
