"""Transfer learning: pretrained weights, frozen features, and layer-wise learning rates."""

import json
import logging
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fukami.data.locations import list_data_folders
from fukami.data.parsing import read_bytes
from fukami.engine.recipe import MAX_RECIPE_BYTES
from fukami.engine.tensor_files import explain_load_error, find_faults, find_mismatch, load_weights_file
from fukami.errors import Error, format_names
from fukami.layers.frozen_batch_norm import EPSILON
from fukami.layers.segmentation_model import SegmentationModel

logger = logging.getLogger(__name__)
ParameterGroup = dict[str, list[nn.Parameter] | float]  # params and lr, for an optimizer
OPTIONAL_TENSORS = ("num_batches_tracked", "confidence")  # files older than 2019 lack the first, other programs' both
VGG_GROUPS = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}  # convolutions per group of VGG-16 and VGG-19


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's head: the child with the last linear layer, and auxiliary classifiers.

    All other children are the features.
    """
    auxiliary = tuple(name for name, _ in model.named_children() if name.startswith("aux"))
    linear = [name.partition(".")[0] for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [child for child in linear if child not in auxiliary][-1], *auxiliary


def freeze_features(model: nn.Module) -> None:
    """Freeze everything but the head; with a head of one layer, this trains a linear probe."""
    head = find_head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.partition(".")[0] in head


def build_layerwise_groups(model: nn.Module, lr: float, decay: float) -> list[ParameterGroup]:
    """Build parameter groups with layer-wise learning-rate decay: ``lr`` for the head, times ``decay`` per stage below.

    Discriminative fine-tuning (Howard and Ruder 2018, section 3.2). A stage is a child of the network, or in a chain of
    layers those up to a pooling layer. Batch normalization belongs to the convolution before it.
    """
    head, previous_child, is_pooled = find_head(model), "", False
    stages: list[list[nn.Parameter]] = []
    head_parameters: list[nn.Parameter] = []
    for name, module in model.named_modules():
        child, parameters = name.partition(".")[0], list(module.parameters(recurse=False))
        is_pooled |= isinstance(module, nn.MaxPool2d) and module.stride != 1
        if not parameters:
            continue
        if child in head:
            head_parameters += parameters
        elif stages and (isinstance(module, nn.BatchNorm2d) or (child == previous_child and not is_pooled)):
            stages[-1] += parameters
        else:
            stages.append(parameters)
        previous_child, is_pooled = child, False
    return [
        {"params": stage, "lr": lr * decay**depth} for depth, stage in enumerate([head_parameters, *reversed(stages)])
    ]


def initialize_classifier(model: nn.Module, name: str, init: str) -> None:
    """Initialize a classifier with the weights ``init``: torchvision's, or those of a file or a run.

    All features must match. Head tensors that do not, such as those of another number of classes, keep their random
    values, and a warning names them. The first layer of a network for color is adapted to other channels.

    Args:
        model: the network.
        name: name of the network in :mod:`fukami.models`.
        init: ``imagenet``, a file (safetensors, or a state dict that torch saved), or a run's folder.

    Raises:
        Error: there are no such weights, or they do not match; missing, unexpected and mismatched tensors are listed.
    """
    tensors = _standardize_tensors(
        _fetch_torchvision_weights(name) if init == "imagenet" else _read_weights_file(Path(init))
    )
    expected, head = model.state_dict(), find_head(model)
    adapt_first_layer(tensors, expected)
    mismatches = dict(find_mismatches(tensors, expected))
    optional = (*head, "aux1", "aux2")
    errors = [f"{key} {mismatch}" for key, mismatch in mismatches.items() if key.partition(".")[0] not in optional]
    if errors:
        raise build_mismatch_error(init, name, tensors, errors)
    if not tensors.keys() & expected.keys():
        raise Error(f"{init} contains no weights of {name}")
    random = [key for key in mismatches if key in expected]
    if random:
        logger.warning(f"{init} has no {format_names(random)} for this network: they are initialized randomly")
    matching = {key: value for key, value in tensors.items() if key in expected and key not in mismatches}
    model.load_state_dict(matching, strict=False)


def adapt_first_layer(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Adapt the first convolution of weights for color images to a network with another number of channels, in place.

    For grayscale, the filters of the three colors are summed. For N channels, they are repeated in turn and multiplied
    by 3/N, which preserves the scale of the activations (timm's ``adapt_input_conv``, Wightman 2019).
    """
    first = next(key for key, value in expected.items() if value.ndim == 4)
    channels = expected[first].shape[1]
    if first not in tensors or tensors[first].ndim != 4 or tensors[first].shape[1] != 3 or channels == 3:
        return
    if channels == 1:
        tensors[first] = tensors[first].sum(1, keepdim=True)
    else:
        tensors[first] = tensors[first][:, [index % 3 for index in range(channels)]] * (3 / channels)


