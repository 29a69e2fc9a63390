"""Validation of classification datasets: unreadable files, missing classes, leaks between splits.

The dataset is a folder of images by class, an archive of one, a CSV file with path and label, shards, or a built-in
dataset. The checks are stricter than the readers: files that training silently ignores are reported, and one error does
not stop the rest.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fukami.data import archives, image_folder, label_tables, labeled_images, remote, shards, tar
from fukami.data.annotations import check_splits
from fukami.data.files import list_folders, locate_file, walk_files
from fukami.data.findings import (
    Findings,
    ImageItem,
    PathNames,
    describe_conflict,
    detect_format,
    get_suffix,
    hash_images,
    hash_pixels,
)
from fukami.data.parsing import exists, is_file, read_text
from fukami.data.sources import DataSource
from fukami.data.splits import SPLIT_NAMES, SPLITS
from fukami.errors import Error
from fukami.image import io as image_io


def check_samples(source: DataSource, findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield the readable images of a classification dataset with their digests, and report problems."""
    try:
        found = source.find("labels")
    except Error as error:
        findings.add("unreadable", str(error).removeprefix(f"{source.location} "), file=str(source.location))
        return
    layout, root = found or ("image folder", source.path)
    if layout == "built-in":
        yield from _check_built_in_dataset(source.spec, findings)
    elif layout == "shards":
        yield from hash_images(_check_shards(source.spec, findings), findings)
    else:
        items = _check_tables(root, source.images, findings) if layout == "CSV" else _check_folder(source, findings)
        yield from hash_images(items, findings)


