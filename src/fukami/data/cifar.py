"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32×32 (Krizhevsky 2009), through torchvision's readers."""

from pathlib import Path
from typing import Any

import numpy as np

from fukami.data.locations import get_cache_folder, list_data_folders
from fukami.errors import Error

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def load_cifar(name: str) -> Path | tuple[tuple[Any, Any], tuple[str, ...]]:
    """``(train, test), class names``, each part ``(images (N, 32, 32, 3) uint8, labels (N,))``.

    Where ``$FUKAMI_DATA`` or the cache folder has the images as files (``cifar10.zip`` or a folder ``cifar10``) and
    not the original, the path of those. Only where there is neither, the original is downloaded.

    Raises:
        Error: the files are damaged, or there are none and they cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    for place in list_data_folders():
        if (place / FOLDERS[name]).is_dir():
            break
        for images in (place / name, place / f"{name}.zip"):
            if images.exists():
                return images
    else:
        place = get_cache_folder()
    try:
        parts = [reader(str(place), train=train, download=place == get_cache_folder()) for train in (True, False)]
    except Exception as error:  # a damaged file can fail in any way
        raise Error(
            f"{name} was not found in {', '.join(map(str, list_data_folders()))}, or is damaged, and the download "
            f"failed ({error}); unpack its python version there, and set FUKAMI_DATA to the folder that holds "
            f"{FOLDERS[name]}"
        ) from error
    train, test = ((part.data, np.array(part.targets)) for part in parts)
    return (train, test), tuple(parts[0].classes)
