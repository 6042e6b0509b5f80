"""Checks of every request before the application sees it: host name, API key, content type and size."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from src.serving.errors import ApiError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN_PATHS = ("/health",)  # for health checks
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass
class Guard:
    """ASGI middleware that checks requests and refuses them with a JSON error.

    Attributes:
        app: The application behind it.
        key: The key that clients must send; None for none.
        max_body: The most bytes of a request's body.
        hosts: The allowed host names (`Host` header); None for any. This guards against DNS rebinding, where a foreign
            web page's own host name resolves to this machine.
        open_paths: Paths that need no key, beside `OPEN_PATHS`.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    key: str | None = None
    max_body: int = 1_000_000
    hosts: frozenset[str] | None = None
    open_paths: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
            body = await self._body(receive, headers) if scope["method"] in ("POST", "PUT", "PATCH") else None
        except ApiError as error:
            await _refuse(send, error)
            return
        if body is None:
            await self.app(scope, receive, send)
            return
        first: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return first.pop() if first else await receive()

        await self.app(scope, replay, send)

    def _check(self, scope: Scope, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name.lower() not in self.hosts:
            raise ApiError(403, "this server is called by another name; use 127.0.0.1 or localhost.", "forbidden_error")
        if self.key is not None and scope["path"] not in (*OPEN_PATHS, *self.open_paths):
            scheme, _, given = headers.get(b"authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode(), self.key.encode())
            if scheme.lower() != "bearer" or not is_right:
                raise ApiError(
                    401, "the key is missing or wrong; send Authorization: Bearer KEY.", "authentication_error",
                    code="invalid_api_key",
                )  # fmt: skip
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":  # HTML forms of foreign pages cannot send JSON
            raise ApiError(415, "requests are JSON; send Content-Type: application/json.", "invalid_request_error")

    async def _body(self, receive: Receive, headers: dict[bytes, str]) -> bytes:
        announced = headers.get(b"content-length", "0")
        parts: list[bytes] = []
        size = int(announced) if announced.isdigit() else 0
        received = 0
        while size <= self.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the request ended before its body did.", "invalid_request_error")
            parts.append(message.get("body", b""))
            received += len(parts[-1])
            size = max(size, received)
            if not message.get("more_body") and size <= self.max_body:
                return b"".join(parts)
        raise ApiError(
            413, f"the request has more than {self.max_body:,} bytes; make it shorter.", "invalid_request_error"
        )


async def _refuse(send: Send, error: ApiError) -> None:
    body = json.dumps(error.body()).encode()
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *([(b"www-authenticate", b"Bearer")] if error.status == 401 else []),
        *([(b"connection", b"close")] if error.status == 413 else []),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
