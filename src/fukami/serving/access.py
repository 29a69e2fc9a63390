"""Access control of a server: host names, origins and token."""

import base64
import binascii
import ipaddress
import re
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fukami.errors import UsageError

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
WILDCARD_ADDRESSES = {"0.0.0.0", "::"}  # addresses that listen on all interfaces
HOST_PATTERN = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/?#@\s]+))(?::\d+)?", re.IGNORECASE)
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
PUBLIC_PATHS = {"/health", "/ready"}  # paths without token
BASIC_CHALLENGE = 'Basic realm="fukami", charset="UTF-8"'


class AccessMiddleware:
    """Middleware that rejects unauthorized requests to an application.

    - 400: the host name is not allowed. This prevents DNS rebinding, in which a foreign page resolves its own host name
      to our address. IP addresses cannot be rebound: a server that listens on all interfaces accepts any of them.
    - 403: an unsafe method (POST) from a page of another origin, by the header ``Sec-Fetch-Site`` or else ``Origin``.
      Programs other than browsers send neither.
    - 401: the token is missing or wrong. It is a bearer token, or the password of basic authentication with any user
      name. ``/health`` and ``/ready`` need no token.

    Args:
        app: the application.
        hosts: allowed host names and addresses.
        token: expected token; "": no token is needed.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str) -> None:
        self.app, self.token = app, token.encode()
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject a request, or forward it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        extra_headers = {}
        if not self.is_allowed_host(headers.get("host", "")):
            status, error = 400, "this host name is not allowed; start the server with --allowed-hosts NAME to allow it"
        elif scope["method"] not in SAFE_METHODS and not is_same_origin(headers):
            status, error = 403, "the request comes from a page of another origin"
        elif (
            self.token
            and scope["path"] not in PUBLIC_PATHS
            and not self.is_authorized(headers.get("authorization", ""))
        ):
            status, error, extra_headers = (
                401,
                "send the token: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": BASIC_CHALLENGE},
            )
        else:
            await self.app(scope, receive, send)
            return
        await JSONResponse({"error": error}, status, extra_headers)(scope, receive, send)

    def is_allowed_host(self, host: str) -> bool:
        """Return whether a ``Host`` header is allowed, at any port."""
        match = HOST_PATTERN.fullmatch(host)
        if not match:
            return False
        name = (match[1] or match[2]).lower()
        return name in self.hosts or (bool(self.hosts & WILDCARD_ADDRESSES) and is_address(name))

    def is_authorized(self, authorization: str) -> bool:
        """Return whether an ``Authorization`` header has the token, compared in constant time."""
        scheme, _, credentials = authorization.partition(" ")
        token = credentials.strip().encode()
        if scheme.lower() == "basic":
            try:
                token = base64.b64decode(token, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return secrets.compare_digest(token, self.token)


def parse_host(text: str) -> str:
    """Return the host name or address of ``NAME``, ``NAME:PORT`` or ``[ADDRESS]:PORT``.

    Raises:
        UsageError: it is neither of them, such as a URL.
    """
    match = HOST_PATTERN.fullmatch(text)
    if not (match or is_address(text)):
        raise UsageError(f"--allowed-hosts should be names such as demo.example.com, not {text[:100]!r}")
    return text if match is None else match[1] or match[2]


def is_address(name: str) -> bool:
    """Return whether the name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(headers: Headers) -> bool:
    """Return whether a request comes from a page of this server, or from no page."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:  # such as http://[
        return False
