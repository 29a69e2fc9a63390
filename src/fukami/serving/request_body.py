"""Request bodies: size limits while reading, and draining before a rejection."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fukami.serving.worker import Worker

MAX_BODY_BYTES = 64 * 2**20  # bytes per request body


class BoundedBody:
    """``receive`` with limits on the size of the body and of all bodies, whatever its declared length."""

    def __init__(self, receive: Receive, worker: Worker) -> None:
        self.receive, self.worker, self.length = receive, worker, 0

    async def __call__(self) -> Message:
        """Receive the next part if it is within the limits."""
        message = await self.receive()
        length = len(message.get("body", b""))
        self.length += length
        self.worker.reserve_bytes(length)
        if self.length > MAX_BODY_BYTES:
            raise build_size_error()
        return message


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


def build_size_error() -> HTTPException:
    """Create the error for a body that is too large."""
    return HTTPException(
        413, f"the request is larger than {MAX_BODY_BYTES:,} bytes; send smaller or fewer images at once"
    )
