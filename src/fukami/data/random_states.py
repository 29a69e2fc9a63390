"""Seeds and states of all random generators."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import torch

from fukami.errors import UsageError


class RandomStates(TypedDict):
    """States of all random generators, in values that a checkpoint can contain."""

    python: tuple[int | tuple[int, ...] | float | None, ...]
    numpy: list[Any]  # kind of generator, list of integers, two integers and a float
    torch: torch.Tensor
    cuda: torch.Tensor | None


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Raises:
        UsageError: the seed has more than 64 bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"--seed should have at most 64 bits, not be {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_states() -> RandomStates:
    """Return the state of every random generator; a GPU that is not in use is not started."""
    numpy_state = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }


def set_random_states(states: RandomStates) -> None:
    """Restore the states that :func:`get_random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"].cpu())


@contextlib.contextmanager
def keep_random_states() -> Iterator[None]:
    """Restore the state of every random generator at the end, those of all GPUs, too."""
    states = get_random_states()
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    has_gpu_states = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpu_states = torch.cuda.get_rng_state_all() if has_gpu_states else []
    try:
        yield
    finally:
        set_random_states({**states, "cuda": None})
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
        if has_gpu_states:
            torch.cuda.set_rng_state_all(gpu_states)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(torch.initial_seed())  # as if initialized with the seed of torch.manual_seed
