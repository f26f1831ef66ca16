"""The OpenAI SDK against the real server and the real model: sync, async, streaming and raw answers, errors."""

from __future__ import annotations

import openai
import pytest

from tests.running_server import RunningServer

MODEL = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def sdk(smol_server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{smol_server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )


def test_chat_and_completion(sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24, logprobs=True)
    assert "Paris" in (chat.choices[0].message.content or "")
    assert chat.choices[0].logprobs is not None
    completion = sdk.completions.create(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in completion.choices[0].text
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 4


def test_a_stream_says_what_the_answer_says(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24)
    stream = sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24, stream=True)
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason


async def test_the_async_client_streams_several_at_once(smol_server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{smol_server.url}/v1", api_key="none", max_retries=0) as sdk:
        stream = await sdk.completions.create(
            model=MODEL, prompt=["One, two,", "Red, green,"], temperature=0, max_tokens=6, stream=True
        )
        seen = {choice.index async for chunk in stream for choice in chunk.choices}
        assert seen == {0, 1}


def test_the_raw_response_shows_the_headers(sdk: openai.OpenAI) -> None:
    raw = sdk.completions.with_raw_response.create(model=MODEL, prompt="Hi", max_tokens=1, user="somebody")
    assert raw.headers["x-ignored-params"] == "user"
    assert raw.headers["x-request-id"]
    assert raw.parse().choices


def test_models_are_listed(sdk: openai.OpenAI) -> None:
    assert [m.id for m in sdk.models.list()] == [MODEL]


def test_errors_are_the_sdks_own_classes(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.completions.create(model="gpt-4", prompt="Hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.completions.create(model=MODEL, prompt="Hi", n=2, extra_body={"penalty_alpha": 0.6, "top_k": 4})
    assert "penalty_alpha" in str(bad.value)
    with pytest.raises(openai.BadRequestError) as long:
        sdk.completions.create(model=MODEL, prompt=[5] * 9000)
    assert long.value.code == "context_length_exceeded"
