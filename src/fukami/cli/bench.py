"""fukami bench."""

import json

from fukami.cli.main import Precision, run_cli


def command(arguments: list[str]) -> None:
    """Measure the arithmetic and the memory bandwidth of a device."""

    def run(device: str = "auto", precision: Precision = "auto") -> None:
        """Time a large matrix product and a large copy; prints one JSON object.

        Args:
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: That of the product; auto takes bfloat16 where it is faster.
        """
        import torch

        from fukami.engine.bench import measure_peak_throughput
        from fukami.engine.runtime import Runtime

        runtime = Runtime.start(device, precision)
        found = {"device": str(runtime.device), "precision": runtime.precision, "threads": torch.get_num_threads()}
        print(json.dumps(found | measure_peak_throughput(runtime)))

    run_cli(run, arguments, "fukami bench")
