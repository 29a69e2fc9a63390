"""Images with boxes from any source, by name or path."""

from pathlib import Path

from fukami.data import coco, image_folder, locations, scenes, voc, yolo
from fukami.data.annotations import (
    DatasetAnnotations,
    build_samples,
    find_rarest_classes,
    select_splits,
    separate_trainval,
)
from fukami.data.parsing import exists
from fukami.data.samples import Sample
from fukami.errors import Error, build_unknown_error

DATASETS = ("scenes", "bccd", "voc-animals", "voc2007", "voc2012", "coco")
LOCAL_DATASETS = ("bccd", "voc-animals")
READERS = {"VOC": voc.read_voc, "COCO": coco.read_coco, "YOLO": yolo.read_yolo}
EXPECTED_LAYOUTS = (
    "Annotations/*.xml and JPEGImages/ (VOC); an .xml beside each image; annotations/instances_train.json or "
    "train/_annotations.coco.json (COCO); data.yaml, or images/, labels/ and classes.txt (YOLO)"
)

Samples = tuple[Sample, ...]


def load_dataset(
    spec: str, holdout: float, max_broken: int = image_folder.MAX_BROKEN, *, include_train: bool = True
) -> tuple[Samples, Samples, tuple[str, ...]]:
    """What to train on, what to judge on, and the class names of a data set.

    Args:
        spec: ``scenes`` (embedded), ``bccd``, ``voc-animals``, ``voc2007``, ``voc2012``, ``coco``, or the path of a
            folder (or archive) or file in the layout of VOC, COCO or YOLO.
        holdout: share of the images that is judged on, where the data have no parts of their own.
        max_broken: images that may be missing or broken, in each part; they are left out and named.
        include_train: also what to train on, which need not be there otherwise.

    Raises:
        UsageError: no such name and no such path.
        Error: the data are in no known layout or damaged, or there are none.
    """
    if spec == "scenes":
        return (
            scenes.generate_box_samples(0, scenes.NUM_TRAIN),
            scenes.generate_box_samples(scenes.NUM_TRAIN, scenes.NUM_TEST),
            scenes.LABELS,
        )
    sheets = read_annotations(find_dataset(spec))
    labels = sheets.labels
    if not labels:
        raise Error(f"{spec} has no box of any class; annotate its images first")
    learned, judged = select_splits(sheets)
    train = _load_splits(sheets, learned, max_broken) if include_train or judged is None else ()
    if judged is not None:
        return train, _load_splits(sheets, (judged,), max_broken), labels
    held = image_folder.select_holdout(find_rarest_classes(train), holdout).tolist()
    kept = tuple(each for each, out in zip(train, held, strict=True) if not out)
    return kept, tuple(each for each, out in zip(train, held, strict=True) if out), labels


def _load_splits(sheets: DatasetAnnotations, splits: tuple[str, ...], max_broken: int) -> Samples:
    """What can be learned from the parts of these names."""
    entries = [entry for name in splits for entry in sheets.splits.get(name, ())]
    lost = [flaw for flaw in sheets.unusable_images if flaw.split in splits]
    return tuple(build_samples(entries, sheets.labels, lost, max_broken))


def find_dataset(spec: str) -> Path:
    """The folder, archive or file of a known name or a path.

    Raises:
        UsageError: no such name and no such path.
        Error: a known set is in none of the places.
    """
    if spec in LOCAL_DATASETS:
        return locations.find_dataset(spec, "the archive, or its folder")
    if spec in ("voc2007", "voc2012"):
        return voc.find_voc(spec.removeprefix("voc"))
    if spec == "coco":
        return coco.find_coco()
    if not exists(Path(spec)):
        raise build_unknown_error("data set (and no file or folder)", spec, DATASETS)
    return Path(spec)


def is_detection_dataset(spec: str) -> bool:
    """Whether a name or a path is of images with boxes; an archive is unpacked for that."""
    return locations.is_known_dataset(spec, DATASETS, detect_layout)


def read_annotations(path: Path) -> DatasetAnnotations:
    """What the annotations at a path say.

    Raises:
        Error: they are in no known layout, or damaged.
    """
    found = detect_layout(path)
    if found is None:
        raise Error(f"{path} holds no annotations in a known layout; expected one of: {EXPECTED_LAYOUTS}")
    layout, root = found
    sheets = READERS[layout](root)
    separate_trainval(sheets)
    return sheets


def detect_layout(path: Path) -> tuple[str, Path] | None:
    """The layout of a folder, an archive or a file, and where it begins; None where it is none of detection.

    Raises:
        Error: the archive cannot be unpacked.
    """
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in (".json", ".yaml", ".yml"):
            return ("COCO" if suffix == ".json" else "YOLO"), path
        path = image_folder.unpack_archive(path)
    for root in image_folder.descend_single_folders(path):
        for layout, known in (
            ("COCO", lambda root: bool(coco.find_coco_files(root))),
            ("YOLO", yolo.is_yolo_dataset),
            ("VOC", voc.is_voc_folder),
        ):
            if known(root):
                return layout, root
    return None
