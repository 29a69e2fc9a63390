"""Folders of images and masks: the layouts of Pascal VOC, CamVid and Cityscapes, and custom folders.

In folders of other names, masks are images of few values beside images of the same names and sizes.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fukami.data import class_tables, masks
from fukami.data.annotation_files import find_stem, list_relative_names, normalize_name
from fukami.data.annotations import AnnotationProblem, parse_split
from fukami.data.class_tables import IGNORE_INDEX, ClassTable
from fukami.data.files import list_folders, list_images, walk_images
from fukami.data.parsing import read_text
from fukami.errors import Error
from fukami.image import io as image_io
from fukami.image import tiff
from fukami.progress import track
from fukami.system import start_decoding_threads

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "leftimg8bit")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation", "gt",
    "groundtruth", "segmentationclass", "gtfine",
)  # fmt: skip
VOC_MASK_FOLDERS = ("segmentationclasspng", "segmentationclass")  # the first one is that of labelme's converter
STEM_SUFFIX = re.compile(
    r"[_.-](mask|masks|label|labels|seg|segmentation|gt|l|p|gtfine_labelids|gtfine_labeltrainids|leftimg8bit)$", re.I
)
LOSSLESS_EXTENSIONS = {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # JPEG changes the values of a mask
MAX_MASK_VALUES = 64  # values or colors of a mask in a folder of any name; a photograph has more
MAX_SIBLINGS = 12  # folders among which those of images and masks are searched by content
MASK_ENDING = "_mask"  # of the name of a mask beside its image
MAX_INSPECTED_IMAGES = 1000  # images of a folder among which masks are searched
MAX_INSPECTED_PAIRS = 8  # images and masks that are decoded to detect masks
MAX_INSPECTED_MASKS = 100  # masks of VOC's layout that are decoded to detect colors; those without objects have none
MAX_LOSS = 32  # difference of the values of a binary mask in JPEG from 0 or 255
BINARY_VALUES = {0, IGNORE_INDEX}  # values of binary masks


@dataclass(frozen=True)
class FilePair:
    """An image and its mask; None if the mask is missing."""

    image_path: Path
    mask_path: Path | None


@dataclass
class FolderIndex:
    """Index of a dataset's folders.

    Attributes:
        class_table: maps mask values to classes.
        splits: the pairs of ``train``, ``val`` and ``test``, or of an empty name if there is only one split.
        problems: masks without an image, and split lists that name missing images.
    """

    class_table: ClassTable
    splits: dict[str, list[FilePair]] = field(default_factory=dict)
    problems: list[AnnotationProblem] = field(default_factory=list)

    def iterate_pairs(self) -> Iterator[FilePair]:
        """Yield the pairs of all splits."""
        for pairs in self.splits.values():
            yield from pairs


def is_mask_folder(root: Path) -> bool:
    """Return whether a folder has one of the layouts, or masks in folders of other names."""
    return any(layout(root) for layout in (_is_voc, _find_camvid_folders, _find_paired_folders))


def has_masks(root: Path, images: Path) -> bool:
    """Return whether a folder contains an image of the same name as one in ``images``."""
    stems = {_list_stems(path, images)[-1] for path in walk_images(images)}
    return any(_list_stems(path, root)[-1] in stems for path in walk_images(root))


def index_folder(root: Path, images: Path | None = None) -> FolderIndex:
    """Index a folder of images and masks in one of the layouts.

    Args:
        root: the folder; with ``images`` that of the masks.
        images: folder of the images; None: they are below the same folder.

    Raises:
        Error: no image has a mask, or the class table is invalid or lacks the colors of the masks.
    """
    if images:
        index = _index_pairs(root, _divide_splits(images, root))
    else:
        index = index_voc(root) or index_camvid(root) or index_paired_folders(root) or FolderIndex(class_tables.VOC)
    if not any(pair.mask_path for pair in index.iterate_pairs()):
        raise Error(f"{root} has images, but no mask of the same name; add a mask for each image")
    return index


def index_voc(root: Path) -> FolderIndex | None:
    """Index Pascal VOC's layout: JPEGImages, SegmentationClass, and split lists in ImageSets/Segmentation."""
    if not _is_voc(root):
        return None
    image_folder, mask_folder = _find_folder(root, IMAGE_FOLDERS), _find_folder(root, VOC_MASK_FOLDERS)
    assert image_folder is not None
    matches = _match_masks(image_folder, mask_folder)
    table = class_tables.find_class_table(root)
    mask_paths = (pair.mask_path for pair in matches.pairs if pair.mask_path)
    is_colored = not table and any(map(masks.is_colored, itertools.islice(mask_paths, MAX_INSPECTED_MASKS)))
    class_table = table or (class_tables.VOC_COLORED if is_colored else class_tables.VOC)
    index = FolderIndex(class_table, problems=matches.problems)
    names = {pair: list_relative_names(pair.image_path, image_folder) for pair in matches.pairs}
    stem_to_pair = {names[pair][1]: pair for pair in matches.pairs} | {names[pair][0]: pair for pair in matches.pairs}
    for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        split = parse_split(path.stem)
        if split:
            name_to_line: dict[str, int] = {}  # a name may be listed more than once
            for line_number, line in enumerate(read_text(path, errors="replace").splitlines(), 1):
                name_to_line.setdefault(find_stem(line.strip(), stem_to_pair), line_number)
            for name, line_number in name_to_line.items():
                if name in stem_to_pair:
                    index.splits.setdefault(split, []).append(stem_to_pair[name])
                elif name:
                    detail = f"lists {name}, which has no image in JPEGImages; add it, or remove the line"
                    index.problems.append(AnnotationProblem("missing", path, line_number, detail, split))
    if "test" in index.splits and not any(pair.mask_path for pair in index.splits["test"]):
        del index.splits["test"]  # VOC does not publish the test masks
    if not index.splits:
        index.splits[""] = [pair for pair in matches.pairs if pair.mask_path]  # VOC has masks for only some images
    return index


