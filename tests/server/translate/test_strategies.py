"""Every strategy and step over the wire: what the engine is asked, what the answer says of it, GET /v1/strategies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest

from decoding.contract.frames import Chunk, Finished, Output, TraceEvent
from decoding.contract.params import (
    Adapt,
    Assisted,
    Beam,
    BeamSample,
    BestFirst,
    ContextAware,
    Contrastive,
    ContrastiveDecoding,
    CotDecoding,
    Dexperts,
    Dola,
    Edt,
    Ensemble,
    Entropix,
    GroupBeam,
    Guided,
    KlGuided,
    Pmi,
    PromptLookup,
    Request,
    Sed,
    StrategyParams,
)
from server.served import Served
from server.settings.limits import Limits
from tests.server.asking import ASKING, BEARING, BESIDE, Fields
from tests.server.fake_engine import FakeBatcher, make_app, saying

URL = "/v1/completions"
CHAT = "/v1/chat/completions"


@pytest.fixture
def drafting(served: Served) -> Served:
    return dataclasses.replace(served, beside=BESIDE)


@pytest.fixture
def batcher(drafting: Served) -> FakeBatcher:
    return FakeBatcher(drafting, saying(drafting, "Hello world"))


async def ask(client: httpx.AsyncClient, fields: Fields, url: str = URL) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "a"}]} if url == CHAT else {"prompt": "the dog"}
    response = await client.post(url, json=body | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refused(client: httpx.AsyncClient, fields: Fields) -> str:
    response = await client.post(URL, json={"prompt": "the dog"} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"].startswith(error["param"])
    return str(error["param"])


TRANSLATED: list[tuple[Fields, StrategyParams]] = [
    (
        {"num_beams": 4, "n": 2, "length_penalty": 0.6, "length_penalty_type": "gnmt", "coverage_penalty": 0.2,
         "early_stopping": "never", "beam_prune": 3},
        Beam(2, 4, 0.6, "gnmt", 0.2, "never", 3.0),
    ),
    ({"use_beam_search": True, "n": 2, "best_of": 4, "temperature": 1}, Beam(2, 4)),
    ({"use_beam_search": True, "n": 3, "temperature": 0}, Beam(3, 3)),
    ({"use_beam_search": True, "num_beams": 5}, Beam(1, 5)),
    ({"num_beams": 3, "num_return_sequences": 2, "do_sample": False}, Beam(2, 3)),
    ({"num_beams": 3, "do_sample": True, "temperature": 0.7, "early_stopping": True},
     BeamSample(num_beams=3, early_stopping=True)),
    ({"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.8}, GroupBeam(1, 6, 3, 0.8)),
    ({"num_beams": 3, "beam_mode": "best_first"}, BestFirst(1, 3, 0.0)),
    ({"num_beams": 3, "beam_mode": "best_first", "length_penalty": 1}, BestFirst(1, 3, 1.0)),
    ({"penalty_alpha": 0.6, "top_k": 5}, Contrastive(0.6, 5)),
    ({"dola_layers": "low"}, Dola((0, 2))),
    ({"dola_layers": "high", "n": 2}, Dola((4, 6), 2)),
    ({"dola_layers": [5, 1, 5]}, Dola((5, 1))),
    ({"guidance_scale": 1.5, "negative_prompt": [5, 6], "n": 2}, Guided(1.5, (5, 6), 2)),
    ({"kl_guided": {"sigma": 2, "prompt": [9]}}, KlGuided(2.0, (9,))),
    ({"context_aware": {"prompt": [9], "alpha": 1}, "n": 2}, ContextAware((9,), 1.0, 2)),
    ({"pmi": {"prompt": [9], "lam": 0.5, "tau": 3}}, Pmi((9,), 0.5, 3.0)),
    ({"contrastive_decoding": {"amateur": "small", "alpha": 0.2, "beta": 0.5, "tau": 0.7}, "n": 2},
     ContrastiveDecoding("small", 0.2, 0.5, 0.7, 2)),
    ({"contrastive_decoding": {"amateur": "draft"}}, ContrastiveDecoding("draft")),
    ({"dexperts": {"expert": "tuned", "anti_expert": "small", "alpha": 2}}, Dexperts("tuned", "small", 2.0)),
    ({"dexperts": {"expert": "tuned", "anti_expert": "main"}, "n": 3}, Dexperts("tuned", "main", n=3)),
    ({"ensemble": {"models": ["small", "tuned"], "weights": [0.5, 1, 2]}},
     Ensemble(("small", "tuned"), (0.5, 1.0, 2.0))),
    ({"entropix": {"think_token_id": 4, "compat": True, "uses_attention": False, "temperature": 1, "top_p": 0.8,
                   "top_k": 20, "min_p": 0.1, "low_entropy": 0.2, "low_varentropy": 0.3, "medium_entropy": 2,
                   "high_entropy": 4, "high_varentropy": 6, "num_adaptive_samples": 7}},
     Entropix(4, True, False, 1.0, 0.8, 20, 0.1, 0.2, 0.3, 2.0, 4.0, 6.0, 7)),
    ({"cot_decoding": {"k": 5, "branch_at": 2, "aggregate": False, "answer_regex": "\\d+", "span": "all"}, "n": 2},
     CotDecoding(5, 2, False, "\\d+", (), "all", 16, 2)),
    ({"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 3, "n": 2}, PromptLookup(6, 3, 2)),
    ({"speculative": True}, Assisted()),
    ({"num_assistant_tokens": 7, "num_assistant_tokens_schedule": "heuristic",
      "assistant_confidence_threshold": 0, "n": 2}, Assisted(7, "heuristic", 0.0, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "params"), TRANSLATED, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("url", [URL, CHAT])
async def test_a_strategy_reaches_the_engine(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: Fields, params: StrategyParams, url: str
) -> None:
    answer = await ask(client, fields, url)
    assert [request.strategy for request in batcher.requests] == [params]
    assert answer["decoding"]["strategy"] == params.NAME


async def test_texts_among_the_parameters_become_ids(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    encode = served.tokenizer.encode
    last = encode("the dog")[-1]
    token = encode("the")[0]
    assert served.tokenizer.vocabulary.name(token) == "the"
    asked: list[tuple[Fields, StrategyParams]] = [
        ({"guidance_scale": 2, "negative_prompt": "a fox"}, Guided(2.0, encode("a fox"))),
        ({"guidance_scale": 2}, Guided(2.0, (last,))),
        ({"kl_guided": {"prompt": "a fox"}}, KlGuided(1.0, encode("a fox"))),
        ({"kl_guided": {}}, KlGuided(1.0, served.eos_token_ids)),
        ({"context_aware": {"prompt": "a fox"}}, ContextAware(encode("a fox"))),
        ({"pmi": {"prompt": "a fox"}}, Pmi(encode("a fox"))),
        ({"pmi": {}}, Pmi(served.eos_token_ids)),
        ({"entropix": {"think_text": "the"}}, Entropix(token)),
        ({"cot_decoding": {"suffix": " So:", "max_answer": 3}}, CotDecoding(suffix_ids=encode(" So:"), max_answer=3)),
        ({"sed": {"question": "?", "yes": "y", "no": "n", "k": 2}},
         Sed(encode("?"), encode("y")[0], encode("n")[0], k=2)),
        ({"sed": {"question": "Is {text} right?", "yes": "y", "no": "n"}},
         Sed(encode(" right?"), encode("y")[0], encode("n")[0], eval_before=encode("Is ") + encode("the dog"))),
    ]  # fmt: skip
    for fields, params in asked:
        batcher.requests.clear()
        await ask(client, fields)
        assert [request.strategy for request in batcher.requests] == [params]


async def test_sed_compares_the_first_tokens_in_which_its_answers_differ(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    await ask(client, {"sed": {"question": "?", "yes": " do", "no": " dy"}})
    sed = batcher.requests[0].strategy
    assert isinstance(sed, Sed)
    name = served.tokenizer.vocabulary.name
    said = "".join(name(i) for i in sed.eval_ids)
    assert {(said + name(sed.yes_id))[:4], (said + name(sed.no_id))[:4]} <= {"? do", "? d", "? dy", "? "}
    assert sed.yes_id != sed.no_id
    assert await refused(client, {"sed": {"yes": " a", "no": " a"}}) == "sed.yes"


async def test_the_judge_reads_each_prompt_without_special_tokens(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    encode, eos = served.tokenizer.encode, served.eos_token_ids[0]
    assert eos in served.tokenizer.vocabulary.special_ids
    sed = {"question": "Judge: {text} Right?", "yes": "y", "no": "n"}
    await ask(client, {"prompt": [[eos, 1, 2], [3, 4]], "sed": sed})
    read = [r.strategy.eval_before for r in batcher.requests if isinstance(r.strategy, Sed)]
    assert read == [(*encode("Judge: "), 1, 2), (*encode("Judge: "), 3, 4)]
    for question in ("{text} {text} Right?", "{text} Right?"):
        assert await refused(client, {"sed": {"question": question}}) == "sed.question"


async def test_the_last_prompt_token_is_each_prompt_s_own(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(client, {"prompt": [[1, 2], [3, 4]], "guidance_scale": 2})
    assert [request.strategy for request in batcher.requests] == [Guided(2.0, (2,)), Guided(2.0, (4,))]


async def test_steps_reach_the_engine(client: httpx.AsyncClient, batcher: FakeBatcher, served: Served) -> None:
    together: Fields = {}
    alone = {"temperature=0", "do_sample=false", "adapt", "allowed_token_ids"}
    alone |= {"response_format", "structured", "ignore_eos"}
    for step in BEARING.keys() - alone:
        together |= BEARING[step]
    await ask(client, together)
    await ask(client, BEARING["adapt"])
    logits = batcher.requests[0].logits
    encode = served.tokenizer.encode
    wanted = {name: value for name, value in together.items() if hasattr(logits, name)} | {
        "edt": Edt(0.1, 0.7),
        "bad_words": (encode("dog"), encode(" dog")),
        "logit_bias": ((3, 2.5),),
        "exponential_decay_length_penalty": (5, 1.1),
    }
    assert {name: getattr(logits, name) for name in wanted} == wanted
    assert batcher.requests[0].pause_ids == (7, 7, 7)
    assert batcher.requests[1].logits.adapt == Adapt(0.8, 0.3, True)


async def test_beam_sample_keeps_a_token_more_than_there_are_ends(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    answer = await ask(client, ASKING["beam_sample"] | {"top_k": 1})
    assert batcher.requests[0].logits.min_tokens_to_keep == 2
    assert "min_tokens_to_keep" not in answer["decoding"]["effective"]


@pytest.mark.parametrize("name", list(ASKING))
async def test_effective_sent_back_asks_for_the_same(
    client: httpx.AsyncClient, batcher: FakeBatcher, name: str
) -> None:
    steps = {k: v for step in ("bad_words", "lz_penalty", "eos_penalty", "pause_tokens", "logit_bias")
             for k, v in BEARING[step].items()}  # fmt: skip
    first = await ask(client, {**ASKING[name], **steps, "trace": True, "logprobs": 1, "stop": ["zz"]})
    effective = first["decoding"]["effective"]
    second = await ask(client, effective)
    assert batcher.requests[0] == batcher.requests[1]
    assert second["decoding"]["effective"] == effective


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"num_beams": 4}, 4),
        ({"use_beam_search": True, "best_of": 5}, 5),
        ({"num_beams": 4, "beam_mode": "best_first"}, 8),
        ({"penalty_alpha": 0.5, "top_k": 6}, 6),
        ({"guidance_scale": 2, "n": 3}, 6),
        ({"kl_guided": {}}, 2),
        ({"context_aware": {"prompt": "b"}, "n": 2}, 4),
        ({"contrastive_decoding": {"amateur": "small"}, "n": 2}, 4),
        ({"dexperts": {"expert": "tuned", "anti_expert": "small"}}, 3),
        ({"ensemble": {"models": ["small", "draft", "tuned"]}, "n": 2}, 8),
        ({"cot_decoding": {}}, 10),
        ({"sed": {}}, 5),
        ({"speculative": True, "n": 2}, 4),
    ],
)
async def test_a_strategy_s_rows_are_reserved_for_every_prompt(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: Fields, rows: int
) -> None:
    await ask(client, {"prompt": ["a", "b"], **fields})
    assert batcher.asked == [("completions", 2 * rows)]


BAD: list[tuple[Fields, str]] = [
    ({"num_beams": 65}, "num_beams"),
    ({"num_beams": 40, "beam_mode": "best_first"}, "num_beams"),
    ({"use_beam_search": True, "n": 65}, "use_beam_search"),
    ({"num_beams": 2, "n": 3}, "n"),
    ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups"),
    ({"penalty_alpha": 0.5, "top_k": 65}, "top_k"),
    ({"guidance_scale": 2, "n": 33}, "n"),
    ({"guidance_scale": 2, "negative_prompt": ""}, "negative_prompt"),
    ({"guidance_scale": 2, "negative_prompt": [10**6]}, "negative_prompt"),
    ({"guidance_scale": 2, "negative_prompt": [1] * 300}, "negative_prompt"),
    ({"guidance_scale": 2, "negative_prompt": {"a": 1}}, "negative_prompt"),
    ({"kl_guided": {"prompt": 5}}, "kl_guided.prompt"),
    ({"kl_guided": {"sigma": 0}}, "kl_guided.sigma"),
    ({"kl_guided": 5}, "kl_guided"),
    ({"context_aware": {}}, "context_aware.prompt"),
    ({"context_aware": {"prompt": ""}}, "context_aware.prompt"),
    ({"context_aware": {"prompt": "a", "alpha": -1}}, "context_aware.alpha"),
    ({"pmi": {"lam": -1}}, "pmi.lam"),
    ({"contrastive_decoding": {}}, "contrastive_decoding.amateur"),
    ({"contrastive_decoding": {"amateur": "tiny"}}, "contrastive_decoding.amateur"),
    ({"contrastive_decoding": {"amateur": "small", "alpha": 0}}, "contrastive_decoding.alpha"),
    ({"dexperts": {"expert": "small"}}, "dexperts.anti_expert"),
    ({"dexperts": {"expert": "small", "anti_expert": "other"}}, "dexperts.anti_expert"),
    ({"ensemble": {"models": []}}, "ensemble.models"),
    ({"ensemble": {"models": ["main"]}}, "ensemble.models"),
    ({"ensemble": {"models": ["small", "small"]}}, "ensemble.models"),
    ({"ensemble": {"models": ["small", "x"]}}, "ensemble.models"),
    ({"ensemble": {"models": ["small"], "weights": [1]}}, "ensemble.weights"),
    ({"ensemble": {"models": ["small"], "weights": [1, 0]}}, "ensemble.weights"),
    ({"cot_decoding": {"k": 65}}, "cot_decoding.k"),
    ({"cot_decoding": {"k": 2}, "n": 3}, "n"),
    ({"cot_decoding": {"answer_regex": "("}}, "cot_decoding.answer_regex"),
    ({"cot_decoding": {"answer_regex": "x" * 513}}, "cot_decoding.answer_regex"),
    ({"cot_decoding": {"answer_regex": "(?=x)"}}, "cot_decoding.answer_regex"),
    ({"cot_decoding": {"suffix": ""}}, "cot_decoding.suffix"),
    ({"sed": {"k": 1}}, "sed.k"),
    ({"sed": {"delta_ratio": 2}}, "sed.delta_ratio"),
    ({"entropix": {"think_text": "two tokens"}}, "entropix.think_text"),
    ({"entropix": {"think_text": "the", "think_token_id": 3}}, "entropix.think_text"),
    ({"entropix": {"think_token_id": 10**6}}, "entropix.think_token_id"),
    ({"dola_layers": [8]}, "dola_layers"),
    ({"dola_layers": []}, "dola_layers"),
    ({"dola_layers": "middle"}, "dola_layers"),
    ({"edt": {"base": 0.5}}, "edt.theta"),
    ({"edt": {"theta": -1}}, "edt.theta"),
    ({"adapt": {"hot": 1}}, "adapt.cold"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": [" "]}, "bad_words"),
    ({"bad_words": ["x"] * 257}, "bad_words"),
    ({"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty"),
    ({"exponential_decay_length_penalty": [1.5, 2]}, "exponential_decay_length_penalty"),
    ({"exponential_decay_length_penalty": [1, 0]}, "exponential_decay_length_penalty"),
    ({"top_n_sigma": -0.5}, "top_n_sigma"),
    ({"typical_p": 0}, "typical_p"),
    ({"pause_tokens": {"count": 2}}, "pause_tokens"),
    ({"pause_tokens": {"count": 2, "text": "a", "token_id": 1}}, "pause_tokens"),
    ({"pause_tokens": {"count": 0, "text": "a"}}, "pause_tokens.count"),
    ({"latent_thoughts": {"count": 0, "start_id": 1, "end_id": 1}}, "latent_thoughts.count"),
    ({"latent_thoughts": {"count": 1, "start_id": 1}}, "latent_thoughts.end_id"),
    ({"latent_thoughts": {"count": 1, "start_id": 10**6, "end_id": 1}}, "latent_thoughts.start_id"),
    ({"early_stopping": 1, "num_beams": 2}, "early_stopping"),
]


@pytest.mark.parametrize(("fields", "field"), BAD, ids=lambda value: str(value)[:40])
async def test_a_bad_value_is_a_400_that_names_its_field(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: Fields, field: str
) -> None:
    assert await refused(client, fields) == field
    assert (batcher.requests, batcher.reserved) == ([], 0)


async def test_an_unknown_nested_field_is_named_with_its_nearest_neighbour(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"prompt": "a", "edt": {"teta": 1}})
    error = response.json()["error"]
    assert (error["param"], error["message"]) == (
        "edt.teta", "unknown field 'edt.teta'; did you mean 'theta'?",
    )  # fmt: skip


async def test_without_a_draft_model_speculation_is_a_400(served: Served) -> None:
    app = make_app(FakeBatcher(served, saying(served, "x")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert await refused(client, {"speculative": True}) == "speculative"
        assert await refused(client, {"num_assistant_tokens": 3}) == "num_assistant_tokens"
        listed = (await client.get("/v1/strategies")).json()["data"]
        unavailable = [each["id"] for each in listed if not each["available"]]
        assert unavailable == ["contrastive_decoding", "dexperts", "ensemble", "assisted"]


async def test_a_model_that_is_not_loaded_is_a_400_that_names_those_that_are(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"prompt": "a", "contrastive_decoding": {"amateur": "tiny"}})
    assert (response.status_code, response.json()["error"]["message"]) == (
        400,
        "contrastive_decoding.amateur names no model of this server, which has main, draft, small, tuned",
    )


async def test_what_stands_beside_the_prompt_counts_for_the_context(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    prompt = {"prompt": [1] * 200}
    await ask(client, prompt | {"pause_tokens": {"token_id": 3, "count": 50}})
    assert batcher.requests[0].stopping.max_tokens == 6
    for fields in (
        {"pause_tokens": {"token_id": 3, "count": 50}},
        {"latent_thoughts": {"count": 48, "start_id": 3, "end_id": 4}},
        {"guidance_scale": 2, "negative_prompt": [1] * 250},
        {"cot_decoding": {"suffix": "So the answer is", "max_answer": 40}},
    ):
        response = await client.post(URL, json={**prompt, **fields, "max_tokens": 10})
        assert response.json()["error"]["code"] == "context_length_exceeded", fields


# --- what the answer says of it


def telling(served: Served) -> Any:
    """An engine that traces, drafts and has figures."""

    def script(request: Request) -> Iterable[Output]:
        traced = request.trace
        events = [TraceEvent(i, "draw", {"entropy": i / 2, "top": [[3, 0.5]]}) for i in range(3)] if traced else []
        yield Output(0, trace=tuple(events[:1]))
        yield Output(0, (Chunk(0, served.tokenizer.encode("Hi")),), trace=tuple(events[1:2]))
        last = Chunk(0, (), finish_reason="stop", score=-2.0, figures={"cot_confidence": 0.75, "answer": "4"})
        finished = Finished(2, 40, 0.0, 0.0, 0.0, 0, drafted=9, accepted=5)
        yield Output(0, (last,), finished=finished, trace=tuple(events[2:]))

    return script


@pytest.fixture
async def told(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(FakeBatcher(served, telling(served)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_figures_work_and_speculation_are_told(told: httpx.AsyncClient) -> None:
    for url in (URL, CHAT):
        answer = await ask(told, {"pause_tokens": {"text": "a", "count": 4}}, url)
        assert answer["choices"][0]["decoding"] == {"score": -2.0, "cot_confidence": 0.75, "answer": "4"}
        assert answer["decoding"]["computed_tokens"] == 40
        assert "trace" not in answer["decoding"]
        usage = answer["usage"]
        assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 5, "rejected_prediction_tokens": 4}
        assert usage["prompt_tokens_details"] == {"cached_tokens": 2, "pause_tokens": 4}
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_thoughts_count_as_the_prompts_tokens(told: httpx.AsyncClient) -> None:
    plain = (await ask(told, {}))["usage"]["prompt_tokens"]
    usage = (await ask(told, {"latent_thoughts": {"count": 5, "start_id": 1, "end_id": 2}}))["usage"]
    assert usage["prompt_tokens"] == plain + 7
    assert usage["prompt_tokens_details"]["latent_tokens"] == 7


TRACE = [{"step": i, "kind": "draw", "values": {"entropy": i / 2, "top": [[3, 0.5]]}} for i in range(3)]


async def test_a_trace_is_in_the_plain_answer(told: httpx.AsyncClient) -> None:
    for url in (URL, CHAT):
        assert (await ask(told, {"trace": True}, url))["decoding"]["trace"] == TRACE


async def test_a_trace_says_which_prompt_it_is_of(told: httpx.AsyncClient) -> None:
    trace = (await ask(told, {"trace": True, "prompt": ["a", "b"]}))["decoding"]["trace"]
    assert sorted(event["prompt"] for event in trace) == [0, 0, 0, 1, 1, 1]


async def test_a_streamed_trace_comes_with_the_chunks_as_it_happens(told: httpx.AsyncClient) -> None:
    for url in (URL, CHAT):
        body = {"messages": [{"role": "user", "content": "a"}]} if url == CHAT else {"prompt": "a"}
        lines = (await told.post(url, json=body | {"trace": True, "stream": True})).text.split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        said = [chunk.get("decoding", {}).get("trace", []) for chunk in chunks]
        assert [event for events in said for event in events] == TRACE
        assert said[0] == TRACE[:1]
        assert chunks[0]["choices"] == []  # nothing was committed in that step
        assert chunks[0]["decoding"]["strategy"] == "sampling"
        assert all("strategy" not in chunk.get("decoding", {}) for chunk in chunks[1:])


# --- GET /v1/strategies


def check_schema(schema: Any) -> None:
    """JSON schema as far as we write it: types, unions, bounds, no references, a default of the right type."""
    assert isinstance(schema, dict)
    assert not {"$ref", "$defs"} & schema.keys()
    types = {"object", "string", "number", "integer", "boolean", "array", "null"}
    assert schema.get("type", "null") in types
    assert {"type", "anyOf", "oneOf", "const", "enum"} & schema.keys()
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("properties", {}).values()):
        check_schema(inner)
    if "items" in schema:
        check_schema(schema["items"])
    assert set(schema.get("required", ())) <= schema.get("properties", {}).keys()


async def test_the_strategies_are_listed_with_schemas_and_defaults(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/strategies")).json()
    assert [each["id"] for each in body["data"]] == list(ASKING)
    steps = [step["id"] for step in body["steps"]]
    for strategy in body["data"]:
        check_schema(strategy["parameters"])
        assert set(strategy["combines_with"]) <= set(steps)
        assert all(each["reason"] and each["others"] for each in strategy["excludes"])
    for step in body["steps"]:
        check_schema(step["parameters"])
    check_schema(body["common"])
    by_id = {each["id"]: each for each in body["data"]}
    assert by_id["best_first"]["parameters"]["properties"]["length_penalty"]["default"] == 0
    assert by_id["beam"]["parameters"]["properties"]["length_penalty"]["default"] == 1
    assert by_id["contrastive"]["parameters"]["required"] == ["top_k"]
    assert "edt" not in by_id["beam"]["combines_with"]
    assert body["bounds"]["max_rows"] == 64
    assert body["bounds"]["max_body_bytes"] == 8 << 20


async def test_the_bounds_are_those_of_the_settings(served: Served) -> None:
    app = make_app(FakeBatcher(served, saying(served, "x")), Limits(max_rows_per_prompt=3))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/v1/strategies")).json()["bounds"]["max_rows"] == 3
        assert await refused(client, {"num_beams": 4}) == "num_beams"
