"""Pictures with masks from any source, by name or path."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fukami.data import coco, folder, locate, masks, palettes, scenes, voc
from fukami.data.annotated import Annotated, Mask
from fukami.data.annotations import Flaw, Header, header, headers
from fukami.data.palettes import Legend
from fukami.data.parsing import exists
from fukami.errors import Error, unknown
from fukami.segmentation import coco_masks, mask_folders

logger = logging.getLogger(__name__)
NAMES = ("scenes", "camvid", "voc2012", "cityscapes", "coco")
FOLDERS = {"camvid": "the archive, or its folder", "cityscapes": "its folders leftImg8bit and gtFine"}

Part = tuple[Annotated, ...]


@dataclass(frozen=True)
class Described:
    """What a data set holds: the classes, and of each part its pictures and their masks."""

    legend: Legend
    parts: dict[str, list[tuple[Path, Mask]]]
    flaws: Sequence[Flaw] = ()  # what of the data is of no picture

    @property
    def learned(self) -> str:
        """The part that is learned from."""
        return next((name for name in ("train", "", "val") if name in self.parts), next(iter(self.parts), ""))

    @property
    def judged(self) -> str | None:
        """The part that is judged on: the test part, or else the one for validation; None where there is neither."""
        return next((name for name in ("test", "val") if name in self.parts and name != self.learned), None)


def read(
    spec: str, holdout: float, broken: int = folder.BROKEN, *, ignore: int = palettes.IGNORED, training: bool = True
) -> tuple[Part, Part, tuple[str, ...]]:
    """What to train on, what to judge on, and the class names of a data set.

    Args:
        spec: ``scenes`` (embedded), ``camvid``, ``voc2012``, ``cityscapes``, ``coco``, or the path of a folder (or
            archive) of pictures and masks, or of COCO's JSON.
        holdout: share of the pictures that is judged on, where the data have no parts of their own.
        broken: pictures that may be missing or broken, in each part; they are left out and named.
        ignore: the value in masks that stands for no class.
        training: also what to train on, which need not be there otherwise.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are in no known layout or damaged, or there are none.
    """
    if spec == "scenes":
        labels = scenes.MASKED
        return scenes.masked(0, scenes.TRAINING), scenes.masked(scenes.TRAINING, scenes.TESTING), labels
    found = described(located(spec), ignore)
    labels, judged = found.legend.labels, found.judged
    train = _settled(found.parts.get(found.learned, []), broken) if training or judged is None else ()
    if judged is not None:
        return train, _settled(found.parts[judged], broken), labels
    held = folder.held_out(np.zeros(len(train), int), holdout).tolist()
    kept = tuple(each for each, out in zip(train, held, strict=True) if not out)
    return kept, tuple(each for each, out in zip(train, held, strict=True) if out), labels


def described(path: Path, ignore: int = palettes.IGNORED) -> Described:
    """What the folders or the JSON at a path hold.

    Raises:
        Error: they are in no known layout, or damaged.
    """
    layout, root = recognised(path) or ("folders", folder.unpacked(path) if path.is_file() else path)
    if layout == "COCO":
        sheets, painted = coco_masks.read(root)
        parts: dict[str, list[tuple[Path, Mask]]] = {
            part: [(entry.picture, painted[entry.picture]) for entry in some] for part, some in sheets.parts.items()
        }
        return Described(coco_masks.labels(sheets), {part: some for part, some in parts.items() if some})
    pairs = mask_folders.read(root)
    legend = pairs.legend.ignoring(ignore)
    if len(legend.labels) > masks.MOST:
        raise Error(f"{path} has {len(legend.labels)} classes, and a map tells {masks.MOST} apart; join some")
    return Described(
        legend,
        {part: [(pair.picture, _mask(pair, legend)) for pair in some] for part, some in pairs.parts.items() if some},
        pairs.flaws,
    )


def _mask(pair: mask_folders.Pair, legend: Legend) -> Mask:
    if pair.mask is None:
        return masks.Missing(f"{pair.picture} has no mask; give it one of the same name, or remove the picture")
    return masks.MaskFile(pair.mask, legend)


def _settled(pairs: Sequence[tuple[Path, Mask]], broken: int) -> Part:
    """The pictures of a part that have a mask of their size; the others are left out and summed up.

    Raises:
        Error: there are more of them than ``broken``, or there is no other.
    """
    kept: list[Annotated] = []
    wrong: list[str] = []
    for (picture, mask), found in zip(pairs, headers([picture for picture, _ in pairs]), strict=True):
        fault = str(found) if isinstance(found, Error) else misfit(picture, found, mask)
        if fault or isinstance(found, Error):
            wrong.append(fault)
        else:
            kept.append(Annotated.masked(picture, found.upright, str(picture), mask))
    if wrong and not kept:
        raise Error(f"not one of the {len(wrong)} pictures can be used; the first: {wrong[0]}")
    if wrong:
        logger.warning(f"{len(wrong)} of {len(pairs)} pictures are left out:\n{folder.listed(wrong)}")
    folder.check(wrong, broken)
    return tuple(kept)


def misfit(picture: Path, found: Header, mask: Mask) -> str:
    """Why a mask does not fit its picture, by its header alone; empty where it does."""
    if isinstance(mask, masks.Missing):
        return mask.detail
    if isinstance(mask, coco_masks.Painted):
        size, what = mask.size, f"what {mask.file} has of it"
    elif isinstance(mask, masks.MaskFile):
        head = header(mask.path)
        if isinstance(head, Error):
            return str(head)
        size, what = (head.width, head.height), f"its mask {mask.path}"
    else:
        return ""
    if size == found.upright:
        return ""
    sides = "×".join(map(str, found.upright))
    return f"{picture} has {sides} pixels, and {what} {'×'.join(map(str, size))}; make the mask of the picture as it is"


def located(spec: str) -> Path:
    """The folder, archive or file of a known name or a path.

    Raises:
        UsageError: no such name and no such path.
        Error: a known set is in none of the places.
    """
    if spec == "voc2012":
        return voc.challenge("2012")
    if spec == "coco":
        return coco.benchmark()
    if spec in FOLDERS:
        return locate.lying(spec, FOLDERS[spec])
    if not exists(Path(spec)):
        raise unknown("data set (and no file or folder)", spec, NAMES)
    return Path(spec)


def known(spec: str) -> bool:
    """Whether a name or a path is of pictures with masks; an archive is unpacked for that."""
    return locate.known(spec, NAMES, recognised)


def recognised(path: Path) -> tuple[str, Path] | None:
    """The layout of a folder, an archive or a file, and where it begins; None where it has no masks.

    Raises:
        Error: the archive cannot be unpacked, or a JSON file is damaged.
    """
    if path.is_file():
        if path.suffix.lower() == ".json":
            return ("COCO", path) if coco_masks.outlined(path) else None
        if path.suffix.lower() in (".yaml", ".yml"):
            return None
        path = folder.unpacked(path)
    for root in folder.nested(path):
        if mask_folders.known(root):
            return "folders", root
        if coco.files(root) and coco_masks.outlined(root):
            return "COCO", root
    return None