def index_camvid(root: Path) -> FolderIndex | None:
    """Index CamVid's layout: folders such as ``train`` and ``trainannot``."""
    folders = _find_camvid_folders(root)
    if not folders:
        return None
    index = FolderIndex(class_tables.find_class_table(root) or class_tables.CAMVID)
    for split, (image_dir, mask_dir) in folders.items():
        matches = _match_masks(image_dir, mask_dir)
        index.splits[split], index.problems = matches.pairs, index.problems + matches.problems
    return index


def index_paired_folders(root: Path) -> FolderIndex | None:
    """Index a folder of images and a folder of masks, with splits above or below them, such as Cityscapes."""
    folders = _find_paired_folders(root)
    return _index_pairs(root, folders) if folders else None


def _index_pairs(root: Path, folders: dict[str, tuple[Path, Path]]) -> FolderIndex:
    """Index the image and the mask folder of each split."""
    splits: dict[str, list[FilePair]] = {}
    problems: list[AnnotationProblem] = []
    for split, (image_dir, mask_dir) in folders.items():
        matches = _match_masks(image_dir, mask_dir)
        splits[split], problems = matches.pairs, problems + matches.problems
    if _find_folder(root, ("leftimg8bit",)) and _find_folder(root, ("gtfine",)):
        splits.pop("test", None)  # Cityscapes does not publish the test masks
        cityscapes_table = class_tables.CITYSCAPES
        if any(
            pair.mask_path and pair.mask_path.stem.endswith("TrainIds") for pairs in splits.values() for pair in pairs
        ):
            cityscapes_table = class_tables.CITYSCAPES_TRAIN_IDS
        return FolderIndex(cityscapes_table, splits, problems)
    tables = (
        class_tables.find_class_table(folder)
        for folder in dict.fromkeys([root, *itertools.chain.from_iterable(folders.values())])
    )
    class_table = next((table for table in tables if table), None)
    return FolderIndex(
        class_table or _infer_class_table([pair.mask_path for pairs in splits.values() for pair in pairs]),
        splits,
        problems,
    )


