"""An ApiError as an HTTP answer for the layers around the app: ASGI messages, or raw bytes where there is no ASGI."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.types import Send

from server.errors import ApiError


async def send_error(send: Send, error: ApiError, **headers: str) -> None:
    """Answers with the error. Header names are written with underscores: `www_authenticate="Bearer"`."""
    body = _body(error)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in _headers(error, body, headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def raw_answer(error: ApiError) -> bytes:
    """The whole HTTP/1.1 answer of a connection that is closed after it."""
    body = _body(error)
    headers = _headers(error, body, {"connection": "close"})
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _body(error: ApiError) -> bytes:
    return json.dumps(error.body).encode()


def _headers(error: ApiError, body: bytes, more: dict[str, str]) -> dict[str, str]:
    own = {name.lower(): value for name, value in error.headers.items()}
    named = {name.replace("_", "-"): value for name, value in more.items()}
    return {"content-type": "application/json", "content-length": str(len(body))} | own | named
