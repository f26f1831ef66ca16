"""One HTTP request as the access log and the counters see it, shared by the middleware and the batcher.

A request that reaches the batcher is counted there, when its tickets end; any other is counted by the middleware from
its status. The context variable is how the one learns of the other: both run in the request's own task.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class RequestContext:
    """address: the peer's, or a name of the request's own where that says nothing of whose it is.

    tenant: which of several API keys came with it; "" where there are no others to be kept apart from.
    """

    request_id: str
    address: str = ""
    is_submitted: bool = False
    tenant: str = ""

    @property
    def client(self) -> str:
        """Among whom the rows are shared out."""
        return f"key {self.tenant}" if self.tenant else self.address


CURRENT: ContextVar[RequestContext | None] = ContextVar("request", default=None)
