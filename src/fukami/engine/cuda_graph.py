"""Training steps captured as CUDA graphs."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch.utils import _pytree as pytree

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")
NUM_WARMUP = 3  # calls before the capture


class GraphedCallable(Generic[Inputs, Outputs]):
    """Function of a tree of tensors captured as one CUDA graph: a replay costs one launch instead of one per kernel.

    The outputs occupy the same memory at each replay. The first ``NUM_WARMUP`` calls run without the graph (they are
    real steps), so that the optimizer creates its state before the capture. Inputs of another shape do so, too.
    """

    def __init__(self, function: Callable[[Inputs], Outputs]) -> None:
        self.function, self.num_warmup = function, NUM_WARMUP
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.shapes: list[torch.Size] = []

    def __call__(self, inputs: Inputs) -> Outputs:
        """Return the function's outputs, which the next replay overwrites."""
        tensors = pytree.tree_leaves(inputs)
        if self.num_warmup > 0 or (self.graph and [t.shape for t in tensors] != self.shapes):
            self.num_warmup -= 1
            return self._run_on_side_stream(inputs)
        if self.graph is None:
            self.inputs = pytree.tree_map(torch.clone, inputs)
            self.shapes = [t.shape for t in tensors]
            self.graph = torch.cuda.CUDAGraph()
            # another thread may be writing a checkpoint, which must not invalidate the capture
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.outputs = self.function(self.inputs)
        torch._foreach_copy_(pytree.tree_leaves(self.inputs), tensors)
        self.graph.replay()
        return self.outputs

    def _run_on_side_stream(self, inputs: Inputs) -> Outputs:
        """Run the function on a side stream, which a later capture requires."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs
