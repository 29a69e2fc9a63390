"""Folders of images and masks: the layouts of Pascal VOC, CamVid and Cityscapes, and folders of one's own."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fukami.data import class_tables, image_folder, masks
from fukami.data.annotations import AnnotationProblem, list_images, parse_split
from fukami.data.class_tables import IGNORE_INDEX, ClassTable
from fukami.data.parsing import read_text
from fukami.errors import Error
from fukami.image import io as image_io

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "leftimg8bit")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation", "gt",
    "groundtruth", "segmentationclass", "gtfine",
)  # fmt: skip
STEM_SUFFIXES = re.compile(
    r"([_.-](mask|masks|label|labels|seg|segmentation|gt|l|p|gtfine_labelids|gtfine_labeltrainids|leftimg8bit))+$", re.I
)
LOSSLESS_EXTENSIONS = {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # what a mask is kept in: JPEG makes up values
BINARY_VALUES = {0, IGNORE_INDEX}  # the values of masks of one thing


@dataclass(frozen=True)
class FilePair:
    """An image and its mask; None where it has none."""

    image_path: Path
    mask_path: Path | None


@dataclass
class FolderIndex:
    """What the folders of a data set hold.

    Attributes:
        class_table: what the values of the masks mean.
        splits: the pairs of ``train``, ``val`` and ``test``, or of an empty name where all are one part.
        problems: masks without an image, and lines of lists that name none.
    """

    class_table: ClassTable
    splits: dict[str, list[FilePair]] = field(default_factory=dict)
    problems: list[AnnotationProblem] = field(default_factory=list)

    def iterate_pairs(self) -> Iterator[FilePair]:
        """The pairs of all parts."""
        for pairs in self.splits.values():
            yield from pairs


def is_mask_folder(root: Path) -> bool:
    """Whether a folder is in one of the layouts."""
    return any(layout(root) for layout in (_is_voc, _find_camvid_folders, _find_paired_folders))


def index_folder(root: Path) -> FolderIndex:
    """What a folder holds.

    Raises:
        Error: it is in none of the layouts, or its class table is wrong or lacks colours that the masks are in.
    """
    pairs = index_voc(root) or index_camvid(root) or index_paired_folders(root)
    if pairs is None:
        raise Error(
            f"{root} holds no images with masks in a known layout; expected images/ and masks/ with files of the "
            "same names (or train/images, train/masks ...), train/ and trainannot/ (CamVid), JPEGImages/ and "
            "SegmentationClass/ (VOC), or leftImg8bit/ and gtFine/ (Cityscapes)"
        )
    if not any(pair.mask_path for pair in pairs.iterate_pairs()):
        raise Error(f"{root} has images and not one mask of the same name; give each image one")
    return pairs


def index_voc(root: Path) -> FolderIndex | None:
    """JPEGImages and SegmentationClass, and lists of their names in ImageSets/Segmentation."""
    if not _is_voc(root):
        return None
    found = _match_masks(_find_folder(root, IMAGE_FOLDERS), _find_folder(root, ("segmentationclass",)))
    table = class_tables.find_class_table(root)
    first = next((pair.mask_path for pair in found.pairs if pair.mask_path), None)
    legend = table or (class_tables.VOC_COLOURED if first and masks.is_coloured(first) else class_tables.VOC)
    result = FolderIndex(legend, problems=found.problems)
    stems = {pair.image_path.stem: pair for pair in found.pairs}
    for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        part = parse_split(path.stem)
        if part in ("train", "val", "test"):
            names = [line.strip() for line in read_text(path, errors="replace").splitlines()]
            for number, name in enumerate(names, 1):
                if name in stems:
                    result.splits.setdefault(part, []).append(stems[name])
                elif name:
                    detail = f"lists {name}, which has no image in JPEGImages; add it, or remove the line"
                    result.problems.append(AnnotationProblem("missing", path, number, detail, part))
    if "test" in result.splits and not any(pair.mask_path for pair in result.splits["test"]):
        del result.splits["test"]  # whose masks the challenge keeps secret
    if not result.splits:
        result.splits[""] = [pair for pair in found.pairs if pair.mask_path]  # VOC has masks of some images alone
    return result


def index_camvid(root: Path) -> FolderIndex | None:
    """Folders such as ``train`` and ``trainannot``."""
    folders = _find_camvid_folders(root)
    if not folders:
        return None
    result = FolderIndex(class_tables.find_class_table(root) or class_tables.CAMVID)
    for part, (images_in, masks_in) in folders.items():
        found = _match_masks(images_in, masks_in)
        result.splits[part], result.problems = found.pairs, result.problems + found.problems
    return result


def index_paired_folders(root: Path) -> FolderIndex | None:
    """Folders of images and of masks, perhaps one of each for every part, on either level; Cityscapes' is such a
    one.
    """
    folders = _find_paired_folders(root)
    if not folders:
        return None
    parts: dict[str, list[FilePair]] = {}
    flaws: list[AnnotationProblem] = []
    for part, (images_in, masks_in) in folders.items():
        found = _match_masks(images_in, masks_in)
        parts[part], flaws = found.pairs, flaws + found.problems
    if _find_folder(root, ("leftimg8bit",)) and _find_folder(root, ("gtfine",)):
        parts.pop("test", None)  # whose masks are kept secret
        whole = class_tables.CITYSCAPES
        if any(
            pair.mask_path and pair.mask_path.stem.endswith("TrainIds") for pairs in parts.values() for pair in pairs
        ):
            whole = class_tables.CITYSCAPES_TRAIN_IDS
        return FolderIndex(whole, parts, flaws)
    tables = (
        class_tables.find_class_table(place) for place in dict.fromkeys([root, *(each for each, _ in folders.values())])
    )
    legend = next((table for table in tables if table), None)
    return FolderIndex(
        legend or _infer_class_table([pair.mask_path for pairs in parts.values() for pair in pairs]), parts, flaws
    )


def _infer_class_table(files: Iterable[Path | None]) -> ClassTable:
    """A class for each value that is in the masks, but 255; of 0 and 255 alone, background and foreground.

    Raises:
        Error: a mask is in colour, so that only a class table could tell what is a class.
    """
    there = [path for path in files if path]

    def values(path: Path) -> set[int]:
        try:
            return {*np.unique(masks.read_codes(path, by_color=False)).tolist()}
        except Error as error:
            if "is in colour" in str(error):
                raise
            return set()  # which whoever reads the mask tells

    with ThreadPoolExecutor() as threads:
        every: set[int] = set().union(*threads.map(values, there))
    if every == BINARY_VALUES:
        return ClassTable(("background", "foreground"), {0: 0, IGNORE_INDEX: 1})
    kept = sorted(every - {IGNORE_INDEX})
    if len(kept) > masks.MAX_CLASSES:
        raise Error(
            f"the masks have {len(kept)} values, and a map tells {masks.MAX_CLASSES} classes apart; is it a mask? "
            "JPEG makes up values: keep masks as PNG, and put a class table, classes.txt, beside their folder"
        )
    return ClassTable(tuple(map(str, kept)), {value: number for number, value in enumerate(kept)} | {IGNORE_INDEX: -1})


@dataclass
class _Matches:
    pairs: list[FilePair]
    problems: list[AnnotationProblem]


def _match_masks(image_folder: Path | None, mask_folder: Path | None) -> _Matches:
    """The images of a folder with the mask of the same name in another one."""
    assert image_folder is not None
    assert mask_folder is not None
    there = {_normalize_stem(path, image_folder): path for path in list_images(image_folder, recursive=True)}
    files = [
        path
        for path in list_images(mask_folder, recursive=True)
        if path.suffix.lower() in LOSSLESS_EXTENSIONS and not _is_auxiliary(path)
    ]
    if not files:  # made up values or not
        files = [path for path in list_images(mask_folder, recursive=True) if not _is_auxiliary(path)]
    given = {_normalize_stem(path, mask_folder): path for path in files}
    detail = "is a mask, and there is no image of its name; add it, or remove the mask"
    flaws = [AnnotationProblem("no image", path, 0, detail) for name, path in given.items() if name not in there]
    return _Matches([FilePair(path, given.get(name)) for name, path in there.items()], flaws)


def _is_auxiliary(path: Path) -> bool:
    """Whether it is one of the images that Cityscapes has beside the masks."""
    return path.stem.endswith(("_gtFine_color", "_gtFine_instanceIds", "_gtFine_instanceTrainIds"))


def _normalize_stem(path: Path, root: Path) -> str:
    """The name of an image or a mask, below its folder, without what tells them apart."""
    inside = path.relative_to(root).with_suffix("")
    return (inside.parent / (STEM_SUFFIXES.sub("", inside.name) or inside.name)).as_posix()


def _find_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder in a folder with the first of the names, however it is spelled."""
    here = {path.name.lower(): path for path in image_folder.list_folders(root)} if root.is_dir() else {}
    return next((here[name] for name in names if name in here), None)


