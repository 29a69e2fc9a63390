"""CIFAR-10 and CIFAR-100: 60,000 color images of 32×32 pixels (Krizhevsky 2009), read by torchvision."""

import contextlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.data.locations import get_cache_folder, list_data_folders, lock_downloads
from fukami.errors import Error

ArraySplit = tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]  # images (N, H, W) or (N, H, W, 3), and labels
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def load_cifar(name: str) -> Path | tuple[tuple[ArraySplit, ArraySplit], tuple[str, ...]]:
    """Load CIFAR-10 or CIFAR-100 as ``((train, test), class_names)``.

    A split is ``(images (N, 32, 32, 3) uint8, labels (N,))``. If ``$FUKAMI_DATA`` or the cache folder contains image
    files (``cifar10.zip`` or a folder ``cifar10``) instead of the original, their path is returned. If neither exists,
    the original is downloaded.

    Raises:
        Error: the files are corrupted, or are missing and cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    local_path = find_local_cifar(name)
    if local_path is not None and local_path.name != FOLDERS[name]:
        return local_path
    folder = get_cache_folder() if local_path is None else local_path.parent
    try:
        is_cached = folder == get_cache_folder()
        with lock_downloads() if is_cached else contextlib.nullcontext():
            splits = [reader(str(folder), train=train, download=is_cached) for train in (True, False)]
    except Exception as error:  # readers raise errors of any type on a corrupted file
        raise Error(
            f"{name} was not found in {', '.join(map(str, list_data_folders()))}, or is corrupted, and the download "
            f"failed ({error}); unpack its python version there, and set FUKAMI_DATA to the folder that contains "
            f"{FOLDERS[name]}"
        ) from error
    train, test = ((split.data, np.array(split.targets)) for split in splits)
    return (train, test), tuple(splits[0].classes)


def find_local_cifar(name: str) -> Path | None:
    """Return the folder of the original files, or the folder or archive of images; None if there is neither."""
    for folder in list_data_folders():
        for path in (folder / FOLDERS[name], folder / name, folder / f"{name}.zip"):
            if path.exists():
                return path
    return None
