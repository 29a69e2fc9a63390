"""Disk cache of region features, so that a network computes the features of an image only once."""

import contextlib
import hashlib
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fukami.atomic_file import replace_file
from fukami.data import locations

logger = logging.getLogger(__name__)


class FeatureCache:
    """Disk cache of the features of one network, one file per image; shared by all processes with the same network.

    Args:
        network: network with frozen weights.
        settings: everything else that the features depend on.
        limit: size limit in gigabytes for the features of all networks. The least recently used networks are evicted
            first; when the limit is reached, features are no longer cached.
    """

    def __init__(self, network: nn.Module, settings: str, limit: float) -> None:
        settings += f" {torch.__version__} {torch.get_num_threads()} {network}"  # strides, and the rounding of sums
        digest = hashlib.blake2b(settings.encode(), digest_size=16)
        for name, value in network.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.device.type}".encode())
            digest.update(_to_bytes(value))
        self.folder = locations.get_cache_folder() / "features" / digest.hexdigest()
        with contextlib.suppress(FileNotFoundError):  # the folder is new, or another process evicted it
            os.utime(self.folder)  # mark as recently used
        self.remaining_bytes = limit * 1e9 - self._evict_others(limit * 1e9)

    def _evict_others(self, limit: float) -> float:
        """Evict other networks' features, oldest first, down to half of the limit; return the remaining bytes."""
        sizes, last_used = {}, {}
        for folder in self.folder.parent.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process may evict at the same time
                last_used[folder] = folder.stat().st_mtime
                sizes[folder] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in sorted(sizes.keys() - {self.folder}, key=last_used.__getitem__):
            if sum(sizes.values()) > limit / 2:
                shutil.rmtree(folder, ignore_errors=True)
                del sizes[folder]
        return sum(sizes.values())

    def get_path(self, image: Tensor, boxes: Tensor) -> Path:
        """Return the cache file of the features of an image's boxes."""
        digest = hashlib.blake2b(_to_bytes(image), digest_size=16)
        digest.update(_to_bytes(boxes))
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def read(self, path: Path) -> Tensor | None:
        """Read cached features; None if the file is missing or invalid."""
        try:
            return load(path.read_bytes())["features"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, path: Path, features: Tensor) -> None:
        """Write features atomically. After a failure, no more features are written."""
        content = save({"features": features.cpu().contiguous()})
        self.remaining_bytes -= len(content)
        if self.remaining_bytes < 0:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path, sync=False) as file:
                file.write(content)
        except OSError as error:
            self.remaining_bytes = -1.0
            logger.warning(
                f"{self.folder.parent} cannot be written ({error.strerror}), so features are computed again each time; "
                "make room there, or set XDG_CACHE_HOME to another folder"
            )


def _to_bytes(tensor: Tensor) -> bytes:
    """Return the raw bytes of a tensor of any type."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
