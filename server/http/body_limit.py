"""Takes in a request's body before the app runs: bounded in size and time, and in memory together with all others;
JSON only, never encoded.

The app then finds it whole, and its further reads see only the client's disconnect. By the first of these the app has
parsed the body and keeps none of its bytes.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.body_memory import BodyMemory, HeldBody
from server.http.error_response import send_error
from server.settings.sections import NetworkSettings


class _ClientGone(Exception):
    pass


class BodyLimit:
    def __init__(self, app: ASGIApp, settings: NetworkSettings) -> None:
        self._app = app
        self._settings = settings
        self._memory = BodyMemory(settings.max_buffered_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = self._memory.new_body()
        try:
            await self._answer(scope, receive, send, held)
        finally:
            held.release()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, held: HeldBody) -> None:
        try:
            self._check_size(scope)
            receive = await self._taken_in(Headers(scope=scope), receive, held)
        except ApiError as error:
            held.release()
            await send_error(send, error)
        except TimeoutError:
            held.release()
            late = ApiError(400, "the body did not arrive in time", code="body_timeout")
            await send_error(send, late, connection="close")
        except _ClientGone:
            return
        else:
            await self._app(scope, receive, send)

    def _check_size(self, scope: Scope) -> None:
        num_bytes = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        num_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if num_bytes > self._settings.max_header_bytes:
            raise ApiError(431, "the request line and headers are too large", code="headers_too_large")

    async def _taken_in(self, headers: Headers, receive: Receive, held: HeldBody) -> Receive:
        length = int(headers.get("content-length") or 0)
        if length == 0 and "transfer-encoding" not in headers:
            return receive
        if length > self._settings.max_body_bytes:
            raise self._too_large()
        _check_type(headers)
        async with asyncio.timeout(self._settings.body_timeout):
            await self._read(receive, held)
        return _replay(receive, held)

    async def _read(self, receive: Receive, held: HeldBody) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            piece = message.get("body", b"")
            if held.num_bytes + len(piece) > self._settings.max_body_bytes:
                raise self._too_large()
            held.add(piece)
            if not message.get("more_body", False):
                return

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._settings.max_body_bytes} bytes", code="body_too_large")


def _check_type(headers: Headers) -> None:
    """A body without a type is refused too: a browser sends such from any page, without asking us first."""
    media_type, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    is_json = media_type.strip().lower() == "application/json" and charset in {"", "utf-8", "utf8"}
    if not is_json or len(headers.getlist("content-type")) > 1:
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "content encodings are not supported", code="unsupported_content_encoding")


def _replay(receive: Receive, held: HeldBody) -> Receive:
    """The body as one message, then whatever the connection says."""
    is_told = False

    async def receive_again() -> Message:
        nonlocal is_told
        if is_told:
            held.release()
            return await receive()
        is_told = True
        return {"type": "http.request", "body": held.pop(), "more_body": False}

    return receive_again
