"""The HTTP application of a task: the page ``/`` and the API.

The routes of the API are ``/predict``, ``/run``, ``/health``, ``/ready`` and ``/metrics``.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import BinaryIO, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from fukami.data.parsing import Json
from fukami.engine.task import Task
from fukami.errors import Error, UsageError, convert_memory_errors
from fukami.serving import page, request_body
from fukami.serving.access import LOCAL_HOSTS, AccessMiddleware
from fukami.serving.metrics import CONTENT_TYPE, Metrics, MetricsMiddleware
from fukami.serving.request_body import FileKind
from fukami.serving.responses import PAGE_HEADERS, READ_METHODS, choose_status
from fukami.serving.worker import REQUEST_TIMEOUT, Slot, Worker
from fukami.style.task import StyleTransferTask

T = TypeVar("T")
PATHS = {"/", "/predict", "/run", "/health", "/ready", "/metrics"}
IMAGES = FileKind(
    "image",
    ("image/",),
    "send images as fields of a form (curl -F file=@image.png), or one as the body with its type (image/png)",
)


def create_app(
    task: Task,
    run_info: dict[str, Json],
    *,
    hosts: Collection[str] = LOCAL_HOSTS,
    token: str = "",
    request_timeout: float = REQUEST_TIMEOUT,
) -> FastAPI:
    """Create the application that serves the predictions of ``task``.

    Args:
        task: loaded task; it predicts one image or position at a time, in a separate thread.
        run_info: response of ``/run``: ``recipe``, ``members``, ``labels`` of a task with classes, ``precision`` and
            ``versions``.
        hosts: names and addresses of the server; see :class:`fukami.serving.access.AccessMiddleware`.
        token: token that clients have to send; "": none.
        request_timeout: maximum seconds per prediction, including time in the queue.

    Raises:
        UsageError: the task is a style transfer at the size of each image, which has no limit.
    """
    if isinstance(task, StyleTransferTask) and not task.options.longer_side:
        raise UsageError("the run keeps the size of images, and a photograph could take hours; add --set size=512")
    metrics = Metrics()
    worker = Worker(task, metrics, request_timeout)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not task.reads_positions:
            worker.decoder.start()
        yield
        worker.decoder.close()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.state.worker = worker
    app.add_middleware(AccessMiddleware, hosts=hosts, token=token)
    app.add_middleware(request_body.DrainMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=metrics, paths=PATHS)

    if task.reads_positions:
        from fukami.serving.boards import add_routes  # imports the extra self-play

        add_routes(app, worker, run_info, needs_token=bool(token))
    else:
        _add_image_routes(app, worker, run_info, needs_token=bool(token))

    @app.api_route("/run", methods=READ_METHODS)
    async def run() -> JSONResponse:
        return JSONResponse(run_info)

    _add_monitoring(app, worker)
    return app


def _add_monitoring(app: FastAPI, worker: Worker) -> None:
    """Add the monitoring routes and the error handlers."""

    @app.api_route("/health", methods=READ_METHODS)
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.api_route("/ready", methods=READ_METHODS)
    async def ready() -> JSONResponse:
        return JSONResponse({"status": "ready"}) if worker.is_ready else JSONResponse({"status": "busy"}, 503)

    @app.api_route("/metrics", methods=READ_METHODS)
    async def export_metrics() -> Response:
        return Response(worker.metrics.export_text(), media_type=CONTENT_TYPE)

    @app.exception_handler(HTTPException)
    async def build_http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def build_server_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(
            {"error": "internal server error: this should not happen; see the server's messages on stderr"}, 500
        )


def _add_image_routes(app: FastAPI, worker: Worker, run_info: dict[str, Json], *, needs_token: bool) -> None:
    """Add the routes of a task that predicts images.

    Args:
        app: the application.
        worker: prediction thread.
        run_info: description of the run.
        needs_token: whether clients have to send a token.
    """

    async def process_images(
        function: Callable[[Worker, Slot, str, BinaryIO], T], request: Request
    ) -> tuple[list[T], float | None]:
        """Call the function for each image of the request; other requests may run between two images.

        Returns the results and the minimum score of the request.
        """
        async with (
            request_body.open_request(request, worker, request_body.MAX_BODY_BYTES) as opened,
            request_body.read_uploads(opened, IMAGES) as uploads,
            request_body.watch_disconnect(opened) as disconnected,
        ):
            confidence = parse_confidence(uploads.options.get("confidence"))
            if confidence is not None and not hasattr(worker.task, "confidence"):
                raise HTTPException(422, "this run predicts no boxes; omit the field confidence")
            with worker.acquire_slot(confidence) as slot:
                calls = [partial(function, worker, slot, name, file) for name, file in uploads.files]
                return [await worker.run(slot, disconnected, call) for call in calls], confidence

    def show(
        request: Request,
        sections: Sequence[page.Section] = (),
        error: str = "",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        confidence: float | None = None,
    ) -> HTMLResponse:
        text = page.render_page(run_info, str(request.base_url), sections, error, needs_token, confidence)
        return HTMLResponse(text, status, {**PAGE_HEADERS, **(headers or {})})

    @app.api_route("/", methods=READ_METHODS)
    async def form(request: Request) -> HTMLResponse:
        return show(request)

    @app.post("/")
    async def predict_form(request: Request) -> HTMLResponse:
        try:
            results, confidence = await process_images(predict_section, request)
        except HTTPException as error:
            return show(request, error=error.detail, status=error.status_code, headers=error.headers)
        status = choose_status([prediction for prediction, _ in results])
        return show(request, [section for _, section in results], status=status, confidence=confidence)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        predictions, _ = await process_images(predict_file, request)
        return JSONResponse(predictions, choose_status(predictions))


def predict_file(worker: Worker, slot: Slot, name: str, file: BinaryIO) -> dict[str, Json]:
    """Run inference on a file; return the prediction as ``fukami predict`` prints it, or ``{"file", "error"}``."""
    return worker.predict(slot, name, file.read())[0]  # without the image, which would stay in memory


def predict_section(worker: Worker, slot: Slot, name: str, file: BinaryIO) -> tuple[dict[str, Json], page.Section]:
    """Run inference on a file; return the prediction and its section of the page."""
    prediction, image = worker.predict(slot, name, file.read())
    drawing = None
    if image is not None and "error" not in prediction and slot.num_drawn < page.MAX_DRAWINGS:
        slot.num_drawn += 1
        with contextlib.suppress(Error), convert_memory_errors(name):  # without a drawing the prediction is still shown
            drawing = worker.task.draw(image, prediction)
    return prediction, page.build_section(prediction, drawing)


def parse_confidence(value: object) -> float | None:
    """Parse the option ``confidence`` of a request; None if it is empty.

    Raises:
        HTTPException: 422, it is no number between 0 and 1.
    """
    if not value:
        return None
    try:
        confidence = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        confidence = math.nan
    if not 0 <= confidence <= 1:
        raise HTTPException(422, "confidence should be a number between 0 and 1, the minimum score of a predicted box")
    return confidence
