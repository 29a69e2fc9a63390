"""Tests of reading SGF files: valid, corrupted and hostile ones, and real games."""

import os
import random
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sgfmill.sgf import Sgf_game

from fukami.errors import Error, UsageError
from fukami.self_play.go import Go
from fukami.self_play.sgf import MAX_FILE_BYTES, SgfGame, iterate_games, read_game, replay
from go_reference import ReferenceGame

GAME = b"(;GM[1]FF[4]CA[UTF-8]SZ[9]KM[7.5]PB[Black player]PW[White player]RE[B+3.5];B[ee];W[gc];B[];W[tt])"


def read(content):
    return read_game(content, "game.sgf")


def read_root(properties):
    return read(b"(;" + properties + b";B[aa])")


def test_game():
    go = Go(9)
    points = [go.parse_move(text) for text in ("E5", "G7", "pass", "pass")]
    moves = list(zip((0, 1, 0, 1), points, strict=True))
    assert read(GAME) == SgfGame(9, ("Black player", "White player"), 1, (), (), moves, 0)


def test_main_line_is_the_first_variation():
    game = read(b"junk (;SZ[9];B[aa](;W[bb](;B[cc];W[dd])(;B[ee]))(;W[ff];B[gg])) (;SZ[5];B[aa])")
    go = Go(9)
    assert [go.format_move(move) for _, move in game.moves] == ["A9", "B8", "C7", "D6"]


def test_defaults():
    assert read(b"(;)") == SgfGame(19, ("", ""), None, (), (), [], 0)


def test_setup_stones():
    game = read(b"(;SZ[9]HA[2]AB[cg][gc:hd]AW[ab];AE[hd]AB[ab];W[ee])")
    go = Go(9)
    assert {go.format_move(point) for point in game.black} == {"C3", "G7", "H7", "G6", "A8"}
    assert game.white == ()
    states = replay(go, game, "game.sgf")
    assert states.shape[0] == 2
    assert go.planes(states)[0, 1].sum() == 5  # White is to move


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("B+R", 1), ("W+0.5", -1), ("B+", 1), ("W", -1), ("White wins", -1), ("black+t", 1), ("0", 0), ("Draw", 0),
        ("Jigo", 0), ("Void", None), ("?", None), ("", None), ("Both lose", None), ("+", None),
    ],
)  # fmt: skip
def test_result(text, result):
    assert read_root(b"RE[%s]" % text.encode()).result == result


@pytest.mark.parametrize(
    ("name", "charset"),
    [("柯洁", b"UTF-8"), ("柯洁", b"GB18030"), ("柯洁", b"gbk"), ("井山裕太", b"Shift_JIS"), ("Müller", b"ISO-8859-1")],
)
def test_encodings_of_names(name, charset):
    encoded = name.encode(charset.decode())
    assert read_root(b"CA[" + charset + b"]PB[" + encoded + b"]").players == (name, "")


@pytest.mark.parametrize(
    "charset", [b"UTF-8", b"", b"unknown", b"zip", b"idna", b"unicode_escape", b"rot13", b"\xff" * 9]
)
def test_wrong_encoding_damages_only_the_names(charset):
    game = read(b"(;CA[" + charset + rb"]PB[\\x\N\xff" + b"\xff\xfe\x80" + b"a" * 500_000 + b"];B[aa])")
    assert game.players[0].endswith("a")
    assert len(game.players[0]) < 201
    assert len(game.moves) == 1


def test_escaped_bracket_and_line_ends():
    assert read_root(b"PB[a\\]b\\\\c\r\nd]").players[0] == "a]b\\c d"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no SGF data found"),
        (b"no game", "no SGF data found"),
        (GAME.decode().encode("utf-16"), "no SGF data found"),
        (GAME[:-1], "unexpected end of SGF data"),
        (b"(;B[aa", "unexpected end of SGF data"),
        (b"(;SZ[9];B[jj])", "there is no point b'jj' on a board of size 9"),
        (b"(;SZ[9];B[a])", "there is no point b'a' "),
        (b"(;SZ[9];B[\xff\x00])", r"there is no point b'\\xff\\x00'"),
        (b"(;SZ[9];B[aa]W[bb])", "node 1 contains 2 moves"),
        (b"(;SZ[9];B[aa][bb])", "node 1 contains 2 moves"),
        (b"(;SZ[9];B[aa];AW[bb])", "stones are added after move 1"),
        (b"(;SZ[9]AB[jj])", r"invalid points b'jj' for size 9"),
        (b"(;SZ[9]AB[cc:aa])", "invalid points b'cc:aa'"),
        (b"(;SZ[1])", r"the size SZ\[1\] should be between 2 and 19"),
        (b"(;SZ[20])", r"the size SZ\[20\]"),
        (b"(;SZ[9:13])", r"the size SZ\[9:13\]"),
        (b"(;SZ[-9])", r"the size SZ\[-9\]"),
        (b"(;SZ[" + b"9" * 100_000 + b"])", r"the size SZ\[9{200}\]"),
        (b"(;SZ[])", r"the size SZ\[\]"),
        (b"(;GM[3])", r"GM\[3\] is another game"),
        (b"(" + b";AB[aa:ss][aa:bb]" * 200 + b")", "more than 361 rectangles of points"),
        (b"(;AB" + b"[aa:ss]" * 362 + b")", "more than 361 rectangles of points"),
        (b"(;AB" + b"[aa]" * 362 + b")", "362 values of points on a board of 361"),
        (b" " * (MAX_FILE_BYTES + 1), "has more than 1,048,576 bytes"),
    ],
)
def test_invalid_content(content, message):
    with pytest.raises(Error, match=message) as info:
        read(content)
    assert str(info.value).startswith("game.sgf ")
    assert len(str(info.value)) < 400


