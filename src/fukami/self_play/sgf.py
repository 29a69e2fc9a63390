"""Games of Go in SGF files (Smart Game Format, FF[4]); their content is untrusted."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fukami.data.archives import unpack
from fukami.data.formats import list_sgf_files
from fukami.data.parsing import read_bytes
from fukami.errors import Error, UsageError, require_extra
from fukami.self_play.game import States
from fukami.self_play.go import MAX_SIZE, MIN_SIZE, Go

with require_extra("self-play", "reading SGF files"):
    from sgfmill import sgf_grammar, sgf_properties

MAX_FILE_BYTES = 1 << 20  # a game has 2 kB, with comments and variations 100 kB
MAX_NAME_BYTES = 200
# Encodings of files, by their names in SGF; others are read as UTF-8.
ENCODINGS = {
    *("ascii", "us-ascii", "utf-8", "iso-8859-1", "iso-8859-15", "latin1", "windows-1252", "windows-1251", "koi8-r"),
    *("gb2312", "gbk", "gb18030", "big5", "shift-jis", "sjis", "windows-31j", "cp932", "euc-jp", "euc-kr"),
}
RESULTS = {"b": 1, "black": 1, "w": -1, "white": -1, "0": 0, "d": 0, "draw": 0, "jigo": 0}


class SgfGame(NamedTuple):
    """Main line of a game; points and moves are those of :class:`fukami.self_play.go.Go`.

    Attributes:
        size: number of rows and columns of the board.
        players: names of Black and White, empty if unknown.
        result: 1 if Black won, -1 if White won, 0 for a draw, None if unknown.
        black, white: points of the stones before the first move, such as a handicap.
        moves: player, 0 Black or 1 White, and index of each move.
        player: player on the move after these stones; without moves by the property PL, else White after a handicap.
    """

    size: int
    players: tuple[str, str]
    result: int | None
    black: tuple[int, ...]
    white: tuple[int, ...]
    moves: list[tuple[int, int]]
    player: int


def iterate_games(path: Path) -> Iterator[tuple[str, SgfGame | Error]]:
    """Iterate over the games of a folder, its subfolders, a zip or tar archive, or a single file, sorted by name.

    Yields the name of each file that ends in ``.sgf``, relative to the folder, and its game, or the error of a file
    that cannot be read.

    Raises:
        UsageError: there is no such folder, archive or file.
        Error: the archive cannot be unpacked.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}; specify a folder of SGF files, or a zip or tar archive of one")
    root = path if path.is_dir() or path.suffix.lower() == ".sgf" else unpack(path)
    folder = root if root.is_dir() else root.parent
    files = {file.relative_to(folder).as_posix(): file for file in list_sgf_files(root)}
    for name in sorted(files):
        try:
            yield name, read_game(read_bytes(files[name], max_bytes=MAX_FILE_BYTES), name)
        except Error as error:
            yield name, error


def read_game(content: bytes, name: str) -> SgfGame:
    """Read the main line of the first game in an SGF file.

    The rules are not checked; see :func:`replay`.

    Args:
        content: content of the file.
        name: name of the file, for errors.

    Raises:
        Error: the file is not a game of Go on 2×2 to 19×19, or is corrupted.
    """
    if len(content) > MAX_FILE_BYTES:
        raise Error(f"{name} has more than {MAX_FILE_BYTES:,} bytes; split it into files of one game each")
    try:
        nodes = list(sgf_grammar.main_sequence_iter(sgf_grammar.parse_sgf_game(content)))
        return _read_nodes(nodes)
    except ValueError as error:
        raise Error(f"{name} is not a valid game of Go in SGF: {error}; fix or remove the file") from error


Node = dict[str, list[bytes]]  # raw values of the properties


