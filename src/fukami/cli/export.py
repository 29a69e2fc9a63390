"""fukami export."""

import json
from pathlib import Path
from typing import Literal

from fukami.cli.main import run_cli


def command(arguments: list[str]) -> None:
    """Export a run with fewer bits, or as ONNX."""
    import tyro

    def run(
        run: tyro.conf.Positional[str],
        to: Literal["float16", "bfloat16", "int8", "binary", "onnx"],
        out: Path | None = None,
        calibration: str | None = None,
        recipe: Path | None = None,
    ) -> None:
        """Write a run at another precision; eval, predict and serve take the result like any other run.

        Args:
            run: Folder of a run, or name of weights that ship with the package.
            to: float16, bfloat16: type of the weights and the activations. int8: weights and activations in 8 bits,
                computed by ONNX Runtime. binary: the one bit that binarized networks were trained for. onnx: float32
                for ONNX Runtime and whatever else reads such files.
            out: Folder of the exported run: new or empty. Default: runs/RUN-TO.
            calibration: Data from which int8 takes the ranges of the activations: known name, folder, archive or CSV
                file. Default: what the run was trained on.
            recipe: File of the private recipe that the run was trained with; code is never taken from a run.
        """
        from fukami.engine import export as engine_export

        folder = out or Path("runs") / f"{Path(run).resolve().name}-{to}"
        print(json.dumps(engine_export.export_run(run, to, folder, calibration, recipe)))

    run_cli(run, arguments, "fukami export")
