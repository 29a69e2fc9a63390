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

from fukami.data import folder, tar
from fukami.data import remote as data_remote
from fukami.data.locate import download_folder
from fukami.data.parsing import exists, is_file, is_folder, parse_json, text_of
from fukami.errors import Error, UsageError

logger = logging.getLogger(__name__)
INDEX = "index.json"
PACKED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
UNUSUAL = re.compile(r"[\\\0]|^[A-Za-z]:")  # in a name that would lead elsewhere on Windows
BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
AT_ONCE = 8  # shards that are scanned at a time
MOST_SHARDS = 1_000_000  # that a pattern may name
LARGEST_INDEX = 1 << 29  # bytes; 27 MB are ImageNet's
LARGEST_SAMPLE = 1 << 28  # bytes

Numbers = npt.NDArray[np.int64]
Index = dict[
    str, Any
]  # "labels", and of "train" and "test" each shard: "name", "bytes", "classes", "starts", "lengths"


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in shards, in the order in which they lie there.

    Args:
        shards: path or URL of each shard.
        shard: ``(N,)`` the shard that a sample is in.
        number: ``(N,)`` which one it is there, from 1.
        start, length: ``(N,)`` the bytes of it and its headers.
        problems: what is known to be wrong with other samples, which are left out.
    """

    shards: tuple[str, ...]
    shard: Numbers
    number: Numbers
    start: Numbers
    length: Numbers
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, number: int) -> bytes:
        """What the file of a sample's picture holds."""
        (block,) = self.blocks([number])
        return tar.picture(block, *self.place(number))[1]

    def only(self, which: npt.NDArray[np.bool_]) -> "Samples":
        """Those that are marked in ``which`` ``(N,)``."""
        columns = ("shard", "number", "start", "length")
        return replace(self, **{name: getattr(self, name)[which] for name in columns})

    def place(self, number: int) -> tuple[str, int]:
        """The name of a sample's shard, and its number there."""
        return self.shards[self.shard[number]].rpartition("/")[2], int(self.number[number])

    @property
    def names(self) -> Sequence[str]:
        """What messages call the samples."""
        return _Names(self)

    def blocks(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The bytes of each of the samples, fewer where a shard is cut short; in file order, they are one stream.

        Raises:
            Error: a shard is missing, or a server does not answer.
        """
        stream, shard = None, -1
        try:
            for number in numbers:
                if stream is None or self.shard[number] != shard:
                    if stream is not None:
                        stream.close()
                    shard = int(self.shard[number])
                    stream = data_remote.opened(self.shards[shard])
                yield stream.read(int(self.start[number]), int(self.length[number]))
        finally:
            if stream is not None:
                stream.close()


class _Names(Sequence[str]):
    """Names that are put together when they are asked for: there may be many millions."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each sample and its headers, by the index."""
        return self.samples.length.tolist()  # type: ignore[no-any-return]

    def __getitem__(self, number: Any) -> Any:
        shard, place = self.samples.place(number)
        return f"{shard}, sample {place}"


Part = tuple[Samples, Numbers]  # the samples, and the number of the class of each


def known(spec: str) -> bool:
    """Whether this names shards: a URL, a pattern with braces, or a folder of tar files.

    A folder is one of tar files where it has more of them than images, at any depth: neither does a tar file among
    images make shards of them, nor an image among shards images. One with an index and no image is one, too.
    """
    path = Path(spec)
    if data_remote.remote(spec) or ("{" in spec and not exists(path)):
        return True
    if not is_folder(path):
        return False
    names = [file.name for file in path.iterdir() if file.is_file()]
    packed = sum(name.endswith(".tar") or PACKED.search(name) is not None for name in names) or int(INDEX in names)
    return packed > sum(1 for _ in itertools.islice(folder.found_below(path), packed))


def read(spec: str) -> tuple[Part, Part | None, tuple[str, ...]]:
    """The training part and the test part (None where there is none of its own) of shards, and the class names.

    Args:
        spec: a folder of tar files, a pattern such as ``path/train-{000000..000009}.tar``, also of URLs, or the URL of
            a folder with an ``index.json``.

    Raises:
        UsageError: the spec names no tar files.
        Error: a shard is missing, or the index is damaged.
    """
    base, index = described(spec)
    for shard in (*index["train"], *index["test"]):
        where = located(base, shard["name"])
        if not data_remote.remote(where) and not is_file(Path(where)):
            raise Error(f"the shard {where} is missing; {INDEX} lists it: copy it there, or write the index anew")
    for shard in (*index["train"], *index["test"]):
        for problem in shard.get("problems", ()):
            logger.warning(f"{problem}; it is left out")
    train, test = (_part(base, index[name]) for name in ("train", "test"))
    return train, test if index["test"] else None, tuple(index["labels"])


def described(spec: str) -> tuple[str, Index]:
    """The folder that the shards' names are relative to, and the index: the one that is there, or a new one.

    Raises:
        UsageError, Error: as for :func:`read`.
    """
    single, base = _single(spec), base_of(spec)
    names = [name.rpartition("/")[2] for name in expanded(spec)] if single else []
    if data_remote.remote(spec) and not data_remote.remote(base):
        raise UsageError(
            f"{spec[:200]} is no address; expected https://host/path/ or https://host/train-{{000..009}}.tar"
        )
    if any("{" in name for name in (base, *names)):
        raise UsageError(f"{spec} is no pattern of shards; expected braces in the file's name: train-{{000..009}}.tar")
    there = _indexed(base, required=not names and data_remote.remote(spec))
    if there is not None and not names:
        return base, there
    if there is not None and set(names) <= {shard["name"] for part in ("train", "test") for shard in there[part]}:
        parts = {p: [shard for shard in there[p] if shard["name"] in names] for p in ("train", "test")}
        return base, {**there, **parts}
    names = names or sorted(file.name for file in Path(base).iterdir() if file.suffix == ".tar")
    packed = [name for name in names or map(str, Path(base).iterdir()) if PACKED.search(name)]
    if packed:
        raise UsageError(f"{packed[0]} is compressed, so it cannot be read from its middle; unpack it to a plain .tar")
    for where in (located(base, name) for name in names):  # before anything is done for a million of them
        if not data_remote.remote(where) and not is_file(Path(where)):
            raise Error(f"there is no shard {where[:200]}; check the pattern, or copy the shard there")
    logger.warning(
        f"{spec} has no {INDEX}: {len(names)} shards are scanned; `fukami shard {spec} --index` would write one"
    )
    return base, scanned(base, names)


def base_of(spec: str) -> str:
    """Folder or URL that the names of shards are relative to; empty for the current folder."""
    return spec.rpartition("/")[0] if _single(spec) else spec.rstrip("/")


def _single(spec: str) -> bool:
    """Whether a spec names shards one by one, and not their folder."""
    return "{" in spec or spec.endswith(".tar") or PACKED.search(spec) is not None


def scanned(base: str, names: Sequence[str]) -> Index:
    """The index of shards that others wrote; the parts are told by the names of the files, as of folders.

    Raises:
        Error: a shard is missing, or there is no sample in any.
    """
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(lambda name: tar.scan(located(base, name)), names))
    seen = {label for contents in found for label in contents.classes}
    numbered = all(map(str.isdecimal, seen))
    labels = sorted(seen, key=lambda label: (int(label) if numbered else 0, label))
    if not labels:
        problems = "; ".join(problem for contents in found for problem in contents.problems[:1])
        raise Error(f"{base} has no classified picture in its shards; {problems or 'they are empty'}")
    class_of = {label: number for number, label in enumerate(labels)}
    index: Index = {"labels": labels, "train": [], "test": []}
    for name, contents in zip(names, found, strict=True):
        words = re.split("[^a-z]+", name.lower())
        index["test" if set(words) & set(folder.TEST) else "train"].append({
            "name": name, "bytes": contents.size, "classes": [class_of[label] for label in contents.classes],
            "starts": contents.starts, "lengths": contents.lengths, "problems": contents.problems,
        })  # fmt: skip
    return index


