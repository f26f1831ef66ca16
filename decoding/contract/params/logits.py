"""Parameters of the row-wise logits pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from decoding.contract.params.grammar import Grammar
from decoding.contract.params.invalid import check, check_finite

SamplerOrder = Literal["hf", "vllm"]
PenaltyScope = Literal["prompt+output", "output"]


@dataclass(frozen=True, slots=True)
class Edt:
    """Entropy-based dynamic temperature (Zhang et al. 2024, arXiv 2403.14541): T = T0 * base ** (theta / H)."""

    theta: float
    base: float = 0.8

    def __post_init__(self) -> None:
        check_finite(self.theta, "edt.theta", low=0)
        check(0 < self.base <= 1, "edt.base", "must lie in (0, 1]")


@dataclass(frozen=True, slots=True)
class Adapt:
    """AdapT (Zhu et al. 2024, AAAI): `hot` for the first token of a code line or block, `cold` for the others.

    first_token: whether the first output token is one of the former wherever the prompt ends.
    """

    hot: float
    cold: float
    first_token: bool = False

    def __post_init__(self) -> None:
        check_finite(self.hot, "adapt.hot", low=0, high=100)
        check_finite(self.cold, "adapt.cold", low=0, high=100)


@dataclass(frozen=True, slots=True)
class LogitsParams:
    """The row-wise logits pipeline of decoding-methods 0.2; a neutral value switches its step off.

    temperature: 0 or below 1e-5 is greedy (filters are then ignored). top_k, no_repeat_ngram_size: 0 is off.
    top_n_sigma, epsilon_cutoff, eta_cutoff, lz_penalty: 0 is off; typical_p: 1 is off.
    frequency and presence count output tokens; repetition_penalty counts what its scope says, of that the last
    `repetition_penalty_window` ids when a window is set (0: all). lz_penalty: logits per bit, over what lz_scope says.
    bad_words: id sequences whose last id is excluded after the others. eos_penalty: z_eos -= eos_penalty * (until - t).
    exponential_decay_length_penalty: (start, factor) as Hugging Face's. edt and adapt replace the static temperature.
    forced_bos_token_id: the first output token, where the prompt is a single one. forced_eos_token_ids: what is left
    for the last of max_tokens.
    min_tokens_to_keep: filters never keep fewer (Hugging Face's beam sample needs more than one).
    grammar: what the answer must match; its end is the answer's, so min_tokens and ignore_eos do not go with it.
    """

    GREEDY_BELOW: ClassVar[float] = 1e-5

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_n_sigma: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    repetition_penalty_scope: PenaltyScope = "prompt+output"
    repetition_penalty_window: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    eos_penalty: float = 0.0
    eos_penalty_until: int = 0
    exponential_decay_length_penalty: tuple[int, float] | None = None
    lz_penalty: float = 0.0
    lz_scope: PenaltyScope = "output"
    lz_buffer: int = 32
    lz_window: int = 512
    edt: Edt | None = None
    adapt: Adapt | None = None
    sampler_order: SamplerOrder = "hf"
    min_tokens_to_keep: int = 1
    grammar: Grammar | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_filters()
        self._check_penalties()
        self._check_ids()
        check(self.edt is None or self.adapt is None, "edt", "and adapt exclude each other")

    def _check_filters(self) -> None:
        check(
            math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "must be finite and not negative"
        )
        check(self.top_k >= 0, "top_k", "must not be negative")
        check(0 <= self.top_p <= 1, "top_p", "must lie in [0, 1]")
        check(0 <= self.min_p <= 1, "min_p", "must lie in [0, 1]")
        check_finite(self.top_n_sigma, "top_n_sigma", low=0)
        check(0 < self.typical_p <= 1, "typical_p", "must lie in (0, 1]")
        check(0 <= self.epsilon_cutoff < 1, "epsilon_cutoff", "must lie in [0, 1)")
        check(0 <= self.eta_cutoff < 1, "eta_cutoff", "must lie in [0, 1)")
        check(self.min_tokens_to_keep >= 1, "min_tokens_to_keep", "must be at least 1")

    def _check_penalties(self) -> None:
        theta = self.repetition_penalty
        check(math.isfinite(theta) and theta > 0, "repetition_penalty", "must be finite and positive")
        check(self.repetition_penalty_window >= 0, "repetition_penalty_window", "must not be negative")
        check_finite(self.frequency_penalty, "frequency_penalty")
        check_finite(self.presence_penalty, "presence_penalty")
        check(self.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", "must not be negative")
        check_finite(self.eos_penalty, "eos_penalty")
        check(self.eos_penalty_until >= 0, "eos_penalty_until", "must not be negative")
        check_finite(self.lz_penalty, "lz_penalty", low=0)
        check(self.lz_buffer >= 1, "lz_buffer", "must be at least 1")
        check(self.lz_window >= 1, "lz_window", "must be at least 1")
        decay = self.exponential_decay_length_penalty
        if decay is not None:
            check(0 <= decay[0] < 1 << 31, "exponential_decay_length_penalty", "must start at a token from 0 to 2**31")
            check(math.isfinite(decay[1]) and decay[1] > 0, "exponential_decay_length_penalty", "needs a factor > 0")

    def _check_ids(self) -> None:
        check(
            all(i >= 0 and math.isfinite(b) for i, b in self.logit_bias),
            "logit_bias",
            "needs ids >= 0 and finite values",
        )
        allowed = self.allowed_token_ids
        check(
            allowed is None or (len(allowed) > 0 and min(allowed) >= 0),
            "allowed_token_ids",
            "needs at least one id >= 0",
        )
        check(
            self.forced_bos_token_id is None or self.forced_bos_token_id >= 0,
            "forced_bos_token_id",
            "must be an id >= 0",
        )
        check(min(self.forced_eos_token_ids, default=0) >= 0, "forced_eos_token_ids", "must hold ids >= 0")
        check(all(word and min(word) >= 0 for word in self.bad_words), "bad_words", "must hold sequences of ids >= 0")

    @property
    def is_greedy(self) -> bool:
        """Adapt brings temperatures of its own; each of its two may still be 0."""
        return self.adapt is None and self.temperature < self.GREEDY_BELOW

    @property
    def warps(self) -> bool:
        """Whether a temperature or a filter changes what there is to draw from."""
        return not self.is_greedy and any(getattr(self, name) != getattr(NEUTRAL, name) for name in WARPING)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every id that a field names."""
        biased = tuple(token_id for token_id, _ in self.logit_bias)
        forced = self.forced_eos_token_ids
        forced += () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        return biased + forced + (self.allowed_token_ids or ()) + tuple(i for word in self.bad_words for i in word)


NEUTRAL = LogitsParams()
WARPING = (
    *("temperature", "top_k", "top_p", "min_p", "top_n_sigma", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("edt", "adapt"),
)
