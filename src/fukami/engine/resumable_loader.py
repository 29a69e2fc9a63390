"""Loader of any iterable of batches, which resumes within an epoch."""

from collections.abc import Iterable, Iterator, Sized

import torch
from torch.utils import _pytree as pytree

from fukami.data.loader import Loader
from fukami.data.manifest import ManifestItem, hash_tensors
from fukami.errors import UsageError
from fukami.progress import format_count


class ResumableLoader(Loader):
    """Loader of any iterable of batches."""

    def __init__(self, batches: Iterable[object]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        if not isinstance(self.batches, Sized):
            raise UsageError(
                "the training batches should have a length, the number of batches per epoch; "
                f"{type(self.batches).__name__} has none: use a list, a DataLoader or a subclass of fukami.Loader"
            )
        return len(self.batches)

    def __iter__(self) -> Iterator[object]:
        """Iterate over the batches of one epoch."""
        return iter(self.batches)

    def describe_size(self) -> str:
        """Describe the number of batches, or of what else the iterable counts; empty without a length.

        The attribute ``noun`` names what it counts.
        """
        try:
            size = len(self.batches)  # type: ignore[arg-type]
        except TypeError:
            return ""
        return format_count(size, getattr(self.batches, "noun", "batch")) if size > 1 else ""

    def iterate_items(self) -> Iterator[ManifestItem] | None:
        """Iterate over the only item, the tensors of a list or tuple of batches; other batches are not listed."""
        if not isinstance(self.batches, list | tuple) or not self.batches:
            return None
        tensors = [leaf for leaf in pytree.tree_leaves(self.batches) if isinstance(leaf, torch.Tensor)]
        return (ManifestItem("batches in memory", *hash_tensors(*part)) for part in (tensors,))


def wrap_batches(batches: Iterable[object]) -> Loader:
    """Return a loader unchanged, and any other iterable of batches as a loader.

    Raises:
        UsageError: the batches have a method ``setup``, which only that of a loader is called.
    """
    if isinstance(batches, Loader):
        return batches
    if hasattr(batches, "setup"):
        raise UsageError(f"{type(batches).__name__} has a method setup, but is no loader: derive it from fukami.Loader")
    return ResumableLoader(batches)
