"""File format of checkpoints: safetensors for the tensors, JSON in its metadata for everything else.

Unlike a pickle, such a file cannot execute code, so a checkpoint from any source can be read.
"""

import json
import os
from collections.abc import Mapping

import torch
from safetensors import safe_open
from torch import Tensor

TENSOR_KEY, TUPLE_KEY, ITEMS_KEY = "$tensor", "$tuple", "$items"  # JSON keys of tensors, tuples and dicts by items
DTYPE_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
}  # fmt: skip


def encode_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """Encode tensors on the CPU as a safetensors file: the header, and the memory of each tensor.

    ``safetensors.torch.save`` copies all tensors into one ``bytes``, which takes 6 times as long as writing the file.

    Raises:
        TypeError: a tensor has a dtype that is not in ``DTYPE_NAMES``.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    parts, end = [], 0
    # the largest elements first, so that each tensor of a mapped file is aligned
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if value.dtype not in DTYPE_NAMES:
            raise TypeError(
                f"{name} is a tensor of {value.dtype}, which cannot be saved; use {', '.join(map(str, DTYPE_NAMES))}"
            )
        start, end = end, end + value.nbytes
        header[name] = {"dtype": DTYPE_NAMES[value.dtype], "shape": [*value.shape], "data_offsets": [start, end]}
        parts.append(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return [len(encoded).to_bytes(8, "little"), encoded, *parts]


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
