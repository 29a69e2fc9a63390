"""Access to a server: by its own host names, from its own pages, with its token."""

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

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
WILDCARD_ADDRESSES = {"0.0.0.0", "::"}  # addresses to listen on that are all of a machine's
HOST_PATTERN = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/?#@\s]+))(?::\d+)?", re.IGNORECASE)
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
PUBLIC_PATHS = {"/health", "/ready"}  # that need no token
BASIC_CHALLENGE = 'Basic realm="fukami", charset="UTF-8"'


class AccessMiddleware:
    """Middleware that refuses requests to an application.

    - 400: to another host name, under which a page from elsewhere may have had a browser resolve our address (DNS
      rebinding). An IP address cannot be taken over so: where the server listens on all of them, any will do.
    - 403: that change something (POST) and come from a page of another origin, as browsers say in ``Sec-Fetch-Site``,
      or else in ``Origin``; a program says neither.
    - 401: without the token, where there is one. It is a bearer token, or the password of basic authentication (any
      user), which a browser asks for. ``/health`` and ``/ready`` need none.

    Args:
        app: the application.
        hosts: names and addresses that it has.
        token: "": none is needed.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str) -> None:
        self.app, self.token = app, token.encode()
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own = {}
        if not self.is_allowed_host(headers.get("host", "")):
            status, error = 400, "this host name is not served here; the server allows others with --allowed-hosts"
        elif scope["method"] not in SAFE_METHODS and not is_same_origin(headers):
            status, error = 403, "the request comes from a page of another origin"
        elif (
            self.token
            and scope["path"] not in PUBLIC_PATHS
            and not self.is_authorized(headers.get("authorization", ""))
        ):
            status, error, own = (
                401,
                "give the token: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": BASIC_CHALLENGE},
            )
        else:
            await self.app(scope, receive, send)
            return
        await JSONResponse({"error": error}, status, own)(scope, receive, send)

    def is_allowed_host(self, host: str) -> bool:
        """Whether a ``Host`` is one of ours, at any port."""
        found = HOST_PATTERN.fullmatch(host)
        if not found:
            return False
        name = (found[1] or found[2]).lower()
        return name in self.hosts or (bool(self.hosts & WILDCARD_ADDRESSES) and is_address(name))

    def is_authorized(self, authorization: str) -> bool:
        """Whether an ``Authorization`` has the token; the comparison takes as long for any token."""
        kind, _, given = authorization.partition(" ")
        content = given.strip().encode()
        if kind.lower() == "basic":
            try:
                content = base64.b64decode(content, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != "bearer":
            return False
        return secrets.compare_digest(content, self.token)


def is_address(name: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of the server itself, or from no page."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
