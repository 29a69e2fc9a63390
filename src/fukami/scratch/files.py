"""What is read from files: MNIST, and parameters in safetensors or in the pickles of programs like the note's.

A pickle is a program. The one here can describe arrays and nothing else: all that it can call is a class that keeps what
it is given, and the arrays are made from that afterwards.
"""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from fukami.errors import Error
from fukami.scratch.layers import Array

Split = tuple[Array, Array]
DESCRIBED = {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}  # the last stands for bytes in protocols 0 to 2
DESCRIBED |= {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}  # as NumPy 1 and NumPy 2 say it
DESCRIBED |= {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}  # the same in protocol 5


def load_mnist(normalize: bool = True, flatten: bool = True, one_hot_label: bool = False) -> tuple[Split, Split]:
    """``(x_train, t_train), (x_test, t_test)``: 60,000 and 10,000 digits and their labels.

    Pictures are float32 in 0..1, or uint8 in 0..255, of shape ``(N, 784)`` or ``(N, 1, 28, 28)``.
    """
    from fukami.data import mnist

    def shaped(x: Array, t: Array) -> Split:
        x = x.reshape((-1, 784) if flatten else (-1, 1, 28, 28))
        return np.divide(x, 255, dtype=np.float32) if normalize else x.copy(), np.eye(10)[
            t
        ] if one_hot_label else t.copy()

    train, test = mnist.read()
    return shaped(*train), shaped(*test)


def read_params(path: str | Path) -> dict[str, Array]:
    """The floating-point arrays of a file by name; the content tells whether it is safetensors or a pickled dict.

    Raises:
        Error: the file is something else, broken or hostile. Nothing in it has been run.
    """
    from safetensors.numpy import load

    try:
        content = Path(path).read_bytes()
        arrays = load(content) if content[8:9] == b"{" else _unpickle(content)
        for key, array in arrays.items():
            if array.dtype.kind != "f":
                raise TypeError(f"{key:.50} is {array.dtype}, not floating point")
        if sum(array.nbytes for array in arrays.values()) > len(content):
            raise ValueError("its arrays are larger than the file")
        return {key: np.array(array, array.dtype.newbyteorder("="), order="C") for key, array in arrays.items()}
    except Exception as error:  # a broken or hostile file can raise anything
        why = f"{type(error).__name__}: {str(error)[:300]}"
        raise Error(f"{path} was not loaded: {why}; expected safetensors or a pickled dict of NumPy arrays") from error


def _unpickle(content: bytes) -> dict[str, Array]:
    for opcode, argument, _ in pickletools.genops(content):  # this also finds lengths beyond the end of the file
        if "PUT" in opcode.name and int(argument or 0) > len(content):
            raise ValueError(f"it has a memo entry {argument}")
    found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    if type(found) is not dict:
        raise TypeError(f"it holds a {type(found).__name__}, not a dict")
    for key, value in found.items():
        if type(key) is not str or type(value) is not _Described:
            raise TypeError(f"the value of {str(key)[:50]} is a {type(value).__name__}, not an array")
    return {key: value.array() for key, value in found.items()}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        asked = f"{module}.{name}"
        if asked not in DESCRIBED | {"collections.OrderedDict"}:
            raise pickle.UnpicklingError(f"it asks for {asked[:100]}, which is no part of an array")
        return _Described if asked in DESCRIBED else dict


class _Described:
    """What a pickle calls, as the arguments and the state that it gives, kept and not acted on."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.given += state

    def array(self) -> Array:
        """The array, a view of its bytes in the file."""
        match self.given:
            case _, _, _, _, shape, dtype, fortran, data:  # _reconstruct(class, shape, code) and a state
                order, axes = "F" if fortran else "C", None
            case data, dtype, shape, order, *axes:  # _frombuffer
                pass
        code, _, _, _, byte_order, *_ = dtype.given
        if not re.fullmatch("[<>]f[0-9]+", f"{byte_order}{code}"):
            raise TypeError(f"an array has the dtype {byte_order}{code}, not floating point")
        data = data.given[0] if isinstance(data, _Described) else data
        flat: Array = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, f"{byte_order}{code}")
        return flat.reshape(shape).transpose(*axes) if order == "K" else np.reshape(flat, shape, order=order)
