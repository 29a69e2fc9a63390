"""Metrics of a server, in the text format of Prometheus."""

import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("fukami_requests", "Requests that ended.", ["path", "status"], registry=own)
        self.request_seconds = Histogram(
            "fukami_request_seconds", "Time to answer a request.", ["path"], buckets=BUCKETS, registry=own
        )
        self.predictions = Counter(
            "fukami_predictions", "Images: answered, refused, or late.", ["result"], registry=own
        )
        self.prediction_seconds = Histogram(
            "fukami_prediction_seconds", "Time to decode and predict an image.", buckets=BUCKETS, registry=own
        )
        self.in_flight = Gauge("fukami_requests_in_flight", "Requests that are not answered yet.", registry=own)
        self.queue_length = Gauge(
            "fukami_queue_length", "Requests that wait for a prediction or have one.", registry=own
        )

    def export_text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """Middleware that counts and times the requests to an application.

    Args:
        app: the application.
        metrics: where they are counted.
        paths: values of the label ``path``; any other path is "other", as a client can make up any number of them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        status = 0  # the client left before there was an answer

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        began = time.perf_counter()
        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, send_and_note_status)
            except Exception:
                status = 500
                raise
            finally:
                self.metrics.requests.labels(path, status or "none").inc()
                self.metrics.request_seconds.labels(path).observe(time.perf_counter() - began)
