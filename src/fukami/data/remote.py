"""Random access to the bytes of a file or an HTTP object; after a lost connection, reading resumes."""

import functools
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

from fukami.errors import Error

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 6  # attempts in a row that receive no byte
RETRY_DELAY = 0.5  # seconds before the second attempt; doubled for each further one
TIMEOUT = 30.0  # seconds without a response
MAX_SKIP_BYTES = 1 << 20  # distance up to which bytes are discarded instead of sending a new request
RETRYABLE_STATUSES = {408, 425, 429}  # the client errors (400 to 499) after which a retry may succeed
NOT_FOUND_STATUSES = {403, 404, 410}  # a store may return 403 for a missing object


class NotFoundError(Error):
    """Error for a missing file or object."""


class Stream(Protocol):
    """Interface of a local file or an HTTP object."""

    @property
    def size(self) -> int | None:
        """Size in bytes, or None while unknown."""

    def read(self, start: int, count: int) -> bytes:
        """Read ``count`` bytes from ``start``, fewer at the end of the file. Reading forwards is cheap."""

    def close(self) -> None:
        """Close the file or connection."""


def open_stream(location: str) -> Stream:
    """Open the file at a path or the object at a URL.

    Raises:
        NotFoundError: the file does not exist; an object is requested when it is read.
    """
    return HttpStream(location) if is_url(location) else DiskStream(location)


def is_url(location: str) -> bool:
    """Return whether a location is a URL and not a path."""
    return re.match(r"https?://", location) is not None


class DiskStream:
    """Local file."""

    def __init__(self, path: str) -> None:
        try:
            self.file = Path(path).open("rb", buffering=0)  # noqa: SIM115  closed by close()
            self.size: int = Path(path).stat().st_size
        except OSError as error:
            raise NotFoundError(f"{path} cannot be opened ({error.strerror}); get it again, or omit it") from None

    def read(self, start: int, count: int) -> bytes:
        """Read bytes; see :meth:`Stream.read`."""
        self.file.seek(start)
        return self.file.read(max(0, min(count, self.size - start)))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class HttpStream:
    """HTTP object: one connection is read forwards, and a new one is opened for other positions.

    A server without ``Range`` support sends the object from its start; the preceding bytes are discarded.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.size: int | None = None
        self.response: http.client.HTTPResponse | None = None
        self.position = 0  # position of the response in the object

    def read(self, start: int, count: int) -> bytes:
        """Read bytes; see :meth:`Stream.read`.

        Raises:
            NotFoundError: the object does not exist.
            Error: all attempts failed.
        """
        content = bytearray()
        tries = 0
        while len(content) < count and (self.size is None or start + len(content) < self.size):
            try:
                chunk = self._read_next(start + len(content), count - len(content))
            except (ValueError, http.client.InvalidURL) as error:
                raise Error(f"{self.url} cannot be read ({error}); encode special characters, a space as %20") from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                code = _get_status(error)
                if code == 416:  # the object ends before this byte
                    break
                tries += 1
                if tries == MAX_ATTEMPTS or (code is not None and 400 <= code < 500 and code not in RETRYABLE_STATUSES):
                    kind = NotFoundError if code in NOT_FOUND_STATUSES else Error
                    raise kind(
                        f"{self.url} cannot be read ({error}); check the URL and that the server is up"
                    ) from None
                if tries > 1:  # no warning at first: a store closes idle connections
                    logger.warning(f"{self.url}: {error}; retrying (attempt {tries + 1} of {MAX_ATTEMPTS})")
                time.sleep(RETRY_DELAY * 2 ** (tries - 1))
                continue
            if not chunk:  # end of an object whose size the server did not send
                break
            content += chunk
            tries = 0
        return bytes(content)

    def close(self) -> None:
        """Close the connection."""
        if self.response is not None:
            self.response.close()
        self.response = None

    def _read_next(self, start: int, count: int) -> bytes:
        """Read up to ``count`` bytes from ``start``, from the open connection or a new one."""
        if self.response is None or not self.position <= start <= self.position + MAX_SKIP_BYTES:
            self.close()
            self.response = self._request(start)
        while self.position < start and self._receive(start - self.position):
            pass
        if self.position > start:
            raise ConnectionError("the response starts at another byte than requested")
        return self._receive(count)

    def _receive(self, count: int) -> bytes:
        """Read up to ``count`` of the next bytes."""
        assert self.response is not None
        chunk = self.response.read(min(count, MAX_SKIP_BYTES))
        if not chunk and self.size is not None:
            raise ConnectionError("the connection closed too early")
        self.position += len(chunk)
        return chunk

    def _request(self, start: int) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={start}-", "User-Agent": "fukami"})
        response: http.client.HTTPResponse = _build_opener().open(request, timeout=TIMEOUT)
        content_range = re.match(r"bytes (\d+)-\d+/(?:(\d+)|\*)", response.headers.get("Content-Range", ""))
        length = response.headers.get("Content-Length")
        if response.status == 206 and content_range:
            self.position, total = int(content_range[1]), content_range[2]
            self.size = int(total) if total else None
        else:
            self.position, self.size = 0, int(length) if length else None
        return response


@functools.cache
def _build_opener() -> urllib.request.OpenerDirector:
    """Build an opener for http and https only, so that no redirect leads to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _get_status(error: Exception) -> int | None:
    """Return the status of an error response, and close it; None for other errors."""
    if not isinstance(error, urllib.error.HTTPError):
        return None
    error.close()
    return error.code
