"""The drafting side of a speculating choice: its row in the draft model, and how far that lags behind the target's.

The last draft of a round is never fed, so the row lacks one token after a rejection and two after full acceptance.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from decoding.seam import Feed, RowId, RowView, Want
from decoding.strategies.parts.drafting import DraftLength


@dataclass(slots=True)
class DraftRow:
    """A choice's row in the draft model.

    lacking: tokens that are committed and not fed to it yet.
    length: how many tokens to draft.
    num_stale: so many of its last positions are not committed.
    tokens: this round's drafts.
    log_q: the log-prob of each draft in the draft model.
    q: where tokens are sampled, the log-probs [vocab] that each was drawn from.
    is_stuck: masks leave no token to follow the drafts.
    """

    row: RowId
    lacking: tuple[int, ...]
    length: DraftLength
    num_stale: int = 0
    tokens: list[int] = field(default_factory=list)
    log_q: list[float] = field(default_factory=list)
    q: list[torch.Tensor] = field(default_factory=list)
    is_stuck: bool = False

    def feed(self, want: Want) -> Feed:
        if self.tokens:
            return Feed(self.row, (self.tokens[-1],), want=want)
        return Feed(self.row, self.lacking, drop=self.num_stale, want=want)

    def take(self, view: RowView) -> None:
        """x_i, drawn at the row's last position."""
        self.row = view.row
        if not view.last.tokens:
            self.is_stuck = True
            return
        self.tokens.append(view.last.tokens[0])
        self.log_q += view.last.drawn_scores or [score for _, score in view.last.top] or [0.0]
        self.q += [view.last.kept] if view.last.kept is not None else []

    def is_over(self, most: int, ending_ids: Collection[int], confidence_threshold: float) -> bool:
        """Whether enough is drafted."""
        if not self.tokens or len(self.tokens) >= most or self.is_stuck:
            return len(self.tokens) >= most or self.is_stuck
        return self.tokens[-1] in ending_ids or math.exp(self.log_q[-1]) < confidence_threshold

    def restart(self, num_kept: int, last: int) -> None:
        """After a verification that kept so many drafts and put `last` behind them. The last draft was not fed unless
        it is where drafting got stuck."""
        num_fed = max(len(self.tokens) - (0 if self.is_stuck else 1), 0)
        self.num_stale = max(num_fed - num_kept, 0)
        self.lacking = (*self.tokens[num_fed:num_kept], last)
        self.length = self.length.after(len(self.tokens), num_kept)
        self.tokens, self.log_q, self.q, self.is_stuck = [], [], [], False
