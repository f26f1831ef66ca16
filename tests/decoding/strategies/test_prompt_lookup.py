"""Prompt lookup: plain sampling's tokens in fewer forwards."""

from __future__ import annotations

import dataclasses
import random

import pytest

from decoding.contract.params import (
    LogitsParams,
    LogprobsParams,
    PromptLookup,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.contract.params.stopping import StopSequence
from decoding.engine.engine import Engine
from decoding.seam import FinishReason
from tests.decoding.drive import Answer, run
from tests.decoding.guessable_model import CYCLE, CyclingModel
from tests.decoding.table_model import TableModel, table_engine

GREEDY = LogitsParams(temperature=0)
BYTES = tuple(bytes([65 + i % 26]) for i in range(40))


def engine(num_pages: int = 64, **options: object) -> Engine:
    return table_engine(models={"main": CyclingModel(num_pages=num_pages)}, **options)  # type: ignore[arg-type]


def ask(**changes: object) -> Request:
    request = Request((*CYCLE, 20, *CYCLE), PromptLookup(6, 3), stopping=StoppingParams(24), seed=3)
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def plain(request: Request) -> Request:
    assert isinstance(request.strategy, PromptLookup)
    return dataclasses.replace(request, strategy=Sampling(request.strategy.n))


def said(answer: Answer) -> list[object]:
    """Everything but the figures."""
    return [
        (c.token_ids, c.logprobs, c.top, c.finish and (c.finish.reason, c.finish.stop_reason, c.finish.score))
        for c in answer.choices.values()
    ]


def random_request(seed: int) -> Request:
    rng = random.Random(seed)
    max_tokens = rng.randrange(1, 30)
    return Request(
        tuple(rng.choice(CYCLE) if rng.random() < 0.8 else rng.randrange(40) for _ in range(rng.randrange(1, 20))),
        PromptLookup(rng.choice([1, 3, 6, 40]), rng.randrange(1, 5), n=rng.choice([1, 1, 3])),
        LogitsParams(
            temperature=rng.choice([0.0, 0.4, 1.0]),
            top_k=rng.choice([0, 10]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.1]),
            frequency_penalty=rng.choice([0.0, 0.3]),
            presence_penalty=rng.choice([0.0, -0.5]),
        ),
        StoppingParams(
            max_tokens,
            min_tokens=rng.choice([0, max_tokens // 2]),
            stop_token_ids=rng.choice([(), (), (), (9,)]),
            stop=rng.choice([(), (), (b"GHI",)]),
            ignore_eos=rng.random() < 0.3,
        ),
        LogprobsParams(rng.choice([None, 0, 3]), rng.choice([None, 1]), mode=rng.choice(["raw", "processed"])),
        seed=seed,
        pause_ids=rng.choice([(), (30, 31)]),
    )


def test_every_token_and_logprob_is_that_of_plain_decoding_at_the_same_seed() -> None:
    """150 requests: greedy and sampled, with penalties, filters, n, stops, EOS, log-probs, pause tokens."""

    def answers(requests: list[Request]) -> list[Answer]:
        return run(engine(4000, eos=(12, 33), token_bytes=BYTES, max_rows=1000), requests)

    requests = [random_request(seed) for seed in range(150)]
    speculated, sampled = answers(requests), answers([plain(r) for r in requests])
    for request, answer, expected in zip(requests, speculated, sampled, strict=True):
        assert answer.failure is None
        assert said(answer) == said(expected), request
        assert answer.prompt == expected.prompt
    drafted, accepted = (sum(getattr(a.usage, name) for a in speculated if a.usage) for name in ("drafted", "accepted"))
    assert accepted > 200
    assert drafted > accepted + 200


def test_accepted_drafts_save_forwards() -> None:
    model = CyclingModel()
    (answer,) = run(table_engine(models={"main": model}), [ask(logits=GREEDY)])
    assert answer.usage is not None
    assert answer.usage.accepted > 8
    assert model.num_forwards == 24 - answer.usage.accepted


def test_nothing_found_is_a_plain_step() -> None:
    model = CyclingModel()
    (answer,) = run(table_engine(models={"main": model}), [ask(prompt_ids=(20,), stopping=StoppingParams(3))])
    assert answer.usage is not None
    assert answer.usage.drafted == 0
    assert model.num_tokens == 3


def test_the_last_token_is_never_drafted_for() -> None:
    """With two tokens to say one is drawn from the prompt and the other needs no draft."""
    (answer,) = run(engine(), [ask(stopping=StoppingParams(2))])
    assert answer.usage is not None
    assert answer.usage.drafted == 0


def test_an_accepted_token_can_end_the_choice_and_nothing_after_it_is_said() -> None:
    stopped = ask(logits=GREEDY, stopping=StoppingParams(24, stop=(b"GHI",)))
    (answer,) = run(engine(token_bytes=BYTES), [stopped])
    finish = answer.choices[0].finish
    assert finish is not None
    assert (finish.reason, finish.stop_reason) == (FinishReason.STOP, StopSequence(0))
    assert answer.tokens()[-3:] == [6, 7, 8]
    assert answer.usage is not None
    assert answer.usage.accepted > 0
    assert dict(finish.figures) == {"drafted": answer.usage.drafted, "accepted": answer.usage.accepted}


def dead_end(strategy: StrategyParams, best: int = 5, temperature: float = 0.0) -> Request:
    """After token 6 nothing is allowed; `best`, 5 or 6, is what the masks and the bias leave likeliest elsewhere."""
    logits = LogitsParams(
        temperature, allowed_token_ids=(5, 6), bad_words=((6, 5), (6, 6)), logit_bias=((best, 100.0),)
    )
    return Request((1, 5, 5, 6, 5, 5), strategy, logits, StoppingParams(8), LogprobsParams(1))


def test_a_rejected_draft_after_which_nothing_is_allowed_ends_nothing() -> None:
    """It made the whole request fail, which plain decoding answers: there the text never comes to that place."""
    for model in (CyclingModel(), TableModel()):
        speculated, plainly = run(
            table_engine(models={"main": model}), [dead_end(PromptLookup(4, 2)), dead_end(Sampling())]
        )
        assert said(speculated) == said(plainly)
        assert speculated.usage is not None
        assert speculated.usage.drafted > speculated.usage.accepted


def test_where_plain_decoding_finds_nothing_allowed_so_does_prompt_lookup() -> None:
    (answer,) = run(engine(), [dead_end(PromptLookup(4, 2), best=6)])
    assert answer.failure is not None
    assert answer.failure.code == "nothing_to_draw"


def test_n_choices_speculate_each_for_itself() -> None:
    request = ask(strategy=PromptLookup(6, 3, n=4), logits=LogitsParams(0.9))
    (answer,) = run(engine(), [request])
    figures = [dict(c.finish.figures) for c in answer.choices.values() if c.finish]
    assert len({str(f) for f in figures}) > 1
    assert answer.usage is not None
    assert sum(int(f["accepted"]) for f in figures) == answer.usage.accepted


def test_the_trace_tells_drafts_and_acceptance() -> None:
    (answer,) = run(engine(), [ask(logits=GREEDY, trace=True)])
    assert answer.usage is not None
    events = [event for event in answer.trace if event.kind == "verification"]  # the first token is plain sampling's
    assert events
    assert sum(len(e.values["drafts"]) for e in events) == answer.usage.drafted  # type: ignore[arg-type]
    assert sum(e.values["accepted"] for e in events) == answer.usage.accepted  # type: ignore[misc]
    for event in events:
        drafts, accepted, ids = (event.values[k] for k in ("drafts", "accepted", "token_ids"))
        assert ids[:accepted] == drafts[:accepted]  # type: ignore[index]
        assert len(event.values["p"]) == len(drafts)  # type: ignore[arg-type]
    silent = run(engine(), [ask(logits=GREEDY)])[0]
    assert silent.trace == []


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_little_or_nothing_to_say_is_said_as_plain_sampling_does(max_tokens: int) -> None:
    request = ask(stopping=StoppingParams(max_tokens), logprobs=LogprobsParams(1, 2), strategy=PromptLookup(4, 2, n=2))
    (answer,) = run(engine(), [request])
    assert said(answer) == said(run(engine(), [plain(request)])[0])
    assert answer.prompt is not None
