"""Tests of board games on the command line: in the terminal, matches, videos, and the Go Text Protocol."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fukami import get_recipe
from fukami.cli.play_terminal import TerminalGame, render_board
from fukami.engine import run_record, run_weights
from fukami.engine.load_run import load_task
from fukami.self_play import evaluation, match
from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.gnugo import GnuGo
from fukami.self_play.go import Go
from fukami.self_play.match import GameRecord
from fukami.self_play.tic_tac_toe import TicTacToe

needs_gnugo = pytest.mark.skipif(shutil.which("gnugo") is None, reason="needs the program gnugo (apt install gnugo)")


@pytest.fixture(scope="session")
def untrained_runs(tmp_path_factory):
    """Folder of runs of untrained networks: connect4, go (5×5 and 7×7) and tic-tac-toe."""
    root = tmp_path_factory.mktemp("untrained")
    for name, games in (("connect4", ("connect4",)), ("go", ("go5", "go7")), ("tic-tac-toe", ("tic-tac-toe",))):
        recipe = get_recipe("alphago-zero")(game=games, num_blocks=1, num_channels=4, simulations=4)
        folder = root / name
        folder.mkdir()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            task = recipe.build_task(())
        run_weights.write_weights(folder, run_weights.copy_tensors_to_cpu(task.get_modules()))
        run_record.write_recipe(folder, recipe, (), {})
    return root


@pytest.fixture
def type_lines(monkeypatch):
    """Function that sets the lines of stdin."""

    def set_lines(*lines):
        data = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return set_lines


def play_moves(game, *moves):
    record = GameRecord(game)
    for move in moves:
        record.play(move)
    return record


def test_game_in_the_terminal(fukami, untrained_runs, type_lines, tmp_path):
    type_lines("undo", "4", "hint", "99", "4", "undo", "", "4", "QUIT", "1")
    result = fukami("play", untrained_runs / "connect4", "--device", "cpu", "--out", "game.gif")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "You are yellow. Enter a move, undo, hint or quit."
    assert lines[1:9] == ["", *[" .  .  .  .  .  .  . "] * 6, " 1  2  3  4  5  6  7"]
    for text in (
        "You have not played yet: there is no move to undo.",
        "'99' is not a move of connect4; enter a move such as 1, or undo, hint or quit.",
        "win probability of yellow: ",
        "win probability of red: ",
        "best moves (policy, visits): ",
        "The game is not finished: 4 moves.",
        "video: game.gif",
    ):
        assert text in result.out
    with Image.open(tmp_path / "game.gif") as video:
        assert video.n_frames == 5  # the four moves and the end
        video.seek(4)
        assert video.info["duration"] == 3000


def test_game_in_the_terminal_to_its_end(fukami, untrained_runs, type_lines):
    """The person plays second, and tries every cell until the game is over."""
    type_lines(*[cell for _ in range(9) for cell in range(1, 10)])
    result = fukami(
        "play", untrained_runs / "tic-tac-toe", "--device", "cpu", "--color", "second", "--simulations", "50"
    )
    assert result.status == 0
    assert "You are o." in result.out
    assert "is illegal; the legal moves are " in result.out
    outcome = result.out.splitlines()[-1]
    assert outcome.endswith(("moves: x wins", "moves: draw"))
    moves = int(outcome.partition(" ")[0])
    assert 5 <= moves <= 9


def test_end_of_the_input_ends_the_game(fukami, untrained_runs, type_lines):
    type_lines("C3")
    result = fukami("play", untrained_runs / "go", "--device", "cpu", "--game", "go5", "--simulations", "0")
    assert result.status == 0
    assert result.out.endswith("The input has ended.\nThe game is not finished: 2 moves.\n")
    assert " 3  .  .  B  .  . " in result.out
    assert "\nwhite: " in result.out


def test_a_line_that_is_no_text(fukami, untrained_runs, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"))
    result = fukami("play", untrained_runs / "connect4", "--device", "cpu")
    assert (result.status, result.err) == (0, "")
    assert "The line is no text." in result.out
    assert result.out.endswith("The game is not finished: 0 moves.\n")


def test_unfinished_game_without_moves_writes_no_video(fukami, untrained_runs, type_lines, tmp_path):
    type_lines("quit")
    result = fukami("play", untrained_runs / "connect4", "--device", "cpu", "--out", "game.gif")
    assert result.out.endswith("The game is not finished: 0 moves.\n")
    assert not (tmp_path / "game.gif").exists()


def test_boards_in_the_terminal():
    text = render_board(play_moves(ConnectFour(), 3, 3), is_plain=True).plain.split("\n")
    assert text[5:8] == [" .  .  . [R] .  .  . ", " .  .  .  Y  .  .  . ", " 1  2  3  4  5  6  7"]
    go = Go(5)
    text = render_board(play_moves(go, 0, go.parse_move("E4"), 25), is_plain=True).plain.split("\n")
    assert text[2:] == [
        " 4  .  .  .  .  W ",
        " 3  .  .  +  .  . ",
        " 2  .  .  .  .  . ",
        " 1  B  .  .  .  . ",
        "    A  B  C  D  E",
        "",
    ]
    text = render_board(play_moves(TicTacToe(), 0, 8), is_plain=True).plain.split("\n")
    assert text[1:4] == [" x  2  3 ", " 4  5  6 ", " 7  8 [o]"]


@pytest.mark.parametrize("game", [ConnectFour(), Go(9), TicTacToe()])
def test_boards_have_colors(game):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", highlight=False, markup=False)
    console.print(render_board(play_moves(game, 0, 1), is_plain=False))
    assert "\x1b[" in out.getvalue()


def test_terminal_without_unicode_has_letters(untrained_runs):
    task = load_task(untrained_runs / "connect4", device="cpu")
    for encoding, symbol in (("ascii", "Y"), ("utf-8", "●")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        console = Console(file=stream, force_terminal=True, color_system="truecolor", highlight=False, markup=False)
        game = TerminalGame(task, 1, console)
        game.play_network_move()
        stream.flush()
        assert symbol in stream.buffer.getvalue().decode(encoding)


def test_match_against_random_moves(fukami, untrained_runs, tmp_path):
    arguments = ("play", untrained_runs / "connect4", "--against", "random", "--games", 6, "--device", "cpu")
    result = fukami(*arguments, "--out", "game.webp")
    (values,) = result.json
    assert (values["run"], values["game"], values["simulations"]) == (str(untrained_runs / "connect4"), "connect4", 4)
    assert (values["players"], values["games"], values["file"]) == (["connect4", "random"], 6, "game.webp")
    assert values["wins"] + values["draws"] + values["losses"] == 6
    assert values["score_interval"][0] <= values["score"] <= values["score_interval"][1]
    for name in ("wins", "draws", "losses"):
        assert values["as_first"][name] + values["as_second"][name] == values[name]
    with Image.open(tmp_path / "game.webp") as video:
        assert video.n_frames > 7
    assert fukami(*arguments).json[0] == {name: value for name, value in values.items() if name != "file"}
    assert fukami(*arguments, "--seed", 1, "--opening-moves", 6).json[0]["mean_length"] != values["mean_length"]


@pytest.mark.parametrize(("options", "board"), [([], "go5"), (["game=go7"], "go7"), (["game=go5"], "go5")])
def test_the_board_of_a_run_with_several_boards(fukami, untrained_runs, tmp_path, monkeypatch, options, board):
    """The first one of the training, or the one that --set names, in evaluation, prediction and play."""
    run, boards, play = untrained_runs / "go", [], evaluation.match.play_match
    monkeypatch.setattr(
        evaluation.match, "play_match", lambda game, *args, **kwargs: boards.append(game) or play(game, *args, **kwargs)
    )
    values = (*options, "simulations=0")
    result = fukami("eval", run, "--device", "cpu", "--set", *values, "eval_opponent=random", "eval_games=2")
    assert result.status == 0, result.err
    assert [game.name for game in boards] == [board]
    (tmp_path / "game.sgf").write_text(f"(;GM[1]SZ[{board[2:]}];B[aa])")
    predictions = fukami("predict", run, "game.sgf", "--device", "cpu", "--set", *values).json
    assert [prediction["line"] for prediction in predictions] == [1, 2]
    opponent = ("--against", "random", "--games", 2, "--device", "cpu")
    assert fukami("play", run, *opponent, "--set", *values).json[0]["game"] == board
    assert fukami("play", run, *opponent, "--game", board, "--simulations", 0).json[0]["game"] == board


@pytest.mark.parametrize("games", ["go9", "go5,go9", "connect4"])
@pytest.mark.parametrize("command", [("eval",), ("predict", "game.sgf"), ("play", "--against", "random")])
def test_a_board_that_the_network_was_not_trained_for(fukami, untrained_runs, tmp_path, games, command):
    (tmp_path / "game.sgf").write_text("(;GM[1]SZ[9];B[aa])")
    name, *arguments = command
    result = fukami(name, untrained_runs / "go", *arguments, "--device", "cpu", "--set", f"game={games}")
    assert result.status == 2
    assert f"the network was trained for go5, go7, not for {games.replace(',', ', ')}" in result.err


def test_match_against_another_run(fukami, untrained_runs, tmp_path):
    folder = untrained_runs / "go"
    arguments = ("play", folder, "--against", folder, "--device", "cpu", "--game", "go5", "--simulations", 2)
    (values,) = fukami(*arguments, "--games", 2, "--out", "game.mp4").json
    assert (values["players"], values["game"], values["simulations"]) == (["go", "go"], "go5", 2)
    assert values["score"] == 0.5  # the same network with swapped colors
    assert (tmp_path / "game.mp4").stat().st_size > 10_000


def test_both_runs_of_a_match_have_the_same_komi(fukami, untrained_runs, monkeypatch):
    matches, play = [], match.play_match

    def play_and_record(game, players, *arguments, **options):
        matches.append((game, players))
        return play(game, players, *arguments, **options)

    monkeypatch.setattr(match, "play_match", play_and_record)
    folder = untrained_runs / "go"
    arguments = ("--device", "cpu", "--set", "komi=1.5", "game=go5", "simulations=0")
    result = fukami("play", folder, "--against", folder, *arguments)
    assert result.status == 0, result.err
    ((game, players),) = matches
    assert game.komi == 1.5
    assert all(player.task.game is game for player in players)


@needs_gnugo
def test_match_against_gnugo(fukami, untrained_runs):
    arguments = ("--against", "gnugo", "--level", 0, "--games", 2, "--device", "cpu", "--simulations", 0)
    (values,) = fukami("play", untrained_runs / "go", *arguments).json
    assert (values["players"][1], values["games"]) == ("gnugo level 0", 2)


def test_match_against_the_solver(fukami, untrained_runs):
    arguments = ("--against", "solver", "--games", 4, "--opening-moves", 12, "--device", "cpu")
    (values,) = fukami("play", untrained_runs / "connect4", *arguments).json
    assert values["players"][1] == "solver"
    assert values["losses"] >= 2  # of an untrained network, in positions of which half are lost for either side


@pytest.mark.parametrize(("options", "length"), [("--against solver", 0), ("--against random", 2)])
def test_games_against_the_solver_start_from_the_empty_board(fukami, untrained_runs, monkeypatch, options, length):
    """Most random openings are lost for one side with perfect play."""
    lengths, play_match = [], match.play_match

    def play_late_positions(*arguments, opening_moves, **options):
        lengths.append(opening_moves)
        return play_match(*arguments, opening_moves=12, **options)

    monkeypatch.setattr(match, "play_match", play_late_positions)
    result = fukami("play", untrained_runs / "connect4", *options.split(), "--games", 4, "--device", "cpu")
    assert (result.status, lengths) == (0, [length]), result.err


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("go", "--against solver", "the solver is for connect4, not for go5"),
        ("connect4", "--against gnugo", "GNU Go does not play connect4"),
        ("connect4", "--against gnu", "'gnu' is neither a run's folder nor bundled weights"),
        ("connect4", "--against gnu", "other opponents are random, search, solver, gnugo"),
        ("connect4", "--against deep-convnet", "deep-convnet is not a run of self-play"),
        ("connect4", "--against GO", "the network was trained for go5, go7, not for connect4"),
        ("go", "--game go9", "the network was trained for go5, go7, not for go9"),
        ("connect4", "--games 4", "--games is for a match; add --against"),
        ("connect4", "--opening-moves 4", "--opening-moves is for a match"),
        ("connect4", "--against random --color second", "--color is for a game in the terminal"),
        ("connect4", "--against random --level 3", "--level is for GNU Go"),
        ("connect4", "--against random --games 0", "--games should be at least 1"),
        ("connect4", "--against random --opening-moves -1", "and --opening-moves at least 0"),
        ("connect4", "--simulations -1", "--simulations should be between 0 and 100,000, not -1"),
        ("connect4", "--simulations 100001", "--simulations should be between 0 and 100,000, not 100001"),
        ("go", "--against gnugo --level -1", "--level should be at least 0, not -1"),
        ("connect4", "--against random --opening-moves 42", "42 random moves usually end a game of connect4"),
        ("connect4", "--color yellow", "--color takes one of first, second"),
        ("connect4", "--episodes 2", "--episodes is for an agent"),
        ("connect4", "--epsilon 0.5", "--epsilon is for an agent"),
        ("connect4", "--out game.png", "--out should be an .mp4, .gif or .webp file"),
        ("connect4", "--out no/game.gif", "the folder no of the video does not exist"),
    ],
)
def test_mistakes(fukami, untrained_runs, run, options, message):
    words = [str(untrained_runs / "go") if word == "GO" else word for word in options.split()]
    result = fukami("play", untrained_runs / run, "--device", "cpu", *words)
    assert result.status == 2
    assert message in result.err
    assert len(result.err) < 400 + 2 * len(str(untrained_runs))


def test_gnugo_that_is_not_installed(fukami, untrained_runs, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = fukami("play", untrained_runs / "go", "--device", "cpu", "--against", "gnugo")
    assert result.status == 2
    assert "GNU Go is not installed" in result.err


def test_gtp(fukami, untrained_runs, type_lines):
    type_lines("1 name", "boardsize 9", "boardsize 7", "komi 6.5", "play B D4 # caf\xe9", "2 genmove W", "quit", "name")
    result = fukami("gtp", untrained_runs / "go", "--device", "cpu")
    assert (result.status, result.err) == (0, "")
    responses = result.out.split("\n\n")
    assert responses[:5] == ["=1 fukami go", "? unacceptable size", "=", "=", "="]
    move = responses[5].removeprefix("=2 ")
    assert Go(7).parse_move(move) != Go(7).parse_move("D4")
    assert responses[6:] == ["=", ""]


@needs_gnugo
def test_gtp_game_against_gnugo(untrained_runs, forked_python):
    """A game of two processes: each move is sent to the other one, which considers it legal."""
    command = [forked_python.executable, "-m", "fukami", "gtp", str(untrained_runs / "go"), "--device", "cpu"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        GnuGo(5, 24.5, level=0) as opponent,
    ):

        def send(line):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            response = process.stdout.readline()
            assert process.stdout.readline() == "\n"
            assert response.startswith("=")
            return response[1:].strip()

        assert send("boardsize 5") == send("komi 24.5") == send("clear_board") == ""
        passes = num_moves = 0
        while passes < 2 and num_moves < 60:
            if num_moves % 2:
                vertex = opponent.generate_move("white")
                if vertex == "resign":
                    break
                send(f"play white {vertex}")
            else:
                vertex = send("genmove black")
                opponent.play("black", vertex)
            passes = passes + 1 if vertex == "pass" else 0
            num_moves += 1
        assert num_moves > 4
        send("quit")
        assert process.wait(60) == 0


def test_gtp_mistakes(fukami, untrained_runs, type_lines):
    type_lines()
    for run, options, message in (
        (untrained_runs / "connect4", (), "does not play Go, and GTP is for Go"),
        ("deep-convnet", (), "deep-convnet does not play Go"),
        (untrained_runs / "go", ("--simulations", "-1"), "--simulations should be between 0 and 100,000"),
        (Path("missing"), (), "neither a run's folder"),
    ):
        result = fukami("gtp", run, *options, "--device", "cpu")
        assert (result.status, result.out) == (2, "")
        assert message in result.err
    assert fukami("gtp", untrained_runs / "go", "--device", "cpu").out == ""  # the input is empty


def test_video_shows_the_first_game(untrained_runs, tmp_path, monkeypatch):
    """Positions before each move are searched in one batch."""
    from fukami.cli import play

    task = load_task(untrained_runs / "connect4", device="cpu")
    record = play_moves(ConnectFour(), 0, 1, 2)
    shapes = []
    search = task.search
    monkeypatch.setattr(task, "search", lambda states: shapes.append(states.shape) or search(states))
    play.write_game(tmp_path / "game.gif", task, record)
    assert shapes == [(3, 16)]
    with Image.open(tmp_path / "game.gif") as video:
        assert video.n_frames == 4
        assert np.asarray(video.convert("RGB")).shape == (528, 872, 3)