def save(index: Index, path: Path) -> None:
    """Write the index to a file, at once or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def kept_index(base: str) -> Path:
    """File in the cache folder of the index of shards to which none can be added where they are.

    The user gives the base; nothing in the file says where the shards are.
    """
    whole = base if data_remote.remote(base) else str(Path(base).resolve())
    return download_folder() / "indexes" / f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}.json"


def located(base: str, name: str) -> str:
    """Path or URL of a shard, which is below the folder that the user named.

    Raises:
        Error: its name leads elsewhere.
    """
    path = PurePosixPath(name)
    if not name or data_remote.remote(name) or path.is_absolute() or ".." in path.parts or UNUSUAL.search(name):
        raise Error(
            f"the shard {name[:200]!r} is not below {base or 'this folder'}, where its {INDEX} is; copy the {INDEX} "
            "beside the shards, and give that folder"
        )
    return f"{base}/{name}" if base else name


def expanded(pattern: str) -> list[str]:
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
        if count * len(names) > MOST_SHARDS:
            raise UsageError(f"{pattern[:200]} names more than {MOST_SHARDS:,} shards; give a shorter range")
        words = [f"{number:0{len(first)}}" for number in numbers] if listed is None else listed.split(",")
        names = [name + rest[: found.start()] + word for name in names for word in words]
        rest = rest[found.end() :]
    return [name + rest for name in names]


def _indexed(base: str, required: bool) -> Index | None:
    """The index in a folder, None where there is none and it may be missing."""
    kept = kept_index(base)
    where = str(kept) if is_file(kept) else f"{base}/{INDEX}" if base else INDEX
    if not data_remote.remote(where) and not is_file(Path(where)):
        return None
    stream = data_remote.opened(where)
    try:
        text = stream.read(0, LARGEST_INDEX + 1)
    except data_remote.Missing as error:
        if required:
            raise Error(
                f"{error} Shards without an {INDEX} are given by a pattern: {base}/train-{{000..009}}.tar"
            ) from None
        return None
    finally:
        stream.close()
    try:
        if len(text) > LARGEST_INDEX:
            raise ValueError(f"it has more than {LARGEST_INDEX:,} bytes")
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
    if not (isinstance(labels, list) and all(isinstance(label, str) and label == text_of(label) for label in labels)):
        raise TypeError("its labels are no list of texts")
    for shard in (*index["train"], *index["test"]):
        name, problems = shard["name"], shard.get("problems", [])
        if not isinstance(name, str) or name != text_of(name):
            raise TypeError("a shard has no name")
        if not (isinstance(problems, list) and all(isinstance(problem, str) for problem in problems)):
            raise TypeError(f"the problems of {name} are no texts")
        size = _numbers(name, [shard["bytes"]], 1 << 60)[0]
        starts, lengths, classes = (
            _numbers(name, shard[column], most)
            for column, most in (("starts", size), ("lengths", LARGEST_SAMPLE), ("classes", len(labels) - 1))
        )
        if not len(classes) == len(starts) == len(lengths):
            raise ValueError(f"{name} has lists of several lengths")
        if any(start + length > size + tar.BLOCK for start, length in zip(starts, lengths, strict=True)):
            raise ValueError(f"{name} has a sample that ends after its {size:,} bytes")


def _numbers(name: str, values: Any, most: int) -> list[int]:
    """The values of a list, all of which should be whole numbers from 0 to ``most``."""
    if not (isinstance(values, list) and all(type(value) is int and 0 <= value <= most for value in values)):
        raise ValueError(f"{name} has a number that is none, or not between 0 and {most:,}")
    return values


def _part(base: str, shards: Sequence[dict[str, Any]]) -> Part:
    counts = [len(shard["classes"]) for shard in shards]
    starts, lengths, classes = (
        np.array([value for shard in shards for value in shard[name]], np.int64)
        for name in ("starts", "lengths", "classes")
    )
    number = np.concatenate([np.arange(1, count + 1) for count in counts] or [np.zeros(0, np.int64)])
    where = tuple(located(base, shard["name"]) for shard in shards)
    problems = tuple(problem for shard in shards for problem in shard.get("problems", ()))
    return Samples(where, np.repeat(np.arange(len(shards)), counts), number, starts, lengths, problems), classes
