"""Files of parameters: safetensors, and the pickles that programs like the note's leave behind.

A pickle is a program. The one here can build descriptions of arrays and nothing else: whatever it calls lands in a
class that only keeps what it is given, and the arrays are made from that afterwards, once it is known to be sound.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fukami.errors import Error

Array = npt.NDArray[Any]


def read_params(path: str | Path) -> dict[str, Array]:
    """The arrays of a file by name, writable and in the machine's byte order; the content tells the format.

    Raises:
        Error: the file is not safetensors or a pickled dict of arrays of numbers. Nothing in it has been run.
    """
    try:
        content = Path(path).read_bytes()
        views = _from_safetensors(content) if content[8:9] == b"{" else _from_pickle(content)
        if sum(view.nbytes for view in views.values()) > len(content):
            raise ValueError("the arrays are larger than the file")
        return {key: np.array(view, view.dtype.newbyteorder("="), order="C") for key, view in views.items()}
    except Exception as error:  # a broken or hostile file can raise anything
        raise Error(
            f"{path} was not loaded: {type(error).__name__}: {error:.300}; "
            "expected safetensors or a pickled dict of NumPy arrays of numbers"
        ) from error


def write_params(path: str | Path, params: Mapping[str, Array]) -> None:
    """Write the arrays to a file: safetensors if that is its suffix, else a pickled dict."""
    arrays = {key: np.ascontiguousarray(value) for key, value in params.items()}
    if Path(path).suffix == ".safetensors":
        from safetensors.numpy import save

        Path(path).write_bytes(save(arrays))
    else:
        Path(path).write_bytes(pickle.dumps(arrays))


def _from_safetensors(content: bytes) -> dict[str, Array]:
    from safetensors.numpy import load

    return load(content)


def _from_pickle(content: bytes) -> dict[str, Array]:
    for opcode, argument, _ in pickletools.genops(content):  # finds lengths that the file does not have
        if "PUT" in opcode.name and argument > len(content):
            raise ValueError(f"entry {argument} of the memo is beyond the end of the file")
    found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    if type(found) is not dict:
        raise TypeError(f"it holds a {_kind(found)}, not a dict")
    for key, value in found.items():
        if type(key) is not str or type(value) is not _Array:
            raise TypeError(f"the value of {str(key):.50} is a {_kind(value)}, not an array")
    return {key: value.view() for key, value in found.items()}


class _Described:
    """What a pickle says of a thing, kept and not acted on."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Text(_Described):
    """``_codecs.encode(text, "latin1")``: bytes, as protocols 0 to 2 write them."""


class _Type(_Described):
    """``numpy.dtype(code, align, copy)``, with a state whose second item is the byte order."""

    def numpy(self) -> np.dtype[Any]:
        name = f"{self.state[1]}{self.arguments[0]}"
        if not re.fullmatch("[<>|][biuf][0-9]+", name):
            raise TypeError(f"an array has the dtype {name:.50}, not numbers")
        return np.dtype(name)


class _Array(_Described):
    """``_frombuffer(data, dtype, shape, order, axes)``, or ``_reconstruct(...)`` and its state."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.arguments = data, dtype, shape, "F" if fortran else "C"

    def view(self) -> Array:
        data, dtype, shape, order, *axes = self.arguments
        if type(data) is _Text:
            data, _ = data.arguments
        flat: Array = np.frombuffer(data.encode("latin1") if type(data) is str else data, dtype.numpy())
        return flat.reshape(shape).transpose(*axes) if order == "K" else flat.reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
    """Knows the names that NumPy 1 and 2 write for an array, and what stands for them here."""

    known: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): dict,
        ("_codecs", "encode"): _Text,
        ("numpy", "ndarray"): "the class that _reconstruct is given",
        ("numpy", "dtype"): _Type,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _Array,
        ("numpy._core.numeric", "_frombuffer"): _Array,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module:.100}.{name:.100}, and only arrays are allowed")
        return self.known[module, name]


def _kind(thing: object) -> str:
    return type(thing).__name__.lstrip("_")