def _infer_class_table(paths: Iterable[Path | None]) -> ClassTable:
    """Build a class for each mask value except 255; for masks of only 0 and 255, background and foreground.

    Raises:
        Error: a mask is in color, which needs a class table.
    """
    mask_paths = [path for path in paths if path]

    def read_values(path: Path) -> set[int]:
        try:
            return {*np.unique(masks.read_codes(path, by_color=False)).tolist()}
        except masks.ColoredMaskError:
            raise
        except Error:  # reading the mask reports the error
            return set()

    with start_decoding_threads() as threads:
        values: set[int] = set().union(*track(threads.map(read_values, mask_paths), "reading masks", len(mask_paths)))
    if values == BINARY_VALUES:
        return ClassTable(("background", "foreground"), {0: 0, IGNORE_INDEX: 1})
    is_lossy = all(path.suffix.lower() not in LOSSLESS_EXTENSIONS for path in mask_paths)
    is_binary = all(min(value, IGNORE_INDEX - value) <= MAX_LOSS for value in values)
    if values and is_lossy and is_binary and min(values) <= MAX_LOSS < IGNORE_INDEX - MAX_LOSS <= max(values):
        return ClassTable(("background", "foreground"), {value: int(value > IGNORE_INDEX // 2) for value in range(256)})
    class_values = sorted(values - {IGNORE_INDEX})
    if len(class_values) > masks.MAX_CLASSES or (is_lossy and len(class_values) > MAX_MASK_VALUES):
        raise Error(
            f"the masks have {len(class_values)} values, and masks support at most {masks.MAX_CLASSES} classes; are "
            "they masks? JPEG changes values: save masks as PNG, and put a class table, classes.txt, next to their "
            "folder"
        )
    return ClassTable(
        tuple(map(str, class_values)),
        {value: index for index, value in enumerate(class_values)} | {IGNORE_INDEX: -1},
    )


@dataclass
class _Matches:
    pairs: list[FilePair]
    problems: list[AnnotationProblem]


def _match_masks(image_dir: Path | None, mask_dir: Path | None) -> _Matches:
    """Match the images of a folder with the masks of the same name in another folder."""
    assert image_dir is not None
    assert mask_dir is not None
    images = {path: _list_stems(path, image_dir) for path in walk_images(image_dir)}
    if image_dir == mask_dir:
        images = {path: stems for path, stems in images.items() if not _is_mask_sibling(path)}
    by_stem = {stems[-1]: path for path, stems in images.items()} | {stems[0]: path for path, stems in images.items()}
    files = [
        path for path in walk_images(mask_dir) if path.suffix.lower() in LOSSLESS_EXTENSIONS and not _is_auxiliary(path)
    ]
    if image_dir == mask_dir:
        files = [path for path in files if _is_mask_sibling(path)]
    if not files:  # accept lossy masks only if there are no others
        files = [path for path in walk_images(mask_dir) if not _is_auxiliary(path)]
    detail = "is a mask without an image of the same name; add the image, or remove the mask"
    is_in_other_subfolders = not any(stem in by_stem for path in files for stem in _list_stems(path, mask_dir))
    if is_in_other_subfolders and len({path.stem for path in files}) == len(files):
        by_stem = _index_unique_names(images)
        mask_dir = None
    masks_of_images: dict[Path, Path] = {}
    problems = []
    mask_stems = {path: _list_stems(path, mask_dir or path.parent) for path in files}
    files.sort(key=lambda path: mask_stems[path][0] in by_stem)  # a mask of the same name has priority
    for path in files:
        image = next((by_stem[stem] for stem in mask_stems[path] if stem in by_stem), None)
        if image is None:
            problems.append(AnnotationProblem("no image", path, 0, detail))
        else:
            masks_of_images[image] = path
    return _Matches([FilePair(path, masks_of_images.get(path)) for path in images], problems)


def _index_unique_names(images: Iterable[Path]) -> dict[str, Path]:
    """Index images by their name without the suffix, unless several have the same one."""
    names = {path: _list_stems(path, path.parent)[0] for path in images}
    counts = Counter(names.values())
    return {name: path for path, name in names.items() if counts[name] == 1}


def _is_auxiliary(path: Path) -> bool:
    """Return whether a file is one of Cityscapes' color or instance images, which are not class masks."""
    return path.stem.endswith(("_gtFine_color", "_gtFine_instanceIds", "_gtFine_instanceTrainIds"))


def _list_stems(path: Path, root: Path) -> list[str]:
    """List the relative name of an image or mask without suffix, and without further suffixes such as ``_mask``."""
    inside = Path(normalize_name(path.relative_to(root).as_posix())).with_suffix("")
    stems = [inside.name]
    while (shorter := STEM_SUFFIX.sub("", stems[-1])) not in ("", stems[-1]):
        stems.append(shorter)
    return [(inside.parent / stem).as_posix() for stem in stems]


def _find_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first subfolder with one of the names, ignoring case."""
    subfolders = {path.name.lower(): path for path in list_folders(root)} if root.is_dir() else {}
    return next((subfolders[name] for name in names if name in subfolders), None)


def _is_voc(root: Path) -> bool:
    return bool(_find_folder(root, VOC_MASK_FOLDERS) and _find_folder(root, IMAGE_FOLDERS))


def _find_camvid_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the image and the mask folder of each split."""
    folders = {}
    for image_dir in list_folders(root):
        mask_dir = root / f"{image_dir.name}annot"
        if parse_split(image_dir.name) and mask_dir.is_dir():
            folders[parse_split(image_dir.name)] = (image_dir, mask_dir)
    return folders


def _find_paired_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the image and the mask folder of each split, or of an empty name if there is only one split."""
    image_dir, mask_dir = _find_folder(root, IMAGE_FOLDERS), _find_folder(root, MASK_FOLDERS)
    if image_dir and mask_dir:
        folders = _divide_splits(image_dir, mask_dir)
    else:
        candidates = {
            split: (_find_folder(folder, IMAGE_FOLDERS), _find_folder(folder, MASK_FOLDERS))
            for split, folder in _find_split_folders(root).items()
        }
        folders = {split: (first, second) for split, (first, second) in candidates.items() if first and second}
    named = {split: pair for split, pair in folders.items() if next(iter(walk_images(pair[1])), None)}
    return named or _find_pairs_by_content(root) or _find_mask_siblings(root)


def _find_mask_siblings(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folder of each split in which most images have a mask beside them, such as ``1_mask.png``."""
    folders = _find_split_folders(root) or {"": root}
    return {split: (folder, folder) for split, folder in folders.items() if _has_mask_siblings(folder)}


def _has_mask_siblings(folder: Path) -> bool:
    files = list(itertools.islice(list_images(folder), MAX_INSPECTED_IMAGES))
    count = sum(map(_is_mask_sibling, files))
    return count > 0 and 3 * count >= len(files)


def _is_mask_sibling(path: Path) -> bool:
    """Return whether a file is a mask beside its image, by its name."""
    return path.stem.lower().endswith(MASK_ENDING) and path.suffix.lower() in LOSSLESS_EXTENSIONS


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Return the subfolders that denote a split."""
    return {parse_split(path.name): path for path in list_folders(root) if parse_split(path.name)}


def _divide_splits(image_dir: Path, mask_dir: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of each split below a folder of images and one of masks, or both if they have no splits."""
    image_splits, mask_splits = _find_split_folders(image_dir), _find_split_folders(mask_dir)
    both = {split: (folder, mask_splits[split]) for split, folder in image_splits.items() if split in mask_splits}
    return both or {"": (image_dir, mask_dir)}


def _find_pairs_by_content(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of their masks of each split; the pixels of a few files decide.

    In a folder there are two of them with any names, or such as ``train`` and ``train_masks`` for each split.
    """
    pairs: dict[str, tuple[Path, Path]] = {}
    for parent in (root, *_find_split_folders(root).values()):
        folders = list(itertools.islice(filter(_has_images, list_folders(parent)), MAX_SIBLINGS + 1))
        for image_dir, mask_dir in itertools.permutations(folders, 2) if len(folders) <= MAX_SIBLINGS else ():
            is_split = parse_split(image_dir.name) and mask_dir.name.startswith(image_dir.name)
            is_pair = (len(folders) == 2 and not parse_split(mask_dir.name)) or is_split
            if is_pair and _are_masks(image_dir, mask_dir):
                split = parse_split(image_dir.name) or parse_split(parent.name if parent != root else "")
                divided = _divide_splits(image_dir, mask_dir)
                pairs |= {split: divided[""]} if "" in divided else divided
    return pairs


def _has_images(folder: Path) -> bool:
    return next(walk_images(folder), None) is not None


def _are_masks(image_dir: Path, mask_dir: Path) -> bool:
    """Return whether a folder has masks of the images in another one.

    Most files have the name and size of an image, and a sample of them has at most ``MAX_MASK_VALUES`` values or colors
    in total. The images have more, or they are in color and the masks are not.
    """
    images, masks_by_stem = (
        {_list_stems(path, folder)[-1]: path for path in walk_images(folder)} for folder in (image_dir, mask_dir)
    )
    common = sorted(images.keys() & masks_by_stem.keys())
    if 2 * len(common) <= len(masks_by_stem):
        return False
    sample = common[:: -(-len(common) // MAX_INSPECTED_PAIRS)]
    try:
        photographs, candidates = ([_inspect(paths[stem]) for stem in sample] for paths in (images, masks_by_stem))
    except Error:
        return False
    image_values, mask_values = (set().union(*(item.values for item in items)) for items in (photographs, candidates))
    is_distinct = len(image_values) > MAX_MASK_VALUES or (
        all(item.num_channels > 1 for item in photographs) and all(item.num_channels == 1 for item in candidates)
    )
    sizes_agree = [item.size for item in photographs] == [item.size for item in candidates]
    return sizes_agree and len(mask_values) <= MAX_MASK_VALUES and is_distinct


class _Inspection(NamedTuple):
    """Sides in ascending order, number of channels, and distinct values or colors of an image, some if there are many.

    Rotation by EXIF exchanges the sides.
    """

    size: tuple[int, ...]
    num_channels: int
    values: set[object]


def _inspect(path: Path) -> _Inspection:
    many_values: set[object] = {*range(MAX_MASK_VALUES + 1)}
    try:
        return _inspect_with_pillow(path)
    except Error:
        if not tiff.is_tiff(path):
            raise
    header = tiff.read_tiff_header(path)
    return _Inspection(tuple(sorted((header.width, header.height))), header.channels, many_values)


def _inspect_with_pillow(path: Path) -> _Inspection:
    with image_io.open_image(path) as image:
        if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            many = [(0, value) for value in range(MAX_MASK_VALUES + 1)]
            values: set[object] = {color for _, color in image.getcolors(MAX_MASK_VALUES) or many}
        else:
            values = {*np.unique(np.asarray(image)).tolist()}
        return _Inspection(tuple(sorted(image.size)), len(image.getbands()), values)
