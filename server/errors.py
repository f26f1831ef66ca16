"""Every error a client can see: status, type and OpenAI's body. Messages never hold input, paths or traces."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
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


class ApiError(Exception):
    """An answer that is an error. `param` is a wire field's name, `code` a stable string, `retry_after` whole seconds."""

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
        return {
            "error": {"message": self.message, "type": _TYPES[self.status], "param": self.param, "code": self.code}
        }

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def add_error_handlers(app: FastAPI) -> None:
    """Placeholder until the HTTP branch is merged."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body, error.status, error.headers)

    app.add_exception_handler(ApiError, answer)