def freeze_stages(backbone: nn.Module, num_stages: int) -> None:
    """Freeze the first ``num_stages`` stages of a chain of layers.

    A stage starts at each max-pooling layer and each ``nn.Sequential``.
    """
    layers = list(backbone.children())
    while len(layers) == 1:
        layers = list(layers[0].children())
    stage, is_empty = 0, True
    for layer in layers:
        if not is_empty and isinstance(layer, nn.MaxPool2d | nn.Sequential):
            stage, is_empty = stage + 1, True
        for parameter in layer.parameters():
            parameter.requires_grad &= stage >= num_stages
            is_empty = False


def initialize_detector(model: nn.Module, prefix: str, name: str, init: str, labels: tuple[str, ...] = ()) -> None:
    """Initialize a detector with the weights ``init`` of a detector, or its backbone with those of a classifier.

    Weights of other classes are initialized randomly, and a warning names them; all others must match.

    Args:
        model: the detector.
        prefix: name of the backbone's submodule.
        name: name of the classifier in :mod:`fukami.models`.
        init: ``imagenet`` (torchvision's classifier), ``coco`` (its detector), a file of either, or a run's folder.
        labels: the model's classes; if empty, weights of the same number of classes are assumed to match.

    Raises:
        Error: there are no such weights, or they do not match; missing and mismatched tensors are listed.
    """
    if init == "coco" and name != "resnet50":
        raise Error(f"there are no published COCO weights of a detector on {name}; use imagenet, a file or a run")
    tensors = (
        _standardize_tensors(_fetch_torchvision_weights(name)) if init == "imagenet" else load_detector_weights(init)
    )
    is_detector = any(key.startswith("backbone.") for key in tensors)
    target = model if is_detector else model.get_submodule(prefix)
    expected = target.state_dict()
    class_prefixes = ("roi_heads.box_predictor.",) if is_detector else ()
    init_labels = _read_labels(init)
    if is_detector and labels and init_labels and labels != init_labels:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(class_prefixes)}
    mismatches = {key: mismatch for key, mismatch in find_mismatches(tensors, expected) if key in expected}
    errors = [
        f"{key} {mismatch}" for key, mismatch in mismatches.items() if not key.startswith(class_prefixes or ("-",))
    ]
    if errors:
        raise build_mismatch_error(init, "the detector" if is_detector else name, tensors, errors)
    if mismatches:
        logger.warning(
            f"{init} has no {format_names(list(mismatches))} for these classes: they are initialized randomly"
        )
    matching = {key: value for key, value in tensors.items() if key in expected and key not in mismatches}
    target.load_state_dict(matching, strict=False)


def build_backbone_groups(model: SegmentationModel, lr: float, backbone_lr_factor: float) -> list[ParameterGroup]:
    """Build the parameter groups of a segmentation network: ``lr``, and ``backbone_lr_factor * lr`` for the backbone.

    Args:
        model: the network.
        lr: learning rate of the other layers.
        backbone_lr_factor: factor of the learning rate of the pretrained backbone.
    """
    backbone: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (backbone if name.startswith(f"{model.backbone_prefix}.") else others).append(parameter)
    return [{"params": others, "lr": lr}, {"params": backbone, "lr": backbone_lr_factor * lr}]


