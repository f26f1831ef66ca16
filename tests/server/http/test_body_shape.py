"""The count of what a body holds: exact for JSON, and asked before the parser is."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.served import Served
from server.settings.limits import Limits
from server.wire import body as body_module
from server.wire.body_shape import shape_of
from tests.server.fake_engine import FakeBatcher, make_app, saying

LIMITS = Limits()
TEXT = st.text('\\"[]{},: a/') | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def parts_in(value: Any) -> int:
    if isinstance(value, str):
        return 1
    if isinstance(value, list):
        return 1 + sum(map(parts_in, value))
    return 1 + sum(1 + parts_in(inner) for inner in value.values()) if isinstance(value, dict) else 0


def fields_in(value: Any) -> int:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (len(value) if isinstance(value, dict) else 0) + sum(map(fields_in, held))


@given(VALUES, st.sampled_from([None, 1]))
def test_parts_and_fields_are_counted_whatever_stands_in_the_strings(value: Any, indent: int | None) -> None:
    for ascii_only in (True, False):
        shape = shape_of(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="replace"), 10**6)
        assert (shape.num_parts, shape.num_fields) == (parts_in(value), fields_in(value))


def test_values_are_never_counted_too_low() -> None:
    assert shape_of(b"[1, 2, [3, {}]]", 100).num_values >= 6
    assert shape_of(b'{"prompt": [' + b",".join([b"7"] * 1000) + b"]}", 100).num_values in range(1001, 1010)


HEAVY = {
    "lists": b'{"prompt":[' + b",".join([b"[]"] * (1 << 18)) + b"]}",
    "nested lists": b'{"prompt":' + b"[" * (1 << 18),
    "objects": b'{"prompt":[' + b",".join([b"{}"] * (1 << 18)) + b"]}",
    "strings": b'{"prompt":[' + b",".join([b'"a"'] * (1 << 18)) + b"]}",
    "names": b"{" + b",".join(b'"%d":1' % i for i in range(1 << 18)) + b"}",
    "numbers": b'{"prompt":[' + b",".join([b"1"] * (1 << 21)) + b"]}",
}


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("body", HEAVY.values(), ids=HEAVY)
async def test_a_body_of_too_many_objects_is_a_413_and_never_parsed(
    client: httpx.AsyncClient, body: bytes, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "from_json", None)
    answer = await client.post(url, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_the_limits_come_from_the_settings(served: Served) -> None:
    app = make_app(FakeBatcher(served, saying(served, "x")), Limits(max_body_values=20, max_body_parts=10))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for prompt, status in (([1] * 15, 200), ([1] * 20, 413), (["a"] * 7, 200), (["a"] * 9, 413)):
            assert (await client.post("/v1/completions", json={"prompt": prompt})).status_code == status


@pytest.mark.parametrize(
    "body",
    [b'{"prompt":"a","n":1,"n":1}', b'{"prompt":"a","sed":{"k":2,"k":2}}', b'{"prompt":"a","n":1,"\\u006e":2}'],
)
async def test_a_field_named_twice_is_refused_at_any_depth(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the body names a field twice")


async def test_colons_in_strings_are_no_fields(client: httpx.AsyncClient) -> None:
    body = {"prompt": 'a:"b": \\', "stop": [':"', "\\:"], "edt": {"theta": 1, "base": 1}}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
