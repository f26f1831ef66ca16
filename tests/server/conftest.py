"""The tiny served model, and a client for an application over a fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from server.served import Served
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    served = make_served()
    yield served
    served.grammars.close()


@pytest.fixture
def batcher(served: Served) -> FakeBatcher:
    return FakeBatcher(served, saying(served, "Hello world"))


@pytest.fixture
async def client(batcher: FakeBatcher) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(batcher), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
