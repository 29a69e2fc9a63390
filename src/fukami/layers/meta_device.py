"""Construction of networks on the meta device, where tensors have a shape and no values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def use_meta_device() -> Iterator[None]:
    """Create the tensors within the context on the meta device, and skip their normal initialization."""
    with torch.device("meta"), _SkipNormal():
        yield


class _SkipNormal(TorchFunctionMode):
    """Mode without ``Tensor.normal_``, for which torch imports its compiler on the meta device: more than a second."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: tuple[type, ...],
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        return arguments[0] if function is Tensor.normal_ else function(*arguments, **(options or {}))