@pytest.mark.parametrize("size", [MAX_FILE_BYTES // 32, pytest.param(MAX_FILE_BYTES - 16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "unit", [b"(;", b"(", b";", b"(;)", b"()", b"[", b"]", b"\\", b"A[]", b"A", b"( ", b"B[aa]", b";B[aa]", b"\0"]
)
def test_nested_or_repeated_content(unit, size):
    """Up to the maximum size, it is read without recursion; in quadratic time it would not end."""
    units = unit * (size // len(unit))
    for content in (units, b"(;" + units + b")", b"(;C[" + units, units[: size // 2] + b")" * (size // 2)):
        with suppress(Error):
            read(content)


def test_random_changes_of_bytes():
    generator = random.Random(0)
    num_errors = 0
    for _ in range(2000):
        content = bytearray(GAME)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        try:
            game = read(bytes(content))
        except Error:
            num_errors += 1
            continue
        assert all(player in (0, 1) and 0 <= move <= game.size**2 for player, move in game.moves)
    assert 0 < num_errors < 2000


def test_replay_of_two_moves_in_a_row():
    """The opponent passes in between; the states are those before each move and after the last one."""
    go = Go(5)
    game = read(b"(;SZ[5];W[aa];W[bb];B[cc];B[dd])")
    states = replay(go, game, "game.sgf")
    assert len(states) == 5
    assert states[:4, 0].tolist() == [2, 2, 1, 1]
    assert [go.planes(states)[index, :2].sum() for index in range(5)] == [0, 1, 2, 3, 4]
    assert states[:, 1].tolist() == [0] * 5  # no pass was played
    assert replay(go, read(b"(;SZ[5];B[];B[dd];W[])"), "game.sgf")[:, 1].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"(;SZ[5];B[aa];W[bb];B[aa])", "game.sgf, move 3: A5 is illegal: the point is occupied"),
        (b"(;SZ[5];B[];W[];B[aa])", "game.sgf, move 3: A5 is illegal: the game is over"),
        (b"(;SZ[5]AB[ab][ba]AW[aa];B[cc])", "game.sgf, move 0: the group of A5 has no liberties"),
        (b"(;SZ[9];B[aa])", r"game.sgf is a game on 9×9, not on 5×5; .* with game=go9"),
    ],
)
def test_replay_of_an_illegal_game(content, message):
    with pytest.raises(Error, match=message):
        replay(Go(5), read(content), "game.sgf")


def test_a_game_with_more_moves_than_the_limit():
    go = Go(5)
    assert go.max_moves == 70
    go.max_moves = 2
    with pytest.raises(Error, match="move 3: C3 is illegal: a game on 5×5 ends after 2 moves"):
        replay(go, read(b"(;SZ[5];B[aa];W[bb];B[cc])"), "game.sgf")


@pytest.mark.parametrize(
    ("content", "player"),
    [
        (b"(;SZ[5]AB[cc])", 0),
        (b"(;SZ[5]AB[cc]PL[W])", 1),
        (b"(;SZ[5]PL[white])", 1),
        (b"(;SZ[5]PL[B]HA[2]AB[bb][cc])", 0),
        (b"(;SZ[5]HA[2]AB[bb][cc])", 1),
        (b"(;SZ[5]PL[W];B[aa])", 0),
        (b"(;SZ[5];PL[W])", 1),
    ],
)
def test_player_on_the_move_after_the_first_stones(content, player):
    game = read(content)
    assert game.player == player
    assert replay(Go(5), game, "game.sgf")[0, 0] == 1 + player


@pytest.fixture
def folder(tmp_path):
    """Folder with two games, two broken files and one that is not SGF."""
    folder = tmp_path / "games"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.SGF").write_bytes(GAME)
    (folder / "a.sgf").write_bytes(GAME)
    (folder / "broken.sgf").write_bytes(b"\xff\xfe garbage")
    (folder / "directory.sgf").mkdir()
    (folder / "notes.txt").write_text("no game", encoding="utf-8")
    return folder


def check_iteration(path, prefix=""):
    games = dict(iterate_games(path))
    assert list(games) == [prefix + name for name in ("a.sgf", "b/2.SGF", "broken.sgf")]
    assert games[prefix + "a.sgf"] == games[prefix + "b/2.SGF"] == read(GAME)
    assert isinstance(games[prefix + "broken.sgf"], Error)
    assert "broken.sgf is not a valid game of Go" in str(games[prefix + "broken.sgf"])


def test_folder(folder):
    check_iteration(folder)


def test_zip(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "games.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    check_iteration(tmp_path / "games.zip", "games/")


def test_tar(folder, tmp_path):
    with tarfile.open(tmp_path / "games.tar.gz", "w:gz") as archive:
        archive.add(folder, "games")
    check_iteration(tmp_path / "games.tar.gz", "games/")


def test_large_file_and_file_without_permission(tmp_path):
    (tmp_path / "large.sgf").write_bytes(b"(;)" + b" " * MAX_FILE_BYTES)
    os.mkfifo(tmp_path / "pipe.sgf")  # would block a reader
    (tmp_path / "link.sgf").symlink_to(tmp_path / "nothing")
    errors = dict(iterate_games(tmp_path))
    assert "more than the limit of 1,048,576" in str(errors["large.sgf"])
    assert "is not a regular file" in str(errors["pipe.sgf"])
    assert "cannot be read (No such file or directory)" in str(errors["link.sgf"])


def test_missing_folder_and_file_that_is_no_archive(tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*; specify a folder of SGF files"):
        list(iterate_games(tmp_path / "missing"))
    (tmp_path / "games.zip").write_bytes(GAME)
    with pytest.raises(Error, match="cannot be unpacked"):
        list(iterate_games(tmp_path / "games.zip"))


def test_single_file(tmp_path):
    (tmp_path / "game.SGF").write_bytes(GAME)
    assert list(iterate_games(tmp_path / "game.SGF")) == [("game.SGF", read(GAME))]


@pytest.fixture
def real_games():
    """Archive of real games; skip the test without it."""
    path = Path(os.environ.get("FUKAMI_DATA", "")) / "go-games.zip"
    if not os.environ.get("FUKAMI_DATA") or not path.exists():
        pytest.skip("needs go-games.zip; set FUKAMI_DATA to its folder")
    return path


def check_real_game(content, name):
    """Compare a real game with sgfmill's high-level reader and board; return whether its moves are legal."""
    go, game = Go(19), read_game(content, name)
    other = Sgf_game.from_bytes(content)
    points = [node.get_move() for node in other.get_main_sequence()]
    expected = [("bw".index(color), row_column[0] * 19 + row_column[1]) for color, row_column in points if color]
    assert game.moves == expected
    assert game.result == {"b": 1, "w": -1, None: None}[other.get_winner()] or game.result == 0
    reference, is_legal = ReferenceGame(19), True
    for player, move in game.moves:
        reference.player = player
        position = reference.try_move(move)
        is_legal = position is not None and position not in reference.positions
        if not is_legal:
            break
        reference.play(move)
    if not is_legal:
        with pytest.raises(Error, match=rf"{name}, move {len(reference.moves) + 1}: "):
            replay(go, game, name)
        return False
    states = replay(go, game, name)
    last = go.planes(states[-1:])[0, :2].reshape(2, -1)[:: 1 if states[-1, 0] == 1 else -1]
    assert tuple({(1, 0): "b", (0, 1): "w", (0, 0): None}[tuple(map(int, stones))] for stones in last.T) == (
        reference.get_position()
    )
    return True


def test_real_games_agree_with_sgfmill(real_games):
    """Every 400th game, and one with a stone on an occupied point, one with suicide and one that violates superko."""
    with zipfile.ZipFile(real_games) as archive:
        numbers = [*range(1, 7197, 400), 1481, 1482, 2699]
        names = [f"go-games/{number:05}.sgf" for number in numbers]
        legal = [check_real_game(archive.read(name), name) for name in names]
    assert legal == [True] * (len(names) - 3) + [False] * 3


@pytest.mark.slow
def test_all_real_games(real_games):
    """11 of the 7,197 games contain an illegal move."""
    go, num_illegal = Go(19), 0
    games = list(iterate_games(real_games))
    assert len(games) == 7197
    for name, game in games:
        assert isinstance(game, SgfGame), game
        try:
            states = replay(go, game, name)
        except Error:
            num_illegal += 1
        else:
            assert len(states) == len(game.moves) + 1
            assert np.isnan(go.outcome(states)).all()
    assert sum(len(game.moves) for _, game in games) == 1_186_593
    assert num_illegal == 11
