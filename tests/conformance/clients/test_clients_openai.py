"""openai-python in strict response validation: responses, embeddings, stream helpers, the details of usage.

The other endpoints are asked in `test_openai_sdk.py`.
"""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.decoding.rounding_error import SMOLLM2_EMBEDDING
from tests.running_server import RunningServer

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
TEXTS = ["The cat sat on the mat.", "日本語 🙂"]


@pytest.fixture
def sdk(smol_server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{smol_server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )


def test_a_response_says_what_the_chat_says(sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=12)
    response = sdk.responses.create(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=12, store=False,
        include=["message.output_text.logprobs"], top_logprobs=2,
    )  # fmt: skip
    assert response.output_text == chat.choices[0].message.content
    assert response.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")
    assert chat.usage is not None
    assert response.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
    content = response.output[0].content[0]
    assert len(content.logprobs) == response.usage.output_tokens
    assert len(content.logprobs[0].top_logprobs) == 2


def test_a_response_s_stream_and_its_helper_gather_the_same_text(sdk: openai.OpenAI) -> None:
    plain = sdk.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=8)
    stream = sdk.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=8, stream=True)
    events = list(stream)
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{plain.status}")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == plain.output_text
    with sdk.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=60) as helper:
        final = helper.get_final_response()
    assert final.status == "completed"
    assert final.output_text.startswith(plain.output_text)


def test_a_conversation_is_sent_back_whole_and_a_previous_response_is_refused(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=8)
    history = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And of Spain?"}]
    second = sdk.responses.create(model=MODEL, instructions="Be brief.", input=history, max_output_tokens=4)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    with pytest.raises(openai.BadRequestError, match="nothing is stored") as refused:
        sdk.responses.create(model=MODEL, input="Hi", previous_response_id=first.id)
    assert refused.value.param == "previous_response_id"


def test_the_chat_stream_helper_gathers_text_logprobs_and_usage(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=1,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= set(kinds)
    plain = sdk.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=8)
    assert final.choices[0].message.content == plain.choices[0].message.content
    assert final.usage is not None
    assert final.usage.completion_tokens == 8


def test_embeddings_are_the_mean_of_transformers_hidden_states(
    sdk: openai.OpenAI, smol_server: RunningServer, smol_directory: Path
) -> None:
    """The SDK asks for base64 by itself, which its own strict validation refuses before it decodes it."""
    lax = openai.OpenAI(base_url=f"{smol_server.url}/v1", api_key="none", max_retries=0)
    packed = lax.embeddings.create(model=MODEL, input=TEXTS)
    plain = sdk.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert [item.embedding for item in packed.data] == [item.embedding for item in plain.data]
    tokenizer = AutoTokenizer.from_pretrained(smol_directory)
    model = AutoModelForCausalLM.from_pretrained(smol_directory, dtype=torch.float32)
    lists = [tokenizer(text).input_ids for text in TEXTS]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == sum(map(len, lists))
    by_ids = sdk.embeddings.create(model=MODEL, input=lists, encoding_format="float")
    for item, same, ids in zip(plain.data, by_ids.data, lists, strict=True):
        with torch.inference_mode():
            pooled = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0)
        torch.testing.assert_close(torch.tensor(item.embedding), pooled / pooled.norm(), rtol=0, atol=SMOLLM2_EMBEDDING)
        torch.testing.assert_close(torch.tensor(item.embedding), torch.tensor(same.embedding))
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model=MODEL, input="a", dimensions=8)
    assert refused.value.param == "dimensions"


def test_usage_details_are_true(sdk: openai.OpenAI) -> None:
    """The prompt's full pages are taken from the prefix cache the second time, and only there."""
    prompt = "She" + " reads a page of her own." * 20
    details = []
    for _ in range(2):
        usage = sdk.completions.create(model=MODEL, prompt=prompt, max_tokens=3, extra_body={"cache_salt": "us"}).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens is not None
        details.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
    (num_prompt, cold), (_, warm) = details
    assert cold == 0
    assert 0 < warm < num_prompt
    assert num_prompt - warm <= 64