def initialize_segmenter(model: SegmentationModel, name: str, init: str, labels: tuple[str, ...] = ()) -> bool:
    """Initialize a segmentation network with the weights ``init``, or its backbone with those of a classifier.

    Weights of other classes are initialized randomly, and a warning names them; all of the backbone must match. Returns
    whether the weights are of a classifier without batch normalization, whose activations may have any scale.

    Args:
        model: the network.
        name: name of the classifier in :mod:`fukami.models`; empty if there is none.
        init: ``imagenet`` (torchvision's classifier), ``coco`` (its FCN), a file of either, or a run's folder.
        labels: the model's classes, compared with those of a run; if empty, only their number has to match.

    Raises:
        Error: there are no such weights, or they do not match; missing and mismatched tensors are listed.
    """
    if init == "imagenet" and not name:
        raise Error("there are no published weights for this network; use a file or a run with --init, or omit it")
    if init == "coco" and not name.startswith("resnet"):
        raise Error(f"there are no published COCO weights of an FCN on {name or 'this network'}; use a file or a run")
    published = {"imagenet": name, "coco": f"fcn_{name}"}.get(init)
    tensors = _standardize_tensors(
        _fetch_torchvision_weights(published) if published else _read_weights_file(Path(init))
    )
    expected = model.state_dict()
    is_segmenter = any(key in tensors for key in expected if not key.startswith(f"{model.backbone_prefix}."))
    original_tensors, tensors = tensors, {**tensors} if is_segmenter else model.convert_classifier_weights(tensors)
    adapt_first_layer(tensors, expected)
    init_labels = _read_labels(init) if init != "coco" else ()
    mismatches = {key: mismatch for key, mismatch in find_mismatches(tensors, expected) if key in expected}
    if is_segmenter and labels and init_labels and labels != init_labels:  # even if their number is the same
        mismatches |= {key: "is of other classes" for key in expected if key.startswith(model.class_prefixes)}
    required = [key for key in expected if key.startswith(f"{model.backbone_prefix}.")]
    is_plain = not any(key.endswith("running_mean") for key in tensors)
    if is_plain:  # a classifier without batch normalization, which the model may have
        norms = {key.rpartition(".")[0] for key in required if key.endswith("running_mean")}
        required = [key for key in required if key.rpartition(".")[0] not in norms]
    errors = [f"{key} {mismatches[key]}" for key in required if key in mismatches]
    if errors:
        raise build_mismatch_error(init, name or type(model).__name__, original_tensors, errors)
    random = [key for key in mismatches if not key.endswith("num_batches_tracked")]
    if is_segmenter and random:
        logger.warning(f"{init} has no {format_names(random)} for this network: they are initialized randomly")
    matching = {key: value for key, value in tensors.items() if key in expected and key not in mismatches}
    model.load_state_dict(matching, strict=False)
    return is_plain and not is_segmenter


def load_vgg(source: str) -> tuple[str, dict[str, Tensor]]:
    """Load the convolutions of VGG-19 or VGG-16, pretrained on ImageNet; return the network's name and the tensors.

    Args:
        source: ``imagenet`` (torchvision's VGG-19, downloaded), a file, or empty: the first file ``vgg19*``, else
            ``vgg16*`` (safetensors, pth or pt), in the dataset folders, in ``weights`` next to one of them, or in
            torch's cache. Without such a file the name is ``vgg16``, without tensors.

    Raises:
        Error: the file cannot be read, or contains another network.
    """
    if source == "imagenet":
        return "vgg19", _select_vgg_convolutions(_fetch_torchvision_weights("vgg19"), source)
    path = Path(source) if source else find_weights_file("vgg19", "vgg16")
    if path is None:
        return "vgg16", {}
    tensors = _select_vgg_convolutions(_read_weights_file(path), str(path))
    return {13: "vgg16", 16: "vgg19"}[sum(value.ndim == 4 for value in tensors.values())], tensors


def find_weights_file(*names: str) -> Path | None:
    """Find a weights file whose name starts with one of ``names``, in this order; None if there is none.

    It searches the dataset folders, ``weights`` next to each of them, and torch's cache. Files of networks with batch
    normalization are skipped.
    """
    folders = [folder for data in list_data_folders() for folder in (data, data.parent / "weights")]
    folders.append(Path(torch.hub.get_dir()) / "checkpoints")
    for name in names:
        for folder in folders:
            for file in sorted(folder.glob(f"{name}*")):
                if file.suffix in (".safetensors", ".pth", ".pt") and "_bn" not in file.name:
                    return file
    return None


