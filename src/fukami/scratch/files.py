"""What is read from files: MNIST, and parameters in safetensors or in the pickles of programs like the note's.
A pickle is a program. Here it can only describe: all that it can call is a class that keeps what it is given, and the
arrays are made from that afterwards.
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
DESCRIBED = {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}  # and the two below, as NumPy 1 and NumPy 2 say them
DESCRIBED |= {f"numpy.{c}.{f}" for c in ("core", "_core") for f in ("multiarray._reconstruct", "numeric._frombuffer")}


def load_mnist(normalize: bool = True, flatten: bool = True, one_hot_label: bool = False) -> tuple[Split, Split]:
    """``(x_train, t_train), (x_test, t_test)``, float32 in 0..1 or uint8, ``(N, 784)`` or ``(N, 1, 28, 28)``."""
    from fukami.data import mnist

    def shaped(x: Array, t: Array) -> Split:
        x = np.divide(x, 255, dtype=np.float32) if normalize else x.copy()
        return x.reshape((-1, 784) if flatten else (-1, 1, 28, 28)), np.eye(10)[t] if one_hot_label else t.copy()

    train, test = mnist.read()
    return shaped(*train), shaped(*test)


def read_params(path: str | Path) -> dict[str, Array]:
    """The floating-point arrays of a file, safetensors or a pickled dict; anything else is an Error, and never run."""
    from safetensors.numpy import load

    try:
        content = Path(path).read_bytes()
        arrays = load(content) if content[8:9] == b"{" else _unpickle(content)
        if wrong := [key for key, array in arrays.items() if array.dtype.kind != "f"]:
            raise TypeError(f"{wrong[0]:.50} is {arrays[wrong[0]].dtype}, not floating point")
        if sum(array.nbytes for array in arrays.values()) > len(content):
            raise ValueError("its arrays are larger than the file")
        return {key: np.array(array, array.dtype.newbyteorder("="), order="C") for key, array in arrays.items()}
    except Exception as error:  # a broken or hostile file can raise anything
        raise Error(
            f"{path} was not loaded: {error!r:.300}; expected safetensors or a pickled dict of arrays"
        ) from error


def _unpickle(content: bytes) -> dict[str, Array]:
    if any("PUT" in code.name and int(number or 0) > len(content) for code, number, _ in pickletools.genops(content)):
        raise ValueError("it numbers more things than it has")  # and genops finds lengths beyond the end of the file
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
    def __init__(self, *given: Any) -> None:
        self.given = given  # the arguments of a call, and then its state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.given += state

    def array(self) -> Array:
        if len(self.given) == 8:  # _reconstruct(class, shape, code) and its state
            *_, shape, dtype, fortran, data = self.given
            order = "F" if fortran else "C"
        else:  # _frombuffer
            data, dtype, shape, order, *axes = self.given
        code, _, _, _, byte_order, *_ = dtype.given
        if not re.fullmatch("[<>]f[0-9]+", f"{byte_order}{code}"):
            raise TypeError(f"an array has the dtype {byte_order}{code}, not floating point")
        data = data.given[0] if isinstance(data, _Described) else data
        flat: Any = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, f"{byte_order}{code}")
        return np.asarray(flat.reshape(shape).transpose(*axes) if order == "K" else flat.reshape(shape, order=order))
