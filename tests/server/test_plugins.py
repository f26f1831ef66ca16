"""A plugin's fields on the wire, in errors, in the catalogue and in the answer, over a fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from decoding.contract.frames import decode_to_worker, encode, request_of, submit_frame
from decoding.contract.params import BestOf
from decoding.contract.plugin_loading import load_plugins
from decoding.contract.plugins import NO_PLUGINS, PluginError, Plugins
from server.app import api_routers
from server.errors import add_error_handlers
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.wire.plugins import PLAIN, wire_types
from tests.decoding.plugin.world import EXAMPLES, examples
from tests.server.fake_engine import FakeBatcher

LOOKAHEAD = EXAMPLES / "lookahead.py"


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return examples()


@pytest.fixture
async def http(batcher: FakeBatcher, plugins: Plugins) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    for router in api_routers(cast(Batcher, batcher), Limits(), wire_types(plugins)):
        app.include_router(router)
    add_error_handlers(app)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def ask(http: httpx.AsyncClient, **fields: Any) -> Any:
    answer = await http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 4} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["decoding"]


async def refused(http: httpx.AsyncClient, **fields: Any) -> Any:
    answer = await http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 4} | fields)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


async def test_what_runs_is_told_with_the_plugin_s_version(http: httpx.AsyncClient) -> None:
    decoding = await ask(http, lookahead={"k": 3})
    assert decoding["strategy"] == "lookahead"
    assert decoding["effective"] | {"lookahead": {"k": 3}, "plugins": {"lookahead": "1.0"}} == decoding["effective"]


ASKING: dict[str, dict[str, Any]] = {
    "lookahead": {"lookahead": {}},
    "confident": {"confident": {"layers": [1, 2]}},
    "power": {"power": {"block": 2}, "temperature": 0.25},
    "phrase_ban": {"phrase_ban": {"phrases": ["dog", "cat"]}, "temperature": 0.5},
    "best_of": {"best_of": 3, "best_of_rank": "shortest"},
    "sampling": {"top_a": {"a": 0.2}},
}


@pytest.mark.parametrize("strategy", ASKING)
async def test_what_ran_can_be_sent_back(http: httpx.AsyncClient, strategy: str) -> None:
    first = await ask(http, **ASKING[strategy])
    again = await ask(http, **first["effective"])
    assert first["strategy"] == strategy
    assert again == first


@pytest.mark.parametrize("strategy", ASKING)
async def test_what_was_asked_reaches_the_worker(
    http: httpx.AsyncClient, batcher: FakeBatcher, plugins: Plugins, strategy: str
) -> None:
    await ask(http, **ASKING[strategy])
    (request,) = batcher.requests
    frame: Any = decode_to_worker(encode(submit_frame(1, request))[4:])
    assert request_of(frame, plugins) == request
    assert strategy == request.strategy.NAME


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"lookahead": {"k": 0}}, "lookahead.k", "must be greater than or equal to 1"),
        ({"lookahead": {"k": "3"}}, "lookahead.k", "must be a valid integer"),
        ({"lookahead": {"kk": 3}}, "lookahead.kk", "did you mean 'k'"),
        ({"lookahed": {"k": 3}}, "lookahed", "did you mean 'lookahead'"),
        ({"confident": {}}, "confident.layers", "is required"),
        ({"confident": {"layers": [2, 1]}}, "confident.layers", "must name 1 to 16 layers, in order"),
        ({"lookahead": {"k": 64}, "n": 2}, "n", "it returns one choice"),
        ({"lookahead": {}, "temperature": 0.5}, "temperature", "has no meaning with lookahead"),
        ({"lookahead": {}, "top_a": {"a": 0.1}}, "top_a", "it draws no token at random"),
        ({"lookahead": {}, "num_beams": 2}, "num_beams", "a request runs one strategy"),
        ({"power": {}, "temperature": 0}, "temperature", "its proposals are drawn"),
        ({"phrase_ban": {"phrases": [""]}}, "phrase_ban.phrases", "must be 1 to 256 texts"),
        ({"best_of": 2, "best_of_rank": "longest"}, "best_of_rank", "must be 'mean', 'sum' or 'shortest'"),
        ({"plugins": {"lookahead": "0.9"}}, "plugins", "it has"),
        ({"plugins": {"unknown": "1.0"}}, "plugins", "it has"),
        ({"plugins": 3}, "plugins", "a map from names of plugins to versions"),
    ],
)
async def test_refusals_name_the_field(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str, message: str
) -> None:
    error = await refused(http, **fields)
    assert error["param"] == param, error
    assert message in error["message"]


async def test_the_length_of_texts_is_bounded(http: httpx.AsyncClient) -> None:
    long = ["x" * 200] * 200
    many = {"phrase_ban": {"phrases": long * 2}}
    assert (await refused(http, **many))["param"] == "phrase_ban.phrases"


async def test_a_filter_asks_nothing_of_greedy_decoding(http: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(http, top_a={"a": 0.1}, temperature=0)
    assert batcher.requests[-1].logits.plugin_steps == ()


async def test_the_judge_is_named_to_the_worker(http: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    effective = (await ask(http, best_of=3, best_of_rank="shortest"))["effective"]
    assert effective["plugins"] == {"extras": "1.0"}
    assert batcher.requests[-1].strategy == BestOf(1, 3, "shortest")


async def test_chats_and_responses_take_it_too(http: httpx.AsyncClient) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "lookahead": {"k": 2}}
    answer = await http.post("/v1/chat/completions", json=chat)
    assert answer.json()["decoding"]["strategy"] == "lookahead", answer.text
    response = {"input": "hello", "max_output_tokens": 4, "lookahead": {"k": 2}}
    answer = await http.post("/v1/responses", json=response)
    assert answer.json()["decoding"]["strategy"] == "lookahead", answer.text


async def test_the_catalogue_and_the_schema_show_it(http: httpx.AsyncClient) -> None:
    catalogue = (await http.get("/v1/strategies")).json()
    entries = {entry["id"]: entry for entry in (*catalogue["data"], *catalogue["steps"])}
    assert entries["power"]["plugin"] == "power"
    assert entries["power"]["paper"] == "Karan & Du 2025, arXiv 2510.14901"
    assert "plugin" not in entries["beam"]
    assert "top_a" in entries["power"]["combines_with"]
    assert "top_a" not in entries["lookahead"]["combines_with"]
    (own,) = (each for each in entries["power"]["parameters"]["properties"]["power"]["anyOf"] if "properties" in each)
    assert own["properties"]["alpha"]["anyOf"][0] == {"maximum": 100, "minimum": 1, "type": "number"}
    assert {plugin["name"]: plugin["version"] for plugin in catalogue["plugins"]} == dict(examples().versions)
    (extras,) = (plugin for plugin in catalogue["plugins"] if plugin["name"] == "extras")
    assert extras["judges"] == [{"id": "shortest", "purpose": "The shortest text first.", "paper": None}]
    schema = (await http.get("/openapi.json")).json()
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
        body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        assert {"lookahead", "confident", "power", "phrase_ban", "top_a", "plugins"} <= body.keys()
    listed = (await http.get("/v1/models")).json()["data"][0]
    assert "phrase_ban" in str(listed)


def test_its_name_is_a_label_from_the_start(plugins: Plugins) -> None:
    text = Metrics("1", plugins.params).exposition().decode()
    assert 'polydecode_requests_total{endpoint="chat",outcome="success",strategy="phrase_ban"} 0.0' in text


def test_without_plugins_nothing_changes() -> None:
    assert wire_types(NO_PLUGINS) is PLAIN
    assert "plugins" not in PLAIN.completion.model_fields


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ('NAME = WITHIN = "lookahead"', 'NAME, WITHIN = "lookahead", "temperature"'),
            "temperature is a field of somebody else",
        ),
        (("Annotated[int, Within(1, 64)", "Annotated[dict"), "must be a number, a text"),
    ],
)
def test_a_field_that_cannot_be_ends_the_start(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    source = LOOKAHEAD.read_text(encoding="utf-8")
    assert change[0] in source
    (tmp_path / "mine.py").write_text(source.replace(*change))
    with pytest.raises(PluginError, match=f"plugin lookahead: .*{reason}"):
        wire_types(load_plugins([str(tmp_path / "mine.py")]))
