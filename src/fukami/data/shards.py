"""Data sets in shards: tar files of samples in a folder or on the web, and the index that tells what is in them."""

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from fukami.data import image_folder, tar
from fukami.data import remote as data_remote
from fukami.data.locations import get_cache_folder
from fukami.data.parsing import exists, is_file, is_folder, parse_json, to_text
from fukami.errors import Error, UsageError

logger = logging.getLogger(__name__)
INDEX_FILE = "index.json"
COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
UNSAFE_NAME = re.compile(r"[\\\0]|^[A-Za-z]:")  # in a name that would lead elsewhere on Windows
BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
SCAN_THREADS = 8  # shards that are scanned at a time
MAX_SHARDS = 1_000_000  # that a pattern may name
MAX_INDEX_BYTES = 1 << 29  # bytes; 27 MB are ImageNet's
MAX_SAMPLE_BYTES = 1 << 28  # bytes

IntArray = npt.NDArray[np.int64]
ShardIndex = dict[
    str, Any
]  # "labels", and of "train" and "test" each shard: "name", "bytes", "classes", "starts", "lengths"


@dataclass(frozen=True, eq=False)
class ShardSamples:
    """Samples in shards, in the order in which they lie there.

    Args:
        shards: path or URL of each shard.
        shard_indices: ``(N,)`` the shard that a sample is in.
        sample_numbers: ``(N,)`` which one it is there, from 1.
        starts, lengths: ``(N,)`` the bytes of it and its headers.
        problems: what is known to be wrong with other samples, which are left out.
    """

    shards: tuple[str, ...]
    shard_indices: IntArray
    sample_numbers: IntArray
    starts: IntArray
    lengths: IntArray
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shard_indices)

    def __getitem__(self, number: int) -> bytes:
        """What the file of a sample's image holds."""
        (block,) = self.read_blocks([number])
        return tar.extract_image(block, *self.locate(number))[1]

    def select(self, mask: npt.NDArray[np.bool_]) -> "ShardSamples":
        """Those that are marked in ``mask`` ``(N,)``."""
        columns = ("shard_indices", "sample_numbers", "starts", "lengths")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def locate(self, number: int) -> tuple[str, int]:
        """The name of a sample's shard, and its number there."""
        return self.shards[self.shard_indices[number]].rpartition("/")[2], int(self.sample_numbers[number])

    @property
    def names(self) -> Sequence[str]:
        """What messages call the samples."""
        return _SampleNames(self)

    def read_blocks(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The bytes of each of the samples, fewer where a shard is cut short; in file order, they are one stream.

        Raises:
            Error: a shard is missing, or a server does not answer.
        """
        stream, shard = None, -1
        try:
            for number in numbers:
                if stream is None or self.shard_indices[number] != shard:
                    if stream is not None:
                        stream.close()
                    shard = int(self.shard_indices[number])
                    stream = data_remote.open_stream(self.shards[shard])
                yield stream.read(int(self.starts[number]), int(self.lengths[number]))
        finally:
            if stream is not None:
                stream.close()


class _SampleNames(Sequence[str]):
    """Names that are put together when they are asked for: there may be many millions."""

    def __init__(self, samples: ShardSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each sample and its headers, by the index."""
        return self.samples.lengths.tolist()  # type: ignore[no-any-return]

    def __getitem__(self, number: Any) -> Any:
        shard, place = self.samples.locate(number)
        return f"{shard}, sample {place}"


ShardSplit = tuple[ShardSamples, IntArray]  # the samples, and the number of the class of each


def is_shard_spec(spec: str) -> bool:
    """Whether this names shards: a URL, a pattern with braces, or a folder of tar files.

    A folder is one of tar files where it has more of them than images, at any depth: neither does a tar file among
    images make shards of them, nor an image among shards images. One with an index and no image is one, too.
    """
    path = Path(spec)
    if data_remote.is_url(spec) or ("{" in spec and not exists(path)):
        return True
    if not is_folder(path):
        return False
    names = [file.name for file in path.iterdir() if file.is_file()]
    packed = sum(name.endswith(".tar") or COMPRESSED_TAR.search(name) is not None for name in names) or int(
        INDEX_FILE in names
    )
    return packed > sum(1 for _ in itertools.islice(image_folder.walk_images(path), packed))


def load_shards(spec: str) -> tuple[ShardSplit, ShardSplit | None, tuple[str, ...]]:
    """The training part and the test part (None where there is none of its own) of shards, and the class names.

    Args:
        spec: a folder of tar files, a pattern such as ``path/train-{000000..000009}.tar``, also of URLs, or the URL of
            a folder with an ``index.json``.

    Raises:
        UsageError: the spec names no tar files.
        Error: a shard is missing, or the index is damaged.
    """
    base, index = load_index(spec)
    for shard in (*index["train"], *index["test"]):
        where = locate_shard(base, shard["name"])
        if not data_remote.is_url(where) and not is_file(Path(where)):
            raise Error(f"the shard {where} is missing; {INDEX_FILE} lists it: copy it there, or write the index anew")
    for shard in (*index["train"], *index["test"]):
        for problem in shard.get("problems", ()):
            logger.warning(f"{problem}; it is left out")
    train, test = (_build_split(base, index[name]) for name in ("train", "test"))
    return train, test if index["test"] else None, tuple(index["labels"])


def load_index(spec: str) -> tuple[str, ShardIndex]:
    """The folder that the shards' names are relative to, and the index: the one that is there, or a new one.

    Raises:
        UsageError, Error: as for :func:`read`.
    """
    single, base = _names_shards(spec), get_base_location(spec)
    names = [name.rpartition("/")[2] for name in expand_pattern(spec)] if single else []
    if data_remote.is_url(spec) and not data_remote.is_url(base):
        raise UsageError(
            f"{spec[:200]} is no address; expected https://host/path/ or https://host/train-{{000..009}}.tar"
        )
    if any("{" in name for name in (base, *names)):
        raise UsageError(f"{spec} is no pattern of shards; expected braces in the file's name: train-{{000..009}}.tar")
    there = _read_index(base, required=not names and data_remote.is_url(spec))
    if there is not None and not names:
        return base, there
    if there is not None and set(names) <= {shard["name"] for part in ("train", "test") for shard in there[part]}:
        parts = {p: [shard for shard in there[p] if shard["name"] in names] for p in ("train", "test")}
        return base, {**there, **parts}
    names = names or sorted(file.name for file in Path(base).iterdir() if file.suffix == ".tar")
    packed = [name for name in names or map(str, Path(base).iterdir()) if COMPRESSED_TAR.search(name)]
    if packed:
        raise UsageError(f"{packed[0]} is compressed, so it cannot be read from its middle; unpack it to a plain .tar")
    for where in (locate_shard(base, name) for name in names):  # before anything is done for a million of them
        if not data_remote.is_url(where) and not is_file(Path(where)):
            raise Error(f"there is no shard {where[:200]}; check the pattern, or copy the shard there")
    logger.warning(
        f"{spec} has no {INDEX_FILE}: {len(names)} shards are scanned; `fukami shard {spec} --index` would write one"
    )
    return base, build_index(base, names)


def get_base_location(spec: str) -> str:
    """Folder or URL that the names of shards are relative to; empty for the current folder."""
    return spec.rpartition("/")[0] if _names_shards(spec) else spec.rstrip("/")


def _names_shards(spec: str) -> bool:
    """Whether a spec names shards one by one, and not their folder."""
    return "{" in spec or spec.endswith(".tar") or COMPRESSED_TAR.search(spec) is not None


def build_index(base: str, names: Sequence[str]) -> ShardIndex:
    """The index of shards that others wrote; the parts are told by the names of the files, as of folders.

    Raises:
        Error: a shard is missing, or there is no sample in any.
    """
    with ThreadPoolExecutor(SCAN_THREADS) as threads:
        found = list(threads.map(lambda name: tar.scan_shard(locate_shard(base, name)), names))
    seen = {label for contents in found for label in contents.classes}
    numbered = all(map(str.isdecimal, seen))
    labels = sorted(seen, key=lambda label: (int(label) if numbered else 0, label))
    if not labels:
        problems = "; ".join(problem for contents in found for problem in contents.problems[:1])
        raise Error(f"{base} has no classified image in its shards; {problems or 'they are empty'}")
    class_of = {label: number for number, label in enumerate(labels)}
    index: ShardIndex = {"labels": labels, "train": [], "test": []}
    for name, contents in zip(names, found, strict=True):
        words = re.split("[^a-z]+", name.lower())
        index["test" if set(words) & set(image_folder.TEST_NAMES) else "train"].append({
            "name": name, "bytes": contents.size, "classes": [class_of[label] for label in contents.classes],
            "starts": contents.starts, "lengths": contents.lengths, "problems": contents.problems,
        })  # fmt: skip
    return index


def save_index(index: ShardIndex, path: Path) -> None:
    """Write the index to a file, at once or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def get_index_cache_path(base: str) -> Path:
    """File in the cache folder of the index of shards to which none can be added where they are.

    The user gives the base; nothing in the file says where the shards are.
    """
    whole = base if data_remote.is_url(base) else str(Path(base).resolve())
    return get_cache_folder() / "indexes" / f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}.json"


def locate_shard(base: str, name: str) -> str:
    """Path or URL of a shard, which is below the folder that the user named.

    Raises:
        Error: its name leads elsewhere.
    """
    path = PurePosixPath(name)
    if not name or data_remote.is_url(name) or path.is_absolute() or ".." in path.parts or UNSAFE_NAME.search(name):
        raise Error(
            f"the shard {name[:200]!r} is not below {base or 'this folder'}, where its {INDEX_FILE} is; copy the "
            f"{INDEX_FILE} beside the shards, and give that folder"
        )
    return f"{base}/{name}" if base else name


def expand_pattern(pattern: str) -> list[str]:
    """All names of a pattern: ``{000..012}`` counts, ``{a,b}`` lists.

    Raises:
        UsageError: they are more than a million.
    """
    names, rest = [""], pattern
    while found := BRACES.search(rest):
        first, last, listed = found.groups()
        if listed is None:
            numbers = range(int(first), int(last) + 1)
            count = int(last) + 1 - int(first)
        else:
            count = listed.count(",") + 1
        if count * len(names) > MAX_SHARDS:
            raise UsageError(f"{pattern[:200]} names more than {MAX_SHARDS:,} shards; give a shorter range")
        words = [f"{number:0{len(first)}}" for number in numbers] if listed is None else listed.split(",")
        names = [name + rest[: found.start()] + word for name in names for word in words]
        rest = rest[found.end() :]
    return [name + rest for name in names]


def _read_index(base: str, required: bool) -> ShardIndex | None:
    """The index in a folder, None where there is none and it may be missing."""
    kept = get_index_cache_path(base)
    where = str(kept) if is_file(kept) else f"{base}/{INDEX_FILE}" if base else INDEX_FILE
    if not data_remote.is_url(where) and not is_file(Path(where)):
        return None
    stream = data_remote.open_stream(where)
    try:
        text = stream.read(0, MAX_INDEX_BYTES + 1)
    except data_remote.NotFoundError as error:
        if required:
            raise Error(
                f"{error} Shards without an {INDEX_FILE} are given by a pattern: {base}/train-{{000..009}}.tar"
            ) from None
        return None
    finally:
        stream.close()
    try:
        if len(text) > MAX_INDEX_BYTES:
            raise ValueError(f"it has more than {MAX_INDEX_BYTES:,} bytes")
        index = parse_json(text)
        check_index(index)
    except (ValueError, KeyError, TypeError) as error:
        raise Error(
            f"{where} is no index of shards ({str(error)[:300]}); delete it, or write it anew with fukami shard"
        ) from None
    if where == str(kept):
        logger.warning(f"{base} is read by the index {kept}; delete that where the shards have changed")
    return dict(index)


def check_index(index: Any) -> None:
    """Refuse what is no index of shards.

    Raises:
        ValueError, KeyError, TypeError: it is none; the words say why.
    """
    labels = index["labels"]
    if not (isinstance(labels, list) and all(isinstance(label, str) and label == to_text(label) for label in labels)):
        raise TypeError("its labels are no list of texts")
    for shard in (*index["train"], *index["test"]):
        name, problems = shard["name"], shard.get("problems", [])
        if not isinstance(name, str) or name != to_text(name):
            raise TypeError("a shard has no name")
        if not (isinstance(problems, list) and all(isinstance(problem, str) for problem in problems)):
            raise TypeError(f"the problems of {name} are no texts")
        size = _check_numbers(name, [shard["bytes"]], 1 << 60)[0]
        starts, lengths, classes = (
            _check_numbers(name, shard[column], most)
            for column, most in (("starts", size), ("lengths", MAX_SAMPLE_BYTES), ("classes", len(labels) - 1))
        )
        if not len(classes) == len(starts) == len(lengths):
            raise ValueError(f"{name} has lists of several lengths")
        if any(start + length > size + tar.BLOCK_BYTES for start, length in zip(starts, lengths, strict=True)):
            raise ValueError(f"{name} has a sample that ends after its {size:,} bytes")


def _check_numbers(name: str, values: Any, most: int) -> list[int]:
    """The values of a list, all of which should be whole numbers from 0 to ``most``."""
    if not (isinstance(values, list) and all(type(value) is int and 0 <= value <= most for value in values)):
        raise ValueError(f"{name} has a number that is none, or not between 0 and {most:,}")
    return values


def _build_split(base: str, shards: Sequence[dict[str, Any]]) -> ShardSplit:
    counts = [len(shard["classes"]) for shard in shards]
    starts, lengths, classes = (
        np.array([value for shard in shards for value in shard[name]], np.int64)
        for name in ("starts", "lengths", "classes")
    )
    number = np.concatenate([np.arange(1, count + 1) for count in counts] or [np.zeros(0, np.int64)])
    where = tuple(locate_shard(base, shard["name"]) for shard in shards)
    problems = tuple(problem for shard in shards for problem in shard.get("problems", ()))
    return ShardSamples(where, np.repeat(np.arange(len(shards)), counts), number, starts, lengths, problems), classes
