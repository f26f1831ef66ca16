"""The steps inside the engine: requests of every kind in one batch say what each says alone."""

from __future__ import annotations

from typing import Any

from decoding.contract.params import Adapt, Edt, LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from tests.decoding.drive import run
from tests.decoding.table_model import table_engine

BYTES = (b"x", b"\n", b"  ", b"y") * 10
PARAMS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.4, "repetition_penalty_window": 3, "temperature": 0},
    {"repetition_penalty": 1.4, "repetition_penalty_scope": "output", "no_repeat_ngram_size": 1},
    {"bad_words": ((3,), (1, 2)), "top_k": 5},
    {"eos_penalty": 3.0, "eos_penalty_until": 8, "exponential_decay_length_penalty": (9, 1.4)},
    {"lz_penalty": 2.0, "lz_buffer": 4, "lz_window": 12},
    {"top_n_sigma": 1.0, "temperature": 2.5},
    {"typical_p": 0.3, "min_tokens_to_keep": 3},
    {"epsilon_cutoff": 0.05, "eta_cutoff": 0.05},
    {"edt": Edt(1.5), "temperature": 1.2, "top_p": 0.9},
    {"adapt": Adapt(1.5, 0.0)},
)


def request(index: int, fields: dict[str, Any]) -> Request:
    """Half of them report processed scores, half raw ones."""
    logprobs = LogprobsParams(output=2, mode="processed" if index % 2 else "raw")
    prompt = (5, 1 + index, 5, 1 + index)
    return Request(prompt, Sampling(), LogitsParams(**fields), StoppingParams(14), logprobs, seed=index)


def test_every_step_says_in_a_batch_what_it_says_alone() -> None:
    requests = [request(i, fields) for i, fields in enumerate(PARAMS)]
    together = run(table_engine(eos=(4,), token_bytes=BYTES), requests)
    for asked, answer in zip(requests, together, strict=True):
        assert answer.failure is None
        assert run(table_engine(eos=(4,), token_bytes=BYTES), [asked])[0].said == answer.said


def test_a_row_whose_ids_are_all_excluded_fails_alone() -> None:
    hopeless = request(0, {"allowed_token_ids": (3,), "bad_words": ((3,),)})
    neighbour = request(1, {"edt": Edt(1.0)})
    failed, answered = run(table_engine(), [hopeless, neighbour])
    assert failed.failure is not None
    assert failed.failure.code == "nothing_to_draw"
    assert answered.said == run(table_engine(), [neighbour])[0].said


def test_no_id_comes_twice_where_one_grams_may_not_repeat() -> None:
    (answer,) = run(table_engine(), [request(0, {"no_repeat_ngram_size": 1, "temperature": 0})])
    ids = answer.tokens()
    assert len({5, 1, *ids}) == len(ids) + 2
