"""The self-contained page of ``fukami serve`` for self-play: a board, and the search beside it."""

import json
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.engine import html
from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.game import Game, Moves, States
from fukami.self_play.go import Go
from fukami.self_play.match import GameRecord, read_stones
from fukami.self_play.plots import choose_style, describe_outcome, has_cell_moves, list_star_points, rank_moves
from fukami.self_play.search import SearchResult
from fukami.serving.page import TOKEN_OPTION, format_run

SIMULATIONS = (0, 16, 64, 200, 800)  # choices
MAX_MOVES = 8  # rows of the table
LABEL_WIDTH, MARGIN = 0.75, 0.2  # around a Go board, in cells


class PageGame(NamedTuple):
    """Game on the page.

    Attributes:
        record: the game.
        person: player that the person is, 0 or 1.
        simulations: simulations of the network's next search.
        result: search that is shown; None if there is none.
        ply: number of moves before the searched position: all for a hint, else those before the network's last move.
    """

    record: GameRecord
    person: int
    simulations: int
    result: SearchResult | None = None
    ply: int = 0

    @property
    def is_hint(self) -> bool:
        """Whether the search is that of the person's next move."""
        return self.result is not None and self.ply == len(self.record.moves)


class Button(NamedTuple):
    """Button on the board that plays a move: its area and the cell of the stone, in cells of the drawing."""

    move: str
    label: str
    left: float
    top: float
    height: int
    stone_top: float


class Candidate(NamedTuple):
    """Row of the table of moves; ``fraction`` is the fraction of the highest number of visits."""

    move: str
    visits: int
    fraction: float
    policy: float
    network_policy: float
    is_played: bool


class Board(NamedTuple):
    """Drawing of a board; the unit is a cell, and points are the centers of cells.

    Attributes:
        kind: go, columns or grid.
        width, height: size of the drawing.
        left, top: position of the cells.
        rows, columns: number of cells.
        marks: star points of Go.
        column_labels, row_labels: labels of the coordinates, from the left and from the top.
        stones: points, player (0 or 1) and whether the stone is new.
        hints: points, visits and opacity of the best moves.
        buttons: buttons of the legal moves with a cell.
        moves: legal moves without a cell, such as a pass.
        text: description of the stones.
    """

    kind: str
    width: float
    height: float
    left: float
    top: float
    rows: int
    columns: int
    marks: list[tuple[float, float]]
    column_labels: list[str]
    row_labels: list[str]
    stones: list[tuple[float, float, int, bool]]
    hints: list[tuple[float, float, int, float]]
    buttons: list[Button]
    moves: list[str]
    text: str


def render_page(
    run_info: dict[str, Any],
    address: str,
    games: Sequence[Game],
    shown: PageGame,
    error: str = "",
    *,
    needs_token: bool = False,
) -> bytes:
    """Render the page.

    Args:
        run_info: description of the run.
        address: address of the page.
        games: games that the network plays.
        shown: the game on the page.
        error: what is wrong with the request.
        needs_token: whether the example commands send the token.
    """
    game, record = shown.record.game, shown.record
    token = TOKEN_OPTION if needs_token else ""
    example = {"game": game.name, "moves": [game.format_move(move) for move in record.moves], "simulations": 64}
    commands = [
        f"curl {token}-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(example))} {address}predict"
    ]
    if game.has_score or type(game).parse_position is not Game.parse_position:
        commands.append(f"curl {token}-F file=@{'game.sgf' if game.has_score else 'positions.txt'} {address}predict")
    return html.render_page(
        "serving_board.html",
        title=get_title(game),
        run={name: value for name, value in format_run(run_info).items() if value},
        error=error,
        game=game,
        shown=shown,
        moves=[game.format_move(move) for move in record.moves],
        games=[(other.name, get_title(other)) for other in games],
        style=choose_style(game),
        board=draw_board(shown),
        status=describe_status(shown),
        probability=compute_probability(shown),
        candidates=list_candidates(shown),
        choices=sorted({*SIMULATIONS, shown.simulations}),
        can_undo=len(record.moves) > shown.person,
        commands=commands,
    )


def get_title(game: Game) -> str:
    """Return the title of a game."""
    if isinstance(game, Go):
        return f"Go {game.shape[0]}×{game.shape[1]}"
    return "Connect Four" if isinstance(game, ConnectFour) else game.name


def describe_status(shown: PageGame) -> str:
    """Describe the last move and what is next, or the outcome."""
    record, person, names = shown.record, shown.person, choose_style(shown.record.game).names
    if record.outcome is not None:
        sign = record.outcome * (-1 if person else 1)
        result = "Draw" if sign == 0 else f"{'You win' if sign > 0 else 'You lose'}: {describe_outcome(record)}"
        return f"{result}, after {len(record.moves)} moves."
    turn = f"Your turn: you are {names[person]}."
    if len(record.moves) == 0 or record.player != person:
        return turn
    return f"The network played {record.game.format_move(record.moves[-1])}. {turn}"


