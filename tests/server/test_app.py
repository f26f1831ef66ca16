"""The layers around the routes, in process: keys, bodies, ids, errors, counting."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from server.app import create_app
from server.settings.limits import Limits
from server.settings.sections import NetworkSettings
from tests.server.fake_worker import ANSWER, NAN
from tests.server.tiny_api import router
from tests.server.world import SECONDS, World, until, world

NETWORK = NetworkSettings(max_body_bytes=2000, max_buffered_body_bytes=2000, max_header_bytes=4000, body_timeout=0.2)
BEARER = {"authorization": "Bearer right"}
PATH = "/v1/completions"


def changed(**fields: Any) -> NetworkSettings:
    return NetworkSettings(**{**NETWORK.model_dump(), **fields})


@asynccontextmanager
async def client(network: NetworkSettings, w: World, address: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(network, w.batcher, w.metrics, [router(w.batcher, Limits())])
    transport = httpx.ASGITransport(app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


@asynccontextmanager
async def api(
    plan: str = "{}", *, is_awaited: bool = True, network: NetworkSettings = NETWORK
) -> AsyncIterator[httpx.AsyncClient]:
    async with world(plan, is_awaited=is_awaited) as w, client(network, w) as http:
        yield http


def assert_error(answer: httpx.Response, status: int, code: str | None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert sorted(error) == ["code", "message", "param", "type"]


async def test_every_route_but_the_probes_and_metrics_needs_a_key() -> None:
    async with api(network=changed(api_key=("other", "right"))) as http:
        for path in ("/v1/completions", "/v1/models", "/nowhere", "/docs", "/health/x", "//health"):
            answer = await http.get(path)
            assert_error(answer, 401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/metrics"):
            assert (await http.get(path)).status_code == 200
        assert (await http.post(PATH, headers=BEARER, json={"prompt": [ANSWER]})).status_code == 200


async def test_a_balancer_may_ask_the_probes_for_their_head_only() -> None:
    async with api() as http:
        assert [(await http.head(path)).status_code for path in ("/health", "/ready")] == [200, 200]


async def test_metrics_can_be_locked_too() -> None:
    async with api(network=changed(api_key=("right",), metrics_auth=True)) as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers=BEARER)).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"right",
        b"Basic right",
        b"Bearer wrong",
        b"Bearer right2",
        b"Bearer \xff\xfe",
        b"Bearer r\xc3\xafght",
    ],
)
async def test_odd_keys_are_a_401(value: bytes) -> None:
    async with api(network=changed(api_key=("right",))) as http:
        assert_error(await http.get("/v1/models", headers=[(b"authorization", value)]), 401, "invalid_api_key")


async def test_a_key_may_hold_any_bytes_and_two_headers_are_refused() -> None:
    async with api(network=changed(api_key=("ключ",))) as http:
        value = b"bearer " + "ключ".encode()
        assert (await http.get("/nowhere", headers=[(b"authorization", value)])).status_code == 404
        assert (await http.get("/nowhere", headers=[(b"authorization", value)] * 2)).status_code == 401


async def test_a_body_too_large_is_a_413_with_and_without_a_length() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    async with api() as http:
        headers = {"content-type": "application/json"}
        assert_error(await http.post(PATH, content=b" " * 2001, headers=headers), 413, "body_too_large")
        assert_error(await http.post(PATH, content=chunks(), headers=headers), 413, "body_too_large")
        fits = json.dumps({"prompt": [ANSWER]}).encode().ljust(2000)
        assert (await http.post(PATH, content=fits, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"content-type": "application/jsonp"}, "unsupported_media_type"),
        ({"content-type": "application/json; charset=utf-16"}, "unsupported_media_type"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "unsupported_content_encoding"),
    ],
)
async def test_anything_but_plain_json_is_a_415(headers: dict[str, str], code: str) -> None:
    async with api() as http:
        assert_error(await http.post(PATH, content=b'{"prompt": [1]}', headers=headers), 415, code)


async def test_json_may_name_its_charset() -> None:
    async with api() as http:
        headers = {"content-type": 'Application/JSON; charset="UTF-8"'}
        assert (await http.post(PATH, content=b'{"prompt": [1]}', headers=headers)).status_code == 200


async def test_headers_too_large_are_a_431() -> None:
    async with api() as http:
        assert_error(await http.get("/health", headers={"x-long": "x" * 4000}), 431, "headers_too_large")
        assert_error(await http.get("/health", params={"q": "x" * 4000}), 431, "headers_too_large")


async def test_a_plain_request_id_comes_back_and_any_other_is_replaced() -> None:
    async with api() as http:
        for sent in ("abc-1.2_3", "x" * 128):
            assert (await http.get("/health", headers={"x-request-id": sent})).headers["x-request-id"] == sent
        for sent in ("", "a b", "x" * 129, "<script>", "ä".encode().decode("latin-1")):
            answer = await http.get("/health", headers=[(b"x-request-id", sent.encode("latin-1"))])
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert len((await http.get("/nowhere")).headers["x-request-id"]) == 32


async def test_our_bugs_are_a_500_without_detail_and_named_in_the_log() -> None:
    async with api() as http:
        with capture_logs() as lines:
            answer = await http.post(PATH, json={"prompt": [1], "fail": True})
        assert_error(answer, 500, None)
        assert "secret" not in answer.text
        assert [line["error"] for line in lines if "error" in line] == ["RuntimeError"]
        assert (await http.post(PATH, json={"prompt": [1]})).status_code == 200


async def test_refused_generation_requests_are_counted_once_each() -> None:
    async with world() as w, client(changed(api_key=("right",)), w) as http:

        def count(strategy: str, outcome: str) -> float:
            return w.count("requests_total", endpoint="completions", strategy=strategy, outcome=outcome)

        await http.post(PATH, json={"prompt": [ANSWER]})  # 401
        await http.post(PATH, content=b"x", headers=BEARER | {"content-type": "text/plain"})  # 415
        await http.post(PATH, json={"prompt": [ANSWER]}, headers=BEARER)
        await http.post(PATH, json={"prompt": [NAN]}, headers=BEARER)
        await http.get(PATH, headers=BEARER)  # 405, no generation request
        await http.post(PATH, json={"prompt": [1], "fail": True}, headers=BEARER)
        assert (count("none", "rejected"), count("none", "error")) == (2, 1)
        assert (count("sampling", "length"), count("sampling", "error")) == (1, 1)


async def test_the_probes_tell_loading_from_ready() -> None:
    async with api('{"load_seconds": 0.3}', is_awaited=False) as http:
        answer = await http.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
        assert int(answer.headers["retry-after"]) >= 1
        assert (await http.get("/health")).status_code == 200
        refused = await http.post(PATH, json={"prompt": [ANSWER]})
        assert_error(refused, 503, "loading")
        assert int(refused.headers["retry-after"]) >= 1
    async with api() as http:
        answer = await http.get("/ready")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_docs_are_served_only_when_asked_for() -> None:
    async with api() as http:
        assert [(await http.get(path)).status_code for path in ("/docs", "/openapi.json", "/redoc")] == [404] * 3
    async with api(network=changed(docs=True)) as http:
        assert [(await http.get(path)).status_code for path in ("/docs", "/openapi.json")] == [200, 200]


async def test_the_access_log_names_request_status_and_time_but_no_content() -> None:
    async with api() as http:
        with capture_logs() as lines:
            await http.post(f"{PATH}?secret=1", json={"prompt": [ANSWER, 77]}, headers={"x-request-id": "r1"})
        (line,) = [line for line in lines if line["event"] == "request"]
        assert (line["method"], line["path"], line["status"]) == ("POST", PATH, 200)
        assert "secret" not in str(lines)
        assert "77" not in str({name: value for name, value in line.items() if name != "seconds"})


async def test_no_origin_is_allowed() -> None:
    async with api() as http:
        answer = await http.options(PATH, headers={"origin": "http://x", "access-control-request-method": "POST"})
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_metrics_are_in_prometheus_text() -> None:
    async with api() as http:
        answer = await http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        assert "polydecode_running_requests 0.0" in answer.text


async def test_all_who_ask_for_the_metrics_at_once_share_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as w:
        threads: list[int] = []
        all_ask, exposition = threading.Event(), w.metrics.exposition

        def counted() -> bytes:
            threads.append(threading.get_ident())
            assert all_ask.wait(SECONDS)
            return exposition()

        monkeypatch.setattr(w.metrics, "exposition", counted)
        async with client(NETWORK, w) as http:
            asking = [asyncio.create_task(http.get("/metrics")) for _ in range(24)]
            await until(lambda: len(threads) > 0)
            asking.pop().cancel()
            for _ in range(100):  # each of them has come to its route
                await asyncio.sleep(0)
            all_ask.set()
            answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()


async def test_metrics_tell_what_was_before_they_were_asked_for() -> None:
    async with world() as w, client(NETWORK, w) as http:
        for count in range(3):
            assert f"polydecode_worker_restarts_total {count}.0" in (await http.get("/metrics")).text
            w.metrics.worker_lost()


async def test_a_failed_worker_makes_ready_say_so() -> None:
    async with world('{"crash_message": "x"}', is_awaited=False) as w, client(NETWORK, w) as http:
        await until(w.supervision.done)
        assert w.supervision.exception() is not None
        assert (await http.get("/ready")).json() == {"status": "worker_down"}
        assert (await http.get("/health")).status_code == 200


async def test_rows_are_shared_among_keys_or_else_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that comes from this machine may come through one proxy: there each request is a client."""

    async def clients_of(*keys: str, address: str) -> list[str]:
        clients: list[str] = []
        async with world() as w, client(changed(api_key=keys), w, address) as http:
            submit = w.batcher.submit

            def noting(reservation: Any, requests: Any, *rest: Any) -> Any:
                clients.extend(request.client for request in requests)
                return submit(reservation, requests, *rest)

            monkeypatch.setattr(w.batcher, "submit", noting)
            for key in (*keys, keys[0]):
                headers = {"authorization": f"Bearer {key}", "x-request-id": "the-same"}
                await http.post(PATH, json={"prompt": [ANSWER]}, headers=headers)
        return clients

    one, other, again = await clients_of("one", "other", address="127.0.0.1")
    assert one == again != other
    assert await clients_of("alone", address="192.0.2.7") == ["192.0.2.7"] * 2
    for address in ("127.0.0.1", "::1", ""):
        first, second = await clients_of("alone", address=address)
        assert first != second


async def test_cached_prompts_are_shared_only_among_requests_of_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cached_tokens` would confirm, page by page, what another key's prompt began with."""
    salts: list[str] = []

    async def salts_of(*keys: str) -> list[str]:
        salts.clear()
        async with world() as w, client(changed(api_key=keys), w) as http:
            submit = w.batcher.submit

            def noting(reservation: Any, requests: Any, *rest: Any) -> Any:
                salts.extend(request.cache_salt for request in requests)
                return submit(reservation, requests, *rest)

            monkeypatch.setattr(w.batcher, "submit", noting)
            for key in (*keys, keys[0]):
                await http.post(PATH, json={"prompt": [ANSWER]}, headers={"authorization": f"Bearer {key}"})
        return list(salts)

    one, other, again = await salts_of("one", "other")
    assert one == again != other
    assert "one" not in one
    assert await salts_of("alone") == ["", ""]
