"""Annotations in Pascal VOC XML (Everingham et al. 2010), also as written by labelImg, Roboflow and other tools.

An XML file belongs to the image of the same stem, or else to the one that it names. The folders may have any names:
VOC's own (``Annotations/``, ``JPEGImages/`` and optional lists in ``ImageSets/Main/``), one folder for both, or folders
such as ``train``, ``valid`` and ``test`` on any level. Pixels are counted from 1, and ``xmax`` is the last pixel inside
the box.
"""

import codecs
import math
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from fukami.data.annotation_files import (
    ImageNames,
    find_files_of_images,
    find_split,
    find_stem,
    list_relative_names,
    normalize_name,
    pair_with_images,
)
from fukami.data.annotations import (
    ANNOTATION_SPLITS,
    AnnotationProblem,
    Box,
    DatasetAnnotations,
    ImageAnnotation,
    parse_size,
    parse_split,
)
from fukami.data.files import list_files, walk_files, walk_images
from fukami.data.locations import list_data_folders
from fukami.data.mask_folders import LOSSLESS_EXTENSIONS, MASK_FOLDERS
from fukami.data.parsing import MAX_SMALL_FILE_BYTES, is_file, read_bytes, read_text, to_number
from fukami.data.samples import DIFFICULT, REGULAR
from fukami.errors import Error

IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "JPEGImage", "imgs")
BOX_FIELDS = ("xmin", "ymin", "xmax", "ymax")
ENCODING = re.compile(rb"""^<\?xml[^>]*encoding=["']([\w.:-]+)""")
LINE_ATTRIBUTE = "line of the file"  # an attribute name that is invalid in XML
MAX_NESTING = 50  # depth of nested elements; VOC has four
REJECTED_ENCODINGS = {"idna", "punycode"}  # Python encodings with quadratic run time


def find_voc(year: str) -> Path:
    """Return the folder of VOC ``2007`` or ``2012``.

    Raises:
        Error: no data folder contains it.
    """
    name = f"VOC{year}"
    for folder in list_data_folders():
        for root in (folder / "VOCdevkit" / name, folder / name, folder / name.lower(), folder / name.lower() / name):
            if (root / "Annotations").is_dir():
                return root
    folders = ", ".join(str(folder / "VOCdevkit" / name) for folder in list_data_folders())
    archives = "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar"
    archives = archives if year == "2007" else "VOCtrainval_11-May-2012.tar"
    raise Error(
        f"VOC {year} was not found in {folders}; unpack {archives} from host.robots.ox.ac.uk/pascal/VOC/voc{year} into "
        "a folder, and set FUKAMI_DATA to that folder, which then contains VOCdevkit"
    )


def is_voc_folder(root: Path) -> bool:
    """Return whether a folder has XML files where VOC and labeling tools write them."""
    folders = [_find_annotation_folder(root), root, *map(root.joinpath, ANNOTATION_SPLITS)]
    return any(list_files(folder, ".xml") for folder in folders if folder)


def has_xml_files(root: Path, images: Path | None = None) -> bool:
    """Return whether a folder has an XML file of an image; without ``images``, the images are below the same folder."""
    return bool(find_files_of_images((root,), ".xml", images))


