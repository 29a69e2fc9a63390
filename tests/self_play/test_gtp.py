"""Tests of the Go engine against the specification of GTP, version 2, and against GNU Go as the referee."""

import io
import shutil

import numpy as np
import pytest

from fukami.engine.runtime import Runtime
from fukami.self_play.alphago_policy import AlphaGoPolicy
from fukami.self_play.alphago_zero import AlphaGoZero
from fukami.self_play.gnugo import GnuGo
from fukami.self_play.go import Go
from fukami.self_play.gtp import GtpEngine
from fukami.self_play.match import RESIGN, read_stones
from fukami.self_play.players import SearchPlayer
from go_reference import choose_random_move

needs_gnugo = pytest.mark.skipif(shutil.which("gnugo") is None, reason="needs the program gnugo (apt install gnugo)")


class FakePlayer:
    """Player of random moves that fill no own eye, or of given vertices."""

    name = "fake"

    def __init__(self, *vertices, seed=0):
        self.vertices, self.rng = list(vertices), np.random.default_rng(seed)

    def choose_moves(self, records):
        (record,) = records
        if self.vertices:
            vertex = self.vertices.pop(0)
            return [RESIGN if vertex == "resign" else record.game.parse_move(vertex)]
        return [choose_random_move(record.game, record.state[None], self.rng)]

    def close(self):
        pass


@pytest.fixture
def engine():
    return GtpEngine([Go(9), Go(5)], FakePlayer("C3", "D4", "C4", "E5"), "fukami go9", "0.2.0")


def send(engine, *commands):
    """Send commands and return the responses without their empty lines."""
    responses = [engine.respond(command + "\n") for command in commands]
    assert all(response.endswith("\n\n") and "\n\n" not in response[:-2] for response in responses)
    return [response[:-2] for response in responses]


def test_administrative_commands(engine):
    assert send(engine, "protocol_version", "name", "version", "known_command play", "known_command loadsgf") == [
        "= 2",
        "= fukami go9",
        "= 0.2.0",
        "= true",
        "= false",
    ]
    required = "protocol_version name version known_command list_commands quit boardsize clear_board komi play genmove"
    listed = send(engine, "list_commands")[0].removeprefix("= ").split("\n")
    assert set(required.split()) <= set(listed)
    assert all(send(engine, f"known_command {name}") == ["= true"] for name in listed)


@pytest.mark.parametrize(
    ("line", "response"),
    [
        ("17 name", "=17 fukami go9\n\n"),
        ("17 play B", "?17 syntax error\n\n"),
        ("  4\tname\t# a comment", "=4 fukami go9\n\n"),
        ("name\r\n", "= fukami go9\n\n"),
        ("na\x00\x07me\x7f", "= fukami go9\n\n"),
        ("NAME", "? unknown command\n\n"),
        ("foo bar", "? unknown command\n\n"),
        ("12", "?12 unknown command\n\n"),
        ("\n", ""),
        (" \t # only a comment \xe9\n", ""),
        ("clear_board", "=\n\n"),
        ("3 clear_board", "=3\n\n"),
    ],
)
def test_lines_are_parsed_as_the_specification_defines(engine, line, response):
    assert engine.respond(line) == response


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("boardsize", "syntax error"),
        ("boardsize nine", "syntax error"),
        ("boardsize 9.5", "syntax error"),
        ("boardsize 19", "unacceptable size"),
        ("boardsize -9", "unacceptable size"),
        ("komi", "syntax error"),
        ("komi six", "syntax error"),
        ("komi nan", "syntax error"),
        ("komi 1e9", "syntax error"),
        ("play", "syntax error"),
        ("play B", "syntax error"),
        ("play green C3", "syntax error"),
        ("play B I5", "syntax error"),
        ("play B C", "syntax error"),
        ("play B C0", "syntax error"),
        ("play B 3C", "syntax error"),
        ("play B resign", "syntax error"),
        ("play B K10", "illegal move"),
        ("play B A10", "illegal move"),
        ("genmove", "syntax error"),
        ("genmove red", "syntax error"),
        ("undo", "cannot undo"),
        ("known_command", "syntax error"),
        ("time_settings 300 30", "syntax error"),
        ("time_left B soon 0", "syntax error"),
    ],
)
def test_errors_are_those_of_the_specification(engine, command, message):
    assert send(engine, command) == [f"? {message}"]
    assert engine.record.moves == []


def test_play_and_generate_moves(engine):
    assert send(engine, "play b e5", "genmove WHITE", "play Black c4", "play w pass") == ["=", "= C3", "=", "="]
    assert engine.record.moves == [4 * 9 + 4, 2 * 9 + 2, 3 * 9 + 2, 81]
    assert send(engine, "play B E5", "play B C3") == ["? illegal move"] * 2


def test_suicide_and_ko_are_illegal(engine):
    send(engine, "boardsize 5")
    assert send(engine, "play B A2", "play W E5", "play B B1", "play W A1") == ["=", "=", "=", "? illegal move"]
    send(engine, "clear_board")
    for index, vertex in enumerate(["B3", "D4", "C4", "E3", "C2", "D2", "A1", "C3", "D3"]):
        assert send(engine, f"play {'BW'[index % 2]} {vertex}") == ["="]
    assert read_stones(engine.game, engine.record.state, 1)[2].tolist() == [0, 1, 0, 1, 2]  # C3 is captured
    assert send(engine, "play W C3", "play W E1", "play B A5", "play W C3") == ["? illegal move", "=", "=", "="]


