"""What a request runs with, in wire names: the answer's `decoding.effective`. Neutral parameters are left out."""

from __future__ import annotations

from typing import Any

from decoding.params import BestOf, LogitsParams, Request, StoppingParams
from server.plan import Shown

IGNORED_BY_GREEDY = frozenset({"top_k", "top_p", "min_p", "sampler_order"})


def strategy_name(request: Request) -> str:
    """The strategy as clients know it: sampling at temperature 0 is greedy."""
    if request.strategy.NAME == "sampling" and request.logits.is_greedy:
        return "greedy"
    return request.strategy.NAME


def effective_params(request: Request, shown: Shown) -> dict[str, Any]:
    """Everything but the seed, which can differ between the prompts of a request."""
    return _strategy(request) | _logits(request.logits) | _stopping(request.stopping, shown) | _logprobs(request, shown)


def _strategy(request: Request) -> dict[str, Any]:
    strategy = request.strategy
    values: dict[str, Any] = {} if strategy.n == 1 else {"n": strategy.n}
    if isinstance(strategy, BestOf):
        values |= {"best_of": strategy.best_of, "best_of_rank": strategy.rank_by}
    return values


def _logits(logits: LogitsParams) -> dict[str, Any]:
    skipped = IGNORED_BY_GREEDY if logits.is_greedy else frozenset()
    values = {name: value for name, value in _changed(logits, LogitsParams()).items() if name not in skipped}
    if logits.logit_bias:
        values["logit_bias"] = {str(token_id): bias for token_id, bias in logits.logit_bias}
    return values


def _stopping(stopping: StoppingParams, shown: Shown) -> dict[str, Any]:
    values = {"max_tokens": stopping.max_tokens} | _changed(stopping, StoppingParams())
    if shown.stops:
        values["stop"] = shown.stops
    return values


def _logprobs(request: Request, shown: Shown) -> dict[str, Any]:
    values = {"logprobs": shown.logprobs, "prompt_logprobs": shown.prompt_logprobs}
    values = {name: value for name, value in values.items() if value is not None}
    if values and request.logprobs.mode != "raw":
        values["logprobs_mode"] = request.logprobs.mode  # type: ignore[assignment]
    return values | ({"priority": request.priority} if request.priority else {})


def _changed(params: LogitsParams | StoppingParams, neutral: LogitsParams | StoppingParams) -> dict[str, Any]:
    names = params.__dataclass_fields__
    return {name: getattr(params, name) for name in names if getattr(params, name) != getattr(neutral, name)}
