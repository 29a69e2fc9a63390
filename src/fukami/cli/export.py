"""Command ``fukami export``."""

import json
from pathlib import Path
from typing import Literal

from fukami.cli.arguments import run_cli


def command(arguments: list[str]) -> None:
    """Export a run at lower precision, or as ONNX."""
    import tyro

    def run(
        run: tyro.conf.Positional[str],
        to: Literal["float16", "bfloat16", "int8", "binary", "onnx"],
        out: Path | None = None,
        calibration: str | None = None,
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Export a run at another precision. eval, predict and serve accept the result like any other run.

        Args:
            run: Folder of a run, or name of bundled weights.
            to: float16, bfloat16: dtype of weights and activations. int8: 8-bit weights and activations, computed by
                ONNX Runtime. binary: 1-bit weights and activations of a binarized network. onnx: float32 as ONNX.
            out: Folder of the exported run, new or empty. Default: runs/RUN-TO.
            calibration: Dataset that calibrates the activation ranges of int8: built-in name, folder, archive or CSV
                file. Default: the training data of the run.
            set: Recipe fields of the run that building its network needs: the file of your own game, as in
                game=./my_game.py.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
        """
        from fukami.engine import export as engine_export
        from fukami.engine.load_run import parse_run_overrides

        folder = out or Path("runs") / f"{Path(run).resolve().name}-{to}"
        overrides = parse_run_overrides((run,), set, recipe)
        print(json.dumps(engine_export.export_run(run, to, folder, calibration, recipe, overrides)))

    run_cli(run, arguments, "fukami export")
