"""fukami import."""

import json
from pathlib import Path

from fukami.cli import parse


def command(arguments: list[str]) -> None:
    """Make a run of another program's parameters: fukami import FILE --out DIR."""
    import tyro

    def run(file: tyro.conf.Positional[Path], out: Path) -> None:
        """Make a run of the DeepConvNet parameters (W1..W8, b1..b8) that a NumPy program saved.

        Args:
            file: A pickle of NumPy arrays (nothing else in it is run) or safetensors.
            out: Folder of the run: new or empty.
        """
        from fukami import importing

        importing.deep_convnet(file, out)
        print(json.dumps({"run": str(out)}))

    parse(run, arguments, "fukami import")