def _select_vgg_convolutions(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Select the tensors of VGG's convolutions, in float32."""
    convolutions = {key: value for key, value in _standardize_tensors(tensors).items() if key.startswith("features.")}
    count = sum(value.ndim == 4 for value in convolutions.values())
    if count not in VGG_GROUPS or len(convolutions) != 2 * count:
        raise Error(
            f"{source} is not of VGG-16 or VGG-19 without batch normalization: it should have 13 or 16 convolutions "
            f"with biases, named features.0.weight and so on, and has {count}"
        )
    errors = [
        f"{key} {mismatch}" for key, mismatch in find_mismatches(convolutions, _build_vgg_tensors(VGG_GROUPS[count]))
    ]
    if errors:
        raise build_mismatch_error(source, f"vgg{count + 3}", tensors, errors)
    return convolutions


def _build_vgg_tensors(groups: Sequence[int]) -> dict[str, Tensor]:
    """Build the tensors of VGG's convolutions on the meta device (Simonyan and Zisserman 2015, table 1).

    ``groups`` is the number of convolutions per group.
    """
    tensors, index, channels = {}, 0, 3
    for width, count in zip((64, 128, 256, 512, 512), groups, strict=True):
        for _ in range(count):
            tensors[f"features.{index}.weight"] = torch.empty(width, channels, 3, 3, device="meta")
            tensors[f"features.{index}.bias"] = torch.empty(width, device="meta")
            index, channels = index + 2, width  # a ReLU follows
        index += 1  # the pooling layer
    return tensors


def initialize_captioner(model: nn.Module, name: str, init: str, labels: tuple[str, ...] = ()) -> None:
    """Initialize a captioning network with the weights ``init``, or its encoder with those of a classifier.

    Args:
        model: the network, whose ``encoder`` is a classifier without its head.
        name: name of the classifier in :mod:`fukami.models`.
        init: ``imagenet`` (torchvision's classifier), a file of a state dict, or a run's folder.
        labels: the model's vocabulary, which a run has to have, too.

    Raises:
        Error: there are no such weights, or they do not match; missing and mismatched tensors are listed.
    """
    tensors = _standardize_tensors(
        _fetch_torchvision_weights(name) if init == "imagenet" else _read_weights_file(Path(init))
    )
    is_captioner = any(key.startswith("lstm.") for key in tensors)
    if is_captioner and labels and _read_labels(init) != labels:
        raise Error(f"{init} has another vocabulary; use a run that was trained on the same captions")
    target = model if is_captioner else model.get_submodule("encoder")
    expected = target.state_dict()
    errors = [f"{key} {mismatch}" for key, mismatch in find_mismatches(tensors, expected) if key in expected]
    if errors:
        raise build_mismatch_error(init, "the network" if is_captioner else name, tensors, errors)
    target.load_state_dict({key: tensors.get(key, value) for key, value in expected.items()})


def build_mismatch_error(init: str, network: str, tensors: dict[str, Tensor], mismatches: list[str]) -> Error:
    """Build the error for weights of another network: what they are, if known, and the first mismatches.

    Args:
        init: the weights as given.
        network: name of the network that they were given for.
        tensors: the weights.
        mismatches: tensors and what is wrong with each.
    """
    listed = format_names([f"{mismatch:.80}" for mismatch in mismatches])
    found = identify_classifier(tensors)
    if found is None or found == network:
        return Error(f"{init} does not match {network}: {listed}")
    title = found.replace("vgg", "VGG-").replace("resnet", "ResNet-")
    return Error(f"{init} does not match: these are {title} weights; {network} needs its own ({listed})")


def identify_classifier(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the built-in classifier whose features these weights are; None if there is none."""
    from fukami import models
    from fukami.catalogue import RECIPES

    names = [recipe.replace("-", "_") for recipe, entry in RECIPES.items() if entry.task == "classification"]
    for name in names:
        with torch.device("meta"):
            network = getattr(models, name)()
        head = find_head(network)
        if _get_feature_shapes(tensors, head) == _get_feature_shapes(network.state_dict(), head):
            return name
    return None


def _get_feature_shapes(tensors: dict[str, Tensor], head: tuple[str, ...]) -> dict[str, torch.Size]:
    """Return the shapes of the tensors that do not belong to the head."""
    return {
        key: value.shape
        for key, value in tensors.items()
        if key.partition(".")[0] not in head and not key.endswith("num_batches_tracked")
    }


def get_coco_categories() -> tuple[str, ...]:
    """Return the names of COCO's 90 category IDs, some of which are unused."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])


def _read_labels(init: str) -> tuple[str, ...]:
    """Return the classes of the weights ``init``; empty if they are unknown."""
    if init == "coco":
        return get_coco_categories()
    labels = _read_run_record(Path(init)).get("labels")
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        return ()
    return tuple(labels)


def load_detector_weights(init: str) -> dict[str, Tensor]:
    """Load the weights of a detector, ``coco`` or a file, under torchvision's current names.

    Weights of the published file's age were trained with a batch normalization without epsilon, so they are rescaled.
    """
    tensors = _standardize_tensors(
        _fetch_torchvision_weights("fasterrcnn_resnet50_fpn") if init == "coco" else _read_weights_file(Path(init))
    )
    if "rpn.head.conv.weight" in tensors:
        for key in [key for key in tensors if key.endswith("running_var")]:
            weight, variance = key.replace("running_var", "weight"), tensors[key]
            if (
                weight in tensors and tensors[weight].shape == variance.shape
            ):  # else they do not match, which is reported
                tensors[weight] = tensors[weight] * ((variance + EPSILON) / variance).nan_to_num(1.0, posinf=1.0).sqrt()
    return rename_detector_weights(tensors)


def rename_detector_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a detector's weights to the names of torchvision since 0.13, which its published file predates."""
    names = {}
    for key in tensors:
        new = re.sub(r"((?:inner|layer)_blocks\.\d)\.(?=weight|bias)", r"\1.0.", key)
        names[key] = re.sub(r"(rpn\.head\.conv)\.(?=weight|bias)", r"\1.0.0.", new)
    return {names[key]: value for key, value in tensors.items()}


def find_mismatches(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Iterate over the tensors that are missing, unexpected, or of another shape or dtype: name and mismatch."""
    for key, value in expected.items():
        if key not in tensors:
            if not key.endswith(OPTIONAL_TENSORS):
                yield key, "is missing"
        elif mismatch := find_mismatch(tensors[key], value):
            yield key, mismatch
    for key in tensors:
        if key not in expected:
            yield key, "is unexpected"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a weights file or a run's folder, in float32.

    Raises:
        Error: the file cannot be read, or contains no state dict.
    """
    return _standardize_tensors(_read_weights_file(path))


def _read_weights_file(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a file without executing code, and check its tensors."""
    from fukami.engine import checkpoint

    file = checkpoint.locate_weights(path) if path.is_dir() else path
    precision = _read_export_precision(path)
    if precision in ("int8", "binary", "onnx"):
        raise Error(
            f"{path} was exported to {precision} and has no weights to train; use the run that it was exported from"
        )
    try:
        value = load_weights_file(file)
    except OSError as error:
        reason = error.strerror or error
        raise Error(f"{path} cannot be read ({reason}); use imagenet, a file of weights or a run") from None
    except Error:
        raise
    except Exception as error:  # a corrupted file can fail in any way
        problem = "corrupted" if isinstance(error, SafetensorError) else "corrupted, or contains more than tensors"
        raise Error(
            f"{path} is {problem} ({explain_load_error(error)}); use a state dict as safetensors or as torch.save "
            "wrote it"
        ) from None
    value = value.get("state_dict", value) if isinstance(value, dict) else value
    tensors = value if isinstance(value, dict) else {}
    has_names = all(isinstance(name, str) for name in tensors)
    if not (has_names and tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values())):
        raise Error(f"{path} contains no state dict; expected tensors by name, as model.state_dict() returns them")
    return _check_tensors(path, tensors)


def _check_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Check the tensors of a file and return them.

    Raises:
        Error: a tensor cannot be a weight of a network; the message names it.
    """
    faults = find_faults(tensors)
    if faults:
        listed = [f"{name[:100]} {fault}" for name, fault in list(faults.items())[:4]]
        raise Error(f"{path} contains tensors that cannot be weights: {'; '.join(listed)}; use other weights")
    return tensors


def _read_export_precision(folder: Path) -> str | None:
    """Read the precision that a run was exported to; None if it was not exported."""
    exported = _read_run_record(folder).get("exported")
    return str(exported["to"]) if isinstance(exported, dict) and "to" in exported else None


def _read_run_record(folder: Path) -> dict[str, object]:
    """Read the ``recipe.json`` of a run's folder; return an empty dict if it is not one."""
    try:
        record = json.loads(read_bytes(folder / "recipe.json", max_bytes=MAX_RECIPE_BYTES))
    except (Error, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _standardize_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors to float32 and remove the name prefixes of runs and of DataParallel.

    From a run with snapshots, the last one is selected.
    """
    snapshots = [int(match[1]) for key in tensors if (match := re.match(r"model\.models\.(\d{1,6})\.", key))]
    snapshot = max(snapshots, default=0) if any(key.endswith(".num_active") for key in tensors) else 0
    tensors = {key: value for key, value in tensors.items() if key.startswith(f"model.models.{snapshot}.")} or tensors
    for prefix in (f"model.models.{snapshot}.", "model.", "module."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_torchvision_weights(name: str) -> dict[str, Tensor]:
    """Load torchvision's weights of a network, in float32."""
    return _standardize_tensors(_fetch_torchvision_weights(name))


def _fetch_torchvision_weights(name: str) -> dict[str, Tensor]:
    """Fetch torchvision's weights, for ImageNet or (detectors) COCO, from its cache or by download."""
    from torchvision.models import get_model_weights, list_models

    if name not in list_models():
        raise Error(f"there are no published weights for {name}; use a file with --init, or omit it")
    weights = next(iter(get_model_weights(name)))
    try:
        tensors = dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
        return _check_tensors(Path(weights.url), tensors)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        file = os.path.basename(weights.url)  # noqa: PTH119
        raise Error(
            f"cannot download the published weights of {name} ({explain_load_error(error)}); get {weights.url} by "
            f"other means, and use --init {file}"
        ) from error
