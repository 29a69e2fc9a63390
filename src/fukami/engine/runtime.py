"""Runtime of a task: device, precision and processes (torch.amp, torch.distributed, CUDA graphs)."""

import contextlib
import ctypes
import importlib.util
import inspect
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fukami.engine.cuda_graph import GraphedCallable
from fukami.engine.process_group import init_process_group
from fukami.errors import UsageError, build_unknown_error, suggest_names
from fukami.layers.sync_layers import convert_sync_layers
from fukami.system import count_cpus
from fukami.timing import PhaseTimer

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# tf32: float32 tensors, multiplied with 10 mantissa bits
TRAINING_PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
DEFAULT_TIMEOUT = 600.0  # seconds
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # mallopt parameters of glibc's malloc.h
RECOMPILE_LIMIT = 2**30  # practically unlimited; torch would stop compiling after 8
Value = TypeVar("Value")
Module = TypeVar("Module", bound=nn.Module)
Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True)
class Runtime:
    """Device, precision and process group of a task; create it with :meth:`start`."""

    device: torch.device
    precision: str
    rank: int = 0
    world_size: int = 1
    clock: PhaseTimer = field(default_factory=lambda: PhaseTimer(torch.device("cpu")))

    @classmethod
    def start(
        cls,
        device: str = "auto",
        precision: str = "auto",
        *,
        timeout: float = DEFAULT_TIMEOUT,
        num_threads: int | None = None,
    ) -> "Runtime":
        """Resolve ``auto``, join the process group of ``torchrun``, and select deterministic kernels.

        The number of CPU threads is OMP_NUM_THREADS, else ``num_threads``, else the number of processors. It affects
        the rounding of sums, since it decides how work is divided.

        Raises:
            UsageError: the device does not exist, or the precision is unknown or not available on it.
            Error: the other processes did not join within ``timeout`` seconds.
        """
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        resolved = _resolve_device(device)
        if precision == "auto":
            precision = _select_precision(resolved)
        if precision not in TRAINING_PRECISIONS:
            raise build_unknown_error("precision", precision, ["auto", *TRAINING_PRECISIONS])
        if precision == "tf32" and not (
            resolved.type == "cuda" and torch.cuda.get_device_capability(resolved) >= (8, 0)
        ):
            raise UsageError("tf32 needs an NVIDIA GPU since Ampere (compute capability 8.0); use another --precision")
        if resolved.type == "cuda":
            torch.cuda.set_device(resolved)
            # float32 stays exact; at lower precisions the remaining float32 operations may use TF32
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
            torch.backends.cudnn.deterministic = True
        if resolved.type == "cpu":
            # gradients of an overfitted network become denormal, with which arithmetic is ten times slower
            torch.set_flush_denormal(True)
            _stop_openmp_threads()
            _disable_memory_trimming()
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(num_threads or max(1, min(torch.get_num_threads(), count_cpus())))
        if world_size > 1 and not torch.distributed.is_initialized():
            init_process_group("nccl" if resolved.type == "cuda" else "gloo", timeout)
        return cls(resolved, precision, rank, world_size, PhaseTimer(resolved))

    @property
    def is_main(self) -> bool:
        """True if this is the process that writes files and messages (rank 0)."""
        return self.rank == 0

    def move_to_device(self, module: Module) -> Module:
        """Move the module to the device, in channels-last format (faster convolutions on every device)."""
        return module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def replicate(self, module: nn.Module) -> nn.Module:
        """Wrap the module for training over all processes: DistributedDataParallel, with synchronized layers."""
        if self.world_size > 1 and any(p.requires_grad for p in module.parameters()):
            convert_sync_layers(module)
            # the synchronized layers keep their statistics equal; only other buffers need a broadcast
            synced = {id(buffer) for m in module.modules() if hasattr(m, "running_mean") for buffer in m.buffers(False)}
            broadcast = any(id(buffer) not in synced for buffer in module.buffers())
            wrap: Callable[..., nn.parallel.DistributedDataParallel] = nn.parallel.DistributedDataParallel
            parameters = inspect.signature(wrap).parameters
            # torch 2.13 renamed the argument
            name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
            replicated = wrap(module, **{name: broadcast}, gradient_as_bucket_view=True)
            _assign_buckets(replicated)
            return replicated
        return module

    def no_sync(self, module: nn.Module, enabled: bool) -> contextlib.AbstractContextManager[object]:
        """Return a context that accumulates gradients without synchronization between processes, if ``enabled``."""
        if enabled and isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def check_compiler(self) -> None:
        """Check that the compiler that ``torch.compile`` needs is installed.

        Raises:
            UsageError: Triton (on a GPU) or a C++ compiler (on a CPU) is missing.
        """
        if self.device.type == "cuda":
            is_available = importlib.util.find_spec("triton") is not None
        else:
            is_available = any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))
        if not is_available:
            compiler = "Triton" if self.device.type == "cuda" else "a C++ compiler such as g++"
            raise UsageError(f"--compile needs {compiler}, which is not installed; install it, or omit --compile")

    def compile(self, module: Function) -> Function:
        """Compile the module (``torch.compile``), with kernels that depend only on the shape of its input.

        There is no autotuning and no dynamic shape, and every shape is compiled, however many there are. So a resumed
        run, which processes the shapes in another order, uses the same kernels.
        """
        import torch._dynamo.config
        import torch._inductor.config

        torch._inductor.config.deterministic = True
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
        return cast(Function, torch.compile(module, dynamic=False))

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Store the optimizer's learning rates in tensors, which a captured step reads at each replay."""
        for group in optimizer.param_groups:
            group["initial_lr"] = float(group["lr"])
            group["lr"] = torch.tensor(group["initial_lr"], device=self.device)
            if self.device.type == "cuda" and "capturable" in group:
                group["capturable"] = True
        return optimizer

    def build_grad_scaler(self) -> torch.amp.GradScaler:
        """Build the loss scaler, which is enabled for float16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of mixed-precision training; weights stay float32.

        The cache of cast weights is off, because a captured step must cast them at each replay.
        """
        if self.precision not in PRECISIONS or self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision], cache_enabled=False)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over the processes, in place."""
        if self.world_size > 1:
            with self.clock("waiting"):
                torch.distributed.all_reduce(tensor)
        return tensor

    def all_gather(self, value: Value) -> "list[Value]":
        """Gather the values of all processes, ordered by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Value] = [value] * self.world_size
        with self.clock("waiting"):
            torch.distributed.all_gather_object(values, value)
        return values

    def all_reduce_any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return bool(self.all_reduce_sum(torch.tensor(float(flag), device=self.device))) if self.world_size > 1 else flag

    def capture(self, function: Function, enabled: bool) -> Function:
        """Capture a function of a tree of tensors in a CUDA graph, if ``enabled`` on a single GPU."""
        capture = enabled and self.device.type == "cuda" and self.world_size == 1
        return cast(Function, GraphedCallable(function)) if capture else function


