"""Progress of long operations on stderr: a bar in a terminal or a notebook, plain lines elsewhere."""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from tqdm import tqdm

from fukami.errors import escape_controls

if TYPE_CHECKING:
    Bar = tqdm[NoReturn]
else:
    Bar = tqdm

Item = TypeVar("Item")
LINE_INTERVAL = 30.0  # maximum seconds between plain lines
MIN_SECONDS = 2.0  # a shorter operation shows nothing
BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {remaining}"
COUNT_FORMAT = "{desc} {n_fmt} {unit} {elapsed}"  # if the total is unknown


class ProgressBar(Bar):
    """Progress of an operation, as a context: a bar in a terminal or a notebook, else plain lines.

    A line is printed after :data:`MIN_SECONDS` and then every :data:`LINE_INTERVAL`, also while a single update takes
    long. Of nested operations only the innermost prints. Only the first process shows anything.

    Args:
        description: text before the bar.
        total: final value of ``n``; None if it is unknown.
        unit: what is counted, unless the description says it.
        bar_format: format of :mod:`tqdm`; the remaining time follows from the mean speed.
    """

    monitor_interval = 0  # without tqdm's thread
    clock = staticmethod(time.monotonic)
    bar_delay = MIN_SECONDS  # seconds until a bar is drawn
    first_line = math.inf  # seconds until the first plain line, even if another operation has just printed one

    def __init__(
        self, description: str, total: int | None = None, unit: str = "", bar_format: str | None = None
    ) -> None:
        is_main = os.environ.get("RANK", "0") == "0"
        is_terminal = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
        self.description, self.start_time, self.has_line = description, self.clock(), False
        self.is_plain = is_main and not is_terminal
        self.stream = sys.stderr  # an exporter may redirect it
        super().__init__(
            desc=escape_controls(description),
            total=total,
            unit=unit,
            bar_format=bar_format or (COUNT_FORMAT if total is None else BAR_FORMAT),
            smoothing=0,
            dynamic_ncols=True,
            leave=None,
            delay=self.bar_delay,
            file=self.stream,
            disable=not (is_main and is_terminal),
        )
        self.unit = unit

    def __enter__(self) -> Self:
        if self.is_plain or not self.disable:
            _monitor.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        _monitor.remove(self)
        self.close()

    def update(self, n: float | None = 1) -> bool | None:
        """Add to the count."""
        if self.disable:
            self.n += n or 0
            return None
        return super().update(n)

    def refresh(self, *arguments: Any, **options: Any) -> None:
        """Draw the bar, unless the operation has just started."""
        if self.clock() >= self.start_time + self.bar_delay:
            self.last_print_t = self._time()  # type: ignore[attr-defined]  # so that close() removes the bar
            super().refresh(*arguments, **options)

    def show_if_due(self) -> None:
        """Print a plain line if it is due, or draw the bar again, whose times change."""
        if not self.is_plain:
            self.refresh()
        elif self.is_line_due(self.clock()):
            self.has_line = True
            print_line(self.format_line(), self.stream)

    def is_line_due(self, now: float) -> bool:
        """Return whether a plain line is due."""
        seconds = now - self.start_time
        is_late = seconds >= MIN_SECONDS and now - _monitor.last_line >= LINE_INTERVAL
        return is_late or (not self.has_line and seconds >= self.first_line)

    def format_line(self) -> str:
        """Format the plain line, such as ``reading images: 1,200 of 2,934  0:40 left``."""
        if self.total is None:
            return f"{self.description}: {self.n:,} {self.unit}".rstrip()
        line = f"{self.description}: {self.n:,} of {self.total:,} {self.unit}".rstrip()
        if not self.n:
            return line
        return f"{line}  {format_duration((self.clock() - self.start_time) / self.n * (self.total - self.n))} left"


class Waiting(ProgressBar):
    """Message about what the program waits for, as a context; shown if it takes :data:`MIN_SECONDS`."""

    first_line = MIN_SECONDS

    def __init__(self, description: str) -> None:
        super().__init__(description, bar_format="{desc} {elapsed}")

    def describe(self, description: str) -> None:
        """Change the message, which is shown if it takes :data:`MIN_SECONDS` from now on."""
        self.description, self.start_time, self.has_line = description, self.clock(), False
        if not self.disable:
            self.set_description_str(description, refresh=False)

    def format_line(self) -> str:
        """Format the plain line: the description."""
        return self.description


def track(items: Iterable[Item], description: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Iterate over items, and show the progress; the total is the length of the items if they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with ProgressBar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def print_line(text: str, stream: Any = None) -> None:
    """Print a line on stderr, above the bars."""
    _monitor.last_line = ProgressBar.clock()
    ProgressBar.write(escape_controls(text), file=stream or sys.stderr)


def show_due_progress() -> None:
    """Show the progress of the innermost operation if it is due; a thread calls it every second."""
    for bar in _monitor.bars[-1:]:
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            bar.show_if_due()


def format_duration(seconds: float) -> str:
    """Format a duration, as in ``6:40`` or ``1:06:40``."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


class Monitor:
    """Operations in progress, the innermost last, and the thread that shows them."""

    def __init__(self) -> None:
        self.bars: list[ProgressBar] = []
        self.last_line = -math.inf  # time of the last plain line
        self.stop = threading.Event()

    def add(self, bar: ProgressBar) -> None:
        """Add an operation; the first one starts the thread."""
        self.bars.append(bar)
        if len(self.bars) == 1:
            self.stop = threading.Event()
            threading.Thread(target=self.run, args=(self.stop,), name="progress", daemon=True).start()

    def remove(self, bar: ProgressBar) -> None:
        """Remove an operation; the thread ends after the last one."""
        self.bars = [other for other in self.bars if other is not bar]  # tqdm compares bars by their position
        if not self.bars:
            self.stop.set()

    def run(self, stop: threading.Event) -> None:
        """Show the progress every second until ``stop`` is set."""
        while not stop.wait(1.0):
            show_due_progress()


_monitor = Monitor()
ProgressBar.set_lock(threading.RLock())  # tqdm's own lock would also create one of multiprocessing


def format_count(number: int, noun: str) -> str:
    """Format a count with its noun, as in ``1,797 images``."""
    return f"{number:,} {noun if number == 1 else pluralize(noun)}"


def pluralize(noun: str) -> str:
    """Return the plural of a noun."""
    return f"{noun}es" if noun.endswith(("s", "x", "tch")) else f"{noun}s"
