"""Images and what people said of them, from any source, by name or path.

Recognised are the files of Flickr8k and Flickr30k (``captions.txt``, ``results.csv``, ``*.token``, ``*.token.txt``,
with ``*trainImages.txt`` and the like where they lie beside them), COCO's ``captions_*.json``, Karpathy's
``dataset*.json``, and a CSV of images and sentences; the images lie anywhere below the same folder.
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

from fukami.data import coco, image_folder, labelled_images, locations, scenes, streaming
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
CAPTION_SUFFIXES = (".csv", ".json", ".txt", ".token")  # endings of files of sentences
KARPATHY_SPLITS = {"restval": "train"}  # images of COCO's validation part that are trained on there
MAX_HEADER_LENGTH = 2**16  # characters of the line that names the columns
CAPTION_NUMBER = re.compile(r"#[a-z]*\d+$")  # what tells the sentences of an image apart


class CaptionRow(NamedTuple):
    """A sentence as its file has it: the image's name, and the part where that is told."""

    image: str
    caption: str
    line: int
    split: str = ""


@dataclass
class ParsedCaptions:
    """What the files say.

    Attributes:
        splits: the images of ``train``, ``val`` and ``test``, or of an empty name where all are one part, each with
            what was said of it.
        problems: what cannot be learned from.
    """

    splits: dict[str, dict[Path, list[str]]] = field(default_factory=dict)
    problems: list[AnnotationProblem] = field(default_factory=list)


@dataclass(frozen=True)
class CaptionDataset:
    """Images, files or arrays ``(H, W, 3)`` uint8, and the sentences that were said of each, or their words."""

    items: tuple[Any, ...]
    captions: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_on_disk(self) -> bool:
        """Whether the images lie in files."""
        return all(isinstance(item, Path) for item in self.items)

    def select(self, indices: Iterable[int]) -> "CaptionDataset":
        """Those of these numbers."""
        numbers = list(indices)
        return CaptionDataset(tuple(self.items[i] for i in numbers), tuple(self.captions[i] for i in numbers))

    def load_images(
        self, transform: SquareTransform, max_broken: int = image_folder.MAX_BROKEN
    ) -> "tuple[CaptionDataset, labelled_images.DecodedImages]":
        """All images as a network sees them, in memory; broken ones are left out, with their sentences, and named.

        Raises:
            Error: more images than ``max_broken`` are, or not one can be read.
        """
        if self.is_on_disk:
            results: Iterable[Any] = streaming.decode_files(self.items, transform)
        else:
            results = (transform(Image.fromarray(item)).transpose(1, 2, 0) for item in self.items)
        good, images = image_folder.stack_images(results, len(self), transform, max_broken)
        kept = self if len(good) == len(self) else self.select(good)
        names = [item if isinstance(item, Path) else f"scene {number}" for number, item in enumerate(kept.items)]
        return kept, labelled_images.DecodedImages(
            torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(len(good)), list(map(str, names))
        )


def load_dataset(spec: str, holdout: float) -> tuple[CaptionDataset, CaptionDataset, CaptionDataset]:
    """The training, the validation and the test part of a data set.

    Args:
        spec: ``scenes``, ``flickr8k``, ``flickr30k``, ``coco``, or the path of a folder, an archive, a CSV or a JSON
            file. Any other name is looked for among the known data sets, too.
        holdout: share of the images, the last by name, that is the test part where the data have none; as many before
            them are the validation part where there is none either.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are damaged, or there are none.
    """
    if spec == "scenes":
        learned = CaptionDataset(*scenes.generate_captioned_images(0, scenes.NUM_CAPTIONED))
        return (
            learned,
            CaptionDataset((), ()),
            CaptionDataset(*scenes.generate_captioned_images(scenes.NUM_CAPTIONED, scenes.NUM_TEST)),
        )
    sheet = parse_caption_files(locate_dataset(spec))
    if sheet.problems:
        first = sheet.problems[0]
        logger.warning(
            f"{len(sheet.problems)} images or sentences are left out; the first: {first.file}, line {first.line}: "
            f"{first.detail}; fukami doctor names each"
        )
    parts = {name: _build_dataset(images) for name, images in sheet.splits.items() if images}
    if not parts:
        raise Error(f"{spec} has no image with a sentence; fukami doctor {spec} says what is wrong")
    nothing = CaptionDataset((), ())
    learned = _concatenate(parts.get(name, nothing) for name in ("", "train"))
    val, test = parts.get("val", nothing), parts.get("test", nothing)
    if not len(test):
        test, val = val, nothing  # what there is besides the training part is judged on
    if not len(test):
        count = round(holdout * len(learned))
        bounds = [0, max(0, len(learned) - 2 * count), len(learned) - count, len(learned)]
        learned, val, test = (learned.select(range(*ends)) for ends in pairwise(bounds))
    return learned, val, test


