"""Run a program and exit after its first optimizer step; the last line on stdout is the time of that step.

    python benchmarks/peers/first_step.py fukami train deep-convnet --data mnist --out DIR
    python benchmarks/peers/first_step.py benchmarks/common/plain_loop.py

The program, a module or a file, is not modified: a torch hook is called after each optimizer step. The time is that of
``time.monotonic()``, which is the same for all processes of a machine.
"""

import os
import runpy
import sys
import time

import torch  # the program imports it anyway
from torch.optim.optimizer import register_optimizer_step_post_hook


def report_and_exit(*args):
    """Wait for the device, print the time, and end the process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(time.monotonic(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    del sys.argv[0]
    register_optimizer_step_post_hook(report_and_exit)
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
