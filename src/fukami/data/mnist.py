"""MNIST, 70,000 handwritten digits (LeCun, Cortes and Burges 1998), read from the four original idx files."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from fukami.data.locations import get_cache_folder, list_data_folders, lock_downloads
from fukami.errors import Error
from fukami.image.io import UInt8Array

# md5 of the unpacked files, so that gzip files of any origin and unpacked files verify alike
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

MAX_FILE_BYTES = 47_040_016  # largest size of an unpacked file


def load_mnist() -> tuple[tuple[UInt8Array, UInt8Array], tuple[UInt8Array, UInt8Array]]:
    """Load ``(images, labels)`` of the training set and of the test set.

    Returns:
        uint8 arrays: images ``(60000, 28, 28)`` and ``(10000, 28, 28)`` in 0..255, light on black; labels 0..9.

    Raises:
        Error: a file is corrupted, or MNIST is not found and cannot be downloaded.
    """
    folder = find_mnist()
    images, labels, test_images, test_labels = (read_idx(folder / name, md5) for name, md5 in CHECKSUMS.items())
    return (images, labels), (test_images, test_labels)


def find_mnist() -> Path:
    """Return the folder of the four files: in ``$FUKAMI_DATA``, in the cache folder, or downloaded."""
    local_folder = find_local_mnist()
    if local_folder is not None and not local_folder.is_relative_to(get_cache_folder()):
        return local_folder
    from torchvision.datasets import MNIST

    try:
        with lock_downloads():  # files in the cache folder may be incomplete while another process downloads them
            local_folder = find_local_mnist()
            if local_folder is not None:
                return local_folder
            MNIST(str(get_cache_folder()), download=True)
    except Exception as error:  # a corrupted download raises errors of various types
        raise Error(
            f"MNIST was not found in {', '.join(str(p) for p in list_data_folders())}, and the download failed "
            f"({error}); put the four files {', '.join(f'{name}.gz' for name in CHECKSUMS)} into a folder mnist/ "
            "and set FUKAMI_DATA to its parent folder"
        ) from error
    return get_cache_folder() / "MNIST" / "raw"


def find_local_mnist() -> Path | None:
    """Return the folder of the four files in ``$FUKAMI_DATA`` or in the cache folder; None if there is none."""
    folders = [folder / sub for folder in list_data_folders() for sub in ("mnist", "MNIST/raw", ".")]
    for folder in folders:
        if all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in CHECKSUMS):
            return folder
    return None


def read_idx(path: Path, md5: str) -> UInt8Array:
    """Read the uint8 array of an idx file, plain or gzip (``path`` plus ``.gz``); ``md5`` is of the unpacked file."""
    content = read_unpacked(path, md5)
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(tuple(map(int, shape))).copy()


def read_unpacked(path: Path, md5: str) -> bytes:
    """Read an original file, plain or gzip (``path`` plus ``.gz``), and verify the MD5 of its unpacked content.

    Raises:
        Error: the file is corrupted, too large or differs from the original.
    """
    packed = path.with_name(path.name + ".gz")
    file = path if path.is_file() else packed
    try:
        with file.open("rb") if file == path else gzip.open(file) as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Error(f"{file} cannot be unpacked ({error}); delete it and get it again") from error
    if len(content) > MAX_FILE_BYTES:
        raise Error(f"{file} is not the original file: it has more than {MAX_FILE_BYTES:,} bytes; get it again")
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise Error(f"{file} is not the original file: md5 {digest}, expected {md5}; delete it and get it again")
    return content
