"""Annotations in the XML of Pascal VOC (Everingham et al. 2010), as labelImg, Roboflow and others write it, too.

Two layouts: VOC's own (``Annotations/``, ``JPEGImages/`` and perhaps lists in ``ImageSets/Main/``), and an XML file
beside each picture, perhaps in folders such as ``train``, ``valid`` and ``test``. Pixels are counted from 1, and
``xmax`` is the last one inside.
"""

import codecs
import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from fukami.data import folder
from fukami.data.annotated import COUNTED, DIFFICULT
from fukami.data.annotations import Box, Entry, Flaw, Sheets, part_of, pictures
from fukami.data.locate import candidates
from fukami.data.parsing import SMALL, is_file, read_bytes, read_text
from fukami.errors import Error

PICTURES = ("JPEGImages", "images", "Images", "JPEGImage", "imgs")
SIDES = ("xmin", "ymin", "xmax", "ymax")
ENCODING = re.compile(rb"""^<\?xml[^>]*encoding=["']([\w.:-]+)""")
LINE = "line of the file"  # an attribute that no file can have
MAX_NESTING = 50  # elements inside one another; VOC's are four
PYTHON_ONLY = {"idna", "punycode"}  # encodings that Python has, which take the square of the length


def challenge(year: str) -> Path:
    """The folder of the challenge of a year, ``2007`` or ``2012``.

    Raises:
        Error: it is in none of the places where data sets are looked for.
    """
    name = f"VOC{year}"
    for place in candidates():
        for root in (place / "VOCdevkit" / name, place / name, place / name.lower(), place / name.lower() / name):
            if (root / "Annotations").is_dir():
                return root
    places = ", ".join(str(place / "VOCdevkit" / name) for place in candidates())
    archives = "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar"
    archives = archives if year == "2007" else "VOCtrainval_11-May-2012.tar"
    raise Error(
        f"VOC {year} was not found in {places}; unpack {archives} from host.robots.ox.ac.uk/pascal/VOC/voc{year} into "
        "a folder, and set FUKAMI_DATA to that folder, which then holds VOCdevkit"
    )


def known(root: Path) -> bool:
    """Whether a folder is in one of the two layouts."""
    places = [_annotations(root), root, *(each for each in folder.folders(root) if part_of(each.name))]
    return any(next(place.glob("*.xml"), None) for place in places if place)


def read(root: Path) -> Sheets:
    """What the XML files of a folder say."""
    sheets = Sheets()
    annotations = _annotations(root)
    if annotations:
        _lists(root, annotations, sheets)
    else:
        inside = {part_of(each.name): each for each in folder.folders(root) if part_of(each.name)}
        for part, place in (inside or {"": root}).items():
            sheets.parts[part] = []
            _beside(place, part, sheets)
    entries = [entry for part in sheets.parts.values() for entry in part]
    sheets.labels = tuple(sorted({box.label for entry in entries for box in entry.boxes if box.label}))
    return sheets


def parse(path: Path) -> ElementTree.Element:
    """The root of an XML file; every element has its line as an attribute.

    Raises:
        Error: it is no XML, declares entities, is nested too deeply or too large; the line is named.
    """
    content = read_bytes(path, limit=SMALL)
    try:
        try:
            return _tree(content)
        except (ValueError, LookupError):  # an encoding that expat does not know; Python may
            declared = ENCODING.search(content)
            name = declared[1].decode() if declared else "utf-8"
            try:
                if codecs.lookup(name).name in PYTHON_ONLY:
                    raise LookupError
                return _tree(content.decode(name))
            except (ValueError, LookupError):
                raise Error(f"{path}, line 1: is not in {name}, as it says; save it in UTF-8") from None
    except _Hostile as error:
        raise Error(f"{path}, line {error.args[1]}: {error.args[0]}; expected the XML of Pascal VOC") from None
    except expat.ExpatError as error:
        raise Error(f"{path}, line {error.lineno}: is no XML ({error}); get the file again") from None


class _Hostile(Exception):
    """What no annotation has: the words and the line."""


def _tree(content: bytes | str) -> ElementTree.Element:
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_NESTING:
            raise _Hostile(f"has more than {MAX_NESTING} elements inside one another", parser.CurrentLineNumber)
        builder.start(tag, {LINE: str(parser.CurrentLineNumber)})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def declared(*_: object) -> None:  # a few lines of entities can stand for a text of any length
        raise _Hostile("declares an entity", parser.CurrentLineNumber)

    parser.EntityDeclHandler = declared
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def entry(path: Path, picture: Path, root: ElementTree.Element) -> Entry:
    """What a parsed file says of its picture."""
    size = root.find("size")
    stated = None if size is None else tuple(_number(size, side) for side in ("width", "height"))
    boxes = tuple(_box(each) for each in root.iter("object"))
    whole = (int(stated[0]), int(stated[1])) if stated and all(map(math.isfinite, stated)) else None
    return Entry(picture, path, boxes, whole, _line(root if size is None else size))


