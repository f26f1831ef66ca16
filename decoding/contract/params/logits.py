"""Parameters of the row-wise logits pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from decoding.contract.params.declared import (
    MAX_INT,
    PROBABILITY,
    IsStep,
    Off,
    Offered,
    PartOf,
    Says,
    TokenId,
    Within,
    check_declared,
    declared,
    token_ids,
)
from decoding.contract.params.grammar import Grammar
from decoding.contract.params.invalid import check
from decoding.contract.params.plugin import PluginStep

SamplerOrder = Literal["hf", "vllm"]
PenaltyScope = Literal["prompt+output", "output"]


@dataclass(frozen=True, slots=True)
class Edt:
    """T = T0 * base ** (theta / H), H the entropy."""

    WITHIN: ClassVar[str] = "edt"

    theta: Annotated[float, Within(0, 1000), Says("How strongly certainty cools; 0: not at all.")]
    base: Annotated[float, Within(gt=0, le=1), Says("The base of the power.")] = 0.8

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True, slots=True)
class Adapt:
    """`hot` for the first token of a code line or block, `cold` for the others."""

    WITHIN: ClassVar[str] = "adapt"

    hot: Annotated[
        float,
        Within(0, 100),
        Says("Temperature of the first token after a newline and its indentation, the prompt's included."),
    ]
    cold: Annotated[float, Within(0, 100), Says("Temperature of every other token.")]
    first_token: Annotated[bool, Says("Whether the answer's first token is hot wherever the prompt ends.")] = False

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True, slots=True)
class LogitsParams:
    """The row-wise logits pipeline of decoding-methods 0.2; a default switches its step off.

    bad_words: id sequences whose last id is excluded after the others.
    forced_bos_token_id: the first output token, where the prompt is a single one.
    forced_eos_token_ids: what is left for the last of max_tokens.
    min_tokens_to_keep: filters never keep fewer (Hugging Face's beam sample needs more than one).
    grammar: what the answer must match; its end is the answer's, so min_tokens and ignore_eos do not go with it.
    plugin_steps: those of plugins, in the order in which the operator names them.
    """

    GREEDY_BELOW: ClassVar[float] = 1e-5

    # fmt: off
    temperature: Annotated[
        float, Within(0), Offered(0, 100), Says("Divides the logits; below 1e-5: greedy."),
        IsStep("temperature", "Flattens (> 1) or sharpens (< 1) the distribution."),
    ] = 1.0
    top_k: Annotated[
        int, Within(0, MAX_INT), Off(-1),
        Says("The k likeliest tokens; 0 or -1 is off. With penalty_alpha: the number of candidates."),
        IsStep("filter", "Only the k likeliest tokens.", "Fan et al. 2018, arXiv 1805.04833"),
    ] = 0
    top_p: Annotated[
        float, PROBABILITY, Says("Nucleus: the likeliest tokens that make up this probability; 1 is off."),
        IsStep("filter", "Only the nucleus of likely tokens.", "Holtzman et al. 2020, arXiv 1904.09751"),
    ] = 1.0
    min_p: Annotated[
        float, PROBABILITY, Says("Tokens at least this fraction as likely as the likeliest; 0 is off."),
        IsStep("filter", "Only tokens not much less likely than the likeliest; for high temperatures.",
               "Nguyen et al. 2024, arXiv 2407.01082"),
    ] = 0.0
    top_n_sigma: Annotated[
        float, Within(0, 1000), Off(-1),
        Says("Tokens whose logit lies within n standard deviations of the highest; 0 or -1 is off."),
        IsStep("filter", "Only logits near the highest, whatever the temperature.", "arXiv 2411.07641"),
    ] = 0.0
    typical_p: Annotated[
        float, Within(gt=0, le=1), Says("Locally typical tokens that make up this probability; 1 is off."),
        IsStep("filter", "Only tokens of typical surprise.", "Meister et al. 2022, arXiv 2202.00666"),
    ] = 1.0
    epsilon_cutoff: Annotated[
        float, Within(0, lt=1), Says("Tokens at least this likely; 0 is off."),
        IsStep("filter", "Only tokens above a probability.", "arXiv 2210.15191"),
    ] = 0.0
    eta_cutoff: Annotated[
        float, Within(0, lt=1), Says("As epsilon_cutoff, relaxed where entropy is high; 0 is off."),
        IsStep("filter", "The same, relaxed where entropy is high.", "arXiv 2210.15191"),
    ] = 0.0
    edt: Annotated[
        Edt | None, Says("Temperature by the entropy of each step."),
        IsStep("dynamic temperature", "Temperature by entropy: bold where many tokens fit, careful where few do.",
               "Zhang et al. 2024, arXiv 2403.14541"),
    ] = None
    adapt: Annotated[
        Adapt | None, Says("Temperature by the place in a line of code."),
        IsStep("dynamic temperature", "Hotter at the beginning of a line of code.", "Zhu et al. 2024, AAAI"),
    ] = None
    repetition_penalty: Annotated[
        float, Within(0.01, 100),
        Says("Divides (if negative multiplies) the logit of tokens already there; 1 is off."),
        IsStep("penalty", "Fewer repetitions, by dividing logits; a window makes it penalty decoding's.",
               "Keskar et al. 2019, arXiv 1909.05858; Zhu et al. 2023, arXiv 2310.14971"),
    ] = 1.0
    repetition_penalty_scope: Annotated[
        PenaltyScope, Says("Which tokens are already there."), PartOf("repetition_penalty"),
    ] = "prompt+output"
    repetition_penalty_window: Annotated[
        int, Within(0, MAX_INT),
        Says("Only the last so many tokens of what repetition_penalty_scope names count; 0: all."),
        PartOf("repetition_penalty"),
    ] = 0
    frequency_penalty: Annotated[
        float, Within(), Offered(-2, 2), Says("Taken from the logit once for each time the answer has the token."),
        IsStep("penalty", "Fewer repetitions, by count in the answer."),
    ] = 0.0
    presence_penalty: Annotated[
        float, Within(), Offered(-2, 2), Says("Taken from the logit of each token of the answer so far."),
        IsStep("penalty", "Fewer repetitions, by presence in the answer."),
    ] = 0.0
    no_repeat_ngram_size: Annotated[
        int, Within(0, MAX_INT), Says("No n tokens in a row come twice, the prompt included; 0 is off."),
        IsStep("penalty", "No n-gram twice.", "Paulus et al. 2017, arXiv 1705.04304"),
    ] = 0
    lz_penalty: Annotated[
        float, Within(0, 100),
        Says("Taken from the logit of a token for each bit that LZ77 would save on it; 0 is off."),
        IsStep("penalty", "Against loops: penalises what LZ77 would compress.", "Ginart et al. 2025, arXiv 2504.20131"),
    ] = 0.0
    lz_scope: Annotated[PenaltyScope, Says("Which tokens LZ77 has read."), PartOf("lz_penalty")] = "output"
    lz_buffer: Annotated[
        int, Within(1, 512), Says("Tokens of LZ77's buffer."), PartOf("lz_penalty", has_neutral=False),
    ] = 32
    lz_window: Annotated[
        int, Within(1, 8192), Says("Tokens of LZ77's window before the buffer."),
        PartOf("lz_penalty", has_neutral=False),
    ] = 512
    eos_penalty: Annotated[
        float, Within(-100, 100),
        Says("Taken from the logit of EOS for each token that eos_penalty_until is away; 0 is off."),
        IsStep("length", "Longer answers: EOS held down until a length.",
               "Zhu et al. 2023, arXiv 2310.14971", needs="eos_penalty_until"),
    ] = 0.0
    eos_penalty_until: Annotated[
        int, Within(0, MAX_INT), Says("Length from which eos_penalty has no effect."), PartOf("eos_penalty"),
    ] = 0
    exponential_decay_length_penalty: Annotated[
        tuple[int, float] | None, Says("[start, factor]: from `start` tokens on EOS gets likelier exponentially."),
        IsStep("length", "Answers that end soon behind a length."),
    ] = None
    logit_bias: Annotated[
        tuple[tuple[int, float], ...], Says("Added to the logits of these token ids."),
        IsStep("mask", "Single tokens made likelier or less likely."),
    ] = ()
    allowed_token_ids: Annotated[
        tuple[TokenId, ...] | None, Says("No other token is ever chosen."),
        IsStep("mask", "No tokens but these."),
    ] = None
    bad_words: Annotated[
        tuple[tuple[TokenId, ...], ...],
        Says("Texts whose tokens never come in a row, with and without a space before."),
        IsStep("mask", "Words that never come."),
    ] = ()
    sampler_order: Annotated[
        SamplerOrder, Says("Whether min_p comes last (hf) or first (vllm)."), PartOf("min_p"),
    ] = "hf"
    # fmt: on
    min_tokens_to_keep: Annotated[int, Within(1)] = 1
    grammar: Grammar | None = None
    forced_bos_token_id: TokenId | None = None
    forced_eos_token_ids: tuple[TokenId, ...] = ()
    plugin_steps: tuple[PluginStep, ...] = ()

    def __post_init__(self) -> None:
        check_declared(self)
        check(self.edt is None or self.adapt is None, "edt", "and adapt exclude each other")
        check(self.allowed_token_ids != (), "allowed_token_ids", "needs at least one id >= 0")
        check(all(self.bad_words), "bad_words", "must not hold an empty sequence")
        for token_id, bias in self.logit_bias:
            check(token_id >= 0 and math.isfinite(bias), "logit_bias", "needs ids >= 0 and finite values")
        decay = self.exponential_decay_length_penalty
        if decay is not None:
            check(0 <= decay[0] <= MAX_INT, "exponential_decay_length_penalty", "must start at a token from 0 to 2**31")
            check(math.isfinite(decay[1]) and decay[1] > 0, "exponential_decay_length_penalty", "needs a factor > 0")

    @property
    def is_greedy(self) -> bool:
        """Adapt brings temperatures of its own; each of its two may still be 0."""
        return self.adapt is None and self.temperature < self.GREEDY_BELOW

    @property
    def warps(self) -> bool:
        """Whether a temperature or a filter changes what there is to draw from."""
        is_warped = any(getattr(self, name) != getattr(NEUTRAL, name) for name in WARPING)
        return not self.is_greedy and (is_warped or any(step.warps for step in self.plugin_steps))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every id that a field names."""
        own = (token_id for step in self.plugin_steps for token_id in step.token_ids)
        return (*token_ids(self), *(token_id for token_id, _ in self.logit_bias), *own)


NEUTRAL = LogitsParams()
STEPS = {name: step for name, each in declared(LogitsParams).items() if (step := each.mark(IsStep))}
WARPING = tuple(name for name, step in STEPS.items() if step.kind in ("temperature", "filter", "dynamic temperature"))
