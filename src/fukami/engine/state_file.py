"""The file format of a checkpoint: safetensors for the tensors, JSON in its metadata for everything else.

Nothing in such a file can name code, unlike a pickle, so a checkpoint from anywhere can be read.
"""

import json
import os
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

TENSOR_KEY, TUPLE_KEY, ITEMS_KEY = "$tensor", "$tuple", "$items"  # the keys of JSON objects that stand for these


def encode_state(state: dict[str, Any]) -> bytes:
    """Serialize nested dicts, lists and tuples of tensors and of ``None``, bool, int, float and str.

    Tensors keep their dtype and the order of their dimensions in memory (channels last), not their device.

    Raises:
        TypeError: a value is of another type.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            order = sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().permute(order).contiguous()
            return {TENSOR_KEY: name, "order": order}
        if isinstance(value, tuple):
            return {TUPLE_KEY: [plain(each) for each in value]}
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: plain(each) for key, each in value.items()}
            return {ITEMS_KEY: [[plain(key), plain(each)] for key, each in value.items()]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")

    return save(tensors, {"state": json.dumps(plain(state))})


def load_state(path: str | os.PathLike[str], device: torch.device) -> Any:
    """The state in a file that :func:`encode_state` made, with its tensors on ``device``.

    Raises:
        Exception: of any kind, for a file that is damaged or of another format.
    """
    with safe_open(path, "pt", device=str(device)) as file:
        state = json.loads(file.metadata()["state"])
        unread = set(file.keys())

        def value(found: Any) -> Any:
            if isinstance(found, list):
                return [value(each) for each in found]
            if not isinstance(found, dict):
                return found
            if TENSOR_KEY in found:
                order = found["order"]
                unread.remove(found[TENSOR_KEY])  # each is named once: a small file could ask for any number of copies
                stored = file.get_tensor(found[TENSOR_KEY]).clone()  # else it is the file itself, mapped into memory
                return stored.permute([order.index(axis) for axis in range(stored.ndim)])
            if TUPLE_KEY in found:
                return tuple(value(each) for each in found[TUPLE_KEY])
            if ITEMS_KEY in found:
                return {value(key): value(each) for key, each in found[ITEMS_KEY]}
            return {key: value(each) for key, each in found.items()}

        return value(state)
