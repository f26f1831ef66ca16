"""Gives every HTTP request an id: the client's X-Request-Id if it is plain, else a new one; answered and logged."""

from __future__ import annotations

import re
from ipaddress import ip_address
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.queue.request_context import CURRENT, RequestContext

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _accepted(Headers(scope=scope).getlist("x-request-id")) or uuid4().hex
        CURRENT.set(RequestContext(request_id, _address(scope)))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def _address(scope: Scope) -> str:
    """Whose the request seems to be: all of this machine may come through one proxy, so there it stands for itself."""
    host = (scope.get("client") or ("",))[0]
    try:
        is_shared = ip_address(host).is_loopback
    except ValueError:
        is_shared = True
    return uuid4().hex if is_shared else host


def _accepted(values: list[str]) -> str | None:
    """The client's id, if there is exactly one and it is safe in a log and a header."""
    return values[0] if len(values) == 1 and _PLAIN.fullmatch(values[0]) else None