def read_voc(root: Path, images: Path | None = None) -> DatasetAnnotations:
    """Read the XML files below a folder; without ``images``, the images are below the same folder.

    Lists in ``ImageSets/Main`` define the splits, or else the names of the folders.
    """
    dataset = DatasetAnnotations()
    annotations = _find_annotation_folder(root)
    if images is None and annotations:
        images = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    image_root = images or root
    files = sorted(walk_files(annotations or root, ".xml"))
    results = _read_annotations(files, sorted(walk_images(image_root)), images, dataset)
    # of several files of a stem, the last one of an image that exists
    ordered = sorted(files, key=lambda file: isinstance(results[file], ImageAnnotation))
    names = {file: list_relative_names(file, annotations or root) for file in files}
    by_name = {names[file][1]: results[file] for file in ordered} | {names[file][0]: results[file] for file in ordered}
    listed = _read_image_lists(root, annotations or root, by_name, dataset)
    for file, result in results.items():
        if not listed or (listed.isdisjoint(names[file]) and isinstance(result, AnnotationProblem)):
            split = find_split(file, root)
            if not split and isinstance(result, ImageAnnotation):
                split = find_split(result.image_path, image_root)
            _add_to_split(result, split, dataset)
    entries = [entry for split_entries in dataset.splits.values() for entry in split_entries]
    dataset.labels = tuple(sorted({box.label for entry in entries for box in entry.boxes if box.label}))
    return dataset


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file and return its root; every element has its line number as an attribute.

    Raises:
        Error: the file is not XML, declares entities, is nested too deeply or too large; the message contains the line.
    """
    content = read_bytes(path, max_bytes=MAX_SMALL_FILE_BYTES)
    try:
        try:
            return _build_tree(content)
        except (ValueError, LookupError):  # an encoding that expat does not support, but Python may
            declared = ENCODING.search(content)
            name = declared[1].decode() if declared else "utf-8"
            try:
                if codecs.lookup(name).name in REJECTED_ENCODINGS:
                    raise LookupError
                return _build_tree(content.decode(name))
            except (ValueError, LookupError):
                raise Error(f"{path}, line 1: is not in {name}, its declared encoding; save it in UTF-8") from None
    except _UnsafeXMLError as error:
        raise Error(f"{path}, line {error.args[1]}: {error.args[0]}; expected the XML of Pascal VOC") from None
    except expat.ExpatError as error:
        raise Error(f"{path}, line {error.lineno}: is not XML ({error}); get the file again") from None


class _UnsafeXMLError(Exception):
    """Unsafe XML construct; the arguments are the message and the line."""


def _build_tree(content: bytes | str) -> ElementTree.Element:
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_NESTING:
            raise _UnsafeXMLError(f"has more than {MAX_NESTING} nested elements", parser.CurrentLineNumber)
        builder.start(tag, {LINE_ATTRIBUTE: str(parser.CurrentLineNumber)})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def reject_entity(*_: object) -> None:  # a few lines of entities can expand to a text of any length
        raise _UnsafeXMLError("declares an entity", parser.CurrentLineNumber)

    parser.EntityDeclHandler = reject_entity
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def parse_annotation(path: Path, image: Path, root: ElementTree.Element) -> ImageAnnotation:
    """Convert a parsed file to the annotation of its image."""
    size = root.find("size")
    boxes = tuple(_parse_box(element) for element in root.iter("object"))
    image_size = None if size is None else parse_size(size.findtext("width"), size.findtext("height"))
    return ImageAnnotation(image, path, boxes, image_size, _get_line(root if size is None else size))


def _parse_box(element: ElementTree.Element) -> Box:
    label = (element.findtext("name") or "").strip()
    kind = DIFFICULT if (element.findtext("difficult") or "").strip() in ("1", "true", "True") else REGULAR
    box = element.find("bndbox")
    if box is None:
        return Box(label, (math.nan,) * 4, kind, _get_line(element))
    left, top, right, bottom = (to_number(box.findtext(side)) for side in BOX_FIELDS)
    return Box(label, (left - 1, top - 1, right, bottom), kind, _get_line(box), starts_at_zero=min(left, top) == 0)


def _get_line(element: ElementTree.Element) -> int:
    return int(element.attrib[LINE_ATTRIBUTE])


def _find_annotation_folder(root: Path) -> Path | None:
    """Return the folder of XML files in VOC's own layout."""
    for name in ("Annotations", "annotations"):
        if (root / name).is_dir() and next((root / name).glob("*.xml"), None):
            return root / name
    return None


def _read_image_lists(
    root: Path,
    annotations: Path,
    results: dict[str, ImageAnnotation | AnnotationProblem],
    dataset: DatasetAnnotations,
) -> set[str]:
    """Add the results by name to the splits of the lists in ``ImageSets/Main``; return the listed names."""
    entries: set[tuple[str, str]] = set()
    for path in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        split = parse_split(path.stem)
        lines = [(line, find_stem(name, results)) for line, name in _read_image_list(path)] if split else []
        if not any(stem in results for _, stem in lines):  # VOC 2012 lists images whose annotations are not public
            continue
        for line, stem in lines:
            if (split, stem) in entries:  # listed more than once
                continue
            entries.add((split, stem))
            detail = f"lists {stem}, which has no file in {annotations}; add it, or remove the line"
            _add_to_split(results.get(stem, AnnotationProblem("missing", path, line, detail)), split, dataset)
    return {stem for _, stem in entries}


