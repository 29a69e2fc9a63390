"""Types of ``torch.autograd.Function``, which torch does not declare."""

from typing import Protocol

from torch import Tensor


class AutogradContext(Protocol):
    """Context that carries values from the forward pass to the backward pass."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Save tensors as ``saved_tensors``."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Mark outputs that have no gradient."""