def _disable_memory_trimming() -> None:
    """Let glibc keep freed memory: it returns large blocks to Linux, which clears each page of the next one again."""
    if platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(MMAP_MAX, 0)
        glibc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def _stop_openmp_threads() -> None:
    """End the OpenMP threads, since each keeps the denormal mode that it started with."""
    for path in Path(torch.__file__).parent.glob("lib/libgomp*"):
        ctypes.CDLL(str(path)).omp_pause_resource_all(1)


def _resolve_device(name: str) -> torch.device:
    """Return the device of a name such as ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        meant = "cuda" if name.startswith("gpu") or name.isdecimal() else name  # names of other tools
        hint = suggest_names(meant, ["auto", "cpu", "cuda", "mps"])
        raise UsageError(f"unknown device {name[:100]!r}; {hint}") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        available = [kind for kind, n in count.items() if n]
        raise UsageError(
            f"there is no device {name!r} on this machine; use --device auto or one of: {', '.join(available)}"
        )
    return device


def _select_precision(device: torch.device) -> str:
    """Select the precision that trains fastest without loss of accuracy.

    bfloat16 on recent GPUs, with AMX, and with AMD's AVX-512-bf16; float16, with loss scaling, on GPUs whose tensor
    cores support nothing else (Volta, Turing). On ResNet-20, bfloat16 trains 1.45 times the images per second of
    float32 on Zen 5, but fewer on an Intel core with AVX-512-bf16 and no AMX.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16"
        return "float16" if torch.cuda.get_device_capability(device) >= (7, 0) else "float32"
    amd = "AMD" in str(torch.cpu.get_capabilities().get("cpu_name", ""))
    fast = torch.cpu._is_amx_tile_supported() or (amd and torch.cpu._is_avx512_bf16_supported())
    return "bfloat16" if device.type == "cpu" and fast else "float32"


def _assign_buckets(module: nn.parallel.DistributedDataParallel) -> None:
    """Let DistributedDataParallel assign the gradients to buckets before the first step.

    It assigns them once more after its first backward pass, and the buckets determine the order of sums over three or
    more processes. A resumed run thus needs those of the uninterrupted one from its first step on.
    """
    network = module.module
    forward = vars(network).get("forward")  # of activation checkpointing
    network.forward = lambda: torch.stack([p.sum() for p in network.parameters() if p.requires_grad]).sum()
    (0 * module()).backward()
    del network.forward
    if forward is not None:
        network.forward = forward
    module.zero_grad()