def _read_nodes(nodes: list[Node]) -> SgfGame:
    """Read the game from the nodes of its main line.

    Raises:
        ValueError: a property is invalid.
    """
    root = nodes[0]
    if _get_text(root, "GM", "1") != "1":
        raise ValueError(f"GM[{_get_text(root, 'GM')}] is another game; GM[1] is Go")
    size_text = _get_text(root, "SZ", "19")
    if not (size_text.isdecimal() and len(size_text) < 3 and MIN_SIZE <= int(size_text) <= MAX_SIZE):
        raise ValueError(f"the size SZ[{size_text}] should be between {MIN_SIZE} and {MAX_SIZE}")
    size = int(size_text)
    setup: dict[int, int] = {}  # color by point
    handicap = _get_text(root, "HA", "0")
    player, num_rectangles = int(handicap.isdecimal() and handicap not in ("0", "1")), 0
    moves: list[tuple[int, int]] = []
    for number, node in enumerate(nodes):
        stones = {key: node[key] for key in ("AB", "AW", "AE") if key in node}
        if stones and moves:
            raise ValueError(f"stones are added after move {len(moves)}, which is not supported")
        num_rectangles += sum(b":" in value for values in stones.values() for value in values)
        if num_rectangles > size * size:
            raise ValueError(f"more than {size * size} rectangles of points")
        if "PL" in node and not moves:
            player = int(node["PL"][0].strip().lower().startswith(b"w"))
        for key, values in stones.items():
            setup |= dict.fromkeys(_parse_points(values, size), "BWE".index(key[1]))
        played = [(player, value) for player, key in enumerate("BW") for value in node.get(key, ())]
        if len(played) > 1:
            raise ValueError(f"node {number} contains {len(played)} moves")
        moves += [(player, _parse_move(value, size)) for player, value in played]
    return SgfGame(
        size,
        (_get_text(root, "PB"), _get_text(root, "PW")),
        _parse_result(_get_text(root, "RE")),
        tuple(sorted(point for point, color in setup.items() if color == 0)),
        tuple(sorted(point for point, color in setup.items() if color == 1)),
        moves,
        moves[0][0] if moves else player,
    )


def _get_text(root: Node, key: str, default: str = "") -> str:
    """Return the text of a property of the first node, shortened to ``MAX_NAME_BYTES``."""
    charset = root.get("CA", [b""])[0][:MAX_NAME_BYTES].decode("ascii", "replace").strip().lower().replace("_", "-")
    raw = sgf_grammar.simpletext_value(root.get(key, [default.encode()])[0][:MAX_NAME_BYTES])
    text: str = raw.decode(charset if charset in ENCODINGS else "utf-8", "replace")
    return text.strip()


def _parse_points(values: list[bytes], size: int) -> set[int]:
    """Parse a list of points, which may contain rectangles.

    Raises:
        ValueError: a point is invalid, or there are more values than points.
    """
    if len(values) > size * size:
        raise ValueError(f"{len(values):,} values of points on a board of {size * size}")
    try:
        points = sgf_properties.Presenter(size, "UTF-8").interpret("AB", values)
    except ValueError:
        raise ValueError(f"invalid points {b' '.join(values)[:80]!r} for size {size}") from None
    return {row * size + column for row, column in points}


def _parse_move(value: bytes, size: int) -> int:
    """Parse a move; to pass is an empty value, or ``tt``.

    Raises:
        ValueError: there is no such point.
    """
    try:
        point = sgf_properties.interpret_go_point(value.strip(), size)
    except ValueError:
        raise ValueError(f"there is no point {value[:20]!r} on a board of size {size}") from None
    return size * size if point is None else int(point[0] * size + point[1])


def _parse_result(text: str) -> int | None:
    """Parse a result such as ``B+3.5``, ``W+Resign``, ``0`` or ``Draw``."""
    winner = text.lower().partition("+")[0].split()
    return RESULTS.get(winner[0]) if winner else None


def replay(game: Go, record: SgfGame, name: str) -> States:
    """Replay a game, and return the states before each move and after the last one, ``(M + 1, S)``.

    Where a player moves twice in a row, the opponent passes in between, which the states do not contain.

    Args:
        game: rules with the board of the record.
        record: game to replay.
        name: name of its file, for errors.

    Raises:
        Error: the boards differ in size, or a move is illegal; the message contains its number.
    """
    if game.shape != (record.size, record.size):
        raise Error(
            f"{name} is a game on {record.size}×{record.size}, not on {game.shape[0]}×{game.shape[1]}; if the run was "
            f"trained on it, select it with game=go{record.size}"
        )
    number = 0
    try:
        states = [game.place_stones(record.black, record.white, record.player)]
        for player, move in record.moves:
            number += 1
            if states[-1][0] != 1 + player:
                states[-1] = game.insert_pass(states[-1])
            states.append(game.play(states[-1][None], np.array([move]))[0])
    except ValueError as error:
        raise Error(f"{name}, move {number}: {error}; fix or remove the file") from None
    return np.stack(states)
