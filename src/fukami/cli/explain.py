"""Command ``fukami explain``."""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import create_output_folder, format_json_line, split_runs_and_files
from fukami.errors import Error, UsageError, build_unknown_error, find_name
from fukami.progress import print_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fukami.classification.task import ClassificationTask
    from fukami.engine.prediction import Prediction
    from fukami.engine.recipe import Recipe
    from fukami.engine.report import EncodedFigure
    from fukami.engine.task import Task
    from fukami.explain.receptive_field import EffectiveReceptiveField
    from fukami.explain.summary import LayerInfo, Shape

MAX_MULTIPLY_ADDS = 2 * 10**11  # budget of the search for patches in the training images ...
MIN_IMAGES = 100  # ... and minimum number of images to search
DETECTION_SHAPE = (3, 608, 992)  # about 600×1000, the input of Faster R-CNN
SEGMENTATION_SHAPE = (3, 384, 480)  # about 360×480, the input of SegNet
BOARD_SHAPE = (17, 19, 19)  # planes of AlphaGo Zero
FRAMES_SHAPE = (4, 84, 84)  # frames of Atari games
UNITS_PER_LAYER = 6  # units of a layer whose patches are shown


def command(arguments: list[str]) -> None:
    """Show layers, costs, receptive fields and feature maps."""
    import tyro

    def run(
        inputs: tyro.conf.Positional[tuple[str, ...]],
        input_shape: str | None = None,
        num_classes: int | None = None,
        out: Path | None = None,
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Print the layers of a network with shape, parameters, multiply-adds, memory and receptive field.

        With images: write an HTML page of feature maps and class activation maps, and print one JSON object for each
        image.

        Args:
            inputs: A model (vgg16, resnet50 ...), or a run (folder or name of bundled weights) and optionally images.
            input_shape: Input shape of a model: channels x height x width, such as 3x224x224.
            num_classes: Number of classes of a model.
            out: Output folder of index.html. Default: RUN/explain with images (./explain for bundled weights);
                without images no page is written.
            set: Recipe fields of the run that building its network needs: the file of your own game, as in
                game=./my_game.py.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
        """
        if not inputs:
            raise UsageError("specify a model or a run first: fukami explain vgg16, or fukami explain RUN image.jpg")
        if out:
            create_output_folder(out)
        if not is_run(inputs[0], len(inputs) > 1):
            if recipe or set:
                raise UsageError(f"--{'recipe' if recipe else 'set'} is for a run, and {inputs[0]} is a model; omit it")
            explain_model(inputs[0], input_shape, num_classes, out)
        elif input_shape is not None or num_classes is not None:
            raise UsageError(f"--input-shape and --num-classes apply to models; remove them for the run {inputs[0]}")
        elif len(inputs) == 1:
            explain_run(inputs[0], out, set, recipe)
        elif set:
            raise UsageError("--set does not affect the explanation of images; omit it")
        else:
            explain_images(inputs, out, recipe)

    run_cli(run, arguments, "fukami explain")


def is_run(name: str, has_images: bool) -> bool:
    """Return whether the name is a run (True) or a model; a run takes precedence.

    Raises:
        UsageError: it is neither, or there are images for a model.
    """
    from fukami import models
    from fukami.engine import run_folder

    try:
        run_folder.locate_run(name)
    except UsageError:
        if find_name(name, models.__all__) is None:
            if Path(name).exists():
                raise
            bundled = (path.parent.name for path in run_folder.BUNDLED_WEIGHTS_DIR.glob("*/recipe.json"))
            raise build_unknown_error("model or run", name, [*models.__all__, *bundled]) from None
    else:
        return True
    if has_images:
        raise UsageError(f"{name} is a model without trained weights; to explain images, use a run")
    return False


def explain_model(name: str, input_shape: str | None, num_classes: int | None, out: Path | None) -> None:
    """Print the layer table of a model with random weights, and write its page to ``out``, if specified."""
    from fukami import models

    model, shape = build_model(find_name(name, models.__all__) or name, input_shape, num_classes)
    _explain_network(name, model, shape, "random weights", out)


def explain_run(name: str, out: Path | None, overrides: Sequence[str], recipe: Path | None) -> None:
    """Print the layer table of a run's network, and write its page to ``out``, if specified."""
    from fukami.engine import run_folder
    from fukami.engine.load_run import load_task, parse_run_overrides

    fields = parse_run_overrides((name,), overrides, recipe)
    task = load_task(run_folder.locate_unconverted_run(name), overrides=fields, recipe=recipe)
    shape = get_input_shape(name, task)
    _explain_network(name, get_network(task), shape, "the run's weights", out)


def _explain_network(name: str, network: "nn.Module", shape: "Shape", weights: str, out: Path | None) -> None:
    """Print the layer table of a network, and write its page to ``out``, if specified; ``weights`` describes them."""
    text, layers, field = summarize_network(network, shape, weights)
    print(text)
    if out:
        write_page(out, "explain_network.html", name=name, **plot_network(text, layers, field))


def explain_images(inputs: Sequence[str], out: Path | None, recipe: Path | None) -> None:
    """Write the page that explains a run's predictions for images, and print a JSON line for each."""
    from fukami.engine import run_folder, run_record

    runs, files = split_runs_and_files(inputs)
    if len(runs) > 1:
        raise UsageError(f"explain takes one run, not {' and '.join(runs)}")
    folder, task, shape = load_classifier(runs[0], recipe)
    run_recipe, _ = run_record.read_recipe(folder, recipe)
    predictions = task.predict(files)
    for prediction in predictions:
        if "error" in prediction:
            print_line(f"fukami: {prediction['error']}")
    valid_predictions = [prediction for prediction in predictions if "error" not in prediction]
    if valid_predictions:
        is_bundled = folder.parent == run_folder.BUNDLED_WEIGHTS_DIR
        page_folder = out or (Path("explain") if is_bundled else folder / "explain")
        values = explain_predictions(run_recipe, task, shape, valid_predictions)
        page = write_page(page_folder, "explain_images.html", name=runs[0], **values)
        for prediction in valid_predictions:
            print(
                format_json_line(
                    {**{key: prediction[key] for key in ("file", "label", "probability")}, "page": str(page)}
                )
            )
    if len(valid_predictions) < len(files):
        raise Error(f"{len(files) - len(valid_predictions)} of {len(files)} files could not be explained")


def build_model(name: str, input_shape: str | None, num_classes: int | None) -> "tuple[nn.Module, Shape]":
    """Build a model with random weights of a fixed seed; return it and its input shape.

    Raises:
        UsageError: ``--input-shape`` is not a valid shape, or the model does not support the size.
    """
    import torch

    from fukami import models

    function = getattr(models, name)
    if name == "dcgan_generator":
        raise UsageError("dcgan_generator has no image as its input; explain dcgan_discriminator, or another model")
    parameters = inspect.signature(function).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    is_small = defaults.get("num_classes", 1000) <= 10  # ten classes: a network for CIFAR-10 images
    side = defaults.get("size", 32 if is_small else 224)
    family_shapes = {
        "faster": DETECTION_SHAPE,
        "fcn": SEGMENTATION_SHAPE,
        "segnet": SEGMENTATION_SHAPE,
        "alphago": BOARD_SHAPE,
        "dqn": FRAMES_SHAPE,
    }
    default_shape = next(
        (family_shapes[family] for family in family_shapes if name.startswith(family)),
        (defaults.get("channels", 3), side, side),
    )
    shape = parse_shape(input_shape) if input_shape else default_shape
    options = {
        "channels": shape[0],
        "size": min(shape[1:]),
        "num_planes": shape[0],
        "shape": shape[1:],
        "state_shape": shape,
    }
    options |= {"num_classes": num_classes} if num_classes is not None else {}
    if num_classes is not None and "num_classes" not in parameters:
        raise UsageError(f"{name} has no classes; remove --num-classes")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"--num-classes should be at least 1, not {num_classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return function(**{key: value for key, value in options.items() if key in parameters}), shape
        except ValueError as error:  # raised by models for an unsupported size
            raise UsageError(str(error)) from error


def parse_shape(text: str) -> "Shape":
    """Parse an input shape such as ``3x224x224``."""
    match = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", text.strip())
    if not match or "0" in match.groups():
        raise UsageError(f"--input-shape should be channels x height x width, such as 3x224x224, not {text!r}")
    channels, height, width = map(int, match.groups())
    return channels, height, width


def get_input_shape(name: str, task: "Task") -> "Shape":
    """Return the input shape of a run's network: that of an image or of a region.

    Raises:
        UsageError: the task is not supported.
    """
    from fukami.captioning.task import CaptioningTask
    from fukami.classification.task import ClassificationTask
    from fukami.data.augment_boxes import SIZE_DIVISOR
    from fukami.detection.rcnn_task import RCNNTask
    from fukami.detection.task import DetectionTask
    from fukami.segmentation.task import SegmentationTask
    from fukami.self_play.task import SelfPlayTask
    from fukami.style.task import StyleTransferTask

    if isinstance(task, SelfPlayTask):
        return task.game.num_planes, *task.game.shape
    if isinstance(task, RCNNTask):
        return 3, task.region_settings.size, task.region_settings.size
    if isinstance(task, DetectionTask):
        height, width = (
            -(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (task.transform.min_size, task.transform.max_size)
        )
        return 3, height, width
    if isinstance(task, SegmentationTask):
        return task.transform.channels, *SEGMENTATION_SHAPE[1:]
    if isinstance(task, StyleTransferTask):
        return 3, task.size[1], task.size[0]
    if isinstance(task, ClassificationTask | CaptioningTask):
        return task.transform.channels, task.transform.size, task.transform.size
    supported = "classification, captioning, detection, segmentation, style transfer and self-play"
    raise UsageError(f"explain supports runs of {supported}; {name} is a run of {type(task).__name__}")


def load_classifier(name: str, recipe: Path | None) -> "tuple[Path, ClassificationTask, Shape]":
    """Load a classifier; return the run's folder, the task and the input shape.

    Raises:
        UsageError: the run is not a classifier, or is an export that replaced the network's layers.
    """
    from fukami.classification.task import ClassificationTask
    from fukami.engine import run_folder
    from fukami.engine.load_run import load_task

    folder = run_folder.locate_unconverted_run(name)
    task = load_task(name, recipe=recipe)
    if not isinstance(task, ClassificationTask):
        raise UsageError(f"images are explained for classifiers only; {name} is a run of {type(task).__name__}")
    return folder, task, get_input_shape(name, task)


def get_network(task: "Task") -> "nn.Module":
    """Return the network of a task; for an ensemble of snapshots, the last one."""
    from fukami.layers.ensemble import Ensemble

    model = next(iter(task.get_modules().values()))
    if isinstance(model, Ensemble):
        print(
            f"fukami: the run is an ensemble of {len(model.models)} networks; the last one is explained",
            file=sys.stderr,
        )
        return model.models[-1]
    return model


def summarize_network(
    model: "nn.Module", shape: "Shape", weights: str, images: "Tensor | None" = None
) -> "tuple[str, list[LayerInfo], EffectiveReceptiveField | None]":
    """Return the layer table as text, the layers, and the effective receptive field of the last spatial layer."""
    from fukami.explain import summary as analysis
    from fukami.explain.receptive_field import GRADIENT_FRACTION, compute_effective_receptive_field

    model = analysis.get_traceable_module(model)
    layers = analysis.summarize_layers(model, shape)
    total = analysis.count_parameters(model)
    num_inference = sum(layer.num_parameters for layer in layers)
    training_only = f", {total - num_inference:,} of them used only in training" if total > num_inference else ""
    depth = max(layer.depth for layer in layers)
    num_weighted = sum(layer.multiply_adds > 0 for layer in layers)
    summary = {
        "input": "×".join(map(str, shape)),
        "depth": f"{depth} layers with weights on the longest path, {num_weighted} in all",
        "parameters": f"{total:,}{training_only}",
        "multiply-adds": f"{sum(layer.multiply_adds for layer in layers):,} in convolutions and linear layers",
        "memory": f"{sum(layer.output_bytes for layer in layers):,} bytes of outputs for one image in float32",
    }
    field = None
    try:
        field = compute_effective_receptive_field(model, shape, images=images)
        image_kind = "noise" if images is None else "the training set"
        summary["receptive field"] = f"{format_receptive_field(field.layer)} pixels, layer {field.layer.name}"
        summary["effective receptive field"] = (
            f"{field.size}×{field.size} pixels contain {GRADIENT_FRACTION:.2%} of the gradient ({weights}, "
            f"{field.num_samples} images of {image_kind})"
        )
    except UsageError as error:
        summary["effective receptive field"] = str(error)
    width = max(map(len, summary))
    totals = "\n".join(f"{name:<{width}}  {value}" for name, value in summary.items())
    return f"{format_layer_table(layers)}\n\n{totals}", layers, field


def format_layer_table(layers: "Sequence[LayerInfo]") -> str:
    """Format one line for each layer that has parameters, multiply-adds or output memory."""
    rows = [("layer", "kind", "output", "parameters", "multiply-adds", "memory", "receptive field", "stride")]
    for layer in layers:
        if layer.num_parameters or layer.output_bytes or layer.multiply_adds:
            stride = (
                "-"
                if layer.effective_stride is None or layer.receptive_field is None
                else f"{layer.effective_stride[0]:g}"
            )
            shape = "×".join(map(str, layer.output_shape))
            parameters, multiply_adds, memory = (
                f"{value:,}" for value in (layer.num_parameters, layer.multiply_adds, layer.output_bytes)
            )
            receptive_field = format_receptive_field(layer)
            rows.append((layer.name, layer.op_type, shape, parameters, multiply_adds, memory, receptive_field, stride))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def format_receptive_field(layer: "LayerInfo") -> str:
    """Format the receptive field of a layer."""
    return "all" if layer.receptive_field is None else "×".join(map(str, layer.receptive_field))


def format_field_title(field: "EffectiveReceptiveField") -> str:
    """Format the layer, the receptive field and the effective receptive field as a title of a figure."""
    size = f"receptive field {format_receptive_field(field.layer)}, effective {field.size}×{field.size}"
    return f"layer {field.layer.name}:\n{size}"


def plot_network(text: str, layers: "list[LayerInfo]", field: "EffectiveReceptiveField | None") -> dict[str, object]:
    """Return the layer table, the figures and the savings of stacked filters for the page of a network."""
    from fukami.engine.report import encode_figure
    from fukami.explain import stacked_filters
    from fukami.explain.summary import plot_costs

    names = ("layers of 3×3", "single filter", "weights", "weights of the single filter", "saved")
    return {
        "layer_table": text,
        "costs": encode_figure("Cost by resolution", plot_costs(layers)),
        "receptive_field": plot_receptive_field(field),
        "weight_savings": encode_figure(
            "Weights saved by stacked small filters", stacked_filters.plot_weight_savings()
        ),
        "columns": [(name, "number") for name in names],
        "rows": [
            ("", (n, f"{side}×{side}", stack_weights, single_weights, f"{saving:.3f}"))
            for n, side, stack_weights, single_weights, saving in stacked_filters.tabulate_weight_savings()
        ],
    }


def plot_receptive_field(field: "EffectiveReceptiveField | None") -> "EncodedFigure | None":
    """Plot the effective receptive field; None without one."""
    from fukami.engine.report import encode_figure
    from fukami.explain.receptive_field import plot_receptive_fields

    if field is None:
        return None
    figure = plot_receptive_fields((format_field_title(field), field))
    return encode_figure("Receptive field of the last spatial layer", figure)


def explain_predictions(
    recipe: "Recipe", task: "ClassificationTask", shape: "Shape", predictions: "Sequence[Prediction]"
) -> dict[str, object]:
    """Return the figures of each image and of the network, and its layer table, for the page of these images."""
    import torch

    from fukami.engine.report import encode_figure
    from fukami.explain import feature_visualization
    from fukami.explain import summary as analysis

    model = get_network(task)
    weight = next(model.parameters())

    def normalize(images: "Tensor") -> "Tensor":
        return task.normalize_images(images.to(weight.device)).to(weight.dtype)

    layers = analysis.summarize_layers(model, shape)
    stages = analysis.find_stages(layers)
    figures = []
    max_activations: dict[str, Tensor] = {}
    for prediction in predictions:
        pixels = torch.from_numpy(task.transform.read_and_transform(prediction["file"]))
        image = normalize(pixels[None])[0]
        heatmap = feature_visualization.compute_grad_cam(model, image, task.labels.index(prediction["label"]))
        maps = feature_visualization.compute_feature_maps(model, image, [layer.name for layer in stages])
        for name, values in maps.items():
            max_activations[name] = torch.maximum(max_activations.get(name, values), values)
        ranking = [(entry["label"], entry["probability"]) for entry in prediction["ranking"]]
        title = f"{prediction['file']}: {prediction['label']} ({prediction['probability']:.1%})"
        figures.append(
            (
                encode_figure(title, feature_visualization.plot_prediction(pixels, heatmap, ranking)),
                encode_figure("Feature maps", feature_visualization.plot_feature_maps(maps)),
            )
        )
    filters = feature_visualization.plot_filters(feature_visualization.get_first_filters(model, shape))
    train, note = load_training_images(recipe, sum(layer.multiply_adds for layer in layers))
    samples = normalize(torch.cat(train)[:: -(-sum(map(len, train)) // 8)]) if train else None
    text, _, field = summarize_network(model, shape, "the run's weights", samples)
    return {
        "images": figures,
        "filters": encode_figure("Filters of the first layer", filters),
        "patches": plot_patches(model, train, stages, max_activations, normalize) if train else None,
        "patches_note": note,
        "receptive_field": plot_receptive_field(field),
        "layer_table": text,
    }


def plot_patches(
    model: "nn.Module",
    train: "list[Tensor]",
    stages: "Sequence[LayerInfo]",
    max_activations: "dict[str, Tensor]",
    normalize: "Callable[[Tensor], Tensor]",
) -> "EncodedFigure":
    """Plot the training patches with the strongest activations of each stage's strongest units."""
    from fukami.engine.report import encode_figure
    from fukami.explain import feature_visualization

    units = [
        (layer, feature_visualization.select_strongest_maps(max_activations[layer.name], UNITS_PER_LAYER))
        for layer in stages
    ]
    patches = feature_visualization.find_top_patches(model, train, units, normalize=normalize)
    rows = [
        (
            f"layer {layer.name}: receptive field {format_receptive_field(layer)}, "
            f"units {', '.join(map(str, unit_indices))}",
            patches[layer.name],
        )
        for layer, unit_indices in units
    ]
    return encode_figure(
        "Training patches with the strongest activations", feature_visualization.plot_top_patches(rows)
    )


def load_training_images(recipe: "Recipe", cost: int) -> "tuple[list[Tensor], str]":
    """Load evenly spaced training images of a run within the budget; return the batches and a note about them."""
    from fukami.engine.recipe import check_data

    try:
        check_data(recipe)
        train = recipe.load_data().train
        if not hasattr(train, "iterate_in_order"):
            raise Error(f"{type(train).__name__} cannot be read in order")
        total = len(train.targets)
        count = min(total, max(MIN_IMAGES, MAX_MULTIPLY_ADDS // max(cost, 1)))
        step = -(-total // count)
        batches, num_read = [], 0
        for images, *_ in train.iterate_in_order():
            batches.append(images[-num_read % step :: step])
            num_read += len(images)
        batches = [batch for batch in batches if len(batch)]
        num_images = sum(map(len, batches))
        return batches, f"{num_images:,} of the {total:,} training images were searched, evenly spaced."
    except Error as error:
        print_line(f"fukami: the page shows no training patches: {error}")
        return [], ""


def write_page(folder: Path, template: str, **values: object) -> Path:
    """Write the page, print its path and return it."""
    from fukami import atomic_file
    from fukami.engine.html import render_page

    create_output_folder(folder)
    page = folder / "index.html"
    atomic_file.write_file(page, render_page(template, **values))
    print(f"page: {page}", file=sys.stderr)
    return page
