"""Device, precision and processes: what torch.amp, torch.distributed and CUDA graphs need, said once."""

import contextlib
import ctypes
import datetime
import importlib.util
import inspect
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fukami.engine.cuda_graph import GraphedCallable
from fukami.errors import Error, UsageError, build_unknown_error
from fukami.layers.sync_layers import convert_sync_layers
from fukami.system import count_cpus
from fukami.timing import PhaseTimer

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRAINING_PRECISIONS = (
    "float32",
    "tf32",
    "bfloat16",
    "float16",
)  # tf32: numbers of float32, multiplied with 10 bits behind the point
DEFAULT_TIMEOUT = 600.0  # seconds
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # numbers of glibc's malloc.h
RECOMPILE_LIMIT = 2**30  # more than any training sees; torch would stop compiling after 8
Value = TypeVar("Value")
Module = TypeVar("Module", bound=Callable[..., Any])
Function = TypeVar("Function", bound=Callable[[Any], Any])


@dataclass(frozen=True)
class Runtime:
    """Where and how a task computes; made by :meth:`start`."""

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
        """Resolve ``auto``, join the other processes where ``torchrun`` started several, make kernels repeatable.

        A CPU computes with ``num_threads``, or with one for each processor, unless OMP_NUM_THREADS says otherwise: how
        work is divided among threads decides how sums are rounded.

        Raises:
            UsageError: the device is not there, or does not have the precision, or that has another name.
            Error: the other processes did not come within ``timeout`` seconds.
        """
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        where = _resolve_device(device)
        if precision == "auto":
            precision = _select_precision(where)
        if precision not in TRAINING_PRECISIONS:
            raise build_unknown_error("precision", precision, ["auto", *TRAINING_PRECISIONS])
        if precision == "tf32" and not (where.type == "cuda" and torch.cuda.get_device_capability(where) >= (8, 0)):
            raise UsageError("tf32 is a precision of NVIDIA GPUs since Ampere (compute capability 8.0); give another")
        if where.type == "cuda":
            torch.cuda.set_device(where)
            # "float32" means float32; at lower precisions what is left of it may as well be quick
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
            torch.backends.cudnn.deterministic = True
        if where.type == "cpu":
            # gradients of what is learned by heart are that small, and ten times as slow
            torch.set_flush_denormal(True)
            _stop_openmp_threads()
            _disable_memory_trimming()
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(num_threads or max(1, min(torch.get_num_threads(), count_cpus())))
        if world > 1 and not torch.distributed.is_initialized():
            _init_process_group("nccl" if where.type == "cuda" else "gloo", timeout)
        return cls(where, precision, rank, world, PhaseTimer(where))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def move_to_device(self, module: nn.Module) -> nn.Module:
        """The module on the device, channels last (faster for convolutions on every device)."""
        return module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module as it is trained: over the batch of all processes, with its gradients averaged over them."""
        if self.world_size > 1 and any(p.requires_grad for p in module.parameters()):
            convert_sync_layers(module)
            kept = {id(buffer) for m in module.modules() if hasattr(m, "running_mean") for buffer in m.buffers(False)}
            others = any(id(buffer) not in kept for buffer in module.buffers())  # which nothing keeps alike
            known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # since 2.13
            options: dict[str, Any] = {name: others, "gradient_as_bucket_view": True}
            module = nn.parallel.DistributedDataParallel(module, **options)
        return module

    def no_sync(self, module: nn.Module, enabled: bool) -> contextlib.AbstractContextManager[Any]:
        """A context in which the replica's gradients add up in this process, not exchanged yet, if ``enabled``."""
        ddp = isinstance(module, nn.parallel.DistributedDataParallel)
        return cast(Any, module).no_sync() if enabled and ddp else contextlib.nullcontext()

    def check_compiler(self) -> None:
        """Refuse to compile where there is nothing that ``torch.compile`` needs.

        Raises:
            UsageError: there is neither Triton (on a GPU) nor a C++ compiler (on a CPU).
        """
        if self.device.type == "cuda":
            found = importlib.util.find_spec("triton") is not None
        else:
            found = any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))
        if not found:
            what = "Triton" if self.device.type == "cuda" else "a C++ compiler such as g++"
            raise UsageError(f"--compile needs {what}, and there is none here; install it, or leave --compile out")

    def compile(self, module: Module) -> Module:
        """The module compiled (``torch.compile``), with kernels that depend on the shape of its input alone.

        Nothing is timed, no kernel is made for several shapes, and however many shapes there are, each is compiled: a
        run that was resumed, which sees them in another order, computes with the same kernels.
        """
        import torch._dynamo.config
        import torch._inductor.config

        torch._inductor.config.deterministic = True
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
        return cast(Module, torch.compile(module, dynamic=False))

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer with its learning rate in a tensor, which a captured step reads anew at each replay."""
        for group in optimizer.param_groups:
            group["initial_lr"] = float(group["lr"])
            group["lr"] = torch.tensor(group["initial_lr"], device=self.device)
            if self.device.type == "cuda" and "capturable" in group:
                group["capturable"] = True
        return optimizer

    def build_grad_scaler(self) -> torch.amp.GradScaler:
        """The loss scaler that float16 needs, idle at other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision while training; weights stay float32. No weight cache: a captured step must cast anew."""
        if self.precision not in PRECISIONS or self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision], cache_enabled=False)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over the processes, in place."""
        if self.world_size > 1:
            with self.clock("waiting"):
                torch.distributed.all_reduce(tensor)
        return tensor

    def all_gather(self, value: Value) -> "list[Value]":
        """The values of all processes, in order."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        with self.clock("waiting"):
            torch.distributed.all_gather_object(found, value)
        return found

    def all_reduce_any(self, flag: bool) -> bool:
        """Whether the flag is up in any of the processes."""
        return bool(self.all_reduce_sum(torch.tensor(float(flag), device=self.device))) if self.world_size > 1 else flag

    def count_samples(self, batch: Any) -> int:
        """Samples in a batch, over all processes: the length of the first tensor in it."""
        return self.world_size * next((len(leaf) for leaf in pytree.tree_leaves(batch) if hasattr(leaf, "shape")), 1)

    def capture(self, function: Function, enabled: bool) -> Function:
        """The function of a tree of tensors, captured whole in a CUDA graph where that is possible."""
        capture = enabled and self.device.type == "cuda" and self.world_size == 1
        return cast(Function, GraphedCallable(function)) if capture else function


def _disable_memory_trimming() -> None:
    """Let glibc keep what is freed. It gives large blocks back, and Linux clears each page of the next one anew."""
    if platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(MMAP_MAX, 0)
        glibc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def _stop_openmp_threads() -> None:
    """Let the threads that have computed so far end: each keeps how denormal numbers were treated when it began."""
    for path in Path(torch.__file__).parent.glob("lib/libgomp*"):
        ctypes.CDLL(str(path)).omp_pause_resource_all(1)


def _init_process_group(backend: str, timeout: float) -> None:
    """Meet the other processes that ``torchrun`` started."""
    try:
        # the watchdog finds and names a process that hangs; torch's own limit is for what that cannot see
        limit = datetime.timedelta(seconds=timeout + 60)
        torch.distributed.init_process_group(backend, timeout=limit)
    except (RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise Error(
            f"the {os.environ['WORLD_SIZE']} processes did not find each other ({first}); start them again"
        ) from None


def _resolve_device(name: str) -> torch.device:
    """The device of a name such as ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise build_unknown_error("device", name, ["auto", "cpu", "cuda", "mps"]) from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        have = [kind for kind, n in count.items() if n]
        raise UsageError(
            f"there is no device {name!r} here; torch sees {', '.join(have)}: choose one of these or 'auto'"
        )
    return device


def _select_precision(device: torch.device) -> str:
    """The precision that trains fastest without losing accuracy.

    bfloat16 on recent GPUs, with AMX, and with AMD's AVX-512-bf16; float16, with its loss scaled, on GPUs whose tensor
    cores know nothing else (Volta, Turing). Measured on ResNet-20: 1.45 times the images of float32 on Zen 5, fewer
    on an Intel core with AVX-512-bf16 and no AMX.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16"
        return "float16" if torch.cuda.get_device_capability(device) >= (7, 0) else "float32"
    amd = "AMD" in str(torch.cpu.get_capabilities().get("cpu_name", ""))
    fast = torch.cpu._is_amx_tile_supported() or (amd and torch.cpu._is_avx512_bf16_supported())
    return "bfloat16" if device.type == "cpu" and fast else "float32"
