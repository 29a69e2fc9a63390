"""HTTP connections with deadlines, and a bound on their number."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT = (
    10.0  # seconds until the head of a request has come, from when the connection is open or free for the next one
)
BODY_TIMEOUT = 60.0  # seconds until its body has come: 64 MiB at 10 Mbit/s
SEND_TIMEOUT = 60.0  # seconds until a client has taken what is sent to it
TIMEOUT_BODY = b'{"error":"the body did not come within a minute; try again"}'
TIMEOUT_RESPONSE = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n" + (
    f"content-length: {len(TIMEOUT_BODY)}\r\n\r\n".encode() + TIMEOUT_BODY
)


class Connection(H11Protocol):
    """HTTP connection with a deadline for each of its phases, which replaces an idle one where there are too many.

    uvicorn limits only how long a connection idles after a response. Here a deadline, which no byte moves, ends one
    that waits for the head of a request, for its body, or for the client to take a response. Of more than
    ``max_connections`` connections the one that has waited longest for a head is closed, or else for a body: a new
    client is served while others idle. A connection whose request is being answered is not closed.

    Args:
        max_connections: connections at a time.
        settings: as uvicorn gives them.
    """

    def __init__(self, *, max_connections: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.max_connections = max_connections
        self.phase = ""
        self.phase_start = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection, and start the deadline of its first head."""
        if len(self.connections) >= self.max_connections:
            self.close_oldest()
        super().connection_made(transport)
        self.update_deadline()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and start the deadline of the phase that they begin."""
        super().data_received(data)
        self.update_deadline()

    def on_response_complete(self) -> None:
        """Start the deadline of the next head, or of the end of the connection."""
        super().on_response_complete()
        self.update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        if self.timer:
            self.timer.cancel()
        super().connection_lost(exc)

    def update_deadline(self) -> None:
        """Start the deadline of the phase that has begun, if one has."""
        phase = {h11.IDLE: "head", h11.SEND_BODY: "body"}.get(self.conn.their_state, "")
        if self.transport.is_closing():
            phase = "sent"
        if phase != self.phase:
            self.phase_start = self.loop.time()
            self.start_deadline(phase)

    def start_deadline(self, phase: str) -> None:
        """Start the deadline of a phase."""
        self.phase = phase
        if self.timer:
            self.timer.cancel()
        seconds = {"head": HEAD_TIMEOUT, "body": BODY_TIMEOUT, "sent": SEND_TIMEOUT}.get(phase)
        self.timer = self.loop.call_later(seconds, self.expire) if seconds else None

    def expire(self) -> None:
        """Close the connection, or wait for a client that still takes a response; one whose body is late learns why."""
        if self.phase == "head" and self.transport.get_write_buffer_size():
            self.start_deadline("sent")
            return
        if self.phase == "body" and not self.cycle.response_started:
            self.transport.write(TIMEOUT_RESPONSE)
        self.transport.abort()

    def is_busy(self) -> bool:
        """Whether a body or a response is on its way."""
        return self.phase == "body" or self.transport.get_write_buffer_size() > 0

    def close_oldest(self) -> None:
        """Close the connection that has waited longest, for a head rather than for a body or to take a response."""
        waiting = [each for each in self.connections if isinstance(each, Connection) and each.phase]
        oldest = min(waiting, key=lambda each: (each.is_busy(), each.phase_start), default=None)
        if oldest:
            self.connections.discard(oldest)
            oldest.transport.abort()
