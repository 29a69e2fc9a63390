"""Loader of any iterable of batches, which resumes within an epoch."""

from collections.abc import Iterable, Iterator, Sized

import torch
from torch.utils import _pytree as pytree

from fukami.data.loader import Loader, StateDict
from fukami.data.manifest import ManifestItem, hash_tensors
from fukami.engine.random_states import RandomStates, get_random_states, set_random_states


class ResumableLoader(Loader):
    """Loader of any iterable of batches.

    An interrupted epoch is restarted with its initial random states, and the batches already used are skipped.
    """

    def __init__(self, batches: Iterable[object]) -> None:
        self.batches = batches
        self.position = self.num_skip = 0
        self.start_states: RandomStates | None = None

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        if not isinstance(self.batches, Sized):
            raise TypeError("the training batches have no length")
        return len(self.batches)

    def __iter__(self) -> Iterator[object]:
        """Iterate over one epoch."""
        skip, self.num_skip = self.num_skip, 0
        current_states = get_random_states()
        if skip and self.start_states is not None:
            set_random_states(self.start_states)
        self.start_states = get_random_states()
        batches = iter(self.batches)
        for _ in range(skip):
            next(batches, None)  # there may be fewer batches than before
        if skip:
            set_random_states(current_states)
        self.position = skip
        for batch in batches:
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> StateDict:
        """Return the position in the epoch and the random states at its start."""
        return {"position": self.position, "start_states": self.start_states}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the position; the next epoch skips the batches before it."""
        self.num_skip, self.start_states = state["position"], state["start_states"]

    def iterate_items(self) -> Iterator[ManifestItem] | None:
        """Iterate over the only item, the tensors of a list or tuple of batches; other batches are not listed."""
        if not isinstance(self.batches, list | tuple) or not self.batches:
            return None
        tensors = [leaf for leaf in pytree.tree_leaves(self.batches) if isinstance(leaf, torch.Tensor)]
        return (ManifestItem("batches in memory", *hash_tensors(*part)) for part in (tensors,))


def wrap_batches(batches: Iterable[object]) -> Loader:
    """Return a loader unchanged, and any other iterable of batches as a loader."""
    return batches if isinstance(batches, Loader) else ResumableLoader(batches)
