"""Annotation files of images: files with the stem of an image, whatever their folders are called."""

import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fukami.data.annotations import parse_split
from fukami.data.files import walk_names
from fukami.image import io as image_io

MAX_WALKED_FILES = 1_000_000  # files below a folder among which annotations are searched
MAX_CANDIDATES = 100  # images of the same name whose folders are compared with that of an annotation
MAX_LAST_PARTS = 4  # last parts of a path by which images are indexed


def find_files_of_images(roots: Iterable[Path], suffix: str, images: Path | None = None) -> list[Path]:
    """Find the files below folders whose stem is that of an image.

    Args:
        roots: folders of the files.
        suffix: suffix of the files, in lower case.
        images: folder of the images; None: the same folders.
    """
    names = list(itertools.chain.from_iterable(map(_walk_first_names, roots)))
    files = sorted(Path(folder, name) for folder, name in names if name.lower().endswith(suffix))
    if not files:
        return []
    suffixes = image_io.get_image_suffixes()
    image_names = _walk_first_names(images) if images else names
    stems_and_suffixes = (os.path.splitext(name) for _, name in image_names)  # noqa: PTH122
    stems = {normalize_name(stem) for stem, image_suffix in stems_and_suffixes if image_suffix.lower() in suffixes}
    return [file for file in files if normalize_name(file.stem) in stems]


def _walk_first_names(root: Path) -> Iterator[tuple[str, str]]:
    return itertools.islice(walk_names(root), MAX_WALKED_FILES)


def pair_with_images(files: Sequence[Path], images: Sequence[Path]) -> dict[Path, Path]:
    """Pair each annotation file with the image of the same stem, if there is one.

    Of several such images, it is the one in the same folder, or else the one whose path shares most folder names in the
    same order: ``boxes/train/1.xml`` belongs to ``photos/train/1.jpg``, not to ``photos/test/1.jpg``. Of several files
    of an image, one in a folder whose other files belong to images in another folder is of a missing image.
    """
    by_path: dict[tuple[Path, str], Path] = {}
    by_stem = ImageNames()
    for image in images:
        stem = normalize_name(image.stem)
        by_path.setdefault((image.parent, stem), image)
        by_stem.add(stem, image)
    pairs: dict[Path, Path] = {}
    for file in files:
        stem = normalize_name(file.stem)
        image_path = by_path.get((file.parent, stem)) or by_stem.choose_nearest(stem, file)
        if image_path:
            pairs[file] = image_path
    return _remove_files_of_other_folders(pairs)


class ImageNames:
    """Images by their names."""

    def __init__(self) -> None:
        self.images: dict[str, list[Path]] = defaultdict(list)
        self.images_in_folders: dict[tuple[str, str], list[Path]] = defaultdict(list)  # by the folder's name, too

    def add(self, name: str, image: Path) -> None:
        """Add an image."""
        self.images[name].append(image)
        self.images_in_folders[image.parent.name, name].append(image)

    def choose_nearest(self, name: str, file: Path) -> Path | None:
        """Return the image of a name that is nearest to a file and not of another split; None if there is none."""
        candidates = self.images.get(name, [])
        if len(candidates) > MAX_CANDIDATES:  # comparing each file with each image would take hours
            candidates = self.images_in_folders.get((file.parent.name, name), candidates)[:MAX_CANDIDATES]
        return choose_nearest([image for image in candidates if not are_of_other_splits(image, file)], file)


def _remove_files_of_other_folders(pairs: dict[Path, Path]) -> dict[Path, Path]:
    """Remove files of an image that has nearer ones, if the other files of their folder are of images elsewhere."""
    files_by_image: dict[Path, list[Path]] = defaultdict(list)
    for file, image in pairs.items():
        files_by_image[image].append(file)
    image_folders: dict[Path, set[Path]] = defaultdict(set)  # of the files of a folder that are the nearest ones
    distant: list[Path] = []
    for image, files in files_by_image.items():
        if len(files) == 1:
            image_folders[files[0].parent].add(image.parent)
            continue
        counts = [count_common_parts(image.parent.parts, file.parent.parts) for file in files]
        for file, count in zip(files, counts, strict=True):
            if count == max(counts):
                image_folders[file.parent].add(image.parent)
            else:
                distant.append(file)
    for file in distant:
        if image_folders[file.parent] and pairs[file].parent not in image_folders[file.parent]:
            del pairs[file]
    return pairs


