"""What a model with an encoder makes of a request, over a fake engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest

from decoding.frames import EncoderInfo
from server.served import Served
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


@pytest.mark.parametrize("body", [{"decoder_prompt": "x"}, {"forced_bos_token_id": 4}])
async def test_a_model_without_encoder_refuses_what_only_one_with_it_reads(
    served: Served, body: dict[str, Any]
) -> None:
    answer = await post(FakeBatcher(served, saying(served, "Hello")), **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(body))
