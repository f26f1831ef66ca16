"""The outermost layer: logs each answered request, counts those the batcher never saw, and answers 500 for our bugs.

It logs method, path, status and duration; never a query, a header or a body.
"""

from __future__ import annotations

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.error_response import send_error
from server.http.plain_path import plain
from server.observe.metrics import NO_STRATEGY, Metrics
from server.queue.request_context import CURRENT
from server.queue.ticket import Outcome

GENERATION = {  # path -> endpoint label
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}
CLIENT_GONE = 499  # logged only: there was nobody left to answer


class Access:
    def __init__(self, app: ASGIApp, metrics: Metrics, *, is_logged: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._is_logged = is_logged
        self._log = structlog.get_logger("access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        began = time.monotonic()
        try:
            await self._app(scope, receive, answer.send)
        except Exception as error:
            self._log.exception("unhandled exception", error=type(error).__name__)
            if answer.status is None:
                await send_error(answer.send, ApiError(500, "the server failed; the request id names it in the log"))
        finally:
            self._count(scope, answer.status)
            self._report(scope, answer.status or CLIENT_GONE, time.monotonic() - began)

    def _count(self, scope: Scope, status: int | None) -> None:
        endpoint = GENERATION.get(plain(scope["path"])) if scope["method"] == "POST" else None
        context = CURRENT.get()
        if endpoint is not None and context is not None and not context.is_submitted:
            self._metrics.requests.labels(endpoint, NO_STRATEGY, _outcome(status)).inc()

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        if self._is_logged:
            path = scope["path"][:256]
            self._log.info("request", method=scope["method"], path=path, status=status, seconds=round(seconds, 4))


class _Answer:
    """Notes the status that goes out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _outcome(status: int | None) -> Outcome:
    if status is None or status == CLIENT_GONE:
        return "cancelled"
    if status < 400:
        return "success"
    return "rejected" if status < 500 or status == 503 else "error"
