"""Bodies of requests: bounded as they are read, and read to their end before a refusal."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fukami.serving.worker import Worker

MAX_BODY_BYTES = 64 * 2**20  # bytes in the body of a request


class BoundedBody:
    """``receive`` for as many bytes as a body, and all bodies, may have, whatever the client says will come."""

    def __init__(self, receive: Receive, worker: Worker) -> None:
        self.receive, self.worker, self.length = receive, worker, 0

    async def __call__(self) -> Message:
        """Receive the next part, where there is room for it."""
        message = await self.receive()
        length = len(message.get("body", b""))
        self.length += length
        self.worker.reserve_bytes(length)
        if self.length > MAX_BODY_BYTES:
            raise build_size_error()
        return message


class DrainMiddleware:
    """Middleware that reads what is left of a body before a response, and forgets it.

    A connection that is closed with bytes unread is reset, and the client never sees why it was refused. At most as
    many bytes are read as a body may have, in the time that one has.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        # A client that expects to be told to continue has sent nothing.
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
    """The refusal of a body that is too large."""
    return HTTPException(
        413, f"the request is larger than {MAX_BODY_BYTES:,} bytes; send smaller or fewer images at once"
    )
