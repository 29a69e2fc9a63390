"""The manifest of a run: names, sizes and labels of its data, by which a resumed run notices that they have changed."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fukami.errors import Error, WriteError

MANIFEST_FILE = "manifest.jsonl"
MAX_NAMED = 5  # items that a message names
MOVED = "moved between training and validation"


class ManifestItem(NamedTuple):
    """An item of a dataset.

    Attributes:
        name: the path of its file, or what else messages call it.
        size: bytes of its file; -1 where it has none.
        label: its class, boxes, mask or sentences as bytes; of an item in memory also its content.
    """

    name: str
    size: int
    label: bytes


class Manifest:
    """What a run is trained and evaluated on.

    Loaders that have a method ``list_items``, which yields an :class:`Item` for everything in them in order, and the
    paths or other ``names`` of these, are listed so; of tensors in a list or tuple there is one item. Anything else,
    such as a game, is not listed. Files are not read: their sizes are what the operating system says.

    Args:
        train, val: what the run is trained and evaluated on.
        labels: names of the classes.
    """

    def __init__(self, train: Any, val: Any, labels: Sequence[str]) -> None:
        self.labels = labels
        self.splits = {part: data for part, data in (("train", train), ("val", val)) if _is_listed(data)}

    def compute_digest(self) -> str | None:
        """Hash of the list in hexadecimal digits, or None where nothing is listed."""
        return self._hash(lambda line: None)

    def write(self, folder: Path) -> str | None:
        """Write the list into a run's folder, so that a difference can be named later; returns the digest.

        Raises:
            WriteError: it cannot be written.
        """
        path = folder / MANIFEST_FILE
        if not self.splits:
            return None
        try:
            with path.open("wb") as file:
                return self._hash(file.write)
        except OSError as error:
            raise WriteError(path, error) from error

    def compare(self, folder: Path, digest: str | None) -> str:
        """What is otherwise than in the list of this digest that :meth:`write` left in the folder, in words."""
        path = folder / MANIFEST_FILE
        if digest is None or _hash_file(path) != digest:
            return f"it cannot be told which: {path} is missing, or is not the list that belongs to the checkpoint"
        now: dict[str, list[list[Any]]] = defaultdict(list)
        for part, item in self._iterate_items():
            now[item.name].append(_describe_item(part, item))
        changes: dict[str, set[str]] = {kind: set() for kind in ("added", "removed", "changed", MOVED)}
        seen: set[str] = set()
        classes, *_ = self._iterate_lines(header=True)
        with path.open("rb") as file:
            same_classes = file.readline() == classes
            for line in file:
                name, *values = _parse_line(path, line)
                left = now.get(name, [])
                seen.add(name)
                if values in left:
                    left.remove(values)
                elif other := next((each for each in left if each[1:] == values[1:]), None):
                    left.remove(other)
                    changes[MOVED].add(name)
                else:
                    changes["changed" if name in now else "removed"].add(name)
        for name, left in now.items():
            if left and name not in changes["changed"]:
                changes["changed" if name in seen else "added"].add(name)
        said = [f"{len(names)} {kind} ({_quote_names(names)})" for kind, names in changes.items() if names]
        said += [] if same_classes else ["other names of classes"]
        return "; ".join(said) or "another order"

    def _iterate_items(self) -> Iterator[tuple[str, ManifestItem]]:
        """The items with the name of their part, by paths relative to the folder that all lie in."""
        every = [data.names for data in self.splits.values() if hasattr(data, "list_items") and len(data.names)]
        ends = [end(names) for names in every for end in (min, max)]
        folder, slash, _ = os.path.commonprefix(ends).rpartition(os.sep)  # noqa: RUF071  to the last separator
        for part, data in self.splits.items():
            for item in data.list_items() if hasattr(data, "list_items") else [_describe_tensors(data)]:
                yield part, item._replace(name=item.name.removeprefix(folder + slash))

    def _iterate_lines(self, *, header: bool = False) -> Iterator[bytes]:
        yield json.dumps({"classes": list(self.labels)}).encode() + b"\n"
        for part, item in () if header else self._iterate_items():
            yield json.dumps([item.name, *_describe_item(part, item)]).encode() + b"\n"

    def _hash(self, write: Callable[[bytes], object]) -> str | None:
        if not self.splits:
            return None
        found = hashlib.sha256()
        for line in self._iterate_lines():
            found.update(line)
            write(line)
        return found.hexdigest()


def file_size(name: str | os.PathLike[str]) -> int:
    """Bytes of a file, or -1 where there is none of this name."""
    try:
        return os.stat(name).st_size  # noqa: PTH116  a Path takes ten times as long to make
    except (OSError, ValueError):
        return -1


def hash_tensors(*tensors: Tensor) -> tuple[int, bytes]:
    """Bytes of tensors, and a hash of what they hold."""
    found = hashlib.blake2b(digest_size=16)
    size = 0
    for tensor in tensors:
        whole = tensor.detach().cpu().contiguous()
        found.update(f"{tuple(whole.shape)} {whole.dtype}".encode())
        if whole.numel():
            found.update(whole.reshape(-1).view(torch.uint8).numpy().data)
        size += whole.numel() * whole.element_size()
    return size, found.digest()


def _describe_item(part: str, item: ManifestItem) -> list[Any]:
    return [part, item.size, hashlib.blake2b(item.label, digest_size=8).hexdigest()]


def _is_listed(data: Any) -> bool:
    return hasattr(data, "list_items") or (isinstance(data, list | tuple) and len(data) > 0)


def _parse_line(path: Path, line: bytes) -> list[Any]:
    """A line of a list: a name and values.

    Raises:
        Error: it is none, although the digest is right: nobody but an enemy writes it so.
    """
    try:
        found = json.loads(line)
        if isinstance(found, list) and found and isinstance(found[0], str):
            return found
    except (ValueError, RecursionError):
        pass
    raise Error(f"{path} is damaged: it has a line that is no item; the run cannot be resumed with other data")


def _describe_tensors(data: Any) -> ManifestItem:
    tensors = [leaf for leaf in pytree.tree_leaves(data) if isinstance(leaf, Tensor)]
    return ManifestItem("batches in memory", *hash_tensors(*tensors))


def _hash_file(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _quote_names(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(map(repr, first[:MAX_NAMED])) + (", ..." if len(first) > MAX_NAMED else "")
