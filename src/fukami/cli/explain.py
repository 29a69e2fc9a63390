"""fukami explain."""

import html
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fukami.cli.inputs import format_json_line, split_runs_and_files
from fukami.cli.main import run_cli
from fukami.errors import Error, UsageError, build_unknown_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fukami.classification.task import ClassificationTask
    from fukami.engine.recipe import Recipe
    from fukami.engine.task import Task
    from fukami.explain.receptive_field import EffectiveReceptiveField
    from fukami.explain.summary import LayerInfo, Shape

MAX_MULTIPLY_ADDS = 2 * 10**11  # multiply-adds spent on looking for patches in the training images ...
MIN_IMAGES = 100  # ... and images that are looked at in any case
DETECTION_SHAPE = (3, 608, 992)  # about 600×1000, as Faster R-CNN sees images
SEGMENTATION_SHAPE = (3, 384, 480)  # about 360×480, as SegNet sees them
UNITS_PER_LAYER = 6  # units of a layer whose patches are shown
TEXT_TEMPLATE = '<pre style="font-size: .72rem; white-space: pre; overflow-x: auto">{}</pre>'


def command(arguments: list[str]) -> None:
    """Show layers, costs, receptive fields and what a network sees."""
    import tyro

    def run(
        inputs: tyro.conf.Positional[tuple[str, ...]],
        input: str | None = None,
        num_classes: int | None = None,
        out: Path | None = None,
        recipe: Path | None = None,
    ) -> None:
        """Print the layers of a network with shape, parameters, multiply-adds, memory and receptive field.

        With images: write a page of what the layers of a trained network see in them, and print one JSON object for
        each.

        Args:
            inputs: A model (vgg16, resnet50 ...) or a run (a folder, or the name of shipped weights); after a run,
                images.
            input: Of a model: channels, height and width of the image, such as 3x224x224.
            num_classes: Of a model: how many classes.
            out: Folder for the page, index.html. Default: none for a model or a run alone; with images explain in
                the run's folder, or ./explain for shipped weights.
            recipe: File of the private recipe that the run was trained with; code is never taken from a run.
        """
        if not inputs:
            raise UsageError("name a model or a run first: fukami explain vgg16, or fukami explain RUN image.jpg")
        if not is_run(inputs[0], len(inputs) > 1):
            explain_model(inputs[0], input, num_classes, out)
        elif input is not None or num_classes is not None:
            raise UsageError(f"--input and --num-classes belong to a model; the run {inputs[0]} has its own")
        elif len(inputs) == 1:
            explain_run(inputs[0], out, recipe)
        else:
            explain_images(inputs, out, recipe)

    run_cli(run, arguments, "fukami explain")


def is_run(name: str, has_images: bool) -> bool:
    """Whether the subject is a run (True) or a model; a run of that name comes first.

    Raises:
        UsageError: it is neither, or a model to which images were given.
    """
    from fukami import models
    from fukami.engine import checkpoint

    try:
        checkpoint.locate_run(name)
    except UsageError:
        if name.replace("-", "_") not in models.__all__:
            if Path(name).exists():
                raise
            shipped = (path.parent.name for path in checkpoint.SHIPPED_WEIGHTS_DIR.glob("*/recipe.json"))
            raise build_unknown_error("model or run", name, [*models.__all__, *shipped]) from None
    else:
        return True
    if has_images:
        raise UsageError(f"{name} is a model without weights; to see what it sees in images, give a run of it")
    return False


def explain_model(name: str, input_shape: str | None, num_classes: int | None, out: Path | None) -> None:
    """Print the table of a model with random weights, and write its page where a folder is given."""
    model, shape = build_model(name.replace("-", "_"), input_shape, num_classes)
    text, steps, field = summarize_network(model, shape, "random weights")
    print(text)
    if out:
        write_page(
            out, name, "its layers, their cost, and how far they see", build_network_sections(text, steps, field)
        )


