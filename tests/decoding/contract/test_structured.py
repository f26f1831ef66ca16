"""Answers under a JSON schema are valid by jsonschema's own judgement, whatever strategy wrote them."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from decoding.contract.params import (
    Beam,
    BestOf,
    Grammar,
    LogitsParams,
    PromptLookup,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.engine.engine import Engine
from decoding.seam import FinishReason
from server.text.vocabulary import Vocabulary
from tests.decoding.drive import Answer, run
from tests.decoding.schemas import SCHEMAS, Schema
from tests.decoding.table_model import TableModel, table_engine
from tests.server.fake_engine import byte_tokenizer

VOCABULARY = Vocabulary.of(byte_tokenizer())
EOS = VOCABULARY.size - 1
FORMATS = jsonschema.FormatChecker(["date", "ipv4", "uuid"])  # jsonschema's own "time" knows no offset
WAYS: dict[str, tuple[StrategyParams, float]] = {
    "greedy": (Sampling(), 0.0),
    "sampling": (Sampling(), 1.0),
    "hot": (Sampling(), 2.0),
    "beam": (Beam(1, 4), 0.0),
    "best_of": (BestOf(1, 3), 1.0),
}


def engine() -> Engine:
    """A model that knows some ids more than its tokenizer, for all schemas at once."""
    return table_engine(
        models={"main": TableModel(page_size=16, num_pages=2000, vocab=VOCABULARY.size + 6)},
        eos=(EOS,),
        token_bytes=VOCABULARY.spoken,
        special_tokens=[(i, VOCABULARY.shown[i].decode()) for i in VOCABULARY.special_ids],
        max_rows=256,
    )


def ask(schema: Schema, strategy: StrategyParams, temperature: float, seed: int) -> Request:
    logits = LogitsParams(temperature, grammar=Grammar("json_schema", json.dumps(schema)))
    return Request((seed % 200, 1), strategy, logits, StoppingParams(max_tokens=600), seed=seed)


def said(answer: Answer) -> str:
    assert answer.failure is None
    (choice,) = answer.choices.values()
    assert choice.finish is not None
    assert choice.finish.reason is FinishReason.STOP, "cut off: the schema is not bounded enough"
    assert choice.token_ids[-1] == EOS
    return b"".join(VOCABULARY.spoken[i] for i in choice.token_ids).decode()


def test_there_are_fifty_schemas_and_all_differ() -> None:
    assert len({json.dumps(schema) for schema in SCHEMAS}) == 50
    for schema in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("way", WAYS)
def test_fifty_schemas_are_met(way: str) -> None:
    strategy, temperature = WAYS[way]
    requests = [ask(schema, strategy, temperature, seed) for seed, schema in enumerate(SCHEMAS)]
    for schema, answer in zip(SCHEMAS, run(engine(), requests), strict=True):
        validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
        validator.validate(json.loads(said(answer)))


def test_speculation_says_what_greedy_decoding_says() -> None:
    greedy = run(engine(), [ask(schema, Sampling(), 0.0, seed) for seed, schema in enumerate(SCHEMAS[:30])])
    drafted = run(engine(), [ask(schema, PromptLookup(5, 2), 0.0, seed) for seed, schema in enumerate(SCHEMAS[:30])])
    assert [said(answer) for answer in drafted] == [said(answer) for answer in greedy]
    usages = [answer.usage for answer in drafted if answer.usage is not None]
    assert sum(usage.drafted for usage in usages) > sum(usage.accepted for usage in usages) > 0


def test_an_answer_that_is_cut_off_says_length() -> None:
    request = Request(
        (1,),
        logits=LogitsParams(0.0, grammar=Grammar("regex", "[ab]{30}")),
        stopping=StoppingParams(max_tokens=10),
    )
    (answer,) = run(engine(), [request])
    choice = answer.choices[0]
    assert choice.finish is not None
    assert choice.finish.reason is FinishReason.LENGTH
    assert len(choice.token_ids) == 10


def test_masks_that_leave_nothing_end_that_request_alone() -> None:
    grammar = Grammar("regex", "[ab]{3}")
    none_left = LogitsParams(0.0, grammar=grammar, allowed_token_ids=(EOS,))
    requests = [Request((1,), logits=none_left), Request((1,), logits=LogitsParams(grammar=grammar))]
    (failed, fine) = run(engine(), requests)
    assert failed.failure is not None
    assert failed.failure.code == "nothing_to_draw"
    assert len(said(fine)) == 3


def test_a_grammar_that_does_not_compile_ends_that_request_alone() -> None:
    broken = LogitsParams(grammar=Grammar("regex", "("))
    (failed, fine) = run(engine(), [Request((1,), logits=broken), Request((1,), stopping=StoppingParams(3))])
    assert failed.failure is not None
    assert failed.failure.code == "internal"
    assert fine.failure is None


def test_a_special_token_is_said_by_name_or_id_and_never_as_text() -> None:
    for named in ("<|im_start|>", f"<[{EOS - 1}]>"):
        request = Request(
            (1,), logits=LogitsParams(1.0, grammar=Grammar("lark", f'start: "a" {named} /[<|>a-z_]{{14}}/'))
        )
        (answer,) = run(engine(), [request])
        assert answer.tokens().count(EOS - 1) == 1
        assert len(said(answer)) == 15


def test_draws_are_those_of_the_model_given_the_grammar() -> None:
    """Where every choice is one token, what is drawn follows softmax over the allowed ids."""
    letters = random.Random(0).sample("abcdefgh", 4)
    grammar = Grammar("regex", f"[{''.join(letters)}]")
    ids = [VOCABULARY.shown.index(letter.encode()) for letter in letters]
    best = Request((9, 9), logits=LogitsParams(0.0, grammar=grammar))
    free = Request((9, 9), logits=LogitsParams(0.0, allowed_token_ids=tuple(sorted(ids))), stopping=StoppingParams(1))
    one, other = run(engine(), [best, free])
    assert one.tokens()[0] == other.tokens()[0]
