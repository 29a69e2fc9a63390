"""Captioning datasets by name or path.

Supported formats: Flickr8k and Flickr30k (``captions.txt``, ``results.csv``, ``*.token``, ``*.token.txt``, with split
lists such as ``*trainImages.txt``), COCO's ``captions_*.json``, Karpathy's ``dataset*.json``, and a CSV of images and
captions. The images may lie anywhere below the same folder.
"""

import csv
import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from fukami.data import coco, image_folder, labeled_images, locations, scenes, streaming
from fukami.data.annotations import SPLIT_NAMES, AnnotationProblem
from fukami.data.parsing import exists, parse_json, read_bytes, read_text, to_key, to_text
from fukami.errors import Error, build_unknown_error
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform

logger = logging.getLogger(__name__)
DATASET_NAMES = ("scenes", "flickr8k", "flickr30k", "coco")
IMAGE_COLUMNS, CAPTION_COLUMNS = (
    ("image", "picture", "path", "file", "image_name", "filename"),
    ("caption", "sentence", "comment", "text"),
)
SPLIT_LISTS = (("train", "*[._]trainImages.txt"), ("val", "*[._]devImages.txt"), ("test", "*[._]testImages.txt"))
CAPTION_SUFFIXES = (".csv", ".json", ".txt", ".token")  # suffixes of caption files
KARPATHY_SPLITS = {"restval": "train"}  # images of COCO's validation split that Karpathy's training split includes
MAX_HEADER_LENGTH = 2**16  # characters of the header line
CAPTION_NUMBER = re.compile(r"#[a-z]*\d+$")  # number of a caption, after the image name


class CaptionRow(NamedTuple):
    """A caption as in its file: image name, line number, and split (empty: unknown)."""

    image: str
    caption: str
    line: int
    split: str = ""


@dataclass
class ParsedCaptions:
    """Contents of caption files.

    Attributes:
        splits: the images and captions of ``train``, ``val`` and ``test``, or of an empty name if there is only one
            split.
        problems: lines that cannot be used.
    """

    splits: dict[str, dict[Path, list[str]]] = field(default_factory=dict)
    problems: list[AnnotationProblem] = field(default_factory=list)


@dataclass(frozen=True)
class CaptionDataset:
    """Images (files or arrays ``(H, W, 3)`` uint8) and the captions of each, as strings or as lists of tokens."""

    items: tuple[Any, ...]
    captions: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_on_disk(self) -> bool:
        """True if the images are files."""
        return all(isinstance(item, Path) for item in self.items)

    def select(self, indices: Iterable[int]) -> "CaptionDataset":
        """Select the images with these indices."""
        selected = list(indices)
        return CaptionDataset(tuple(self.items[i] for i in selected), tuple(self.captions[i] for i in selected))

    def load_images(
        self, transform: SquareTransform, max_broken: int = image_folder.MAX_BROKEN
    ) -> "tuple[CaptionDataset, labeled_images.DecodedImages]":
        """Load and transform all images into memory; unreadable ones are skipped with their captions, and logged.

        Raises:
            Error: more than ``max_broken`` images are unreadable, or all of them.
        """
        if self.is_on_disk:
            results: Iterable[Any] = streaming.decode_files(self.items, transform)
        else:
            results = (transform(Image.fromarray(item)).transpose(1, 2, 0) for item in self.items)
        readable, images = image_folder.stack_images(results, len(self), transform, max_broken)
        kept = self if len(readable) == len(self) else self.select(readable)
        names = [item if isinstance(item, Path) else f"scene {index}" for index, item in enumerate(kept.items)]
        return kept, labeled_images.DecodedImages(
            torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(len(readable)), list(map(str, names))
        )


def load_dataset(spec: str, holdout: float) -> tuple[CaptionDataset, CaptionDataset, CaptionDataset]:
    """Load the training, validation and test splits of a dataset.

    Args:
        spec: ``scenes``, ``flickr8k``, ``flickr30k``, ``coco``, the path of a folder, an archive, a CSV or a JSON file,
            or the name of a folder or zip archive in the dataset locations.
        holdout: fraction of the images, the last by name, held out for testing if there is no test split; as many
            before them are the validation split if there is none.

    Raises:
        UsageError: ``spec`` is neither a known name nor a path.
        Error: the files are invalid, or there are no captions.
    """
    if spec == "scenes":
        train = CaptionDataset(*scenes.generate_captioned_images(0, scenes.NUM_CAPTIONED))
        return (
            train,
            CaptionDataset((), ()),
            CaptionDataset(*scenes.generate_captioned_images(scenes.NUM_CAPTIONED, scenes.NUM_TEST)),
        )
    parsed = parse_caption_files(locate_dataset(spec))
    if parsed.problems:
        first = parsed.problems[0]
        logger.warning(
            f"{len(parsed.problems)} images or captions are skipped; the first: {first.file}, line {first.line}: "
            f"{first.detail}; fukami doctor lists all"
        )
    splits = {name: _build_dataset(images) for name, images in parsed.splits.items() if images}
    if not splits:
        raise Error(f"{spec} has no image with a caption; run fukami doctor {spec} to find the problems")
    empty = CaptionDataset((), ())
    train = _concatenate(splits.get(name, empty) for name in ("", "train"))
    val, test = splits.get("val", empty), splits.get("test", empty)
    if not len(test):
        test, val = val, empty  # without a test split, the validation split is used for testing
    if not len(test):
        count = round(holdout * len(train))
        bounds = [0, max(0, len(train) - 2 * count), len(train) - count, len(train)]
        train, val, test = (train.select(range(*ends)) for ends in pairwise(bounds))
    return train, val, test


