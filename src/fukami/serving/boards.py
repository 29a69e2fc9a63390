"""Routes of self-play: the page ``/`` on which a person plays against the network, and ``/predict``."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from torch import Tensor, nn

from fukami.data.parsing import Json
from fukami.errors import Error, UsageError, convert_memory_errors
from fukami.models.alphago import AlphaGoZero
from fukami.self_play.game import Game, States
from fukami.self_play.match import GameRecord, read_stones
from fukami.self_play.plots import describe_outcome
from fukami.self_play.positions import Position, parse_positions
from fukami.self_play.search import SearchResult
from fukami.self_play.task import SelfPlayTask
from fukami.serving import board_page, request_body
from fukami.serving.board_page import PageGame
from fukami.serving.game_requests import describe, parse_digits, parse_fields, parse_person, replay, undo
from fukami.serving.request_body import FileKind, Uploads
from fukami.serving.responses import PAGE_HEADERS, READ_METHODS, choose_status
from fukami.serving.worker import Slot, Worker

T = TypeVar("T")
MAX_SIMULATIONS = 1600  # per request; those of the run if it has more
MAX_REQUEST_BYTES = 2**20  # of a game or of files; the largest SGF file
MAX_POSITIONS = 1000  # per request
MAX_NAME_LENGTH = 200  # characters of a file's name, which each prediction repeats
CHUNK_SIZE = 16  # positions that are searched in parallel; other requests may run between two chunks
HEADERS = {
    **PAGE_HEADERS,
    "Content-Security-Policy": f"{PAGE_HEADERS['Content-Security-Policy']}; connect-src 'self'",
}
POSITIONS = FileKind(
    "positions",
    ("text/", "application/x-go-sgf"),
    "send a game as JSON (application/json) with the fields game, moves and simulations, or files of positions as "
    "fields of a form (curl -F file=@positions.txt), or one as the body with its type (text/plain)",
)


def add_routes(app: FastAPI, worker: Worker, run_info: dict[str, Json], *, needs_token: bool) -> None:
    """Add the routes of a run of self-play.

    Args:
        app: the application.
        worker: prediction thread of the run.
        run_info: description of the run.
        needs_token: whether clients have to send a token.
    """
    predictor = BoardPredictor(worker)
    worker.executor.submit(predictor.warm_up)
    new_game = PageGame(GameRecord(predictor.games[0]), 0, predictor.task.simulations)
    max_fields = max(game.max_moves for game in predictor.games) + 16

    def show(
        request: Request, shown: PageGame, error: str = "", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> HTMLResponse:
        address = str(request.base_url)
        text = board_page.render_board_page(run_info, address, predictor.games, shown, error, needs_token=needs_token)
        return HTMLResponse(text, status, {**HEADERS, **(headers or {})})

    async def run(request: Request, function: Callable[[Slot], T]) -> T:
        """Run a function in the worker thread; its errors have the status 422."""
        async with request_body.watch_disconnect(request) as disconnected:
            with worker.acquire_slot() as slot:
                try:
                    return await worker.run(slot, disconnected, partial(function, slot))
                except Error as error:
                    raise HTTPException(422, str(error)) from None

    @app.api_route("/", methods=READ_METHODS)
    async def form(request: Request) -> HTMLResponse:
        return show(request, new_game)

    @app.post("/")
    async def play(request: Request) -> HTMLResponse:
        try:
            async with request_body.open_request(request, worker, MAX_REQUEST_BYTES) as opened:
                form = await opened.form(max_files=0, max_fields=max_fields)
                fields, moves = dict(form), form.getlist("moves")
                shown = await run(opened, lambda slot: predictor.play(slot, fields, moves))
        except HTTPException as error:
            return show(request, new_game, error.detail, error.status_code, error.headers)
        return show(request, shown)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        async with request_body.open_request(request, worker, MAX_REQUEST_BYTES) as opened:
            if request_body.get_content_type(opened) == "application/json":
                content = await opened.body()
                return JSONResponse(await run(opened, lambda slot: predictor.predict_game(slot, content)))
            async with request_body.read_uploads(opened, POSITIONS) as uploads:
                predictions = await predict_files(predictor, opened, uploads)
                return JSONResponse(predictions, choose_status(predictions))


async def predict_files(predictor: "BoardPredictor", request: Request, uploads: Uploads) -> list[dict[str, Json]]:
    """Predict the positions of files, as ``fukami predict`` prints them."""
    predictions: list[dict[str, Json]] = []
    count = 0  # positions, also invalid ones
    async with request_body.watch_disconnect(request) as disconnected:
        with predictor.worker.acquire_slot() as slot:
            for name, file in ((name[:MAX_NAME_LENGTH], file) for name, file in uploads.files):
                try:
                    game = predictor.find_game(uploads.options.get("game"))
                    simulations = predictor.parse_simulations(parse_digits(uploads.options.get("simulations")))
                    read = partial(predictor.read_positions, slot, game, name, file.read(), MAX_POSITIONS - count)
                    positions = await predictor.worker.run(slot, disconnected, read)
                    count += len(positions)
                    for start in range(0, len(positions), CHUNK_SIZE):
                        chunk = positions[start : start + CHUNK_SIZE]
                        search = partial(predictor.predict_positions, slot, game, name, chunk, simulations)
                        predictions += await predictor.worker.run(slot, disconnected, search)
                except Error as error:
                    predictions.append({"file": name, "error": str(error)})
    return predictions


class InterruptibleNetwork(nn.Module):
    """Network whose predictions fail after the end of the request, so that a search stops.

    Args:
        network: the network for inference.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.slot = network, Slot()

    def forward(self, planes: Tensor) -> Any:
        """Compute the prediction for planes ``(N, C, H, W)``.

        Raises:
            ClientDisconnected: the request has ended.
        """
        self.slot.check_request()
        return self.network(planes)