def _check_built_in_dataset(spec: str, findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield the images of a built-in dataset and the digests of their pixels."""
    *splits, labels = labeled_images.load_labeled_images(spec, 0.0)
    files: list[ImageItem] = []
    for split, source in zip(SPLITS, splits, strict=True):
        for index, target in enumerate(source.targets.tolist()):
            image = source.items[index]
            if isinstance(image, Path):
                files.append(ImageItem(image, str(image), labels[target], split))
            elif isinstance(image, np.ndarray):
                findings.image_counts[split][labels[target]] += 1
                yield ImageItem(Path(), f"{spec} {split} {index}", labels[target], split), hash_pixels(image)
    yield from hash_images(files, findings)


# folders and archives


def _check_folder(source: DataSource, findings: Findings) -> list[ImageItem]:
    """List the images of a folder or an archive by class, and check the layout."""
    layout = _ClassFolders(PathNames(source), findings)
    found, unused = image_folder.find_used_splits(source.path)
    for folder, reason in unused.items():
        findings.add("ignored", f"{reason}, and is not used", file=layout.format_path(folder))
    if "" in found:
        if not list_folders(found[""]):
            detail = "contains no folders; expected one folder of images for each class"
            findings.add("empty", detail, file=str(source.location))
        layout.check_loose_files(found[""])
        return layout.list_class_images(found[""], "")
    splits = [found[split] for split in SPLITS if split in found]  # train first: a leak is reported for the test file
    top_folder = splits[0].parent
    layout.check_loose_files(top_folder)
    for other in list_folders(top_folder):
        if other not in (*splits, *unused):
            detail = f"is a folder next to {splits[0].name} but no split, and nothing in it is read"
            findings.add("ignored", detail, file=layout.format_path(other))
    if "train" not in found:
        findings.add(
            "empty", "has no train folder, so there are no training images", file=layout.format_path(top_folder)
        )
    items = []
    for split in splits:
        layout.check_loose_files(split)
        items += layout.list_class_images(split, split.name)
    return items


@dataclass
class _ClassFolders:
    """A folder of images by class, and the paths that messages show for its files."""

    format_path: PathNames
    findings: Findings

    def __post_init__(self) -> None:
        self.suffixes = image_io.get_image_suffixes()

    def check_loose_files(self, folder: Path) -> None:
        """Report images next to the class folders, which belong to no class."""
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in self.suffixes and not file.name.startswith(".") and not file.is_dir():
                detail = f"is next to the class folders and is not read; move it into one: {folder.name}/CLASS"
                self.findings.add("no class", detail, file=self.format_path(file))

    def list_class_images(self, root: Path, split: str) -> list[ImageItem]:
        """List the images of a split by class, and report files that are not read."""
        items: list[ImageItem] = []
        for folder in list_folders(root):
            self.findings.image_counts[split][folder.name] += 0
            num_before = len(items)
            for file in walk_files(folder):
                if file.suffix.lower() in self.suffixes:
                    items.append(ImageItem(file, self.format_path(file), folder.name, split))
                else:
                    self._report_unread_file(file)
            if len(items) == num_before:
                self.findings.add("empty", f"the folder {self.format_path(folder)} has no images", label=folder.name)
        return items

    def _report_unread_file(self, file: Path) -> None:
        """Report a file that training ignores because of its suffix."""
        description = f"ends in {file.suffix!r}" if file.suffix else "has no suffix"
        image_format = detect_format(file)
        if image_format:
            new_name = file.stem + get_suffix(image_format)
            detail = f"is {image_format} by content but {description}, so it is not read; rename it to {new_name}"
            self.findings.add("wrong suffix", detail, file=self.format_path(file))
        else:
            detail = f"{description} and is not read; images end in .png, .jpg ..."
            self.findings.add("not an image", detail, file=self.format_path(file))


# shards


def _check_shards(spec: str, findings: Findings) -> Iterator[ImageItem]:
    """Yield the images in shards, and report corrupted shards and samples."""
    base, index = shards.load_index(spec)
    has_splits = bool(index["val"] or index["test"])
    for split in SPLITS:
        for shard in index[split]:
            for problem in shard.get("problems", ()):
                findings.add("unreadable", problem, file=shard["name"])
            yield from _check_shard(base, shard, split if has_splits else "", index["labels"], findings)


def _check_shard(
    base: str, shard: shards.ShardEntry, split: str, labels: Sequence[str], findings: Findings
) -> Iterator[ImageItem]:
    """Yield the images in a shard that an index lists."""
    stream = None
    try:
        stream = remote.open_stream(shards.locate_shard(base, shard["name"]))
        samples = zip(shard["classes"], shard["starts"], shard["lengths"], strict=True)
        for sample_number, (target, start, length) in enumerate(samples, 1):
            try:
                name, content = tar.extract_image(stream.read(start, length), shard["name"], sample_number)
            except remote.NotFoundError:
                raise
            except Error as error:
                findings.add("unreadable", str(error), file=f"{shard['name']}, sample {sample_number}")
            else:
                yield ImageItem(Path(name), name, labels[target], split, content)
        if stream.size not in (None, shard["bytes"]):
            detail = f"has {stream.size:,} bytes, not {shard['bytes']:,} as in {shards.INDEX_FILE}; download it again"
            findings.add("unreadable", detail, file=shard["name"])
    except Error as error:
        findings.add("missing", str(error), file=shard["name"])
    finally:
        if stream is not None:
            stream.close()


# lists


def _check_tables(path: Path, images: Path | None, findings: Findings) -> list[ImageItem]:
    """List the images of a CSV file, or of those in a folder; paths are relative to ``images``, or to the file."""
    tables = label_tables.find_label_tables(path)
    try:
        check_splits(path, tables)
    except Error as error:
        findings.add("unreadable", str(error).removeprefix(f"{path} "), file=str(path))
        return []
    items = [
        item if item.split else replace(item, split=table_split)
        for table_split, table in tables
        for item in _check_csv(table, images or table.parent, findings, has_splits=bool(table_split))
    ]
    return _remove_duplicates(sorted(items, key=lambda item: item.split not in ("", "train")), findings)


def _check_csv(path: Path, folder: Path, findings: Findings, *, has_splits: bool) -> list[ImageItem]:
    """List the images of a folder in a CSV file with the columns ``path``, ``label`` and optionally ``split``.

    With ``has_splits``, rows without a split belong to that of the file.
    """
    try:
        with io.StringIO(read_text(path), newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            missing = [name for name in ("path", "label") if name not in header]
            if missing:
                columns = ", ".join(map(repr, header)) or "nothing"
                detail = f"has no column {' and no column '.join(missing)}; its header is {columns}"
                findings.add("no column", detail, file=str(path))
                return []
            rows = [(reader.line_num, row) for row in reader]
    except (Error, csv.Error) as error:
        detail = str(error).removeprefix(f"{path} ") if isinstance(error, Error) else f"is no CSV file ({error})"
        findings.add("unreadable", detail, file=str(path))
        return []
    if not rows:
        findings.add("empty", "lists no images", file=str(path))
    items = [item for line, row in rows if (item := _check_row(folder, path, line, row, findings))]
    if not has_splits and len({bool(item.split) for item in items}) > 1:
        detail = "has rows with a split and rows without one, which are used for training; set all splits or none"
        findings.add("no split", detail, file=str(path))
    return items


def _check_row(folder: Path, path: Path, line: int, row: dict[str, str | None], findings: Findings) -> ImageItem | None:
    """Return the image of a row, or None if it cannot be checked."""
    image_path, label, split = ((row.get(name) or "").strip() for name in ("path", "label", "split"))
    location = f"line {line} of {path}"
    if not image_path:
        findings.add("missing", f"{location} has no path", file=str(path))
        return None
    file = locate_file(folder, image_path)
    if archives.is_outside(file, path):
        findings.add("missing", f"lies outside the archive, but {location} lists it", file=str(file))
        return None
    if not is_file(file):
        reason = "is not a file" if exists(file) else "does not exist"
        findings.add("missing", f"{reason}, but {location} lists it", file=str(file))
        return None
    if not label:
        findings.add("no class", f"{location} has no label", file=str(file))
        return None
    split_name = "train" if SPLIT_NAMES.get(split.lower()) == "train" else split.lower()
    if split_name and split_name not in SPLIT_NAMES:
        allowed = ", ".join(SPLIT_NAMES)
        findings.add("no split", f"{location} has the split {split!r}; expected one of {allowed}", file=str(file))
    return ImageItem(file, str(file), label, split_name)


def _remove_duplicates(items: Iterable[ImageItem], findings: Findings) -> list[ImageItem]:
    """Return each file once, and report those that are listed again."""
    first: dict[Path, ImageItem] = {}
    for item in items:
        previous = first.setdefault(item.path, item)
        if previous is not item:
            kind, detail = describe_conflict(item, previous)
            findings.add(kind, f"is listed twice{detail}", file=item.name)
    return list(first.values())
