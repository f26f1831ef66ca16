"""A tiny T5 directory with a tokenizer of its own, served by `--model` alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM

from tests.goldens.seq2seq import T5, Seq2SeqSpec, build
from tests.running_server import running_server

SPEC = Seq2SeqSpec("served", "t5", T5, 16, 0, (1,))
TEXT = "a cat sat on the mat"
WORDS = (
    *("a", "cat", "sat", "on", "the", "mat", "dog", "ran", "in", "fog", "sun", "red", "big", "hat", "log", "hot"),
    *("pot", "run", "fun", "top", "bat", "rat"),
)


def tokenizer() -> tokenizers.Tokenizer:
    """Unigram pieces behind ▁ as T5's, every source ended by </s>."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny-t5")
    build(SPEC).save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def client(directory: Path) -> Iterator[httpx.Client]:
    flags = ("--model", str(directory), "--dtype", "float32", "--kv-memory", "0.05", "--max-rows", "16")
    with running_server(*flags) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 8, "return_token_ids": True} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def hf(directory: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(directory)


@torch.no_grad()
def greedy(hf: Any, prompt: list[int]) -> list[int]:
    """By whole forwards of transformers'."""
    ids = list(prompt)
    for _ in range(8):
        out = hf(input_ids=torch.tensor([tokenizer().encode(TEXT).ids]), decoder_input_ids=torch.tensor([ids]))
        ids.append(int(out.logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return ids[len(prompt) :]


def test_a_completion_is_the_model_s_answer_to_its_source(client: httpx.Client, hf: Any) -> None:
    answer = complete(client, temperature=0)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == greedy(hf, [0])
    assert answer["usage"]["prompt_tokens"] == len(tokenizer().encode(TEXT).ids) == 7
    said = [i for i in choice["token_ids"] if i > 2]
    assert choice["text"] == tokenizer().decode(said)


def test_a_decoder_prompt_may_be_text_or_ids(client: httpx.Client, hf: Any) -> None:
    ids = tokenizer().encode("the dog", add_special_tokens=False).ids
    expected = greedy(hf, [0, *ids])
    for prompt in ("the dog", ids, [0, *ids]):
        answer = complete(client, temperature=0, decoder_prompt=prompt)
        assert answer["choices"][0]["token_ids"] == expected
        assert answer["decoding"]["effective"]["decoder_prompt"] == prompt


def test_searches_stream_and_forced_tokens_work_over_http(client: httpx.Client) -> None:
    beams = complete(client, num_beams=4, n=2, coverage_penalty=0.2, forced_bos_token_id=9)
    assert [c["token_ids"][0] for c in beams["choices"]] == [9, 9]
    assert beams["decoding"]["effective"]["forced_bos_token_id"] == 9
    body = {"prompt": TEXT, "max_tokens": 8, "temperature": 0, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: {")]
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert text == complete(client, temperature=0)["choices"][0]["text"]


def test_the_source_is_echoed_without_log_probs(client: httpx.Client) -> None:
    plain = complete(client, temperature=0)["choices"][0]["text"]
    assert complete(client, temperature=0, echo=True)["choices"][0]["text"] == TEXT + plain


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"dola_layers": "low"}, "dola_layers"),
        ({"guidance_scale": 2.0, "negative_prompt": [5] * 5000}, "negative_prompt"),
        ({"entropix": {}}, "entropix"),
        ({"sed": {}}, "sed"),
        ({"pause_tokens": {"token_id": 5, "count": 2}}, "pause_tokens"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"decoder_prompt": [64]}, "decoder_prompt"),
        ({"forced_bos_token_id": 64}, "forced_bos_token_id"),
        ({"prompt": [5] * 5000}, "prompt"),
    ],
)
def test_what_has_no_meaning_there_is_refused_by_name(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    answer = client.post("/v1/completions", json={"prompt": TEXT} | body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize("form", ["guidance_scale", "kl_guided"])
def test_the_second_context_is_a_source_and_an_empty_one_unless_given(client: httpx.Client, form: str) -> None:
    def ids(other: str | list[int] | None) -> list[int]:
        guided = {"guidance_scale": 9.0, "negative_prompt": other, "temperature": 0}
        asked = guided if form == "guidance_scale" else {"kl_guided": {"prompt": other}, "seed": 3}
        token_ids: list[int] = complete(client, **asked)["choices"][0]["token_ids"]
        return token_ids

    assert ids(None) == ids(tokenizer().encode("").ids)
    assert ids("the dog") == ids(tokenizer().encode("the dog").ids)


def test_a_chat_needs_a_template(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


def test_the_models_list_says_what_it_is(client: httpx.Client) -> None:
    (entry,) = client.get("/v1/models").json()["data"]
    assert entry["architecture"] == "T5ForConditionalGeneration"
    supports = entry["supports"]
    assert supports["encoder"]
    assert {"beam", "contrastive", "prompt_lookup", "cot_decoding"} <= set(supports["strategies"])
    assert not {"dola", "entropix", "sed"} & set(supports["strategies"])
    assert {"guided", "kl_guided"} <= set(supports["strategies"])
