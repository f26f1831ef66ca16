"""Every strategy keeps to a grammar, and answers in a crowd as it does alone, to the last bit of each log-prob."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest

from decoding.contract.params import (
    PARAMS,
    CotDecoding,
    Grammar,
    LogitsParams,
    LogprobsParams,
    Request,
    StoppingParams,
    choice_grammar,
)
from decoding.engine.engine import Engine
from decoding.seam import FinishReason
from tests.decoding.crowd import MAKERS, NEVER_DRAWING, DraftTableModel, crowd_token_bytes, random_requests, run_crowd
from tests.decoding.drive import run
from tests.decoding.table_model import TableModel, table_engine

VOCAB = 44
EOS = (3, 17)
TOKEN_BYTES = crowd_token_bytes(40)  # the model knows four ids more
GRAMMARS: dict[str, Grammar] = {
    r"[a-f0-9]{2}(x[0-9])?": Grammar("regex", r"[a-f0-9]{2}(x[0-9])?"),
    r"(g|hi|klm|j  0)": choice_grammar(["g", "hi", "klm", "j  0"]),
    r"(b+|\n)([lmn]\n){1,3}": Grammar("lark", 'start: head line{1,3}\nhead: /b+/ | "\\n"\nline: /[lmn]/ "\\n"'),
}


def engine(num_pages: int = 300) -> Engine:
    models = {
        "main": TableModel(page_size=4, num_pages=num_pages, vocab=VOCAB),
        "draft": DraftTableModel(page_size=4, num_pages=num_pages, vocab=VOCAB),
    }
    return table_engine(
        models=models,
        eos=EOS,
        token_bytes=TOKEN_BYTES,
        max_rows=40,
        tick_tokens=48,  # type: ignore[arg-type]
    )


def text(token_ids: list[int]) -> str:
    return b"".join(b"" if i in EOS else TOKEN_BYTES[i] for i in token_ids).decode()


def with_grammar(rng: random.Random, request: Request) -> tuple[str, Request]:
    """The request under a grammar, without the masks that could leave no token at all."""
    pattern = rng.choice(list(GRAMMARS))
    logits = dataclasses.replace(
        request.logits,
        grammar=GRAMMARS[pattern],
        allowed_token_ids=None,
        bad_words=(),
        no_repeat_ngram_size=0,
    )
    stopping = StoppingParams(max_tokens=request.stopping.max_tokens)
    strategy = request.strategy
    if isinstance(strategy, CotDecoding):
        strategy = dataclasses.replace(strategy, suffix_ids=())
    return pattern, dataclasses.replace(request, logits=logits, stopping=stopping, strategy=strategy)


def test_requests_with_grammars_answer_in_a_crowd_as_they_do_alone() -> None:
    rng = random.Random(5)
    drawn = random_requests(rng, 75, 40, longest=24)
    pairs = [with_grammar(rng, request) for request in drawn]
    requests = [
        constrained if i % 5 else free for i, (free, (_, constrained)) in enumerate(zip(drawn, pairs, strict=True))
    ]
    crowded = engine(48)
    answers = run_crowd(crowded, requests, random.Random(6))
    assert crowded.scheduler.counters.preemptions > 10
    alone = engine()
    for index, answer in answers.items():
        assert answer.said == run(alone, [requests[index]])[0].said, f"request {index} differs: {requests[index]}"


@pytest.mark.parametrize("name", sorted(PARAMS.keys() - {"pooling"}))
def test_what_a_strategy_says_matches_the_grammar(name: str) -> None:
    rng = random.Random(name)
    seen = set()
    for number in range(12):
        strategy = MAKERS[name](rng, 40)
        is_hot = not isinstance(strategy, NEVER_DRAWING)
        plain = Request(
            (5, 6, number + 1),
            strategy,
            LogitsParams(temperature=rng.choice([0.5, 1.0, 2.0]) if is_hot else 0.0),
            StoppingParams(max_tokens=40),
            LogprobsParams(output=2, prompt=1, mode=rng.choice(["raw", "processed"])),
            seed=number,
            pause_ids=(7, 7) if number % 4 == 0 else (),
        )
        pattern, request = with_grammar(rng, plain)
        (answer,) = run(engine(), [request])
        assert answer.failure is None
        for choice in answer.choices.values():
            assert choice.finish is not None
            if choice.finish.reason is FinishReason.STOP:
                assert choice.token_ids[-1] in EOS
                assert re.fullmatch(pattern, text(choice.token_ids)), (request, text(choice.token_ids))
                seen.add(text(choice.token_ids))
            else:
                assert not choice.token_ids, "nothing in these grammars is as long as max_tokens"
    assert len(seen) > 1
