"""Client of GNU Go, a Go program of Debian, through the Go Text Protocol (GTP, version 2)."""

import re
import shutil
import subprocess
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from fukami.errors import Error, UsageError

PROGRAM = "gnugo"
OPTIONS = ("--mode", "gtp", "--quiet", "--chinese-rules", "--positional-superko", "--forbid-suicide")
TIMEOUT_SECONDS = 120.0  # for one command
CLOSE_SECONDS = 5.0  # for the end of the process
MIN_LEVEL = 0  # of playing strength; GNU Go has no maximum


class GnuGoEndedError(Error):
    """The process of GNU Go has ended: version 3.8 crashes in some positions, such as long ladders."""


def find_program() -> str:
    """Find the program GNU Go, and return its path.

    Raises:
        UsageError: it is not installed.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise UsageError(
            "GNU Go is not installed: install Debian's package gnugo (apt install gnugo), or use another opponent: "
            "--eval-opponent search (fukami eval: --set eval_opponent=search, fukami play: --against search)"
        )
    return program


def check_level(level: int, name: str) -> None:
    """Check a level of GNU Go; ``name`` is that of the option in the message.

    Raises:
        UsageError: the level is less than ``MIN_LEVEL``.
    """
    if level < MIN_LEVEL:
        raise UsageError(f"{name} should be at least {MIN_LEVEL}, not {level}")


class GnuGo:
    """A process of GNU Go under the rules of :class:`fukami.self_play.go.Go`; a context manager that ends it.

    Colors are ``black`` and ``white``; vertices are those of GTP, such as ``D4``, or ``pass``.

    Args:
        size: number of rows and columns of the board.
        komi: points for White.
        level: playing strength, from ``MIN_LEVEL``; GNU Go's own default is 10.
        seed: seed of GNU Go's random numbers.

    Raises:
        UsageError: GNU Go is not installed, or the level is too low.
        Error: GNU Go does not support the size of the board.
    """

    def __init__(self, size: int, komi: float, *, level: int = 1, seed: int = 0) -> None:
        check_level(level, "the level of GNU Go")
        self._process = subprocess.Popen(
            [find_program(), *OPTIONS, "--level", str(level), "--seed", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.send(f"boardsize {size}")
            self.send(f"komi {komi}")
            self.clear_board()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, command: str) -> str:
        """Send a GTP command and return the text of its response.

        Raises:
            GnuGoEndedError: GNU Go has ended.
            Error: GNU Go rejects the command, or does not respond in time.
        """
        timer = threading.Timer(TIMEOUT_SECONDS, self._process.kill)  # ends the output, so that reading it returns
        timer.daemon = True
        timer.start()
        try:
            response = self._exchange(command)
            timed_out = timer.finished.is_set()
        finally:
            timer.cancel()
        if response is None:
            if not timed_out:
                raise GnuGoEndedError(f"GNU Go ended (exit status {self._end()}) during the command {command!r}")
            raise Error(
                f"GNU Go did not respond in {TIMEOUT_SECONDS:g} s during the command {command!r}; use a lower level, "
                "or a smaller board"
            )
        if not response.startswith("="):
            raise Error(f"GNU Go rejects the command {command!r}: {response.removeprefix('?').strip()[:200]}")
        return response.removeprefix("=").strip()

    def _exchange(self, command: str) -> str | None:
        """Send a command and return the lines of its response, up to an empty line; None if the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{command}\n".encode())
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: the pipe is closed
            return None
        response = b""
        for line in self._process.stdout:
            if line.isspace() and response:
                return response.decode("ascii", "replace")
            response += line
        return None

    def play(self, color: str, vertex: str) -> None:
        """Play a move; raises :class:`fukami.Error` if GNU Go considers it illegal."""
        self.send(f"play {color} {vertex}")

    def generate_move(self, color: str) -> str:
        """Generate and play a move: a vertex, ``pass`` or ``resign``, in lower case if not a vertex."""
        move = self.send(f"genmove {color}")
        return move.lower() if move.lower() in ("pass", "resign") else move

    def undo(self) -> None:
        """Undo the last move."""
        self.send("undo")

    def clear_board(self) -> None:
        """Remove all stones, and start a new game."""
        self.send("clear_board")

    def list_legal_moves(self, color: str) -> set[str]:
        """List the vertices where a color may play; to pass, which is always legal, is not listed."""
        return set(self.send(f"all_legal {color}").split())

    def list_stones(self, color: str) -> set[str]:
        """List the vertices of the stones of a color."""
        return set(self.send(f"list_stones {color}").split())

    def compute_score(self) -> float:
        """Compute Black's score minus White's with the komi, after removing the stones that GNU Go considers dead."""
        score = self.send("final_score")
        match = re.fullmatch(r"0|([BW])\+(\d+(?:\.\d+)?)", score)
        if not match:
            raise Error(f"GNU Go's final score is {score[:50]!r}; expected one such as B+3.5")
        return float(match[2] or 0) * (-1 if match[1] == "W" else 1)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # GNU Go ends at the end of its input
        self._end()
        self._process.stdout.close()

    def _end(self) -> int:
        """Wait for the end of the process, or kill it after some seconds; return its exit status."""
        try:
            return self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
