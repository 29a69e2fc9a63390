"""Game between a person and a network in the terminal."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fukami.errors import format_names, require_extra
from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.game import Game
from fukami.self_play.go import COLUMNS, Go
from fukami.self_play.match import GameRecord, read_stones
from fukami.self_play.players import GameSearch
from fukami.self_play.plots import describe_outcome, has_cell_moves, list_star_points, rank_moves

with require_extra("self-play", "a game in the terminal"):
    from rich.console import Console
    from rich.text import Text

if TYPE_CHECKING:
    from fukami.self_play.search import SearchResult
    from fukami.self_play.task import SelfPlayTask

MAX_MOVES = 5  # best moves that are listed
MAX_LEGAL_MOVES = 12  # legal moves that a message lists
COMMANDS = "undo, hint or quit"
GO_STYLES = ("#6b4e24 on #deb878", "bold #141414 on #deb878", "bold #ffffff on #deb878")
COLUMN_STYLES = ("#5f8bd0 on #2654a0", "bold #facc30 on #2654a0", "bold #ff6b6b on #2654a0")
GRID_STYLES = ("dim", "bold blue", "bold red")  # of empty cells, and of the stones of both players


class TerminalGame:
    """Game between a person and a network in the terminal.

    Args:
        task: the task of a run of self-play.
        person: 0 if the person plays first, else 1.
        console: the terminal.
    """

    def __init__(self, task: "SelfPlayTask", person: int, console: "Console | None" = None) -> None:
        self.task, self.person = task, person
        self.console = Console(highlight=False, markup=False) if console is None else console
        self.record, self.names = GameRecord(task.game), task.game.player_names
        self.search = GameSearch(task, task.simulations)

    def play(self) -> GameRecord:
        """Play until the game is over, the person quits or the input ends, and return the game."""
        self.console.print(f"You are {self.names[self.person]}. Enter a move, {COMMANDS}.")
        self.print_board()
        while not self.record.is_over:
            if self.record.player != self.person:
                self.play_network_move()
            elif not self.execute_command(self.read_line()):
                return self.record
        if self.record.player != self.person:  # the last move was the person's
            self.print_board()
        self.console.print(f"{len(self.record.moves)} moves: {describe_outcome(self.record)}")
        return self.record

    def read_line(self) -> str:
        """Read a line of the person; the end of the input quits."""
        try:
            return self.console.input(f"{self.names[self.person]}: ").strip()
        except EOFError:
            self.console.print("\nThe input has ended.")
            return "quit"
        except UnicodeDecodeError:
            self.console.print("\nThe line is no text.")
            return ""

    def execute_command(self, line: str) -> bool:
        """Execute a command or a move of the person, and return whether the game continues."""
        command = line.lower()
        if command == "quit":
            self.console.print(f"The game is not finished: {len(self.record.moves)} moves.")
            return False
        if command == "hint":
            self.print_search(self.person, self.search.search(self.record))
        elif command == "undo":
            self.undo()
        elif line:
            self.play_move(line)
        return True

    def undo(self) -> None:
        """Take back the last move of the person, and what the network played after it."""
        if len(self.record.moves) < 2:
            self.console.print("You have not played yet: there is no move to undo.")
            return
        self.record.undo()
        self.record.undo()
        self.print_board()

    def play_move(self, text: str) -> None:
        """Play a move of the person, or explain why it is not possible."""
        game = self.record.game
        legal = [game.format_move(int(move)) for move in self.record.legal_moves]
        try:
            move = game.parse_move(text)
        except ValueError as error:
            self.console.print(f"{error}; enter a move such as {legal[0]}, or {COMMANDS}.")
            return
        try:
            self.record.play(move)
        except ValueError:
            self.console.print(f"{text} is illegal; the legal moves are {format_names(legal, MAX_LEGAL_MOVES)}.")

    def play_network_move(self) -> None:
        """Play the best move of the search, and print it with the value and the alternatives."""
        result = self.search.search(self.record)
        player, move = self.record.player, int(result.moves[0])
        self.record.play(move)
        self.print_board()
        self.console.print(f"{self.names[player]}: {self.record.game.format_move(move)}")
        self.print_search(player, result)

    def print_search(self, player: int, result: "SearchResult") -> None:
        """Print the win probability of the player on the move, and the best moves."""
        moves = [
            f"{self.record.game.format_move(move)} ({result.policies[0, move]:.0%}, {result.visits[0, move]:,})"
            for move in rank_moves(result, MAX_MOVES)
        ]
        probability = (1 + float(result.values[0])) / 2
        self.console.print(f"win probability of {self.names[player]}: {probability:.0%}")
        self.console.print(f"best moves (policy, visits): {', '.join(moves)}")

    def print_board(self) -> None:
        """Print the board."""
        is_plain = self.console.color_system is None or not self.console.encoding.startswith("utf")
        self.console.print(render_board(self.record, is_plain=is_plain))


class BoardTexts(NamedTuple):
    """Texts and styles of a board.

    Attributes:
        cells: texts of the empty cells, row by row.
        symbols: texts of the stones of both players.
        styles: styles of the empty cells and of the stones of both players.
        columns: labels of the columns, below the board, whose row 0 is then at the bottom; empty: no labels.
        rows: labels of the rows.
    """

    cells: list[str]
    symbols: tuple[str, str]
    styles: tuple[str, str, str]
    columns: list[str]
    rows: list[str]


def choose_board_texts(game: Game, *, is_plain: bool) -> BoardTexts:
    """Choose the texts of a board; a plain one has the initials of the players instead of colored stones."""
    rows, columns = game.shape
    first, second = game.player_names
    symbols = (first[0].upper(), second[0].upper()) if is_plain else ("●", "●")
    cells, row_labels = ["." if is_plain else "·"] * (rows * columns), [""] * rows
    if isinstance(game, Go):
        for row, column in list_star_points(columns):
            cells[row * columns + column] = "+"
        row_labels = [f"{row + 1:2} " for row in range(rows)]
        return BoardTexts(cells, symbols, GO_STYLES, list(COLUMNS[:columns]), row_labels)
    if isinstance(game, ConnectFour):
        return BoardTexts(cells, symbols, COLUMN_STYLES, list(map(game.format_move, range(columns))), row_labels)
    if has_cell_moves(game):
        cells = list(map(game.format_move, range(rows * columns)))
    return BoardTexts(cells, game.player_names, GRID_STYLES, [], row_labels)


def render_board(record: GameRecord, *, is_plain: bool) -> Text:
    """Render a board, with brackets around the stone of the last move; a plain one has no colors."""
    game, stones = record.game, read_stones(record.game, record.state, record.player)
    is_new = np.zeros_like(stones, bool)
    if record.moves:
        is_new = (stones > 0) & (read_stones(game, record.states[-2], 1 - record.player) == 0)
    texts, (rows, columns) = choose_board_texts(game, is_plain=is_plain), game.shape
    width = max(map(len, (*texts.cells, *texts.symbols)))
    lines = []
    for row in range(rows - 1, -1, -1) if texts.columns else range(rows):
        line = Text(texts.rows[row])
        for column in range(columns):
            stone = int(stones[row, column])
            cell = texts.symbols[stone - 1] if stone else texts.cells[row * columns + column]
            left, right = "[]" if is_new[row, column] else "  "
            line.append(f"{left}{cell:^{width}}{right}", "" if is_plain else texts.styles[stone])
        lines.append(line)
    if texts.columns:
        indent = " " * len(texts.rows[0])
        lines.append(Text(indent + "".join(f"{label:^{width + 2}}" for label in texts.columns).rstrip()))
    return Text("\n").join([Text(), *lines, Text()])
