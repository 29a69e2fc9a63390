"""Formats of datasets: which annotations a folder or a file contains, and how many.

The contents decide, not the names of the folders: XML, JSON and text files with the stems of images are annotations,
images of few values beside images of the same names are masks, and a CSV file is what its columns are.
"""

import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from fukami.data import (
    annotation_files,
    box_tables,
    captions,
    coco,
    coco_masks,
    image_folder,
    label_tables,
    labelme,
    labelme_masks,
    mask_folders,
    parsing,
    voc,
    yolo,
    yolo_masks,
)
from fukami.data.annotations import DatasetAnnotations, separate_trainval
from fukami.data.files import list_folders, walk_files, walk_images
from fukami.errors import Error
from fukami.progress import format_count

Kind = Literal["labels", "boxes", "masks", "captions", "images", "games"]

MAX_CLASS_FOLDERS = 4  # class folders, and other folders beside them, that are searched for annotations of each image
BOX_LAYOUTS: dict[str, Callable[[Path], object]] = {
    "COCO": coco.find_coco_files,
    "YOLO": yolo.is_yolo_dataset,
    "VOC": voc.is_voc_folder,
}
BOX_READERS: dict[str, Callable[[Path, Path | None], DatasetAnnotations]] = {
    "COCO": coco.read_coco,
    "YOLO": yolo.read_yolo,
    "VOC": voc.read_voc,
    "labelme": labelme.read_labelme,
    "box CSV": box_tables.read_box_tables,
}
OUTLINE_READERS: dict[
    str, Callable[[Path, Path | None], tuple[DatasetAnnotations, dict[Path, coco_masks.COCOMask]]]
] = {
    "COCO": coco_masks.read_coco_masks,
    "labelme": labelme_masks.read_labelme_masks,
    "YOLO": yolo_masks.read_yolo_masks,
}


class SourceFormat(NamedTuple):
    """Format of a dataset's annotations, and the folder or file that its reader opens.

    ``built-in`` and ``shards`` have no such path; their root is the spec.
    """

    name: str
    root: Path


def find_format(kind: Kind, path: Path, images: Path | None = None) -> SourceFormat | None:
    """Find the annotations of a kind at a path; None if there are none.

    Args:
        kind: kind of annotations.
        path: folder or file.
        images: folder of the images, if they are not below the same folder.
    """
    return DETECTORS[kind](path, images)


def read_boxes(found: SourceFormat, images: Path | None = None) -> DatasetAnnotations:
    """Read the bounding boxes of a dataset; ``images`` as for :func:`find_format`.

    Raises:
        Error: the annotations cannot be read.
    """
    dataset = BOX_READERS[found.name](found.root, images)
    separate_trainval(dataset.splits, operator.attrgetter("image_path"), dataset.unreadable_images)
    return dataset


def count_contents(kind: Kind, found: SourceFormat, images: Path | None = None) -> str:
    """Count the images and the classes or captions of a dataset, as in ``164 images, 1 class``; empty for shards.

    Raises:
        Error: the annotations cannot be read.
    """
    return COUNTERS[kind](found, images)


# detection


def _find_labels(path: Path, images: Path | None) -> SourceFormat | None:
    if parsing.is_file(path):
        if path.suffix.lower() != ".csv":
            return None
        is_other = box_tables.has_box_columns(path) or (
            captions.has_captions(path) and not label_tables.is_label_table(path)
        )
        return None if is_other else SourceFormat("CSV", path)
    roots = [path] if images else list(image_folder.descend_single_folders(path))
    root = next((root for root in roots if label_tables.find_label_tables(root)), path)
    tables = label_tables.find_label_tables(root)
    folders = [] if images else _list_class_folders(path)
    if tables and not (_are_classes(folders) and _agree(path, folders, root, tables)):
        return SourceFormat("CSV", tables[0][1] if len(tables) == 1 else root)
    if _are_classes(folders) or (
        folders and not any(find_format(kind, path) for kind in ("boxes", "masks", "captions"))
    ):
        return SourceFormat("image folder", path)
    return None


def _agree(path: Path, folders: list[Path], root: Path, tables: list[tuple[str, Path]]) -> bool:
    """Return whether folders are surely classes beside tables: those of the tables, or splits with other images."""
    try:
        splits = label_tables.read_csv(tables[0][1] if len(tables) == 1 else root, None).values()
    except Error:
        return True
    if {name for split in splits for name in split.class_names} <= {folder.name for folder in folders}:
        return True
    if "" in image_folder.find_used_splits(path)[0]:
        return False
    parents = {folder.parent for folder in folders}
    num_listed = sum(bool(parents & {*file.parents}) for split in splits for file in split.files)
    return 2 * num_listed < sum(1 for folder in folders for _ in walk_images(folder))


def _list_class_folders(path: Path) -> list[Path]:
    """List the folders that contain an image, in each split."""
    splits = image_folder.find_used_splits(path)[0].values()
    folders = [folder for split in splits for folder in list_folders(split)]
    return [folder for folder in folders if next(walk_images(folder), None)]


def _are_classes(folders: list[Path]) -> bool:
    """Return whether folders of images are surely classes: not a single one, and without annotations of the images."""
    parents = {folder.parent for folder in folders}
    others = [folder for parent in parents for folder in list_folders(parent) if folder not in folders]
    layout_names = {*mask_folders.IMAGE_FOLDERS, *mask_folders.MASK_FOLDERS}
    if (
        len({folder.name for folder in folders}) < 2
        or {path.name.lower() for path in (*folders, *others)} & layout_names
    ):
        return False
    coco_files = [file for parent in parents for _, file in coco.find_coco_files(parent)]
    if any(parsing.contains_pattern(file, coco.BOX_KEYS) for file in coco_files):
        return False
    sample = (*folders[:MAX_CLASS_FOLDERS], *others[:MAX_CLASS_FOLDERS])
    num_images = sum(1 for folder in folders[:MAX_CLASS_FOLDERS] for _ in walk_images(folder))
    files = [
        *annotation_files.find_files_of_images(sample, ".xml"),
        *filter(yolo.is_box_file, annotation_files.find_files_of_images(sample, ".txt")),
        *filter(labelme.is_labelme_file, annotation_files.find_files_of_images(sample, ".json")),
    ]
    has_masks = any(map(mask_folders.is_mask_folder, parents))
    return 2 * len(files) < num_images and not has_masks


def _find_boxes(path: Path, images: Path | None) -> SourceFormat | None:
    if parsing.is_file(path):
        if path.suffix.lower() in yolo.DESCRIPTION_SUFFIXES:
            return SourceFormat("YOLO", path)
        if path.suffix.lower() == ".csv":
            return SourceFormat("box CSV", path) if box_tables.has_box_columns(path) else None
        is_coco = path.suffix.lower() == ".json" and not captions.is_caption_file(path)
        return SourceFormat("COCO", path) if is_coco else None
    folders = list(image_folder.descend_single_folders(path))
    roots = [path] if images else folders
    for root in roots:
        for name, is_layout in BOX_LAYOUTS.items():
            if is_layout(root):
                return SourceFormat(name, root)
    for folder in folders[1:] if images else ():
        if coco.find_coco_files(folder):
            return SourceFormat("COCO", folder)
    if voc.has_xml_files(path, images):
        return SourceFormat("VOC", path)
    if yolo.has_box_files(path, images):
        return SourceFormat("YOLO", path)
    if labelme.has_labelme_files(path, images):
        return SourceFormat("labelme", path)
    return next((SourceFormat("box CSV", root) for root in roots if box_tables.find_box_tables(root)), None)


def _find_masks(path: Path, images: Path | None) -> SourceFormat | None:
    if parsing.is_file(path):
        if path.suffix.lower() == ".json" and coco_masks.has_outlines(path):
            return SourceFormat("COCO", path)
        return _find_polygons(path, images)
    if images and mask_folders.has_masks(path, images):
        return SourceFormat("mask folder", path)
    for root in image_folder.descend_single_folders(path):
        if not images and mask_folders.is_mask_folder(root):
            return SourceFormat("mask folder", root)
        if coco_masks.has_outlines(root):
            return SourceFormat("COCO", root)
    if labelme_masks.has_labelme_outlines(path, images):
        return SourceFormat("labelme", path)
    return _find_polygons(path, images)


def _find_polygons(path: Path, images: Path | None) -> SourceFormat | None:
    """Find the polygons of YOLO."""
    boxes = _find_boxes(path, images)
    return boxes if boxes and boxes.name == "YOLO" and yolo.has_polygons(boxes.root) else None


def _find_captions(path: Path, images: Path | None) -> SourceFormat | None:
    if path.suffix.lower() == ".json" and parsing.is_file(path):
        has_captions = captions.is_caption_file(path) or not parsing.contains_pattern(path, coco.BOX_KEYS)
    else:
        has_captions = captions.has_captions(path, images)
    return SourceFormat("caption files", path) if has_captions else None


def _find_images(path: Path, images: Path | None) -> SourceFormat | None:
    folder = images or path
    if parsing.is_file(folder):
        return _find_labels(folder, None)
    return SourceFormat("image files", folder) if next(walk_images(folder), None) else None


def _find_games(path: Path, _: Path | None) -> SourceFormat | None:
    return SourceFormat("SGF", path) if next(list_sgf_files(path), None) else None


def list_sgf_files(path: Path) -> Iterator[Path]:
    """List the SGF files of a folder and its subfolders, or the file itself."""
    if parsing.is_file(path):
        return iter([path] if path.suffix.lower() == ".sgf" else [])
    return walk_files(path, ".sgf")


DETECTORS: dict[Kind, Callable[[Path, Path | None], SourceFormat | None]] = {
    "labels": _find_labels,
    "boxes": _find_boxes,
    "masks": _find_masks,
    "captions": _find_captions,
    "images": _find_images,
    "games": _find_games,
}


# counts


def _count_labels(found: SourceFormat, images: Path | None) -> str:
    if found.name == "shards":  # counting them takes as long as reading them
        return ""
    if found.name == "CSV":
        splits = label_tables.read_csv(found.root, images).values()
        class_names = [name for split in splits for name in split.class_names]
        return _format_images(len(class_names), len({*class_names}))
    folders = _list_class_folders(found.root)
    num_images = sum(1 for folder in folders for _ in walk_images(folder))
    return _format_images(num_images, len({folder.name for folder in folders}))


def _count_boxes(found: SourceFormat, images: Path | None) -> str:
    dataset = read_boxes(found, images)
    num_images = len({entry.image_path for entries in dataset.splits.values() for entry in entries})
    return _format_images(num_images, len(dataset.labels))


def _count_masks(found: SourceFormat, images: Path | None) -> str:
    if found.name in OUTLINE_READERS:
        annotations, image_masks = OUTLINE_READERS[found.name](found.root, images)
        return _format_images(len(image_masks), len(annotations.labels) + 1)
    index = mask_folders.index_folder(found.root, images)
    image_paths = {pair.image_path for pair in index.iterate_pairs() if pair.mask_path}  # trainval has those of train
    return _format_images(len(image_paths), len(index.class_table.labels))


def _count_captions(found: SourceFormat, images: Path | None) -> str:
    parsed = captions.parse_caption_files(found.root, images)
    counts = [len(texts) for split_images in parsed.splits.values() for texts in split_images.values()]
    return f"{format_count(len(counts), 'image')}, {format_count(sum(counts), 'caption')}"


def _count_images(found: SourceFormat, _: Path | None) -> str:
    if found.name != "image files":
        return _count_labels(found, None)
    return format_count(sum(1 for _ in walk_images(found.root)), "image")


def _count_games(found: SourceFormat, _: Path | None) -> str:
    return format_count(sum(1 for _ in list_sgf_files(found.root)), "game")


def _format_images(num_images: int, num_classes: int) -> str:
    return f"{format_count(num_images, 'image')}, {format_count(num_classes, 'class')}"


COUNTERS: dict[Kind, Callable[[SourceFormat, Path | None], str]] = {
    "labels": _count_labels,
    "boxes": _count_boxes,
    "masks": _count_masks,
    "captions": _count_captions,
    "images": _count_images,
    "games": _count_games,
}
