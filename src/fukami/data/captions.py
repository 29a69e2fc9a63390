"""Caption files: the captions of images, by split.

Supported formats: Flickr8k and Flickr30k (``captions.txt``, ``results.csv``, ``*.token``, ``*.token.txt``, with split
lists such as ``*trainImages.txt``), COCO's ``captions_*.json``, Karpathy's ``dataset*.json``, a CSV of images and
captions, JSON or a table of such contents with another name, and a text file of the same stem for each image. The
images may lie anywhere below the same folder.
"""

import csv
import io
import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fukami.data import coco, yolo
from fukami.data.annotation_files import (
    MAX_WALKED_FILES,
    ImageIndex,
    find_files_of_images,
    find_split,
    pair_with_images,
)
from fukami.data.annotations import ANNOTATION_SPLITS, AnnotationProblem
from fukami.data.files import walk_files
from fukami.data.parsing import (
    MAX_SMALL_FILE_BYTES,
    contains_pattern,
    is_file,
    parse_json,
    read_bytes,
    read_columns,
    read_text,
    to_key,
    to_text,
)
from fukami.errors import Error

logger = logging.getLogger(__name__)
IMAGE_COLUMNS, CAPTION_COLUMNS = (
    ("image", "picture", "path", "file", "image_name", "filename"),
    ("caption", "sentence", "comment", "text"),
)
SPLIT_LISTS = (("train", "*[._]trainImages.txt"), ("val", "*[._]devImages.txt"), ("test", "*[._]testImages.txt"))
CAPTION_SUFFIXES = (".csv", ".json", ".txt", ".token")  # suffixes of caption files
KARPATHY_SPLITS = {"restval": "train"}  # images of COCO's validation split that Karpathy's training split includes
EXPECTED_FILES = "captions.txt, captions_*.json, dataset.json, *.token, or a CSV with the columns image and caption"
CAPTION_PATTERNS = ("dataset*.json", "captions_*.json", "*.token.txt", "*.token", "captions.txt", "*.csv")
LEMMA_PATTERN = "*.lemma.token.txt"  # Flickr8k's captions with each word in its base form
MAX_INSPECTED_FILES = 20  # files of other names that are read to find captions
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


def parse_caption_files(path: Path, images: Path | None = None) -> ParsedCaptions:
    """Parse the caption files at a path; without ``images``, the images are below its folder.

    Raises:
        Error: there is no caption file, or one cannot be read.
    """
    root, files = _list_files(path)
    caption_files = _select_caption_files(_find_caption_files(path, files), root)
    text_files = [] if caption_files or not path.is_dir() else _find_text_files(root, images)
    if not caption_files and not text_files:
        raise Error(f"{path} has no captions: expected {EXPECTED_FILES}")
    image_root = images or root
    index = ImageIndex(image_root, walk_files(images) if images else files)
    parsed = ParsedCaptions()
    name_to_split = _read_split_lists(files)
    for file in caption_files:
        is_of_split = len(caption_files) > 1 or file.suffix.lower() == ".json"
        file_split = _find_file_split(file, root) if is_of_split else ""
        for row in _read_rows(file):
            split = row.split or name_to_split.get(PurePosixPath(row.image).name, "") or file_split
            split = "train" if split == "trainval" else split
            _add_row(parsed, file, row._replace(split=split), index.find(row.image, file, split))
    pairs = pair_with_images(text_files, index.images)
    for file in text_files:
        image = pairs.get(file)
        if image is None:
            detail = f"there is no image {file.stem} for it; put it there, or remove the captions"
            parsed.problems.append(AnnotationProblem("missing", file, 0, detail, find_split(file, root)))
            continue
        split = name_to_split.get(image.name, "") or find_split(image, image_root)
        for line_number, line in enumerate(read_text(file, max_bytes=MAX_SMALL_FILE_BYTES).split("\n"), 1):
            if line.strip():
                _add_row(parsed, file, CaptionRow(image.name, line, line_number, split), image)
    return parsed


def find_uncaptioned_images(path: Path, parsed: ParsedCaptions, images: Path | None = None) -> list[Path]:
    """Return the images at a path that have no caption; ``images`` as for :func:`parse_caption_files`."""
    captioned = {image for split_images in parsed.splits.values() for image in split_images}
    root, files = (images, list(walk_files(images))) if images else _list_files(path)
    return [image for image in ImageIndex(root, files).images if image not in captioned]


def has_captions(path: Path, images: Path | None = None) -> bool:
    """Return whether a file or folder has captions, by the names of the files and the starts of some."""
    if _find_caption_files(path, itertools.islice(walk_files(path), MAX_WALKED_FILES)):
        return True
    return path.is_dir() and bool(_find_text_files(path, images))


def _list_files(path: Path) -> tuple[Path, list[Path]]:
    """Return the folder of the images, and the files below it, in order."""
    root = path if path.is_dir() else path.parent
    return root, sorted(walk_files(root))


