"""Rows through the whole pipeline, for the tests of its steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoding.contract.params import LogitsParams, StoppingParams
from decoding.logits.context import Context
from decoding.logits.history import History
from decoding.logits.pipeline import Pipelines, process, warp

PLENTY = StoppingParams(max_tokens=100)


def history(prompt: Sequence[int], output: Sequence[int] = ()) -> History:
    return History(np.array([*prompt, *output], dtype=np.int64), len(prompt))


def run_all(
    scores: torch.Tensor,  # [rows, vocab]
    params: Sequence[LogitsParams],
    histories: Sequence[History],
    stopping: Sequence[StoppingParams] | None = None,
    pipelines: Pipelines | None = None,
) -> torch.Tensor:
    pipelines = pipelines or Pipelines((2,))
    stopping = stopping or [PLENTY] * len(params)
    chains = [pipelines.build(p, s) for p, s in zip(params, stopping, strict=True)]
    context = Context(histories, scores)
    return warp(process(scores.clone(), chains, context), chains, context)


def run(
    scores: torch.Tensor,  # [vocab]
    params: LogitsParams,
    seen: History,
    stopping: StoppingParams = PLENTY,
    pipelines: Pipelines | None = None,
) -> torch.Tensor:
    return run_all(scores.unsqueeze(0), [params], [seen], [stopping], pipelines)[0]


def kept(scores: torch.Tensor) -> list[int]:
    """The ids that are not excluded."""
    return [int(i) for i in scores.isfinite().nonzero().flatten()]
