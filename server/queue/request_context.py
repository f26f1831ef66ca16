"""What the middleware and the batcher tell each other of one HTTP request; both run in the request's own task.

A request that reaches the batcher is counted there, when its tickets end; any other is counted by the middleware, from
its status.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class RequestContext:
    """address: the client's, or a random name where that may be a proxy's.

    is_submitted: the batcher counts this request.
    tenant: stands for the API key that came with it; "" unless the server has several keys.
    """

    request_id: str
    address: str = ""
    is_submitted: bool = False
    tenant: str = ""

    @property
    def client(self) -> str:
        """Whoever rows are shared out among: a key if there are several, else an address."""
        return f"key {self.tenant}" if self.tenant else self.address


CURRENT: ContextVar[RequestContext | None] = ContextVar("request", default=None)
