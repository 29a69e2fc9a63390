"""Activation checkpointing: recompute activations in the backward pass instead of storing them (Chen et al. 2016)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Store only the inputs of the model's blocks and recompute the activations inside them.

    A block is a residual block, an Inception module or similar, or the layers between two poolings of a sequential
    model. The results are bitwise identical.
    """
    for block in list(_find_blocks(model)) or [model]:
        segments = _split_at_poolings(block) if isinstance(block, nn.Sequential) else [block]
        block.forward = partial(_run_checkpointed, [(segment.forward, segment) for segment in segments])


def _find_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks with at least two convolutions: sequential chains, and the innermost modules of other types."""
    for child in module.children():
        if sum(isinstance(layer, nn.Conv2d) for layer in child.modules()) >= 2:
            inner_blocks = list(_find_blocks(child))
            if not isinstance(child, nn.Sequential):
                inner_blocks = [block for block in inner_blocks if not isinstance(block, nn.Sequential)]
            yield from inner_blocks or [child]


def _split_at_poolings(chain: nn.Sequential) -> list[nn.Module]:
    """Split a chain before the first layer with weights after each pooling.

    A ReLU before that layer stays in the earlier segment, because it may modify its input in place.
    """
    segments: list[list[nn.Module]] = [[]]
    pooled = False
    for layer in chain:
        if pooled and next(layer.parameters(), None) is not None:
            segments.append([])
            pooled = False
        segments[-1].append(layer)
        pooled |= isinstance(layer, nn.MaxPool2d)
    return [nn.Sequential(*segment) for segment in segments]


def _run_checkpointed(segments: Sequence[tuple[Callable[[Tensor], Tensor], nn.Module]], x: Tensor) -> Tensor:
    for forward, segment in segments:
        x = checkpoint(forward, x, use_reentrant=False, context_fn=partial(_create_contexts, segment))
    return x


def _create_contexts(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of the recomputation."""
    return nullcontext(), _freeze_running_stats(segment)


@contextmanager
def _freeze_running_stats(segment: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch normalization, which the forward pass has already updated."""
    norms = [module for module in segment.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked -= 1