def explain_run(name: str, out: Path | None, recipe: Path | None) -> None:
    """The same of the network of a run."""
    from fukami.engine import checkpoint

    task = checkpoint.load(checkpoint.locate_unconverted_run(name), recipe=recipe)
    shape = get_input_shape(name, task)
    text, steps, field = summarize_network(get_network(task), shape, "the run's weights")
    print(text)
    if out:
        write_page(
            out, name, "its layers, their cost, and how far they see", build_network_sections(text, steps, field)
        )


def explain_images(inputs: Sequence[str], out: Path | None, recipe: Path | None) -> None:
    """Write the page of what a run sees in images, and print an object for each."""
    from fukami.engine import checkpoint

    runs, files = split_runs_and_files(inputs)
    if len(runs) > 1:
        raise UsageError(f"explain looks at one run at a time, not at {' and '.join(runs)}")
    folder, task, shape = load_classifier(runs[0], recipe)
    experiment, _ = checkpoint.read_recipe(folder, recipe)
    answers = task.predict(files)
    for answer in answers:
        if "error" in answer:
            print(f"fukami: {answer['error']}", file=sys.stderr)
    good = [answer for answer in answers if "error" not in answer]
    if good:
        shipped = folder.parent == checkpoint.SHIPPED_WEIGHTS_DIR
        target = out or (Path("explain") if shipped else folder / "explain")
        page = write_page(
            target, runs[0], "what the layers see", list(build_image_sections(experiment, task, shape, good))
        )
        for answer in good:
            print(
                format_json_line({**{key: answer[key] for key in ("file", "label", "probability")}, "page": str(page)})
            )
    if len(good) < len(files):
        raise Error(f"{len(files) - len(good)} of {len(files)} files could not be explained")


def build_model(name: str, input_shape: str | None, num_classes: int | None) -> "tuple[nn.Module, Shape]":
    """A model with random weights, always the same, and the shape of its images.

    Raises:
        UsageError: ``--input`` is no shape, or the model has no such size.
    """
    import torch

    from fukami import models

    function = getattr(models, name)
    known = inspect.signature(function).parameters
    default = {key: parameter.default for key, parameter in known.items()}
    small = default.get("num_classes", 1000) <= 10  # a network for CIFAR's ten classes takes CIFAR's images
    side = default.get("size", 32 if small else 224)
    own = {"faster": DETECTION_SHAPE, "fcn": SEGMENTATION_SHAPE, "segnet": SEGMENTATION_SHAPE}
    usual = next((own[family] for family in own if name.startswith(family)), (default.get("channels", 3), side, side))
    shape = parse_shape(input_shape) if input_shape else usual
    chosen = {"channels": shape[0], "size": min(shape[1:])} | (
        {"num_classes": num_classes} if num_classes is not None else {}
    )
    if num_classes is not None and "num_classes" not in known:
        raise UsageError(f"{name} has no classes; leave out --num-classes")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"--num-classes should be at least 1, not {num_classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return function(**{key: value for key, value in chosen.items() if key in known}), shape
        except ValueError as error:  # how a model refuses a size
            raise UsageError(str(error)) from error


def parse_shape(text: str) -> "Shape":
    """``3x224x224`` as numbers."""
    found = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", text.strip())
    if not found or "0" in found.groups():
        raise UsageError(f"--input should be channels x height x width, such as 3x224x224, not {text!r}")
    channels, height, width = map(int, found.groups())
    return channels, height, width


