"""Latent thoughts, before whatever strategy says the answer: Coconut (Hao et al. 2024, arXiv 2412.06769).

    feed x_1 … x_T, <start>;  h = the last hidden state, behind the final norm
    count times: feed h in place of an embedding;  h = the last hidden state again
    feed <end>, and decode from there

Wraps a strategy, which sees a prompt that ends with <end>. No penalty sees the thoughts or the two tokens around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from decoding.contract.params import LatentThoughts, Request
from decoding.seam import Feed, Move, Observation, Reading, RowView, Strategy, Want

H = Want(hidden=True)


class LatentStrategy:
    def __init__(self, request: Request, thoughts: LatentThoughts, wrapped: Strategy) -> None:
        self._pause_ids = request.pause_ids
        self._thoughts = thoughts
        self._wrapped = wrapped
        self._num_left = thoughts.count
        self._readings: tuple[Reading, ...] = ()
        self._is_thinking = True

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        self._first = self._wrapped.begin(prompt_ids)
        opening = self._first.feeds[0]
        tokens = (*prompt_ids, self._thoughts.start_id)
        return Move((replace(opening, tokens=tokens, want=H, num_injected=1),))

    def step(self, seen: Observation) -> Move:
        if self._is_thinking:
            return self._think(seen.rows[0])
        if self._readings:
            seen, self._readings = self._with_prompt(seen), ()
        return self._wrapped.step(seen)

    def _think(self, row: RowView) -> Move:
        self._readings += row.readings
        if self._num_left:
            self._num_left -= 1
            h = row.last.hidden
            assert h is not None
            return Move((Feed(row.row, embeds=h.unsqueeze(0), want=H),))
        self._is_thinking = False
        opening = self._first.feeds[0]
        if opening.inner.is_empty:  # the wrapped strategy expects one reading alone
            self._readings = ()
        tokens = (self._thoughts.end_id, *self._pause_ids)
        end = replace(opening, parent=row.row, tokens=tokens, num_injected=len(tokens))
        return replace(self._first, feeds=(end, *self._first.feeds[1:]))

    def _with_prompt(self, seen: Observation) -> Observation:
        """What was read before <end> belongs to the same prompt."""
        prompt, *others = seen.rows
        return Observation((replace(prompt, readings=self._readings + prompt.readings), *others))
