"""Tests of docs/examples/my_game.py, the example of a user's own game: its interface, training and prediction."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fukami.self_play.games import check_game, make_game

FILE = Path(__file__).parents[2] / "docs" / "examples" / "my_game.py"
SMALL = (
    *("--positions", "500", "--learning-starts", "100", "--batch-size", "32", "--num-games", "16", "--num-blocks", "1"),
    *("--num-channels", "8", "--self-play-simulations", "2", "--simulations", "4", "--eval-games", "2"),
)


@pytest.fixture
def game():
    return make_game(str(FILE))


def test_interface(game):
    check_game(game)


@pytest.mark.parametrize("name", ["a1 b1 c1 d1 e1", "c3 c4 c5 c6 c7", "a1 b2 c3 d4 e5", "g3 f4 e5 d6 c7"])
def test_five_in_a_row_win(game, name):
    line = [game.parse_move(move) for move in name.split()]
    others = [move for move in range(0, game.num_moves, 2) if move not in line]
    state = game.build_initial_state()[None]
    for own, other in zip(line, others[:5], strict=True):
        assert np.isnan(game.outcome(state)[0])
        state = game.play(state, np.array([own]))
        if own != line[-1]:
            state = game.play(state, np.array([other]))
    assert game.outcome(state)[0] == -1  # for the side to move, which has lost
    assert not game.legal_moves(state).any()


def test_training_and_prediction(fukami, tmp_path):
    """The commands of docs/landmarks/alphago.md, section "Add a game"."""
    shutil.copy(FILE, tmp_path)
    result = fukami("train", "alphago-zero", "--game", "./my_game.py", *SMALL, "--out", "five")
    assert result.status == 0, result.err
    assert "FiveInARow" not in (tmp_path / "five" / "recipe.json").read_text()
    (tmp_path / "positions.txt").write_text(
        "xxxx" + "." * 38 + "oooo" + "." * 3 + "\n" + "x" * 50 + "\n" + "o" * 5 + "." * 44 + "\n"
    )
    result = fukami(
        "predict", "five", "positions.txt", "--set", "game=./my_game.py", "simulations=99", "max_considered_moves=49"
    )
    assert result.status == 1  # the second and the third line
    assert "line 2: a position has 49 cells" in result.err
    assert "line 3: the game is over" in result.err
    (prediction,) = map(json.loads, result.out.splitlines())
    assert (prediction["move"], prediction["value"]) == ("e1", 1)
    assert "--set game=./my_game.py" in fukami("eval", "five").err
