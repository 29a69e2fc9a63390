"""Folders of pictures and masks: the layouts of Pascal VOC, CamVid and Cityscapes, and folders of one's own."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fukami.data import folder, masks, palettes
from fukami.data.annotations import Flaw, part_of, pictures
from fukami.data.palettes import IGNORED, Legend
from fukami.data.parsing import read_text
from fukami.errors import Error
from fukami.image import io as image_io

PICTURES = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "leftimg8bit")
MASKS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation", "gt",
    "groundtruth", "segmentationclass", "gtfine",
)  # fmt: skip
ENDINGS = re.compile(
    r"([_.-](mask|masks|label|labels|seg|segmentation|gt|l|p|gtfine_labelids|gtfine_labeltrainids|leftimg8bit))+$", re.I
)
SIMPLE = {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # what a mask is kept in: JPEG makes up values
BINARY = {0, IGNORED}  # the values of masks of one thing


@dataclass(frozen=True)
class Pair:
    """A picture and its mask; None where it has none."""

    picture: Path
    mask: Path | None


@dataclass
class Pairs:
    """What the folders of a data set hold.

    Attributes:
        legend: what the values of the masks mean.
        parts: the pairs of ``train``, ``val`` and ``test``, or of an empty name where all are one part.
        flaws: masks without a picture, and lines of lists that name none.
    """

    legend: Legend
    parts: dict[str, list[Pair]] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)

    def every(self) -> Iterator[Pair]:
        """The pairs of all parts."""
        for pairs in self.parts.values():
            yield from pairs


def known(root: Path) -> bool:
    """Whether a folder is in one of the layouts."""
    return any(layout(root) for layout in (_voc, _camvid, _own))


def read(root: Path) -> Pairs:
    """What a folder holds.

    Raises:
        Error: it is in none of the layouts, or its class table is wrong or lacks colours that the masks are in.
    """
    pairs = voc(root) or camvid(root) or own(root)
    if pairs is None:
        raise Error(
            f"{root} holds no pictures with masks in a known layout; expected images/ and masks/ with files of the "
            "same names (or train/images, train/masks ...), train/ and trainannot/ (CamVid), JPEGImages/ and "
            "SegmentationClass/ (VOC), or leftImg8bit/ and gtFine/ (Cityscapes)"
        )
    if not any(pair.mask for pair in pairs.every()):
        raise Error(f"{root} has pictures and not one mask of the same name; give each picture one")
    return pairs


def voc(root: Path) -> Pairs | None:
    """JPEGImages and SegmentationClass, and lists of their names in ImageSets/Segmentation."""
    if not _voc(root):
        return None
    found = _matched(_named(root, PICTURES), _named(root, ("segmentationclass",)))
    table = palettes.found(root)
    first = next((pair.mask for pair in found.pairs if pair.mask), None)
    legend = table or (palettes.VOC_COLOURED if first and masks.is_coloured(first) else palettes.VOC)
    result = Pairs(legend, flaws=found.flaws)
    stems = {pair.picture.stem: pair for pair in found.pairs}
    for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        part = part_of(path.stem)
        if part in ("train", "val", "test"):
            names = [line.strip() for line in read_text(path, errors="replace").splitlines()]
            for number, name in enumerate(names, 1):
                if name in stems:
                    result.parts.setdefault(part, []).append(stems[name])
                elif name:
                    detail = f"lists {name}, which has no picture in JPEGImages; add it, or remove the line"
                    result.flaws.append(Flaw("missing", path, number, detail, part))
    if "test" in result.parts and not any(pair.mask for pair in result.parts["test"]):
        del result.parts["test"]  # whose masks the challenge keeps secret
    if not result.parts:
        result.parts[""] = [pair for pair in found.pairs if pair.mask]  # VOC has masks of some pictures alone
    return result


def camvid(root: Path) -> Pairs | None:
    """Folders such as ``train`` and ``trainannot``."""
    folders = _camvid(root)
    if not folders:
        return None
    result = Pairs(palettes.found(root) or palettes.CAMVID)
    for part, (pictures_in, masks_in) in folders.items():
        found = _matched(pictures_in, masks_in)
        result.parts[part], result.flaws = found.pairs, result.flaws + found.flaws
    return result


def own(root: Path) -> Pairs | None:
    """Folders of pictures and of masks, perhaps one of each for every part, on either level; Cityscapes' is such a
    one.
    """
    folders = _own(root)
    if not folders:
        return None
    parts: dict[str, list[Pair]] = {}
    flaws: list[Flaw] = []
    for part, (pictures_in, masks_in) in folders.items():
        found = _matched(pictures_in, masks_in)
        parts[part], flaws = found.pairs, flaws + found.flaws
    if _named(root, ("leftimg8bit",)) and _named(root, ("gtfine",)):
        parts.pop("test", None)  # whose masks are kept secret
        whole = palettes.CITYSCAPES
        if any(pair.mask and pair.mask.stem.endswith("TrainIds") for pairs in parts.values() for pair in pairs):
            whole = palettes.CITYSCAPES_TRAINING
        return Pairs(whole, parts, flaws)
    tables = (palettes.found(place) for place in dict.fromkeys([root, *(each for each, _ in folders.values())]))
    legend = next((table for table in tables if table), None)
    return Pairs(legend or _by_values([pair.mask for pairs in parts.values() for pair in pairs]), parts, flaws)


def _by_values(files: Iterable[Path | None]) -> Legend:
    """A class for each value that is in the masks, but 255; of 0 and 255 alone, background and foreground.

    Raises:
        Error: a mask is in colour, so that only a class table could tell what is a class.
    """
    there = [path for path in files if path]

    def values(path: Path) -> set[int]:
        try:
            return {*np.unique(masks.codes(path, coloured=False)).tolist()}
        except Error as error:
            if "is in colour" in str(error):
                raise
            return set()  # which whoever reads the mask tells

    with ThreadPoolExecutor() as threads:
        every: set[int] = set().union(*threads.map(values, there))
    if every == BINARY:
        return Legend(("background", "foreground"), {0: 0, IGNORED: 1})
    kept = sorted(every - {IGNORED})
    if len(kept) > masks.MOST:
        raise Error(
            f"the masks have {len(kept)} values, and a map tells {masks.MOST} classes apart; is it a mask? JPEG makes "
            "up values: keep masks as PNG, and put a class table, classes.txt, beside their folder"
        )
    return Legend(tuple(map(str, kept)), {value: number for number, value in enumerate(kept)} | {IGNORED: -1})


@dataclass
class _Found:
    pairs: list[Pair]
    flaws: list[Flaw]


def _matched(pictures_in: Path | None, masks_in: Path | None) -> _Found:
    """The pictures of a folder with the mask of the same name in another one."""
    assert pictures_in is not None
    assert masks_in is not None
    there = {_stem(path, pictures_in): path for path in pictures(pictures_in, deep=True)}
    files = [path for path in pictures(masks_in, deep=True) if path.suffix.lower() in SIMPLE and not _other(path)]
    if not files:  # made up values or not
        files = [path for path in pictures(masks_in, deep=True) if not _other(path)]
    given = {_stem(path, masks_in): path for path in files}
    detail = "is a mask, and there is no picture of its name; add it, or remove the mask"
    flaws = [Flaw("no picture", path, 0, detail) for name, path in given.items() if name not in there]
    return _Found([Pair(path, given.get(name)) for name, path in there.items()], flaws)


def _other(path: Path) -> bool:
    """Whether it is one of the pictures that Cityscapes has beside the masks."""
    return path.stem.endswith(("_gtFine_color", "_gtFine_instanceIds", "_gtFine_instanceTrainIds"))


def _stem(path: Path, root: Path) -> str:
    """The name of a picture or a mask, below its folder, without what tells them apart."""
    inside = path.relative_to(root).with_suffix("")
    return (inside.parent / (ENDINGS.sub("", inside.name) or inside.name)).as_posix()


def _named(root: Path, names: Sequence[str]) -> Path | None:
    """The folder in a folder with the first of the names, however it is spelled."""
    here = {path.name.lower(): path for path in folder.folders(root)} if root.is_dir() else {}
    return next((here[name] for name in names if name in here), None)


def _voc(root: Path) -> bool:
    return bool(_named(root, ("segmentationclass",)) and _named(root, PICTURES))


def _camvid(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of each part."""
    found = {}
    for place in folder.folders(root):
        beside = root / f"{place.name}annot"
        if part_of(place.name) and beside.is_dir():
            found[part_of(place.name)] = (place, beside)
    return found


def _own(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of each part, or of an empty name where all are one."""
    first, second = _named(root, PICTURES), _named(root, MASKS)
    if first and second:
        inner = {part_of(place.name): place for place in folder.folders(first) if part_of(place.name)}
        others = {part_of(place.name): place for place in folder.folders(second) if part_of(place.name)}
        both = {part: (place, others[part]) for part, place in inner.items() if part in others}
        found = both or {"": (first, second)}
    else:
        parts = {part_of(place.name): place for place in folder.folders(root) if part_of(place.name)}
        sides = {part: (_named(place, PICTURES), _named(place, MASKS)) for part, place in parts.items()}
        found = {part: (one, other) for part, (one, other) in sides.items() if one and other}
    return {part: pair for part, pair in found.items() if next(iter(_files(pair[1])), None)}


def _files(place: Path) -> Iterator[Path]:
    """The picture files below a folder, which tell masks from annotations in text."""
    endings = image_io.suffixes()
    return (path for path in place.rglob("*") if path.suffix.lower() in endings)
