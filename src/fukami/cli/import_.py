"""Command ``fukami import``."""

import json
from pathlib import Path

from fukami.cli.arguments import run_cli


def command(arguments: list[str]) -> None:
    """Import weights of another library as a run."""
    import tyro

    def run(file: tyro.conf.Positional[str], out: Path) -> None:
        """Convert weights of another library to a run.

        Args:
            file: DeepConvNet parameters (W1..W8, b1..b8) of a NumPy program, as a pickle (read without executing code)
                or safetensors; or a state dict of torchvision's fasterrcnn_resnet50_fpn, fcn_resnet50 or fcn_resnet101;
                or coco, coco-fcn or coco-fcn-resnet101: torchvision's published weights, downloaded if not cached.
            out: Folder of the run, new or empty.
        """
        from fukami.cli import import_weights

        if import_weights.is_torchvision(file):
            import_weights.import_torchvision(file, out)
        else:
            import_weights.import_deep_convnet(Path(file), out)
        print(json.dumps({"run": str(out)}))

    run_cli(run, arguments, "fukami import")
