"""Parsing of games in requests, whose content is untrusted."""

import json
from typing import Any

from fukami.errors import UsageError, format_names
from fukami.self_play.game import Game
from fukami.self_play.match import GameRecord

MAX_LISTED_MOVES = 12  # legal moves in an error
FIELDS = ("game", "moves", "simulations")  # of a request in JSON


def parse_fields(content: bytes) -> dict[str, Any]:
    """Parse a request in JSON.

    Raises:
        UsageError: it is no JSON object, or has an unknown field.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"the body is not valid JSON ({error}); send an object with the fields {', '.join(FIELDS)}"
        ) from None
    if not isinstance(fields, dict):
        raise UsageError(f"the body is {describe(fields)}; expected an object with the fields {', '.join(FIELDS)}")
    for name in fields:
        if name not in FIELDS:
            raise UsageError(f"there is no field {describe(name)}; the fields are {', '.join(FIELDS)}")
    return fields


def parse_digits(text: object) -> object:
    """Parse an integer of a form; other texts are returned as they are."""
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 10 else text


def parse_person(value: object) -> int:
    """Parse the side of the person: 0 plays first, 1 second.

    Raises:
        UsageError: it is neither.
    """
    if value not in ("0", "1"):
        raise UsageError(f"person is {describe(value)}; expected 0 (plays first) or 1")
    return int(value == "1")


def replay(game: Game, moves: object) -> GameRecord:
    """Replay the moves of a game.

    Raises:
        UsageError: they are no list of moves, or a move is illegal.
    """
    if not isinstance(moves, list):
        raise UsageError(f"moves is {describe(moves)}; expected a list of moves such as [{game.format_move(0)!r}]")
    if len(moves) > game.max_moves:
        raise UsageError(f"moves has {len(moves):,} moves; a game of {game.name} has at most {game.max_moves:,}")
    record = GameRecord(game)
    for number, text in enumerate(moves, 1):
        if not isinstance(text, str):
            raise UsageError(f"move {number} is {describe(text)}; expected a string such as {game.format_move(0)!r}")
        try:
            move = game.parse_move(text)
        except ValueError as error:
            raise UsageError(f"move {number}: {error}") from None
        legal = record.legal_moves
        if move not in legal:
            names = format_names([game.format_move(int(other)) for other in legal], MAX_LISTED_MOVES)
            reason = f"the legal moves are {names}" if names else "the game is over"
            raise UsageError(f"illegal move {number}, {describe(text)}: {reason}")
        record.play(move)
    return record


def undo(record: GameRecord, person: int) -> None:
    """Take back the last move of the person, and the network's reply.

    Raises:
        UsageError: the person has not played.
    """
    if len(record.moves) <= person:
        raise UsageError("there is no move to undo")
    record.undo()
    if record.player != person:
        record.undo()


def describe(value: object) -> str:
    """Describe a value of a request for an error, in at most 60 ASCII characters."""
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
