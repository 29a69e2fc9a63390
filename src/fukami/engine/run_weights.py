"""Read and write the weights of a run; they are checked against its network before they are used."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as read_tensors
from torch import Tensor, nn

from fukami import atomic_file
from fukami.engine.tensor_files import encode_tensors
from fukami.errors import Error

HALF_DTYPES = (torch.float16, torch.bfloat16)  # dtypes that may store float32 weights, for smaller files
MAX_LISTED_TENSORS = 20  # maximum number of tensors that a message names


def locate_weights(folder: Path) -> Path:
    """Return the file of a run's weights: the best ones if there are any, else the last ones."""
    best = folder / "best.safetensors"
    return best if best.is_file() else folder / "weights.safetensors"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read a run's weights, the best ones if there are any; the tensors are mapped from the file."""
    path = locate_weights(folder)
    try:
        return read_tensors(path)
    except FileNotFoundError:
        raise Error(
            f"{folder} has no weights.safetensors yet; its training has not reached the first checkpoint"
        ) from None
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:  # the last two if it is too large to map
        raise Error(f"{path} is corrupted ({error}); the run cannot be used") from error


def assign_weights(modules: dict[str, nn.Module], tensors: dict[str, Tensor], source: Path) -> None:
    """Replace all tensors of the modules by copies of ``tensors``, in the dtype in which they are stored.

    Args:
        modules: modules by name, whose tensors may be on the meta device.
        tensors: tensors named ``module.parameter``.
        source: the file of the tensors, for messages.

    Raises:
        Error: as for :func:`check_tensors`.
    """
    check_tensors(modules, tensors, source)
    for name, module in modules.items():
        prefix = f"{name}."
        # cloned: the tensors are mapped from the file and would change with it
        state = {key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(state, assign=True)
        for key, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_meta:
                raise Error(
                    f"{source} lacks {name}.{key}, which is not in the network's state_dict; register it with "
                    "persistent=True"
                )


def check_tensors(modules: dict[str, nn.Module], tensors: dict[str, Tensor], source: Path) -> None:
    """Check that tensors match those of the modules; arguments as for :func:`assign_weights`.

    Raises:
        Error: tensors are missing, unexpected, of another shape or dtype, or not finite; the message lists them.
    """
    expected = collect_tensors(modules)
    mismatches = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    mismatches += [f"{name} is unexpected" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        tensor, target = tensors[name], expected[name]
        half_dtypes = HALF_DTYPES if target.dtype == torch.float32 else ()
        if tensor.shape != target.shape:
            mismatches.append(f"{name} is {tuple(tensor.shape)} instead of {tuple(target.shape)}")
        elif tensor.dtype not in (target.dtype, *half_dtypes):
            mismatches.append(f"{name} is of {tensor.dtype} instead of {target.dtype}")
        elif not tensor.isfinite().all():
            mismatches.append(f"{name} has values that are not finite")
    if mismatches:
        listed = "; ".join(sorted(mismatches)[:MAX_LISTED_TENSORS]) + (
            f"; and {len(mismatches) - MAX_LISTED_TENSORS} more" if mismatches[MAX_LISTED_TENSORS:] else ""
        )
        raise Error(f"{source} does not match its recipe: {listed}")


def collect_tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return every parameter and buffer of the modules, named ``module.parameter``, on its device."""
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def copy_tensors_to_cpu(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Copy every parameter and buffer of the modules, named ``module.parameter``, to the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in collect_tensors(modules).items()}


def write_weights(
    folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None, name: str = "weights.safetensors"
) -> None:
    """Write the result of :func:`copy_tensors_to_cpu` to a file of the folder.

    Floating-point tensors are stored as ``dtype`` unless it is None.

    Raises:
        Error: a value is out of the range of ``dtype``, or the file cannot be written.
    """
    if dtype is not None:
        converted = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        for tensor_name, value in converted.items():
            if value.is_floating_point() and not bool((value.isfinite() | ~tensors[tensor_name].isfinite()).all()):
                raise Error(
                    f"{tensor_name} has values above {torch.finfo(dtype).max:,.0f}, the limit of "
                    f"{str(dtype).removeprefix('torch.')}; use another precision"
                )
        tensors = converted
    atomic_file.write_file(folder / name, *encode_tensors(tensors))
