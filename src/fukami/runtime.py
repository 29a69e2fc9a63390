"""Device, precision and processes: what torch.amp, torch.distributed and CUDA graphs need, said once."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fukami.errors import UsageError, unknown

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Function = TypeVar("Function", bound=Callable[[Any], Any])


@dataclass(frozen=True)
class Runtime:
    """Where and how a task computes; made by :meth:`start`."""

    device: torch.device
    precision: str
    rank: int = 0
    world: int = 1
    compile: bool = False

    @classmethod
    def start(cls, device: str = "auto", precision: str = "auto", compile: bool = False) -> "Runtime":
        """Resolve ``auto``, join the other processes where ``torchrun`` started several, make kernels repeatable.

        Raises:
            UsageError: the device is not there, the precision has another name, or nothing here can compile.
        """
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        where = _device(device)
        if precision == "auto":
            precision = "bfloat16" if _fast_bfloat16(where) else "float32"
        if precision not in PRECISIONS:
            raise unknown("precision", precision, ["auto", *PRECISIONS])
        if where.type == "cuda":
            torch.cuda.set_device(where)
            torch.backends.cudnn.allow_tf32 = False  # "float32" means float32; bfloat16 is the fast default
            torch.backends.cudnn.deterministic = True
        if where.type == "cpu":
            torch.set_flush_denormal(
                True
            )  # gradients of what is learned by heart are that small, and ten times as slow
        if world > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
        if (
            compile
            and where.type == "cpu"
            and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))
        ):
            raise UsageError("--compile needs a C++ compiler, and there is none here; install g++, or leave it out")
        return cls(where, precision, rank, world, compile)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device, channels last (faster for convolutions on every device)."""
        return module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes, compiled where asked for; or else itself."""
        if self.world > 1 and any(p.requires_grad for p in module.parameters()):
            module = nn.parallel.DistributedDataParallel(module)
        return cast(nn.Module, torch.compile(module)) if self.compile else module

    def steer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer with its learning rate in a tensor, which a captured step reads anew at each replay."""
        for group in optimizer.param_groups:
            group["initial_lr"] = float(group["lr"])
            group["lr"] = torch.tensor(group["initial_lr"], device=self.device)
            if self.device.type == "cuda" and "capturable" in group:
                group["capturable"] = True
        return optimizer

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler that float16 needs, idle at other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision while training; weights stay float32. No weight cache: a captured step must cast anew."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision], cache_enabled=False)

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over the processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any of the processes."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device))) if self.world > 1 else flag

    def count(self, batch: Any) -> int:
        """Samples in a batch, over all processes: the length of the first tensor in it."""
        return self.world * next((len(leaf) for leaf in pytree.tree_leaves(batch) if hasattr(leaf, "shape")), 1)

    def fast(self, function: Function, static: bool) -> Function:
        """The function of a tree of tensors, captured whole in a CUDA graph where that is possible."""
        capture = static and self.device.type == "cuda" and self.world == 1
        return cast(Function, _Captured(function)) if capture else function


class _Captured:
    """A function recorded as one CUDA graph: a replay costs one launch instead of one per kernel.

    What it returns lies in the same memory each time. The first calls run as they are (they are real steps), so that
    lazily made optimizer state exists before the recording; inputs of another shape run as they are, too.
    """

    def __init__(self, function: Callable[[Any], Any], warmup: int = 3) -> None:
        self.function, self.warmup = function, warmup
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.shapes: list[torch.Size] = []

    def __call__(self, inputs: Any) -> Any:
        tensors = pytree.tree_leaves(inputs)
        if self.warmup > 0 or (self.graph and [t.shape for t in tensors] != self.shapes):
            self.warmup -= 1
            return self._aside(inputs)
        if self.graph is None:
            self.inputs = pytree.tree_map(torch.clone, inputs)
            self.shapes = [t.shape for t in tensors]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = self.function(self.inputs)
        torch._foreach_copy_(pytree.tree_leaves(self.inputs), tensors)
        self.graph.replay()
        return self.outputs

    def _aside(self, inputs: Any) -> Any:
        """Run on another stream than the default one, as a later capture demands."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs


def _device(name: str) -> torch.device:
    """The device of a name such as ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ["auto", "cpu", "cuda", "mps"]) from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        have = [kind for kind, n in count.items() if n]
        raise UsageError(
            f"there is no device {name!r} here; torch sees {', '.join(have)}: choose one of these or 'auto'"
        )
    return device


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 trains faster than float32: on recent GPUs, with AMX, and with AMD's AVX-512-bf16.

    Measured on ResNet-20: 1.45 times the pictures of float32 on Zen 5, fewer on an Intel core with AVX-512 and no AMX.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    amd = "AMD" in str(torch.cpu.get_capabilities().get("cpu_name", ""))
    return bool(torch.cpu._is_amx_tile_supported() or (amd and torch.cpu._is_avx512_bf16_supported()))
