"""Sharded datasets: tar files of samples in a folder or at a URL, and the index of their content."""

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from fukami.atomic_file import replace_file
from fukami.data import archives, tar
from fukami.data import remote as data_remote
from fukami.data.files import walk_images
from fukami.data.locations import get_cache_folder
from fukami.data.parsing import Json, exists, is_file, is_folder, parse_json, to_text
from fukami.data.splits import SPLIT_NAMES, SPLITS, Split
from fukami.errors import Error, UsageError
from fukami.progress import track

logger = logging.getLogger(__name__)
INDEX_FILE = "index.json"
COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
UNSAFE_NAME = re.compile(r"[\\\0]|^[A-Za-z]:")  # names that lead elsewhere on Windows
BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
SCAN_THREADS = 8  # shards scanned at a time
MAX_SHARDS = 1_000_000  # maximum number of shards of a pattern
MAX_INDEX_BYTES = 1 << 29  # ImageNet's index has 27 MB

IntArray = npt.NDArray[np.int64]


class ShardEntry(TypedDict):
    """Shard in an index: its size, and the class index and the byte range of each sample."""

    name: str
    bytes: int
    classes: list[int]
    starts: list[int]
    lengths: list[int]
    problems: NotRequired[list[str]]


class ShardIndex(TypedDict):
    """Index of shards: the class names, and the shards of each split."""

    labels: Sequence[str]
    train: list[ShardEntry]
    val: list[ShardEntry]
    test: list[ShardEntry]


@dataclass(frozen=True, eq=False)
class ShardSamples:
    """Samples in shards, in storage order.

    Args:
        shards: path or URL of each shard.
        shard_indices: ``(N,)`` index of the shard of each sample.
        sample_numbers: ``(N,)`` number of each sample in its shard, from 1.
        starts, lengths: ``(N,)`` byte range of each sample with its headers.
        problems: problems of the samples that are skipped.
    """

    shards: tuple[str, ...]
    shard_indices: IntArray
    sample_numbers: IntArray
    starts: IntArray
    lengths: IntArray
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shard_indices)

    def __getitem__(self, index: int) -> bytes:
        """Read the content of a sample's image file."""
        (block,) = self.read_blocks([index])
        return tar.extract_image(block, *self.locate(index))[1]

    def select(self, mask: npt.NDArray[np.bool_]) -> "ShardSamples":
        """Select the samples that are true in ``mask`` ``(N,)``."""
        columns = ("shard_indices", "sample_numbers", "starts", "lengths")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def locate(self, index: int) -> tuple[str, int]:
        """Return the name of a sample's shard, and its number in the shard."""
        return self.shards[self.shard_indices[index]].rpartition("/")[2], int(self.sample_numbers[index])

    @property
    def names(self) -> Sequence[str]:
        """Names of the samples for messages."""
        return _SampleNames(self)

    def read_blocks(self, indices: Iterable[int]) -> Iterator[bytes]:
        """Read the bytes of each sample, fewer where a shard is truncated; samples in file order are one stream.

        Raises:
            Error: a shard is missing, or a server does not respond.
        """
        stream, shard = None, -1
        try:
            for index in indices:
                if stream is None or self.shard_indices[index] != shard:
                    if stream is not None:
                        stream.close()
                    shard = int(self.shard_indices[index])
                    stream = data_remote.open_stream(self.shards[shard])
                yield stream.read(int(self.starts[index]), int(self.lengths[index]))
        finally:
            if stream is not None:
                stream.close()


