"""Creation of games by name, and a check of users' own games."""

import hashlib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fukami.engine.recipe import load_class
from fukami.errors import Error, UsageError, build_unknown_error, find_name
from fukami.self_play.game import Game, States, Symmetries

GAMES: dict[str, tuple[str, tuple[int, ...]]] = {  # class and arguments by name
    "connect4": ("connect_four:ConnectFour", ()),
    "tic-tac-toe": ("tic_tac_toe:TicTacToe", ()),
    "go5": ("go:Go", (5,)),
    "go7": ("go:Go", (7,)),
    "go9": ("go:Go", (9,)),
    "go13": ("go:Go", (13,)),
    "go19": ("go:Go", (19,)),
}
BASE_NAME = "fukami.self_play.game.Game"
NUM_CHECKED_GAMES = 3
SOLVED_GAME = "connect4"  # the game whose moves are evaluated by a solver
MAX_SYMMETRIES = 1 << 16
TOLERANCE = 1e-5


def make_game(name: str, *, komi: float | None = None) -> Game:
    """Create a game from its name, or the game that a file such as ``./my_game.py`` defines, which is executed.

    Args:
        name: name of a built-in game, or path of a Python file that defines one subclass of :class:`Game`.
        komi: points for White in Go; None: those of the board size.

    Raises:
        UsageError: there is no such game or file, or the game has no komi.
        Error: the file fails, or does not define exactly one game.
    """
    file, is_stored, _ = name.partition("@sha256:")
    if is_stored:
        raise UsageError(
            f"the run plays the game of {file[:100]}, and code is never loaded from a run; specify the file with "
            f"--set game=./{Path(file[:100]).name} (to resume: --game)"
        )
    known_name = find_name(name, GAMES)
    location, arguments = GAMES.get(known_name or "", ("", ()))
    if komi is not None and not arguments and (known_name or name.endswith(".py")):
        raise UsageError(f"{known_name or name} has no komi; remove --komi, which is for Go")
    if name.endswith(".py"):
        game_class = load_class(Path(name), Game, BASE_NAME)  # type: ignore[type-abstract]
        try:
            user_game = game_class()
        except Exception as error:
            raise Error(f"{name}: {game_class.__name__}() failed: {type(error).__name__}: {error}") from error
        check_game(user_game)
        if user_game.name == SOLVED_GAME:
            raise Error(f"{name}: {SOLVED_GAME} is the name of the game that has a solver; set another name")
        return user_game
    if known_name is None:
        raise build_unknown_error("game", name, GAMES)
    module, _, class_name = location.partition(":")
    game_class = getattr(importlib.import_module(f"fukami.self_play.{module}"), class_name)
    game: Game = game_class(*arguments) if komi is None else game_class(*arguments, komi)
    return game


def identify_game(name: str) -> str:
    """Return the name of a game in ``recipe.json``: of a file its name and its SHA-256, of others the usual spelling.

    Raises:
        UsageError: there is no such file.
    """
    if not name.endswith(".py"):
        return find_name(name, GAMES) or name
    try:
        digest = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"the game file {name[:200]} cannot be read ({error.strerror}); check its path") from None
    return f"{Path(name).name}@sha256:{digest}"


def check_game(game: Game) -> None:
    """Check that a game has the interface of :class:`Game`, by playing random games.

    Each random game is played in all symmetries at once, so that their states are a batch whose results must agree.

    Raises:
        Error: a method fails, or returns something else than the interface defines; the message names the method.
    """
    _check_attributes(game)
    symmetries = _check_symmetries(game)
    initial = _call(game, "build_initial_state")
    if not isinstance(initial, np.ndarray) or initial.dtype != np.uint8 or initial.ndim != 1:
        raise _build_error(game, "build_initial_state", _describe(initial), "an array of uint8, (S,)")
    for move in range(game.num_moves):
        parsed = _call(game, "parse_move", _call(game, "format_move", move))
        if parsed != move:
            raise _build_error(game, "parse_move", f"{parsed!r} for format_move({move})", str(move))
    for seed in range(NUM_CHECKED_GAMES):
        _check_random_game(game, symmetries, initial, np.random.default_rng(seed))


def _check_random_game(game: Game, symmetries: Symmetries, initial: States, rng: np.random.Generator) -> None:
    """Play a random game in all symmetries, and check each position.

    Raises:
        Error: as for :func:`check_game`.
    """
    count = len(symmetries.moves)
    transformed_moves = np.argsort(symmetries.moves, axis=1)  # the move in each symmetry
    states = np.repeat(initial[None], count, axis=0)
    for number in range(game.max_moves + 1):
        legal = _check_position(game, symmetries, states)
        if legal is None:
            return
        moves = transformed_moves[:, rng.choice(np.flatnonzero(legal))]
        states = _check_batch(game, "play", (states, moves), np.uint8, initial.shape)
        if number == 0 and np.array_equal(states[0], initial):
            raise _build_error(game, "play", "the unchanged state", "the state after the move")
    raise Error(
        f"a game of {game.name} is not over after max_moves = {game.max_moves} moves; outcome() should then return 1, "
        "0 or -1, or max_moves should be larger"
    )


def _check_position(game: Game, symmetries: Symmetries, states: States) -> npt.NDArray[np.bool_] | None:
    """Check one position in all symmetries, and return its legal moves; None if the game is over.

    Raises:
        Error: as for :func:`check_game`.
    """
    outcomes = _check_batch(game, "outcome", (states,), np.float32, ())
    if not np.isin(outcomes[~np.isnan(outcomes)], (1, 0, -1)).all():
        raise _build_error(game, "outcome", str(outcomes), "1, 0, -1 or NaN")
    _check_symmetry(game, "outcome", outcomes[:, None], np.zeros((len(states), 1), np.int64))
    legal = _check_batch(game, "legal_moves", (states,), np.bool_, (game.num_moves,))
    _check_symmetry(game, "legal_moves", legal, symmetries.moves)
    planes = _check_batch(game, "planes", (states,), np.float32, (game.num_planes, *game.shape))
    planes = planes.reshape(len(states), game.num_planes, -1)
    if not np.isfinite(planes).all():
        raise _build_error(game, "planes", "infinite or NaN values", "finite values")
    stones = planes[:, :2]
    if not np.isin(stones, (0, 1)).all() or stones.min(axis=1).any():
        raise _build_error(game, "planes", "other values", "0 and 1 in planes 0 and 1, the stones of one side each")
    _check_symmetry(game, "planes", planes, symmetries.cells)
    is_over = not np.isnan(outcomes[0])
    if game.has_score:
        scores = _check_batch(game, "scores", (states,), np.float32, ())
        _check_symmetry(game, "scores", scores[:, None], np.zeros((len(states), 1), np.int64))
        if is_over and np.sign(scores[0]) != outcomes[0]:
            raise _build_error(game, "scores", f"{scores[0]:g}", f"the sign of the outcome {outcomes[0]:g}")
        owners = _check_batch(game, "owners", (states,), np.float32, (game.shape[0] * game.shape[1],))
        if not np.isin(owners, (1, 0, -1)).all():
            raise _build_error(game, "owners", "other values", "1, 0 and -1")
        _check_symmetry(game, "owners", owners, symmetries.cells)
    if is_over:
        return None
    if not legal[0].any():
        raise _build_error(game, "legal_moves", "no legal move", "at least one while outcome() is NaN")
    return np.asarray(legal[0])


def _check_attributes(game: Game) -> None:
    """Check the attributes.

    Raises:
        Error: an attribute is missing, or has another type or value.
    """
    names = ("name", "shape", "num_moves", "num_planes", "max_moves", "player_names", "has_pass", "has_score")
    values: dict[str, Any] = {name: getattr(game, name, None) for name in names}
    is_shape = _is_pair(values["shape"], int) and min(values["shape"]) > 0
    num_cells = math.prod(values["shape"]) if is_shape else 0
    pass_is_valid = values["has_pass"] is False or (values["has_pass"] is True and values["num_moves"] == num_cells + 1)
    checks = {
        "name": (isinstance(values["name"], str) and values["name"], "a non-empty string"),
        "shape": (is_shape, "rows and columns, such as (8, 8)"),
        "num_moves": (_is_count(values["num_moves"], 2), "an integer of at least 2"),
        "num_planes": (_is_count(values["num_planes"], 2), "an integer of at least 2"),
        "max_moves": (_is_count(values["max_moves"], 1), "a positive integer"),
        "player_names": (_is_pair(values["player_names"], str), "two non-empty strings"),
        # the network predicts a move for each cell, and to pass
        "has_pass": (pass_is_valid, "False, or True if num_moves is the number of cells + 1"),
        "has_score": (
            values["has_score"] is False or (values["has_score"] is True and values["has_pass"] is True),
            "False, or True if has_pass",
        ),
    }
    for name, (is_valid, expected) in checks.items():
        if not is_valid:
            raise Error(f"{type(game).__name__}.{name} is {values[name]!r:.100}; expected {expected}")


