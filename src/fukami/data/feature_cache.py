"""Features of regions, kept in the cache folder: what a network said of an image need not be computed again."""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fukami.data import locations

logger = logging.getLogger(__name__)


class FeatureCache:
    """The features that one network gave, a file for each image; read and written by whoever has the same network.

    Args:
        network: whose features they are; it does not change.
        settings: what else they depend on.
        limit: gigabytes that the features of all networks may take on the disk. Those of the networks that were used
            least lately give way; once there is no more room, features are not kept.
    """

    def __init__(self, network: nn.Module, settings: str, limit: float) -> None:
        settings += f" {torch.__version__} {torch.get_num_threads()}"  # which decide how sums are rounded
        digest = hashlib.blake2b(settings.encode(), digest_size=16)
        for name, value in network.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.device.type}".encode())
            digest.update(_to_bytes(value))
        self.folder = locations.get_cache_folder() / "features" / digest.hexdigest()
        with contextlib.suppress(FileNotFoundError):  # it is new, or another process made room
            os.utime(self.folder)  # used now
        self.remaining_bytes = limit * 1e9 - self._evict_others(limit * 1e9)

    def _evict_others(self, limit: float) -> float:
        """Bytes that other networks' features take, once the oldest have made room for as many as they."""
        sizes, used = {}, {}
        for folder in self.folder.parent.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                used[folder] = folder.stat().st_mtime
                sizes[folder] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in sorted(sizes.keys() - {self.folder}, key=used.__getitem__):
            if sum(sizes.values()) > limit / 2:
                shutil.rmtree(folder, ignore_errors=True)
                del sizes[folder]
        return sum(sizes.values())

    def get_path(self, image: Tensor, boxes: Tensor) -> Path:
        """Where the features of these boxes of this image are, or would be."""
        digest = hashlib.blake2b(_to_bytes(image), digest_size=16)
        digest.update(_to_bytes(boxes))
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def read(self, path: Path) -> Tensor | None:
        """What was kept there; None where there is nothing, or something that is no file of features."""
        try:
            return load(path.read_bytes())["features"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, path: Path, features: Tensor) -> None:
        """Keep them, in one step: whoever reads finds all or nothing. Once one cannot be written, no more are kept."""
        content = save({"features": features.cpu().contiguous()})
        self.remaining_bytes -= len(content)
        if self.remaining_bytes < 0:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                file.write(content)
            os.replace(file.name, path)  # noqa: PTH105
        except OSError as error:
            self.remaining_bytes = -1.0
            logger.warning(
                f"{self.folder.parent} cannot be written ({error.strerror}): features are computed anew each time; "
                "make room there, or set XDG_CACHE_HOME to another folder"
            )


def _to_bytes(tensor: Tensor) -> bytes:
    """The numbers of a tensor, of whatever type."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
