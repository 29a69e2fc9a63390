"""State dicts of files, of runs, and of the weights that torchvision publishes."""

import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from fukami.data.locations import list_data_folders
from fukami.data.parsing import read_bytes
from fukami.engine.recipe import MAX_RECIPE_BYTES
from fukami.engine.tensor_files import explain_load_error, find_faults, load_weights_file
from fukami.errors import Error
from fukami.layers.frozen_batch_norm import EPSILON


def load_pretrained(init: str, published: Mapping[str, str]) -> dict[str, Tensor]:
    """Load the weights ``init``, in float32.

    Args:
        init: a key of ``published``, a file (safetensors, or a state dict that torch saved), or a run's folder.
        published: names of torchvision's networks, by ``imagenet`` and ``coco``, the datasets of their weights.

    Raises:
        Error: there are no such weights.
    """
    return load_torchvision_weights(published[init]) if init in published else read_state_dict(Path(init))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a weights file or a run's folder, in float32.

    Raises:
        Error: the file cannot be read, or contains no state dict.
    """
    return _standardize_tensors(_read_weights_file(path))


def load_torchvision_weights(name: str) -> dict[str, Tensor]:
    """Load torchvision's weights of a network, in float32."""
    return _standardize_tensors(_fetch_torchvision_weights(name))


def load_detector_weights(init: str) -> dict[str, Tensor]:
    """Load the weights of a detector: ``coco`` (torchvision's Faster R-CNN), a file, or a run's folder."""
    return convert_detector_weights(load_pretrained(init, {"coco": "fasterrcnn_resnet50_fpn"}))


def convert_detector_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a detector's weights to the names of torchvision since 0.13, and to its batch normalization.

    Torchvision's published file is older, and was trained with a batch normalization without epsilon.
    """
    tensors = {**tensors}
    if "rpn.head.conv.weight" in tensors:
        for key in [key for key in tensors if key.endswith("running_var")]:
            weight, variance = key.replace("running_var", "weight"), tensors[key]
            # else they do not match, which is reported
            if weight in tensors and tensors[weight].shape == variance.shape:
                tensors[weight] = tensors[weight] * ((variance + EPSILON) / variance).nan_to_num(1.0, posinf=1.0).sqrt()
    names = {}
    for key in tensors:
        new = re.sub(r"((?:inner|layer)_blocks\.\d)\.(?=weight|bias)", r"\1.0.", key)
        names[key] = re.sub(r"(rpn\.head\.conv)\.(?=weight|bias)", r"\1.0.0.", new)
    return {names[key]: value for key, value in tensors.items()}


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


def read_init_labels(init: str) -> tuple[str, ...]:
    """Return the classes of the weights ``init``; empty if they are unknown."""
    if init == "coco":
        return get_coco_categories()
    labels = _read_run_record(Path(init)).get("labels")
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        return ()
    return tuple(labels)


def get_coco_categories() -> tuple[str, ...]:
    """Return the names of COCO's 90 category IDs, some of which are unused."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])


def _read_weights_file(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a file without executing code, and check its tensors."""
    from fukami.engine import run_folder, run_weights
    from fukami.engine.precision import CONVERTED_PRECISIONS

    if path.is_dir():
        run_folder.check_run_files(path)
    file = run_weights.locate_weights(path) if path.is_dir() else path
    precision = _read_export_precision(path)
    if precision in CONVERTED_PRECISIONS:
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
            f"other means, and specify the file {file} instead of the name"
        ) from error
