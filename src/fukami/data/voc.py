"""Annotations in the XML of Pascal VOC (Everingham et al. 2010), as labelImg, Roboflow and others write it, too.

Two layouts: VOC's own (``Annotations/``, ``JPEGImages/`` and perhaps lists in ``ImageSets/Main/``), and an XML file
beside each image, perhaps in folders such as ``train``, ``valid`` and ``test``. Pixels are counted from 1, and
``xmax`` is the last one inside.
"""

import codecs
import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from fukami.data import image_folder
from fukami.data.annotations import (
    AnnotationProblem,
    Box,
    DatasetAnnotations,
    ImageAnnotation,
    list_images,
    parse_split,
)
from fukami.data.locations import list_data_folders
from fukami.data.parsing import MAX_SMALL_FILE_BYTES, is_file, read_bytes, read_text
from fukami.data.samples import DIFFICULT, REGULAR
from fukami.errors import Error

IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "JPEGImage", "imgs")
BOX_FIELDS = ("xmin", "ymin", "xmax", "ymax")
ENCODING = re.compile(rb"""^<\?xml[^>]*encoding=["']([\w.:-]+)""")
LINE_ATTRIBUTE = "line of the file"  # an attribute that no file can have
MAX_NESTING = 50  # elements inside one another; VOC's are four
REFUSED_ENCODINGS = {"idna", "punycode"}  # encodings that Python has, which take the square of the length


def find_voc(year: str) -> Path:
    """The folder of the challenge of a year, ``2007`` or ``2012``.

    Raises:
        Error: it is in none of the places where data sets are looked for.
    """
    name = f"VOC{year}"
    for place in list_data_folders():
        for root in (place / "VOCdevkit" / name, place / name, place / name.lower(), place / name.lower() / name):
            if (root / "Annotations").is_dir():
                return root
    places = ", ".join(str(place / "VOCdevkit" / name) for place in list_data_folders())
    archives = "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar"
    archives = archives if year == "2007" else "VOCtrainval_11-May-2012.tar"
    raise Error(
        f"VOC {year} was not found in {places}; unpack {archives} from host.robots.ox.ac.uk/pascal/VOC/voc{year} into "
        "a folder, and set FUKAMI_DATA to that folder, which then holds VOCdevkit"
    )


def is_voc_folder(root: Path) -> bool:
    """Whether a folder is in one of the two layouts."""
    places = [
        _find_annotation_folder(root),
        root,
        *(each for each in image_folder.list_folders(root) if parse_split(each.name)),
    ]
    return any(next(place.glob("*.xml"), None) for place in places if place)


def read_voc(root: Path) -> DatasetAnnotations:
    """What the XML files of a folder say."""
    sheets = DatasetAnnotations()
    annotations = _find_annotation_folder(root)
    if annotations:
        _read_devkit(root, annotations, sheets)
    else:
        inside = {parse_split(each.name): each for each in image_folder.list_folders(root) if parse_split(each.name)}
        for part, place in (inside or {"": root}).items():
            sheets.splits[part] = []
            _read_mixed_folder(place, part, sheets)
    entries = [entry for part in sheets.splits.values() for entry in part]
    sheets.labels = tuple(sorted({box.label for entry in entries for box in entry.boxes if box.label}))
    return sheets


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; every element has its line as an attribute.

    Raises:
        Error: it is no XML, declares entities, is nested too deeply or too large; the line is named.
    """
    content = read_bytes(path, max_bytes=MAX_SMALL_FILE_BYTES)
    try:
        try:
            return _build_tree(content)
        except (ValueError, LookupError):  # an encoding that expat does not know; Python may
            declared = ENCODING.search(content)
            name = declared[1].decode() if declared else "utf-8"
            try:
                if codecs.lookup(name).name in REFUSED_ENCODINGS:
                    raise LookupError
                return _build_tree(content.decode(name))
            except (ValueError, LookupError):
                raise Error(f"{path}, line 1: is not in {name}, as it says; save it in UTF-8") from None
    except _UnsafeXMLError as error:
        raise Error(f"{path}, line {error.args[1]}: {error.args[0]}; expected the XML of Pascal VOC") from None
    except expat.ExpatError as error:
        raise Error(f"{path}, line {error.lineno}: is no XML ({error}); get the file again") from None


class _UnsafeXMLError(Exception):
    """What no annotation has: the words and the line."""


def _build_tree(content: bytes | str) -> ElementTree.Element:
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_NESTING:
            raise _UnsafeXMLError(f"has more than {MAX_NESTING} elements inside one another", parser.CurrentLineNumber)
        builder.start(tag, {LINE_ATTRIBUTE: str(parser.CurrentLineNumber)})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_entity(*_: object) -> None:  # a few lines of entities can stand for a text of any length
        raise _UnsafeXMLError("declares an entity", parser.CurrentLineNumber)

    parser.EntityDeclHandler = refuse_entity
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def parse_annotation(path: Path, image: Path, root: ElementTree.Element) -> ImageAnnotation:
    """What a parsed file says of its image."""
    size = root.find("size")
    stated = None if size is None else tuple(_parse_number(size, side) for side in ("width", "height"))
    boxes = tuple(_parse_box(each) for each in root.iter("object"))
    whole = (int(stated[0]), int(stated[1])) if stated and all(map(math.isfinite, stated)) else None
    return ImageAnnotation(image, path, boxes, whole, _get_line(root if size is None else size))


def _parse_box(found: ElementTree.Element) -> Box:
    label = (found.findtext("name") or "").strip()
    kind = DIFFICULT if (found.findtext("difficult") or "").strip() in ("1", "true", "True") else REGULAR
    box = found.find("bndbox")
    if box is None:
        return Box(label, (math.nan,) * 4, kind, _get_line(found))
    left, top, right, bottom = (_parse_number(box, side) for side in BOX_FIELDS)
    return Box(label, (left - 1, top - 1, right, bottom), kind, _get_line(box), starts_at_zero=min(left, top) == 0)


def _parse_number(found: ElementTree.Element, name: str) -> float:
    try:
        return float(found.findtext(name) or "nan")
    except ValueError:
        return math.nan


def _get_line(found: ElementTree.Element) -> int:
    return int(found.attrib[LINE_ATTRIBUTE])


def _find_annotation_folder(root: Path) -> Path | None:
    """The folder of XML files of VOC's own layout."""
    for name in ("Annotations", "annotations"):
        if (root / name).is_dir() and next((root / name).glob("*.xml"), None):
            return root / name
    return None


