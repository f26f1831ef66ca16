"""The logits pipeline of a request, and its run over many rows at once.

Order of a row's steps (decoding-methods 0.2; Hugging Face's wherever it has the step, of which masks may go first since
excluded stays excluded):

    grammar, allowed_token_ids, logit_bias, bad_words, min_tokens,
    repetition, frequency and presence, no repeated n-grams, LZ, eos_penalty, exponential decay, those of plugins,
    forced BOS and EOS;
    top_n_sigma, temperature (static, EDT or AdapT), the other filters (`cutoffs.filters`), those of plugins.

Processors (before the semicolon) always apply; warpers (behind it) only where the row samples. EDT looks at the scores
as they came in, top_n_sigma at the processed ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from decoding.contract.params import LogitsParams, StoppingParams
from decoding.device import indices
from decoding.logits.context import Context
from decoding.logits.cutoffs import TopNSigma, filters
from decoding.logits.forced import ForcedBos, ForcedEos
from decoding.logits.grammar import GrammarMask, Grammars
from decoding.logits.lengths import EosPenalty, ExponentialDecay
from decoding.logits.lines import token_lines
from decoding.logits.lz import LzPenalty
from decoding.logits.masks import AllowedTokens, BadWords, LogitBias, MinTokens
from decoding.logits.penalties import CountPenalty, NoRepeatNgram, RepetitionPenalty
from decoding.logits.step import Step
from decoding.logits.temperature import EntropyTemperature, LineTemperature, Temperature


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One request's steps in order; both empty for plain greedy decoding. grammar: the processor of that name."""

    processors: tuple[Step, ...]
    warpers: tuple[Step, ...]
    is_greedy: bool
    grammar: GrammarMask | None = None


NEUTRAL = Pipeline((), (), is_greedy=True)


class Pipelines:
    """Builds pipelines for one model: knows its EOS ids, what its token ids stand for, and its grammars."""

    def __init__(
        self,
        eos_token_ids: Sequence[int],
        token_bytes: Sequence[bytes] = (),
        special_tokens: Sequence[tuple[int, str]] = (),
    ) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._special_tokens = special_tokens
        self.token_bytes = token_bytes

    def build(self, params: LogitsParams, stopping: StoppingParams) -> Pipeline:
        """The steps that are not neutral. Raises InvalidGrammar."""
        grammar = None if params.grammar is None else self.grammars.mask(params.grammar)
        masks = (*([] if grammar is None else [grammar]), *self._masks(params, stopping))
        own = {warps: tuple(self._of_plugins(params, warps=warps)) for warps in (False, True)}
        processors = (*masks, *_penalties(params), *self._lengths(params), *own[False], *_forced(params, stopping))
        warpers = () if params.is_greedy else (*self._temperatures(params), *filters(params), *own[True])
        return Pipeline(processors, warpers, params.is_greedy, grammar)

    def begin(self, params: LogitsParams) -> Future[Any] | None:
        """What `build` would wait for, under way in a thread; None where there is nothing."""
        return None if params.grammar is None else self.grammars.begin(params.grammar)

    def settle(self) -> None:
        """A tick is over."""
        if "grammars" in self.__dict__:
            self.grammars.settle()

    def rest(self) -> None:
        """No request is left."""
        if "grammars" in self.__dict__:
            self.grammars.rest()

    @cached_property
    def grammars(self) -> Grammars:
        """Takes a second of reading the vocabulary when first asked for."""
        return Grammars(self._eos_token_ids, self.token_bytes, self._special_tokens)

    @cached_property
    def _token_lines(self) -> np.ndarray:
        """Made at the first request that needs it."""
        return token_lines(self.token_bytes)

    def _of_plugins(self, params: LogitsParams, *, warps: bool) -> Iterator[Step]:
        for each in params.plugin_steps:
            if each.warps is warps:
                yield each.step(self._eos_token_ids, self.token_bytes)

    def _masks(self, params: LogitsParams, stopping: StoppingParams) -> Iterator[Step]:
        if params.allowed_token_ids is not None:
            yield AllowedTokens(_ids(params.allowed_token_ids))
        if params.logit_bias:
            ids, bias = zip(*params.logit_bias, strict=True)
            yield LogitBias(np.asarray(ids, dtype=np.int64), np.asarray(bias, dtype=np.float32))
        bad_words = BadWords.of(params.bad_words, self._eos_token_ids)
        if not bad_words.is_empty:
            yield bad_words
        if stopping.min_tokens:
            eos_token_ids = () if stopping.ignore_eos else self._eos_token_ids
            yield MinTokens(stopping.min_tokens, _ids((*eos_token_ids, *stopping.stop_token_ids)))

    def _lengths(self, params: LogitsParams) -> Iterator[Step]:
        if params.eos_penalty and params.eos_penalty_until:
            yield EosPenalty(params.eos_penalty, params.eos_penalty_until, _ids(self._eos_token_ids))
        if params.exponential_decay_length_penalty is not None:
            start, factor = params.exponential_decay_length_penalty
            if factor != 1:
                yield ExponentialDecay(start, factor, _ids(self._eos_token_ids))

    def _temperatures(self, params: LogitsParams) -> Iterator[Step]:
        if params.top_n_sigma:
            yield TopNSigma(params.top_n_sigma)
        edt, adapt = params.edt, params.adapt
        if adapt is not None:
            yield LineTemperature(adapt.hot, adapt.cold, adapt.first_token, self._token_lines)
        elif edt is not None and edt.theta and edt.base != 1:
            yield EntropyTemperature(params.temperature, edt.theta, edt.base)
        elif params.temperature != 1:
            yield Temperature(params.temperature)


