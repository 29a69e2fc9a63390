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
from fukami.self_play.plots import (
    MAX_MOVES,
    choose_style,
    describe_outcome,
    has_cell_moves,
    list_star_points,
    rank_moves,
)
from fukami.self_play.search import SearchResult
from fukami.serving.page import TOKEN_OPTION, format_run

SIMULATIONS = (0, 16, 64, 200, 800)  # choices
LABEL_WIDTH, MARGIN, LINE_WIDTH = 0.6, 0.2, 0.02  # around boards, in cells


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
        """True if the search is that of the person's next move."""
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


class Frame(NamedTuple):
    """Measures of the drawing of a board; the unit is a cell.

    Attributes:
        kind: go, columns or grid.
        rows, columns: number of cells.
        left, top, right, bottom: margins around the cells.
    """

    kind: str
    rows: int
    columns: int
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Width of the drawing."""
        return self.left + self.columns + self.right

    @property
    def height(self) -> float:
        """Height of the drawing."""
        return self.top + self.rows + self.bottom

    def locate(self, cell: int) -> tuple[float, float]:
        """Return the center of a cell; row 0 is at the bottom, in a grid at the top."""
        row, column = divmod(cell, self.columns)
        return self.left + column + 0.5, self.top + (row if self.kind == "grid" else self.rows - 1 - row) + 0.5


class Board(NamedTuple):
    """Content of the drawing of a board; points are centers of cells.

    Attributes:
        marks: star points of Go.
        column_labels, row_labels: labels of the coordinates, from the left and from the top.
        stones: points, player (0 or 1) and whether the stone is new.
        hints: points, visits and radius of the best moves.
        buttons: buttons of the legal moves with a cell.
        moves: legal moves without a cell, such as a pass.
        text: description of the stones.
    """

    marks: list[tuple[float, float]]
    column_labels: list[str]
    row_labels: list[str]
    stones: list[tuple[float, float, int, bool]]
    hints: list[tuple[float, float, int, float]]
    buttons: list[Button]
    moves: list[str]
    text: str


def render_board_page(
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
    legal = GameRecord(game).legal_moves
    moves = [game.format_move(move) for move in record.moves or [int(legal[len(legal) // 2])]]
    example = {"game": game.name, "moves": moves, "simulations": 64}
    commands = [
        f"curl {token}-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(example))} {address}predict"
    ]
    if isinstance(game, Go) or type(game).parse_position is not Game.parse_position:
        file = "game.sgf" if isinstance(game, Go) else "positions.txt"
        commands.append(f"curl {token}-F file=@{file} {address}predict")
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
        frame=build_frame(game),
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
    return "Connect Four" if isinstance(game, ConnectFour) else game.name[0].upper() + game.name[1:]


def describe_status(shown: PageGame) -> str:
    """Describe the last move and what is next, or the outcome."""
    record, person, names = shown.record, shown.person, shown.record.game.player_names
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


def build_frame(game: Game) -> Frame:
    """Build the measures of the drawing of a game's board."""
    if isinstance(game, Go):
        return Frame("go", *game.shape, LABEL_WIDTH, MARGIN, MARGIN, LABEL_WIDTH)
    if isinstance(game, ConnectFour):
        return Frame("columns", *game.shape, MARGIN, MARGIN, MARGIN, MARGIN + LABEL_WIDTH)
    return Frame("grid", *game.shape, *4 * (LINE_WIDTH,))


def draw_board(shown: PageGame) -> Board:
    """Draw the position of a game, and the buttons of the moves if the person is on the move."""
    record, game, frame = shown.record, shown.record.game, build_frame(shown.record.game)
    is_go, columns = frame.kind == "go", range(frame.columns)
    stones = read_stones(game, record.state, record.player).ravel()
    new = stones > 0
    if record.moves:
        new &= read_stones(game, record.states[-2], 1 - record.player).ravel() == 0
    cells = find_move_cells(record) if record.player == shown.person else {}
    return Board(
        [frame.locate(row * frame.columns + column) for row, column in list_star_points(frame.columns) if is_go],
        [] if frame.kind == "grid" else [game.format_move(column)[:1] for column in columns],
        [str(frame.rows - row) for row in range(frame.rows) if is_go],
        [(*frame.locate(cell), int(stones[cell]) - 1, bool(new[cell])) for cell in np.flatnonzero(stones).tolist()],
        list_hints(shown, frame, cells) if shown.is_hint else [],
        list_buttons(game, frame, cells),
        [game.format_move(move) for move, cell in cells.items() if cell is None],
        describe_stones(game, stones, game.player_names),
    )


def list_buttons(game: Game, frame: Frame, cells: dict[int, int | None]) -> list[Button]:
    """List the buttons of the moves with a cell: whole columns if each move is a column, else the cells."""
    known = {move: cell for move, cell in cells.items() if cell is not None}
    is_column = game.num_moves == frame.columns and all(cell % frame.columns == move for move, cell in known.items())
    buttons = []
    for move, cell in known.items():
        (x, y), name = frame.locate(cell), game.format_move(move)
        label, top, height = (f"column {name}", frame.top, frame.rows) if is_column else (name, y - 0.5, 1)
        buttons.append(Button(name, label, x - 0.5, top, height, y - 0.5 - top))
    return buttons


def list_hints(shown: PageGame, frame: Frame, cells: dict[int, int | None]) -> list[tuple[float, float, int, float]]:
    """List the points, visits and radius of the best moves of the search."""
    hints = []
    assert shown.result is not None
    visits = shown.result.visits[0]
    for move in rank_moves(shown.result, MAX_MOVES):
        if (cell := cells.get(move)) is not None and visits[move]:
            hints.append((*frame.locate(cell), int(visits[move]), 0.3 + 0.1 * float(visits[move] / visits.max())))
    return hints


def find_move_cells(record: GameRecord) -> dict[int, int | None]:
    """Find the cell of each legal move; all are None if a cell does not identify a move."""
    moves = record.legal_moves
    cells = find_cells(record.game, record.state, moves) if len(moves) else []
    known = [cell for cell in cells if cell is not None]
    return dict(zip(moves.tolist(), cells if len({*known}) == len(known) else [None] * len(cells), strict=True))


def find_cells(game: Game, state: States, moves: Moves) -> list[int | None]:
    """Find the cell in which each legal move places a stone; None if there is none, or several."""
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