def locate_dataset(spec: str) -> Path:
    """Return the folder or file of a dataset.

    Raises:
        UsageError: ``spec`` is neither a known name nor a path.
        Error: a known dataset is in none of the dataset locations.
    """
    if spec == "coco":
        return coco.find_coco()
    if exists(Path(spec)):
        return Path(spec)
    if spec in DATASET_NAMES or any(
        exists(folder / f"{spec}{suffix}") for folder in locations.list_data_folders() for suffix in ("", ".zip")
    ):
        return locations.find_dataset(spec, "the images and their captions, in a folder or a zip archive of that name,")
    raise build_unknown_error("dataset (and no file or folder)", spec, DATASET_NAMES)


def is_caption_dataset(spec: str) -> bool:
    """Return whether a name is only a captioning dataset, or a path has caption files; an archive is unpacked."""
    if spec in ("flickr8k", "flickr30k"):
        return True
    try:
        if spec in (*DATASET_NAMES, *labeled_images.DATASET_NAMES):
            return False
        path = locate_dataset(spec)
        return bool(_find_caption_files(path, _list_files(_find_root(path))))
    except Error:  # loading the dataset reports the error
        return False


def parse_caption_files(path: Path) -> ParsedCaptions:
    """Parse the caption files at a path.

    Raises:
        Error: there is no caption file, or one cannot be read.
    """
    root = _find_root(path)
    files = _list_files(root)
    caption_files = _find_caption_files(path, files)
    if not caption_files:
        raise Error(
            f"{path} has no captions: expected captions.txt, captions_*.json, dataset.json, *.token, or a CSV with "
            "the columns image and caption"
        )
    name_to_path = _index_images(root, files)
    parsed = ParsedCaptions()
    name_to_split = _read_split_lists(files)
    for file in caption_files:
        for row in _read_rows(file):
            _add_row(parsed, file, row, name_to_path, name_to_split)
    return parsed


def find_uncaptioned_images(path: Path, parsed: ParsedCaptions) -> list[Path]:
    """Return the images at a path that have no caption."""
    captioned = {image for images in parsed.splits.values() for image in images}
    root = _find_root(path)
    return sorted({*_index_images(root, _list_files(root)).values()} - captioned)


def _find_root(path: Path) -> Path:
    """Return the folder of the images."""
    if path.is_dir():
        return path
    return path.parent if path.suffix.lower() in CAPTION_SUFFIXES else image_folder.unpack_archive(path)


def _list_files(root: Path) -> list[Path]:
    """List every file below a folder, in order."""
    return sorted(path for path in root.rglob("*") if not path.name.startswith("."))


def _add_row(
    parsed: ParsedCaptions, file: Path, row: CaptionRow, name_to_path: dict[str, Path], name_to_split: dict[str, str]
) -> None:
    """Add a caption to its image, or add the problem of the row."""
    split = row.split or name_to_split.get(Path(row.image).name, "")
    split = "train" if split == "trainval" else split
    image = name_to_path.get(row.image) or name_to_path.get(Path(row.image).name)
    if image is None:
        name = row.image or "no image"
        parsed.problems.append(
            AnnotationProblem("missing", file, row.line, f"names {name}, which does not exist", split)
        )
    elif split not in ("", "train", "val", "test"):
        parsed.problems.append(
            AnnotationProblem("no split", file, row.line, f"has the split {split[:50]!r}; expected train, val or test")
        )
    elif not row.caption.strip():
        parsed.problems.append(AnnotationProblem("no caption", file, row.line, f"has no caption of {row.image}", split))
    else:
        parsed.splits.setdefault(split, {}).setdefault(image, []).append(row.caption.strip())