class BoardPredictor:
    """Predictions of a network in games; all methods but :meth:`find_game` are called in the worker thread.

    Args:
        worker: prediction thread of the task.
    """

    def __init__(self, worker: Worker) -> None:
        assert isinstance(worker.task, SelfPlayTask)
        self.worker, self.task, self.games = worker, worker.task, worker.task.games

    @cached_property
    def network(self) -> InterruptibleNetwork:
        """Network of the search."""
        network: nn.Module = self.task.ema_model
        network = self.task.prepare_network(network) if isinstance(network, AlphaGoZero) else network
        return InterruptibleNetwork(network).eval()

    def warm_up(self) -> None:
        """Search once: the first search loads or compiles its code, which takes seconds."""
        self.search(Slot(), self.games[0], self.games[0].build_initial_state(), 1)

    def find_game(self, name: object) -> Game:
        """Find a game by name; None is the first one.

        Raises:
            UsageError: the run does not play it.
        """
        games = {game.name: game for game in self.games}
        if name is None:
            return self.games[0]
        if not isinstance(name, str) or name not in games:
            raise UsageError(f"game is {describe(name)}; expected {' or '.join(games)}")
        return games[name]

    def search(self, slot: Slot, game: Game, state: States, simulations: int) -> SearchResult:
        """Search from a position; the search stops when its request has ended.

        Raises:
            ClientDisconnected: the request has ended.
            Error: there is not enough memory.
        """
        self.task.select_game(game.name)
        self.network.slot = slot
        with convert_memory_errors("the search"), self.task.evaluation_mode():
            return self.task.search(state[None], simulations, model=self.network)

    def predict_game(self, slot: Slot, content: bytes) -> dict[str, Json]:
        """Predict the position of a game in JSON, and describe it.

        Raises:
            Error: a field is invalid, or a move is illegal.
        """
        with self.worker.observe_prediction(slot):
            fields = parse_fields(content)
            record = replay(self.find_game(fields.get("game")), fields.get("moves", []))
            simulations = self.parse_simulations(fields.get("simulations"))
            prediction: dict[str, Json] = {"move": None, "value": None, "policy": {}, "visits": {}, "simulations": 0}
            if not record.is_over:
                result = self.search(slot, record.game, record.state, simulations)
                prediction = self.task.describe_result(result)
            return {**prediction, **describe_position(record)}

    def play(self, slot: Slot, fields: Mapping[str, object], moves: Sequence[object]) -> PageGame:
        """Execute an action of the page: a move of the person and the reply, undo, hint or a new game.

        Raises:
            Error: a field is invalid, or a move is illegal.
        """
        with self.worker.observe_prediction(slot):
            action = fields.get("action", "show")
            if action not in ("show", "undo", "hint", "new"):
                raise UsageError(f"action is {describe(action)}; expected undo, hint or new")
            prefix = "new_" if action == "new" else ""
            person = parse_person(fields.get(f"{prefix}person", "0"))
            game = self.find_game(fields.get(f"{prefix}game"))
            simulations = self.parse_simulations(parse_digits(fields.get("simulations")))
            record = replay(game, [] if action == "new" else [*moves, *([fields["move"]] if "move" in fields else [])])
            if action == "undo":
                undo(record, person)
            count = len(record.moves)
            if not record.is_over and (record.player != person or action == "hint"):
                ply = count
            else:  # show the search of the network's last move again
                ply = count - 1 if record.player == person else count - 2
            if ply < 0:
                return PageGame(record, person, simulations)
            result = self.search(slot, game, record.states[ply], simulations)
            if ply == count and record.player != person:
                record.play(int(result.moves[0]))
            return PageGame(record, person, simulations, result, ply)

    def parse_simulations(self, value: object) -> int:
        """Parse the number of simulations; None is that of the run.

        Raises:
            UsageError: it is no integer, or out of range.
        """
        maximum = max(MAX_SIMULATIONS, self.task.simulations)
        if value is None:
            return self.task.simulations
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
            raise UsageError(f"simulations is {describe(value)}; expected an integer between 0 and {maximum:,}")
        return value

    def read_positions(self, slot: Slot, game: Game, name: str, content: bytes, limit: int) -> list[Position]:
        """Read the positions of a file, at most ``limit``.

        Raises:
            Error: the file is invalid or empty, or has more positions.
        """
        slot.check_request()
        try:
            positions = list(islice(parse_positions(content, name, game), limit + 1))
            if not positions:
                raise Error(f"{name} contains no positions")
            if len(positions) > limit:
                raise Error(f"{name} exceeds {MAX_POSITIONS:,} positions per request; send it in several requests")
        except Error:
            self.worker.metrics.predictions.labels("error").inc()
            raise
        return positions

    def predict_positions(
        self, slot: Slot, game: Game, name: str, positions: Sequence[Position], simulations: int
    ) -> list[dict[str, Json]]:
        """Predict positions of a file; the search stops when its request has ended."""
        self.network.slot = slot
        with self.worker.observe_prediction(slot), convert_memory_errors(name):
            self.task.select_game(game.name)
            predictions = self.task.predict_positions(name, positions, simulations=simulations, model=self.network)
            return [prediction for _, prediction in predictions]


def describe_position(record: GameRecord) -> dict[str, Json]:
    """Describe a position for programs; the rows of the board are from the top to the bottom, as on the page."""
    game, outcome = record.game, record.outcome
    stones = board_page.orient_rows(game, read_stones(game, record.state, record.player))
    return {
        "game": game.name,
        "board": stones.tolist(),
        "legal_moves": [game.format_move(int(move)) for move in record.legal_moves],
        "player": None if record.is_over else game.player_names[record.player],
        "over": record.is_over,
        "outcome": None if outcome is None else int(outcome),
        "result": describe_outcome(record) if record.is_over else None,
    }
