"""Command ``fukami doctor``."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import format_json_line
from fukami.errors import Error

if TYPE_CHECKING:
    from fukami.data.findings import Findings, ImageItem
    from fukami.data.sources import DataSource, Kind


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
    from fukami.classification import checks as classification_checks
    from fukami.data import findings
    from fukami.data.sources import identify_source
    from fukami.detection import checks as detection_checks
    from fukami.segmentation import checks as segmentation_checks

    checks: dict[Kind, Callable[[DataSource, Findings], Iterator[tuple[ImageItem, bytes]]]] = {
        "boxes": detection_checks.check_samples,
        "masks": segmentation_checks.check_samples,
        "captions": captioning_checks.check_samples,
        "labels": classification_checks.check_samples,
    }
    source = identify_source(spec)
    kind: Kind = next(filter(source.has, checks), "labels")  # whose checks report what is wrong with any other source
    report = findings.Findings()
    findings.check_duplicates(checks[kind](source, report), report)
    if kind != "captions":
        findings.check_classes(report)
    if kind == "boxes" and source.has("masks"):
        masks = findings.Findings()
        segmentation_checks.check_masks(source, masks)
        known_problems = set(report.problems)
        report.problems += [problem for problem in masks.problems if problem not in known_problems]
    return report
