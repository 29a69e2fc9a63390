"""What is read from files: MNIST, and parameters in safetensors or in the pickles of programs like the note's."""

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
ALLOWED_GLOBALS = {
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
}  # and the two below, as NumPy 1 and NumPy 2 say them
ALLOWED_GLOBALS |= {
    f"numpy.{c}.{f}" for c in ("core", "_core") for f in ("multiarray._reconstruct", "numeric._frombuffer")
}


def load_mnist(normalize: bool = True, flatten: bool = True, one_hot_label: bool = False) -> tuple[Split, Split]:
    """``(x_train, t_train), (x_test, t_test)``, float32 in 0..1 or uint8, ``(N, 784)`` or ``(N, 1, 28, 28)``."""
    from fukami.data import mnist

    def convert(x: Array, t: Array) -> Split:
        x = np.divide(x, 255, dtype=np.float32) if normalize else x.copy()
        return x.reshape((-1, 784) if flatten else (-1, 1, 28, 28)), np.eye(10)[t] if one_hot_label else t.copy()

    train, test = mnist.load_mnist()
    return convert(*train), convert(*test)


def read_params(path: str | Path) -> dict[str, Array]:
    """The floating-point arrays of a file, safetensors or a pickled dict; anything else is an Error, and never run."""
    from safetensors.numpy import load

    try:
        content = Path(path).read_bytes()
        arrays = load(content) if content[8:9] == b"{" else _unpickle(content)
        if wrong := [key for key, array in arrays.items() if array.dtype.kind != "f"]:
            raise TypeError(f"{wrong[0]:.50} is {arrays[wrong[0]].dtype}, not floating point")
        return {key: np.array(array, array.dtype.newbyteorder("="), order="C") for key, array in arrays.items()}
    except Exception as error:  # a broken or hostile file can raise anything
        raise Error(
            f"{path} was not loaded: {error!r:.300}; expected safetensors or a pickled dict of arrays"
        ) from error


def _unpickle(content: bytes) -> dict[str, Array]:
    if any("PUT" in code.name and int(number or 0) > len(content) for code, number, _ in pickletools.genops(content)):
        raise ValueError("it numbers more things than it has")  # and genops finds lengths beyond the end of the file
    found, arrays, size = _Unpickler(io.BytesIO(content), encoding="latin1").load(), dict[str, Array](), 0
    if type(found) is not dict:
        raise TypeError(f"it holds a {type(found).__name__}, not a dict")
    for key, value in found.items():
        if type(key) is not str or type(value) is not _PickleRecord:
            name = key if type(key) is str else type(key).__name__
            raise TypeError(f"the value of {name:.50} is a {type(value).__name__}, not an array")
        arrays[key] = value.to_array()
        if (size := size + arrays[key].nbytes) > len(content):
            raise ValueError("its arrays are larger than the file")
    return arrays


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (asked := f"{module}.{name}") not in ALLOWED_GLOBALS | {"collections.OrderedDict"}:
            raise pickle.UnpicklingError(f"it asks for {asked[:100]}, which is no part of an array")
        return _PickleRecord if asked in ALLOWED_GLOBALS else lambda: {}


class _PickleRecord:
    """All that a pickle can call: it keeps the arguments and the state it is given, and runs nothing."""

    def __init__(self, a: Any, b: Any = None, c: Any = None, d: Any = None, e: Any = None) -> None:
        self.args, self.state = (a, b, c, d, e), ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_array(self) -> Array:
        data, dtype, shape, order, axes = self.args  # of _frombuffer
        if self.state:  # of what _reconstruct makes
            _, shape, dtype, fortran, data = self.state
            order = "F" if fortran else "C"
        if not re.fullmatch("[<>]f[0-9]+", name := dtype.state[1] + dtype.args[0]):
            raise TypeError(f"an array has the dtype {name:.50}, not floating point")
        data = data.args[0] if isinstance(data, _PickleRecord) else data
        flat: Any = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, name)
        return np.asarray(flat.reshape(shape).transpose(axes) if order == "K" else flat.reshape(shape, order=order))
