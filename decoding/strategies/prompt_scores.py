"""Log-probs of the prompt's own tokens, for echo and prompt_logprobs.

Every position of the prompt's feed scores the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from decoding.params import Request
from decoding.seam import NOTHING, PromptEmit, Reading, Scores, Want


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


def scores_kind(request: Request) -> Scores:
    """The kind of score that the request's logprobs_mode names."""
    return Scores.RAW if request.logprobs.mode == "raw" else Scores.PROCESSED
