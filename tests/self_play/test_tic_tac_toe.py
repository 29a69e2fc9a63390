"""Tests of tic-tac-toe by enumeration of all games."""

import numpy as np

from fukami.self_play.games import check_game
from fukami.self_play.tic_tac_toe import TicTacToe


def test_numbers_of_all_games_and_states():
    """Count all games level by level: 255,168 games, 131,184 won by x and 77,904 by o, and 5,478 states."""
    game = TicTacToe()
    states, counts = game.build_initial_state()[None], np.ones(1, np.int64)  # the number of games that lead to a state
    num_states, finished = 0, {"x": 0, "o": 0, "draw": 0}
    for number in range(game.max_moves + 1):
        num_states += len(states)
        outcomes = game.outcome(states)
        assert set(outcomes[~np.isnan(outcomes)]) <= {0, -1}
        finished["draw"] += counts[outcomes == 0].sum()
        finished["o" if number % 2 == 0 else "x"] += counts[outcomes == -1].sum()
        rows, moves = np.nonzero(game.legal_moves(states) & np.isnan(outcomes)[:, None])
        played = game.play(states[rows], moves)
        states, indices = np.unique(played, axis=0, return_inverse=True)
        counts = np.bincount(indices.ravel(), counts[rows], len(states)).astype(np.int64)
    assert len(states) == 0
    assert num_states == 5478
    assert finished == {"x": 131184, "o": 77904, "draw": 46080}
    assert sum(finished.values()) == 255168


def test_interface():
    check_game(TicTacToe())


def test_planes_are_those_of_the_side_to_move():
    game = TicTacToe()
    states = game.play(game.build_initial_state()[None], np.array([2]))
    planes = game.planes(states)
    assert planes.shape == (1, 2, 3, 3)
    assert planes[0, 0].sum() == 0
    assert np.argwhere(planes[0, 1]).tolist() == [[0, 2]]
