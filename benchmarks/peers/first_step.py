"""Run a program, and leave as soon as its first optimizer step is over; the moment is the last line on stdout.

    python benchmarks/peers/first_step.py fukami train deep-convnet --data mnist --out DIR
    python benchmarks/peers/first_step.py benchmarks/common/plain_loop.py

The program, a module or a file, is not changed: torch has a hook that is called after every step of every optimizer.
The moment is that of ``time.monotonic()``, which all processes of a machine share.
"""

import os
import runpy
import sys
import time

import torch  # the program would import it a moment later
from torch.optim.optimizer import register_optimizer_step_post_hook


def leave(*about):
    """Wait for the device, say when it was, and end the process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(time.monotonic(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    del sys.argv[0]
    register_optimizer_step_post_hook(leave)
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
