"""Pictures with boxes from any source, by name or path."""

from pathlib import Path

from fukami.data import coco, folder, locate, scenes, voc, yolo
from fukami.data.annotated import Annotated
from fukami.data.annotations import Sheets, apart, parts, settle, stratum
from fukami.data.parsing import exists
from fukami.errors import Error, unknown

NAMES = ("scenes", "bccd", "voc-animals", "voc2007", "voc2012", "coco")
FOLDERS = ("bccd", "voc-animals")
FORMATS = {"VOC": voc.read, "COCO": coco.read, "YOLO": yolo.read}
LAYOUTS = (
    "Annotations/*.xml and JPEGImages/ (VOC); an .xml beside each picture; annotations/instances_train.json or "
    "train/_annotations.coco.json (COCO); data.yaml, or images/, labels/ and classes.txt (YOLO)"
)

Part = tuple[Annotated, ...]


def read(
    spec: str, holdout: float, broken: int = folder.BROKEN, *, training: bool = True
) -> tuple[Part, Part, tuple[str, ...]]:
    """What to train on, what to judge on, and the class names of a data set.

    Args:
        spec: ``scenes`` (embedded), ``bccd``, ``voc-animals``, ``voc2007``, ``voc2012``, ``coco``, or the path of a
            folder (or archive) or file in the layout of VOC, COCO or YOLO.
        holdout: share of the pictures that is judged on, where the data have no parts of their own.
        broken: pictures that may be missing or broken, in each part; they are left out and named.
        training: also what to train on, which need not be there otherwise.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are in no known layout or damaged, or there are none.
    """
    if spec == "scenes":
        return scenes.annotated(0, scenes.TRAINING), scenes.annotated(scenes.TRAINING, scenes.TESTING), scenes.LABELS
    sheets = described(located(spec))
    labels = sheets.labels
    if not labels:
        raise Error(f"{spec} has no box of any class; annotate its pictures first")
    learned, judged = parts(sheets)
    train = _settled(sheets, learned, broken) if training or judged is None else ()
    if judged is not None:
        return train, _settled(sheets, (judged,), broken), labels
    held = folder.held_out(stratum(train), holdout).tolist()
    kept = tuple(each for each, out in zip(train, held, strict=True) if not out)
    return kept, tuple(each for each, out in zip(train, held, strict=True) if out), labels


def _settled(sheets: Sheets, names: tuple[str, ...], broken: int) -> Part:
    """What can be learned from the parts of these names."""
    entries = [entry for name in names for entry in sheets.parts.get(name, ())]
    lost = [flaw for flaw in sheets.lost if flaw.part in names]
    return tuple(settle(entries, sheets.labels, lost, broken))


def located(spec: str) -> Path:
    """The folder, archive or file of a known name or a path.

    Raises:
        UsageError: no such name and no such path.
        Error: a known set is in none of the places.
    """
    if spec in FOLDERS:
        return locate.lying(spec, "the archive, or its folder")
    if spec in ("voc2007", "voc2012"):
        return voc.challenge(spec.removeprefix("voc"))
    if spec == "coco":
        return coco.benchmark()
    if not exists(Path(spec)):
        raise unknown("data set (and no file or folder)", spec, NAMES)
    return Path(spec)


def known(spec: str) -> bool:
    """Whether a name or a path is of pictures with boxes; an archive is unpacked for that."""
    return locate.known(spec, NAMES, recognised)


def described(path: Path) -> Sheets:
    """What the annotations at a path say.

    Raises:
        Error: they are in no known layout, or damaged.
    """
    found = recognised(path)
    if found is None:
        raise Error(f"{path} holds no annotations in a known layout; expected one of: {LAYOUTS}")
    layout, root = found
    sheets = FORMATS[layout](root)
    apart(sheets)
    return sheets


def recognised(path: Path) -> tuple[str, Path] | None:
    """The layout of a folder, an archive or a file, and where it begins; None where it is none of detection.

    Raises:
        Error: the archive cannot be unpacked.
    """
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in (".json", ".yaml", ".yml"):
            return ("COCO" if suffix == ".json" else "YOLO"), path
        path = folder.unpacked(path)
    for root in folder.nested(path):
        for layout, known in (("COCO", lambda root: bool(coco.files(root))), ("YOLO", yolo.known), ("VOC", voc.known)):
            if known(root):
                return layout, root
    return None
