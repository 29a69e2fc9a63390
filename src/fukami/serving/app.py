"""The HTTP application of a task: the page ``/`` and the API.

The routes of the API are ``/predict``, ``/run``, ``/health``, ``/ready`` and ``/metrics``.
"""

import asyncio
import contextlib
import io
import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple, TypeVar

from fastapi import FastAPI
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from fukami.data.parsing import Json
from fukami.engine.task import Task
from fukami.errors import Error
from fukami.serving import page, request_body
from fukami.serving.access import LOCAL_HOSTS, AccessMiddleware
from fukami.serving.metrics import CONTENT_TYPE, Metrics, MetricsMiddleware
from fukami.serving.worker import REQUEST_TIMEOUT, ClientDisconnected, Slot, Worker

T = TypeVar("T")
MAX_FILES = 100  # images per request
PATHS = {"/", "/predict", "/run", "/health", "/ready", "/metrics"}
DEFAULT_NAME = "image"  # name of an image that is the request body
UPLOAD_HINT = "send images as fields of a form (curl -F file=@image.png), or one as the body with its type (image/png)"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Uploads(NamedTuple):
    """Content of a request.

    Attributes:
        files: images, each with the client's name for it, which is never opened as a path.
        confidence: minimum score of a predicted box; None: that of the run.
    """

    files: list[tuple[str, BinaryIO]]
    confidence: float | None


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
        task: loaded task; it predicts one image at a time, in a separate thread.
        run_info: response of ``/run``: ``recipe``, ``members``, ``labels``, ``precision`` and ``versions``.
        hosts: names and addresses of the server; see :class:`fukami.serving.access.AccessMiddleware`.
        token: token that clients have to send; "": none.
        request_timeout: maximum seconds per prediction, including time in the queue.
    """
    metrics = Metrics()
    worker = Worker(task, metrics, request_timeout)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.decoder.start()
        yield
        worker.decoder.close()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.add_middleware(AccessMiddleware, hosts=hosts, token=token)
    app.add_middleware(request_body.DrainMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=metrics, paths=PATHS)

    async def process_images(
        function: Callable[[Worker, Slot, str, BinaryIO], T], request: Request
    ) -> tuple[list[T], float | None]:
        """Call the function for each image of the request; other requests may run between two images.

        Returns the results and the minimum score of the request.
        """
        async with read_uploads(request, worker) as uploads, watch_disconnect(request) as disconnected:
            files, confidence = uploads
            with worker.acquire_slot(confidence) as slot:
                calls = [partial(function, worker, slot, name, file) for name, file in files]
                return [await worker.run(slot, disconnected, call) for call in calls], confidence

    def show(
        request: Request,
        sections: Sequence[page.Section] = (),
        error: str = "",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        confidence: float | None = None,
    ) -> HTMLResponse:
        text = page.render_page(run_info, str(request.base_url), sections, error, bool(token), confidence)
        return HTMLResponse(text, status, {**PAGE_HEADERS, **(headers or {})})

    @app.get("/")
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

    @app.get("/run")
    async def run() -> JSONResponse:
        return JSONResponse(run_info)

    _add_monitoring(app, worker)
    return app


def _add_monitoring(app: FastAPI, worker: Worker) -> None:
    """Add the monitoring routes and the error handlers."""

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": "ready"}) if worker.is_ready else JSONResponse({"status": "busy"}, 503)

    @app.get("/metrics")
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


def predict_file(worker: Worker, slot: Slot, name: str, file: BinaryIO) -> dict[str, Json]:
    """Run inference on a file; return the prediction as ``fukami predict`` prints it, or ``{"file", "error"}``."""
    return worker.predict(slot, name, file.read())[0]  # without the image, which would stay in memory


def predict_section(worker: Worker, slot: Slot, name: str, file: BinaryIO) -> tuple[dict[str, Json], page.Section]:
    """Run inference on a file; return the prediction and its section of the page."""
    prediction, image = worker.predict(slot, name, file.read())
    drawing = None
    if image is not None and "error" not in prediction:
        with contextlib.suppress(Error):  # a prediction that cannot be drawn is still shown
            drawing = worker.task.draw(image, prediction)
    return prediction, page.build_section(prediction, drawing)


def choose_status(predictions: Sequence[Mapping[str, Json]]) -> int:
    """Return the status of a response: 200 if at least one image has a prediction, else 422."""
    return 200 if any("error" not in prediction for prediction in predictions) else 422


@contextlib.asynccontextmanager
async def watch_disconnect(request: Request) -> AsyncIterator["asyncio.Future[None]"]:
    """Yield a future that is done when the client disconnects; the body must be read before."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    disconnected = asyncio.ensure_future(wait())
    try:
        yield disconnected
    finally:
        disconnected.cancel()


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


@contextlib.asynccontextmanager
async def read_uploads(request: Request, worker: Worker) -> AsyncIterator[Uploads]:
    """Yield the images of a request and its other options.

    Raises:
        HTTPException: there is no image or an invalid confidence (422), the body has another type (415), is too large
            (413) or incomplete (400), the server is full (429), or it stops before all images are predicted (503).
    """
    if int(request.headers.get("content-length", 0)) > request_body.MAX_BODY_BYTES:
        raise request_body.build_size_error()
    if worker.is_full:  # rejected before the body is read
        raise worker.build_busy_error()
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query_confidence = request.query_params.get("confidence", "")
    receive = request_body.BoundedBody(request.receive, worker)
    request = Request(request.scope, receive)
    try:
        if content_type == "multipart/form-data":
            async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
                parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
                files = [(part.filename, part.file) for part in parts if part.filename]
                if not files:
                    raise HTTPException(422, f"there is no image in the form; {UPLOAD_HINT}")
                yield Uploads(files, parse_confidence(form.get("confidence", query_confidence)))
        elif content_type.startswith("image/") or content_type == "application/octet-stream":
            files = [(DEFAULT_NAME, io.BytesIO(await request.body()))]
            yield Uploads(files, parse_confidence(query_confidence))
        else:
            raise HTTPException(415, f"the body is of type {content_type or 'unknown'}; {UPLOAD_HINT}")
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the end of the body") from None
    except ClientDisconnected:
        raise HTTPException(400, "the connection was closed before the response") from None
    except asyncio.CancelledError:
        raise HTTPException(503, "the server is stopping; try again later") from None
    finally:
        worker.release_bytes(receive.length)
