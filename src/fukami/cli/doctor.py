"""Command ``fukami doctor``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import format_json_line
from fukami.errors import Error, build_unknown_error

if TYPE_CHECKING:
    from fukami.data.findings import Findings


def command(arguments: list[str]) -> None:
    """Validate a dataset: list unreadable files and other problems."""
    import tyro

    def run(data: tyro.conf.Positional[str]) -> None:
        """Validate a dataset before training. Prints one JSON object for each problem; exits with 1 if there is any.

        Args:
            data: Built-in dataset (mnist, voc2007, camvid ...), folder of images by class (with or without train, val
                and test) or an archive of it, CSV file with the columns path, label and optionally split, shards,
                detection dataset in the VOC, COCO or YOLO layout, images with masks, or images with captions.
        """
        report = validate_dataset(data)
        for problem in report.problems:
            print(format_json_line(problem.to_dict()))
        if report.problems:
            raise Error(str(report))
        print(report, file=sys.stderr)

    run_cli(run, arguments, "fukami doctor")


def validate_dataset(spec: str) -> "Findings":
    """Validate the dataset at a path, or the built-in dataset of that name, by the checks of its task.

    Files are decoded once, in threads; only a digest of 16 bytes is kept of each.

    Raises:
        UsageError: there is no such path or name.
    """
    from fukami.captioning import checks as captioning_checks
    from fukami.captioning import data as captioning_data
    from fukami.classification import checks as classification_checks
    from fukami.data import findings, labeled_images, shards
    from fukami.data.parsing import exists
    from fukami.detection import checks as detection_checks
    from fukami.detection import data as detection_data
    from fukami.segmentation import checks as segmentation_checks
    from fukami.segmentation import data as segmentation_data

    names = (*labeled_images.DATASET_NAMES, *detection_data.DATASETS, *segmentation_data.DATASETS)
    is_sharded = shards.is_shard_spec(spec)
    if not (is_sharded or spec in (*names, *captioning_data.DATASET_NAMES) or exists(Path(spec))):
        raise build_unknown_error("dataset (and no file or folder)", spec, names)
    report = findings.Findings()
    has_boxes = not is_sharded and detection_data.is_detection_dataset(spec)
    has_masks = not is_sharded and segmentation_data.is_segmentation_dataset(spec)
    has_captions = not (is_sharded or has_boxes or has_masks) and captioning_data.is_caption_dataset(spec)
    check_samples = (
        detection_checks.check_samples
        if has_boxes
        else segmentation_checks.check_samples
        if has_masks
        else captioning_checks.check_samples
        if has_captions
        else classification_checks.check_samples
    )
    findings.check_duplicates(check_samples(spec, report), report)
    if not has_captions:
        findings.check_classes(report)
    if has_boxes and has_masks:
        masks = findings.Findings()
        segmentation_checks.check_masks(spec, masks)
        known_problems = set(report.problems)
        report.problems += [problem for problem in masks.problems if problem not in known_problems]
    return report