def are_of_other_splits(image: Path, file: Path) -> bool:
    """Return whether the folders of an image and of a file denote different splits, below those that both have."""
    parts = image.parent.parts, file.parent.parts
    common = sum(1 for _ in itertools.takewhile(lambda names: names[0] == names[1], zip(*parts, strict=False)))
    splits = {next(filter(None, map(parse_split, path[common:])), "") for path in parts} - {""}
    return len(splits) > 1 and splits not in ({"trainval", "train"}, {"trainval", "val"})


def choose_nearest(paths: Sequence[Path], file: Path) -> Path | None:
    """Return the first path that shares most folder names with that of a file; None if there are no paths."""
    if len(paths) < 2:
        return next(iter(paths), None)
    return max(paths, key=lambda path: count_common_parts(path.parent.parts, file.parent.parts))


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


def normalize_name(name: str) -> str:
    """Compose the characters of a file name (NFC): those of macOS are decomposed."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def list_relative_names(path: Path, root: Path) -> tuple[str, str]:
    """Return two names of a file without its suffix: its path below a folder, and its stem."""
    return normalize_name(path.relative_to(root).with_suffix("").as_posix()), normalize_name(path.stem)


def find_stem(name: str, stems: Container[str]) -> str:
    r"""Return the name among ``stems`` that a line of a list denotes; or else the line itself.

    It is the path, with or without a suffix, or its last part: ``a/1``, ``a/1.jpg``, ``1`` or ``images/1.jpg``.
    """
    path = PurePosixPath(normalize_name(name).replace("\\", "/"))
    names = path.as_posix(), path.with_suffix("").as_posix() if path.name else "", path.name, path.stem
    return next((stem for stem in names if stem in stems), name)


class ImageIndex:
    """The images below a folder, by relative path and by name.

    Args:
        root: the folder.
        files: files below it; those without the suffix of an image are ignored.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        suffixes = image_io.get_image_suffixes()
        self.root = root
        self.images = sorted(path for path in files if path.suffix.lower() in suffixes)
        self.names = [normalize_name(path.relative_to(root).as_posix()) for path in self.images]
        self.by_path = dict(zip(self.names, self.images, strict=True))
        self.by_last_parts: dict[int, dict[str, list[Path]]] = {}  # by the number of parts

    def find(self, name: str, file: Path, split: str) -> Path | None:
        r"""Find the image that an annotation file names by its path or its name; None if there is none.

        It is an image whose path ends with as many of the name's last parts as possible. Of several, it is one in a
        folder of the split, and of these the one whose path shares most folder names with that of the file. A ``\``
        may separate folders.
        """
        name = normalize_name(name)
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if image := self.by_path.get(name) or self.by_path.get("/".join(parts)):
            return image
        candidates = self._group_by_last_parts(1).get(name, [])
        for length in range(min(len(parts), MAX_LAST_PARTS), 0, -1):
            candidates = candidates or self._group_by_last_parts(length).get("/".join(parts[-length:]), [])
        candidates = candidates[:MAX_CANDIDATES]
        of_split = [image for image in candidates if find_split(image, self.root) == split]
        return choose_nearest(of_split or candidates, file)

    def _group_by_last_parts(self, length: int) -> dict[str, list[Path]]:
        """Group the images by the last parts of their paths, such as ``train/1.jpg`` for two."""
        if length not in self.by_last_parts:
            groups = self.by_last_parts[length] = defaultdict(list)
            for name, image in zip(self.names, self.images, strict=True):
                groups["/".join(name.rsplit("/", length)[-length:])].append(image)
        return self.by_last_parts[length]
