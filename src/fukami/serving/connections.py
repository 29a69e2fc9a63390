"""HTTP connections with timeouts and a maximum number."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT = 10.0  # seconds until the head of a request is complete, from the connection or the last response on
BODY_TIMEOUT = 60.0  # seconds until the body is complete: 64 MiB at 10 Mbit/s
SEND_TIMEOUT = 60.0  # seconds until a client has received the response
TIMEOUT_BODY = b'{"error":"the body was not complete within a minute; try again"}'
TIMEOUT_RESPONSE = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n" + (
    f"content-length: {len(TIMEOUT_BODY)}\r\n\r\n".encode() + TIMEOUT_BODY
)


class Connection(H11Protocol):
    """HTTP connection with a timeout for each phase, which replaces an idle one when there are too many.

    uvicorn limits only the idle time after a response. Here, fixed timeouts apply to the head of a request, to its body
    and to the client's receiving of the response. Beyond ``max_connections``, the connection that has waited longest
    for a head is closed, or else one that waits for a body: idle clients do not block new ones. A connection whose
    request is being processed is not closed.

    Args:
        max_connections: maximum number of open connections.
        settings: passed to uvicorn.
    """

    def __init__(self, *, max_connections: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.max_connections = max_connections
        self.phase = ""
        self.phase_start = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection, and start the timeout of its first head."""
        if len(self.connections) >= self.max_connections:
            self.close_oldest()
        super().connection_made(transport)
        self.update_timeout()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and start the timeout of the phase that they open."""
        super().data_received(data)
        self.update_timeout()

    def on_response_complete(self) -> None:
        """Start the timeout of the next head, or of the end of the connection."""
        super().on_response_complete()
        self.update_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        if self.timer:
            self.timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the timeout of the response, which the client does not receive as fast as it is sent."""
        super().pause_writing()
        self.update_timeout()

    def resume_writing(self) -> None:
        """End the timeout of the response."""
        super().resume_writing()
        self.update_timeout()

    def update_timeout(self) -> None:
        """Start the timeout of the current phase if it is new."""
        phase = {h11.IDLE: "head", h11.SEND_BODY: "body"}.get(self.conn.their_state, "")
        # a client that sends the next request before it receives the response to the last one waits for both
        is_unsent = phase == "head" and self.phase == "sent" and self.transport.get_write_buffer_size() > 0
        if self.transport.is_closing() or (not phase and self.flow.write_paused) or is_unsent:
            phase = "sent"
        if phase != self.phase:
            self.phase_start = self.loop.time()
            self.start_timeout(phase)

    def start_timeout(self, phase: str) -> None:
        """Start the timeout of a phase."""
        self.phase = phase
        if self.timer:
            self.timer.cancel()
        seconds = {"head": HEAD_TIMEOUT, "body": BODY_TIMEOUT, "sent": SEND_TIMEOUT}.get(phase)
        self.timer = self.loop.call_later(seconds, self.expire) if seconds else None

    def expire(self) -> None:
        """Close the connection, with a response if its body is late; wait if the client still receives a response."""
        if self.phase == "head" and self.transport.get_write_buffer_size():
            self.start_timeout("sent")
            return
        if self.phase == "body" and not self.cycle.response_started:
            self.transport.write(TIMEOUT_RESPONSE)
        self.transport.abort()

    def is_busy(self) -> bool:
        """Return whether a body or a response is being transferred."""
        return self.phase == "body" or self.transport.get_write_buffer_size() > 0

    def close_oldest(self) -> None:
        """Close the connection that has waited longest; those that wait for a head go first."""
        waiting = [
            connection for connection in self.connections if isinstance(connection, Connection) and connection.phase
        ]
        oldest = min(waiting, key=lambda connection: (connection.is_busy(), connection.phase_start), default=None)
        if oldest:
            self.connections.discard(oldest)
            oldest.transport.abort()
