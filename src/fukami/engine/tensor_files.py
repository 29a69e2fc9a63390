"""Tensors in files: those of untrusted files are loaded without executing code, and checked before they are used."""

import io
import json
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fukami.errors import Error

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPE_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
}  # fmt: skip
MAX_SAFETENSORS_BYTES = 16 << 30  # of a file, which is mapped and not read
MAX_TORCH_BYTES = 4 << 30  # of a file of torch.save; VGG-19 has 0.6 GB
MAX_TENSOR_BYTES = 4 << 30  # of a tensor; the largest one of VGG has 0.4 GB


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


def load_weights_file(path: Path) -> object:
    """Load the tensors of a safetensors file, or a value that ``torch.save`` wrote, without executing code.

    A file that is too large is not read. Tensors are mapped from the file, so that a header or a shape can be rejected
    before any value is read; only files of torch before 1.6 are read as a whole.

    Raises:
        Error: the file is too large, or not a regular file.
        Exception: the file is corrupted, contains other objects, or is compressed. torch's messages often suggest an
            option that would execute the file's code: :func:`explain_load_error` omits it.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Error(f"{path} is not a regular file; use a file of weights or a run")
    max_bytes = MAX_SAFETENSORS_BYTES if path.suffix == ".safetensors" else MAX_TORCH_BYTES
    if status.st_size > max_bytes:
        raise Error(f"{path} has {status.st_size:,} bytes, more than {max_bytes:,}; use a file of weights alone")
    return load_file(path) if path.suffix == ".safetensors" else _load_torch(path, status.st_size)


def _load_torch(path: Path, size: int) -> object:
    """Load a value that ``torch.save`` wrote; only tensors and plain values are allowed.

    ``torch.save`` does not compress, and a compressed file could expand to a thousand times its size, so it is
    rejected.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # before torch 1.6
            file.seek(0)
            return torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ValueError("it is compressed, which torch.save never does")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("its parts are larger than the file")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


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

    These are sparse, quantized and complex tensors, tensors larger than their stored data or than
    :data:`MAX_TENSOR_BYTES`, and tensors with values that are not finite. Values are read only if there are no other
    faults.
    """
    faults = {name: fault for name, tensor in tensors.items() if (fault := _find_fault(tensor))}
    if faults:
        return faults
    return {name: "has values that are not finite" for name, tensor in tensors.items() if not _is_finite(tensor)}


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
    if tensor.nbytes > MAX_TENSOR_BYTES:
        return f"is {tuple(tensor.shape)}, which is {tensor.nbytes:,} bytes"
    if tensor.is_floating_point() and tensor.dtype not in FLOAT_DTYPES:
        return f"is {_format_dtype(tensor.dtype)}"
    return ""


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; checked in chunks to save memory."""
    if not tensor.is_floating_point():
        return True
    chunks = torch.split(tensor.flatten(), 1 << 20) if tensor.numel() else ()
    return all(bool(chunk.isfinite().all()) for chunk in chunks)


def _format_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
