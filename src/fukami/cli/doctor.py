"""fukami doctor."""

import sys

from fukami.cli.inputs import format_json_line
from fukami.cli.main import run_cli
from fukami.errors import Error


def command(arguments: list[str]) -> None:
    """Validate a dataset: list every file that is unusable, and why."""
    import tyro

    def run(data: tyro.conf.Positional[str]) -> None:
        """Every file that training would stumble on, by name; prints one JSON object for each problem, exits 1 if any.

        Args:
            data: Folder of images by class (with or without train, val and test), archive of one, CSV with columns
                path and label (perhaps split), shards, or a known name (mnist, cifar10 ...); or images with boxes in
                the layout of VOC, COCO or YOLO, or with masks, or a known name of those (scenes, voc2007, camvid ...).
        """
        from fukami.cli import dataset_checks

        found = dataset_checks.validate_dataset(data)
        for problem in found.problems:
            print(format_json_line(problem.to_dict()))
        if found.problems:
            raise Error(str(found))
        print(found, file=sys.stderr)

    run_cli(run, arguments, "fukami doctor")
