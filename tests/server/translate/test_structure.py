"""response_format and structured on the wire: what reaches the engine, and what is refused in which words."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from decoding.contract.params import Grammar
from server.errors import ApiError
from server.served import Served
from server.settings.limits import Limits
from server.text.grammar_check import MAX_WAITING, GrammarCheck
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying

URL = "/v1/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NESTED: dict[str, Any] = {"type": "string"}
for _ in range(70):
    NESTED = {"type": "array", "items": NESTED}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """With the one process that compiles for all of these tests."""
    plain = make_served()
    served = dataclasses.replace(plain, grammars=GrammarCheck(plain.tokenizer.special_tokens()))
    yield served
    served.grammars.close()


def form(schema: object, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}}


async def ask(client: httpx.AsyncClient, fields: dict[str, Any], url: str = URL) -> httpx.Response:
    own = {"prompt": "a"} if url == URL else {"messages": [{"role": "user", "content": "a"}]}
    return await client.post(url, json=own | fields)


async def refused(client: httpx.AsyncClient, fields: dict[str, Any]) -> tuple[str, str]:
    """The field to blame and what is said of it."""
    response = await ask(client, fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize("url", [URL, "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar("json_schema", '{"type":"object"}')),
        (form({"type": "null"}, strict=True), Grammar("json_schema", '{"type":"null"}')),
        (
            form({"uniqueItems": True}, strict=False, description="d"),
            Grammar("json_schema", '{"uniqueItems":true,"x-guidance":{"lenient":true}}'),
        ),
        ({"structured": {"json": {"type": "null"}}}, Grammar("json_schema", '{"type":"null"}')),
        ({"structured": {"regex": "[ab]+"}}, Grammar("regex", "[ab]+")),
        ({"structured": {"choice": ["yes", 'n"o', "é"]}}, Grammar("lark", r'start: "yes" | "n\"o" | "é"')),
        ({"structured": {"grammar": 'start: "a" <|im_start|>'}}, Grammar("lark", 'start: "a" <|im_start|>')),
    ],
)
async def test_a_form_reaches_the_engine_as_a_grammar(
    client: httpx.AsyncClient, batcher: FakeBatcher, url: str, fields: dict[str, Any], expected: Grammar
) -> None:
    response = await ask(client, fields, url)
    assert response.status_code == 200, response.text
    assert batcher.requests[-1].logits.grammar == expected
    effective = response.json()["decoding"]["effective"]
    again = await ask(client, {name: effective[name] for name in fields}, url)
    assert again.json()["decoding"]["effective"].keys() == effective.keys()
    assert batcher.requests[-1].logits.grammar == expected


async def test_text_asks_for_nothing(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    for fields in ({"response_format": {"type": "text"}}, {"response_format": None, "structured": None}):
        response = await ask(client, fields | {"min_tokens": 1})
        assert response.status_code == 200
        assert not {"response_format", "structured"} & response.json()["decoding"]["effective"].keys()
    assert {request.logits.grammar for request in batcher.requests} == {None}


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        (form({"type": "secret"}), "response_format.json_schema.schema", "no JSON schema"),
        (form({"type": "array", "uniqueItems": True}), "response_format.json_schema.schema", "uniqueItems"),
        (form({"type": "integer", "minimum": 5, "maximum": 3}), "response_format.json_schema.schema", "by nothing"),
        (form(SCHEMA | {"x-guidance": {}}), "response_format.json_schema.schema", "x-guidance"),
        (form(NESTED), "response_format.json_schema.schema", "at most 64 deep"),
        (form({"enum": ["x" * 70000]}), "response_format.json_schema.schema", "at most 65536 bytes"),
        (form([1]), "response_format.json_schema.schema", "must be an object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "goes with"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "x", "schema": {}}}},
         "response_format.json_schema", "goes with"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_object"),
        ({"structured": {}}, "structured", "exactly one"),
        ({"structured": {"regex": "a", "choice": ["b"]}}, "structured", "exactly one"),
        ({"structured": {"regex": "(secret"}}, "structured.regex", "regular expression"),
        ({"structured": {"regex": ""}}, "structured.regex", "from 1 to"),
        ({"structured": {"choice": []}}, "structured.choice", "from 1 to 1024"),
        ({"structured": {"choice": ["a", ""]}}, "structured.choice", "none of them empty"),
        ({"structured": {"choice": ["a"] * 1025}}, "structured.choice", "from 1 to 1024"),
        ({"structured": {"grammar": "start: secret"}}, "structured.grammar", "Lark"),
        ({"structured": {"grammar": "%llguidance {}\nstart: /a/"}}, "structured.grammar", "Lark"),
        ({"structured": {"xml": 1}}, "structured.xml", "unknown field"),
    ],
)  # fmt: skip
async def test_a_form_that_cannot_be_is_a_400_that_names_the_field_and_shows_no_input(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: dict[str, Any], field: str, words: str
) -> None:
    param, message = await refused(client, fields)
    assert param == field
    assert words in message
    assert "secret" not in message
    assert batcher.requests == []
    assert batcher.reserved == 0


async def test_a_grammar_that_never_compiles_is_refused_and_the_next_one_taken(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    endless = {"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}$"} for i in range(1, 40)]}
    _, message = await refused(client, form(endless))
    assert message.endswith("is too complex")
    assert (await ask(client, form(SCHEMA | {"title": "after"}))).status_code == 200
    assert len(batcher.requests) == 1


async def test_what_goes_on_behind_the_answer_does_not_go_with_a_form(client: httpx.AsyncClient) -> None:
    fields = {"structured": {"choice": ["a"]}, "cot_decoding": {"suffix": "So the answer is"}}
    assert (await refused(client, fields))[0] == "cot_decoding.suffix"


async def test_the_limits_are_settings(served: Served) -> None:
    batcher = FakeBatcher(served, saying(served, "x"))
    app = make_app(batcher, limits=Limits(max_schema_depth=2, max_choices=1))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert "at most 2 deep" in (await refused(client, form(SCHEMA)))[1]
        assert "from 1 to 1 " in (await refused(client, {"structured": {"choice": ["a", "b"]}}))[1]


async def test_answers_of_the_check_are_remembered_and_its_process_can_end() -> None:
    check = GrammarCheck()
    fine, broken = Grammar("regex", "a+"), Grammar("regex", "(")
    assert await check.problem(fine) is None
    first = await check.problem(broken)
    check.close()
    assert [await check.problem(fine), await check.problem(broken)] == [None, first]
    assert await check.problem(Grammar("json_schema", json.dumps(SCHEMA))) is None
    check.close()


def test_the_catalogue_knows_both(served: Served) -> None:
    from server.translate.catalogue import catalogue  # noqa: PLC0415

    entries = {step.id for step in catalogue(served, Limits()).steps}
    assert {"response_format", "structured"} <= entries


async def test_bounds_of_sixty_four_bits_are_taken(client: httpx.AsyncClient) -> None:
    for low, high in ((-(2**63), 2**63 - 1), (0, 2**64 - 1), (-(2**53) + 1, 2**53 - 1), (0, 2**32 - 1)):
        schema = {"type": "integer", "minimum": low, "maximum": high}
        assert (await ask(client, {"structured": {"json": schema}})).status_code == 200
        assert (await ask(client, form(schema, strict=True))).status_code == 200


async def test_a_bound_that_no_float_holds_is_refused_where_it_must_hold_and_left_out_elsewhere(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 2**53 + 1, "maximum": 9}}}
    assert await refused(client, {"structured": {"json": schema}}) == (
        "structured.json",
        "structured.json cannot be enforced exactly, for minimum is beyond what numbers here can hold: "
        "'minimum' at properties.a",
    )
    assert (await ask(client, form(schema, strict=False))).status_code == 200


async def test_a_form_that_need_not_hold_leaves_out_what_cannot(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b", "maxLength": 3}}}
    assert (await ask(client, form(schema, strict=False))).status_code == 200
    grammar = batcher.requests[-1].logits.grammar
    assert grammar is not None
    assert json.loads(grammar.text)["properties"] == {"a": {"type": "string", "maxLength": 3}}


async def test_questions_beyond_a_few_are_told_to_come_later_and_those_given_up_are_not_asked() -> None:
    check = GrammarCheck()
    asked: list[Grammar] = []
    is_asked, may_answer = threading.Event(), threading.Event()

    def ask_slowly(grammar: Grammar) -> None:
        asked.append(grammar)
        is_asked.set()
        may_answer.wait(60)

    check._ask = ask_slowly  # type: ignore[method-assign]
    grammars = [Grammar("regex", f"a{i}") for i in range(MAX_WAITING + 1)]
    waiting = [asyncio.create_task(check.problem(grammar)) for grammar in grammars[:MAX_WAITING]]
    await asyncio.to_thread(is_asked.wait, 60)
    with pytest.raises(ApiError) as refusal:
        await check.problem(grammars[-1])
    assert (refusal.value.status, refusal.value.code) == (429, "grammar_queue_full")
    for task in waiting[1:]:
        task.cancel()
    await asyncio.gather(*waiting[1:], return_exceptions=True)
    may_answer.set()
    assert await waiting[0] is None
    assert await check.problem(grammars[-1]) is None
    assert asked == [grammars[0], grammars[-1]]
