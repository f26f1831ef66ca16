"""Refuses requests to a server that only this machine should reach, made under a name from elsewhere.

A web page can let its own name point to 127.0.0.1 (DNS rebinding) and then reads what a local server without a key
answers; the browser still sends the page's name as Host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError
from server.http.error_response import send_error

LOCAL_ENDINGS = (".localhost", ".local", ".internal")  # names that nobody can register


class HostNames:
    """`allowed`: further names, "*" for any."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not all(self._is_allowed(host) for host in _hosts(scope)):
            await send_error(
                send, ApiError(403, "unknown host name; see the setting allowed_hosts", code="unknown_host")
            )
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        name = _without_port(host).rstrip(".").lower()
        is_local = "." not in name or name.endswith(LOCAL_ENDINGS) or _is_address(name)
        return is_local or bool(self._allowed & {name, "*"})


def is_loopback(host: str) -> bool:
    """Whether whoever listens there is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _hosts(scope: Scope) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
