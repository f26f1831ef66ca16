"""How every strategy opens its prompt: pause tokens behind it, and the log-probs of the prompt's own tokens.

Those are for echo and prompt_logprobs: every position of the prompt's feed scores the next. Pause tokens (Goyal et al.
2023, arXiv 2310.02226) give the model more positions to compute in; no penalty sees them and none is ever emitted.
"""

from __future__ import annotations

from collections.abc import Sequence

from decoding.contract.params import Request
from decoding.seam import NOTHING, Feed, Open, PromptEmit, Reading, Want
from decoding.strategies.parts.report import scores_kind


def open_prompt(request: Request, want: Want, inner: Want | None = None) -> Feed:
    """The prompt and the pause tokens into a new row; `want` is read at the last of them.

    inner: what to read before that, where it is more than `inner_want(request)`; it must include that then.
    """
    pauses = request.pause_ids
    return Feed(
        Open(),
        request.prompt_ids + pauses,
        want=want,
        inner=inner_want(request) if inner is None else inner,
        num_injected=len(pauses),
    )


def inner_want(request: Request) -> Want:
    """What the prompt's positions before the last have to report."""
    num_top = request.logprobs.prompt
    return NOTHING if num_top is None else Want(gather_next=True, top_k=num_top, scores=scores_kind(request))


def prompt_scores(request: Request, readings: Sequence[Reading]) -> PromptEmit | None:
    """One entry per prompt token, the first None; None when the prompt is not to be scored.

    readings: those of the prompt's feed; the first len(prompt) - 1 were read with `inner_want`.
    """
    if request.logprobs.prompt is None:
        return None
    inner = readings[: len(request.prompt_ids) - 1]
    return PromptEmit(logprobs=(None, *(r.next_score for r in inner)), top=((), *(r.top for r in inner)))