def _add_to_split(result: ImageAnnotation | AnnotationProblem, split: str, dataset: DatasetAnnotations) -> None:
    """Add the result of a file to a split."""
    if isinstance(result, ImageAnnotation):
        dataset.splits.setdefault(split, []).append(result)
    else:
        dataset.unreadable_images.append(result._replace(split=split))


def _read_annotations(
    files: Sequence[Path], images: Sequence[Path], folder: Path | None, dataset: DatasetAnnotations
) -> dict[Path, ImageAnnotation | AnnotationProblem]:
    """Read each file, or record its problem; also record the images without annotation.

    Args:
        files: annotation files.
        images: images.
        folder: folder of images that do not exist; None: next to the file.
        dataset: receives the images without annotation.
    """
    file_to_image = pair_with_images(files, images)
    paired = {*file_to_image.values()}
    images_by_name = ImageNames()
    for path in images:
        images_by_name.add(path.name, path)
    results: dict[Path, ImageAnnotation | AnnotationProblem] = {}
    used = set()
    for file in files:
        result = results[file] = _read_annotation(
            file, file_to_image.get(file), images_by_name, paired, folder or file.parent, dataset
        )
        if isinstance(result, ImageAnnotation):
            used.add(result.image_path)
        elif file in file_to_image:
            used.add(file_to_image[file])
    dataset.unannotated_images += [path for path in images if path not in used]
    return results


def _read_annotation(
    path: Path,
    image: Path | None,
    images_by_name: ImageNames,
    paired: Set[Path],
    folder: Path,
    dataset: DatasetAnnotations,
) -> ImageAnnotation | AnnotationProblem:
    """Read the annotation of the image of the same stem, or else of the image in the file's ``filename``."""
    try:
        root = parse_xml(path)
    except Error as error:
        line = re.search(r", line (\d+): (.*)", str(error))
        detail = line[2] if line else str(error).removeprefix(f"{path} ")
        return AnnotationProblem("unreadable", path, int(line[1]) if line else 0, detail)
    if root.tag != "annotation":
        detail = f"starts with <{root.tag}>, not with <annotation>; expected the XML of Pascal VOC"
        return AnnotationProblem("unreadable", path, _get_line(root), detail)
    for element in root.iter("object"):
        if not (element.findtext("name") or "").strip():
            dataset.orphan_annotations.append(
                AnnotationProblem("no class", path, _get_line(element), "the box has no name, and is skipped")
            )
    name = Path((root.findtext("filename") or f"{path.stem}.jpg").strip()).name
    if image is None and normalize_name(Path(name).stem) == normalize_name(path.stem):
        image = folder / name  # an image of this name in another folder has another file
    elif image is None:
        image = images_by_name.choose_nearest(name, path) or folder / name
    elif Path(name).stem == image.stem and is_file(image.with_name(name)):  # of two images that differ in their suffix
        image = image.with_name(name)
    elif Path(name).stem == image.stem and image.parent != path.parent:
        named = images_by_name.choose_nearest(name, path)
        if named and named not in paired and not _is_mask_of(named, image):  # otherwise it has a file of its own
            image = named
    annotation = parse_annotation(path, image, root)
    if is_file(image):
        return annotation
    detail = f"its image {image} does not exist; put it there, or remove the annotation"
    return AnnotationProblem("missing", path, annotation.line, detail)


def _is_mask_of(path: Path, image: Path) -> bool:
    """Return whether a file is the mask of an image of the same stem, by their folders, or else by their formats."""
    are_in_mask_folders = [file.parent.name.lower() in MASK_FOLDERS for file in (path, image)]
    if any(are_in_mask_folders):
        return are_in_mask_folders == [True, False]
    return path.suffix.lower() in LOSSLESS_EXTENSIONS and image.suffix.lower() not in LOSSLESS_EXTENSIONS


def _read_image_list(path: Path) -> Iterator[tuple[int, str]]:
    """Iterate over line number and image name of a list, without the trailing 1, 0 or -1 of class lists."""
    for line, text in enumerate(read_text(path, errors="replace").split("\n"), 1):
        words = text.rsplit(maxsplit=1)
        if words:
            yield line, words[0] if len(words) == 2 and words[1] in ("1", "0", "-1") else text.strip()