class _SampleNames(Sequence[str]):
    """Sequence of names that are formatted on access: there may be many millions."""

    def __init__(self, samples: ShardSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def sizes(self) -> list[int]:
        """Size of each sample with its headers in bytes, from the index."""
        sizes: list[int] = self.samples.lengths.tolist()
        return sizes

    def __getitem__(self, index: Any) -> Any:
        shard, number = self.samples.locate(index)
        return f"{shard}, sample {number}"


ShardSplit = tuple[ShardSamples, IntArray]  # the samples, and the class index of each


def is_shard_spec(spec: str) -> bool:
    """Return whether a spec names shards: a URL, a pattern with braces, a folder of tar files, or a file of samples.

    A tar file has samples if its first members include an image and its class, as in ``1.jpg`` and ``1.cls``.

    A folder counts as shards if it has more tar files than images, at any depth, so a few files of the other kind do
    not change its type. An index counts as one tar file.
    """
    path = Path(spec)
    if data_remote.is_url(spec) or ("{" in spec and not exists(path)):
        return True
    if is_file(path):
        return _names_shards(spec) and archives.contains_samples(path)
    if not is_folder(path):
        return False
    names = [file.name for file in path.iterdir() if file.is_file()]
    packed = sum(name.endswith(".tar") or COMPRESSED_TAR.search(name) is not None for name in names) or int(
        INDEX_FILE in names
    )
    return packed > sum(1 for _ in itertools.islice(walk_images(path), packed))


def load_shards(spec: str) -> tuple[dict[Split, ShardSplit], tuple[str, ...]]:
    """Load the splits of shards that exist, and the class names.

    Args:
        spec: a folder of tar files, one tar file, a pattern such as ``path/train-{000000..000009}.tar``, also of URLs,
            or the URL of a folder with an ``index.json``.

    Raises:
        UsageError: the spec names no tar files.
        Error: a shard is missing, or the index is corrupted.
    """
    base, index = load_index(spec)
    all_shards = [shard for split in SPLITS for shard in index[split]]
    for shard in all_shards:
        location = locate_shard(base, shard["name"])
        if not data_remote.is_url(location) and not is_file(Path(location)):
            raise Error(
                f"the shard {location} is missing; {INDEX_FILE} lists it: copy it there, or write the index again"
            )
    for shard in all_shards:
        for problem in shard.get("problems", ()):
            logger.warning(f"{problem}; it is skipped")
    splits = {split: _build_split(base, index[split]) for split in SPLITS if index[split]}
    return splits, tuple(index["labels"])


def load_index(spec: str) -> tuple[str, ShardIndex]:
    """Load the base folder of the shards and the index, or build the index by scanning.

    Raises:
        UsageError, Error: as for :func:`load_shards`.
    """
    names_shards, base = _names_shards(spec), get_base_location(spec)
    names = [name.rpartition("/")[2] for name in expand_pattern(_use_slashes(spec))] if names_shards else []
    if data_remote.is_url(spec) and not data_remote.is_url(base):
        raise UsageError(
            f"{spec[:200]} is not a URL of shards; expected https://host/path/ or https://host/train-{{000..009}}.tar"
        )
    if any("{" in name for name in (base, *names)):
        raise UsageError(
            f"{spec} is not a pattern of shards; expected braces in the file's name: train-{{000..009}}.tar"
        )
    index = _read_index(base, required=not names and data_remote.is_url(spec))
    if index is not None and not names:
        return base, index
    if index is not None and set(names) <= {shard["name"] for split in SPLITS for shard in index[split]}:
        train, val, test = ([shard for shard in index[split] if shard["name"] in names] for split in SPLITS)
        return base, {"labels": index["labels"], "train": train, "val": val, "test": test}
    names = names or sorted(file.name for file in Path(base).iterdir() if file.suffix == ".tar")
    packed = [name for name in names or map(str, Path(base).iterdir()) if COMPRESSED_TAR.search(name)]
    if packed:
        raise UsageError(f"{packed[0]} is compressed, so random access is impossible; unpack it to a plain .tar")
    for location in (locate_shard(base, name) for name in names):  # check all before any work
        if not data_remote.is_url(location) and not is_file(Path(location)):
            raise Error(f"there is no shard {location[:200]}; check the pattern, or copy the shard there")
    logger.warning(
        f"{spec} has no {INDEX_FILE}: scanning {len(names)} shards; write one with `fukami shard {spec} --index`"
    )
    return base, build_index(base, names)


def get_base_location(spec: str) -> str:
    """Return the folder or URL that shard names are relative to; empty for the current folder."""
    spec = _use_slashes(spec)
    if not _names_shards(spec):
        return spec.rstrip("/") or spec[:1]
    folder, slash, _ = spec.rpartition("/")
    return folder or slash


def _use_slashes(spec: str) -> str:
    r"""Replace the ``\`` of a path of Windows."""
    return spec if data_remote.is_url(spec) else spec.replace(os.sep, "/")


def _names_shards(spec: str) -> bool:
    """Return whether a spec names individual shards, not their folder."""
    return "{" in spec or spec.endswith(".tar") or COMPRESSED_TAR.search(spec) is not None


def build_index(base: str, names: Sequence[str]) -> ShardIndex:
    """Build the index of shards by scanning them; file names determine the splits, as folder names do.

    Raises:
        Error: a shard is missing, or no shard has a sample.
    """
    with ThreadPoolExecutor(SCAN_THREADS) as threads:
        scanned = threads.map(lambda name: tar.scan_shard(locate_shard(base, name)), names)
        scans = list(track(scanned, "indexing shards", len(names)))
    class_names = {label for scan in scans for label in scan.classes}
    numbered = all(map(str.isdecimal, class_names))
    labels = sorted(class_names, key=lambda label: (int(label) if numbered else 0, label))
    if not labels:
        problems = "; ".join(problem for scan in scans for problem in scan.problems[:1])
        raise Error(f"{base} has no classified image in its shards; {problems or 'they are empty'}")
    class_indices = {label: i for i, label in enumerate(labels)}
    index: ShardIndex = {"labels": labels, "train": [], "val": [], "test": []}
    for name, scan in zip(names, scans, strict=True):
        words = re.split("[^a-z]+", name.lower())
        split: Split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")
        shard: ShardEntry = {
            "name": name, "bytes": scan.size, "classes": [class_indices[label] for label in scan.classes],
            "starts": scan.starts, "lengths": scan.lengths,
        }  # fmt: skip
        if scan.problems:
            shard["problems"] = scan.problems
        index[split].append(shard)
    return index


def save_index(index: ShardIndex, path: Path) -> None:
    """Write the index to a file atomically."""
    with replace_file(path) as file:
        file.write(json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode())


def get_index_cache_path(base: str) -> Path:
    """Return the path in the cache folder of the index of shards whose own folder is not writable.

    The base is part of the spec; the file does not contain the location of the shards.
    """
    location = base if data_remote.is_url(base) else str(Path(base).resolve())
    return get_cache_folder() / "indexes" / f"{hashlib.sha256(location.encode()).hexdigest()[:24]}.json"


def locate_shard(base: str, name: str) -> str:
    """Return the path or URL of a shard below the folder of the shards.

    Raises:
        Error: the name leads out of the folder.
    """
    path = PurePosixPath(name)
    if not name or data_remote.is_url(name) or path.is_absolute() or ".." in path.parts or UNSAFE_NAME.search(name):
        raise Error(
            f"the shard {name[:200]!r} is not below {base or 'this folder'}, where its {INDEX_FILE} is; copy the "
            f"{INDEX_FILE} next to the shards, and use that folder"
        )
    return f"{base.rstrip('/')}/{name}" if base else name


def expand_pattern(pattern: str) -> list[str]:
    """Expand a pattern to all names: ``{000..012}`` counts, ``{a,b}`` lists.

    Raises:
        UsageError: the pattern matches no name, or more than a million.
    """
    names, remainder = [""], pattern
    while match := BRACES.search(remainder):
        first, last, listed = match.groups()
        if listed is None:
            numbers = range(int(first), int(last) + 1)
            count = int(last) + 1 - int(first)
        else:
            count = listed.count(",") + 1
        if count < 1:
            raise UsageError(f"{pattern[:200]} matches no shard; write the smaller number of a range first")
        if count * len(names) > MAX_SHARDS:
            raise UsageError(f"{pattern[:200]} matches more than {MAX_SHARDS:,} shards; use a shorter range")
        words = [f"{number:0{len(first)}}" for number in numbers] if listed is None else listed.split(",")
        names = [name + remainder[: match.start()] + word for name in names for word in words]
        remainder = remainder[match.end() :]
    return [name + remainder for name in names]


def _read_index(base: str, required: bool) -> ShardIndex | None:
    """Read the index of a folder, or return None if it is missing and not required."""
    cached = get_index_cache_path(base)
    location = str(cached) if is_file(cached) else f"{base}/{INDEX_FILE}" if base else INDEX_FILE
    if not data_remote.is_url(location) and not is_file(Path(location)):
        return None
    stream = data_remote.open_stream(location)
    try:
        text = stream.read(0, MAX_INDEX_BYTES + 1)
    except data_remote.NotFoundError as error:
        if required:
            raise Error(
                f"{error}. Specify shards without an {INDEX_FILE} by a pattern: {base}/train-{{000..009}}.tar"
            ) from None
        return None
    finally:
        stream.close()
    try:
        if len(text) > MAX_INDEX_BYTES:
            raise ValueError(f"it has more than {MAX_INDEX_BYTES:,} bytes")
        index: ShardIndex = parse_json(text)
        check_index(index)
    except (ValueError, KeyError, TypeError) as error:
        raise Error(
            f"{location} is not an index of shards ({str(error)[:300]}); delete it, or write it again with fukami shard"
        ) from None
    if location == str(cached):
        logger.warning(f"{base} is read with the index {cached}; delete the index if the shards have changed")
    return index


def check_index(index: Any) -> None:
    """Check that an index of shards is valid.

    Raises:
        ValueError, KeyError, TypeError: the index is invalid; the message gives the reason.
    """
    labels = index["labels"]
    if not (isinstance(labels, list) and all(isinstance(label, str) and label == to_text(label) for label in labels)):
        raise TypeError("its labels are not a list of strings")
    for shard in (shard for split in SPLITS for shard in index[split]):
        name, problems = shard["name"], shard.get("problems", [])
        if not isinstance(name, str) or name != to_text(name):
            raise TypeError("a shard has no name")
        if not (isinstance(problems, list) and all(isinstance(problem, str) for problem in problems)):
            raise TypeError(f"the problems of {name} are not strings")
        size = _check_numbers(name, [shard["bytes"]], 1 << 60)[0]
        starts, lengths, classes = (
            _check_numbers(name, shard[column], maximum)
            for column, maximum in (("starts", size), ("lengths", tar.MAX_SAMPLE_BYTES), ("classes", len(labels) - 1))
        )
        if not len(classes) == len(starts) == len(lengths):
            raise ValueError(f"{name} has lists of different lengths")
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        if any(start < end for start, end in zip(starts[1:], ends, strict=False)):
            raise ValueError(f"{name} has samples that overlap")
        if any(start + length > size + tar.BLOCK_BYTES for start, length in zip(starts, lengths, strict=True)):
            raise ValueError(f"{name} has a sample that ends after its {size:,} bytes")


def _check_numbers(name: str, values: Json, maximum: int) -> list[int]:
    """Check that a value is a list of integers from 0 to ``maximum``, and return it."""
    if not (isinstance(values, list) and all(type(value) is int and 0 <= value <= maximum for value in values)):
        raise ValueError(f"{name} has a value that is not an integer between 0 and {maximum:,}")
    return values


def _build_split(base: str, shards: Sequence[ShardEntry]) -> ShardSplit:
    counts = [len(shard["classes"]) for shard in shards]
    starts, lengths, classes = (
        np.array(list(itertools.chain.from_iterable(lists)), np.int64)
        for lists in (
            [shard["starts"] for shard in shards],
            [shard["lengths"] for shard in shards],
            [shard["classes"] for shard in shards],
        )
    )
    numbers = np.concatenate([np.arange(1, count + 1) for count in counts] or [np.zeros(0, np.int64)])
    locations = tuple(locate_shard(base, shard["name"]) for shard in shards)
    problems = tuple(problem for shard in shards for problem in shard.get("problems", ()))
    return ShardSamples(
        locations, np.repeat(np.arange(len(shards)), counts), numbers, starts, lengths, problems
    ), classes
