"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Keep what goes into the blocks of the network alone; what lies inside them is computed twice.

    A block is a residual block, an inception module or the like, or what lies between two poolings in a chain of
    layers. The result is the same, bit for bit.
    """
    for block in list(_find_blocks(model)) or [model]:
        parts = _split_at_poolings(block) if isinstance(block, nn.Sequential) else [block]
        block.forward = partial(_run_checkpointed, [(part.forward, part) for part in parts])


def _find_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a module that have at least two convolutions: chains of layers, and the smallest of other kinds."""
    for child in module.children():
        if sum(isinstance(part, nn.Conv2d) for part in child.modules()) >= 2:
            inside = list(_find_blocks(child))
            if not isinstance(child, nn.Sequential):
                inside = [block for block in inside if not isinstance(block, nn.Sequential)]
            yield from inside or [child]


def _split_at_poolings(chain: nn.Sequential) -> list[nn.Module]:
    """Parts that begin with the first weights after a pooling: a ReLU before them may change its input in place."""
    parts: list[list[nn.Module]] = [[]]
    pooled = False
    for layer in chain:
        if pooled and next(layer.parameters(), None) is not None:
            parts.append([])
            pooled = False
        parts[-1].append(layer)
        pooled |= isinstance(layer, nn.MaxPool2d)
    return [nn.Sequential(*part) for part in parts]


def _run_checkpointed(parts: Sequence[tuple[Any, nn.Module]], x: Tensor) -> Tensor:
    for forward, part in parts:
        x = checkpoint(forward, x, use_reentrant=False, context_fn=partial(_create_contexts, part))
    return x


def _create_contexts(part: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first computation and of the second."""
    return nullcontext(), _freeze_running_stats(part)


@contextmanager
def _freeze_running_stats(part: nn.Module) -> Iterator[None]:
    """The running statistics of batch normalisation, which have seen the batch already, stay as they are."""
    norms: list[Any] = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1
