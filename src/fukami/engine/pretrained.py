"""Pretrained weights: networks that are initialized with those of other networks, and how both must match."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fukami.data.class_tables import VOC_LABELS
from fukami.engine import state_dicts
from fukami.engine.fine_tuning import find_head
from fukami.engine.tensor_files import find_mismatch
from fukami.errors import Error, format_names
from fukami.layers.segmentation_model import SegmentationModel

logger = logging.getLogger(__name__)
OPTIONAL_TENSORS = ("num_batches_tracked", "confidence")  # files older than 2019 lack the first, other programs' both
VGG_GROUPS = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}  # convolutions per group of VGG-16 and VGG-19


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
    tensors = state_dicts.load_pretrained(init, {"imagenet": name})
    # without the activation ranges of quantization-aware training
    tensors = {key: value for key, value in tensors.items() if not key.startswith("ranges.")}
    expected, head = model.state_dict(), find_head(model)
    adapt_first_layer(tensors, expected)
    mismatches = dict(find_mismatches(tensors, expected))
    optional = (*head, "aux1", "aux2")
    errors = [f"{key} {mismatch}" for key, mismatch in mismatches.items() if key.partition(".")[0] not in optional]
    if errors:
        raise build_mismatch_error(init, name, tensors, errors)
    if not tensors.keys() & expected.keys():
        raise Error(f"{init} contains no weights of {name}")
    _load_matching(model, tensors, mismatches, init)


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
    tensors = state_dicts.load_pretrained(init, {"imagenet": name, "coco": "fasterrcnn_resnet50_fpn"})
    tensors = state_dicts.convert_detector_weights(tensors)
    is_detector = any(key.startswith("backbone.") for key in tensors)
    target = model if is_detector else model.get_submodule(prefix)
    expected = target.state_dict()
    class_prefixes = ("roi_heads.box_predictor.",) if is_detector else ()
    init_labels = state_dicts.read_init_labels(init)
    if is_detector and labels and init_labels and labels != init_labels:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(class_prefixes)}
    mismatches = {key: mismatch for key, mismatch in find_mismatches(tensors, expected) if key in expected}
    errors = [
        f"{key} {mismatch}" for key, mismatch in mismatches.items() if not key.startswith(class_prefixes or ("-",))
    ]
    if errors:
        raise build_mismatch_error(init, "the detector" if is_detector else name, tensors, errors)
    _load_matching(target, tensors, mismatches, init)


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
    tensors = state_dicts.load_pretrained(init, {"imagenet": name, "coco": f"fcn_{name}"})
    expected = model.state_dict()
    is_segmenter = any(key in tensors for key in expected if not key.startswith(f"{model.backbone_prefix}."))
    original_tensors, tensors = tensors, {**tensors} if is_segmenter else model.convert_classifier_weights(tensors)
    adapt_first_layer(tensors, expected)
    init_labels = VOC_LABELS if init == "coco" else state_dicts.read_init_labels(init)
    mismatches = {key: mismatch for key, mismatch in find_mismatches(tensors, expected) if key in expected}
    if is_segmenter and labels and init_labels and labels != init_labels:  # even if their number is the same
        mismatches |= {key: "is of other classes" for key in expected if key.startswith(model.class_prefixes)}
    required = [key for key in expected if key.startswith(f"{model.backbone_prefix}.")]
    is_plain = not any(key.endswith("running_mean") for key in original_tensors)
    if not (is_plain or is_segmenter or any(key.endswith("running_mean") for key in required)):
        raise Error(f"{init} has batch normalization, and the network has none; use weights without it")
    if is_plain:  # a classifier without batch normalization, which the model may have
        norms = {key.rpartition(".")[0] for key in required if key.endswith("running_mean")}
        required = [key for key in required if key.rpartition(".")[0] not in norms]
    errors = [f"{key} {mismatches[key]}" for key in required if key in mismatches]
    if errors:
        raise build_mismatch_error(init, name or type(model).__name__, original_tensors, errors)
    _load_matching(model, tensors, mismatches, init, warn=is_segmenter)
    return is_plain and not is_segmenter


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
    tensors = state_dicts.load_pretrained(init, {"imagenet": name})
    is_captioner = any(key.startswith("lstm.") for key in tensors)
    if is_captioner and labels and state_dicts.read_init_labels(init) != labels:
        raise Error(f"{init} has another vocabulary; use a run that was trained on the same captions")
    target = model if is_captioner else model.get_submodule("encoder")
    expected = target.state_dict()
    errors = [f"{key} {mismatch}" for key, mismatch in find_mismatches(tensors, expected) if key in expected]
    if errors:
        raise build_mismatch_error(init, "the network" if is_captioner else name, tensors, errors)
    _load_matching(target, tensors, {}, init)


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


def _load_matching(
    model: nn.Module, tensors: dict[str, Tensor], mismatches: Mapping[str, str], init: str, *, warn: bool = True
) -> None:
    """Load all tensors without a mismatch; those with one keep their random values, and a warning names them."""
    expected = model.state_dict()
    random = [key for key in mismatches if key in expected and not key.endswith("num_batches_tracked")]
    if warn and random:
        logger.warning(f"{init} has no {format_names(random)} for this network: they are initialized randomly")
    matching = {key: value for key, value in tensors.items() if key in expected and key not in mismatches}
    model.load_state_dict(matching, strict=False)


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
        return "vgg19", _select_vgg_convolutions(state_dicts.load_torchvision_weights("vgg19"), source)
    path = Path(source) if source else state_dicts.find_weights_file("vgg19", "vgg16")
    if path is None:
        return "vgg16", {}
    tensors = _select_vgg_convolutions(state_dicts.read_state_dict(path), str(path))
    return {13: "vgg16", 16: "vgg19"}[sum(value.ndim == 4 for value in tensors.values())], tensors


def _select_vgg_convolutions(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Select the tensors of VGG's convolutions, in float32."""
    convolutions = {key: value for key, value in tensors.items() if key.startswith("features.")}
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
