"""Headers and status of responses."""

from collections.abc import Mapping, Sequence

from fukami.data.parsing import Json

READ_METHODS = ["GET", "HEAD"]
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def choose_status(predictions: Sequence[Mapping[str, Json]]) -> int:
    """Return the status of a response: 200 if at least one file has a prediction, else 422."""
    return 200 if any("error" not in prediction for prediction in predictions) else 422
