"""Command ``fukami bench``."""

import json

from fukami.cli.arguments import run_cli
from fukami.cli.main import Precision


def command(arguments: list[str]) -> None:
    """Benchmark a device: arithmetic throughput and memory bandwidth."""

    def run(device: str = "auto", precision: Precision = "auto") -> None:
        """Time a large matrix product and a large memory copy. Prints one JSON object.

        Args:
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of the matrix product. auto: bfloat16 if it is faster.
        """
        import torch

        from fukami.engine.bench import measure_peak_throughput
        from fukami.engine.runtime import Runtime

        runtime = Runtime.start(device, precision)
        settings = {"device": str(runtime.device), "precision": runtime.precision, "threads": torch.get_num_threads()}
        print(json.dumps(settings | measure_peak_throughput(runtime)))

    run_cli(run, arguments, "fukami bench")
