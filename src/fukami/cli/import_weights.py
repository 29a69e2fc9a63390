"""Conversion of other programs' weights to runs."""

from pathlib import Path

import torch

from fukami.classification.deep_convnet import DeepConvNet
from fukami.data.class_tables import VOC_LABELS
from fukami.detection.faster_rcnn import FasterRCNNResNet50FPN
from fukami.engine import pretrained, run_folder, run_record, run_weights, state_dicts
from fukami.engine.recipe import Recipe, build_recipe
from fukami.engine.task import Task
from fukami.engine.tensor_files import find_faults
from fukami.errors import Error
from fukami.layers.meta_device import use_meta_device
from fukami.scratch import read_params
from fukami.segmentation.fcn import FCNResNet50, FCNResNet101

# first bytes that torch.save writes, since 1.6 and before
TORCH_MAGIC = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")
PUBLISHED_FCNS = {"coco-fcn": "fcn_resnet50", "coco-fcn-resnet101": "fcn_resnet101"}
# The note's networks scale the hidden units and the scores by 1 - ratio at test time.
DROPOUT_SCALE = 0.5


def import_deep_convnet(file: Path, out: Path) -> None:
    """Create a run of DeepConvNet from the parameters ``W1..W8``, ``b1..b8`` of the note's NumPy program.

    The program multiplies the hidden units and the scores by 0.5 at test time; torch does not. The weights of the last
    layer absorb both factors, its bias the second. Both networks then predict the same probabilities.

    Raises:
        UsageError: ``out`` is in use.
        Error: the file has other content, or parameters of another network.
    """
    params = read_params(file)
    expected = [f"{kind}{index}" for index in range(1, 9) for kind in "Wb"]
    if sorted(params) != sorted(expected):
        raise Error(
            f"{file} contains {', '.join(sorted(params)) or 'nothing'}; expected W1..W8 and b1..b8 of a DeepConvNet"
        )
    try:
        tensors = {name: torch.from_numpy(array).float() for name, array in params.items()}
    except TypeError as error:  # a type that torch does not have, such as longdouble
        raise Error(f"{file}: {error}; save the parameters as float32") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if faults := find_faults(tensors):
        raise Error(f"{file}: {'; '.join(f'{name} {fault}' for name, fault in faults.items())}; use other parameters")
    if [tensors[f"W{n}"].ndim for n in range(1, 9)] != [4] * 6 + [2] * 2:
        raise Error(f"{file}: W1..W6 should have four dimensions and W7, W8 two; they are {shapes}")
    fields = {
        "data": "mnist",
        "channels": tensors["W1"].shape[1],
        "widths": tuple(tensors[f"W{n}"].shape[0] for n in range(1, 7)),
        "hidden": tensors["W7"].shape[1],
    }
    recipe = build_recipe(DeepConvNet, fields)
    labels = tuple(map(str, range(tensors["W8"].shape[1])))
    tensors["W8"] *= DROPOUT_SCALE * DROPOUT_SCALE
    tensors["b8"] *= DROPOUT_SCALE
    with use_meta_device():  # wrong shapes could need more memory than there is
        layers = _list_weighted_layers(recipe.build_task(labels).model)
    for index, layer in enumerate(layers, start=1):
        weight, bias = tensors[f"W{index}"], tensors[f"b{index}"]
        weight = weight if weight.ndim == 4 else weight.T  # linear weights are (in, out) there, (out, in) here
        if weight.shape != layer.weight.shape or bias.shape != layer.weight.shape[:1]:
            shapes_text = f"W{index} {tuple(weight.shape)} and b{index} {tuple(bias.shape)}"
            raise Error(
                f"{file}: {shapes_text} do not match a DeepConvNet for 28×28 images, {tuple(layer.weight.shape)}"
            )
        tensors[f"W{index}"] = weight
    task = recipe.build_task(labels)
    for index, layer in enumerate(_list_weighted_layers(task.model), start=1):
        layer.load_state_dict({"weight": tensors[f"W{index}"], "bias": tensors[f"b{index}"]})
    _write_run(out, recipe, task, str(file))


def _write_run(out: Path, recipe: Recipe, task: Task, source: str) -> None:
    """Write the run of a task, whose weights come from ``source``."""
    with run_folder.lock_run(out, recipe, resume=False):
        run_weights.write_weights(out, run_weights.copy_tensors_to_cpu(task.get_modules()))
        run_record.write_recipe(out, recipe, task.labels, {"imported": source})


