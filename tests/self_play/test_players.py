"""Tests of the players of matches."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fukami.engine.runtime import Runtime
from fukami.errors import Error
from fukami.self_play import players
from fukami.self_play.alphago_zero import AlphaGoZero
from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.connect_four_solver import solve
from fukami.self_play.go import Go
from fukami.self_play.match import RESIGN, GameRecord, play_match
from fukami.self_play.players import (
    GameSearch,
    GnuGoPlayer,
    PlainSearchPlayer,
    RandomPlayer,
    SearchPlayer,
    SolverPlayer,
)
from fukami.self_play.search import SearchOptions
from fukami.self_play.tic_tac_toe import TicTacToe

needs_gnugo = pytest.mark.skipif(shutil.which("gnugo") is None, reason="needs the program gnugo (apt install gnugo)")


def play_moves(game, *moves):
    record = GameRecord(game)
    for move in moves:
        record.play(move)
    return record


def test_random_player_plays_every_legal_move():
    player, record = RandomPlayer(0), play_moves(TicTacToe(), 4)
    counts = np.bincount(player.choose_moves([record] * 800), minlength=9)
    assert counts[4] == 0
    assert (np.delete(counts, 4) > 60).all()
    again = RandomPlayer(0).choose_moves([record] * 800)
    assert np.bincount(again, minlength=9).tolist() == counts.tolist()


def test_random_player_passes_only_if_it_has_to():
    go = Go(2)
    record = play_moves(go, 0, 3)
    assert set(RandomPlayer().choose_moves([record] * 50)) <= set(record.legal_moves[:-1].tolist())
    while len(record.legal_moves) > 1:
        record.play(int(record.legal_moves[0]))
    assert RandomPlayer().choose_moves([record]) == [4]


def test_solver_player_plays_all_optimal_moves(monkeypatch):
    """The moves of a fake solver."""
    optimal = np.array([[0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0]], bool)
    module = SimpleNamespace(find_optimal_moves=lambda states: np.repeat(optimal, len(states) // 2, 0))
    monkeypatch.setitem(sys.modules, "fukami.self_play.connect_four_solver", module)
    moves = SolverPlayer(0).choose_moves([GameRecord(ConnectFour())] * 40)
    assert (set(moves[:20]), set(moves[20:])) == ({2, 4}, {0})


@pytest.mark.slow
def test_solver_reaches_the_outcome_of_perfect_play():
    """Against random moves, at least the outcome of the position after the opening."""
    result = play_match(ConnectFour(), (SolverPlayer(), RandomPlayer()), 12, opening_moves=12)
    outcomes = solve(np.stack([record.states[12] for record in result.records])).tolist()  # of the first player
    expected = [-outcome if index % 2 else outcome for index, outcome in enumerate(outcomes)]
    assert {-1, 1} <= set(expected)
    assert all(outcome >= perfect for outcome, perfect in zip(result.outcomes, expected, strict=True))
    assert result.outcomes != expected


def test_search_player_searches_all_games_at_once():
    calls = []

    class Task:
        game = TicTacToe()

        def select_game(self, name):
            self.game = {"go5": Go(5)}[name]

        def search(self, states, simulations=None, *, model=None):
            calls.append((states.shape, simulations, model))
            return SimpleNamespace(moves=np.arange(len(states)))

    player = SearchPlayer(Task(), 7, "run")
    records = [play_moves(TicTacToe(), 8), GameRecord(TicTacToe())]
    assert (player.name, player.choose_moves(records)) == ("run", [0, 1])
    assert player.choose_moves([GameRecord(Go(5)), GameRecord(Go(5))]) == [0, 1]
    assert player.task.game.name == "go5"
    assert calls == [((2, 9), 7, None), ((2, len(Go(5).build_initial_state())), 7, None)]


def test_search_without_a_network_wins_and_blocks():
    player = PlainSearchPlayer(TicTacToe(), SearchOptions(simulations=60))
    wins, blocks = play_moves(TicTacToe(), 0, 3, 1, 4), play_moves(TicTacToe(), 0, 3, 8, 4)
    assert player.choose_moves([wins, blocks]) == [2, 5]
    values = play_match(TicTacToe(), (player, RandomPlayer()), 10, opening_moves=1).to_dict()
    assert values["score"] > 0.8


@needs_gnugo
def test_gnugo_captures_dead_stones():
    """GNU Go wins by the rules, which count all stones on the board, and its processes end."""
    player = GnuGoPlayer(Go(5, 0.5), level=1)
    result = play_match(Go(5, 0.5), (player, RandomPlayer(1)), 4, opening_moves=1)
    assert result.to_dict()["wins"] == 4
    for record in result.records:
        owners = record.game.owners(record.state[None])[0]
        assert len(set(owners[owners != 0])) == 1  # the whole board is GNU Go's
    processes = [engine._process for engine, _ in player.engines.values()]
    player.close()
    assert all(process.poll() is not None for process in processes)


@needs_gnugo
def test_gnugo_plays_against_itself():
    go = Go(5)
    weak, strong = GnuGoPlayer(go, level=1, seed=1), GnuGoPlayer(go, level=5, seed=2)
    result = play_match(go, (weak, strong), 3, opening_moves=2, num_parallel=2)
    weak.close()
    strong.close()
    assert all(record.is_over for record in result.records)
    assert result.names == ("gnugo level 1", "gnugo level 5")


@needs_gnugo
def test_gnugo_loses_a_game_in_which_it_crashes(caplog):
    player, record = GnuGoPlayer(Go(5), level=1), play_moves(Go(5))
    record.play(*player.choose_moves([record]))
    for engine, _ in player.engines.values():
        engine._process.kill()
        engine._process.wait()
    assert player.choose_moves([record]) == [RESIGN]
    assert "GNU Go ended (exit status -9)" in caplog.text
    assert "at move 2; it loses this game" in caplog.text
    record.play(RESIGN)
    assert record.outcome == 1
    player.close()


def test_gnugo_resigns_and_receives_all_moves(monkeypatch):
    created = []

    class FakeGnuGo:
        def __init__(self, size, komi, *, level, seed):
            self.log, self.is_closed, self.replies = [(size, komi, level, seed)], False, ["C3", "pass", "resign"]
            created.append(self)

        def play(self, color, vertex):
            self.log.append((color, vertex))

        def generate_move(self, color):
            return self.replies.pop(0)

        def undo(self):
            self.log.append("undo")

        def send(self, command):
            self.log.append(command)
            return "B2"

        def close(self):
            self.is_closed = True

    monkeypatch.setattr(players, "GnuGo", FakeGnuGo)
    player, record = GnuGoPlayer(Go(5, 3.5), level=4, seed=9), play_moves(Go(5), 0, 1)
    for move in (12, 6, RESIGN):
        assert player.choose_moves([record]) == [move]
        record.play(move)
        if move != RESIGN:
            record.play(int(record.legal_moves[0]))
    (engine,) = created
    assert engine.log == [
        (5, 3.5, 4, 9),
        ("black", "A1"),
        ("white", "B1"),
        ("white", "C1"),
        "undo",
        "kgs-genmove_cleanup black",
        ("white", "D1"),
    ]
    assert record.outcome == -1
    player.choose_moves([GameRecord(Go(5))])
    assert (engine.is_closed, created[1].is_closed, created[1].log[0][3]) == (True, False, 10)
    player.close()
    assert created[1].is_closed


def test_gnugo_with_an_unknown_move(monkeypatch):
    replies = {"play": lambda *_: None, "generate_move": lambda *_: "Z99", "close": lambda *_: None}
    monkeypatch.setattr(players, "GnuGo", lambda *_, **__: SimpleNamespace(**replies))
    with pytest.raises(Error, match="GNU Go's move is 'Z99'; expected a point such as C3, pass or resign"):
        GnuGoPlayer(Go(5)).choose_moves([GameRecord(Go(5))])


def test_the_search_of_a_game_reuses_the_subtree_and_starts_anew_after_undo():
    """The visits of the position after two moves are kept; the first search of a position has none."""
    recipe = AlphaGoZero(game=("tic-tac-toe",), num_blocks=1, num_channels=8)
    torch.manual_seed(0)
    task = recipe.build_task(())
    torch.nn.init.normal_(task.ema_model.heads.policy.weight)
    task.setup(Runtime.start("cpu", "float32"))
    search, record = GameSearch(task, 30), GameRecord(task.game)
    first = search.search(record)
    assert first.visits.sum() == 30
    moves = [int(first.moves[0])]
    tree = search.tree_search.tree
    node = tree.children[0, 0, moves[0]]
    moves.append(int(tree.visits[0, node].argmax()))
    kept = tree.visits[0, tree.children[0, node, moves[1]]].sum()
    for move in moves:
        record.play(move)
    second = search.search(record)
    assert kept > 0
    assert second.visits.sum() == kept + 30
    record.undo()
    assert search.search(record).visits.sum() == 30
    expected = task.search(record.state[None], 30)
    assert (search.search(record).visits >= expected.visits).all()
