"""The examples of /openapi.json, asked of the real server."""

from __future__ import annotations

import httpx
import pytest

from server.wire import examples
from tests.running_server import RunningServer

BODIES = {
    "/v1/completions": examples.COMPLETIONS,
    "/v1/chat/completions": examples.CHAT,
    "/tokenize": examples.TOKENIZE,
    "/detokenize": examples.DETOKENIZE,
}


@pytest.mark.parametrize("path", BODIES)
def test_every_example_is_answered(smol_server: RunningServer, path: str) -> None:
    for name, body in BODIES[path].items():
        answer = httpx.post(smol_server.url + path, json=body, timeout=300)
        assert answer.status_code == 200, (name, answer.text)
        assert not body.get("stream") or answer.text.endswith("data: [DONE]\n\n")