def _list_weighted_layers(model: torch.nn.Module) -> list[torch.nn.Conv2d | torch.nn.Linear]:
    """Return the convolutions and fully connected layers of a network in order."""
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]


def is_torchvision(source: str) -> bool:
    """Return whether the source is a file of torch.save, a safetensors file of torchvision's networks, or their name.

    ``coco``, ``coco-fcn`` and ``coco-fcn-resnet101`` name the weights that torchvision publishes.
    """
    if source in ("coco", *PUBLISHED_FCNS):
        return True
    try:
        with Path(source).open("rb") as file:
            start = file.read(2**20)
    except OSError:
        return False
    return start.startswith(TORCH_MAGIC) or b'"roi_heads.' in start or b'"backbone.layer4.' in start


def import_torchvision(source: str, out: Path) -> None:
    """Create a run from torchvision's Faster R-CNN with a ResNet-50 FPN, or its FCN with a dilated ResNet.

    Raises:
        UsageError: ``out`` is in use.
        Error: the weights do not exist, or belong to another network.
    """
    tensors = (
        state_dicts.load_torchvision_weights(PUBLISHED_FCNS[source])
        if source in PUBLISHED_FCNS
        else state_dicts.load_detector_weights(source)
    )
    if "classifier.4.weight" in tensors and any(key.startswith("backbone.layer4.") for key in tensors):
        import_segmenter(source, tensors, out)
    else:
        import_detector(source, tensors, out)


def import_segmenter(source: str, tensors: dict[str, torch.Tensor], out: Path) -> None:
    """Create a run of FCN from a state dict of torchvision's FCN, with any number of classes.

    With 21 classes the labels are Pascal VOC's, as for the published weights; otherwise class numbers.
    """
    is_resnet101 = "backbone.layer3.22.conv1.weight" in tensors
    recipe_class = FCNResNet101 if is_resnet101 else FCNResNet50
    classes = sum(tensors["classifier.4.weight"].shape[:1])
    labels = VOC_LABELS if classes == len(VOC_LABELS) else tuple(map(str, range(classes)))
    recipe = recipe_class(data="voc2012", min_size=520, init=source, aux_loss="aux_classifier.4.weight" in tensors)
    with use_meta_device():  # wrong shapes could need more memory than there is
        expected = recipe.build_task(labels).model.state_dict()
    mismatches = [f"{key} {problem}" for key, problem in pretrained.find_mismatches(tensors, expected)]
    if mismatches:
        raise pretrained.build_mismatch_error(source, recipe_class.__name__, tensors, mismatches)
    task = recipe.build_task(labels)
    task.model.load_state_dict(tensors)
    _write_run(out, recipe, task, source)


def import_detector(source: str, tensors: dict[str, torch.Tensor], out: Path) -> None:
    """Create a run of Faster R-CNN from torchvision's Faster R-CNN with a ResNet-50 FPN.

    Args:
        source: name or file of the weights.
        tensors: the weights, with any number of classes. The labels are COCO's where the number matches; otherwise
            class numbers.
        out: folder of the run.

    Raises:
        UsageError: ``out`` is in use.
        Error: the weights do not exist, or belong to another network.
    """
    bias = tensors.get("roi_heads.box_predictor.cls_score.bias", torch.zeros(0))
    classes = sum(bias.shape[:1]) - 1
    if classes < 1:
        raise Error(f"{source} contains no detector; expected the state dict of torchvision's fasterrcnn_resnet50_fpn")
    categories = state_dicts.get_coco_categories()
    labels = categories if classes == len(categories) else tuple(map(str, range(1, classes + 1)))
    recipe = FasterRCNNResNet50FPN(data="coco", init=source)
    with use_meta_device():
        expected = recipe.build_task(labels).model.state_dict()
    mismatches = [
        f"{key} {problem}" for key, problem in pretrained.find_mismatches(tensors, expected) if key in expected
    ]
    if mismatches:
        raise pretrained.build_mismatch_error(source, "Faster R-CNN", tensors, mismatches)
    task = recipe.build_task(labels)
    task.model.load_state_dict({key: value for key, value in tensors.items() if key in expected}, strict=False)
    _write_run(out, recipe, task, source)
