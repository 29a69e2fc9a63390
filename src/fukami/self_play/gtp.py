"""Go engine that speaks the Go Text Protocol, version 2 (Farnebäck 2002, draft 2)."""

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO, TypeVar

from fukami.self_play.go import COLUMNS, Go
from fukami.self_play.match import RESIGN, GameRecord, Player, read_stones

PLAYERS = {"b": 0, "black": 0, "w": 1, "white": 1}
MAX_KOMI = 1000.0
Number = TypeVar("Number", int, float)


class GtpError(Exception):
    """Failure of a command; the message is that of the protocol."""


class GtpEngine:
    """Engine that plays Go.

    A color may move twice in a row, as when a controller places a handicap: the engine inserts a pass of the other
    color. After the end of the game, ``genmove`` passes.

    Args:
        games: the rules for each size of the board, the first one at the start; the command ``komi`` changes them.
        player: chooses the moves.
        name, version: name and version of the engine.
    """

    def __init__(self, games: Sequence[Go], player: Player, name: str, version: str) -> None:
        self.games, self.player, self.name, self.version = games, player, name, version
        self.game = games[0]
        self.is_running = True
        self.commands: dict[str, tuple[int, Callable[..., str]]] = {  # minimum number of arguments, and function
            "protocol_version": (0, lambda: "2"),
            "name": (0, lambda: self.name),
            "version": (0, lambda: self.version),
            "known_command": (1, lambda name: "true" if name in self.commands else "false"),
            "list_commands": (0, lambda: "\n".join(self.commands)),
            "quit": (0, self._quit),
            "boardsize": (1, self._set_board_size),
            "clear_board": (0, self._clear_board),
            "komi": (1, self._set_komi),
            "play": (2, self._play),
            "genmove": (1, self._generate_move),
            "undo": (0, self._undo),
            "showboard": (0, self._show_board),
            "final_score": (0, self._compute_final_score),
            "time_settings": (3, self._accept_time_settings),
            "time_left": (3, self._accept_time_left),
        }
        self._clear_board()

    def run(self, lines: Iterable[str], out: TextIO) -> None:
        """Execute the commands of some lines until ``quit`` or the end of the input."""
        for line in lines:
            response = self.respond(line)
            if response:
                out.write(response)
                out.flush()
            if not self.is_running:
                return

    def respond(self, line: str) -> str:
        """Execute a command and return the response; it is empty for a line without a command."""
        text = "".join(letter for letter in line.replace("\t", " ") if letter >= " " and letter != "\x7f")
        words = text.partition("#")[0].split()
        if not words:
            return ""
        identifier = words.pop(0) if re.fullmatch(r"\d+", words[0], re.ASCII) else ""
        name, *arguments = words or [""]
        try:
            if name not in self.commands:
                raise GtpError("unknown command")
            count, function = self.commands[name]
            if len(arguments) < count:
                raise GtpError("syntax error")
            return f"={identifier} {function(*arguments[:count])}".rstrip() + "\n\n"
        except GtpError as error:
            return f"?{identifier} {error}\n\n"

    def _quit(self) -> str:
        self.is_running = False
        return ""

    def _set_board_size(self, size: str) -> str:
        games = {game.shape[0]: game for game in self.games}
        number = _parse_number(int, size)
        if number not in games:
            raise GtpError("unacceptable size")
        self.game = games[number]
        return self._clear_board()

    def _clear_board(self) -> str:
        self.record = GameRecord(self.game)
        self.lengths: list[int] = []  # number of moves before each command that undo takes back
        return ""

    def _set_komi(self, text: str) -> str:
        komi = _parse_number(float, text)
        if not abs(komi) <= MAX_KOMI:  # nor NaN
            raise GtpError("syntax error")
        for game in self.games:
            game.komi = komi
        self._forget_search()
        return ""

    def _play(self, color: str, vertex: str) -> str:
        player, move = _parse_color(color), self._parse_vertex(vertex)
        length = len(self.record.moves)
        self._pass_unless_on_move(player)
        try:
            if not (self.record.is_over and move == self._pass_move):
                self.record.play(move)
        except ValueError:
            self._restore(length)
            raise GtpError("illegal move") from None
        self.lengths.append(length)
        return ""

    def _generate_move(self, color: str) -> str:
        player, length = _parse_color(color), len(self.record.moves)
        self._pass_unless_on_move(player)
        move = self._pass_move if self.record.is_over else self.player.choose_moves([self.record])[0]
        if move == RESIGN:
            self._restore(length)
            return "resign"
        if not self.record.is_over:
            self.record.play(move)
        self.lengths.append(length)
        return self.game.format_move(move)

    def _undo(self) -> str:
        if not self.lengths:
            raise GtpError("cannot undo")
        self._restore(self.lengths.pop())
        return ""

    def _show_board(self) -> str:
        return f"\n{format_board(self.record)}"

    def _compute_final_score(self) -> str:
        score = float(self.game.scores(self.record.state[None])[0]) * (-1 if self.record.player else 1)
        return f"{'B' if score > 0 else 'W'}+{abs(score):.1f}" if score else "0"

    def _accept_time_settings(self, main_time: str, period: str, stones: str) -> str:
        for text in (main_time, period, stones):
            _parse_number(int, text)
        return ""

    def _accept_time_left(self, color: str, seconds: str, stones: str) -> str:
        _parse_color(color)
        for text in (seconds, stones):
            _parse_number(int, text)
        return ""

    @property
    def _pass_move(self) -> int:
        return self.game.num_moves - 1

    def _pass_unless_on_move(self, player: int) -> None:
        """Insert a pass, which does not count toward the end, if the other color is on the move."""
        if self.record.player != player and not self.record.is_over:
            state = self.game.insert_pass(self.record.state)
            self._forget_search()
            self.record.play(self._pass_move)
            self.record.states[-1] = state

    def _forget_search(self) -> None:
        """Replace the record by a copy, which is another game for the search, so that it reuses no values."""
        self.record = copy.copy(self.record)

    def _restore(self, length: int) -> None:
        """Take back the moves after the first ``length``."""
        self._forget_search()  # an inserted pass may be replaced by a pass
        while len(self.record.moves) > length:
            self.record.undo()

    def _parse_vertex(self, text: str) -> int:
        """Parse a vertex or ``pass``; one beside the board is an illegal move."""
        if text.lower() == "pass":
            return self._pass_move
        if not re.fullmatch(r"[A-HJ-Za-hj-z][1-9]\d?", text, re.ASCII):
            raise GtpError("syntax error")
        try:
            return self.game.parse_move(text)
        except ValueError:
            raise GtpError("illegal move") from None


def format_board(record: GameRecord) -> str:
    """Format a position of Go as text with coordinates."""
    size = record.game.shape[0]
    header = f"   {' '.join(COLUMNS[:size])}"
    rows = [
        f"{row + 1:2} {' '.join('.XO'[stone] for stone in stones)} {row + 1}"
        for row, stones in enumerate(read_stones(record.game, record.state, record.player))
    ]
    return "\n".join([header, *reversed(rows), header, f"{record.game.player_names[record.player]} to move"])


def _parse_color(text: str) -> int:
    if text.lower() not in PLAYERS:
        raise GtpError("syntax error")
    return PLAYERS[text.lower()]


def _parse_number(kind: type[Number], text: str) -> Number:
    """Parse a number."""
    try:
        return kind(text)
    except ValueError:
        raise GtpError("syntax error") from None
