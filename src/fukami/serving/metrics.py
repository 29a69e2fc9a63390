"""Server metrics in the Prometheus text format."""

import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("fukami_requests", "Finished requests.", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "fukami_request_seconds", "Seconds to respond to a request.", ["path"], buckets=BUCKETS, registry=registry
        )
        self.predictions = Counter(
            "fukami_predictions", "Predictions by result: success, error or timeout.", ["result"], registry=registry
        )
        self.prediction_seconds = Histogram(
            "fukami_prediction_seconds", "Seconds per prediction, with decoding.", buckets=BUCKETS, registry=registry
        )
        self.in_flight = Gauge("fukami_requests_in_flight", "Requests in progress.", registry=registry)
        self.queue_length = Gauge(
            "fukami_queue_length", "Requests whose predictions are waiting or running.", registry=registry
        )

    def export_text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """Middleware that counts and times the requests to an application.

    Args:
        app: the application.
        metrics: counters.
        paths: values of the label ``path``; other paths are counted as "other", since clients can invent any number.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        status = 0  # stays 0 if the client disconnects before the response

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        start = time.perf_counter()
        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, send_and_record_status)
            except Exception:
                status = 500
                raise
            finally:
                self.metrics.requests.labels(path, status or "none").inc()
                self.metrics.request_seconds.labels(path).observe(time.perf_counter() - start)
