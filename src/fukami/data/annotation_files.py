"""Annotation files of images: files with the stem of an image, whatever their folders are called."""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from fukami.data.annotations import parse_split
from fukami.image import io as image_io

MAX_WALKED_FILES = 1_000_000  # files below a folder among which annotations are searched


def walk_files(root: Path) -> Iterator[Path]:
    """Iterate over the first million files below a folder, without hidden files and macOS metadata."""
    return (Path(folder, name) for folder, name in _walk_names(root))


def _walk_names(root: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the folder and the name of each file; strings take a fifth of the time of paths."""

    def walk() -> Iterator[tuple[str, str]]:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
            yield from ((folder, name) for name in names if not name.startswith("."))

    return itertools.islice(walk(), MAX_WALKED_FILES)


def find_files_of_images(roots: Iterable[Path], suffix: str, images: Path | None = None) -> list[Path]:
    """Find the files below folders whose stem is that of an image.

    Args:
        roots: folders of the files.
        suffix: suffix of the files, in lower case.
        images: folder of the images; None: the same folders.
    """
    names = list(itertools.chain.from_iterable(map(_walk_names, roots)))
    files = sorted(Path(folder, name) for folder, name in names if name.lower().endswith(suffix))
    if not files:
        return []
    suffixes = image_io.get_image_suffixes()
    image_names = _walk_names(images) if images else names
    stems_and_suffixes = (os.path.splitext(name) for _, name in image_names)  # noqa: PTH122
    stems = {stem for stem, image_suffix in stems_and_suffixes if image_suffix.lower() in suffixes}
    return [file for file in files if file.stem in stems]


def pair_with_images(files: Sequence[Path], images: Sequence[Path]) -> dict[Path, Path]:
    """Pair each annotation file with the image of the same stem, if there is one.

    Of several such images, it is the one in the same folder, or else the one whose path shares most folder names in the
    same order: ``boxes/train/1.xml`` belongs to ``photos/train/1.jpg``, not to ``photos/test/1.jpg``.
    """
    by_stem = defaultdict(list)
    by_folder: dict[Path, dict[str, Path]] = defaultdict(dict)
    for image in images:
        by_stem[image.stem].append(image)
        by_folder[image.parent].setdefault(image.stem, image)

    @cache
    def rank_folders(folder: Path) -> list[Path]:
        return sorted(by_folder, key=lambda other: (other != folder, -count_common_parts(folder.parts, other.parts)))

    pairs: dict[Path, Path] = {}
    for file in files:
        candidates = by_stem.get(file.stem, [])
        if len(candidates) == 1:
            pairs[file] = candidates[0]
        elif candidates:
            pairs[file] = next(
                by_folder[folder][file.stem] for folder in rank_folders(file.parent) if file.stem in by_folder[folder]
            )
    return pairs


def count_common_parts(one: Sequence[str], other: Sequence[str]) -> int:
    """Count the names of the longest common subsequence of two paths."""
    counts = [0] * (len(other) + 1)
    for name in one:
        diagonal = 0
        for index, other_name in enumerate(other, 1):
            above = counts[index]
            counts[index] = diagonal + 1 if name == other_name else max(above, counts[index - 1])
            diagonal = above
    return counts[-1]


def find_split(path: Path, root: Path) -> str:
    """Return the split that a folder between ``root`` and a file denotes; empty if none does."""
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return next((split for split in map(parse_split, folders) if split), "")
