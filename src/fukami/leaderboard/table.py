"""Leaderboards as text tables."""

import unicodedata
from collections.abc import Iterator

from fukami.leaderboard.published_results import PublishedResult
from fukami.leaderboard.runs import MISSING, Leaderboard, RankedRun, compute_sort_key

PERCENT_METRICS = ("accuracy", "map", "miou")  # metrics shown in percent
COLUMNS = ("#", "run", "recipe", "", "split", "parameters", "multiply-adds", "seconds", "epochs", "seed", "device")
TEXT_COLUMNS = {"run", "recipe", "split", "device"}  # left-aligned
REDUNDANT_COLUMNS = {"recipe", "seed", "device"}  # columns that the command also shows; omitted in a narrow terminal
MIN_NAME_WIDTH = 10  # minimum width of the names of runs in a narrow terminal
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"  # escape codes of terminals


def build_rows(board: Leaderboard) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the kind of each row (run, published or unfinished) and its cells, best first, ordered as ``COLUMNS``."""
    entries: list[tuple[float, int, RankedRun | PublishedResult]] = [
        *((compute_sort_key(board.metric, run.result), 0, run) for run in board.runs),
        *((compute_sort_key(board.metric, result.accuracy), 1, result) for result in board.published),
    ]
    for _, _, entry in sorted(entries, key=lambda entry: entry[:2]):
        if isinstance(entry, PublishedResult):
            extra, value = "extra data" if entry.uses_extra_data else "", _format_metric(board.metric, entry.accuracy)
            parameters = abbreviate_count(entry.parameters) if entry.parameters else ""
            yield "published", (f"pub. {entry.year}", entry.method, extra, value, "", parameters, *("",) * 5)
        else:
            yield (
                "run",
                (
                    str(board.compute_rank(entry)),
                    *_format_cells(entry, _format_metric(board.metric, entry.result), entry.split),
                ),
            )
    for run in board.unfinished:
        yield "unfinished", (MISSING, *_format_cells(run, "unfinished", ""))


def _format_cells(run: RankedRun, value: str, split: str) -> tuple[str, ...]:
    seconds = MISSING if run.seconds is None else f"{run.seconds:,.0f}" if run.seconds >= 10 else f"{run.seconds:.1f}"
    cost = (abbreviate_count(run.parameters), abbreviate_count(run.multiply_adds), seconds)
    return run.name, run.recipe, value, split, *cost, run.epochs, run.seed, run.device


def format_table(board: Leaderboard, width: int | None = None) -> list[str]:
    """Format the table as lines of text; published results have no rank.

    Args:
        board: the leaderboard.
        width: columns of the terminal, in which headings are bold and published results dim. If the table is wider,
            columns are omitted and the names of runs are wrapped. Default: no terminal.
    """
    headings = {"": board.metric, "parameters": "params", "multiply-adds": "mult-adds"}
    rows = [("heading", tuple(headings.get(name, name) for name in COLUMNS)), *build_rows(board)]
    columns = zip(COLUMNS, zip(*(cells for _, cells in rows), strict=True), strict=True)
    widths = {name: max(map(_measure_width, cells)) for name, cells in columns}
    if width and sum(widths.values()) + 2 * (len(widths) - 1) > width:
        widths = {name: value for name, value in widths.items() if name not in REDUNDANT_COLUMNS}
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - width
        widths["run"] = min(widths["run"], max(MIN_NAME_WIDTH, widths["run"] - excess))
    lines = [("heading", board.title)]
    for kind, cells in rows:
        first, *others = _wrap_text(cells[1], widths["run"])
        shown = dict(zip(COLUMNS, cells, strict=True)) | {"run": first}
        lines.append((kind, "  ".join(_pad_cell(name, shown[name], widths[name]) for name in widths)))
        lines += [(kind, " " * (widths["#"] + 2) + part) for part in others]
    styles = {"heading": BOLD, "published": DIM, "unfinished": DIM} if width else {}
    return [f"{styles[kind]}{line.rstrip()}{PLAIN}" if kind in styles else line.rstrip() for kind, line in lines]


def _pad_cell(column: str, cell: str, width: int) -> str:
    padding = " " * (width - _measure_width(cell))
    return cell + padding if column in TEXT_COLUMNS else padding + cell


def _wrap_text(text: str, width: int) -> list[str]:
    """Split a text into parts of this width at most, at any letter."""
    parts = [""]
    for letter in text:
        if _measure_width(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _measure_width(text: str) -> int:
    """Return the width of a text in a terminal, where East Asian characters take two columns."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def list_commands(board: Leaderboard) -> list[tuple[str, str]]:
    """List the rank (– for unfinished runs) and the command of each run."""
    ranked = [(str(board.compute_rank(run)), run.command) for run in board.runs]
    return ranked + [(MISSING, run.command) for run in board.unfinished]


def _format_metric(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric in PERCENT_METRICS else f"{value:,.4f}" if value < 1000 else f"{value:,.0f}"


def abbreviate_count(count: int | None) -> str:
    """Format a count with three digits: 124 k, 1.24 M."""
    if count is None:
        return MISSING
    scaled, powers = float(count), iter(" kMGT")
    unit = next(powers)
    while scaled >= 999.5 and (larger := next(powers, "")):
        scaled, unit = scaled / 1000, larger
    return f"{scaled:.3g} {unit}".strip()
