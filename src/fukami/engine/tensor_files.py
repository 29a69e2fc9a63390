"""Tensors from files that somebody else wrote: read without running anything, and checked before they are used."""

import io
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_torch(content: bytes, device: torch.device | str = "cpu") -> Any:
    """Value that ``torch.save`` wrote: tensors and plain values alone.

    ``torch.save`` compresses nothing; a file that is compressed could unpack to a thousand times its size.

    Args:
        content: of the file.
        device: where the tensors are put.

    Raises:
        Exception: the file is damaged, holds anything else, or is compressed. torch's own words often name a switch
            that would run what is in the file: :func:`explain_load_error` leaves that out.
    """
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("it is compressed, which torch.save never does")
        if sum(info.file_size for info in infos) > len(content):
            raise ValueError("its parts are larger than the file")
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def explain_load_error(error: Exception) -> str:
    """Why a file was not loaded, in one line, without torch's advice to switch its protection off."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    first = str(error).strip().partition("\n")[0]
    if asked or "weights only" in first.lower().replace("_", " "):
        return f"it asks for {asked[1][:100]}, which is no tensor" if asked else "it is no pickle of tensors"
    return first[:300] or type(error).__name__


def find_faults(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What is wrong with tensors that no network can begin with, by name: the words, such as ``is complex64``.

    These are sparse or quantized tensors, those of complex numbers, those that are larger than the data behind them,
    and those with values that are not finite.
    """
    found = {name: _find_fault(tensor) for name, tensor in tensors.items()}
    return {name: fault for name, fault in found.items() if fault}


def find_mismatch(tensor: Tensor, expected: Tensor) -> str:
    """Why a tensor cannot take the place of another one; empty where it can.

    The shape must be the same, and so must the type, except that one type of floating-point numbers fits another one.
    """
    if tensor.shape != expected.shape:
        return f"is {tuple(tensor.shape)} instead of {tuple(expected.shape)}"
    if tensor.dtype != expected.dtype and not {tensor.dtype, expected.dtype} <= {*FLOAT_DTYPES}:
        return f"is {_format_dtype(tensor.dtype)} instead of {_format_dtype(expected.dtype)}"
    return ""


def _find_fault(tensor: Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return "is sparse, quantized, nested or without values"
    if tensor.numel() == 0 and max(tensor.shape) > 1:  # which costs a file nothing, and a network any number of bytes
        return f"is {tuple(tensor.shape)}, which has no values"
    if tensor.is_complex():
        return f"is {_format_dtype(tensor.dtype)}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"is {tuple(tensor.shape)}, which is more than the file has"
    if tensor.is_floating_point() and not (tensor.dtype in FLOAT_DTYPES and _is_finite(tensor)):
        return "has values that are not finite" if tensor.dtype in FLOAT_DTYPES else f"is {_format_dtype(tensor.dtype)}"
    return ""


def _is_finite(tensor: Tensor) -> bool:
    """Whether every value is; in pieces, so that it takes little memory."""
    parts = torch.split(tensor.flatten(), 1 << 20) if tensor.numel() else ()
    return all(bool(part.isfinite().all()) for part in parts)


def _format_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