def locate_dataset(spec: str) -> Path:
    """The folder or file of a data set.

    Raises:
        UsageError: there is no such name and no such path.
        Error: it is a known name, and lies nowhere.
    """
    if spec == "coco":
        return coco.find_coco()
    if exists(Path(spec)):
        return Path(spec)
    if spec in DATASET_NAMES or any(
        exists(place / f"{spec}{end}") for place in locations.list_data_folders() for end in ("", ".zip")
    ):
        return locations.find_dataset(
            spec, "the images and their sentences, in a folder or a zip archive of that name,"
        )
    raise build_unknown_error("data set (and no file or folder)", spec, DATASET_NAMES)


def is_caption_dataset(spec: str) -> bool:
    """Whether it is a name of sentences alone, or a path with files of them; an archive is unpacked."""
    if spec in ("flickr8k", "flickr30k"):
        return True
    try:
        if spec in (*DATASET_NAMES, *labelled_images.DATASET_NAMES):
            return False
        path = locate_dataset(spec)
        return bool(_find_caption_files(path, _list_files(_find_root(path))))
    except Error:  # which whoever reads it tells
        return False


def parse_caption_files(path: Path) -> ParsedCaptions:
    """What the files at a path say, and what is wrong with them.

    Raises:
        Error: there is no file of sentences, or one cannot be read at all.
    """
    root = _find_root(path)
    files = _list_files(root)
    sources = _find_caption_files(path, files)
    if not sources:
        raise Error(
            f"{path} has no sentences: expected captions.txt, captions_*.json, dataset.json, *.token, or a CSV with "
            "the columns image and caption"
        )
    there = _index_images(root, files)
    sheet = ParsedCaptions()
    listed = _read_split_lists(files)
    for file in sources:
        for line in _read_rows(file):
            _add_row(sheet, file, line, there, listed)
    return sheet


def find_uncaptioned_images(path: Path, parsed: ParsedCaptions) -> list[Path]:
    """The images at a path of which nothing is said."""
    said = {image for images in parsed.splits.values() for image in images}
    root = _find_root(path)
    return sorted({*_index_images(root, _list_files(root)).values()} - said)


def _find_root(path: Path) -> Path:
    """The folder that the images lie in."""
    if path.is_dir():
        return path
    return path.parent if path.suffix.lower() in CAPTION_SUFFIXES else image_folder.unpack_archive(path)


def _list_files(root: Path) -> list[Path]:
    """Every file below a folder, in order."""
    return sorted(path for path in root.rglob("*") if not path.name.startswith("."))


def _add_row(
    sheet: ParsedCaptions, file: Path, line: CaptionRow, there: dict[str, Path], listed: dict[str, str]
) -> None:
    """Add a sentence to the image it is about, or say why it cannot be learned from."""
    part = line.split or listed.get(Path(line.image).name, "")
    part = "train" if part == "trainval" else part
    image = there.get(line.image) or there.get(Path(line.image).name)
    if image is None:
        named = line.image or "no image"
        sheet.problems.append(AnnotationProblem("missing", file, line.line, f"names {named}, which is not there", part))
    elif part not in ("", "train", "val", "test"):
        sheet.problems.append(
            AnnotationProblem("no split", file, line.line, f"has the split {part[:50]!r}; expected train, val or test")
        )
    elif not line.caption.strip():
        sheet.problems.append(AnnotationProblem("no sentence", file, line.line, f"says nothing of {line.image}", part))
    else:
        sheet.splits.setdefault(part, {}).setdefault(image, []).append(line.caption.strip())


