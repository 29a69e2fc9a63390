"""Read and write checkpoints, from which a training run is resumed.

A checkpoint is a safetensors file with the tensors, and JSON in its metadata for everything else. Unlike a pickle, such
a file cannot execute code, so a checkpoint from any source can be read.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fukami import atomic_file
from fukami.data.loader import StateDict
from fukami.engine.tensor_files import encode_tensors
from fukami.errors import Error

TENSOR_KEY, TUPLE_KEY, ITEMS_KEY = "$tensor", "$tuple", "$items"  # JSON keys of tensors, tuples and dicts by items
# types of the metadata of a checkpoint
CHECKPOINT_FIELDS = {"format": (int,), "versions": (dict,), "threads": (int,), "manifest": (str, type(None))}


def write_checkpoint(folder: Path, state: StateDict) -> None:
    """Write ``last.ckpt``, which contains only tensors and plain values."""
    atomic_file.write_file(folder / "last.ckpt", *encode_checkpoint(state))


def read_checkpoint(folder: Path, device: torch.device) -> StateDict | None:
    """Read ``last.ckpt``, or return None if it does not exist; nothing in the file is executed.

    Raises:
        Error: the file is corrupted, or is not a checkpoint of fukami.
    """
    path = folder / "last.ckpt"
    if not path.exists():
        return None
    try:
        state = decode_checkpoint(path, device)
        if not isinstance(state, dict) or type(state["step"]) is not int or state["step"] < 0:
            raise ValueError("it has no valid step")
        for name, kinds in CHECKPOINT_FIELDS.items():
            if name in state and type(state[name]) not in kinds:
                raise ValueError(f"its {name} is of type {type(state[name]).__name__}")
    except Exception as error:  # a corrupted file can fail in any way
        raise Error(
            f"{path} is corrupted, or not a checkpoint of this version of fukami ({type(error).__name__}: {error}); "
            "it was not loaded; delete it to restart the run from step 0"
        ) from error
    return state


def encode_checkpoint(state: Mapping[str, object]) -> list[bytes | memoryview]:
    """Encode nested dicts, lists and tuples of tensors and of ``None``, bool, int, float and str.

    Tensors keep their dtype and memory format (such as channels last), but not their device. The result is the content
    of the file, in parts.

    Raises:
        TypeError: a value is of another type.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: object) -> object:
        if isinstance(value, Tensor):
            order = sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().permute(order).contiguous()
            return {TENSOR_KEY: name, "order": order}
        if isinstance(value, tuple):
            return {TUPLE_KEY: [encode(item) for item in value]}
        if isinstance(value, list):
            return [encode(item) for item in value]
        if isinstance(value, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: encode(item) for key, item in value.items()}
            return {ITEMS_KEY: [[encode(key), encode(item)] for key, item in value.items()]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a checkpoint contains only tensors and plain values, not {type(value).__name__}")

    return encode_tensors(tensors, {"state": json.dumps(encode(state))})


def decode_checkpoint(path: str | os.PathLike[str], device: torch.device) -> object:
    """Read and decode a checkpoint file that :func:`encode_checkpoint` encoded, with its tensors on ``device``.

    Raises:
        Exception: any exception, if the file is corrupted or of another format.
    """
    with safe_open(path, "pt", device=str(device)) as file:
        state = json.loads(file.metadata()["state"])
        unread = set(file.keys())

        def decode(value: object) -> object:
            if isinstance(value, list):
                return [decode(item) for item in value]
            if not isinstance(value, dict):
                return value
            if TENSOR_KEY in value:
                order = value["order"]
                unread.remove(value[TENSOR_KEY])  # at most once: else a small file could expand to any size
                stored = file.get_tensor(value[TENSOR_KEY]).clone()  # cloned, as it is mapped from the file
                return stored.permute([order.index(axis) for axis in range(stored.ndim)])
            if TUPLE_KEY in value:
                return tuple(decode(item) for item in value[TUPLE_KEY])
            if ITEMS_KEY in value:
                return {decode(key): decode(item) for key, item in value[ITEMS_KEY]}
            return {key: decode(item) for key, item in value.items()}

        return decode(state)
