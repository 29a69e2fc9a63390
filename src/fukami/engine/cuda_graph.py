"""Whole steps as CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


class GraphedCallable:
    """A function of a tree of tensors recorded as one CUDA graph: a replay costs one launch instead of one per kernel.

    What it returns lies in the same memory each time. The first calls run as they are (they are real steps), so that
    lazily made optimizer state exists before the recording; inputs of another shape run as they are, too.
    """

    def __init__(self, function: Callable[[Any], Any], num_warmup: int = 3) -> None:
        self.function, self.num_warmup = function, num_warmup
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.shapes: list[torch.Size] = []

    def __call__(self, inputs: Any) -> Any:
        """The function's outputs, which the next call overwrites once it is recorded."""
        tensors = pytree.tree_leaves(inputs)
        if self.num_warmup > 0 or (self.graph and [t.shape for t in tensors] != self.shapes):
            self.num_warmup -= 1
            return self._run_on_side_stream(inputs)
        if self.graph is None:
            self.inputs = pytree.tree_map(torch.clone, inputs)
            self.shapes = [t.shape for t in tensors]
            self.graph = torch.cuda.CUDAGraph()
            # a checkpoint may be on its way to the disk in another thread, which must not end the recording
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.outputs = self.function(self.inputs)
        torch._foreach_copy_(pytree.tree_leaves(self.inputs), tensors)
        self.graph.replay()
        return self.outputs

    def _run_on_side_stream(self, inputs: Any) -> Any:
        """Run on another stream than the default one, as a later capture demands."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs
