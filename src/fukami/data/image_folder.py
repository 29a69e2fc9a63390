"""Image folders with one subfolder per class, and archives of them."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fukami.data import archives
from fukami.data.files import list_folders, walk_images
from fukami.data.splits import SPLIT_NAMES, SPLITS, Split
from fukami.errors import Error
from fukami.image.channels import Levels
from fukami.image.transform import SquareTransform
from fukami.progress import track

logger = logging.getLogger(__name__)
MAX_LISTED = 3  # unreadable images listed in a message
MAX_UNREADABLE = 100  # default maximum number of unreadable images per split and process


@dataclass(frozen=True)
class FolderSplit:
    """Image files of one split, in order, and the class name of each."""

    files: tuple[Path, ...]
    class_names: tuple[str, ...]


def scan_folder(path: Path) -> dict[Split, FolderSplit]:
    """Return the splits of a folder or an archive; they are all training data if it has none.

    ``PATH/train/CLASS/...``, ``PATH/val/CLASS/...`` and ``PATH/test/CLASS/...`` are splits; otherwise
    ``PATH/CLASS/...`` is the whole dataset. Images in subfolders of a class belong to the class. Hidden files and files
    without an image suffix are skipped.

    Raises:
        Error: the path contains no folders of images.
    """
    folders, unused = find_used_splits(archives.unpack(path) if path.is_file() else path)
    for folder, reason in unused.items():
        logger.warning(f"{folder} {reason}, and is not used; fukami predict classifies its images")
    if "" not in folders:
        return {split: _scan_split(path, folders[split]) for split in SPLITS if split in folders}
    if not list_folders(folders[""]):
        raise Error(f"{path} contains no folders; expected one folder of images for each class")
    return {"train": _scan_split(path, folders[""])}


def find_used_splits(root: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """Find the splits that are used, as :func:`find_splits`, and the other folders with the reason of each.

    A validation or test split without any class of the training split is not used, such as the test images of a
    competition.
    """
    splits, unused = find_splits(root), {}
    train_names = {folder.name for folder in list_folders(splits["train"])} if "train" in splits else set()
    for split in ("val", "test") if train_names else ():
        names = {folder.name for folder in list_folders(splits[split])} if split in splits else train_names
        if not names & train_names:
            reason = "has none of the classes of the training split" if names else "has no folders of classes"
            unused[splits.pop(split)] = reason
    return splits, unused


def find_splits(root: Path) -> dict[str, Path]:
    """Find the folders of classes of each split, or of an empty name if the dataset has no splits."""
    while len(folders := list_folders(root)) == 1 and _is_top_level_folder(folders[0]):
        root = folders[0]  # of an archive
    by_name = {folder.name.lower(): folder for folder in folders if folder.name.lower() in SPLIT_NAMES}
    if by_name.keys() == {"train"} and (words := _find_split_words(folders)):
        return words
    if by_name.keys() == {"train"} and len(folders) > 1 and not list_folders(by_name["train"]):
        return {"": root}  # the vehicle
    splits: dict[str, Path] = {}
    for name, split in SPLIT_NAMES.items():
        if name in by_name:
            splits.setdefault(split, by_name[name])
    return splits or _find_split_words(folders) or {"": root}


def _is_top_level_folder(folder: Path) -> bool:
    """Return whether a folder that is the only one at its level contains folders of classes or splits."""
    inner = list_folders(folder)
    return len(inner) > 1 or any(child.name.lower() in SPLIT_NAMES and list_folders(child) for child in inner)


def _find_split_words(folders: Sequence[Path]) -> dict[str, Path]:
    """Find splits by words of folder names, such as ``training_set`` and ``seg_test``; none if there is only one split.

    A folder without folders of classes is a split only if its name has the same other words as that of the training
    split, as ``test_images`` has beside ``train_images``. A folder that contains only a folder of its name stands for
    that one, as in some archives.
    """
    named: list[tuple[str, Path, list[str]]] = []  # split, folder, and the other words of its name
    for folder in folders:
        words = [word for word in re.split("[^a-z]+", folder.name.lower()) if word]
        names = [word for word in words if word in SPLIT_NAMES]
        if len(names) != 1:
            continue  # folders of classes are not listed, which may have millions of images
        while [inner.name for inner in list_folders(folder)] == [folder.name]:
            folder = folder / folder.name
        words.remove(names[0])
        named.append((SPLIT_NAMES[names[0]], folder, words))
    named.sort(key=lambda item: not list_folders(item[1]))
    train_words = next((words for split, _, words in named if split == "train"), None)
    splits: dict[str, Path] = {}
    for split, folder, words in named:
        if list_folders(folder) or words == train_words:
            splits.setdefault(split, folder)
    return splits if "train" in splits and len(splits) > 1 else {}


def stack_images(
    results: Iterable[Levels | Error], count: int, transform: SquareTransform, max_unreadable: int = MAX_UNREADABLE
) -> tuple[list[int], Levels]:
    """Stack the readable images as ``(N, H, W, C)``, as float32 if one of them is; also return their indices.

    Unreadable images are skipped and reported.

    Args:
        results: each image, or the error of reading it.
        count: number of results.
        transform: preprocessing, which defines the size and the channels.
        max_unreadable: maximum number of unreadable images.

    Raises:
        Error: more than ``max_unreadable`` images are unreadable, or all are.
    """
    images: Levels = np.zeros((count, transform.size, transform.size, transform.channels), np.uint8)
    indices: list[int] = []
    errors: list[str] = []
    for index, result in enumerate(track(results, "reading images", count)):
        if isinstance(result, Error):
            errors.append(str(result))
        else:
            if result.dtype != images.dtype:
                images = images.astype(np.float32, copy=False)
            images[len(indices)] = result
            indices.append(index)
    if errors and not indices:
        raise Error(f"none of the {count} images can be read; the first: {errors[0]}")
    if errors:
        logger.warning(f"{len(errors)} of {count} images are skipped:\n{format_errors(errors)}")
    check_unreadable(errors, max_unreadable)
    return indices, images[: len(indices)]


def check_unreadable(errors: Sequence[str], max_unreadable: int) -> None:
    """Check that at most ``max_unreadable`` images are unreadable.

    Raises:
        Error: there are more; the message lists the first.
    """
    if len(errors) > max_unreadable:
        raise Error(
            f"{len(errors)} images are unreadable, and --max-unreadable allows {max_unreadable}; fix them or allow "
            f"more. The first:\n{format_errors(errors)}"
        )


def format_errors(errors: Sequence[str]) -> str:
    """Format the first ``MAX_LISTED`` errors, one per line, and the number of the others."""
    more = (
        f"\n  ... and {len(errors) - MAX_LISTED} more; fukami doctor lists all of them"
        if len(errors) > MAX_LISTED
        else ""
    )
    return "  " + "\n  ".join(errors[:MAX_LISTED]) + more


def _scan_split(path: Path, root: Path) -> FolderSplit:
    images = [(file, folder.name) for folder in list_folders(root) for file in sorted(walk_images(folder))]
    if not images:
        raise Error(f"{path}: no images in the folders of {root}; expected {root.name}/CLASS/image.png")
    files, classes = zip(*images, strict=True)
    return FolderSplit(files, classes)


def descend_single_folders(path: Path) -> Iterator[Path]:
    """Iterate over a folder and its only subfolder, recursively: an archive may have a single top-level folder."""
    folders = [path]
    while len(folders) == 1:
        yield folders[0]
        folders = list_folders(folders[0])