def _index_images(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Index the images below a folder by relative path and by name."""
    suffixes = image_io.get_image_suffixes()
    index: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() in suffixes:
            index.setdefault(path.name, path)
            index[path.relative_to(root).as_posix()] = path
    return index


def _find_caption_files(path: Path, files: Iterable[Path]) -> list[Path]:
    """Find the caption files at a path, whose folder contains ``files``."""
    if path.suffix.lower() in CAPTION_SUFFIXES:
        return [path] if path.suffix.lower() != ".csv" or _detect_columns(path) else []
    candidates = [file for file in files if file.suffix.lower() in CAPTION_SUFFIXES]
    for pattern in ("dataset*.json", "captions_*.json", "*.token.txt", "*.token", "captions.txt", "*.csv"):
        matches = [
            file for file in candidates if file.match(pattern) and (file.suffix != ".csv" or _detect_columns(file))
        ]
        if matches:
            return matches if pattern.startswith("captions_") else matches[:1]
    return []


def _detect_columns(path: Path) -> tuple[str, str, str] | None:
    """Return the columns of images, captions and splits (empty: none); None if images or captions are missing."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(MAX_HEADER_LENGTH)
    except OSError:  # a folder of that name, or an error that reading the file reports
        return None
    names = [name.strip().lower() for name in header.strip().split("|" if "|" in header else ",")]
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    caption = next((name for name in CAPTION_COLUMNS if name in names), None)
    return (image, caption, "split" if "split" in names else "") if image and caption else None


def _read_split_lists(files: Sequence[Path]) -> dict[str, str]:
    """Read the split of each image from Flickr8k's split lists."""
    lists = ((split, file) for split, pattern in SPLIT_LISTS for file in files if file.match(pattern))
    return {name.strip(): split for split, file in lists for name in read_text(file).splitlines()}


def _read_rows(file: Path) -> Iterator[CaptionRow]:
    """Yield the captions of a file.

    Raises:
        Error: the file is not UTF-8, not valid JSON or CSV, or lacks required fields.
    """
    if file.suffix.lower() == ".json":
        yield from _read_json(file)
    elif file.suffix.lower() == ".csv" or _detect_columns(file):
        yield from _read_csv(file)
    else:
        for line_number, line in enumerate(read_text(file).split("\n"), 1):
            name, _, caption = line.partition("\t")
            if name.strip():
                yield CaptionRow(CAPTION_NUMBER.sub("", name.strip()), caption, line_number)


def _read_csv(file: Path) -> Iterator[CaptionRow]:
    """Yield the captions of a table; a caption may contain unquoted commas, as in Flickr8k."""
    columns = _detect_columns(file)
    if columns is None:
        raise Error(f"{file}: the first line should name the columns image and caption (and optionally split)")
    text = read_text(file)
    delimiter = "|" if "|" in text.partition("\n")[0] else ","
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        names = [name.strip().lower() for name in next(rows, ())]
        if not {*columns} - {""} <= {*names}:
            raise csv.Error("its first line is quoted differently from the others")
        image, caption, split = (names.index(name) if name else -1 for name in columns)
        for row in rows:
            if not any(map(str.strip, row)):
                continue
            excess = len(row) - len(names)
            if excess > 0 and caption == len(names) - 1:
                row = [*row[:caption], delimiter.join(row[caption:])]
            cells = [cell.strip() for cell in row] + [""] * len(names)
            split_name = SPLIT_NAMES.get(cells[split].lower(), cells[split].lower()) if split >= 0 else ""
            yield CaptionRow(cells[image], cells[caption], rows.line_num, split_name)
    except csv.Error as error:
        raise Error(f"{file}, line {rows.line_num}: invalid CSV ({error}); fix the line") from None


def _read_json(file: Path) -> Iterator[CaptionRow]:
    """Yield the captions of COCO's or Karpathy's JSON."""
    try:
        content = parse_json(read_bytes(file))
        images = content["images"]
        if "annotations" in content:
            names = {to_key(image["id"]): to_text(image["file_name"]) for image in images}
            split = next(
                (split for name, split in SPLIT_NAMES.items() if name in re.split(r"[^a-z]+", file.stem.lower())), ""
            )
            for entry in content["annotations"]:
                yield CaptionRow(names.get(to_key(entry["image_id"]), ""), to_text(entry["caption"]), 0, split)
            return
        for image in images:
            split_name = to_text(image.get("split"))
            split = KARPATHY_SPLITS.get(split_name, SPLIT_NAMES.get(split_name, ""))
            name = "/".join(filter(None, (to_text(image.get("filepath")), to_text(image["filename"]))))
            for caption in image["sentences"]:
                yield CaptionRow(name, to_text(caption["raw"]), 0, split)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(
            f"{file} is invalid, or not in the JSON format of COCO's captions or Karpathy's "
            f"({type(error).__name__}: {error})"
        ) from None


def _build_dataset(images: dict[Path, list[str]]) -> CaptionDataset:
    """Build a dataset of the images, sorted by name."""
    order = sorted(images, key=lambda path: (path.name, path))
    return CaptionDataset(tuple(order), tuple(tuple(images[path]) for path in order))


def _concatenate(splits: Iterable[CaptionDataset]) -> CaptionDataset:
    """Concatenate datasets."""
    datasets = list(splits)
    return CaptionDataset(
        sum((dataset.items for dataset in datasets), ()), sum((dataset.captions for dataset in datasets), ())
    )
