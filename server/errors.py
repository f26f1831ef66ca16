"""Every error a client can see: status, type and OpenAI's body. Messages never hold input, paths or traces."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "overloaded_error",
    431: "invalid_request_error",
    500: "internal_error",
    503: "unavailable_error",
    504: "timeout_error",
}

_MESSAGES = {
    401: "this needs an API key: Authorization: Bearer KEY",
    404: "no such route",
    405: "this route does not take that method",
    413: "the request is too large",
    415: "the content type must be application/json",
    500: "internal error",
}


class ApiError(Exception):
    """An error as answer. `param` is a wire field's name, `code` a stable string, `retry_after` whole seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": _TYPES[self.status], "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def too_long(limit: int, needed: str, field: str) -> ApiError:
    """A prompt that can never be served, in the words by which clients know it."""
    message = f"This model's maximum context length is {limit} tokens. However, {needed}."
    return ApiError(400, message, param=field, code="context_length_exceeded")


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of the application answer with OpenAI's body."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _bug)


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


async def _api_error(_: Request, error: Exception) -> Response:
    return error_response(error if isinstance(error, ApiError) else ApiError(500, _MESSAGES[500]))


async def _invalid_request(_: Request, __: Exception) -> Response:
    """FastAPI's own validation, of paths and queries: its messages would echo the input."""
    return error_response(ApiError(400, "the request is not valid"))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _bug(request, error)
    status = error.status_code if error.status_code in _TYPES else 400 if error.status_code < 500 else 500
    message = _MESSAGES.get(status, "the request is not valid")
    near = _meant(request) if status == 404 else None
    response = error_response(ApiError(status, f"{message}; did you mean {near}?" if near else message))
    response.headers.update(error.headers or {})
    if response.headers.get("allow") == "GET":
        response.headers["allow"] = "GET, HEAD"
    return response


def _meant(request: Request) -> str | None:
    """The route whose path lacks /v1 in this one, or has it with something before it."""
    path: str = request.scope["path"]
    _, v1, after = path.rpartition("/v1/")
    for guess in (f"/v1{path}", f"/v1/{after}", f"/{after}") if v1 else (f"/v1{path}",):
        for route in iter_route_contexts(request.app.routes):
            if route.original_route.matches({**request.scope, "path": guess})[0] is not Match.NONE:
                return route.path_format
    return None


async def _client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this; the status is the one that proxies log for it."""
    return Response(status_code=499)


async def _bug(_: Request, __: Exception) -> Response:
    """The server logs the traceback; the client learns nothing of it."""
    return error_response(ApiError(500, "internal error", code="internal_error"))
