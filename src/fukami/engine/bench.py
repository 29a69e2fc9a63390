"""What a device can do at most: a large matrix product and a large copy, timed."""

import time
from collections.abc import Callable

import torch

from fukami.engine.runtime import PRECISIONS, Runtime

MIN_BENCHMARK_SECONDS = 0.1  # for each, at least
MATRIX_SIZES = {"cpu": 1024, "mps": 4096, "cuda": 8192}  # of the matrices
COPY_BYTES = {"cpu": 2**26, "mps": 2**28, "cuda": 2**30}  # bytes: more than a cache holds


def measure_peak_throughput(runtime: Runtime) -> dict[str, float]:
    """``multiply_adds_per_second`` of a matrix product at the runtime's precision, ``bytes_per_second`` of a copy.

    A byte that is copied counts twice, read and written.
    """
    device = runtime.device
    side = MATRIX_SIZES[device.type]
    one, other = (torch.ones(side, side, device=device, dtype=PRECISIONS.get(runtime.precision, torch.float32))
                  for _ in range(2))  # fmt: skip
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "multiply_adds_per_second": side**3 / _time_call(lambda: one @ other, device),
        "bytes_per_second": 2 * len(source) / _time_call(lambda: target.copy_(source), device),
    }


def _time_call(function: Callable[[], object], device: torch.device) -> float:
    """Of a call, the quickest of a few rounds of many."""
    calls, found = 1, 0.0
    while True:
        rounds = []
        for _ in range(3):
            _synchronize(device)
            began = time.perf_counter()
            for _ in range(calls):
                function()
            _synchronize(device)
            rounds.append(time.perf_counter() - began)
        found = min(rounds) / calls
        if min(rounds) >= MIN_BENCHMARK_SECONDS / 3:
            return found
        calls = max(2 * calls, int(1.2 * MIN_BENCHMARK_SECONDS / 3 / max(found, 1e-6)))


def _synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
