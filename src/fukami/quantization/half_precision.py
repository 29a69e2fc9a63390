"""Half precision on processors without native arithmetic: layers in float32, rounded once per layer.

torch's own fallback is a scalar loop, many times slower than float32. This one takes about as long as float32.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def has_native_arithmetic(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the device has native arithmetic for the dtype; assumed for GPUs."""
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if kind is None or device.type != "cpu":
        return True
    return any(kind in name and is_available is True for name, is_available in torch.cpu.get_capabilities().items())


def enable_float32_fallback(network: torch.nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return a context in which layers run in float32 if the processor lacks the dtype of the weights."""
    first = next(network.parameters(), None)
    if first is None or has_native_arithmetic(first.dtype, first.device):
        return contextlib.nullcontext()
    return Float32FallbackMode()


class Float32FallbackMode(TorchFunctionMode):
    """Runs half-precision convolutions and fully connected layers in float32, and rounds their outputs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:  # fmt: skip
        """Call a torch function, in float32 if needed."""
        kwargs = kwargs or {}
        if func not in (F.conv2d, F.linear) or args[0].dtype not in (torch.float16, torch.bfloat16):
            return func(*args, **kwargs)
        wide = (value.float() if isinstance(value, Tensor) else value for value in args)
        return func(*wide, **kwargs).to(args[0].dtype)
