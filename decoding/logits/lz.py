"""The LZ penalty (Ginart et al. 2025, arXiv 2504.20131): take out of the distribution what LZ77 could have foretold.

    z_i += alpha * (C_i - log V),  C_i = what appending i adds to the LZ77 code of the text, at most log V

In bits: alpha is what a bit that LZ77 saves costs an id, in logits. The text is the last window + buffer ids of the
output (or of prompt and output). Its current phrase is the longest run of ids at its end, within the buffer, that
occurs earlier in it (l ids, nearest at distance d). A phrase costs log d + log l if it is a match, which takes at least
L0 ids, else log V an id; L0 is the least L for which log W + log L <= L log V. Then i adds

    what the phrase grows by, to length l + 1 at the distance d' where i followed it, if it ever did;
    else the cost of i as a phrase of its own: log of its distance if L0 = 1, log V if not or never seen.

So ids not in the text stay as they are and all others fall. (The authors' serving code subtracts alpha * (log V - log
d), d the distance of an id's nearest occurrence among those whose ids before match the text's end longest, once more
than `buffer` ids are out. The above differs from it by what a match's length costs, so alpha means the same. Their
companion script subtracts alpha * C_i, which by the paper's own reading would favour repeats.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.contract.params import PenaltyScope
from decoding.logits.context import Context
from decoding.logits.history import NO_IDS, History, distinct
from decoding.logits.step import shift

BITS = 1 / math.log(2)
"""Per nat."""


@dataclass(frozen=True, slots=True)
class LzPenalty:
    alpha: float
    buffer: int = 32
    window: int = 512
    scope: PenaltyScope = "output"

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[LzPenalty], context: Context) -> torch.Tensor:
        vocab = scores.shape[-1]
        found = [s._added(h, vocab) for s, h in zip(steps, context.histories, strict=True)]
        amounts = [s.alpha * BITS * (added - math.log(vocab)) for s, (_, added) in zip(steps, found, strict=True)]
        return shift(scores, [ids for ids, _ in found], amounts)

    def _added(self, history: History, vocab: int) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ids of the text and the C_i of each, in nats."""
        text = history.within(self.scope)[-(self.window + self.buffer) :]
        if not len(text):
            return NO_IDS, np.empty(0)
        shortest = shortest_match(self.window, vocab)
        ids, place = distinct(text, vocab), np.empty(vocab, dtype=np.int64)
        place[text] = np.arange(len(text), 0, -1)  # of an id that occurs more than once, the nearest stays written
        added = np.log(place[ids]) if shortest == 1 else np.full(len(ids), math.log(vocab))
        length, ends = current_phrase(history.matched[len(history.ids) - len(text) :], self.buffer)
        if length and length + 1 >= shortest:
            is_match = length >= shortest
            before = math.log((len(text) - 1 - ends[-1]) * length) if is_match else length * math.log(vocab)
            nearest, place[ids] = np.full(len(ids), -1), np.arange(len(ids))
            nearest[place[text[ends + 1]]] = ends  # likewise
            follows = nearest >= 0
            added[follows] = np.log((len(text) - 1.0 - nearest[follows]) * (length + 1)) - before
        return ids, np.minimum(added, math.log(vocab))


def shortest_match(window: int, vocab: int) -> int:
    """L0: from which length on a match costs no more than its ids one by one."""
    length = 1
    while math.log(window) + math.log(length) > length * math.log(vocab):
        length += 1
    return length


def current_phrase(matched: np.ndarray, longest: int) -> tuple[int, np.ndarray]:
    """The longest run at the text's end that occurs earlier, and where its earlier occurrences end, ascending.

    matched: how many ids up to each position but the last are those at the end; a text's first ids may go further back.
    """
    lengths = np.minimum(np.minimum(matched, np.arange(1, len(matched) + 1)), min(longest, len(matched)))
    length = int(lengths.max(initial=0))
    return length, np.flatnonzero(lengths == length) if length else np.empty(0, dtype=np.int64)