def _box(found: ElementTree.Element) -> Box:
    label = (found.findtext("name") or "").strip()
    kind = DIFFICULT if (found.findtext("difficult") or "").strip() in ("1", "true", "True") else COUNTED
    box = found.find("bndbox")
    if box is None:
        return Box(label, (math.nan,) * 4, kind, _line(found))
    left, top, right, bottom = (_number(box, side) for side in SIDES)
    return Box(label, (left - 1, top - 1, right, bottom), kind, _line(box), zero=min(left, top) == 0)


def _number(found: ElementTree.Element, name: str) -> float:
    try:
        return float(found.findtext(name) or "nan")
    except ValueError:
        return math.nan


def _line(found: ElementTree.Element) -> int:
    return int(found.attrib[LINE])


def _annotations(root: Path) -> Path | None:
    """The folder of XML files of VOC's own layout."""
    for name in ("Annotations", "annotations"):
        if (root / name).is_dir() and next((root / name).glob("*.xml"), None):
            return root / name
    return None


def _lists(root: Path, annotations: Path, sheets: Sheets) -> None:
    """VOC's own layout: the parts are lists in ``ImageSets/Main``; without one, all is one part."""
    place = next((root / name for name in PICTURES if (root / name).is_dir()), root)
    files = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    said = _said(files, [(path.stem, path) for path in pictures(place)], place, sheets)
    listed: set[str] = set()
    for path in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        part = part_of(path.stem)
        lines = list(_names(path)) if part else []
        if not any(stem in files for _, stem in lines):  # VOC 2012 lists pictures whose annotations are kept secret
            continue
        for line, stem in lines:
            detail = f"lists {stem}, which has no file in {annotations}; add it, or remove the line"
            _put(said.get(stem, Flaw("missing", path, line, detail)), part, sheets)
            listed.add(stem)
    for stem, found in said.items():
        if not listed or (stem not in listed and isinstance(found, Flaw)):
            _put(found, "", sheets)


def _beside(place: Path, part: str, sheets: Sheets) -> None:
    """An XML file beside each picture, or below the same folder."""

    def name(path: Path) -> str:
        return path.relative_to(place).with_suffix("").as_posix()

    files = {name(path): path for path in sorted(place.rglob("*.xml"))}
    lying = [(name(path), path) for path in pictures(place, deep=True)]
    for found in _said(files, lying, None, sheets).values():
        _put(found, part, sheets)


def _put(found: Entry | Flaw, part: str, sheets: Sheets) -> None:
    """Add what a file says to a part."""
    if isinstance(found, Entry):
        sheets.parts.setdefault(part, []).append(found)
    else:
        sheets.lost.append(found._replace(part=part))


def _said(
    files: dict[str, Path], lying: list[tuple[str, Path]], place: Path | None, sheets: Sheets
) -> dict[str, Entry | Flaw]:
    """What each file says, or why it cannot be used; notes the pictures of which none says anything.

    Args:
        files: by name.
        lying: the name and the path of each picture.
        place: where a picture lies that has another name; None: beside its file.
    """
    named = dict(lying)
    found = {name: _one(path, place or path.parent, named.get(name), sheets) for name, path in files.items()}
    taken = {each.picture for each in found.values() if isinstance(each, Entry)}
    sheets.unlisted += [path for name, path in lying if path not in taken and not isinstance(found.get(name), Flaw)]
    return found


def _one(path: Path, place: Path, picture: Path | None, sheets: Sheets) -> Entry | Flaw:
    """What a file says of its picture, which is that of the same name, or else the one that it names."""
    try:
        root = parse(path)
    except Error as error:
        line = re.search(r", line (\d+): (.*)", str(error))
        detail = line[2] if line else str(error).removeprefix(f"{path} ")
        return Flaw("broken", path, int(line[1]) if line else 0, detail)
    if root.tag != "annotation":
        detail = f"begins with <{root.tag}>, not with <annotation>; expected the XML of Pascal VOC"
        return Flaw("broken", path, _line(root), detail)
    for each in root.iter("object"):
        if not (each.findtext("name") or "").strip():
            sheets.flaws.append(Flaw("no class", path, _line(each), "the box has no name, and is left out"))
    named = place / Path((root.findtext("filename") or f"{path.stem}.jpg").strip()).name
    if picture is None or (named.stem == picture.stem and is_file(named)):  # of two that differ in their suffix
        picture = named
    made = entry(path, picture, root)
    if is_file(picture):
        return made
    detail = f"its picture {picture} does not exist; put it there, or remove the annotation"
    return Flaw("missing", path, made.line, detail)


def _names(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the name of each picture in a list; a 1, 0 or -1 behind it, as lists of a class have, is cut off."""
    for line, text in enumerate(read_text(path, errors="replace").split("\n"), 1):
        words = text.rsplit(maxsplit=1)
        if words:
            yield line, words[0] if len(words) == 2 and words[1] in ("1", "0", "-1") else text.strip()
