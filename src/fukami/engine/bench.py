"""Peak throughput of a device, measured with a large matrix product and a large copy."""

import time
from collections.abc import Callable

import torch

from fukami.engine.runtime import PRECISIONS, Runtime

MIN_BENCHMARK_SECONDS = 0.1  # minimum time of each measurement
MATRIX_SIZES = {"cpu": 1024, "mps": 4096, "cuda": 8192}  # rows and columns
COPY_BYTES = {"cpu": 2**26, "mps": 2**28, "cuda": 2**30}  # more than the caches hold


def measure_peak_throughput(runtime: Runtime) -> dict[str, float]:
    """Measure the peak throughput of the runtime's device.

    Returns:
        ``multiply_adds_per_second`` of a matrix product at the runtime's precision, and ``bytes_per_second`` of a copy,
        in which each byte counts twice: one read and one write.
    """
    device = runtime.device
    side = MATRIX_SIZES[device.type]
    a, b = (torch.ones(side, side, device=device, dtype=PRECISIONS.get(runtime.precision, torch.float32))
            for _ in range(2))  # fmt: skip
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "multiply_adds_per_second": side**3 / _time_call(lambda: a @ b, device),
        "bytes_per_second": 2 * len(source) / _time_call(lambda: target.copy_(source), device),
    }


def _time_call(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds per call in the fastest of three rounds of calls."""
    num_calls, seconds = 1, 0.0
    while True:
        rounds = []
        for _ in range(3):
            _synchronize(device)
            start = time.perf_counter()
            for _ in range(num_calls):
                function()
            _synchronize(device)
            rounds.append(time.perf_counter() - start)
        seconds = min(rounds) / num_calls
        if min(rounds) >= MIN_BENCHMARK_SECONDS / 3:
            return seconds
        num_calls = max(2 * num_calls, int(1.2 * MIN_BENCHMARK_SECONDS / 3 / max(seconds, 1e-6)))


def _synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
