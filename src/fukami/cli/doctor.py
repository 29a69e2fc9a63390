"""Command ``fukami doctor``."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import format_json_line, is_same_file
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.data.findings import Findings, ImageItem
    from fukami.data.formats import Kind
    from fukami.data.sources import DataSource


def command(arguments: list[str]) -> None:
    """Validate a dataset: list unreadable files and other problems."""
    import tyro

    from fukami.data.sources import identify_source

    def run(
        data: tyro.conf.Positional[str] = "",
        images: str = "",
        annotations: str = "",
        out: Path = Path("problems.jsonl"),
    ) -> None:
        """Validate a dataset before training. Prints what was found, and one JSON object for each kind of problem.

        The exit status is 1 if there is any problem.

        Args:
            data: Built-in dataset (mnist, voc2007, camvid ...), folder of images by class (with or without train, val
                and test) or an archive of it, CSV file with the columns path, label and optionally split, shards,
                images with boxes (VOC, COCO, YOLO), masks, captions or no annotations, or games of Go (SGF).
            images: Folder of the images, with --annotations instead of DATA.
            annotations: Folder or file of the annotations of --images.
            out: File for the list of all problems, a JSON object per line; written only if there is any.
        """
        if bool(data) == bool(annotations) or bool(images) != bool(annotations):
            raise UsageError("specify either DATA, or --images and --annotations")
        if is_same_file(out, annotations or data):
            raise UsageError(f"{out} is the file of the dataset; use another --out")
        source = identify_source(annotations or data, images=images)
        for sentence in source.describe():
            print(sentence, file=sys.stderr)
        findings = validate_source(source)
        for sentence in findings.describe_depths():
            print(sentence, file=sys.stderr)
        for summary in findings.summarize():
            print(format_json_line(summary))
        if findings.problems:
            lines = [format_json_line(problem.to_dict()) for problem in findings.problems]
            try:
                out.write_text("\n".join(lines) + "\n", encoding="utf-8")
            except OSError as error:
                raise Error(f"{out} cannot be written ({error.strerror}); choose another --out") from None
            raise Error(f"{findings}; {out} lists each")
        print(findings, file=sys.stderr)

    run_cli(run, arguments, "fukami doctor")


def validate_source(source: "DataSource") -> "Findings":
    """Validate a dataset by the checks of its task.

    Files are decoded once, in threads; only a digest of 16 bytes is kept of each.
    """
    from fukami.captioning import checks as captioning_checks
    from fukami.classification import checks as classification_checks
    from fukami.data.findings import Findings, check_classes, check_duplicates
    from fukami.detection import checks as detection_checks
    from fukami.generation import checks as generation_checks
    from fukami.segmentation import checks as segmentation_checks

    checks: dict[Kind, Callable[[DataSource, Findings], Iterator[tuple[ImageItem, bytes]]]] = {
        "boxes": detection_checks.check_samples,
        "masks": segmentation_checks.check_samples,
        "captions": captioning_checks.check_samples,
        "labels": classification_checks.check_samples,
        "images": generation_checks.check_samples,
    }
    kinds: tuple[Kind, ...] = ("boxes", "masks", "captions", "labels", "games", "images")
    if source.images:  # there should be annotations of them
        kinds = kinds[:-1]
    kind: Kind = next(filter(source.has, kinds), "labels")  # whose checks report what is wrong with any other source
    if kind == "games":
        from fukami.self_play.checks import check_games

        return check_games(source)
    findings = Findings()
    check_duplicates(checks[kind](source, findings), findings)
    if kind not in ("captions", "images"):
        check_classes(findings)
    if kind == "boxes" and source.has("masks"):
        masks = Findings()
        segmentation_checks.check_masks(source, masks)
        known_problems = set(findings.problems)
        findings.problems += [problem for problem in masks.problems if problem not in known_problems]
    return findings
