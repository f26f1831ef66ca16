"""The pipeline against Hugging Face's processors (recorded with 4.55.4), and against formulas where it has none."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decoding.contract.params import LogitsParams, StoppingParams
from decoding.logits.context import Context
from decoding.logits.history import History
from decoding.logits.pipeline import Pipelines, process, warp

GOLDEN = Path(__file__).parents[2] / "goldens" / "processors.json"


@cache
def golden() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def row(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([-math.inf if v is None else v for v in values])


def case_inputs(case: dict[str, Any]) -> tuple[torch.Tensor, LogitsParams, StoppingParams, History]:
    params = LogitsParams(
        temperature=case["temperature"],
        top_k=case["top_k"],
        top_p=case["top_p"],
        min_p=case["min_p"],
        repetition_penalty=case["repetition_penalty"],
    )
    stopping = StoppingParams(max_tokens=100, min_tokens=case["min_new_tokens"])
    history = History(np.array(case["input_ids"], dtype=np.int64), case["prompt_length"])
    return row(golden()["rows"][case["row"]]), params, stopping, history


def run(scores: torch.Tensor, params: LogitsParams, stopping: StoppingParams, history: History) -> torch.Tensor:
    return run_all([scores], [params], [stopping], [history])[0]


def run_all(scores: Any, params: Any, stopping: Any, histories: Any, eos: tuple[int, ...] = ()) -> torch.Tensor:
    chains = [Pipelines(eos).build(p, s) for p, s in zip(params, stopping, strict=True)]
    context = Context(histories, torch.stack(scores))
    return warp(process(torch.stack(scores), chains, context), chains, context)


@pytest.mark.parametrize("index", range(60))
def test_each_chain_gives_what_hugging_face_gave(index: int) -> None:
    case = golden()["cases"][index]
    scores, params, stopping, history = case_inputs(case)
    ours = run_all([scores], [params], [stopping], [history], tuple(case["eos_token_ids"]))[0]
    theirs = row(case["outputs"]["chain"])
    if not torch.equal(ours.isinf(), theirs.isinf()):  # its top-p sorts unstably: only equals may have changed places
        border = ours[ours.isfinite()].min()
        assert (scores_at_border(ours, theirs) == border).all()
        ours, theirs = ours.sort().values, theirs.sort().values
    assert torch.equal(ours, theirs)


def scores_at_border(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The finite scores of ids that one side keeps and the other does not."""
    return torch.maximum(ours, theirs)[ours.isinf() != theirs.isinf()]


def test_rows_with_different_parameters_do_not_touch_each_other() -> None:
    inputs = [case_inputs(case) for case in golden()["cases"]]
    alone = torch.stack([run(*one) for one in inputs])
    together = run_all(*(list(column) for column in zip(*inputs, strict=True)))
    assert torch.equal(alone, together)


def test_neutral_parameters_build_no_step() -> None:
    chain = Pipelines((2,)).build(LogitsParams(), StoppingParams())
    assert (chain.processors, chain.warpers) == ((), ())


def test_greedy_keeps_the_processors_and_ignores_the_filters() -> None:
    params = LogitsParams(temperature=0, top_k=3, top_p=0.1, min_p=0.5, repetition_penalty=2)
    chain = Pipelines(()).build(params, StoppingParams())
    assert len(chain.processors) == 1
    assert chain.warpers == ()


def history(prompt: list[int], output: list[int]) -> History:
    return History(np.array(prompt + output, dtype=np.int64), len(prompt))


def test_frequency_and_presence_count_output_tokens_only() -> None:
    params = LogitsParams(frequency_penalty=0.5, presence_penalty=0.25)
    got = run(torch.zeros(8), params, StoppingParams(), history([1, 1, 2], [3, 3, 4]))
    assert got.tolist() == [0, 0, 0, -1.25, -0.75, 0, 0, 0]


def test_logit_bias_is_added_before_the_penalty() -> None:
    params = LogitsParams(logit_bias=((1, 4.0), (2, -1.0)), repetition_penalty=2)
    got = run(torch.zeros(4), params, StoppingParams(), history([1, 2], []))
    assert got.tolist() == [0, 2, -2, 0]


def test_allowed_token_ids_exclude_all_others() -> None:
    got = run(torch.ones(5), LogitsParams(allowed_token_ids=(3, 1, 3)), StoppingParams(), history([0], []))
    assert got.tolist() == [-math.inf, 1, -math.inf, 1, -math.inf]


def test_min_tokens_masks_eos_and_stop_ids_until_enough_are_out() -> None:
    stopping = StoppingParams(max_tokens=9, min_tokens=2, stop_token_ids=(4,))
    early = run_all([torch.zeros(6)], [LogitsParams()], [stopping], [history([0], [1])], eos=(2,))
    late = run_all([torch.zeros(6)], [LogitsParams()], [stopping], [history([0], [1, 1])], eos=(2,))
    assert early[0].isinf().nonzero().flatten().tolist() == [2, 4]
    assert not late.isinf().any()


def test_the_vllm_order_puts_min_p_before_top_k_and_top_p() -> None:
    scores = torch.tensor([0.5, 0.3, 0.12, 0.08]).log()
    hf, vllm = (
        run(scores, LogitsParams(top_p=0.85, min_p=0.2, sampler_order=order), StoppingParams(), history([0], []))
        for order in ("hf", "vllm")
    )
    assert hf.isfinite().tolist() == [True, True, True, False]
    assert vllm.isfinite().tolist() == [True, True, False, False]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p_over_a_large_vocabulary_equals_the_full_sort(p: float) -> None:
    """Flat and peaked rows: those the quick look covers and those it does not."""
    scores = torch.randn(12, 5000, generator=torch.Generator().manual_seed(3)) * torch.tensor([[0.1], [1], [4]] * 4)
    got = run_all(list(scores), [LogitsParams(top_p=p)] * 12, [StoppingParams()] * 12, [history([0], [])] * 12)
    ascending, order = scores.sort(dim=-1, stable=True)
    keep = ascending.softmax(-1).cumsum(-1) > 1 - p
    keep[:, -1] = True
    expected = torch.zeros_like(keep).scatter(1, order, keep)
    differing = (got.isfinite() != expected).sum(dim=-1)
    assert (differing <= 1).all(), "float32 and float64 sums may part by one token at the border, no more"
    assert (differing == 0).sum() >= 10
