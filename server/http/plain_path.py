"""A path of the API with doubled slashes or one at its end is served as the plain one; a redirect would lose a POST's
body.

Which paths are open without a key is decided before, on the path as it came: no other spelling of one is.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


def plain(path: str) -> str:
    return "/" + "/".join(name for name in path.split("/") if name)


class PlainPath:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = plain(scope["path"])
            if path.startswith("/v1/"):
                scope = {**scope, "path": path}
        await self._app(scope, receive, send)
