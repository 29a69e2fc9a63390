"""Region proposals of a dataset, computed in parallel and cached on disk under a checksum of their inputs."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fukami.atomic_file import replace_file
from fukami.data import locations
from fukami.errors import Error, build_unknown_error
from fukami.image import io as image_io
from fukami.progress import ProgressBar
from fukami.selective_search.search import SETTINGS, VERSION, Boxes, Mode, propose_regions
from fukami.system import count_cpus

if TYPE_CHECKING:
    from fukami.data.samples import Sample
    from fukami.image.transform import ResizeTransform


def compute_proposals(
    images: "Sequence[Sample]", mode: Mode = "fast", prepare: "ResizeTransform | None" = None
) -> list[Boxes]:
    """Compute the proposals of :func:`propose_regions` for each image, in threads.

    Each image has a file in the cache folder. An interrupted computation continues where it stopped, and an image in
    two datasets is computed once. A changed image is computed again, and so is one with a corrupted cache file.

    Args:
        images: samples; only ``source`` and ``name`` are used.
        mode: ``fast`` or ``quality``.
        prepare: resizes each image before the search. An unreadable image then has no boxes instead of raising an
            error, since the loader reports it.

    Returns:
        Boxes ``(n, 4)`` of each image, float32, in pixels of the upright (and resized) image.

    Raises:
        Error: an image cannot be read, or the cache folder cannot be written.
        UsageError: the mode is unknown.
    """
    if mode not in SETTINGS:
        raise build_unknown_error("mode", mode, SETTINGS)
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    first, indices = len(images) * rank // world, range(len(images))
    order = (*indices[first:], *indices[:first])  # processes start apart, and reuse the files of the others
    threads = ThreadPoolExecutor(max(1, count_cpus() // world))
    try:
        with ProgressBar("region proposals", len(images), "images") as bar:
            futures = {index: threads.submit(_load_or_compute, images[index], mode, prepare) for index in order}
            for future in as_completed(futures.values()):
                future.result()  # raises the first error
                bar.update()
        return [futures[index].result() for index in indices]
    finally:
        threads.shutdown(cancel_futures=True)


def _load_or_compute(image: "Sample", mode: Mode, prepare: "ResizeTransform | None") -> Boxes:
    """Read the boxes of an image from the cache, or compute and cache them."""
    try:
        content, pixels = _read_content(image)
        size = f"{prepare.min_size} {prepare.max_size}" if prepare else ""
        method = f"{mode} {VERSION}".encode()
        key = hashlib.blake2b(content, digest_size=16, person=method, salt=size.encode()).hexdigest()
        path = locations.get_cache_folder() / "proposals" / key[:2] / f"{key}.npz"
        boxes = _read_cached(path, key)
        if boxes is not None:
            return boxes
        if prepare:
            resized = prepare(prepare.read_image(image.source, image.name)).round().byte()
            pixels = np.ascontiguousarray(resized.permute(1, 2, 0).numpy())
        elif pixels is None:
            pixels = np.asarray(image_io.read_image(content, name=image.name).convert("RGB"))
    except Error:
        if prepare is None:
            raise
        return np.zeros((0, 4), np.float32)
    try:
        boxes = propose_regions(pixels, mode)
    except Error as error:
        raise Error(f"{image.name}: {error}") from error
    _write_cached(path, key, boxes)
    return boxes


def _read_content(image: "Sample") -> tuple[bytes, image_io.UInt8Array | None]:
    """Return the bytes for the checksum, of the file or the pixels, and the pixels of an image without a file."""
    if isinstance(image.source, Path):
        try:
            return image.source.read_bytes(), None
        except OSError as error:
            raise Error(f"{image.name} cannot be read ({error.strerror}); get the file again") from error
    return repr(image.source.shape).encode() + image.source.tobytes(), image.source


def _read_cached(path: Path, key: str) -> Boxes | None:
    """Read the boxes of a cache file; None if it is missing or corrupted, which the archive's checksum detects."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            boxes, stored_key = arrays["boxes"], arrays["key"]
    except Exception:  # a corrupted file can raise any exception
        return None
    is_valid = boxes.ndim == 2 and boxes.shape[1:] == (4,) and boxes.dtype == np.int32
    return boxes.astype(np.float32) if is_valid and stored_key.shape == () and str(stored_key) == key else None


def _write_cached(path: Path, key: str, boxes: Boxes) -> None:
    """Write the boxes to a file of the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, sync=False) as file:
            np.savez_compressed(file, boxes=boxes.astype(np.int32), key=np.array(key))
    except OSError as error:
        folder = path.parent.parent
        raise Error(
            f"{folder} cannot be written ({error.strerror}); make room there, or set XDG_CACHE_HOME to another folder"
        ) from error
