"""The wire fields of the token-level steps: temperature, filters, penalties, masks, dynamic temperatures."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, TypeAdapter

from decoding.contract import params
from decoding.contract.params import LogitsParams
from server.wire.base import Items, TokenId, Wire, field_of, option

Bias = Annotated[float, Field(ge=-100, le=100)]
BiasKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
_ENTRIES = TypeAdapter(Items[tuple[BiasKey, Bias]])


def _up_to_a_fault(biases: object) -> object:
    """A map has no end at its first faulty entry, as lists have."""
    if isinstance(biases, dict):
        _ENTRIES.validate_python(list(biases.items()), strict=True)
    return biases


Biases = Annotated[dict[BiasKey, Bias], BeforeValidator(_up_to_a_fault)]


class Edt(Wire):
    """Entropy-based dynamic temperature: T = temperature * base ** (theta / H)."""

    theta: float = field_of(params.Edt, "theta")
    base: float | None = field_of(params.Edt, "base")


class Adapt(Wire):
    """AdapT: two temperatures, one for the first token of a line or block of code."""

    hot: float = field_of(params.Adapt, "hot")
    cold: float = field_of(params.Adapt, "cold")
    first_token: bool | None = field_of(params.Adapt, "first_token")


class TokenFields(Wire):
    temperature: float | None = field_of(LogitsParams, "temperature")
    top_p: float | None = field_of(LogitsParams, "top_p")
    top_k: int | None = field_of(LogitsParams, "top_k")
    min_p: float | None = field_of(LogitsParams, "min_p")
    top_n_sigma: float | None = field_of(LogitsParams, "top_n_sigma")
    typical_p: float | None = field_of(LogitsParams, "typical_p")
    epsilon_cutoff: float | None = field_of(LogitsParams, "epsilon_cutoff")
    eta_cutoff: float | None = field_of(LogitsParams, "eta_cutoff")
    sampler_order: params.SamplerOrder | None = field_of(LogitsParams, "sampler_order")

    presence_penalty: float | None = field_of(LogitsParams, "presence_penalty")
    frequency_penalty: float | None = field_of(LogitsParams, "frequency_penalty")
    repetition_penalty: float | None = field_of(LogitsParams, "repetition_penalty")
    repetition_penalty_scope: params.PenaltyScope | None = field_of(LogitsParams, "repetition_penalty_scope")
    repetition_penalty_window: int | None = field_of(LogitsParams, "repetition_penalty_window")
    no_repeat_ngram_size: int | None = field_of(LogitsParams, "no_repeat_ngram_size")
    lz_penalty: float | None = field_of(LogitsParams, "lz_penalty")
    lz_scope: params.PenaltyScope | None = field_of(LogitsParams, "lz_scope")
    lz_buffer: int | None = field_of(LogitsParams, "lz_buffer")
    lz_window: int | None = field_of(LogitsParams, "lz_window")
    eos_penalty: float | None = field_of(LogitsParams, "eos_penalty")
    eos_penalty_until: int | None = field_of(LogitsParams, "eos_penalty_until")
    exponential_decay_length_penalty: Annotated[Items[float], Field(min_length=2, max_length=2)] | None = field_of(
        LogitsParams, "exponential_decay_length_penalty"
    )

    logit_bias: Biases | None = field_of(LogitsParams, "logit_bias")
    allowed_token_ids: Items[TokenId] | None = field_of(LogitsParams, "allowed_token_ids")
    bad_words: Items[str] | None = field_of(LogitsParams, "bad_words")

    edt: Edt | None = field_of(LogitsParams, "edt")
    adapt: Adapt | None = field_of(LogitsParams, "adapt")


class PauseTokens(Wire):
    """Filler between prompt and answer. Exactly one of token_id and text."""

    token_id: TokenId | None = option("The token to repeat.")
    text: str | None = option("The text to repeat.")
    count: Annotated[int, Field(ge=1, le=4096)] = Field(description="How often.")


class LatentThoughts(Wire):
    """Coconut's: hidden states fed back as embeddings, between two tokens."""

    count: int = field_of(params.LatentThoughts, "count")
    start_id: int = field_of(params.LatentThoughts, "start_id")
    end_id: int = field_of(params.LatentThoughts, "end_id")