def _read_devkit(root: Path, annotations: Path, sheets: DatasetAnnotations) -> None:
    """VOC's own layout: the parts are lists in ``ImageSets/Main``; without one, all is one part."""
    place = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root)
    files = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    said = _read_annotations(files, [(path.stem, path) for path in list_images(place)], place, sheets)
    listed: set[str] = set()
    for path in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        part = parse_split(path.stem)
        lines = list(_read_image_list(path)) if part else []
        if not any(stem in files for _, stem in lines):  # VOC 2012 lists images whose annotations are kept secret
            continue
        for line, stem in lines:
            detail = f"lists {stem}, which has no file in {annotations}; add it, or remove the line"
            _add_to_split(said.get(stem, AnnotationProblem("missing", path, line, detail)), part, sheets)
            listed.add(stem)
    for stem, found in said.items():
        if not listed or (stem not in listed and isinstance(found, AnnotationProblem)):
            _add_to_split(found, "", sheets)


def _read_mixed_folder(place: Path, part: str, sheets: DatasetAnnotations) -> None:
    """An XML file beside each image, or below the same folder."""

    def name(path: Path) -> str:
        return path.relative_to(place).with_suffix("").as_posix()

    files = {name(path): path for path in sorted(place.rglob("*.xml"))}
    lying = [(name(path), path) for path in list_images(place, recursive=True)]
    for found in _read_annotations(files, lying, None, sheets).values():
        _add_to_split(found, part, sheets)


def _add_to_split(found: ImageAnnotation | AnnotationProblem, part: str, sheets: DatasetAnnotations) -> None:
    """Add what a file says to a part."""
    if isinstance(found, ImageAnnotation):
        sheets.splits.setdefault(part, []).append(found)
    else:
        sheets.unusable_images.append(found._replace(split=part))


def _read_annotations(
    files: dict[str, Path], lying: list[tuple[str, Path]], place: Path | None, sheets: DatasetAnnotations
) -> dict[str, ImageAnnotation | AnnotationProblem]:
    """What each file says, or why it cannot be used; notes the images of which none says anything.

    Args:
        files: by name.
        lying: the name and the path of each image.
        place: where an image lies that has another name; None: beside its file.
    """
    named = dict(lying)
    found = {
        name: _read_annotation(path, place or path.parent, named.get(name), sheets) for name, path in files.items()
    }
    taken = {each.image_path for each in found.values() if isinstance(each, ImageAnnotation)}
    sheets.unannotated_images += [
        path for name, path in lying if path not in taken and not isinstance(found.get(name), AnnotationProblem)
    ]
    return found


def _read_annotation(
    path: Path, place: Path, image: Path | None, sheets: DatasetAnnotations
) -> ImageAnnotation | AnnotationProblem:
    """What a file says of its image, which is that of the same name, or else the one that it names."""
    try:
        root = parse_xml(path)
    except Error as error:
        line = re.search(r", line (\d+): (.*)", str(error))
        detail = line[2] if line else str(error).removeprefix(f"{path} ")
        return AnnotationProblem("broken", path, int(line[1]) if line else 0, detail)
    if root.tag != "annotation":
        detail = f"begins with <{root.tag}>, not with <annotation>; expected the XML of Pascal VOC"
        return AnnotationProblem("broken", path, _get_line(root), detail)
    for each in root.iter("object"):
        if not (each.findtext("name") or "").strip():
            sheets.orphan_annotations.append(
                AnnotationProblem("no class", path, _get_line(each), "the box has no name, and is left out")
            )
    named = place / Path((root.findtext("filename") or f"{path.stem}.jpg").strip()).name
    if image is None or (named.stem == image.stem and is_file(named)):  # of two that differ in their suffix
        image = named
    made = parse_annotation(path, image, root)
    if is_file(image):
        return made
    detail = f"its image {image} does not exist; put it there, or remove the annotation"
    return AnnotationProblem("missing", path, made.line, detail)


def _read_image_list(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the name of each image in a list; a 1, 0 or -1 behind it, as lists of a class have, is cut off."""
    for line, text in enumerate(read_text(path, errors="replace").split("\n"), 1):
        words = text.rsplit(maxsplit=1)
        if words:
            yield line, words[0] if len(words) == 2 and words[1] in ("1", "0", "-1") else text.strip()
