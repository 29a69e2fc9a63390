"""Pictures with boxes or masks, decoded at their size: all at once, or one by one in frames for a stream."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fukami.data.annotated import Annotated, Bytes
from fukami.data.folder import BROKEN, check, listed
from fukami.data.masks import nearest
from fukami.data.streaming import processors
from fukami.errors import Error, refuse_if_out_of_memory
from fukami.image.transform import Scaled

logger = logging.getLogger(__name__)
EACH = 16  # pictures that are decoded at a time
MANY = 200  # files from which other processes are worth their start

Frame = tuple[int, int]  # height and width


class PictureDecoder(Dataset[Any]):
    """Pictures at their size, ``(3 or 4, H, W)`` uint8, or the error of one that cannot be read.

    In arrays, since each tensor that another process sends holds a file open.
    """

    def __init__(self, samples: Sequence[Annotated], prepare: Scaled) -> None:
        self.samples, self.prepare = samples, prepare

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, wish: Any) -> Bytes | Error:
        sample = self.samples[wish]
        try:
            with refuse_if_out_of_memory(sample.name):
                picture = decode(sample, self.prepare)
        except Error as error:
            return error
        return picture if isinstance(picture, Error) else picture.numpy()


class FrameDecoder(PictureDecoder):
    """The same in frames, ``(H, W, 3 or 4)`` uint8, as what streams is collected; a wish is a number and a frame."""

    def __getitem__(self, wish: tuple[int, Frame]) -> Bytes | Error:
        number, (height, width) = wish
        picture = super().__getitem__(number)
        if isinstance(picture, Error):
            return picture
        frame = np.zeros((height, width, len(picture)), np.uint8)
        frame[: picture.shape[1], : picture.shape[2]] = picture.transpose(1, 2, 0)
        return frame


def decode(sample: Annotated, prepare: Scaled) -> Tensor | Error:
    """A picture at its size, ``(3, H, W)`` uint8, with its mask as a fourth channel; or what is wrong with it."""
    try:
        picture = prepare.open(sample.source, sample.name if isinstance(sample.source, Path) else "")
    except Error as error:
        return error
    if (picture.shape[2], picture.shape[1]) != sample.size:
        was, now = "×".join(map(str, sample.size)), f"{picture.shape[2]}×{picture.shape[1]}"
        return Error(f"{sample.name} has {now} pixels, and had {was} when its header was read; leave it as it was")
    pixels = prepare(picture).round().to(torch.uint8)
    if sample.mask is None:
        return pixels
    try:
        mask = sample.mask.read()
    except Error as error:
        return error
    if (mask.shape[1], mask.shape[0]) != sample.size:
        sides = "×".join(map(str, sample.size))
        return Error(f"{sample.name} has {sides} pixels, and its mask {mask.shape[1]}×{mask.shape[0]}; they must agree")
    resized = nearest(mask, pixels.shape[2], pixels.shape[1])
    return torch.cat([pixels, torch.from_numpy(np.array(resized))[None]])


def decoded(
    samples: Sequence[Annotated], prepare: Scaled, broken: int = BROKEN
) -> tuple[list[Annotated], list[Tensor]]:
    """The samples whose pictures can be read, and these pictures; the others are named.

    Raises:
        Error: more than ``broken`` cannot be read, or all.
    """
    kept: list[Annotated] = []
    pictures: list[Tensor] = []
    wrong: list[str] = []
    files = sum(isinstance(sample.source, Path) for sample in samples)
    numbers = [list(range(at, min(at + EACH, len(samples)))) for at in range(0, len(samples), EACH)]
    reader = DataLoader(
        PictureDecoder(samples, prepare),
        batch_sampler=numbers,
        num_workers=processors() if files >= MANY else 0,
        collate_fn=list,
        generator=torch.Generator(),
    )
    with alone():
        for sample, result in zip(samples, itertools.chain.from_iterable(reader), strict=True):
            if isinstance(result, Error):
                wrong.append(str(result))
            else:
                kept.append(sample)
                pictures.append(torch.from_numpy(result))
    if wrong and not kept:
        raise Error(f"not one of the {len(samples)} pictures can be read; the first: {wrong[0]}")
    if wrong:
        logger.warning(f"{len(wrong)} of {len(samples)} pictures are left out:\n{listed(wrong)}")
    check(wrong, broken)
    return kept, pictures


@contextmanager
def alone() -> Iterator[None]:
    """One thread for torch, as in the other processes: how work is cut up among several decides how it is rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
