"""Tensors from untrusted files: loaded without executing code, and checked before they are used."""

import io
import re
import zipfile
from collections.abc import Mapping

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_torch(content: bytes, device: torch.device | str = "cpu") -> object:
    """Load a value that ``torch.save`` wrote; only tensors and plain values are allowed.

    ``torch.save`` does not compress, and a compressed file could expand to a thousand times its size, so it is
    rejected.

    Args:
        content: the content of the file.
        device: the device of the loaded tensors.

    Raises:
        Exception: the file is corrupted, contains other objects, or is compressed. torch's messages often suggest an
            option that would execute the file's code: :func:`explain_load_error` omits it.
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
    """Explain in one line why a file cannot be loaded, without torch's advice to disable its protection."""
    rejected = re.search(r"GLOBAL (\S+)", str(error))
    first_line = str(error).strip().partition("\n")[0]
    if rejected or "weights only" in first_line.lower().replace("_", " "):
        return (
            f"it contains {rejected[1][:100]}, which is not a tensor" if rejected else "it is not a pickle of tensors"
        )
    return first_line[:300] or type(error).__name__


def find_faults(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Find tensors that cannot be weights of a network: the fault by name, such as ``is complex64``.

    These are sparse, quantized and complex tensors, tensors larger than their stored data, and tensors with values that
    are not finite.
    """
    faults = {name: _find_fault(tensor) for name, tensor in tensors.items()}
    return {name: fault for name, fault in faults.items() if fault}


def find_mismatch(tensor: Tensor, expected: Tensor) -> str:
    """Explain why a tensor cannot replace the expected one; return an empty string if it can.

    The shapes must be equal, and so must the dtypes, except that all floating-point dtypes are interchangeable.
    """
    if tensor.shape != expected.shape:
        return f"is {tuple(tensor.shape)} instead of {tuple(expected.shape)}"
    if tensor.dtype != expected.dtype and not {tensor.dtype, expected.dtype} <= {*FLOAT_DTYPES}:
        return f"is {_format_dtype(tensor.dtype)} instead of {_format_dtype(expected.dtype)}"
    return ""


def _find_fault(tensor: Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return "is sparse, quantized, nested or without values"
    if tensor.numel() == 0 and max(tensor.shape) > 1:  # an empty file entry could let a network allocate any size
        return f"is {tuple(tensor.shape)}, which has no values"
    if tensor.is_complex():
        return f"is {_format_dtype(tensor.dtype)}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"is {tuple(tensor.shape)}, which is more than the file contains"
    if tensor.is_floating_point() and not (tensor.dtype in FLOAT_DTYPES and _is_finite(tensor)):
        return "has values that are not finite" if tensor.dtype in FLOAT_DTYPES else f"is {_format_dtype(tensor.dtype)}"
    return ""


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; checked in chunks to save memory."""
    chunks = torch.split(tensor.flatten(), 1 << 20) if tensor.numel() else ()
    return all(bool(chunk.isfinite().all()) for chunk in chunks)


def _format_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
