"""Tests of the client of GNU Go, and of Go against GNU Go."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from fukami.errors import Error, UsageError
from fukami.self_play import gnugo
from fukami.self_play.alphago_zero import AlphaGoZero
from fukami.self_play.gnugo import GnuGo
from fukami.self_play.go import Go
from go_reference import choose_random_move

needs_gnugo = pytest.mark.skipif(shutil.which("gnugo") is None, reason="needs the program gnugo (apt install gnugo)")


def compare_random_game(size, seed, interval):
    """Play a random game to its end on both boards, and compare legal moves and stones, and the score at the end.

    The end is reached when both sides can only fill their own eyes, so that GNU Go considers no stone dead. Returns
    the number of compared superko points, and whether the score was compared.
    """
    go, rng = Go(size), np.random.default_rng(seed)
    states, num_moves, num_repeating = go.build_initial_state()[None], 0, 0
    with GnuGo(size, go.komi) as engine:
        while np.isnan(go.outcome(states)[0]):
            color = go.player_names[states[0, 0] - 1]
            if num_moves % interval == 0:
                legal = np.flatnonzero(go.legal_moves(states)[0, :-1])
                assert {go.format_move(int(move)) for move in legal} == engine.list_legal_moves(color)
                own = np.flatnonzero(go.planes(states)[0, 0])
                assert {go.format_move(int(point)) for point in own} == engine.list_stones(color)
                num_repeating += int(go.planes(states)[0, 14].sum())
            move = choose_random_move(go, states, rng)
            engine.play(color, go.format_move(move))
            states = go.play(states, np.array([move]))
            num_moves += 1
        is_played_out = states[0, 1] == 2 and go.owners(states).all()
        if is_played_out:
            sign = 1 if states[0, 0] == 1 else -1
            assert sign * go.scores(states)[0] == engine.compute_score(), f"game {seed}"
    return num_repeating, is_played_out


@needs_gnugo
def test_random_games_agree_with_gnugo():
    results = [compare_random_game(5 + seed % 5, seed, interval=3) for seed in range(24)]
    num_repeating, num_played_out = np.sum(results, axis=0)
    assert num_repeating > 0
    assert num_played_out > 20


@needs_gnugo
@pytest.mark.slow
def test_many_random_games_agree_with_gnugo():
    results = [compare_random_game(5 + seed % 5, seed, interval=3) for seed in range(1000, 2000)]
    num_repeating, num_played_out = np.sum(results, axis=0)
    assert num_repeating > 150
    assert num_played_out > 950


@needs_gnugo
def test_superko_agrees_with_gnugo():
    """A cycle of three moves after a pass, which the rule of simple ko allows."""
    go = Go(5)
    states = go.build_initial_state()[None]
    with GnuGo(5, go.komi) as engine:
        for vertex in ["B1", "A2", "C2", "B2", "D1", "pass", "A1", "C1"]:
            engine.play(go.player_names[states[0, 0] - 1], vertex)
            states = go.play(states, np.array([go.parse_move(vertex)]))
        legal = {go.format_move(int(move)) for move in np.flatnonzero(go.legal_moves(states)[0, :-1])}
        assert "B1" not in legal
        assert legal == engine.list_legal_moves("black")


@needs_gnugo
def test_generated_game_is_legal():
    go = Go(5)
    states = go.build_initial_state()[None]
    with GnuGo(5, go.komi) as engine:
        while np.isnan(go.outcome(states)[0]):
            vertex = engine.generate_move(go.player_names[states[0, 0] - 1])
            if vertex == "resign":
                break
            states = go.play(states, np.array([go.parse_move(vertex)]))


@needs_gnugo
def test_same_seed_generates_the_same_game():
    games = []
    for seed in (0, 0, 1, 2, 3):
        with GnuGo(7, 8.5, seed=seed) as engine:
            games.append([engine.generate_move(color) for color in ("black", "white") * 4])
    assert games[0] == games[1]
    assert len(set(map(tuple, games))) > 1


@needs_gnugo
def test_undo_and_clear_board():
    with GnuGo(9, 7.5) as engine:
        engine.play("black", "D4")
        engine.play("white", "pass")
        engine.play("black", "E5")
        engine.undo()
        assert engine.list_stones("black") == {"D4"}
        assert "D4" not in engine.list_legal_moves("black")
        engine.clear_board()
        assert engine.list_stones("black") == set()


@needs_gnugo
def test_illegal_move_is_rejected():
    with GnuGo(5, 24.5) as engine:
        engine.play("black", "C3")
        with pytest.raises(Error, match="GNU Go rejects the command 'play white C3': illegal move"):
            engine.play("white", "C3")
        engine.play("white", "C4")  # the process goes on


@needs_gnugo
def test_size_that_gnugo_does_not_support():
    with pytest.raises(Error, match="GNU Go rejects the command 'boardsize 20': unacceptable size"):
        GnuGo(20, 7.5)


@needs_gnugo
def test_process_ends():
    with GnuGo(5, 24.5) as engine:
        process = engine._process
        assert process.poll() is None
    assert process.returncode == 0
    assert process.stdin.closed
    assert process.stdout.closed
    engine.close()  # a second time


@needs_gnugo
def test_process_ends_after_an_error():
    with pytest.raises(RuntimeError), GnuGo(5, 24.5) as engine:
        raise RuntimeError
    assert engine._process.returncode == 0


@needs_gnugo
def test_command_after_the_end():
    with GnuGo(5, 24.5) as engine:
        engine._process.kill()
        engine._process.wait()
        with pytest.raises(Error, match=r"GNU Go ended \(exit status -9\) during the command 'undo'"):
            engine.undo()
    with pytest.raises(Error, match="GNU Go ended"):
        engine.undo()


def test_program_is_not_installed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="install Debian's package gnugo"):
        GnuGo(5, 24.5)


def test_negative_level():
    with pytest.raises(UsageError, match="level of GNU Go should be at least 0, not -1"):
        GnuGo(5, 24.5, level=-1)


@needs_gnugo
@pytest.mark.parametrize("level", [0, 12])  # its default, 10, is not the maximum
def test_levels_of_gnugo_and_of_the_recipe(level):
    recipe = AlphaGoZero(game=("go5",), gnugo_level=level)
    with GnuGo(5, 24.5, level=recipe.gnugo_level) as engine:
        moves = engine.list_legal_moves("black")
        assert engine.generate_move("black") in moves


@pytest.fixture
def fake_program(tmp_path, monkeypatch):
    """Function that installs a program in place of GNU Go."""

    def install(code):
        path = tmp_path / "gnugo"
        path.write_text(f"#!{sys.executable} -S\n{code}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('= ')\nsys.stdout.flush()\n"
        "time.sleep(60)",
    ],
    ids=["silent", "incomplete response"],
)
def test_program_that_does_not_respond(fake_program, monkeypatch, code):
    fake_program(code)
    monkeypatch.setattr(gnugo, "TIMEOUT_SECONDS", 0.5)
    started, start = [], subprocess.Popen

    def record(*words, **options):
        started.append(start(*words, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    with pytest.raises(Error, match=r"GNU Go did not respond in 0.5 s during the command 'boardsize 5'"):
        GnuGo(5, 24.5)
    assert started[0].poll() is not None  # it was killed


def test_program_that_does_not_end(fake_program, monkeypatch):
    fake_program("import sys, time\nfor line in sys.stdin:\n    print('= \\n', flush=True)\ntime.sleep(60)")
    monkeypatch.setattr(gnugo, "CLOSE_SECONDS", 0.2)
    with GnuGo(5, 24.5) as engine:
        pass
    assert engine._process.returncode == -9


def test_program_that_fails(fake_program):
    fake_program("raise SystemExit(3)")
    with pytest.raises(Error, match=r"GNU Go ended \(exit status 3\) during the command 'boardsize 5'"):
        GnuGo(5, 24.5)


def test_program_with_garbage(fake_program):
    fake_program("import sys\nsys.stdout.buffer.write(bytes(range(128, 256)) + b'\\n\\n')")
    with pytest.raises(Error, match="GNU Go rejects the command 'boardsize 5'"):
        GnuGo(5, 24.5)


@pytest.mark.parametrize(("text", "score"), [("B+0.5", 0.5), ("W+12.0", -12.0), ("0", 0.0)])
def test_score(fake_program, text, score):
    fake_program(
        "import sys\nfor line in sys.stdin:\n"
        f"    print('= {text}\\n' if line == 'final_score\\n' else '= \\n', flush=True)"
    )
    with GnuGo(5, 24.5) as engine:
        assert engine.compute_score() == score


@pytest.mark.parametrize("text", ["", "B+", "B", "X+3", "B+nan", "B+1e9"])
def test_invalid_score(fake_program, text):
    fake_program(
        "import sys\nfor line in sys.stdin:\n"
        f"    print('= {text}\\n' if line == 'final_score\\n' else '= \\n', flush=True)"
    )
    with GnuGo(5, 24.5) as engine, pytest.raises(Error, match=r"GNU Go's final score is '.*'; expected one such as"):
        engine.compute_score()
