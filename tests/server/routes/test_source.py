"""What a model with an encoder makes of a request, over a fake engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest

from decoding.contract.frames import EncoderInfo
from server.served import Served
from server.text.tokenizer import Tokenizer
from tests.server.asking import ASKING, BEARING, BESIDE, Fields
from tests.server.fake_engine import FakeBatcher, make_app, saying

START, FORCED, EOS = 3, 5, 7


def encoding(served: Served) -> FakeBatcher:
    info = EncoderInfo(12, START, forced_bos_token_id=FORCED, forced_eos_token_ids=(EOS,), bad_words=((9,),))
    own = dataclasses.replace(served, encoder=info)
    return FakeBatcher(own, saying(own, "Hello world"))


async def post(batcher: FakeBatcher, **body: Any) -> httpx.Response:
    transport = httpx.ASGITransport(make_app(batcher), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/v1/completions", json={"prompt": [10, 11, 12]} | body)


async def test_the_prompt_is_the_source_and_the_decoder_starts_as_configured(served: Served) -> None:
    batcher = encoding(served)
    answer = await post(batcher, bad_words=["x"])
    (request,) = batcher.requests
    assert (request.source_ids, request.prompt_ids) == ((10, 11, 12), (START,))
    assert request.logits.forced_bos_token_id == FORCED
    assert request.logits.forced_eos_token_ids == (EOS,)
    assert (9,) in request.logits.bad_words
    assert len(request.logits.bad_words) > 1
    assert answer.json()["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("prompt", [[20, 21], [START, 20, 21]])
async def test_a_decoder_prompt_follows_the_start_token(served: Served, prompt: list[int]) -> None:
    batcher = encoding(served)
    await post(batcher, decoder_prompt=prompt, forced_bos_token_id=6)
    (request,) = batcher.requests
    assert request.prompt_ids == (START, 20, 21)
    assert request.logits.forced_bos_token_id == 6


async def test_a_source_is_bounded_by_the_encoder_and_not_by_the_context(served: Served) -> None:
    batcher = encoding(dataclasses.replace(served, max_model_len=8))
    assert (await post(batcher, prompt=[4] * 12, max_tokens=7)).status_code == 200
    refused = await post(batcher, prompt=[4] * 13)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_a_decoder_prompt_that_can_never_fit_is_not_encoded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Tokenizer._encode

    def only_none(self: Tokenizer, texts: list[str], *args: Any) -> Any:
        assert not any(texts)
        return encode(self, texts, *args)

    monkeypatch.setattr(Tokenizer, "_encode", only_none)
    refused = await post(encoding(served), decoder_prompt="7" * 100_000)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "decoder_prompt")


@pytest.mark.parametrize("body", [{"decoder_prompt": "x"}, {"forced_bos_token_id": 4}])
async def test_a_model_without_encoder_refuses_what_only_one_with_it_reads(
    served: Served, body: dict[str, Any]
) -> None:
    answer = await post(FakeBatcher(served, saying(served, "Hello")), **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(body))


async def listing(batcher: FakeBatcher) -> dict[str, Any]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(batcher)), base_url="http://test") as client:
        listed: dict[str, Any] = (await client.get("/v1/strategies")).json()
    return listed


@pytest.mark.parametrize("has_encoder", [False, True])
async def test_what_is_listed_as_available_is_what_is_taken(served: Served, has_encoder: bool) -> None:
    drafting = dataclasses.replace(served, beside=BESIDE)
    batcher = encoding(drafting) if has_encoder else FakeBatcher(drafting, saying(drafting, "Hello"))
    listed = await listing(batcher)
    asked: dict[str, Fields] = {"prompt_logprobs": {"prompt_logprobs": 1}, "decoder_prompt": {"decoder_prompt": "x"}}
    asked |= {"forced_bos_token_id": {"forced_bos_token_id": 4}}
    said = {name: name in listed["common"]["properties"] for name in asked}
    said |= {entry["id"]: entry["available"] for entry in (*listed["data"], *listed["steps"])}
    asked |= ASKING | {step["id"]: BEARING[step["id"]] for step in listed["steps"]}
    taken = {name: (await post(batcher, **asked[name])).status_code == 200 for name in said}
    assert said == taken
    assert [name for name, is_available in said.items() if not is_available]
    unavailable = {step["id"] for step in listed["steps"] if not step["available"]}
    assert all(unavailable.isdisjoint(each["combines_with"]) for each in listed["data"])


async def test_what_only_an_encoder_excludes_together_is_listed_there(served: Served) -> None:
    echo = {"keys": ["echo"], "others": ["logprobs"], "reason": "an encoder gives its source no log-probs"}
    assert echo in (await listing(encoding(served)))["exclusions"]
    assert echo not in (await listing(FakeBatcher(served, saying(served, "Hello"))))["exclusions"]
