"""Detection datasets: loading by name or path, and detection of their annotation format."""

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
    "Annotations/*.xml and JPEGImages/ (VOC); an .xml next to each image; annotations/instances_train.json or "
    "train/_annotations.coco.json (COCO); data.yaml, or images/, labels/ and classes.txt (YOLO)"
)

Samples = tuple[Sample, ...]


def load_dataset(
    spec: str, holdout: float, max_broken: int = image_folder.MAX_BROKEN, *, include_train: bool = True
) -> tuple[Samples, Samples, tuple[str, ...]]:
    """Load the training samples, the evaluation samples and the class names of a dataset.

    Args:
        spec: ``scenes`` (bundled), ``bccd``, ``voc-animals``, ``voc2007``, ``voc2012``, ``coco``, or the path of a
            folder (or archive) or file in VOC, COCO or YOLO format.
        holdout: fraction of the images held out for evaluation, if the dataset has no splits.
        max_broken: maximum number of missing or unreadable images per split; they are skipped with a warning.
        include_train: whether to load the training samples; if False, they may be missing.

    Raises:
        UsageError: the name is unknown, or the path does not exist.
        Error: the dataset has no known layout, is corrupted, or is not on this machine.
    """
    if spec == "scenes":
        return (
            scenes.generate_box_samples(0, scenes.NUM_TRAIN),
            scenes.generate_box_samples(scenes.NUM_TRAIN, scenes.NUM_TEST),
            scenes.LABELS,
        )
    dataset = read_annotations(find_dataset(spec))
    labels = dataset.labels
    if not labels:
        raise Error(f"{spec} has no box of any class; annotate its images first")
    train_splits, eval_split = select_splits(dataset)
    train = _load_splits(dataset, train_splits, max_broken) if include_train or eval_split is None else ()
    if eval_split is not None:
        return train, _load_splits(dataset, (eval_split,), max_broken), labels
    is_held_out = image_folder.select_holdout(find_rarest_classes(train), holdout).tolist()
    kept = tuple(sample for sample, held_out in zip(train, is_held_out, strict=True) if not held_out)
    evaluation = tuple(sample for sample, held_out in zip(train, is_held_out, strict=True) if held_out)
    return kept, evaluation, labels


def _load_splits(dataset: DatasetAnnotations, splits: tuple[str, ...], max_broken: int) -> Samples:
    """Build the samples of these splits."""
    entries = [entry for name in splits for entry in dataset.splits.get(name, ())]
    unreadable = [problem for problem in dataset.unreadable_images if problem.split in splits]
    return tuple(build_samples(entries, dataset.labels, unreadable, max_broken))


def find_dataset(spec: str) -> Path:
    """Find the folder, archive or file of a dataset by name or path.

    Raises:
        UsageError: the name is unknown, or the path does not exist.
        Error: a known dataset is at none of the dataset locations.
    """
    if spec in LOCAL_DATASETS:
        return locations.find_dataset(spec, "the archive, or its folder")
    if spec in ("voc2007", "voc2012"):
        return voc.find_voc(spec.removeprefix("voc"))
    if spec == "coco":
        return coco.find_coco()
    if not exists(Path(spec)):
        raise build_unknown_error("dataset (and no file or folder)", spec, DATASETS)
    return Path(spec)


def is_detection_dataset(spec: str) -> bool:
    """Return whether a name or path is a detection dataset; unpacks an archive for that."""
    return locations.is_known_dataset(spec, DATASETS, detect_layout)


def read_annotations(path: Path) -> DatasetAnnotations:
    """Read the annotations of a dataset in VOC, COCO or YOLO format.

    Raises:
        Error: the annotations have no known layout, or are corrupted.
    """
    layout_and_root = detect_layout(path)
    if layout_and_root is None:
        raise Error(f"{path} contains no annotations in a known layout; expected one of: {EXPECTED_LAYOUTS}")
    layout, root = layout_and_root
    dataset = READERS[layout](root)
    separate_trainval(dataset)
    return dataset


def detect_layout(path: Path) -> tuple[str, Path] | None:
    """Return the annotation format of a folder, archive or file and its root; None if it has no boxes.

    Raises:
        Error: the archive cannot be unpacked.
    """
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in (".json", ".yaml", ".yml"):
            return ("COCO" if suffix == ".json" else "YOLO"), path
        path = image_folder.unpack_archive(path)
    for root in image_folder.descend_single_folders(path):
        for layout, is_layout in (
            ("COCO", lambda root: bool(coco.find_coco_files(root))),
            ("YOLO", yolo.is_yolo_dataset),
            ("VOC", voc.is_voc_folder),
        ):
            if is_layout(root):
                return layout, root
    return None
