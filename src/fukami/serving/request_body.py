"""Request bodies: size limits while reading, disconnected clients, and draining before a rejection."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO, NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fukami.serving.worker import ClientDisconnected, Worker

MAX_BODY_BYTES = 64 * 2**20  # bytes per request body
MAX_FILES = 100  # files per request
CHARSETS = (b"utf-8", b"utf8", b"us-ascii")  # of forms; decoding others may fail, or take quadratic time (punycode)


class FileKind(NamedTuple):
    """Kind of the files that a server accepts.

    Attributes:
        name: noun, which is also the name of a file that is the request body.
        content_types: types of such a body, or their beginnings.
        hint: how to send files.
    """

    name: str
    content_types: tuple[str, ...]
    hint: str


class Uploads(NamedTuple):
    """Content of a request.

    Attributes:
        files: files, each with the client's name for it, which is never opened as a path.
        options: other fields of the form, and of the query.
    """

    files: list[tuple[str, BinaryIO]]
    options: Mapping[str, object]


class BoundedBody:
    """``receive`` with limits on the size of the body and of all bodies, whatever its declared length."""

    def __init__(self, receive: Receive, worker: Worker, max_bytes: int) -> None:
        self.receive, self.worker, self.max_bytes, self.length = receive, worker, max_bytes, 0

    async def __call__(self) -> Message:
        """Receive the next part if it is within the limits."""
        message = await self.receive()
        length = len(message.get("body", b""))
        self.length += length
        self.worker.reserve_bytes(length)
        if self.length > self.max_bytes:
            raise build_size_error(self.max_bytes)
        return message


@contextlib.asynccontextmanager
async def open_request(request: Request, worker: Worker, max_bytes: int) -> AsyncIterator[Request]:
    """Yield the request with a bounded body, to be read and processed within the context.

    Raises:
        HTTPException: the body is too large (413), incomplete (400), or a form in another character set than UTF-8
            (415), the server is full (429), the client disconnects (400), or the server stops before the response
            (503).
    """
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise build_size_error(max_bytes)
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    charset = parameters.get(b"charset", b"utf-8").lower()
    if kind == b"multipart/form-data" and charset not in CHARSETS:
        raise HTTPException(415, f"the form has the character set {charset[:40].decode('latin-1')!r}; send it as UTF-8")
    if worker.is_full:  # rejected before the body is read
        raise worker.build_busy_error()
    receive = BoundedBody(request.receive, worker, max_bytes)
    try:
        yield Request(request.scope, receive)
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the end of the body") from None
    except ClientDisconnected:
        raise HTTPException(400, "the connection was closed before the response") from None
    except asyncio.CancelledError:
        raise HTTPException(503, "the server is stopping; try again later") from None
    finally:
        worker.release_bytes(receive.length)


@contextlib.asynccontextmanager
async def read_uploads(request: Request, kind: FileKind) -> AsyncIterator[Uploads]:
    """Yield the files of a request, fields of a form or the whole body.

    Raises:
        HTTPException: there is no file (422), or the body has another type (415).
    """
    content_type = get_content_type(request)
    if content_type == "multipart/form-data":
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
            parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            files = [(part.filename, part.file) for part in parts if part.filename]
            if not files:
                raise HTTPException(422, f"there is no {kind.name} in the form; {kind.hint}")
            yield Uploads(files, {**request.query_params, **form})
    elif content_type.startswith((*kind.content_types, "application/octet-stream")):
        yield Uploads([(kind.name, io.BytesIO(await request.body()))], request.query_params)
    else:
        raise HTTPException(415, f"the body is of type {content_type or 'unknown'}; {kind.hint}")


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


def get_content_type(request: Request) -> str:
    """Return the media type of the body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class DrainMiddleware:
    """Middleware that reads and discards the rest of a body before a response.

    Closing a connection with unread bytes resets it, and the client never receives the error. The size limit and the
    timeout of a body apply.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        # A client that waits for "100 Continue" has not sent the body yet.
        more = ("content-length" in headers or "transfer-encoding" in headers) and "expect" not in headers

        async def receive_part() -> Message:
            nonlocal more
            message = await receive()
            more = more and message.get("more_body", False)
            return message

        async def drain_and_send(message: Message) -> None:
            length = 0
            while more and message["type"] == "http.response.start" and length <= MAX_BODY_BYTES:
                length += len((await receive_part()).get("body", b""))
            await send(message)

        await self.app(scope, receive_part, drain_and_send)


def build_size_error(max_bytes: int) -> HTTPException:
    """Create the error for a body that is too large."""
    return HTTPException(413, f"the request is larger than {max_bytes:,} bytes; send smaller or fewer files at once")
