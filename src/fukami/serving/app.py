"""The HTTP interface to a task: ``/`` for people, ``/predict``, ``/run``, ``/health``, ``/ready`` and ``/metrics``."""

import asyncio
import contextlib
import html
import io
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from typing import Any, BinaryIO, TypeVar

from fastapi import FastAPI
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from fukami.engine.task import Task
from fukami.errors import UsageError
from fukami.serving import page, request_body
from fukami.serving.access import LOCAL_HOSTS, AccessMiddleware
from fukami.serving.metrics import CONTENT_TYPE, Metrics, MetricsMiddleware
from fukami.serving.worker import DEADLINE, ClientDisconnected, Slot, Worker

T = TypeVar("T")
MAX_FILES = 100  # images in a request
PATHS = {"/", "/predict", "/run", "/health", "/ready", "/metrics"}
DEFAULT_NAME = "image"  # what an image is called that is the whole body and so has no name
UPLOAD_HINT = "send images as fields of a form (curl -F file=@image.png), or one as the body with its type (image/png)"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create_app(
    task: Task,
    run_info: dict[str, Any],
    *,
    hosts: Collection[str] = LOCAL_HOSTS,
    token: str = "",
    deadline: float = DEADLINE,
) -> FastAPI:
    """The application that answers with ``task``.

    Args:
        task: loaded; it answers one image at a time, in a thread of its own.
        run_info: what ``/run`` tells: ``recipe``, ``members``, ``labels``, ``precision`` and ``versions``.
        hosts: names and addresses of the server; see :class:`fukami.serving.access.AccessMiddleware`.
        token: what a client must know; "": nothing.
        deadline: seconds that an image has until it is answered, with the time that it waits.
    """
    metrics = Metrics()
    worker = Worker(task, metrics, deadline)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.decoder.start()
        yield
        worker.decoder.close()

    served = FastAPI(openapi_url=None, lifespan=lifespan)
    served.add_middleware(AccessMiddleware, hosts=hosts, token=token)
    served.add_middleware(request_body.DrainMiddleware)
    served.add_middleware(MetricsMiddleware, metrics=metrics, paths=PATHS)

    async def each(function: Callable[[Worker, Slot, str, BinaryIO], T], request: Request) -> list[T]:
        """What the function makes of each image of the request; between two of them others have their turn."""
        async with read_uploads(request, worker) as files, watch_disconnect(request) as gone:
            with worker.acquire_slot() as slot:
                calls = [partial(function, worker, slot, name, file) for name, file in files]
                return [await worker.run(slot, gone, call) for call in calls]

    def show(request: Request, sections: list[str], status: int = 200, own: Any = None) -> HTMLResponse:
        text = page.render_page(run_info, str(request.base_url), sections, bool(token))
        return HTMLResponse(text, status, PAGE_HEADERS | (own or {}))

    @served.get("/")
    async def form(request: Request) -> HTMLResponse:
        return show(request, [])

    @served.post("/")
    async def predict_form(request: Request) -> HTMLResponse:
        try:
            found = await each(predict_section, request)
        except HTTPException as error:
            return show(request, [f"<p>{html.escape(error.detail)}</p>"], error.status_code, error.headers)
        return show(request, [section for _, section in found], choose_status([answer for answer, _ in found]))

    @served.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        answers = await each(predict_file, request)
        return JSONResponse(answers, choose_status(answers))

    @served.get("/run")
    async def run() -> JSONResponse:
        return JSONResponse(run_info)

    _add_monitoring(served, worker)
    return served


def _add_monitoring(served: FastAPI, worker: Worker) -> None:
    """Add the routes for monitoring, and the handlers of errors."""

    @served.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @served.get("/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": "ready"}) if worker.is_ready else JSONResponse({"status": "busy"}, 503)

    @served.get("/metrics")
    async def export_metrics() -> Response:
        return Response(worker.metrics.export_text(), media_type=CONTENT_TYPE)

    @served.exception_handler(HTTPException)
    async def build_http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @served.exception_handler(Exception)
    async def build_server_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "this should not happen; the server's messages on stderr say more"}, 500)


def predict_file(worker: Worker, slot: Slot, name: str, file: BinaryIO) -> dict[str, Any]:
    """The answer as ``fukami predict`` prints it, or ``{"file", "error"}``."""
    return worker.predict(slot, name, file.read())[0]  # the image is not kept while others of the request are answered


def predict_section(worker: Worker, slot: Slot, name: str, file: BinaryIO) -> tuple[dict[str, Any], str]:
    """The answer, and its section of the page."""
    answer, image = worker.predict(slot, name, file.read())
    drawing = None
    if "error" not in answer:
        with contextlib.suppress(UsageError):  # a task that cannot draw still answers
            drawing = worker.task.draw_prediction(image, answer)
    return answer, page.render_prediction(answer, drawing)


def choose_status(predictions: list[dict[str, Any]]) -> int:
    """The status of a response: 200 where at least one image was answered."""
    return 200 if any("error" not in answer for answer in predictions) else 422


@contextlib.asynccontextmanager
async def watch_disconnect(request: Request) -> AsyncIterator["asyncio.Future[None]"]:
    """A future that is done when the client of a request, whose body has come, has left."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(wait())
    try:
        yield gone
    finally:
        gone.cancel()


@contextlib.asynccontextmanager
async def read_uploads(request: Request, worker: Worker) -> AsyncIterator[list[tuple[str, BinaryIO]]]:
    """The images that a request carries, each with the name that the client gives it; names are never opened.

    Raises:
        HTTPException: there is none (422), the body is of another type (415), too large (413) or cut off (400), there
            is no room for the request (429), or the server is stopped before all are answered (503).
    """
    if int(request.headers.get("content-length", 0)) > request_body.MAX_BODY_BYTES:
        raise request_body.build_size_error()
    if worker.is_full:  # nor is a body kept for nothing
        raise worker.build_busy_error()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    receive = request_body.BoundedBody(request.receive, worker)
    request = Request(request.scope, receive)
    try:
        if kind == "multipart/form-data":
            async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
                parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
                files = [(part.filename, part.file) for part in parts if part.filename]
                if not files:
                    raise HTTPException(422, f"there is no image in the form; {UPLOAD_HINT}")
                yield files
        elif kind.startswith("image/") or kind == "application/octet-stream":
            yield [(DEFAULT_NAME, io.BytesIO(await request.body()))]
        else:
            raise HTTPException(415, f"the body is of type {kind or 'unknown'}; {UPLOAD_HINT}")
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the whole body had come") from None
    except ClientDisconnected:
        raise HTTPException(400, "the connection was closed before the answer") from None
    except asyncio.CancelledError:
        raise HTTPException(503, "the server is being stopped; send it again later") from None
    finally:
        worker.release_bytes(receive.length)
