"""Detection datasets: loading by name or path."""

from collections.abc import Sequence

from fukami.data import formats, image_folder, scenes
from fukami.data.annotations import DatasetAnnotations, Samples, build_samples, load_splits
from fukami.data.sources import DataSource, identify_source
from fukami.data.splits import Splits
from fukami.errors import Error


def load_dataset(
    spec: str,
    val_fraction: float | None,
    max_unreadable: int = image_folder.MAX_UNREADABLE,
    *,
    images: str = "",
    include_train: bool = True,
) -> Splits[Samples]:
    """Load the splits and the class names of a dataset.

    Args:
        spec: ``scenes`` (bundled), ``bccd``, ``voc-animals``, ``voc2007``, ``voc2012``, ``coco``, or the path of a
            folder (or archive) or file in VOC, COCO or YOLO format.
        val_fraction: fraction of the training images used for validation, if the dataset has no validation split;
            None: as for :func:`fukami.data.splits.select_validation`.
        max_unreadable: maximum number of missing or unreadable images per split; they are skipped with a warning.
        images: folder of the images, if ``spec`` contains only their annotations.
        include_train: whether to load the training samples; if False, they may be missing.

    Raises:
        UsageError: the name is unknown, or the path does not exist.
        Error: the dataset has no known layout, is corrupted, or is not on this machine.
    """
    source = identify_source(spec, "boxes", images)
    if spec == "scenes":
        train = scenes.generate_box_samples(0, scenes.NUM_TRAIN)
        val = scenes.generate_box_samples(scenes.NUM_TRAIN, scenes.NUM_TEST)
        return Splits(train, val, (), scenes.LABELS)
    dataset = read_annotations(source)
    if not dataset.labels:
        problem = next(iter(dataset.unreadable_images), None)
        reason = (
            f"the first file that cannot be read: {problem.file}: {problem.detail}"
            if problem
            else "annotate its images first"
        )
        raise Error(f"{spec} has no box of any class; {reason}")

    def load(splits: Sequence[str]) -> Samples:
        entries = [entry for name in splits for entry in dataset.splits.get(name, ())]
        unreadable = [problem for problem in dataset.unreadable_images if problem.split in splits]
        return tuple(build_samples(entries, dataset.labels, unreadable, max_unreadable))

    return load_splits(dataset, load, val_fraction, include_train=include_train)


def read_annotations(source: DataSource) -> DatasetAnnotations:
    """Read the annotations of a dataset in VOC, COCO or YOLO format.

    Raises:
        Error: the dataset has no boxes in a known layout, or is corrupted.
    """
    return formats.read_boxes(source.require("boxes"), source.images)
