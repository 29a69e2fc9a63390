"""fukami import."""

import json
from pathlib import Path

from fukami.cli.main import run_cli


def command(arguments: list[str]) -> None:
    """Import weights of another library as a run."""
    import tyro

    def run(file: tyro.conf.Positional[str], out: Path) -> None:
        """Make a run of parameters that another program saved.

        Args:
            file: The DeepConvNet parameters (W1..W8, b1..b8) of a NumPy program, a pickle (nothing else in it is run)
                or safetensors; or the state dict of torchvision's fasterrcnn_resnet50_fpn, fcn_resnet50 or
                fcn_resnet101; or coco, coco-fcn or coco-fcn-resnet101, its published weights of these, downloaded
                unless torch has them.
            out: Folder of the run: new or empty.
        """
        from fukami.cli import import_weights

        if import_weights.is_torchvision(file):
            import_weights.import_torchvision(file, out)
        else:
            import_weights.import_deep_convnet(Path(file), out)
        print(json.dumps({"run": str(out)}))

    run_cli(run, arguments, "fukami import")
