"""The logits pipeline of a request, and its run over many rows at once (order: decoding-methods 0.2).

Processors (bias, masks, penalties) always apply; warpers (temperature and filters) only where the row samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.logits.filters import MinP, TopK, TopP
from decoding.logits.history import History
from decoding.logits.masks import AllowedTokens, LogitBias, MinTokens
from decoding.logits.penalties import CountPenalty, RepetitionPenalty
from decoding.logits.step import Step
from decoding.logits.temperature import Temperature
from decoding.params import LogitsParams, StoppingParams


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One request's steps in order; both empty for plain greedy decoding."""

    processors: tuple[Step, ...]
    warpers: tuple[Step, ...]
    is_greedy: bool


class Pipelines:
    """Builds pipelines for one model: knows its EOS ids and the bytes its token ids stand for."""

    def __init__(self, eos_token_ids: Sequence[int], token_bytes: Sequence[bytes] = ()) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self.token_bytes = token_bytes

    def build(self, params: LogitsParams, stopping: StoppingParams) -> Pipeline:
        """The steps that are not neutral."""
        return Pipeline(
            processors=tuple(_processors(params, stopping, self._eos_token_ids)),
            warpers=() if params.is_greedy else tuple(_warpers(params)),
            is_greedy=params.is_greedy,
        )


def _processors(params: LogitsParams, stopping: StoppingParams, eos_token_ids: Sequence[int]) -> list[Step]:
    steps: list[Step] = []
    if params.allowed_token_ids is not None:
        steps.append(AllowedTokens(np.unique(np.asarray(params.allowed_token_ids, dtype=np.int64))))
    if params.logit_bias:
        ids, bias = zip(*params.logit_bias, strict=True)
        steps.append(LogitBias(np.asarray(ids, dtype=np.int64), np.asarray(bias, dtype=np.float32)))
    if stopping.min_tokens:
        ending = {*(() if stopping.ignore_eos else eos_token_ids), *stopping.stop_token_ids}
        steps.append(MinTokens(stopping.min_tokens, np.asarray(sorted(ending), dtype=np.int64)))
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenalty(params.repetition_penalty))
    if params.frequency_penalty or params.presence_penalty:
        steps.append(CountPenalty(params.frequency_penalty, params.presence_penalty))
    return steps


def _warpers(params: LogitsParams) -> list[Step]:
    temperature: list[Step] = [Temperature(params.temperature)] if params.temperature != 1 else []
    tops: list[Step] = [
        *([TopK(params.top_k)] if params.top_k else []),
        *([TopP(params.top_p)] if params.top_p < 1 else []),
    ]
    min_p: list[Step] = [MinP(params.min_p)] if params.min_p else []
    return temperature + (min_p + tops if params.sampler_order == "vllm" else tops + min_p)


def process(scores: torch.Tensor, pipelines: Sequence[Pipeline], histories: Sequence[History]) -> torch.Tensor:
    """Processors of every row: scores [rows, vocab] float32 (may be overwritten) -> [rows, vocab]."""
    return _run(scores, [p.processors for p in pipelines], histories)


def warp(scores: torch.Tensor, pipelines: Sequence[Pipeline], histories: Sequence[History]) -> torch.Tensor:
    """Warpers of every row that samples: scores [rows, vocab] float32 (may be overwritten) -> [rows, vocab]."""
    return _run(scores, [p.warpers for p in pipelines], histories)


def _run(scores: torch.Tensor, rows: list[tuple[Step, ...]], histories: Sequence[History]) -> torch.Tensor:
    """Run the rows' steps, grouping equal kinds at equal depth: each row's own order is kept."""
    for depth in range(max((len(steps) for steps in rows), default=0)):
        kinds: dict[type[Step], list[int]] = {}
        for index, steps in enumerate(rows):
            if depth < len(steps):
                kinds.setdefault(type(steps[depth]), []).append(index)
        for kind, indices in kinds.items():
            own = [rows[i][depth] for i in indices]
            seen = [histories[i] for i in indices]
            if len(indices) == len(rows):
                scores = kind.apply(scores, own, seen)
            else:
                scores[indices] = kind.apply(scores[indices], own, seen)
    return scores
