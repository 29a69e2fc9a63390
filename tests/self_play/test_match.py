"""Tests of matches and their results."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from fukami.errors import Error, UsageError
from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.go import Go
from fukami.self_play.match import (
    RESIGN,
    GameRecord,
    choose_opening_length,
    compute_wilson_interval,
    play_match,
    read_stones,
)
from fukami.self_play.players import RandomPlayer
from fukami.self_play.tic_tac_toe import TicTacToe


class LowestMove:
    """Player of the lowest legal move, who records the sizes of the batches."""

    def __init__(self, name="lowest"):
        self.name, self.batch_sizes, self.records = name, [], []

    def choose_moves(self, records):
        self.batch_sizes.append(len(records))
        self.records += [record for record in records if record not in self.records]
        return [int(record.legal_moves[0]) for record in records]

    def close(self):
        pass


def play_moves(game, *moves):
    record = GameRecord(game)
    for move in moves:
        record.play(move)
    return record


def test_record_of_a_game():
    record = play_moves(TicTacToe(), 0, 3, 1)
    assert (record.player, record.is_over, record.outcome) == (1, False, None)
    assert record.legal_moves.tolist() == [2, 4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="illegal move 3"):
        record.play(3)
    record.play(4)
    record.play(2)
    assert record.outcome == 1  # x, the first player, has the first row
    assert record.legal_moves.tolist() == []
    record.undo()
    assert (record.moves, record.is_over, record.player) == ([0, 3, 1, 4], False, 0)
    assert play_moves(TicTacToe(), 8, 0, 7, 1, 5, 2).outcome == -1
    assert play_moves(TicTacToe(), 0, 4, 8, 1, 7, 6, 2, 5, 3).outcome == 0


def test_resignation_loses():
    record = play_moves(TicTacToe(), 0, RESIGN)
    assert (record.outcome, record.moves, record.legal_moves.tolist()) == (1, [0], [])
    assert play_moves(TicTacToe(), RESIGN).outcome == -1


def test_stones_are_those_of_the_players():
    game, record = TicTacToe(), play_moves(TicTacToe(), 0, 3, 8)
    expected = np.array([[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(read_stones(game, record.state, 1), expected)
    np.testing.assert_array_equal(read_stones(game, record.states[2], 0), expected * (np.arange(9) < 8).reshape(3, 3))


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (37, 200), (100, 200), (199, 200)])
def test_wilson_interval_is_that_of_scipy(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert compute_wilson_interval(successes, trials) == pytest.approx(tuple(expected), abs=1e-6)


def test_openings_are_as_short_as_possible():
    assert [choose_opening_length(ConnectFour(), games) for games in (1, 2, 9, 10, 200)] == [0, 0, 3, 3, 4]
    assert [choose_opening_length(Go(9), games) for games in (2, 3, 200)] == [0, 1, 2]


def test_players_swap_colors_after_each_game():
    """With the lowest legal moves, the first player wins at move 7."""
    result = play_match(TicTacToe(), (LowestMove("a"), LowestMove("b")), 6)
    values = json.loads(json.dumps(result.to_dict()))
    assert all(record.moves == [0, 1, 2, 3, 4, 5, 6] for record in result.records)  # x has 2, 4 and 6
    assert values == {
        "players": ["a", "b"],
        "games": 6,
        "wins": 3,
        "draws": 0,
        "losses": 3,
        "score": 0.5,
        "score_interval": [0.1876, 0.8124],
        "as_first": {"wins": 3, "draws": 0, "losses": 0},
        "as_second": {"wins": 0, "draws": 0, "losses": 3},
        "mean_length": 7.0,
    }


def test_draws_count_half():
    class Scripted(LowestMove):
        def choose_moves(self, records):
            return [[0, 4, 8, 1, 7, 6, 2, 5, 3][len(record.moves)] for record in records]

    values = play_match(TicTacToe(), (Scripted(), Scripted()), 4).to_dict()
    assert (values["wins"], values["draws"], values["losses"], values["score"]) == (0, 4, 0, 0.5)


def test_both_games_of_a_pair_have_the_same_opening():
    game, players = ConnectFour(), (LowestMove("a"), LowestMove("b"))
    result = play_match(game, players, 41, opening_moves=3, seed=1)
    openings = [tuple(record.moves[:3]) for record in result.records]
    assert openings[:40:2] == openings[1:40:2]
    assert len(set(openings)) == 21  # all pairs differ, and so does the last game
    assert all(record.is_over for record in result.records)
    again = play_match(game, (LowestMove(), LowestMove()), 41, opening_moves=3, seed=1, num_parallel=5)
    assert [record.moves for record in again.records] == [record.moves for record in result.records]
    other = play_match(game, (LowestMove(), LowestMove()), 41, opening_moves=3, seed=2)
    assert [record.moves for record in other.records] != [record.moves for record in result.records]


def test_openings_repeat_if_there_are_not_enough():
    result = play_match(TicTacToe(), (LowestMove(), LowestMove()), 24, opening_moves=1)
    assert {record.moves[0] for record in result.records} == set(range(9))


def test_games_are_played_in_batches():
    players = (LowestMove(), LowestMove())
    play_match(ConnectFour(), players, 20, opening_moves=2, num_parallel=8)
    assert [max(player.batch_sizes) for player in players] == [8, 8]
    assert sum(size == 8 for size in players[0].batch_sizes) > 5


def test_openings_in_go_do_not_pass():
    result = play_match(Go(5), (RandomPlayer(1), RandomPlayer(2)), 4, opening_moves=6)
    assert all(25 not in record.moves[:6] for record in result.records)


def test_resigning_players_lose_the_match():
    class Resigning(LowestMove):
        def choose_moves(self, records):
            return [RESIGN] * len(records)

    values = play_match(TicTacToe(), (Resigning(), LowestMove()), 4).to_dict()
    assert (values["losses"], values["mean_length"]) == (4, 0.5)


def test_errors():
    class Cheating(LowestMove):
        def choose_moves(self, records):
            return [4] * len(records)

    with pytest.raises(Error, match=r"cheat chose an illegal move 4 after the moves \[4\]"):
        play_match(TicTacToe(), (Cheating("cheat"), Cheating("cheat")), 2)
    with pytest.raises(UsageError, match="9 random moves usually end a game of tic-tac-toe"):
        play_match(TicTacToe(), (LowestMove(), LowestMove()), 2, opening_moves=9)
