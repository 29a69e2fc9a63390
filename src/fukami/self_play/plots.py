"""Drawing of boards with the policy, the visits and the value of the search."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.game import Game, States
from fukami.self_play.go import Go
from fukami.self_play.match import GameRecord, read_stones
from fukami.self_play.search import SearchResult

BOARD_SIZE, PANEL_WIDTH, MARGIN = 480, 320, 24  # in pixels
SCALE = 2  # boards are drawn larger and reduced, for smooth edges
PANEL_LEFT = BOARD_SIZE + 2 * MARGIN
MAX_MOVES = 8  # rows of the panel
MAX_CANDIDATES = 5  # moves whose visits are on the board
TEXT_COLOR, LABEL_COLOR, GRID_COLOR = (34, 34, 34), (102, 102, 102), (221, 221, 221)
BAR_COLOR, VISITS_COLOR, MOVE_COLOR = (72, 120, 168), (160, 188, 216), (209, 73, 91)
LAST_COLOR = (255, 244, 214)  # cell of the last move
WOOD_COLOR, LINE_COLOR = (222, 184, 120), (84, 62, 32)
BLUE_COLOR, HOLE_COLOR = (38, 84, 160), (240, 244, 250)

Stones = npt.NDArray[np.int64]  # (H, W): 1 the first player's, 2 the second player's, 0 none
Color = tuple[int, int, int]


class Style(NamedTuple):
    """Colors of the stones of both players, and of their outlines."""

    fills: tuple[Color, Color]
    outlines: tuple[Color, Color]


def choose_style(game: Game) -> Style:
    """Choose the colors of a game."""
    if isinstance(game, Go):
        return Style(((28, 28, 28), (250, 250, 248)), ((28, 28, 28), (120, 110, 96)))
    if isinstance(game, ConnectFour):
        return Style(((250, 204, 48), (214, 50, 50)), ((206, 158, 20), (164, 28, 28)))
    return Style((BAR_COLOR, MOVE_COLOR), (BAR_COLOR, MOVE_COLOR))


def rank_moves(result: SearchResult, max_moves: int) -> list[int]:
    """Rank the moves of the first position of a search: most visits first, then highest policy."""
    visits, policy = result.visits[0], result.policies[0]
    order = np.lexsort((-policy, -visits))
    return [int(move) for move in order[:max_moves] if visits[move] > 0 or policy[move] > 0]


def draw_game(record: GameRecord, result: SearchResult) -> list[Image.Image]:
    """Draw a game: a frame for each position with the move that was played there, and one for the end.

    Args:
        record: the game.
        result: search in each position before a move.
    """
    frames = []
    for index, move in enumerate(record.moves):
        position = result.select(index)
        last_move = record.moves[index - 1] if index else None
        title = f"move {index + 1}: {record.game.player_names[index % 2]} {record.game.format_move(move)}"
        state = record.states[index]
        frames.append(draw_board(record.game, state, index % 2, title, last_move, position, move))
    title = f"{len(record.moves)} moves: {describe_outcome(record)}"
    frames.append(
        draw_board(record.game, record.state, record.player, title, record.moves[-1] if record.moves else None)
    )
    return frames


def plot_optimal_moves(kinds: Mapping[str, Mapping[str, float]]) -> Figure:
    """Plot the fractions of optimal moves: a group of bars for each kind of positions, a bar per simulations."""
    figure = Figure(figsize=(5.6, 2.8), layout="constrained")
    axes = figure.add_subplot()
    numbers = list(next(iter(kinds.values())))
    width = 0.8 / len(numbers)
    for index, number in enumerate(sorted(numbers, key=int)):
        heights = [100 * fractions[number] for fractions in kinds.values()]
        positions = np.arange(len(kinds)) + (index - (len(numbers) - 1) / 2) * width
        bars = axes.bar(positions, heights, 0.9 * width, label=f"{number} simulations", color=f"C{index}")
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(len(kinds)), list(kinds))
    axes.set_ylabel("optimal moves in %", fontsize=8)
    axes.set_ylim(0, 108)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def describe_outcome(record: GameRecord) -> str:
    """Describe the outcome of a game, as in ``black wins by 3.5``."""
    names, outcome = record.game.player_names, record.outcome
    if outcome is None:
        return "unfinished"
    if outcome == 0:
        return "draw"
    winner = names[0 if outcome > 0 else 1]
    if record.resigned is not None:
        return f"{winner} wins by resignation"
    if record.game.has_score:
        return f"{winner} wins by {abs(float(record.game.scores(record.state[None])[0])):g}"
    return f"{winner} wins"


def draw_board(
    game: Game,
    state: States,
    player: int,
    title: str = "",
    last_move: int | None = None,
    result: SearchResult | None = None,
    next_move: int | None = None,
) -> Image.Image:
    """Draw a position, and beside it the value, the policy and the visits of the search.

    Args:
        game: rules of the game.
        state: the position ``(S,)``.
        player: player on the move, 0 or 1.
        title: text above the panel.
        last_move: move that led to the position; it is marked on the board.
        result: search in this position, a batch of one.
        next_move: move that is played in the position; it is red in the panel.
    """
    stones = read_stones(game, state, player)
    board = Image.new("RGB", (SCALE * BOARD_SIZE, SCALE * BOARD_SIZE), "white")
    draw_stones = draw_go if isinstance(game, Go) else draw_columns if isinstance(game, ConnectFour) else draw_grid
    canvas = ImageDraw.Draw(board, "RGBA")  # blends translucent colors
    draw_stones(canvas, game, stones, last_move, result)
    page = Image.new("RGB", (BOARD_SIZE + PANEL_WIDTH + 3 * MARGIN, BOARD_SIZE + 2 * MARGIN), "white")
    page.paste(board.reduce(SCALE), (MARGIN, MARGIN))
    draw = ImageDraw.Draw(page)
    draw.text((PANEL_LEFT, MARGIN), title, TEXT_COLOR, ImageFont.load_default(24))
    if result is not None:
        value = float(result.values[0]) * (-1 if player else 1)
        draw_win_probability(draw, game, (1 + value) / 2)
        draw_moves(draw, game, result, next_move)
    return page


def draw_win_probability(draw: ImageDraw.ImageDraw, game: Game, probability: float) -> None:
    """Draw the win probability of the first player as a bar of two colors."""
    style, top, font = choose_style(game), MARGIN + 52, ImageFont.load_default(16)
    left, right = PANEL_LEFT, PANEL_LEFT + PANEL_WIDTH
    middle = left + PANEL_WIDTH * probability
    draw.rectangle((left, top, right, top + 22), fill=style.fills[1], outline=style.outlines[1])
    draw.rectangle((left, top, middle, top + 22), fill=style.fills[0], outline=style.outlines[0])
    draw.text((left, top + 28), f"{game.player_names[0]} {probability:.0%}", TEXT_COLOR, font)
    draw.text(((left + right) / 2, top + 28), "win probability", LABEL_COLOR, font, anchor="ma")
    draw.text((right, top + 28), f"{game.player_names[1]} {1 - probability:.0%}", TEXT_COLOR, font, anchor="ra")


def draw_moves(draw: ImageDraw.ImageDraw, game: Game, result: SearchResult, next_move: int | None) -> None:
    """Draw a table of the best moves with bars of their policy and visits."""
    top, font = MARGIN + 128, ImageFont.load_default(16)
    visits, policy = result.visits[0], result.policies[0]
    columns = [("policy", PANEL_LEFT + 60, policy, BAR_COLOR)]
    if visits.any():
        columns.append(("visits", PANEL_LEFT + 196, visits, VISITS_COLOR))
    draw.text((PANEL_LEFT, top), "move", LABEL_COLOR, font)
    for name, left, _, _ in columns:
        draw.text((left, top), name, LABEL_COLOR, font)
    for row, move in enumerate(rank_moves(result, MAX_MOVES)):
        y, is_next = top + 30 + 36 * row, move == next_move
        draw.text((PANEL_LEFT, y), game.format_move(move), MOVE_COLOR if is_next else TEXT_COLOR, font)
        for name, left, values, color in columns:
            width = 64 * float(values[move] / values.max())
            if width >= 1:
                draw.rectangle((left, y + 2, left + width, y + 17), fill=MOVE_COLOR if is_next else color)
            text = f"{values[move]:,}" if name == "visits" else f"{values[move]:.0%}"
            draw.text((left + width + 6, y), text, TEXT_COLOR, font)


def draw_columns(
    draw: ImageDraw.ImageDraw, game: Game, stones: Stones, last_move: int | None, result: SearchResult | None
) -> None:
    """Draw a board of Connect Four, row 0 at the bottom, with the columns and their visits below."""
    (rows, columns), style = game.shape, choose_style(game)
    cell = SCALE * BOARD_SIZE // columns
    draw.rounded_rectangle((0, 0, cell * columns - 1, cell * rows - 1), cell * 0.22, fill=BLUE_COLOR)
    heights = (stones > 0).sum(0)
    for column in range(columns):
        x = cell * (column + 0.5)
        for row in range(rows):
            y, stone = cell * (rows - row - 0.5), int(stones[row, column])
            if not stone:
                _draw_circle(draw, x, y, cell * 0.41, HOLE_COLOR)
                continue
            _draw_circle(draw, x, y, cell * 0.41, style.fills[stone - 1], style.outlines[stone - 1], cell * 0.05)
            if column == last_move and row == heights[column] - 1:
                _draw_circle(draw, x, y, cell * 0.11, TEXT_COLOR)
        label, y = game.format_move(column), cell * (rows + 0.3)
        draw.text((x, y), label, TEXT_COLOR, ImageFont.load_default(cell * 0.26), anchor="mm")
        if result is not None and result.visits.any():
            y = cell * (rows + 0.7)
            draw.text(
                (x, y), f"{result.visits[0, column]:,}", BAR_COLOR, ImageFont.load_default(cell * 0.2), anchor="mm"
            )


def draw_go(
    draw: ImageDraw.ImageDraw, game: Game, stones: Stones, last_move: int | None, result: SearchResult | None
) -> None:
    """Draw a Go board, row 0 at the bottom, with coordinates, and the visits of the best moves."""
    size, style, side = game.shape[0], choose_style(game), SCALE * BOARD_SIZE
    label_width, margin = SCALE * 22, SCALE * 8
    cell = (side - label_width - margin) / size
    xs = [label_width + cell * (index + 0.5) for index in range(size)]
    ys = [margin + cell * (size - index - 0.5) for index in range(size)]
    font = ImageFont.load_default(min(cell * 0.5, SCALE * 15))
    draw.rounded_rectangle((0, 0, side - 1, side - 1), SCALE * 6, fill=WOOD_COLOR)
    for index in range(size):
        width = 2 * SCALE if index in (0, size - 1) else SCALE
        draw.line((xs[0], ys[index], xs[-1], ys[index]), LINE_COLOR, width)
        draw.line((xs[index], ys[0], xs[index], ys[-1]), LINE_COLOR, width)
        draw.text((xs[index], side - SCALE * 12), game.format_move(index)[0], LINE_COLOR, font, anchor="mm")
        draw.text((SCALE * 13, ys[index]), str(index + 1), LINE_COLOR, font, anchor="mm")
    for row, column in list_star_points(size):
        _draw_circle(draw, xs[column], ys[row], max(cell * 0.07, 2.5 * SCALE), LINE_COLOR)
    for row, column in np.argwhere(stones):
        stone = stones[row, column]
        fill, outline = style.fills[stone - 1], style.outlines[stone - 1]
        _draw_circle(draw, xs[column], ys[row], cell * 0.47, fill, outline, SCALE * 1.5)
        if last_move == row * size + column:
            _draw_circle(draw, xs[column], ys[row], cell * 0.12, MOVE_COLOR)
    if result is not None:
        points = {row * size + column: (xs[column], ys[row]) for row in range(size) for column in range(size)}
        draw_candidates(draw, points, cell, result)


def list_star_points(size: int) -> list[tuple[int, int]]:
    """List the star points of a Go board as rows and columns."""
    edge, middle = 3 if size >= 13 else 2, size // 2
    corners = [(row, column) for row in (edge, size - 1 - edge) for column in (edge, size - 1 - edge)]
    sides = [(edge, middle), (middle, edge), (size - 1 - edge, middle), (middle, size - 1 - edge)]
    return corners * (size >= 7) + sides * (size >= 19) + [(middle, middle)] * (size % 2)


def draw_candidates(
    draw: ImageDraw.ImageDraw, points: dict[int, tuple[float, float]], cell: float, result: SearchResult
) -> None:
    """Draw the visits of the best moves on the board, in circles that are stronger for more visits."""
    visits = result.visits[0]
    for move in rank_moves(result, MAX_CANDIDATES):
        if move in points and visits[move]:
            x, y = points[move]
            alpha = 60 + round(150 * float(visits[move] / visits.max()))
            _draw_circle(draw, x, y, min(cell * 0.42, SCALE * 28), (*BAR_COLOR, alpha))
            text = f"{visits[move]}"
            font = ImageFont.load_default(min(cell * 0.42, cell * 1.05 / len(text), SCALE * 18))
            draw.text((x, y), text, "white", font, anchor="mm")


def draw_grid(
    draw: ImageDraw.ImageDraw, game: Game, stones: Stones, last_move: int | None, result: SearchResult | None
) -> None:
    """Draw the board of another game as a grid, row 0 at the top, with the names of the players as stones."""
    (rows, columns), style, side = game.shape, choose_style(game), max(game.shape)
    cell = (SCALE * BOARD_SIZE - 2 * SCALE) / side
    left, top = SCALE + cell * (side - columns) / 2, SCALE + cell * (side - rows) / 2
    points = {}
    for index in range(rows * columns):
        x, y = left + cell * (index % columns + 0.5), top + cell * (index // columns + 0.5)
        points[index] = (x, y)
        fill = LAST_COLOR if has_cell_moves(game) and last_move == index else "white"
        corners = (x - cell / 2, y - cell / 2, x + cell / 2, y + cell / 2)
        draw.rectangle(corners, fill=fill, outline=GRID_COLOR, width=SCALE)
        if stone := int(stones.flat[index]):
            name = game.player_names[stone - 1]
            font = ImageFont.load_default(cell * 1.1 / len(name))
            _, above, _, below = draw.textbbox((x, y), name, font, anchor="mm")
            draw.text((x, 2 * y - (above + below) / 2), name, style.fills[stone - 1], font, anchor="mm")
    if result is not None and has_cell_moves(game):
        draw_candidates(draw, points, cell, result)


def has_cell_moves(game: Game) -> bool:
    """Return whether the moves are the cells of the board, perhaps with a pass after them."""
    return game.num_moves - game.has_pass == game.shape[0] * game.shape[1]


def _draw_circle(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    radius: float,
    fill: tuple[int, ...],
    outline: Color | None = None,
    width: float = 1,
) -> None:
    """Draw a circle around a point."""
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill, outline, round(width))
