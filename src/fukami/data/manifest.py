"""Manifest of a run: names, sizes and labels of its data, from which a resumed run detects changed data."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fukami.atomic_file import replace_file
from fukami.data.parsing import Json
from fukami.errors import Error, WriteError

if TYPE_CHECKING:
    from fukami.data.loader import Loader

MANIFEST_FILE = "manifest.jsonl"
MAX_NAMED = 5  # items named in a message
MOVED = "moved to another split"


class ManifestItem(NamedTuple):
    """Item of a dataset.

    Attributes:
        name: path of its file, or another name for messages.
        size: size of its file in bytes; -1 without a file.
        label: class, boxes, mask or captions as bytes; for an item in memory also its content.
    """

    name: str
    size: int
    label: bytes


class Manifest:
    """List of the training, validation and test data of a run.

    Files are not read: their sizes come from the operating system.

    Args:
        splits: data that the run is trained and evaluated on, by the name of the split.
        labels: class names.
    """

    def __init__(self, splits: Mapping[str, "Loader"], labels: Sequence[str]) -> None:
        self.labels = labels
        self.splits = {split: data for split, data in splits.items() if data.iterate_items()}

    def compute_digest(self) -> str | None:
        """Compute the hash of the list in hexadecimal digits; None if nothing is listed."""
        return self._hash(lambda line: None)

    def write(self, folder: Path) -> str | None:
        """Write the list into a run's folder for later comparison, and return its digest.

        A list that is already there is replaced when the new one is complete.

        Raises:
            WriteError: the file cannot be written; the old list is kept.
        """
        path = folder / MANIFEST_FILE
        if not self.splits:
            return None
        try:
            with replace_file(path) as file:
                return self._hash(file.write)
        except OSError as error:
            raise WriteError(path, error) from error

    def compare(self, folder: Path, digest: str | None) -> str:
        """Describe the differences from the list with this digest that :meth:`write` wrote into the folder."""
        path = folder / MANIFEST_FILE
        if digest is None or _hash_file(path) != digest:
            return f"the differences are unknown: {path} is missing or does not belong to the checkpoint"
        current: dict[str, list[list[Json]]] = defaultdict(list)
        for split, item in self._iterate_items():
            current[item.name].append(_describe_item(split, item))
        changes: dict[str, set[str]] = {kind: set() for kind in ("added", "removed", "changed", MOVED)}
        old_names: set[str] = set()
        header, *_ = self._iterate_lines(header=True)
        with path.open("rb") as file:
            same_classes = file.readline() == header
            for line in file:
                name, values = _parse_line(path, line)
                remaining = current.get(name, [])
                old_names.add(name)
                if values in remaining:
                    remaining.remove(values)
                elif match := next((entry for entry in remaining if entry[1:] == values[1:]), None):
                    remaining.remove(match)
                    changes[MOVED].add(name)
                else:
                    changes["changed" if name in current else "removed"].add(name)
        for name, remaining in current.items():
            if remaining and name not in changes["changed"]:
                changes["changed" if name in old_names else "added"].add(name)
        differences = [f"{len(names)} {kind} ({_quote_names(names)})" for kind, names in changes.items() if names]
        differences += [] if same_classes else ["different class names"]
        return "; ".join(differences) or "different order"

    def _iterate_items(self) -> Iterator[tuple[str, ManifestItem]]:
        """Iterate over the items with their split; names are relative to the common folder."""
        name_lists = [data.names for data in self.splits.values() if len(data.names)]
        extremes = [select(names) for names in name_lists for select in (min, max)]
        folder, slash, _ = os.path.commonprefix(extremes).rpartition(os.sep)  # noqa: RUF071  to the last separator
        for split, data in self.splits.items():
            for item in data.iterate_items() or ():
                yield split, item._replace(name=item.name.removeprefix(folder + slash))

    def _iterate_lines(self, *, header: bool = False) -> Iterator[bytes]:
        yield json.dumps({"classes": list(self.labels)}).encode() + b"\n"
        for split, item in () if header else self._iterate_items():
            yield json.dumps([item.name, *_describe_item(split, item)]).encode() + b"\n"

    def _hash(self, write: Callable[[bytes], object]) -> str | None:
        if not self.splits:
            return None
        hasher = hashlib.sha256()
        for line in self._iterate_lines():
            hasher.update(line)
            write(line)
        return hasher.hexdigest()


def file_size(name: str | os.PathLike[str]) -> int:
    """Return the size of a file in bytes, or -1 if it does not exist."""
    try:
        return os.stat(name).st_size  # noqa: PTH116  creating a Path takes ten times as long
    except (OSError, ValueError):
        return -1


def hash_tensors(*tensors: Tensor) -> tuple[int, bytes]:
    """Return the size of tensors in bytes, and a hash of their content."""
    hasher = hashlib.blake2b(digest_size=16)
    size = 0
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        hasher.update(f"{tuple(array.shape)} {array.dtype}".encode())
        if array.numel():
            hasher.update(array.reshape(-1).view(torch.uint8).numpy().data)
        size += array.numel() * array.element_size()
    return size, hasher.digest()


def _describe_item(split: str, item: ManifestItem) -> list[Json]:
    return [split, item.size, hashlib.blake2b(item.label, digest_size=8).hexdigest()]


def _parse_line(path: Path, line: bytes) -> tuple[str, list[Json]]:
    """Parse one line of a manifest: a name and values.

    Raises:
        Error: the line is invalid although the digest matches, so the file is malicious.
    """
    try:
        values = json.loads(line)
        if isinstance(values, list) and values and isinstance(values[0], str):
            return values[0], values[1:]
    except (ValueError, RecursionError):
        pass
    raise Error(f"{path} is corrupted: it has an invalid line; the run cannot be resumed with changed data")


def _hash_file(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _quote_names(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(map(repr, first[:MAX_NAMED])) + (", ..." if len(first) > MAX_NAMED else "")
