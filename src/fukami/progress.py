"""Progress bars on stderr."""

import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[NoReturn]
else:
    Bar = tqdm


class ProgressBar(Bar):
    """Progress bar that is drawn in a terminal or a notebook only.

    Args:
        description: text before the bar.
        total: final value of ``n``; None if it is unknown.
        bar_format: format of :mod:`tqdm`; the remaining time follows from the mean speed.
        disable: True to draw nothing.
    """

    monitor_interval = 0  # without tqdm's thread

    def __init__(
        self,
        description: str,
        total: float | None,
        bar_format: str = "{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {remaining}",
        *,
        disable: bool = False,
    ) -> None:
        is_shown = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
        super().__init__(
            desc=description,
            total=total,
            bar_format=bar_format,
            smoothing=0,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=disable or not is_shown,
        )


ProgressBar.set_lock(threading.RLock())  # tqdm's own lock would also create one of multiprocessing