def _index_images(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """The images below a folder, by their path in it and by their name."""
    endings = image_io.get_image_suffixes()
    found: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() in endings:
            found.setdefault(path.name, path)
            found[path.relative_to(root).as_posix()] = path
    return found


def _find_caption_files(path: Path, files: Iterable[Path]) -> list[Path]:
    """The files of sentences of a data set, whose folder has these files."""
    if path.suffix.lower() in CAPTION_SUFFIXES:
        return [path] if path.suffix.lower() != ".csv" or _detect_columns(path) else []
    ours = [each for each in files if each.suffix.lower() in CAPTION_SUFFIXES]
    for pattern in ("dataset*.json", "captions_*.json", "*.token.txt", "*.token", "captions.txt", "*.csv"):
        found = [each for each in ours if each.match(pattern) and (each.suffix != ".csv" or _detect_columns(each))]
        if found:
            return found if pattern.startswith("captions_") else found[:1]
    return []


def _detect_columns(path: Path) -> tuple[str, str, str] | None:
    """The columns of images, of sentences, and of parts (empty: none); None where a file has none of these."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(MAX_HEADER_LENGTH)
    except OSError:  # which whoever reads it tells, or a folder of that name
        return None
    names = [name.strip().lower() for name in first.strip().split("|" if "|" in first else ",")]
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    sentence = next((name for name in CAPTION_COLUMNS if name in names), None)
    return (image, sentence, "split" if "split" in names else "") if image and sentence else None


def _read_split_lists(files: Sequence[Path]) -> dict[str, str]:
    """The part of each image that a list beside Flickr8k's sentences names."""
    lists = ((part, file) for part, pattern in SPLIT_LISTS for file in files if file.match(pattern))
    return {name.strip(): part for part, file in lists for name in read_text(file).splitlines()}


def _read_rows(file: Path) -> Iterator[CaptionRow]:
    """The sentences in a file.

    Raises:
        Error: it is no text in UTF-8, no JSON, or lacks what it should have.
    """
    if file.suffix.lower() == ".json":
        yield from _read_json(file)
    elif file.suffix.lower() == ".csv" or _detect_columns(file):
        yield from _read_csv(file)
    else:
        for number, line in enumerate(read_text(file).split("\n"), 1):
            name, _, sentence = line.partition("\t")
            if name.strip():
                yield CaptionRow(CAPTION_NUMBER.sub("", name.strip()), sentence, number)


def _read_csv(file: Path) -> Iterator[CaptionRow]:
    """A table of images and sentences. A sentence may hold commas that nothing marks, as Flickr8k's do."""
    columns = _detect_columns(file)
    if columns is None:
        raise Error(f"{file}: the first line should name the columns image and caption (and perhaps split)")
    text = read_text(file)
    between = "|" if "|" in text.partition("\n")[0] else ","
    rows = csv.reader(io.StringIO(text), delimiter=between)
    try:
        names = [name.strip().lower() for name in next(rows, ())]
        if not {*columns} - {""} <= {*names}:
            raise csv.Error("its first line is quoted in another way than the others")
        image, sentence, split = (names.index(name) if name else -1 for name in columns)
        for row in rows:
            if not any(map(str.strip, row)):
                continue
            over = len(row) - len(names)
            if over > 0 and sentence == len(names) - 1:
                row = [*row[:sentence], between.join(row[sentence:])]
            cells = [cell.strip() for cell in row] + [""] * len(names)
            part = SPLIT_NAMES.get(cells[split].lower(), cells[split].lower()) if split >= 0 else ""
            yield CaptionRow(cells[image], cells[sentence], rows.line_num, part)
    except csv.Error as error:
        raise Error(f"{file}, line {rows.line_num}: is no CSV ({error}); fix it") from None


def _read_json(file: Path) -> Iterator[CaptionRow]:
    """COCO's captions, or Karpathy's."""
    try:
        content = parse_json(read_bytes(file))
        images = content["images"]
        if "annotations" in content:
            names = {to_key(image["id"]): to_text(image["file_name"]) for image in images}
            part = next(
                (part for name, part in SPLIT_NAMES.items() if name in re.split(r"[^a-z]+", file.stem.lower())), ""
            )
            for each in content["annotations"]:
                yield CaptionRow(names.get(to_key(each["image_id"]), ""), to_text(each["caption"]), 0, part)
            return
        for image in images:
            split = to_text(image.get("split"))
            part = KARPATHY_SPLITS.get(split, SPLIT_NAMES.get(split, ""))
            name = "/".join(filter(None, (to_text(image.get("filepath")), to_text(image["filename"]))))
            for sentence in image["sentences"]:
                yield CaptionRow(name, to_text(sentence["raw"]), 0, part)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(
            f"{file} is damaged, or no JSON as COCO's captions or Karpathy's are ({type(error).__name__}: {error})"
        ) from None


def _build_dataset(images: dict[Path, list[str]]) -> CaptionDataset:
    """The images in the order of their names."""
    order = sorted(images, key=lambda path: (path.name, path))
    return CaptionDataset(tuple(order), tuple(tuple(images[path]) for path in order))


def _concatenate(parts: Iterable[CaptionDataset]) -> CaptionDataset:
    """All of them."""
    some = list(parts)
    return CaptionDataset(sum((part.items for part in some), ()), sum((part.captions for part in some), ()))
