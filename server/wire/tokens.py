"""The wire fields of the token-level steps: temperature, filters, penalties, masks, dynamic temperatures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from server.wire.base import Count, Items, Probability, TokenId, Wire, option

Penalty = Annotated[float, Field(ge=-2, le=2)]
Cutoff = Annotated[float, Field(ge=0, lt=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Temperature = Annotated[float, Field(ge=0, le=100)]
"""The server's own bound, max_temperature, is usually lower."""
_ENTRIES = TypeAdapter(Items[tuple[BiasKey, Bias]])


def _up_to_a_fault(biases: object) -> object:
    """A map has no end at its first faulty entry, as lists have."""
    if isinstance(biases, dict):
        _ENTRIES.validate_python(list(biases.items()), strict=True)
    return biases


Biases = Annotated[dict[BiasKey, Bias], BeforeValidator(_up_to_a_fault)]


class Edt(Wire):
    """Entropy-based dynamic temperature: T = temperature * base ** (theta / H)."""

    theta: Annotated[float, Field(ge=0, le=1000)] = Field(description="How strongly certainty cools; 0: not at all.")
    base: Annotated[float, Field(gt=0, le=1)] | None = option("The base of the power.", 0.8)


class Adapt(Wire):
    """AdapT: two temperatures, one for the first token of a line or block of code."""

    hot: Temperature = Field(
        description="Temperature of the first token after a newline and its indentation, the prompt's included."
    )
    cold: Temperature = Field(description="Temperature of every other token.")
    first_token: bool | None = option("Whether the answer's first token is hot wherever the prompt ends.", False)


class TokenFields(Wire):
    temperature: Temperature | None = option("Divides the logits; below 1e-5: greedy.", 1.0)
    top_p: Probability | None = option("Nucleus: the likeliest tokens that make up this probability; 1 is off.", 1.0)
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = option(
        "The k likeliest tokens; 0 or -1 is off. With penalty_alpha: the number of candidates.", 0
    )
    min_p: Probability | None = option("Tokens at least this fraction as likely as the likeliest; 0 is off.", 0.0)
    top_n_sigma: Annotated[float, Field(ge=-1, le=1000)] | None = option(
        "Tokens whose logit lies within n standard deviations of the highest; 0 or -1 is off.", 0.0
    )
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = option(
        "Locally typical tokens that make up this probability; 1 is off.", 1.0
    )
    epsilon_cutoff: Cutoff | None = option("Tokens at least this likely; 0 is off.", 0.0)
    eta_cutoff: Cutoff | None = option("As epsilon_cutoff, relaxed where entropy is high; 0 is off.", 0.0)
    sampler_order: Literal["hf", "vllm"] | None = option("Whether min_p comes last (hf) or first (vllm).", "hf")

    presence_penalty: Penalty | None = option("Taken from the logit of each token of the answer so far.", 0.0)
    frequency_penalty: Penalty | None = option("Taken from the logit once for each time the answer has the token.", 0.0)
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = option(
        "Divides (if negative multiplies) the logit of tokens already there; 1 is off.", 1.0
    )
    repetition_penalty_scope: Literal["prompt+output", "output"] | None = option(
        "Which tokens are already there.", "prompt+output"
    )
    repetition_penalty_window: Count | None = option(
        "Only the last so many tokens of what repetition_penalty_scope names count; 0: all.", 0
    )
    no_repeat_ngram_size: Count | None = option("No n tokens in a row come twice, the prompt included; 0 is off.", 0)
    lz_penalty: Annotated[float, Field(ge=0, le=100)] | None = option(
        "Taken from the logit of a token for each bit that LZ77 would save on it; 0 is off.", 0.0
    )
    lz_scope: Literal["prompt+output", "output"] | None = option("Which tokens LZ77 has read.", "output")
    lz_buffer: Annotated[int, Field(ge=1, le=512)] | None = option("Tokens of LZ77's buffer.", 32)
    lz_window: Annotated[int, Field(ge=1, le=8192)] | None = option("Tokens of LZ77's window before the buffer.", 512)
    eos_penalty: Annotated[float, Field(ge=-100, le=100)] | None = option(
        "Taken from the logit of EOS for each token that eos_penalty_until is away; 0 is off.", 0.0
    )
    eos_penalty_until: Count | None = option("Length from which eos_penalty has no effect.", 0)
    exponential_decay_length_penalty: Annotated[Items[float], Field(min_length=2, max_length=2)] | None = option(
        "[start, factor]: from `start` tokens on EOS gets likelier exponentially."
    )

    logit_bias: Biases | None = option("Added to the logits of these token ids.")
    allowed_token_ids: Items[TokenId] | None = option("No other token is ever chosen.")
    bad_words: Items[str] | None = option("Texts whose tokens never come in a row, with and without a space before.")

    edt: Edt | None = option("Temperature by the entropy of each step.")
    adapt: Adapt | None = option("Temperature by the place in a line of code.")


class PauseTokens(Wire):
    """Filler between prompt and answer. Exactly one of token_id and text."""

    token_id: TokenId | None = option("The token to repeat.")
    text: str | None = option("The text to repeat.")
    count: Annotated[int, Field(ge=1, le=4096)] = Field(description="How often.")


class LatentThoughts(Wire):
    """Coconut's: hidden states fed back as embeddings, between two tokens."""

    count: Annotated[int, Field(ge=1, le=4096)] = Field(description="How many thoughts.")
    start_id: TokenId = Field(description="The token before them.")
    end_id: TokenId = Field(description="The token behind them.")
