"""The HTTP interface to a task: ``/`` for people, ``/predict``, ``/run`` and ``/health`` for programs."""

import asyncio
import contextlib
import html
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

import torch
from fastapi import FastAPI
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import Message, Receive

from fukami import image
from fukami.errors import Error, UsageError
from fukami.serving import page
from fukami.task import Task

T = TypeVar("T")
MOST = 64 * 2**20  # bytes in the body of a request
UNNAMED = "picture"  # what a picture is called that is the whole body and so has no name
HOW = "send pictures as fields of a form (curl -F file=@picture.png), or one as the body with its type (image/png)"
ALONE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; form-action 'self'"


def app(task: Task, about: dict[str, Any]) -> FastAPI:
    """The application that answers with ``task``.

    Args:
        task: loaded; it answers one picture at a time, in a thread of its own.
        about: what ``/run`` tells: ``runs``, ``recipe``, ``labels``, ``precision`` and ``versions``.
    """
    served = FastAPI(openapi_url=None)
    # One thread: a task is not made for several, and each one would get a team of torch's threads for itself. What
    # fukami.runtime sets for the thread that loads the task is set here again, so that the last digits are equal.
    worker = ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,))

    async def each(function: Callable[[Task, str, BinaryIO], T], request: Request) -> list[T]:
        """What the function makes of each picture of the request; between two of them others have their turn."""
        loop = asyncio.get_running_loop()
        async with uploads(request) as files:
            return [await loop.run_in_executor(worker, function, task, name, file) for name, file in files]

    def show(request: Request, sections: list[str], status: int = 200) -> HTMLResponse:
        text = page.page(about, str(request.base_url), sections)
        return HTMLResponse(text, status, {"Content-Security-Policy": ALONE})

    @served.get("/")
    async def form(request: Request) -> HTMLResponse:
        return show(request, [])

    @served.post("/")
    async def answered(request: Request) -> HTMLResponse:
        try:
            found = await each(drawn, request)
        except HTTPException as error:
            return show(request, [f"<p>{html.escape(error.detail)}</p>"], error.status_code)
        return show(request, [section for _, section in found], status([answer for answer, _ in found]))

    @served.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        answers = await each(answer_to, request)
        return JSONResponse(answers, status(answers))

    @served.get("/run")
    async def run() -> JSONResponse:
        return JSONResponse(about)

    @served.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @served.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @served.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "this should not happen; the server's messages on stderr say more"}, 500)

    return served


def answer_to(task: Task, name: str, file: BinaryIO) -> dict[str, Any]:
    """The answer as ``fukami predict`` prints it, or ``{"file", "error"}``."""
    return ask(task, name, file)[0]


def ask(task: Task, name: str, file: BinaryIO) -> tuple[dict[str, Any], Image.Image | None]:
    """The answer, and the picture where it could be read; who asks about many pictures should not keep them."""
    try:
        picture = image.read(file.read(), name=name)
        (answer,) = task.predict([picture])
    except Error as error:
        return {"file": name, "error": str(error)}, None
    return {"file": name, **answer}, picture


def drawn(task: Task, name: str, file: BinaryIO) -> tuple[dict[str, Any], str]:
    """The answer, and its section of the page."""
    answer, picture = ask(task, name, file)
    drawing = None
    if "error" not in answer:
        with contextlib.suppress(UsageError):  # a task that cannot draw still answers
            drawing = task.draw(picture, answer)
    return answer, page.section(answer, drawing)


def status(answers: list[dict[str, Any]]) -> int:
    """The status of a response: 200 where at least one picture was answered."""
    return 200 if any("error" not in answer for answer in answers) else 422


@contextlib.asynccontextmanager
async def uploads(request: Request) -> AsyncIterator[list[tuple[str, BinaryIO]]]:
    """The pictures that a request carries, each with the name that the client gives it; names are never opened.

    Raises:
        HTTPException: there is none (422), the body is of another type (415), too large (413) or cut off (400),
            or the server is stopped before all are answered (503).
    """
    if int(request.headers.get("content-length", 0)) > MOST:
        raise too_large()
    request = Request(request.scope, bounded(request.receive))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            async with request.form() as form:
                parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
                files = [(part.filename, part.file) for part in parts if part.filename]
                if not files:
                    raise HTTPException(422, f"there is no picture in the form; {HOW}")
                yield files
        elif kind.startswith("image/") or kind == "application/octet-stream":
            yield [(UNNAMED, io.BytesIO(await request.body()))]
        else:
            raise HTTPException(415, f"the body is of type {kind or 'unknown'}; {HOW}")
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the whole body had come") from None
    except asyncio.CancelledError:
        raise HTTPException(503, "the server is being stopped; send it again later") from None


def bounded(receive: Receive) -> Receive:
    """``receive`` for as many bytes as a body may have, also where the client did not say how many will come."""
    length = 0

    async def counted() -> Message:
        nonlocal length
        message = await receive()
        length += len(message.get("body", b""))
        if length > MOST:
            raise too_large()
        return message

    return counted


def too_large() -> HTTPException:
    """The refusal of a body that is too large."""
    return HTTPException(413, f"the request is larger than {MOST:,} bytes; send smaller or fewer pictures at once")