def compute_probability(shown: PageGame) -> float | None:
    """Compute the win probability of the first player after the search, or by the outcome; None without both."""
    if shown.record.outcome is not None:
        return (1 + shown.record.outcome) / 2
    if shown.result is None:
        return None
    return (1 + float(shown.result.values[0]) * (-1 if shown.ply % 2 else 1)) / 2


def list_candidates(shown: PageGame) -> list[Candidate]:
    """List the best moves of the search."""
    result, moves = shown.result, shown.record.moves
    if result is None:
        return []
    visits = result.visits[0]
    played = None if shown.is_hint else moves[shown.ply]
    return [
        Candidate(
            shown.record.game.format_move(move),
            int(visits[move]),
            float(visits[move] / max(visits.max(), 1)),
            float(result.policies[0, move]),
            float(result.network_policies[0, move]),
            move == played,
        )
        for move in rank_moves(result, MAX_MOVES)
    ]


def draw_board(shown: PageGame) -> Board:
    """Draw the position of a game, and the buttons of the moves if the person is on the move."""
    record, game = shown.record, shown.record.game
    (rows, columns), names = game.shape, choose_style(game).names
    kind = "go" if isinstance(game, Go) else "columns" if isinstance(game, ConnectFour) else "grid"
    left, top, right, bottom = {
        "go": (LABEL_WIDTH, MARGIN, MARGIN, LABEL_WIDTH),
        "columns": (MARGIN, MARGIN, MARGIN, MARGIN + LABEL_WIDTH),
        "grid": (0.02, 0.02, 0.02, 0.02),
    }[kind]

    def locate(cell: int) -> tuple[float, float]:
        row, column = divmod(cell, columns)
        return left + column + 0.5, top + (rows - 1 - row if kind != "grid" else row) + 0.5

    stones = read_stones(game, record.state, record.player).ravel()
    new = stones > 0
    if record.moves:
        new &= read_stones(game, record.states[-2], 1 - record.player).ravel() == 0
    can_play = not record.is_over and record.player == shown.person
    legal = record.legal_moves if can_play else np.zeros(0, np.int64)
    cells = dict(zip(legal.tolist(), find_cells(game, record.state, legal), strict=True))
    taken = [cell for cell in cells.values() if cell is not None]
    if len({*taken}) < len(taken):  # several moves to the same cell
        cells, taken = dict.fromkeys(cells), []
    is_column = game.num_moves == columns and all(
        cell is None or cell % columns == move for move, cell in cells.items()
    )
    buttons, hints = [], []
    for move, cell in cells.items():
        if cell is None:
            continue
        (x, y), name = locate(cell), game.format_move(move)
        button_top, height = (top, rows) if is_column else (y - 0.5, 1)
        label = f"column {name}" if is_column else name
        buttons.append(Button(name, label, x - 0.5, button_top, height, y - 0.5 - button_top))
    if shown.is_hint and shown.result is not None:
        visits = shown.result.visits[0]
        for move in rank_moves(shown.result, MAX_MOVES):
            if (cell := cells.get(move)) is not None and visits[move]:
                hints.append((*locate(cell), int(visits[move]), 0.35 + 0.65 * float(visits[move] / visits.max())))
    column_labels = [] if kind == "grid" else [game.format_move(index)[:1] for index in range(columns)]
    return Board(
        kind,
        left + columns + right,
        top + rows + bottom,
        left,
        top,
        rows,
        columns,
        [locate(row * columns + column) for row, column in list_star_points(columns)] if kind == "go" else [],
        column_labels,
        [str(rows - index) for index in range(rows)] if kind == "go" else [],
        [(*locate(cell), int(stones[cell]) - 1, bool(new[cell])) for cell in np.flatnonzero(stones).tolist()],
        hints,
        buttons,
        [game.format_move(move) for move, cell in cells.items() if cell is None],
        describe_stones(game, stones, names),
    )


def find_cells(game: Game, state: States, moves: Moves) -> list[int | None]:
    """Find the cell in which each legal move places a stone; None if there is none, or several."""
    if not len(moves):
        return []
    is_empty = ~(game.planes(state[None])[0, :2] > 0).any(0).ravel()
    played = game.planes(game.play(np.repeat(state[None], len(moves), axis=0), moves))
    added = (played[:, 1].reshape(len(moves), -1) > 0) & is_empty
    return [int(cells.argmax()) if cells.sum() == 1 else None for cells in added]


def describe_stones(game: Game, stones: npt.NDArray[np.int64], names: tuple[str, str]) -> str:
    """Describe the stones on the board for people who do not see it."""
    texts = []
    for player, name in enumerate(names, 1):
        cells = np.flatnonzero(stones == player).tolist()
        places = [game.format_move(cell) if has_cell_moves(game) else format_cell(game, cell) for cell in cells]
        texts.append(f"{name}: {', '.join(places) or 'none'}")
    return "; ".join(texts)


def format_cell(game: Game, cell: int) -> str:
    """Format a cell by its column and its row, as ``column 4 row 1``."""
    row, column = divmod(cell, game.shape[1])
    return f"column {column + 1} row {row + 1}"


def orient_rows(game: Game, stones: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rows of a board from the top to the bottom."""
    return stones[::-1] if isinstance(game, ConnectFour | Go) else stones
