"""File input: MNIST, and parameters as safetensors or as pickles of programs like the note's."""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fukami.errors import Error
from fukami.scratch.layers import Array

Split = tuple[Array, Array]
ALLOWED_GLOBALS = {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}
ALLOWED_GLOBALS |= {  # under their names in NumPy 1 and NumPy 2
    f"numpy.{c}.{f}" for c in ("core", "_core") for f in ("multiarray._reconstruct", "numeric._frombuffer")
}


def load_mnist(normalize: bool = True, flatten: bool = True, one_hot_label: bool = False) -> tuple[Split, Split]:
    """Load MNIST as ``(x_train, t_train), (x_test, t_test)``.

    Args:
        normalize: images as float32 in 0..1; otherwise uint8.
        flatten: images as ``(N, 784)``; otherwise ``(N, 1, 28, 28)``.
        one_hot_label: labels one-hot, ``(N, 10)``; otherwise ``(N,)``.
    """
    from fukami.data import mnist

    def convert(x: Array, t: Array) -> Split:
        x = np.divide(x, 255, dtype=np.float32) if normalize else x.copy()
        return x.reshape((-1, 784) if flatten else (-1, 1, 28, 28)), np.eye(10)[t] if one_hot_label else t.copy()

    train, test = mnist.load_mnist()
    return convert(*train), convert(*test)


def read_params(path: str | Path) -> dict[str, Array]:
    """Read the floating-point arrays of a file, safetensors or a pickled dict, without executing code.

    Raises:
        Error: the file cannot be read or contains anything else.
    """
    from safetensors.numpy import load

    try:
        content = Path(path).read_bytes()
        arrays = load(content) if content[8:9] == b"{" else _unpickle(content)
        if invalid := [key for key, array in arrays.items() if array.dtype.kind != "f"]:
            raise TypeError(f"{invalid[0]:.50} is {arrays[invalid[0]].dtype}, not floating point")
        return {key: np.array(array, array.dtype.newbyteorder("="), order="C") for key, array in arrays.items()}
    except Exception as error:  # a corrupted or hostile file can raise anything
        raise Error(
            f"{path} cannot be loaded: {error!r:.300}; expected safetensors or a pickled dict of arrays"
        ) from error


def _unpickle(content: bytes) -> dict[str, Array]:
    for code, argument, _ in pickletools.genops(content):  # raises for lengths beyond the end
        if "PUT" in code.name and int(argument or 0) > len(content):
            raise ValueError("a memo index exceeds the file size")
        if code.name in ("EMPTY_SET", "FROZENSET"):
            raise TypeError("it contains a set")
    loaded, arrays, size = _Unpickler(io.BytesIO(content), encoding="latin1").load(), dict[str, Array](), 0
    if type(loaded) is not dict:
        raise TypeError(f"it contains a {type(loaded).__name__}, not a dict")
    for key, value in loaded.items():
        if type(key) is not str or type(value) is not _PickleRecord:
            name = key if type(key) is str else type(key).__name__
            raise TypeError(f"the value of {name:.50} is a {type(value).__name__}, not an array")
        arrays[key] = value.to_array()
        if (size := size + arrays[key].nbytes) > len(content):
            raise ValueError("its arrays are larger than the file")
    return arrays


class _Unpickler(pickle._Unpickler):
    """Unpickler in Python, which checks the keys of dicts: hashing nested tuples could take any time."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]

    def load_dict(self) -> None:
        """Create a dict of the items since the last mark."""
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_setitem(self) -> None:
        """Set an item of a dict."""
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        """Set the items of a dict since the last mark."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise TypeError(f"it has a dict with a key of the type {type(key).__name__}, not a string")
            self.stack[-1][key] = value

    dispatch |= {pickle.DICT[0]: load_dict, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (target := f"{module}.{name}") not in ALLOWED_GLOBALS | {"collections.OrderedDict"}:
            raise pickle.UnpicklingError(f"it refers to {target[:100]}, which is not part of an array")
        return _PickleRecord if target in ALLOWED_GLOBALS else lambda: {}


class _PickleRecord:
    """Stand-in for every callable of a pickle: it stores the arguments and the state and executes nothing."""

    def __init__(self, a: object, b: object = None, c: object = None, d: object = None, e: object = None) -> None:
        self.args: tuple[Any, ...] = (a, b, c, d, e)
        self.state: Any = ()

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_array(self) -> Array:
        data, dtype, shape, order, axes = self.args  # arguments of _frombuffer
        if self.state:  # state of an array from _reconstruct
            _, shape, dtype, fortran, data = self.state
            order = "F" if fortran else "C"
        if not re.fullmatch("[<>]f[0-9]+", name := dtype.state[1] + dtype.args[0]):
            raise TypeError(f"an array has the dtype {name:.50}, not floating point")
        data = data.args[0] if isinstance(data, _PickleRecord) else data
        flat = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, name)
        return np.asarray(flat.reshape(shape).transpose(axes) if order == "K" else flat.reshape(shape, order=order))