def _is_count(value: object, minimum: int) -> bool:
    return isinstance(value, int) and value >= minimum


def _is_pair(value: object, kind: type) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(item, kind) and item for item in value)


def _check_symmetries(game: Game) -> Symmetries:
    """Check that the symmetries are permutations, the identity first.

    Raises:
        Error: they are not.
    """
    symmetries = _call(game, "symmetries")
    if not isinstance(symmetries, Symmetries):
        raise _build_error(game, "symmetries", _describe(symmetries), "fukami.self_play.game.Symmetries")
    counts = (game.shape[0] * game.shape[1], game.num_moves)
    for name, values, count in zip(symmetries._fields, symmetries, counts, strict=True):
        expected = f"an array of int64 (K, {count}) of permutations, the first one 0, 1, ..., {count - 1}"
        if not isinstance(values, np.ndarray) or values.dtype != np.int64 or values.shape[1:] != (count,):
            raise _build_error(game, "symmetries", f"{name}: {_describe(values)}", expected)
        if not len(values) or (values[0] != np.arange(count)).any() or (np.sort(values) != np.arange(count)).any():
            raise _build_error(game, "symmetries", f"{name}: {values.tolist()!s:.100}", expected)
    if len(symmetries.cells) != len(symmetries.moves):
        returned = f"{len(symmetries.cells)} symmetries of the cells and {len(symmetries.moves)} of the moves"
        raise _build_error(game, "symmetries", returned, "the same number")
    if len(symmetries.cells) > MAX_SYMMETRIES:
        raise _build_error(game, "symmetries", f"{len(symmetries.cells):,} symmetries", f"at most {MAX_SYMMETRIES:,}")
    return symmetries


def _check_batch(
    game: Game, method: str, arguments: Sequence[npt.NDArray[Any]], dtype: type[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Call a method with a batch, and check the type and shape of its result.

    Raises:
        Error: they are others, or the result for the first state differs without the rest of the batch.
    """
    count = len(arguments[0])
    results = _call(game, method, *arguments)
    if not isinstance(results, np.ndarray) or results.dtype != dtype or results.shape != (count, *shape):
        expected = f"an array of {np.dtype(dtype)} {(count, *shape)} for {count} states"
        raise _build_error(game, method, _describe(results), expected)
    first = _call(game, method, *(argument[:1] for argument in arguments))
    if not isinstance(first, np.ndarray) or not np.array_equal(first, results[:1], equal_nan=dtype == np.float32):
        raise _build_error(game, method, "another result for a state alone than in a batch", "the same result")
    return results


def _check_symmetry(game: Game, method: str, values: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> None:
    """Check that the results for the transformed positions are the transformed results.

    Raises:
        Error: they are not.
    """
    for number, index in enumerate(indices):
        expected = values[0][..., index]
        if not np.allclose(values[number], expected, rtol=0, atol=TOLERANCE, equal_nan=True):
            raise _build_error(
                game,
                method,
                f"other values in a game that is transformed by symmetry {number}",
                "the same values, transformed; see symmetries()",
            )


def _call(game: Game, method: str, *arguments: Any) -> Any:
    """Call a method, and check that it does not change its arguments.

    Raises:
        Error: the method fails, or changes an argument.
    """
    copies = [argument.copy() if isinstance(argument, np.ndarray) else argument for argument in arguments]
    try:
        result = getattr(game, method)(*copies)
    except Exception as error:
        raise Error(f"{type(game).__name__}.{method}() failed: {type(error).__name__}: {error}") from error
    for argument, copy in zip(arguments, copies, strict=True):
        if not np.array_equal(argument, copy):
            raise Error(f"{type(game).__name__}.{method}() changes its argument; it should work on a copy")
    return result


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return f"{type(value).__name__} {value!r:.100}"


def _build_error(game: Game, method: str, returned: str, expected: str) -> Error:
    return Error(f"{type(game).__name__}.{method}() returned {returned}; expected {expected}")