def _ids(ids: Sequence[int]) -> np.ndarray:
    """Distinct ids, int64 [n]."""
    return np.unique(np.asarray(ids, dtype=np.int64))


def _penalties(params: LogitsParams) -> Iterator[Step]:
    if params.repetition_penalty != 1:
        scope, window = params.repetition_penalty_scope, params.repetition_penalty_window
        yield RepetitionPenalty(params.repetition_penalty, scope, window)
    if params.frequency_penalty or params.presence_penalty:
        yield CountPenalty(params.frequency_penalty, params.presence_penalty)
    if params.no_repeat_ngram_size:
        yield NoRepeatNgram(params.no_repeat_ngram_size)
    if params.lz_penalty:
        yield LzPenalty(params.lz_penalty, params.lz_buffer, params.lz_window, params.lz_scope)


def _forced(params: LogitsParams, stopping: StoppingParams) -> Iterator[Step]:
    if params.forced_bos_token_id is not None:
        yield ForcedBos(params.forced_bos_token_id)
    if params.forced_eos_token_ids:
        yield ForcedEos(_ids(params.forced_eos_token_ids), stopping.max_tokens)


def process(scores: torch.Tensor, pipelines: Sequence[Pipeline], context: Context) -> torch.Tensor:
    """Processors of every row: scores [rows, vocab] float32 (may be overwritten) -> [rows, vocab]."""
    return _run(scores, [p.processors for p in pipelines], context)


def warp(scores: torch.Tensor, pipelines: Sequence[Pipeline], context: Context) -> torch.Tensor:
    """Warpers of every row that samples: scores [rows, vocab] float32 (may be overwritten) -> [rows, vocab]."""
    return _run(scores, [p.warpers for p in pipelines], context)


def _run(scores: torch.Tensor, rows: list[tuple[Step, ...]], context: Context) -> torch.Tensor:
    """Run the rows' steps, grouping equal kinds at equal depth: each row's own order is kept."""
    for depth in range(max((len(steps) for steps in rows), default=0)):
        kinds: dict[type[Step], list[int]] = {}
        for index, steps in enumerate(rows):
            if depth < len(steps):
                kinds.setdefault(type(steps[depth]), []).append(index)
        for kind, carriers in kinds.items():
            own = [rows[i][depth] for i in carriers]
            if len(carriers) == len(rows):
                scores = kind.apply(scores, own, context)
            else:
                at = indices(carriers, scores.device)
                scores[at] = kind.apply(scores[at], own, context.of(carriers))
    return scores