def _is_voc(root: Path) -> bool:
    return bool(_find_folder(root, ("segmentationclass",)) and _find_folder(root, IMAGE_FOLDERS))


def _find_camvid_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of each part."""
    found = {}
    for place in image_folder.list_folders(root):
        beside = root / f"{place.name}annot"
        if parse_split(place.name) and beside.is_dir():
            found[parse_split(place.name)] = (place, beside)
    return found


def _find_paired_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of each part, or of an empty name where all are one."""
    first, second = _find_folder(root, IMAGE_FOLDERS), _find_folder(root, MASK_FOLDERS)
    if first and second:
        inner = {
            parse_split(place.name): place for place in image_folder.list_folders(first) if parse_split(place.name)
        }
        others = {
            parse_split(place.name): place for place in image_folder.list_folders(second) if parse_split(place.name)
        }
        both = {part: (place, others[part]) for part, place in inner.items() if part in others}
        found = both or {"": (first, second)}
    else:
        parts = {parse_split(place.name): place for place in image_folder.list_folders(root) if parse_split(place.name)}
        sides = {
            part: (_find_folder(place, IMAGE_FOLDERS), _find_folder(place, MASK_FOLDERS))
            for part, place in parts.items()
        }
        found = {part: (one, other) for part, (one, other) in sides.items() if one and other}
    return {part: pair for part, pair in found.items() if next(iter(_iterate_images(pair[1])), None)}


def _iterate_images(place: Path) -> Iterator[Path]:
    """The image files below a folder, which tell masks from annotations in text."""
    endings = image_io.get_image_suffixes()
    return (path for path in place.rglob("*") if path.suffix.lower() in endings)