def get_input_shape(name: str, task: "Task") -> "Shape":
    """The shape of what the network of a run is given: an image, or a region of one.

    Raises:
        UsageError: it is none that is explained.
    """
    from fukami.captioning.task import CaptioningTask
    from fukami.classification.task import ClassificationTask
    from fukami.detection.rcnn_task import RCNNTask
    from fukami.detection.task import DetectionTask
    from fukami.engine.padded_task import SIZE_DIVISOR
    from fukami.segmentation.task import SegmentationTask
    from fukami.style.task import StyleTransferTask

    if isinstance(task, RCNNTask):
        return 3, task.region_settings.size, task.region_settings.size
    if isinstance(task, DetectionTask):
        height, width = (
            -(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (task.prepare.min_size, task.prepare.max_size)
        )
        return 3, height, width
    if isinstance(task, SegmentationTask):
        return SEGMENTATION_SHAPE
    if isinstance(task, StyleTransferTask):
        return 3, task.size[1], task.size[0]
    if isinstance(task, ClassificationTask | CaptioningTask):
        return task.transform.channels, task.transform.size, task.transform.size
    raise UsageError(f"the networks of fukami's own tasks are explained; {name} is a run of {type(task).__name__}")


def load_classifier(name: str, recipe: Path | None) -> "tuple[Path, ClassificationTask, Shape]":
    """The folder, the task and the shape of the images of a run.

    Raises:
        UsageError: it is no classifier, or was exported to other layers than the network's.
    """
    from fukami.classification.task import ClassificationTask
    from fukami.engine import checkpoint

    folder = checkpoint.locate_unconverted_run(name)
    task = checkpoint.load(name, recipe=recipe)
    if not isinstance(task, ClassificationTask):
        raise UsageError(f"what images excite is shown of classifiers; {name} is a run of {type(task).__name__}")
    return folder, task, get_input_shape(name, task)


def get_network(task: Any) -> "nn.Module":
    """The network that answers; of snapshots that answer together the last."""
    from fukami.layers.ensemble import Ensemble

    model: nn.Module
    model = next(iter(task.get_modules().values()))
    if isinstance(model, Ensemble):
        print(f"fukami: {len(model.models)} networks answer together; the last of them is explained", file=sys.stderr)
        return model.models[-1]
    return model


def summarize_network(
    model: "nn.Module", shape: "Shape", weights: str, images: "Tensor | None" = None
) -> "tuple[str, list[LayerInfo], EffectiveReceptiveField | None]":
    """The table of a network as text, its layers, and the effective receptive field of the last spatial layer."""
    from fukami.explain import summary as analysis
    from fukami.explain.receptive_field import GRADIENT_FRACTION, compute_effective_receptive_field

    model = analysis.get_traceable_module(model)
    steps = analysis.summarize_layers(model, shape)
    counted = analysis.count_parameters(model)
    inside = sum(layer.num_parameters for layer in steps)
    only = f", {counted - inside:,} of them in parts that only training uses" if counted > inside else ""
    weighing = sum(layer.multiply_adds > 0 for layer in steps)
    facts = {
        "input": "×".join(map(str, shape)),
        "depth": f"{max(layer.depth for layer in steps)} layers with weights one after another, {weighing} in all",
        "parameters": f"{counted:,}{only}",
        "multiply-adds": f"{sum(layer.multiply_adds for layer in steps):,} in convolutions and linear layers",
        "memory": f"{sum(layer.output_bytes for layer in steps):,} bytes of outputs for one image in float32",
    }
    field = None
    try:
        field = compute_effective_receptive_field(model, shape, images=images)
        kind = "noise" if images is None else "the training set"
        facts["field, theory"] = f"{format_field_size(field.layer)} pixels, layer {field.layer.name}"
        facts["field, effective"] = (
            f"{field.size}×{field.size} pixels hold {GRADIENT_FRACTION:.2%} of the gradient ({weights}, "
            f"{field.num_samples} images of {kind})"
        )
    except UsageError as error:
        facts["field"] = str(error)
    width = max(map(len, facts))
    totals = "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())
    return f"{format_layer_table(steps)}\n\n{totals}", steps, field


def format_layer_table(steps: "Sequence[LayerInfo]") -> str:
    """A line for each layer; those that have no parameters and take no memory of their own are left out."""
    rows = [("layer", "kind", "output", "parameters", "multiply-adds", "memory", "field", "stride")]
    for layer in steps:
        if layer.num_parameters or layer.output_bytes or layer.multiply_adds:
            stride = (
                "-"
                if layer.effective_stride is None or layer.receptive_field is None
                else f"{layer.effective_stride[0]:g}"
            )
            shape = "×".join(map(str, layer.output_shape))
            numbers = (f"{value:,}" for value in (layer.num_parameters, layer.multiply_adds, layer.output_bytes))
            rows.append((layer.name, layer.op_type, shape, *numbers, format_field_size(layer), stride))  # type: ignore[arg-type]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < 3 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def format_field_size(layer: "LayerInfo") -> str:
    """The theoretical receptive field of a layer in words."""
    return "all" if layer.receptive_field is None else "×".join(map(str, layer.receptive_field))


def build_network_sections(text: str, steps: "list[LayerInfo]", field: "EffectiveReceptiveField | None") -> list[str]:
    """What a page says about a network: table, costs, fields, and what stacked filters save."""
    from fukami.engine.report import render_figure
    from fukami.explain import receptive_field, stacked_filters
    from fukami.explain.summary import plot_costs

    parts = ["<h2>Layers</h2>", TEXT_TEMPLATE.format(html.escape(text)), LAYERS_NOTE]
    parts.append(render_figure("What each resolution costs", plot_costs(steps)))
    if field:
        theory = f"layer {field.layer.name}:\n{format_field_size(field.layer)} in theory"
        title = f"{theory}, {field.size}×{field.size} in effect"
        parts += [
            render_figure(
                "How far the last layer with positions sees", receptive_field.plot_receptive_fields((title, field))
            ),
            FIELD_NOTE,
        ]
    rows = [("layers of 3×3", "one filter", "weights", "weights of one", "saved")]
    rows += [
        (str(n), f"{one}×{one}", str(a), str(b), f"{share:.3f}")
        for n, one, a, b, share in stacked_filters.tabulate_weight_savings()
    ]
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return [
        *parts,
        render_figure("What stacked small filters save", stacked_filters.plot_weight_savings()),
        STACKING_NOTE,
        f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>",
    ]


def build_image_sections(
    recipe: "Recipe", task: "ClassificationTask", shape: "Shape", predictions: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """What a page says about images and about the network that answered for them."""
    import torch

    from fukami.engine.report import render_figure
    from fukami.explain import feature_visualization, receptive_field
    from fukami.explain import summary as analysis

    model = get_network(task)
    weight = next(model.parameters())

    def normalise(images: "Tensor") -> "Tensor":
        return task.normalize_images(images.to(weight.device)).to(weight.dtype)

    steps = analysis.summarize_layers(model, shape)
    depths = analysis.find_stages(steps)
    seen = [torch.from_numpy(task.transform.read_and_transform(answer["file"])) for answer in predictions]
    excited: dict[str, Tensor] = {}
    for answer, pixels in zip(predictions, seen, strict=True):
        given = normalise(pixels[None])[0]
        heat = feature_visualization.compute_grad_cam(model, given, task.labels.index(answer["label"]))
        maps = feature_visualization.compute_feature_maps(model, given, [layer.name for layer in depths])
        for name, values in maps.items():
            excited[name] = torch.maximum(excited.get(name, values), values)
        ranking = [(entry["label"], entry["probability"]) for entry in answer["ranking"]]
        title = f"{answer['file']}: {answer['label']} ({answer['probability']:.1%})"
        yield render_figure(title, feature_visualization.plot_prediction(pixels, heat, ranking))
        drawn = render_untitled_figure(feature_visualization.plot_feature_maps(maps))
        yield f"<h3>Feature maps</h3>{drawn}<p>{MAPS_NOTE}</p>"
    yield render_figure(
        "The filters of the first layer",
        feature_visualization.plot_filters(feature_visualization.get_first_filters(model, shape)),
    )
    cost = sum(layer.multiply_adds for layer in steps)
    train, said = load_training_images(recipe, cost)
    if train:
        units = [
            (layer, feature_visualization.select_strongest_maps(excited[layer.name], UNITS_PER_LAYER))
            for layer in depths
        ]
        found = feature_visualization.find_top_patches(model, train, units, normalize=normalise)
        rows = [
            (
                f"layer {layer.name}: field {format_field_size(layer)}, units {', '.join(map(str, chosen))}",
                found[layer.name],
            )
            for layer, chosen in units
        ]
        yield render_figure(
            "The training patches that excite a unit most", feature_visualization.plot_top_patches(rows)
        )
        yield f"<p>{PATCHES_NOTE} {said}</p>"
    few = normalise(torch.cat(train)[:: -(-sum(map(len, train)) // 8)]) if train else None
    text, _, field = summarize_network(model, shape, "the run's weights", few)
    if field:
        theory = f"layer {field.layer.name}:\n{format_field_size(field.layer)} in theory"
        title = f"{theory}, {field.size}×{field.size} in effect"
        yield (
            render_figure(
                "How far the last layer with positions sees", receptive_field.plot_receptive_fields((title, field))
            )
            + FIELD_NOTE
        )
    yield f"<h2>Layers</h2>{TEXT_TEMPLATE.format(html.escape(text))}{LAYERS_NOTE}"


def render_untitled_figure(figure: Any) -> str:
    """A figure without a title."""
    from fukami.engine.report import render_figure

    return render_figure("", figure).removeprefix("<h2></h2>")


def load_training_images(recipe: "Recipe", cost: int) -> "tuple[list[Tensor], str]":
    """Batches of the run's training images, evenly spaced and as many as the budget pays for, and a word on it."""
    from fukami.engine.recipe import check_data

    try:
        check_data(recipe)
        train = recipe.load_data().train
        if not hasattr(train, "iterate_in_order"):
            raise Error(f"{type(train).__name__} cannot be read in order")
        total = len(train.targets)
        count = min(total, max(MIN_IMAGES, MAX_MULTIPLY_ADDS // max(cost, 1)))
        step = -(-total // count)
        batches, at = [], 0
        for images, *_ in train.iterate_in_order():
            batches.append(images[-at % step :: step])
            at += len(images)
        batches = [batch for batch in batches if len(batch)]
        looked = sum(map(len, batches))
        return batches, f"{looked:,} of the {total:,} training images were looked at, evenly spaced."
    except Error as error:
        print(f"fukami: the page shows no training patches: {error}", file=sys.stderr)
        return [], ""


def write_page(folder: Path, name: str, subject: str, parts: Sequence[str]) -> Path:
    """Write the page and say where it is."""
    from fukami.engine import checkpoint
    from fukami.engine.report import PAGE_TEMPLATE

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out should be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    title = html.escape(f"{name}: {subject}")
    body = "\n".join((f"<h1>{title}</h1>", *parts))
    page = folder / "index.html"
    checkpoint.write_file(page, PAGE_TEMPLATE.format(title=title, body=body).encode())
    print(f"page: {page}", file=sys.stderr)
    return page


LAYERS_NOTE = """<p>field: height and width in pixels of what a unit could see, parts in the padding counted; all: the
whole image. stride: pixels between the fields of neighbouring units. memory: bytes of the output in float32. Layers
that work in place or only reshape cost nothing and are left out.</p>"""
FIELD_NOTE = """<p>The mean absolute gradient of the layer's central unit with respect to each pixel (its root is
drawn). Pixels near the edge of the theoretical field have few paths to the unit and hardly count
(Luo et al. 2016).</p>"""
STACKING_NOTE = """<p>n layers of m×m filters see as much as one of n(m−1)+1 pixels a side, and save
1 − n·m²/(n(m−1)+1)² of its weights.</p>"""
MAPS_NOTE = """In each row the maps of a layer that are greatest somewhere; black is the least value of a map, white its
greatest. The layers are the last ones of each resolution."""
PATCHES_NOTE = """Each square holds the nine patches that excite a unit most, the strongest at its upper left; the units
are those that the images above excite most. A patch is the unit's theoretical field, grey outside the image;
fields no smaller than the image show all of it."""
