"""The proposals of a data set: computed once, in parallel, and kept under a checksum of what made them."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fukami.data import locations
from fukami.errors import Error, build_unknown_error
from fukami.image import io as image_io
from fukami.selective_search.search import SETTINGS, VERSION, Boxes, Mode, propose_regions
from fukami.system import count_cpus

if TYPE_CHECKING:
    from fukami.data.samples import Sample
    from fukami.image.transform import ResizeTransform


def compute_proposals(
    images: "Sequence[Sample]", mode: Mode = "fast", prepare: "ResizeTransform | None" = None
) -> list[Boxes]:
    """The boxes that :func:`propose` finds in each image, ``(n, 4)`` float32 in pixels of the upright image.

    Each image's are kept in a file of its own in the cache folder, so that work that was interrupted goes on, and an
    image that is in two data sets is searched once. A changed image or a damaged file is searched again. Threads
    share the work: the kernels let each other run.

    Args:
        images: of which only ``source`` and ``name`` matter.
        mode: ``fast`` or ``quality``.
        prepare: brings an image to the size in which it is searched, and in whose pixels the boxes then are. An image
            that cannot be read has no boxes then: who learns from it will find out.

    Raises:
        Error: an image cannot be read, or the cache folder cannot be written.
        UsageError: an unknown mode.
    """
    if mode not in SETTINGS:
        raise build_unknown_error("mode", mode, SETTINGS)
    console = Console(stderr=True)
    columns = (
        TextColumn("proposing boxes"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    first, every = len(images) * rank // world, range(len(images))
    order = (*every[first:], *every[:first])  # processes begin apart, and find what the others have kept
    threads = ThreadPoolExecutor(max(1, count_cpus() // world))
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            found = {number: threads.submit(_load_or_compute, images[number], mode, prepare) for number in order}
            for each in progress.track(as_completed(found.values()), total=len(found)):
                each.result()  # the first that fails ends it
        return [found[number].result() for number in every]
    finally:
        threads.shutdown(cancel_futures=True)


def _load_or_compute(image: "Sample", mode: Mode, prepare: "ResizeTransform | None") -> Boxes:
    """The boxes of an image: those that were kept, or else found now."""
    try:
        content, pixels = _read_content(image)
        size = f"{prepare.min_size} {prepare.max_size}" if prepare else ""
        made_by = f"{mode} {VERSION}".encode()
        key = hashlib.blake2b(content, digest_size=16, person=made_by, salt=size.encode()).hexdigest()
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
    """What the checksum is of, the image's file or its pixels, and the pixels where there is no file to decode."""
    if isinstance(image.source, Path):
        try:
            return image.source.read_bytes(), None
        except OSError as error:
            raise Error(f"{image.name} cannot be read ({error.strerror}); get the file again") from error
    return repr(image.source.shape).encode() + image.source.tobytes(), image.source


def _read_cached(path: Path, key: str) -> Boxes | None:
    """The boxes in a file, or None where it is not there or damaged; the archive has a checksum of what is in it."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            boxes, made_of = arrays["boxes"], arrays["key"]
    except Exception:  # a reader may fail in any way on a damaged file
        return None
    right = boxes.ndim == 2 and boxes.shape[1:] == (4,) and boxes.dtype == np.int32
    return boxes.astype(np.float32) if right and made_of.shape == () and str(made_of) == key else None


def _write_cached(path: Path, key: str, boxes: Boxes) -> None:
    """Write the file in one step: whoever reads it, and a crash, find all of it or nothing."""
    temporary = path.with_name(f".{key}.{os.getpid()}-{threading.get_ident()}")  # of this process and thread alone
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez_compressed(file, boxes=boxes.astype(np.int32), key=np.array(key))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        where = path.parent.parent
        raise Error(
            f"{where} cannot be written ({error.strerror}); make room there, or set XDG_CACHE_HOME to another folder"
        ) from error
