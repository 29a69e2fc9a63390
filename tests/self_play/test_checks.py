"""Tests of the validation of games (``fukami doctor``)."""

import json
import zipfile

GAME = "(;GM[1]FF[4]SZ[9]KM[7]RE[B+2];B[aa];W[{}])"


def write_games(folder):
    folder.mkdir()
    (folder / "a.sgf").write_text(GAME.format("bb"))
    (folder / "b.sgf").write_text(GAME.format("cc"))
    (folder / "again.sgf").write_text(GAME.format("bb"))
    (folder / "illegal.sgf").write_text(GAME.format("aa"))
    (folder / "binary.sgf").write_bytes(bytes(range(256)))
    (folder / "empty.sgf").write_text("(;GM[1]FF[4]SZ[9])")


def test_broken_empty_and_duplicate_games_are_listed(fukami, tmp_path):
    write_games(tmp_path / "games")
    result = fukami("doctor", tmp_path / "games")
    assert result.status == 1
    assert "SGF: 6 games; for alphago-policy" in result.err
    assert "4 problems among 4 readable games" in result.err
    counts = {line["problem"]: line["count"] for line in result.json}
    assert counts == {"unreadable": 2, "duplicate": 1, "empty": 1}
    problems = list(map(json.loads, (tmp_path / "problems.jsonl").read_text().splitlines()))
    (duplicate,) = [problem for problem in problems if problem["problem"] == "duplicate"]
    assert duplicate["file"].endswith("again.sgf")
    assert "a.sgf" in duplicate["detail"]
    (illegal,) = [problem for problem in problems if problem.get("file", "").endswith("illegal.sgf")]
    assert illegal["detail"].startswith("move 2: A9 is illegal")


def test_an_archive_of_games_without_problems(fukami, tmp_path):
    with zipfile.ZipFile(tmp_path / "games.zip", "w") as archive:
        archive.writestr("games/one.sgf", GAME.format("bb"))
        archive.writestr("games/two.SGF", GAME.format("dd"))
    result = fukami("doctor", tmp_path / "games.zip")
    assert result.status == 0
    assert "no problem among 2 readable games" in result.err


def test_games_are_not_for_other_recipes(fukami, tmp_path):
    write_games(tmp_path / "games")
    result = fukami("train", "resnet18", "--data", tmp_path / "games", "--out", tmp_path / "run")
    assert result.status == 2
    assert "SGF: 6 games; for alphago-policy" in result.err


def test_a_single_file(fukami, tmp_path):
    (tmp_path / "game.sgf").write_text(GAME.format("aa"))
    result = fukami("doctor", tmp_path / "game.sgf")
    assert result.status == 1
    assert "SGF: 1 game; for alphago-policy" in result.err
    assert "1 problem among 0 readable games" in result.err
