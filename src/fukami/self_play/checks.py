"""Validation of collections of games: unreadable files, illegal moves and duplicates."""

from fukami.data.findings import Findings, PathNames
from fukami.data.sources import DataSource
from fukami.errors import Error
from fukami.progress import track
from fukami.self_play import sgf
from fukami.self_play.go import Go


def check_games(source: DataSource) -> Findings:
    """Check the SGF files of a dataset: each is read, and its moves are replayed."""
    report = Findings(unit="game")
    names = PathNames(source)
    first_files: dict[tuple[object, ...], str] = {}
    boards: dict[int, Go] = {}
    for file, game in track(sgf.iterate_games(source.path), "checking", unit="games"):
        name = names(source.path / file) if source.path.is_dir() else file
        try:
            if isinstance(game, Error):
                raise game
            sgf.replay(boards.setdefault(game.size, Go(game.size)), game, file)
        except Error as error:
            report.add("unreadable", str(error).removeprefix(f"{file}, ").removeprefix(f"{file} "), file=name)
            continue
        report.image_counts[""][""] += 1
        if not game.moves:
            report.add("empty", "has no moves; remove the file", file=name)
            continue
        key = (game.size, game.black, game.white, *game.moves)
        if first := first_files.get(key):
            report.add("duplicate", f"has the same moves as {first}; remove one of them", file=name)
        first_files.setdefault(key, name)
    return report
