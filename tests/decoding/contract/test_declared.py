"""What is declared of a parameter is what the engine holds it to."""

from __future__ import annotations

import math
from dataclasses import fields

import msgspec
import pytest

from decoding.contract.params import PARAMS, Adapt, Edt, Entropix, InvalidParam, LogitsParams, PromptLookup, Sed
from decoding.contract.params.declared import declared

EVERY = [*PARAMS.values(), LogitsParams, Edt, Adapt]


@pytest.mark.parametrize("params", EVERY)
def test_every_number_has_bounds(params: type) -> None:
    numbers = [each.name for each in fields(params) if "int" in str(each.type) or "float" in str(each.type)]
    by_hand = {"logit_bias", "exponential_decay_length_penalty"}
    assert [name for name in numbers if declared(params)[name].bounds is None and name not in by_hand] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_p": 1.5}, "min_p must be at most 1"),
        ({"min_p": -0.5}, "min_p must be at least 0"),
        ({"typical_p": 0}, "typical_p must be more than 0"),
        ({"epsilon_cutoff": 1}, "epsilon_cutoff must be less than 1"),
        ({"temperature": math.inf}, "temperature must be finite"),
        ({"top_p": math.nan}, "top_p must be finite"),
        ({"bad_words": ((3, -1),)}, "bad_words must be at least 0"),
    ],
)
def test_a_number_beyond_its_bounds_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidParam, match=f"^{message}$"):
        LogitsParams(**values)  # type: ignore[arg-type]


def test_a_refusal_bears_the_name_on_the_wire() -> None:
    for refused, path in ((lambda: PromptLookup(0), "prompt_lookup_num_tokens"), (lambda: Edt(-1), "edt.theta")):
        with pytest.raises(InvalidParam) as fault:
            refused()
        assert fault.value.param == path


def test_what_comes_from_another_process_is_held_to_them_too() -> None:
    with pytest.raises((InvalidParam, msgspec.ValidationError), match="must be at least 0"):
        msgspec.convert({"top_p": -1.0}, Entropix)


def test_token_ids_are_those_of_every_field_that_holds_some() -> None:
    assert sorted(Sed((5, 6), 7, 8, eval_before=(9,)).token_ids) == [5, 6, 7, 8, 9]
    named = LogitsParams(logit_bias=((4, 1.0),), allowed_token_ids=(3,), bad_words=((1, 2),), forced_eos_token_ids=(5,))
    assert sorted(named.token_ids) == [1, 2, 3, 4, 5]
