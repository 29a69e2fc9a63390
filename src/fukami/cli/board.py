"""Command ``fukami board``."""

import shutil
import sys
from pathlib import Path

from fukami.cli.arguments import run_cli
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Rank the runs of a folder in a table and an HTML page."""
    import tyro

    def run(folder: tyro.conf.Positional[Path], out: Path | None = None) -> None:
        """Rank all runs of a folder by dataset and metric, as tables and one HTML page.

        Args:
            folder: Folder that is searched recursively for runs.
            out: HTML file. Default: board.html in the folder.
        """
        from fukami.leaderboard import page as leaderboard_page
        from fukami.leaderboard import runs as leaderboard_runs
        from fukami.leaderboard import table as leaderboard_table

        page = out or folder / "board.html"
        if page.suffix.lower() != ".html" or page.is_dir():
            raise UsageError(f"--out should be an .html file, not {page}")
        boards, reasons = leaderboard_runs.load_leaderboards(folder)
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for board in boards:
            print(*leaderboard_table.format_table(board, width), sep="\n")
            for rank, line in leaderboard_table.list_commands(board):
                print(f"{rank:>2}  {line}")
            for note in board.notes:
                print(f"    {note}")
            print()
        for reason, names in reasons.items():
            print(f"fukami: {', '.join(dict.fromkeys(names))}: {reason}", file=sys.stderr)
        leaderboard_page.write_page(boards, folder, page)
        print(f"page: {page}", file=sys.stderr)

    run_cli(run, arguments, "fukami board")
