"""Writing of shards: labeled images as tar files in the WebDataset layout, with an index."""

import io
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fukami.data import findings, labeled_images, shards, tar
from fukami.data import remote as data_remote
from fukami.data.labeled_images import LabeledImages
from fukami.data.parsing import read_bytes
from fukami.data.splits import SPLITS
from fukami.errors import Error, UsageError
from fukami.image import io as image_io
from fukami.image.channels import read_depth

logger = logging.getLogger(__name__)
MIN_SHARDS = 8  # default minimum, because a batch is read from at most one lane per shard
MAX_KEY_LENGTH = 80  # characters of each component of a key
MAX_IMAGE_BYTES = tar.MAX_SAMPLE_BYTES - 8 * tar.BLOCK_BYTES  # without headers, padding and the class


def write_shards(
    spec: str,
    out: Path,
    *,
    val_fraction: float | None = None,
    samples_per_shard: int | None = None,
    shard_megabytes: float = 100.0,
    seed: int = 0,
) -> dict[str, int | str]:
    """Write a dataset as shards into the folder ``out``, shuffled once, with an index.

    Args:
        spec: dataset, as for :func:`fukami.data.labeled_images.load_labeled_images`.
        out: new or empty folder.
        val_fraction: as for :func:`fukami.data.labeled_images.load_labeled_images`.
        samples_per_shard: number of images per shard; by default, as many as ``shard_megabytes`` allows.
        shard_megabytes: approximate size of a shard; each split has at least eight shards, if it has enough images.
        seed: seed of the order.

    Returns:
        Number of samples of each split, of shards, and of skipped, unreadable images.

    Raises:
        UsageError: ``out`` is not empty, or a value is out of range.
        Error: no image can be read.
    """
    check_empty_folder(out)
    is_valid = (samples_per_shard is None or samples_per_shard >= 1) and 0 <= (val_fraction or 0) <= 1
    if not (is_valid and shard_megabytes > 0):
        raise UsageError(
            f"a shard holds at least one sample and more than 0 MB, and the validation fraction is 0 to 1; not "
            f"{samples_per_shard} samples, {shard_megabytes:g} MB and {val_fraction}"
        )
    *splits, labels = labeled_images.load_labeled_images(spec, val_fraction)
    index: shards.ShardIndex = {"labels": labels, "train": [], "val": [], "test": []}
    order = np.random.default_rng(seed)
    # Incomplete files have no final name. The index is renamed first, so it lists shards that are still missing.
    work = out / ".part"
    work.mkdir(parents=True)
    try:
        for split, source in zip(SPLITS, splits, strict=True):
            images = KeyedSamples(source, labels, order.permutation(len(source)))
            shard_length = samples_per_shard or _compute_shard_length(source, shard_megabytes)
            for shard_index in range(-(-len(source) // shard_length)):
                samples = images.iterate_range(shard_index * shard_length, (shard_index + 1) * shard_length)
                index[split].append(_write_shard(work / f"{split}-{shard_index:06d}.tar", samples))
        counts = _count_samples(index)
        num_written = sum(counts[split] for split in SPLITS)
        if num_written == 0:
            raise Error(f"{spec} has no readable image; fukami doctor {spec} reports the problem of each")
        shards.save_index(index, work / shards.INDEX_FILE)
        for file in (work / shards.INDEX_FILE, *sorted(work.glob("*.tar"))):
            file.rename(out / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"out": str(out), **counts, "skipped": sum(map(len, splits)) - num_written}


def write_index(spec: str, out: Path | None = None) -> dict[str, int | str]:
    """Write the index of existing shards.

    An index refers to no shard outside its own folder, so it belongs next to them.

    Args:
        spec: the shards.
        out: folder for the index, to be copied next to the shards; None: the folder of the shards. If that is a URL
            or not writable, the index goes to the cache folder and is used for the same folder or URL.

    Raises:
        UsageError: the spec contains no shards, or the index exists.
        Error: a shard is missing, or no shard has a labeled image.
    """
    if not shards.is_shard_spec(spec):
        raise UsageError(f"{spec} is neither a folder nor a pattern of tar files; --index is for shards")
    base = shards.get_base_location(spec)
    folder = Path(base or ".")
    if out:
        path = out / shards.INDEX_FILE
    elif data_remote.is_url(base) or not os.access(folder, os.W_OK):
        path = shards.get_index_cache_path(base)
    else:
        path = folder / shards.INDEX_FILE
    if path.exists():
        raise UsageError(f"{path} exists already; delete it, or use another folder")
    _, index = shards.load_index(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    shards.save_index(index, path)
    num_skipped = sum(len(shard.get("problems", ())) for split in SPLITS for shard in index[split])
    return {"out": str(path), **_count_samples(index), "skipped": num_skipped}


def check_empty_folder(out: Path) -> None:
    """Check that an output folder is new or empty.

    Raises:
        UsageError: the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty; use a new folder, or delete it first")


class KeyedSamples:
    """Samples of a split in a given order, each with a unique key that contains its class.

    Args:
        source: images.
        labels: class names.
        order: ``(N,)`` image indices.
    """

    def __init__(self, source: LabeledImages, labels: tuple[str, ...], order: shards.IntArray) -> None:
        self.source, self.labels, self.order = source, labels, order
        self.key_counts: dict[str, int] = {}

    def iterate_range(self, start: int, stop: int) -> Iterator[tar.TarSample]:
        """Iterate over the samples from ``start`` to ``stop``; unreadable images are skipped and reported."""
        for index in self.order[start:stop].tolist():
            target = int(self.source.targets[index])
            try:
                name, suffix, content = self._read_image(index)
            except (Error, OSError) as error:
                logger.warning(f"{error}; it is skipped")
                continue
            key = f"{_sanitize(self.labels[target])}/{_sanitize(name)}"
            count = self.key_counts[key] = self.key_counts.get(key, 0) + 1
            yield (key if count == 1 else f"{key}-again{count}"), suffix, content, target

    def _read_image(self, index: int) -> tuple[str, str, bytes]:
        """Return name, suffix and bytes of an image; an array is encoded as PNG."""
        items = self.source.items
        if isinstance(items, np.ndarray):
            packed = io.BytesIO()
            Image.fromarray(items[index]).save(packed, "PNG")
            return f"{index:06d}", ".png", packed.getvalue()
        if isinstance(items, shards.ShardSamples):
            (block,) = items.read_blocks([index])
            name, content = tar.extract_image(block, *items.locate(index))
        else:
            name, content = str(items[index]), read_bytes(items[index], max_bytes=MAX_IMAGE_BYTES)
        read_depth(content, name)  # verifies the header
        if len(content) > MAX_IMAGE_BYTES:
            raise Error(f"{name} has {len(content):,} bytes, more than the limit of {MAX_IMAGE_BYTES:,} in a shard")
        suffix = Path(name).suffix
        if suffix.lower() not in image_io.get_image_suffixes():  # readers find images by their suffix
            suffix = findings.get_suffix(findings.detect_format(content) or "")
        return Path(name).stem, suffix, content


def _write_shard(path: Path, samples: Iterator[tar.TarSample]) -> shards.ShardEntry:
    """Write a shard, and return its index entry."""
    classes, starts, lengths = tar.write_shard(path, samples)
    size = path.stat().st_size
    return {"name": path.name, "bytes": size, "classes": classes, "starts": starts, "lengths": lengths}


def _count_samples(index: shards.ShardIndex) -> dict[str, int]:
    """Count the samples of each split, and the shards."""
    counts: dict[str, int] = {split: sum(len(shard["classes"]) for shard in index[split]) for split in SPLITS}
    return {**counts, "shards": sum(len(index[split]) for split in SPLITS)}


def _compute_shard_length(source: LabeledImages, megabytes: float) -> int:
    """Compute the number of images per shard of a size, fewer if there would be too few shards."""
    items = source.items
    if isinstance(items, np.ndarray):
        size = items.nbytes
    elif isinstance(items, shards.ShardSamples):
        size = int(items.lengths.sum())
    else:
        size = sum(file.stat().st_size for file in items if file.is_file())
    return max(1, -(-len(source) // max(MIN_SHARDS, round(size / (megabytes * 1e6)))))


def _sanitize(text: str) -> str:
    """Replace other characters than letters, digits, hyphens and underscores: a key has no extra dot or folder."""
    return re.sub(r"[^\w-]+", "_", text)[:MAX_KEY_LENGTH] or "_"
