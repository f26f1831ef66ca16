"""Asks for `Authorization: Bearer KEY` on every path but the probes, decided on the raw ASGI path."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError
from server.http.error_response import send_error
from server.queue.request_context import CURRENT

OPEN_PATHS = frozenset({"/health", "/ready"})


class Auth:
    """Without keys every request passes. `open_paths` never need one."""

    def __init__(self, app: ASGIApp, keys: Sequence[bytes], open_paths: frozenset[str] = OPEN_PATHS) -> None:
        self._app = app
        self._digests = [sha256(key).digest() for key in keys]
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(401, "a valid API key is required: Authorization: Bearer KEY", code="invalid_api_key")
        await send_error(send, error, www_authenticate="Bearer")

    def _is_allowed(self, scope: Scope) -> bool:
        return not self._digests or scope["path"] in self._open_paths or self._has_key(scope["headers"])

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        values = [value for name, value in headers if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, key = values[0].partition(b" ")
        digest = sha256(key.strip()).digest()  # of equal length, so that the comparison tells nothing
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, whichever fits
        context = CURRENT.get()
        if context is not None and len(self._digests) > 1:
            context.tenant = digest.hex()[:16]
        return scheme.lower() == b"bearer" and any(matches)