def _find_text_files(root: Path, images: Path | None) -> list[Path]:
    """Find the text files of images, unless these have boxes instead of captions."""
    files = [file for file in find_files_of_images((root,), ".txt", images) if file.name not in yolo.CLASS_FILES]
    return [] if any(map(yolo.is_box_file, files[: yolo.MAX_INSPECTED_FILES])) else files


def _add_row(parsed: ParsedCaptions, file: Path, row: CaptionRow, image: Path | None) -> None:
    """Add a caption to its image (None: it does not exist), or add the problem of the row."""
    split = row.split
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


def _find_caption_files(path: Path, files: Iterable[Path]) -> list[Path]:
    """Find the caption files at a path, whose folder contains ``files``."""
    if is_file(path):
        suffix = path.suffix.lower()
        return [path] if suffix in CAPTION_SUFFIXES and (suffix != ".csv" or _detect_columns(path)) else []
    candidates = [file for file in files if file.suffix.lower() in CAPTION_SUFFIXES]
    for pattern in CAPTION_PATTERNS:
        matches = [file for file in candidates if file.match(pattern) and _may_have_captions(file)]
        if matches:
            return [file for file in matches if not file.match(LEMMA_PATTERN)] or matches
    return list(filter(is_caption_file, candidates[:MAX_INSPECTED_FILES]))


def _select_caption_files(files: list[Path], root: Path) -> list[Path]:
    """Return the files with captions of the splits, or the first one if the names denote no training split.

    Of files with other names than the usual ones, those with captions of the same images are not returned.
    """
    splits = {file: _find_file_split(file, root) for file in files}
    if len(files) < 2 or all(file.match("captions_*.json") for file in files):
        return files
    of_split = [file for file in files if splits[file]]
    if not any(file.match(pattern) for file in files for pattern in CAPTION_PATTERNS):
        of_split = _remove_repeated_files(of_split, splits)
    others = [file for file in files if not splits[file]]
    selected = of_split if {"train", "trainval"} & {*splits.values()} or not others else others[:1]
    if len(selected) == len(files):
        return files
    names = ", ".join(file.name for file in files if file not in selected)
    logger.warning(
        f"{root}: only the captions in {', '.join(file.name for file in selected)} are read, not those in {names}, "
        "which are of the same images or have no split in their name; specify a file to read only that one"
    )
    return selected


def _remove_repeated_files(files: list[Path], splits: dict[Path, str]) -> list[Path]:
    """Remove files with captions of an image that an earlier file of the same split has, such as translations."""
    if len({splits[file] for file in files}) == len(files):
        return files
    images: dict[str, set[str]] = defaultdict(set)
    kept = []
    for file in files:
        names = {row.image for row in _read_rows(file)}
        if not names & images[splits[file]]:
            images[splits[file]] |= names
            kept.append(file)
    return kept


def _may_have_captions(path: Path) -> bool:
    """Return whether a file with the name of a caption file has captions; other tools write dataset_info.json."""
    is_ambiguous = path.suffix.lower() == ".csv" or (path.match("dataset*.json") and path.name != "dataset.json")
    return not is_ambiguous or is_caption_file(path)


def is_caption_file(path: Path) -> bool:
    """Return whether a JSON file or a table has captions, by its keys or its columns."""
    if path.suffix.lower() == ".json":
        return contains_pattern(path, coco.CAPTION_KEYS) and not contains_pattern(path, coco.BOX_KEYS)
    return _detect_columns(path) is not None


def _detect_columns(path: Path) -> tuple[str, str, str] | None:
    """Return the columns of images, captions and splits (empty: none); None if images or captions are missing."""
    names = read_columns(path)
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    caption = next((name for name in CAPTION_COLUMNS if name in names), None)
    return (image, caption, "split" if "split" in names else "") if image and caption else None


def _read_split_lists(files: Sequence[Path]) -> dict[str, str]:
    """Read the split of each image from Flickr8k's split lists."""
    lists = ((split, file) for split, pattern in SPLIT_LISTS for file in files if file.match(pattern))
    return {name.strip(): split for split, file in lists for name in read_text(file).splitlines()}


def _find_file_split(file: Path, root: Path) -> str:
    """Return the split that the name of a caption file or of one of its folders denotes; empty if none does."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((split for name, split in ANNOTATION_SPLITS.items() if name in words), "") or find_split(file, root)


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
            split_name = ANNOTATION_SPLITS.get(cells[split].lower(), cells[split].lower()) if split >= 0 else ""
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
            for entry in content["annotations"]:
                yield CaptionRow(names.get(to_key(entry["image_id"]), ""), to_text(entry["caption"]), 0)
            return
        for image in images:
            split_name = to_text(image.get("split"))
            split = KARPATHY_SPLITS.get(split_name, ANNOTATION_SPLITS.get(split_name, ""))
            name = "/".join(filter(None, (to_text(image.get("filepath")), to_text(image["filename"]))))
            for caption in image["sentences"]:
                yield CaptionRow(name, to_text(caption["raw"]), 0, split)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(
            f"{file} is invalid, or not in the JSON format of COCO's captions or Karpathy's "
            f"({type(error).__name__}: {error})"
        ) from None
