"""DoLa over the table model, whose early layers hash otherwise; `test_layers_goldens.py` compares with transformers."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from decoding.contract.params import Dola, Grammar, InvalidParam, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.logits.contrast import contrast
from tests.decoding.drive import run
from tests.decoding.strategies.table_oracle import logprob_error
from tests.decoding.table_model import TableModel, states_of, table_engine

PROMPT = (3, 1, 4, 1, 5)
LAYERS = (2, 0, 5)


def ask(n: int = 1, **changes: Any) -> Request:
    return dataclasses.replace(Request(PROMPT, Dola(LAYERS, n), stopping=StoppingParams(8), seed=3), **changes)


def test_it_takes_the_best_of_what_the_contrast_leaves_and_reports_the_last_layer() -> None:
    (answer,) = run(table_engine(), [ask(logits=LogitsParams(0), logprobs=LogprobsParams(1), trace=True)])
    model, history = TableModel(), list(PROMPT)
    for token, logprob, event in zip(answer.tokens(), answer.choices[0].logprobs, answer.trace, strict=True):
        state = states_of(model, history)[-1:]
        logp = model.head(state)[0].log_softmax(-1)
        layer = event.values["layer"]
        assert isinstance(layer, int)
        scores = logp - model.project(state + layer)[0].log_softmax(-1)
        assert token == int(scores.masked_fill(logp < logp.max() - 2.302585, -1e9).argmax())
        assert logprob == pytest.approx(float(logp[token]), abs=logprob_error())
        history.append(token)
    assert len({event.values["layer"] for event in answer.trace}) > 1


def test_penalties_and_temperature_act_on_the_contrast() -> None:
    """With few tokens plausible, a bias can only choose among them."""
    biased = ask(logits=LogitsParams(0, logit_bias=tuple((i, 1000.0) for i in range(20))))
    (answer,) = run(table_engine(), [biased])
    model, history = TableModel(), list(PROMPT)
    for token in answer.tokens():
        logp = model.head(states_of(model, history)[-1:])[0].log_softmax(-1)
        plausible = (logp >= logp.max() - 2.302585).nonzero().flatten().tolist()
        assert token in plausible
        assert token < 20 or not [i for i in plausible if i < 20]
        history.append(token)


def test_choices_are_seeded_and_the_first_is_the_single_one() -> None:
    hot = LogitsParams(2.0)
    single, again, other = (run(table_engine(), [ask(logits=hot, seed=s)])[0].tokens() for s in (1, 1, 2))
    several = run(table_engine(), [ask(3, logits=hot, seed=1, trace=True)])[0]
    assert single == again == several.tokens(0) != other
    assert len({tuple(several.tokens(i)) for i in range(3)}) > 1
    for i in range(3):
        traced = [event.values["token"] for event in several.trace if event.values["choice"] == i]
        assert traced == several.tokens(i)


def test_nothing_to_generate_runs_no_forward_and_still_scores_a_prompt() -> None:
    model = TableModel()
    run(table_engine(models={"main": model}), [ask(stopping=StoppingParams(0))])
    assert model.num_forwards == 0
    (answer,) = run(table_engine(), [ask(stopping=StoppingParams(0), logprobs=LogprobsParams(prompt=1))])
    assert answer.prompt is not None
    assert len(answer.prompt.logprobs) == len(PROMPT)


@pytest.mark.parametrize("num_layers", [1, 4])
def test_a_rows_contrast_does_not_depend_on_its_neighbours(num_layers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 50_000, generator=generator)
    premature = torch.randn(9, num_layers, 50_000, generator=generator)
    together, layers = contrast(logits, premature)
    for row in range(9):
        alone, layer = contrast(logits[row : row + 1], premature[row : row + 1])
        assert torch.equal(alone[0], together[row])
        assert int(layer) == int(layers[row])


def test_at_least_one_layer_is_needed() -> None:
    with pytest.raises(InvalidParam, match="dola_layers"):
        Dola(())


EOS = 11
VOCAB = 40
SEVERAL = tuple(range(12, VOCAB))
REPETITIVE = tuple(random.Random(5).randrange(12) for _ in range(150))


@dataclasses.dataclass(frozen=True)
class Mask:
    """excludes: the text and how much of it is output -> what may not come."""

    logits: LogitsParams
    excludes: Callable[[list[int], int], set[int]]
    stopping: StoppingParams = StoppingParams(30, ignore_eos=True)  # noqa: RUF009 - frozen
    prompt: tuple[int, ...] = PROMPT


def followers(text: list[int], num_output: int) -> set[int]:
    return {*SEVERAL, *(b for a, b in itertools.pairwise(text) if a == text[-1])}


MASKS = {
    "no token twice": Mask(LogitsParams(0, no_repeat_ngram_size=1), lambda text, _: set(text)),
    "no bigram twice": Mask(
        LogitsParams(0, no_repeat_ngram_size=2, allowed_token_ids=tuple(range(12))), followers, prompt=REPETITIVE
    ),
    "allowed ids": Mask(LogitsParams(0, allowed_token_ids=(1, 5, 20)), lambda *_: {*range(VOCAB)} - {1, 5, 20}),
    "bad words": Mask(LogitsParams(0, bad_words=tuple((i,) for i in SEVERAL)), lambda *_: {*SEVERAL}),
    "min_tokens": Mask(
        LogitsParams(0),
        lambda _, num_output: {EOS, *SEVERAL} if num_output < 20 else set(),
        StoppingParams(30, min_tokens=20, stop_token_ids=SEVERAL),
    ),
    "a grammar": Mask(
        LogitsParams(0, grammar=Grammar("regex", "[d-h]{30}")),
        lambda *_: {*range(VOCAB)} - {*range(3, 8)},
        StoppingParams(30),
    ),
}


def near_the_best(p: list[float], ids: set[int], relative_top: float) -> set[int]:
    return {i for i in ids if p[i] >= relative_top * max(p[j] for j in ids) * (1 - logprob_error())}


@pytest.mark.parametrize("relative_top", [0.6, 0.9])
@pytest.mark.parametrize("name", list(MASKS))
def test_where_masks_forbid_all_that_is_plausible_the_next_best_is(name: str, relative_top: float) -> None:
    mask, token_bytes = MASKS[name], [bytes([97 + i]) for i in range(26)]
    strategy = Dola(LAYERS, relative_top=relative_top)
    asked = Request(mask.prompt, strategy, mask.logits, mask.stopping, trace=True)
    (answer,) = run(table_engine(eos=(EOS,), num_pages=400, token_bytes=token_bytes), [asked])
    assert answer.failure is None
    model, output, num_beyond = TableModel(), [], 0
    for token, event in zip(answer.tokens(), answer.trace, strict=True):
        text = [*mask.prompt, *output]
        state = states_of(model, text)[-1:]
        p = model.head(state)[0].softmax(-1).tolist()
        layer = event.values["layer"]
        assert isinstance(layer, int)
        q = model.project(state + layer)[0].softmax(-1).tolist()
        left = {*range(VOCAB)} - mask.excludes(text, len(output))
        plausible = left & near_the_best(p, {*range(VOCAB)}, relative_top) or near_the_best(p, left, relative_top)
        assert token == max(plausible, key=lambda i: p[i] / q[i])
        num_beyond += p[token] < relative_top * max(p)
        output.append(token)
    assert num_beyond > 0, "the masks never bit"


def test_masks_that_leave_no_token_at_all_end_the_request() -> None:
    logits = LogitsParams(0, allowed_token_ids=(4,), no_repeat_ngram_size=1)
    (answer,) = run(table_engine(), [ask(logits=logits)])
    assert answer.failure is not None
    assert answer.failure.code == "nothing_to_draw"


def test_the_fraction_of_the_likeliest_lies_above_0() -> None:
    with pytest.raises(InvalidParam, match="dola_relative_top"):
        Dola(LAYERS, relative_top=0)