def test_a_color_may_move_twice(engine):
    """The engine inserts a pass, and takes it back if the move is illegal."""
    assert send(engine, "play B D5", "play B F6", "play B D5", "genmove b") == ["=", "=", "? illegal move", "= C3"]
    stones = read_stones(engine.game, engine.record.state, engine.record.player)
    assert sorted(map(tuple, np.argwhere(stones == 1).tolist())) == [(2, 2), (4, 3), (5, 5)]
    assert not (stones == 2).any()
    assert len(engine.record.moves) == 5
    assert send(engine, "genmove w", "undo", "undo", "undo") == ["= D4", "=", "=", "="]
    assert engine.record.moves == [4 * 9 + 3]
    assert send(engine, "undo", "undo") == ["=", "? cannot undo"]


def test_moves_after_the_end_of_the_game(engine):
    send(engine, "boardsize 5")
    assert send(engine, "play B C3", "play W pass", "play B pass") == ["="] * 3
    assert engine.record.is_over
    assert send(engine, "genmove w", "play W pass", "play W A1") == ["= pass", "=", "? illegal move"]
    assert engine.player.vertices == ["C3", "D4", "C4", "E5"]  # no move is generated
    assert send(engine, "undo", "undo", "undo", "undo", "play W A1") == ["="] * 5
    assert engine.record.moves == [12, 0]
    assert send(engine, "play B pass", "play B C1") == ["=", "="]  # the inserted pass does not end the game


def test_an_inserted_pass_does_not_count_toward_the_end(engine):
    assert send(engine, "play W pass", "play B D4", "play B E5", "genmove B") == ["=", "=", "=", "= C3"]
    assert not engine.record.is_over
    assert engine.record.state[1] == 0


def test_a_pass_does_not_win_after_an_inserted_pass():
    """Otherwise it would end the game, in which Black owns the whole board."""
    task = AlphaGoPolicy(size=5, num_channels=8, num_blocks=1).build_task(())
    task.setup(Runtime.start("cpu", "float32"))
    engine = GtpEngine([task.game], SearchPlayer(task, 0), "fukami", "0.2.0")
    send(engine, "play B D4", "genmove B")
    assert not task.search(engine.record.states[2][None], 0).is_proven.any()


def test_resignation_leaves_the_board(engine):
    engine.player.vertices = ["resign", "resign", "E1"]
    assert send(engine, "genmove w", "genmove b", "genmove b", "undo") == ["= resign", "= resign", "= E1", "="]
    assert engine.record.moves == []


def test_board_size_and_komi(engine):
    assert send(engine, "komi 6.5", "final_score", "play B C3", "final_score") == ["=", "= W+6.5", "=", "= B+74.5"]
    assert send(engine, "boardsize 5", "final_score", "komi 0", "final_score") == ["=", "= W+6.5", "=", "= 0"]
    assert engine.game.shape == (5, 5)
    assert send(engine, "play W A1", "komi -2", "final_score") == ["=", "=", "= W+23.0"]


def test_a_new_komi_starts_a_new_search():
    """The values of the old komi would be wrong: with 100 points for White, Black loses every position."""
    recipe = AlphaGoZero(game=("go5",), num_blocks=1, num_channels=4)
    task = recipe.build_task(())
    task.setup(Runtime.start("cpu", "float32"))
    player = SearchPlayer(task, 20)
    engine = GtpEngine(task.games, player, "fukami go5", "0.2.0")
    send(engine, "genmove b")
    tree_search = player.game_search.tree_search
    send(engine, "genmove w")
    assert player.game_search.tree_search is tree_search
    send(engine, "komi 100", "genmove b")
    assert player.game_search.tree_search is not tree_search
    assert send(engine, "undo", "undo", "undo", "undo") == ["=", "=", "=", "? cannot undo"]


def test_board_as_text(engine):
    send(engine, "boardsize 5", "play B A1", "play W E4")
    assert send(engine, "showboard") == [
        "= \n   A B C D E\n 5 . . . . . 5\n 4 . . . . O 4\n 3 . . . . . 3\n 2 . . . . . 2\n 1 X . . . . 1\n"
        "   A B C D E\nblack to move"
    ]


def test_time_is_accepted(engine):
    assert send(engine, "time_settings 0 30 1", "time_left W 29 1") == ["=", "="]


def test_run_ends_with_quit_or_the_input(engine):
    out = io.StringIO()
    engine.run(["1 name\n", "\n", "quit\n", "2 name\n"], out)
    assert out.getvalue() == "=1 fukami go9\n\n=\n\n"
    out = io.StringIO()
    GtpEngine([Go(5)], FakePlayer(), "a", "b").run(["name", "version"], out)
    assert out.getvalue() == "= a\n\n= b\n\n"


@needs_gnugo
@pytest.mark.parametrize("seed", [0, 1])
def test_full_game_with_gnugo_as_the_referee(seed):
    """GNU Go, which also plays White, accepts all moves, has the same board, and agrees with the score."""
    engine = GtpEngine([Go(7, 8.5)], FakePlayer(seed=seed), "fukami", "0")
    with GnuGo(7, 8.5, level=1, seed=seed) as referee:
        while not engine.record.is_over:
            (response,) = send(engine, "genmove black")
            referee.play("black", response.removeprefix("= "))
            if not engine.record.is_over:
                vertex = referee.generate_move("white")
                if vertex == "pass":
                    referee.undo()
                    vertex = referee.send("kgs-genmove_cleanup white")  # no dead stones are left
                assert send(engine, f"play white {vertex}") == ["="]
        stones = read_stones(engine.game, engine.record.state, engine.record.player)
        for stone, color in ((1, "black"), (2, "white")):
            points = {engine.game.format_move(int(point)) for point in np.flatnonzero(stones == stone)}
            assert referee.list_stones(color) == points
        score = referee.compute_score()
    assert len(engine.record.moves) > 20
    assert send(engine, "final_score") == [f"= {'B' if score > 0 else 'W'}+{abs(score):.1f}"]
