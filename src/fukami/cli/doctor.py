"""Command ``fukami doctor``."""

import sys

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import format_json_line
from fukami.errors import Error


def command(arguments: list[str]) -> None:
    """Validate a dataset: list every unusable file, and why."""
    import tyro

    def run(data: tyro.conf.Positional[str]) -> None:
        """Validate a dataset before training. Prints one JSON object for each problem; exits with 1 if there is any.

        Args:
            data: Built-in dataset (mnist, voc2007, camvid ...), folder of images by class (with or without train, val
                and test) or an archive of it, CSV file with the columns path, label and optionally split, shards,
                detection dataset in the VOC, COCO or YOLO layout, images with masks, or images with captions.
        """
        from fukami.cli import dataset_checks

        report = dataset_checks.validate_dataset(data)
        for problem in report.problems:
            print(format_json_line(problem.to_dict()))
        if report.problems:
            raise Error(str(report))
        print(report, file=sys.stderr)

    run_cli(run, arguments, "fukami doctor")
