"""Halves where a processor has no arithmetic for them: products and sums in float32, rounded once a layer.

torch computes them by a loop of its own there, many times slower than float32; like this they take about as long.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def has_native_arithmetic(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies numbers of the type as they are; of GPUs it is taken for granted."""
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if kind is None or device.type != "cpu":
        return True
    return any(kind in name and able is True for name, able in torch.cpu.get_capabilities().items())


def enable_float32_fallback(network: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """In which to call the network: it computes in float32 what the processor cannot in the type of its weights."""
    first = next(network.parameters(), None)
    if first is None or has_native_arithmetic(first.dtype, first.device):
        return contextlib.nullcontext()
    return Float32FallbackMode()


class Float32FallbackMode(TorchFunctionMode):
    """Convolutions and affine layers of halves take them as float32, and round what they give out."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func not in (F.conv2d, F.linear) or args[0].dtype not in (torch.float16, torch.bfloat16):
            return func(*args, **kwargs)
        wide = (value.float() if isinstance(value, Tensor) else value for value in args)
        return func(*wide, **kwargs).to(args[0].dtype)
