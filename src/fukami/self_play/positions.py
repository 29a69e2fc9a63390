"""Positions to predict: lines of a text file, or the games of an SGF file."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fukami.data.parsing import read_bytes
from fukami.errors import Error
from fukami.self_play.game import Game, States

MAX_FILE_BYTES = 16 << 20  # 300,000 positions of Connect Four


class Position(NamedTuple):
    """Position of a file.

    Attributes:
        line: line of a text file, or number of the next move of a game, from 1.
        state: ``(S,)``; None if there is an error.
        player: player on the move, 0 or 1.
        played: the move that the game continues with; None at its end and in text files.
        error: why the position cannot be used.
    """

    line: int
    state: States | None
    player: int = 0
    played: int | None = None
    error: str = ""


def read_positions(source: str | os.PathLike[str], game: Game) -> Iterator[Position]:
    """Read the positions of a file; see :func:`parse_positions`.

    Raises:
        Error: the file cannot be read, or as for :func:`parse_positions`.
    """
    yield from parse_positions(read_bytes(Path(source), max_bytes=MAX_FILE_BYTES), os.fspath(source), game)


def parse_positions(content: bytes, name: str, game: Game) -> Iterator[Position]:
    """Parse the positions of a text file, one a line, or for Go those of the main line of an SGF file.

    Args:
        content: content of the file.
        name: name of the file, for errors.
        game: rules of the game.

    Raises:
        Error: the content is no text, or a game is illegal or has another board size.
    """
    from fukami.self_play.go import Go

    if not isinstance(game, Go):
        yield from _parse_lines(content, name, game)
        return
    from fukami.self_play import sgf

    record = sgf.read_game(content, name)
    moves: Sequence[int | None] = [*(move for _, move in record.moves), None]
    for line, (state, played) in enumerate(zip(sgf.replay(game, record, name), moves, strict=True), 1):
        yield Position(line, state, game.get_player(state), played)


def _parse_lines(content: bytes, name: str, game: Game) -> Iterator[Position]:
    """Parse the positions of the lines of a text file; empty lines are skipped."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Error(f"{name} is no text file ({error.reason}); write one position per line") from None
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            state = game.parse_position(row.strip())
            if not np.isnan(game.outcome(state[None])[0]):
                raise ValueError("the game is over")
            own, opponent = game.planes(state[None])[0, :2].reshape(2, -1).sum(1)
            yield Position(line, state, int(own != opponent))
        except (Error, ValueError) as error:
            yield Position(line, None, error=f"{name}, line {line}: {error}")
