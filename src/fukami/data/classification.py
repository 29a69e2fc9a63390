"""Classified pictures from any source, by name or path."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fukami import image
from fukami.data import digits, folder, mnist
from fukami.errors import unknown
from fukami.preparation import Preparation

DIGITS = tuple("0123456789")
NAMES = ("digits", "mnist")


@dataclass(frozen=True)
class Pictures:
    """Pictures ``(N, C, H, W)`` uint8 with the number ``(N,)`` of the class of each, and their names."""

    pictures: Tensor
    targets: Tensor
    names: Sequence[str] = ()


def read(
    spec: str, prepare: Callable[[tuple[str, ...]], Preparation], holdout: float
) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """The training part, the test part and the class names of a data set.

    Args:
        spec: ``mnist``, ``digits``, or the path of a folder (or archive) of pictures by class.
        prepare: how pictures of classes with these names are brought to the network's size.
        holdout: share of each class that is the test part, where the data have none of their own.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are damaged, or there are none.
    """
    if spec == "mnist":
        train, test = ((_sized(x, prepare(DIGITS)), y) for x, y in mnist.read())
        return _pictures(*train), _pictures(*test), DIGITS
    if spec == "digits":
        x, y = digits.read()
        held = folder.held_out(y, holdout)
        x = _sized(x, prepare(DIGITS))
        return _pictures(x[~held], y[~held]), _pictures(x[held], y[held]), DIGITS
    if not Path(spec).exists():
        raise unknown("data set (and no file or folder)", spec, NAMES)
    return _read_folder(Path(spec), prepare, holdout)


def _read_folder(
    path: Path, prepare: Callable[[tuple[str, ...]], Preparation], holdout: float
) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    train, test = folder.scan(path)
    labels = tuple(sorted({*train.classes, *(test.classes if test else ())}))
    prepared = prepare(labels)
    parts = [folder.decode(part, prepared) for part in (train, test) if part]
    if test is None:
        part, pictures = parts[0]
        held = folder.held_out(part.classes, holdout)
        parts = [
            (
                folder.Part(*(tuple(np.array(column, object)[which]) for column in (part.files, part.classes))),
                pictures[which],
            )
            for which in (~held, held)
        ]
    number = {label: i for i, label in enumerate(labels)}
    first, second = (
        _pictures(pictures, np.array([number[name] for name in part.classes], np.int64), tuple(map(str, part.files)))
        for part, pictures in parts
    )
    return first, second, labels


def _sized(pictures: folder.Bytes, prepare: Preparation) -> folder.Bytes:
    """Grey pictures ``(N, 28, 28)`` as ``(N, C, size, size)``; the usual 28 costs nothing."""
    if prepare.size != 28:
        pictures = np.stack(
            [image.fit(Image.fromarray(picture), channels=1, size=prepare.size) for picture in pictures]
        )
    else:
        pictures = pictures[:, None]
    return np.repeat(pictures, prepare.channels, axis=1)


def _pictures(pictures: folder.Bytes, targets: npt.NDArray[Any], names: Sequence[str] = ()) -> Pictures:
    return Pictures(torch.from_numpy(np.ascontiguousarray(pictures)), torch.from_numpy(targets.astype(np.int64)), names)
