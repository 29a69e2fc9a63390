"""Transfer: a network that begins with published weights, its features frozen or learning more slowly than its head."""

import json
import logging
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from fukami.data.locations import list_data_folders
from fukami.engine.tensor_files import explain_load_error, find_faults, find_mismatch, load_torch
from fukami.errors import Error
from fukami.layers.frozen_batch_norm import EPSILON

logger = logging.getLogger(__name__)
VGG_GROUPS = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}  # convolutions in each group of VGG-16 and VGG-19


def find_head(model: nn.Module) -> tuple[str, ...]:
    """The parts of a classifier that belong to its classes: that of the last linear layer, and auxiliary classifiers.

    Every other part is called its features here.
    """
    auxiliary = tuple(name for name, _ in model.named_children() if name.startswith("aux"))
    linear = [name.partition(".")[0] for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [part for part in linear if part not in auxiliary][-1], *auxiliary


def freeze_features(model: nn.Module) -> None:
    """Train the head alone: with a head of one layer, a linear probe of the features."""
    own = find_head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.partition(".")[0] in own


def build_layerwise_groups(model: nn.Module, lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls by ``decay`` from each stage to the one below; the head's is ``lr``.

    Discriminative fine-tuning (Howard and Ruder 2018, section 3.2). A stage ends where the maps are pooled in a chain
    of layers, or with a part of the network; batch normalisation belongs to the convolution before it.
    """
    own, top, smaller = find_head(model), "", False
    stages: list[list[nn.Parameter]] = []
    heads: list[nn.Parameter] = []
    for name, module in model.named_modules():
        part, parameters = name.partition(".")[0], list(module.parameters(recurse=False))
        smaller |= isinstance(module, nn.MaxPool2d) and module.stride != 1
        if not parameters:
            continue
        if part in own:
            heads += parameters
        elif stages and (isinstance(module, nn.BatchNorm2d) or (part == top and not smaller)):
            stages[-1] += parameters
        else:
            stages.append(parameters)
        top, smaller = part, False
    return [{"params": stage, "lr": lr * decay**depth} for depth, stage in enumerate([heads, *reversed(stages)])]


def initialize_classifier(model: nn.Module, name: str, init: str) -> None:
    """Begin with the weights ``init``: those that torchvision publishes, or those in a file.

    Features must fit in full. Of the head, what does not fit (another number of classes, above all) stays as it is, and
    is said. A first layer for colour becomes one for grey by adding up its three channels.

    Args:
        name: what the network is called in :mod:`fukami.models`.
        init: ``imagenet``, a file (safetensors, or a state dict that torch saved), or the folder of a run.

    Raises:
        Error: there are no such weights, or they do not fit; every missing, unknown and misshapen tensor is listed.
    """
    tensors = _standardize_tensors(
        _fetch_torchvision_weights(name) if init == "imagenet" else _read_weights_file(Path(init))
    )
    expected, own = model.state_dict(), find_head(model)
    first = next(iter(expected))
    if first in tensors and tensors[first].shape[1:2] == (3,) and expected[first].shape[1] == 1:
        tensors[first] = tensors[first].sum(1, keepdim=True)
    lacking = dict(find_mismatches(tensors, expected))
    wrong = [f"{key} {what}" for key, what in lacking.items() if key.partition(".")[0] not in (*own, "aux1", "aux2")]
    if wrong:
        raise Error(f"{init} does not fit {name}: {'; '.join(wrong)}")
    if not tensors.keys() & expected.keys():
        raise Error(f"{init} holds nothing of {name}")
    fresh = [key for key in lacking if key in expected]
    if fresh:
        logger.warning(f"{init} has no {', '.join(fresh)} for this network: they begin at random")
    fitting = {key: value for key, value in tensors.items() if key in expected and key not in lacking}
    model.load_state_dict(fitting, strict=False)


def freeze_stages(backbone: nn.Module, num_stages: int) -> None:
    """Leave the first stages of a chain of layers as they are; one ends at a pooling, or with a part of many layers."""
    layers = list(backbone.children())
    while len(layers) == 1:
        layers = list(layers[0].children())
    stage, empty = 0, True
    for layer in layers:
        if not empty and isinstance(layer, nn.MaxPool2d | nn.Sequential):
            stage, empty = stage + 1, True
        for parameter in layer.parameters():
            parameter.requires_grad &= stage >= num_stages
            empty = False


def initialize_detector(model: nn.Module, prefix: str, name: str, init: str, labels: tuple[str, ...] = ()) -> None:
    """Begin with the weights ``init``: those of a detector, or those of a classifier for the part ``prefix``.

    What belongs to other classes than the model's stays as it is, and is said; all else must fit.

    Args:
        name: what the classifier is called in :mod:`fukami.models`.
        init: ``imagenet`` (torchvision's classifier), ``coco`` (its detector), a file of either, or a run's folder.
        labels: the model's classes; none, and as many as the model's are taken to be these.

    Raises:
        Error: there are no such weights, or they do not fit; every missing and misshapen tensor is listed.
    """
    if init == "coco" and name != "resnet50":
        raise Error(f"there are no published COCO weights of a detector on {name}; give imagenet, a file or a run")
    tensors = (
        _standardize_tensors(_fetch_torchvision_weights(name)) if init == "imagenet" else load_detector_weights(init)
    )
    whole = any(key.startswith("backbone.") for key in tensors)
    target = model if whole else model.get_submodule(prefix)
    expected = target.state_dict()
    own = ("roi_heads.box_predictor.",) if whole else ()
    theirs = _read_labels(init)
    if whole and labels and theirs and labels != theirs:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(own)}
    lacking = {key: what for key, what in find_mismatches(tensors, expected) if key in expected}
    wrong = [f"{key} {what}" for key, what in lacking.items() if not key.startswith(own or ("-",))]
    if wrong:
        raise Error(f"{init} does not fit {'the detector' if whole else name}: {'; '.join(wrong)}")
    if lacking:
        logger.warning(f"{init} has no {', '.join(lacking)} for these classes: they begin at random")
    fitting = {key: value for key, value in tensors.items() if key in expected and key not in lacking}
    target.load_state_dict(fitting, strict=False)


def build_backbone_groups(model: Any, lr: float, backbone_lr_factor: float) -> list[dict[str, Any]]:
    """Parameter groups of a network for pixels: ``lr``, ``backbone_lr_factor`` times it for the classifier's layers.

    Args:
        model: a network of :mod:`fukami.models`, which says in ``backbone_prefix`` what part of it is the classifier's.
        lr: of all other layers.
        backbone_lr_factor: for those of the classifier, which have learned already.
    """
    trunk: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (trunk if name.startswith(f"{model.backbone_prefix}.") else rest).append(parameter)
    return [{"params": rest, "lr": lr}, {"params": trunk, "lr": backbone_lr_factor * lr}]


def initialize_segmenter(model: Any, name: str, init: str, labels: tuple[str, ...] = ()) -> bool:
    """Begin with the weights ``init``: those of a network for pixels, or those of the classifier that it is made of.

    What belongs to other classes than the model's stays as it is, and is said; all else of the classifier must fit.
    Returns whether they are a classifier's that was learned without normalisation, so that its maps may have any size.

    Args:
        model: a network of :mod:`fukami.models`, which says in ``backbone_prefix`` what part of it is the classifier's,
            in ``class_prefixes`` what belongs to the classes, and in ``convert_classifier_weights`` what it takes of a
            classifier's tensors.
        name: what the classifier is called in :mod:`fukami.models`; empty where there is none.
        init: ``imagenet`` (torchvision's classifier), ``coco`` (its FCN), a file of either, or a run's folder.
        labels: the model's classes; as many others are not taken for these where a run knows its own.

    Raises:
        Error: there are no such weights, or they do not fit; every missing and misshapen tensor is listed.
    """
    if init == "imagenet" and not name:
        raise Error("there are no published weights for this network; give --init a file or a run, or leave it out")
    if init == "coco" and not name.startswith("resnet"):
        raise Error(f"there are no published COCO weights of an FCN on {name or 'this network'}; give a file or a run")
    published = {"imagenet": name, "coco": f"fcn_{name}"}.get(init)
    tensors = _standardize_tensors(
        _fetch_torchvision_weights(published) if published else _read_weights_file(Path(init))
    )
    expected = model.state_dict()
    whole = any(key in tensors for key in expected if not key.startswith(f"{model.backbone_prefix}."))
    tensors = tensors if whole else model.convert_classifier_weights(tensors)
    theirs = _read_labels(init) if init != "coco" else ()
    lacking = {key: what for key, what in find_mismatches(tensors, expected) if key in expected}
    if whole and labels and theirs and labels != theirs:  # though they may be as many
        lacking |= {key: "is of other classes" for key in expected if key.startswith(model.class_prefixes)}
    needed = [key for key in expected if key.startswith(f"{model.backbone_prefix}.")]
    plain = not any(key.endswith("running_mean") for key in tensors)
    if plain:  # a classifier without batch normalisation, which the model may have
        norms = {key.rpartition(".")[0] for key in needed if key.endswith("running_mean")}
        needed = [key for key in needed if key.rpartition(".")[0] not in norms]
    wrong = [f"{key} {lacking[key]}" for key in needed if key in lacking]
    if wrong:
        raise Error(f"{init} does not fit {type(model).__name__}: {'; '.join(wrong)}")
    fresh = [key for key in lacking if not key.endswith("num_batches_tracked")]
    if whole and fresh:
        logger.warning(f"{init} has no {_format_names(fresh)} for this network: they begin anew")
    fitting = {key: value for key, value in tensors.items() if key in expected and key not in lacking}
    model.load_state_dict(fitting, strict=False)
    return plain and not whole


def load_vgg(source: str) -> tuple[str, dict[str, Tensor]]:
    """VGG-19 or VGG-16 as trained on ImageNet: which of them it is, and the tensors of its convolutions.

    Args:
        source: ``imagenet`` (torchvision's VGG-19, downloaded), a file, or empty: VGG-19's where there is a file
            ``vgg19*`` (safetensors, pth or pt) in one of the folders that data sets are looked for in, in ``weights``
            beside one of them, or in torch's cache; else VGG-16's; else there are no tensors.

    Raises:
        Error: the file cannot be read, or holds another network.
    """
    if source == "imagenet":
        return "vgg19", _select_vgg_convolutions(_fetch_torchvision_weights("vgg19"), source)
    path = Path(source) if source else find_weights_file("vgg19", "vgg16")
    if path is None:
        return "vgg16", {}
    tensors = _select_vgg_convolutions(_read_weights_file(path), str(path))
    return {13: "vgg16", 16: "vgg19"}[sum(value.ndim == 4 for value in tensors.values())], tensors


def find_weights_file(*names: str) -> Path | None:
    """A file of weights whose name begins with the first of the names, or else with the next, in one of those places.

    Those of networks with batch normalisation are passed over.
    """
    places = [folder for place in list_data_folders() for folder in (place, place.parent / "weights")]
    places.append(Path(torch.hub.get_dir()) / "checkpoints")
    for name in names:
        for place in places:
            for file in sorted(place.glob(f"{name}*")):
                if file.suffix in (".safetensors", ".pth", ".pt") and "_bn" not in file.name:
                    return file
    return None


def _select_vgg_convolutions(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Of VGG's tensors those of its convolutions, in float32."""
    found = {key: value for key, value in _standardize_tensors(tensors).items() if key.startswith("features.")}
    count = sum(value.ndim == 4 for value in found.values())
    if count not in VGG_GROUPS or len(found) != 2 * count:
        raise Error(
            f"{source} is not of VGG-16 or VGG-19 without batch normalisation: it should have 13 or 16 convolutions "
            f"with biases, named features.0.weight and so on, and has {count}"
        )
    wrong = [f"{key} {what}" for key, what in find_mismatches(found, _build_vgg_tensors(VGG_GROUPS[count]))]
    if wrong:
        raise Error(f"{source} does not fit VGG-{count + 3}: {_format_names(wrong)}")
    return found


def _build_vgg_tensors(groups: Sequence[int]) -> dict[str, Tensor]:
    """The convolutions of a VGG with so many in each group, without values (Simonyan and Zisserman 2015, table 1)."""
    found, at, channels = {}, 0, 3
    for width, count in zip((64, 128, 256, 512, 512), groups, strict=True):
        for _ in range(count):
            found[f"features.{at}.weight"] = torch.empty(width, channels, 3, 3, device="meta")
            found[f"features.{at}.bias"] = torch.empty(width, device="meta")
            at, channels = at + 2, width  # a rectifier follows
        at += 1  # the pooling
    return found


def initialize_captioner(model: Any, name: str, init: str, labels: tuple[str, ...] = ()) -> None:
    """Begin with the weights ``init``: those of a network that speaks, or those of the classifier that is its encoder.

    Args:
        model: as :class:`fukami.models.show_and_tell.ShowAndTell`, whose ``encoder`` is a classifier without its head.
        name: what the classifier is called in :mod:`fukami.models`.
        init: ``imagenet`` (torchvision's classifier), a file of a state dict, or a run's folder.
        labels: the model's words, which a run's should be, too.

    Raises:
        Error: there are no such weights, or they do not fit; every missing and misshapen tensor is listed.
    """
    tensors = _standardize_tensors(
        _fetch_torchvision_weights(name) if init == "imagenet" else _read_weights_file(Path(init))
    )
    whole = any(key.startswith("lstm.") for key in tensors)
    if whole and labels and _read_labels(init) != labels:
        raise Error(f"{init} speaks with other words; give the run of a network that learned from the same sentences")
    target = model if whole else model.encoder
    expected = target.state_dict()
    wrong = [f"{key} {what}" for key, what in find_mismatches(tensors, expected) if key in expected]
    if wrong:
        raise Error(f"{init} does not fit {'the network' if whole else name}: {'; '.join(wrong)}")
    target.load_state_dict({key: tensors.get(key, value) for key, value in expected.items()})


def _format_names(names: list[str]) -> str:
    """The first of the names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def get_coco_categories() -> tuple[str, ...]:
    """The names of COCO's 90 numbers, of which some were never used."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])


def _read_labels(init: str) -> tuple[str, ...]:
    """The classes that weights are of; none where that is not known."""
    if init == "coco":
        return get_coco_categories()
    labels = _read_run_record(Path(init)).get("labels")
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        return ()
    return tuple(labels)


def load_detector_weights(init: str) -> dict[str, Tensor]:
    """The weights of a detector, ``coco`` or a file, under the names of torchvision's; those of others as they are.

    Those of the time of the published file were learned with a normalisation that adds nothing to the variance.
    """
    found = _standardize_tensors(
        _fetch_torchvision_weights("fasterrcnn_resnet50_fpn") if init == "coco" else _read_weights_file(Path(init))
    )
    if "rpn.head.conv.weight" in found:
        for key in [key for key in found if key.endswith("running_var")]:
            weight = key.replace("running_var", "weight")
            found[weight] = found[weight] * ((found[key] + EPSILON) / found[key]).nan_to_num(1.0, posinf=1.0).sqrt()
    return rename_detector_weights(found)


def rename_detector_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A detector's weights under the names of torchvision since 0.13, which its published file does not have yet."""
    names = {}
    for key in tensors:
        new = re.sub(r"((?:inner|layer)_blocks\.\d)\.(?=weight|bias)", r"\1.0.", key)
        names[key] = re.sub(r"(rpn\.head\.conv)\.(?=weight|bias)", r"\1.0.0.", new)
    return {names[key]: value for key, value in tensors.items()}


def find_mismatches(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """What of the tensors is missing, of another shape or type, or not expected: its name, and what is wrong."""
    for key, value in expected.items():
        if key not in tensors:
            if not key.endswith("num_batches_tracked"):  # files older than 2019 have none
                yield key, "is missing"
        elif misfit := find_mismatch(tensors[key], value):
            yield key, misfit
    for key in tensors:
        if key not in expected:
            yield key, "is not known"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of published weights or a run's folder, in float32.

    Raises:
        Error: it cannot be read, or holds something else.
    """
    return _standardize_tensors(_read_weights_file(path))


def _read_weights_file(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, of which nothing is run; every tensor is one that a network can begin with."""
    file = path / "weights.safetensors" if path.is_dir() else path
    to = _read_export_precision(path)
    if to in ("int8", "binary", "onnx"):
        raise Error(f"{path} was exported to {to} and has no weights to train; give the run that it was made of")
    try:
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            return _check_tensors(path, read_tensors(content))
        found = load_torch(content)
    except OSError as error:
        raise Error(f"{path} cannot be read ({error.strerror}); give imagenet, a file of weights or a run") from None
    except Error:
        raise
    except Exception as error:  # a damaged file can fail in any way
        reason = "damaged" if isinstance(error, SafetensorError) else "damaged, or holds more than tensors"
        raise Error(
            f"{path} is {reason} ({explain_load_error(error)}); give a state dict as safetensors or as torch.save "
            "wrote it"
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if not (named and found and all(isinstance(value, Tensor) for value in found.values())):
        raise Error(f"{path} holds no state dict; expected tensors by name, as model.state_dict() gives them")
    return _check_tensors(path, found)


def _check_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        Error: a network cannot begin with one of them; it is named.
    """
    faults = find_faults(tensors)
    if faults:
        few = [f"{name[:100]} {fault}" for name, fault in list(faults.items())[:4]]
        raise Error(f"{path} holds what no network can begin with: {'; '.join(few)}; give other weights")
    return tensors


def _read_export_precision(folder: Path) -> str | None:
    """What a run was exported to, if it was."""
    exported = _read_run_record(folder).get("exported")
    return str(exported["to"]) if isinstance(exported, dict) and "to" in exported else None


def _read_run_record(folder: Path) -> dict[str, Any]:
    """What a run's folder says of the run; nothing where it is no such folder."""
    try:
        record = json.loads((folder / "recipe.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _standardize_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float32, under the names that the network itself gives them (our runs and DataParallel put a word before).

    Of a run with snapshots, the last one.
    """
    numbers = [int(found[1]) for key in tensors if (found := re.match(r"model\.models\.(\d{1,6})\.", key))]
    snapshots = max(numbers, default=0) if any(key.endswith(".joined") for key in tensors) else 0
    tensors = {key: value for key, value in tensors.items() if key.startswith(f"model.models.{snapshots}.")} or tensors
    for prefix in (f"model.models.{snapshots}.", "model.", "module."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_torchvision_weights(name: str) -> dict[str, Tensor]:
    """torchvision's weights of a network under the names that it gives them, in float32."""
    return _standardize_tensors(_fetch_torchvision_weights(name))


def _fetch_torchvision_weights(name: str) -> dict[str, Tensor]:
    """torchvision's weights for ImageNet, a detector's for COCO, from its cache or downloaded."""
    from torchvision.models import get_model_weights, list_models

    if name not in list_models():
        raise Error(f"there are no published weights for {name}; give --init a file, or leave it out")
    weights = next(iter(get_model_weights(name)))
    try:
        found = dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
        return _check_tensors(Path(weights.url), found)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        file = os.path.basename(weights.url)  # noqa: PTH119
        raise Error(
            f"the published weights of {name} cannot be downloaded ({explain_load_error(error)}); get {weights.url} by "
            f"other means, and give --init {file}"
        ) from error
