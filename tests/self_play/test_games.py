"""Tests of the creation of games, and of the check of users' games with small broken games."""

import importlib.util

import numpy as np
import pytest

from fukami.errors import Error, UsageError
from fukami.self_play.alphago_zero import AlphaGoZero
from fukami.self_play.game import Game, Symmetries
from fukami.self_play.games import GAMES, MAX_SYMMETRIES, check_game, make_game
from fukami.self_play.go import Go
from fukami.self_play.positions import parse_positions
from fukami.self_play.tic_tac_toe import TicTacToe

SOURCE = """
from fukami.self_play.tic_tac_toe import TicTacToe

class MyGame(TicTacToe):
    name = "my-game"
"""


@pytest.mark.parametrize("name", GAMES)
def test_built_in_games(name):
    if importlib.util.find_spec(f"fukami.self_play.{GAMES[name][0].partition(':')[0]}") is None:
        pytest.skip("not written yet")
    assert make_game(name).name == name


@pytest.mark.parametrize("name", ["tic-tac-toe", "connect4", "go5"])
def test_built_in_games_have_the_interface(name):
    check_game(make_game(name))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_small_boards_have_the_interface(size):
    check_game(Go(size))


def test_names_ignore_case_and_hyphens():
    assert make_game("Tic_Tac_Toe").name == "tic-tac-toe"
    assert make_game("GO-9").shape == (9, 9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("go11", "unknown game 'go11'; did you mean 'go1"),
        ("conect4", "'connect4'"),
        ("", "the valid ones are connect4"),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(UsageError, match=message):
        make_game(name)


@pytest.fixture
def write_game(tmp_path):
    def write(source):
        path = tmp_path / "my_game.py"
        path.write_text(source, encoding="utf-8")
        return str(path)

    return write


def test_file(write_game):
    path = write_game(SOURCE)
    game = make_game(path)
    assert game.name == "my-game"
    assert type(make_game(path)) is type(game)  # executed once
    with pytest.raises(UsageError, match=r"my_game.py has no komi; remove --komi"):
        make_game(path, komi=7.5)


def test_changed_file_is_executed_again(write_game):
    make_game(write_game(SOURCE))
    assert make_game(write_game(SOURCE.replace("my-game", "other"))).name == "other"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "should define one subclass of fukami.self_play.game.Game; it defines none"),
        (SOURCE + "class Other(MyGame):\n    pass", "it defines MyGame, Other"),
        ("1 / 0", "my_game.py failed: ZeroDivisionError"),
        ("class", "my_game.py failed: SyntaxError"),
        ("from fukami.self_play.game import Game\nclass Empty(Game):\n    pass", r"Empty\(\) failed: TypeError: Can't"),
        (SOURCE + "    def __init__(self, size): pass", r"MyGame\(\) failed: TypeError"),
    ],
)
def test_invalid_file(write_game, source, message):
    with pytest.raises(Error, match=message):
        make_game(write_game(source))


def test_a_game_of_a_file_is_not_called_connect_four(write_game):
    """It would be evaluated by the solver of the usual rules."""
    with pytest.raises(Error, match="connect4 is the name of the game that has a solver"):
        make_game(write_game(SOURCE.replace("my-game", "connect4")))


class Torus(TicTacToe):
    """Game with as many symmetries as given."""

    def symmetries(self):
        count = MAX_SYMMETRIES + 1
        return Symmetries(np.tile(np.arange(9), (count, 1)), np.tile(np.arange(9), (count, 1)))


def test_the_number_of_symmetries_is_limited():
    with pytest.raises(Error, match="at most 65,536"):
        check_game(Torus())


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="there is no game file"):
        make_game(str(tmp_path / "missing.py"))


class WithPass(TicTacToe):
    """Game that never ends: two sides that can only pass."""

    shape = (2, 4)
    has_pass = True
    has_score = True

    def legal_moves(self, states):
        return np.arange(9) == np.full((len(states), 1), 8)

    def outcome(self, states):
        return np.where(states[:, 0] < 5, np.nan, 0).astype(np.float32)

    def play(self, states, moves):
        return states + np.uint8(1)

    def planes(self, states):
        return np.zeros((len(states), 2, 2, 4), np.float32)

    def symmetries(self):
        return Symmetries(np.arange(8)[None], np.arange(9)[None])

    def scores(self, states):
        return np.zeros(len(states), np.float32)

    def owners(self, states):
        return np.zeros((len(states), 8), np.float32)


def test_game_with_pass_and_score():
    check_game(WithPass())


def test_positions_of_a_game_with_a_score_are_lines():
    """Only Go has positions in SGF files, and GNU Go as the opponent of the evaluation."""

    class Game(WithPass):
        def parse_position(self, text):
            return np.full(9, int(text), np.uint8)

    for content in (b"3\n4\n", b"\xef\xbb\xbf3\r\n4\r\n"):  # also as Windows writes it
        assert [position.state[0] for position in parse_positions(content, "positions.txt", Game())] == [3, 4]
    assert AlphaGoZero().build_evaluation((Game(),), "test").opponent == "search"


def change_argument(game, states):
    states[0] = 9
    return np.full(len(states), np.nan, np.float32)


def disorder_moves(self):
    cells, moves = TicTacToe().symmetries()
    moves = moves.copy()
    moves[1] = np.arange(9)
    return Symmetries(cells, moves)


def get_symmetries(**changes):
    return lambda game: TicTacToe().symmetries()._replace(**changes)


NINE = np.arange(9)[None]


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (TicTacToe, {"name": ""}, r"Broken.name is ''; expected a non-empty string"),
        (TicTacToe, {"shape": [3, 3]}, r"Broken.shape is \[3, 3\]; expected rows and columns"),
        (TicTacToe, {"shape": (0, 3)}, r"Broken.shape is \(0, 3\)"),
        (TicTacToe, {"num_moves": 9.0}, "Broken.num_moves is 9.0; expected an integer of at least 2"),
        (TicTacToe, {"num_moves": 1}, "Broken.num_moves is 1; expected an integer of at least 2"),
        (TicTacToe, {"num_planes": 1}, "Broken.num_planes is 1; expected an integer of at least 2"),
        (TicTacToe, {"max_moves": None}, "Broken.max_moves is None"),
        (TicTacToe, {"player_names": ("x", "")}, r"Broken.player_names is \('x', ''\); expected two non-empty"),
        (TicTacToe, {"has_pass": True}, "Broken.has_pass is True; expected False, or True if num_moves is the number"),
        (TicTacToe, {"has_score": 1}, "Broken.has_score is 1"),
        (TicTacToe, {"has_score": True}, "Broken.has_score is True; expected False, or True if has_pass"),
        (
            TicTacToe,
            {"build_initial_state": lambda game: np.zeros(9)},
            r"build_initial_state\(\) returned an array of float64 \(9,\); expected an array of uint8, \(S,\)",
        ),
        (TicTacToe, {"build_initial_state": lambda game: [0] * 9}, "returned list "),
        (TicTacToe, {"format_move": lambda game, move: "1"}, r"parse_move\(\) returned 8 for format_move\(0\)"),
        (TicTacToe, {"parse_move": lambda game, text: int(text)}, r"returned 1 for format_move\(0\); expected 0"),
        (
            TicTacToe,
            {"legal_moves": lambda game, states: (states == 0).astype(int)},
            r"Broken.legal_moves\(\) returned an array of int64 \(8, 9\); expected an array of bool \(8, 9\)",
        ),
        (TicTacToe, {"legal_moves": lambda game, states: (states == 0)[0]}, r"returned an array of bool \(9,\)"),
        (
            TicTacToe,
            {"legal_moves": lambda game, states: np.zeros((len(states), 9), bool)},
            r"legal_moves\(\) returned no legal move; expected at least one while outcome\(\) is NaN",
        ),
        (
            TicTacToe,
            {"legal_moves": lambda game, states: (states == 0) & (np.arange(9) < 7)},
            r"legal_moves\(\) returned other values in a game that is transformed by symmetry 1",
        ),
        (TicTacToe, {"play": lambda game, states, moves: None}, r"play\(\) returned NoneType None; expected an array"),
        (TicTacToe, {"play": lambda game, states, moves: states.astype(int)}, r"play\(\) returned an array of int64"),
        (TicTacToe, {"play": lambda game, states, moves: states}, r"play\(\) returned the unchanged state"),
        (TicTacToe, {"play": lambda game, states, moves: 1 / 0}, r"Broken.play\(\) failed: ZeroDivisionError"),
        (
            TicTacToe,
            {"play": lambda game, states, moves: TicTacToe.play(game, states, np.repeat(moves[:1], len(moves)))},
            "a game that is transformed by symmetry 1",
        ),
        (TicTacToe, {"outcome": change_argument}, r"Broken.outcome\(\) changes its argument"),
        (
            TicTacToe,
            {"outcome": lambda game, states: np.full(len(states), 0.5, np.float32)},
            r"outcome\(\) returned .*; expected 1, 0, -1 or NaN",
        ),
        (
            TicTacToe,
            {"outcome": lambda game, states: TicTacToe.outcome(game, states[:1]).repeat(len(states)) + 0.0 * states[0]},
            r"outcome\(\)",
        ),
        (
            TicTacToe,
            {"outcome": lambda game, states: np.full(len(states), np.nan if len(states) > 1 else 0, np.float32)},
            r"outcome\(\) returned another result for a state alone than in a batch",
        ),
        (
            TicTacToe,
            {"outcome": lambda game, states: np.where(states[:, 0] > 0, 0, np.nan).astype(np.float32)},
            r"outcome\(\) returned other values in a game that is transformed by symmetry",
        ),
        (TicTacToe, {"max_moves": 4}, "is not over after max_moves = 4 moves"),
        (
            TicTacToe,
            {"planes": lambda game, states: np.full((len(states), 2, 3, 3), np.nan, np.float32)},
            "infinite or NaN",
        ),
        (
            TicTacToe,
            {"planes": lambda game, states: np.ones((len(states), 2, 3, 3), np.float32)},
            r"planes\(\) returned other values; expected 0 and 1 in planes 0 and 1",
        ),
        (
            TicTacToe,
            {"planes": lambda game, states: np.full((len(states), 2, 3, 3), 2, np.float32)},
            r"expected 0 and 1 in planes 0 and 1",
        ),
        (
            TicTacToe,
            {"planes": lambda game, states: TicTacToe.planes(game, states).swapaxes(2, 3) * [[[1, 1, 0]]]},
            r"planes\(\) returned an array of float64",
        ),
        (
            TicTacToe,
            {"planes": lambda game, states: TicTacToe.planes(game, states) * np.array([1, 1, 0], np.float32)},
            r"planes\(\) returned other values in a game that is transformed",
        ),
        (TicTacToe, {"symmetries": lambda game: None}, r"symmetries\(\) returned NoneType None; expected fukami"),
        (TicTacToe, {"symmetries": get_symmetries(cells=NINE.astype(np.int32))}, "cells: an array of int32"),
        (TicTacToe, {"symmetries": get_symmetries(moves=NINE[:, :8])}, r"moves: an array of int64 \(1, 8\)"),
        (TicTacToe, {"symmetries": get_symmetries(moves=NINE[:0])}, r"moves: \[\]; expected .* of permutations"),
        (TicTacToe, {"symmetries": get_symmetries(cells=NINE[:, ::-1])}, "the first one 0, 1"),
        (TicTacToe, {"symmetries": get_symmetries(cells=np.stack([NINE[0], 0 * NINE[0]]))}, "of permutations"),
        (TicTacToe, {"symmetries": get_symmetries(moves=NINE)}, "8 symmetries of the cells and 1 of the moves"),
        (TicTacToe, {"symmetries": disorder_moves}, "other values in a game that is transformed by symmetry 1"),
        (WithPass, {"scores": lambda game, states: np.ones(len(states), np.float32)}, "the sign of the outcome"),
        (WithPass, {"scores": lambda game, states: np.zeros((len(states), 1), np.float32)}, r"float32 \(1, 1\)"),
        (
            WithPass,
            {"owners": lambda game, states: np.full((len(states), 8), 0.5, np.float32)},
            r"owners\(\) returned other values; expected 1, 0 and -1",
        ),
    ],
)  # fmt: skip
def test_broken_game(base, changes, message):
    broken = type("Broken", (base,), changes)
    with pytest.raises(Error, match=message):
        check_game(broken())


def test_class_without_attributes():
    methods = {name: getattr(TicTacToe, name) for name in Game.__abstractmethods__}
    with pytest.raises(Error, match="name is None; expected a non-empty string"):
        check_game(type("Broken", (Game,), methods)())
