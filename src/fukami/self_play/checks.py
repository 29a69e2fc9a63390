"""Validation of collections of games: unreadable files, illegal moves and duplicates."""

from fukami.data.findings import Findings, PathNames
from fukami.data.sources import DataSource
from fukami.errors import Error
from fukami.progress import track
from fukami.self_play import sgf
from fukami.self_play.go import Go
from fukami.self_play.policy_games import NUM_COMPARED_MOVES, compute_digest, insert_passes


def check_games(source: DataSource) -> Findings:
    """Check the SGF files of a dataset: each is read, and its moves are replayed."""
    findings = Findings(unit="game")
    names = PathNames(source)
    first_files: dict[bytes, str] = {}
    boards: dict[int, Go] = {}
    for file, game in track(sgf.iterate_games(source.path), "checking", unit="games"):
        name = names(source.path / file) if source.path.is_dir() else file
        try:
            if isinstance(game, Error):
                raise game
            board = boards.setdefault(game.size, Go(game.size))
            initial = sgf.replay(board, game, file)[0]
        except Error as error:
            findings.add("unreadable", str(error).removeprefix(f"{file}, ").removeprefix(f"{file} "), file=name)
            continue
        findings.image_counts[""][""] += 1
        if not game.moves:
            findings.add("empty", "has no moves; remove the file", file=name)
            continue
        digest = compute_digest(initial.tobytes(), insert_passes(game, board.num_moves - 1)[0])
        if first := first_files.get(digest):
            detail = f"has the same first {NUM_COMPARED_MOVES} moves as {first}, or all; remove one of them"
            findings.add("duplicate", detail, file=name)
        first_files.setdefault(digest, name)
    return findings
