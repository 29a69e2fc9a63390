"""Writing shards: any classified images as tar files in the WebDataset layout, with an index."""

import io
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fukami.data import labelled_images, shards, tar
from fukami.data import remote as data_remote
from fukami.data.labelled_images import LabelledImages
from fukami.errors import Error, UsageError
from fukami.image import io as image_io

logger = logging.getLogger(__name__)
MIN_SHARDS = 8  # shards, where nothing else is asked for: a batch is read from as many places as there are shards
MAX_KEY_LENGTH = 80  # letters of a part of a key


def write_shards(
    spec: str,
    out: Path,
    *,
    holdout: float = 0.2,
    samples_per_shard: int | None = None,
    shard_megabytes: float = 100.0,
    seed: int = 0,
) -> dict[str, int | str]:
    """Write the data set as shards into the folder ``out``, shuffled once, with an index.

    Args:
        spec: as :func:`fukami.data.labelled_images.load_labelled_images` takes it.
        out: new or empty.
        holdout: share of each class that becomes the test part, where the data have none of their own.
        samples_per_shard: images in a shard; by default as many as ``shard_megabytes`` allows.
        shard_megabytes: size of a shard, about; there are eight of a part at least, as far as there are images.
        seed: decides the order.

    Returns:
        How many samples each part has, how many shards there are, and how many images are left out as broken.

    Raises:
        UsageError: ``out`` is not empty, or a number makes no sense.
        Error: there is not one image that can be read.
    """
    check_empty_folder(out)
    if (samples_per_shard is not None and samples_per_shard < 1) or shard_megabytes <= 0 or not 0 <= holdout <= 1:
        raise UsageError(
            f"a shard holds at least one sample and more than 0 MB, and the holdout is a share; not "
            f"{samples_per_shard} samples, {shard_megabytes:g} MB and {holdout:g}"
        )
    train, test, labels = labelled_images.load_labelled_images(spec, holdout)
    index: shards.ShardIndex = {"labels": labels, "train": [], "test": []}
    order = np.random.default_rng(seed)
    work = (
        out / ".part"
    )  # what is not whole has no name yet; of what is, the index comes first and tells what is missing
    work.mkdir(parents=True)
    try:
        for part, source in (("train", train), ("test", test)):
            images = KeyedSamples(source, labels, order.permutation(len(source)))
            each = samples_per_shard or _compute_shard_length(source, shard_megabytes)
            for number in range(-(-len(source) // each)):
                some = images.iterate_range(number * each, (number + 1) * each)
                index[part].append(_write_shard(work / f"{part}-{number:06d}.tar", some))
        found = _count_samples(index)
        if found["train"] + found["test"] == 0:
            raise Error(f"{spec} has no image that can be read; fukami doctor {spec} says what is wrong with each")
        shards.save_index(index, work / shards.INDEX_FILE)
        for file in (work / shards.INDEX_FILE, *sorted(work.glob("*.tar"))):
            file.rename(out / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"out": str(out), **found, "left_out": len(train) + len(test) - found["train"] - found["test"]}


def write_index(spec: str, out: Path | None = None) -> dict[str, int | str]:
    """Write the index of shards that others wrote.

    An index leads to no shard outside of its own folder, so it belongs beside them.

    Args:
        spec: the shards.
        out: folder for the index, which is then to be copied beside the shards; None: the shards' own folder or, where
            that is at a URL or cannot be written, the cache folder, where it is found for the same folder or URL.

    Raises:
        UsageError: the spec names no shards, or there is an index already.
        Error: a shard is missing, or holds nothing that can be learned from.
    """
    if not shards.is_shard_spec(spec):
        raise UsageError(f"{spec} is no folder of tar files and no pattern of some; --index is for shards")
    base = shards.get_base_location(spec)
    there = Path(base or ".")
    if out:
        path = out / shards.INDEX_FILE
    elif data_remote.is_url(base) or not os.access(there, os.W_OK):
        path = shards.get_index_cache_path(base)
    else:
        path = there / shards.INDEX_FILE
    if path.exists():
        raise UsageError(f"{path} is there already; delete it, or give another folder")
    _, index = shards.load_index(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    shards.save_index(index, path)
    left = sum(len(shard.get("problems", ())) for part in ("train", "test") for shard in index[part])
    return {"out": str(path), **_count_samples(index), "left_out": left}


def check_empty_folder(out: Path) -> None:
    """Refuse a folder that has something in it.

    Raises:
        UsageError: it has.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty; give a new folder, or delete it first")


class KeyedSamples:
    """The samples of a part in an order, each with a key that tells its class and is its own.

    Args:
        source: the images.
        labels: what the classes are called.
        order: ``(N,)`` which image comes when.
    """

    def __init__(self, source: LabelledImages, labels: tuple[str, ...], order: shards.IntArray) -> None:
        self.source, self.labels, self.order = source, labels, order
        self.key_counts: dict[str, int] = {}

    def iterate_range(self, start: int, stop: int) -> Iterator[tar.TarSample]:
        """Those from ``start`` to ``stop`` in the order; one that is no image is left out and named."""
        for number in self.order[start:stop].tolist():
            target = int(self.source.targets[number])
            try:
                name, suffix, content = self._read_image(number)
            except (Error, OSError) as error:
                logger.warning(f"{error}; it is left out")
                continue
            key = f"{_sanitize(self.labels[target])}/{_sanitize(name)}"
            again = self.key_counts[key] = self.key_counts.get(key, 0) + 1
            yield (key if again == 1 else f"{key}-again{again}"), suffix, content, target

    def _read_image(self, number: int) -> tuple[str, str, bytes]:
        """Name, suffix and bytes of an image; that of an array is made a PNG."""
        items = self.source.items
        if isinstance(items, np.ndarray):
            packed = io.BytesIO()
            Image.fromarray(items[number]).save(packed, "PNG")
            return f"{number:06d}", ".png", packed.getvalue()
        if isinstance(items, shards.ShardSamples):
            (block,) = items.read_blocks([number])
            name, content = tar.extract_image(block, *items.locate(number))
        else:
            name, content = str(items[number]), items[number].read_bytes()
        with image_io.open_image(content, name=name):  # its head tells whether it is one
            return Path(name).stem, Path(name).suffix, content


def _write_shard(path: Path, samples: Iterator[tar.TarSample]) -> dict[str, Any]:
    """A shard of the samples, and what the index says of it."""
    classes, starts, lengths = tar.write_shard(path, samples)
    size = path.stat().st_size
    return {"name": path.name, "bytes": size, "classes": classes, "starts": starts, "lengths": lengths}


def _count_samples(index: shards.ShardIndex) -> dict[str, int]:
    """How many samples each part has, and how many shards there are."""
    counts = {part: sum(len(shard["classes"]) for shard in index[part]) for part in ("train", "test")}
    return {**counts, "shards": len(index["train"]) + len(index["test"])}


def _compute_shard_length(source: LabelledImages, megabytes: float) -> int:
    """Images in a shard of so many megabytes, fewer where there would be too few shards."""
    items = source.items
    if isinstance(items, np.ndarray):
        size = items.nbytes
    elif isinstance(items, shards.ShardSamples):
        size = int(items.lengths.sum())
    else:
        size = sum(file.stat().st_size for file in items if file.is_file())
    return max(1, -(-len(source) // max(MIN_SHARDS, round(size / (megabytes * 1e6)))))


def _sanitize(text: str) -> str:
    """The text in letters, digits, hyphens and underscores, so that a key has one dot, and no folder in it."""
    return re.sub(r"[^\w-]+", "_", text)[:MAX_KEY_LENGTH] or "_"
