"""Beam and group beam search by the book, over the table model's whole vocabulary: slow, plain and without an engine.

Beam search as transformers' `_beam_search`, group beam search as its older `BeamSearchScorer`, with this server's stop
sequences and minimum length; scores are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from decoding.contract.params import Beam, GroupBeam, StoppingParams
from tests.decoding.strategies.table_oracle import table_logprobs

Output = tuple[int, ...]
Scored = tuple[Output, float]


@dataclass
class Rules:
    """When an output ends, and what may come next."""

    prompt: Sequence[int]
    stopping: StoppingParams
    eos: Sequence[int]
    token_bytes: Sequence[bytes]
    known: dict[Output, np.ndarray] = field(default_factory=dict)

    @property
    def ending_ids(self) -> set[int]:
        return {*self.eos, *self.stopping.stop_token_ids}

    def is_ended(self, output: Output) -> bool:
        return output[-1] in self.ending_ids or (
            len(output) >= self.stopping.min_tokens and any(self._ends_with(output, s) for s in self.stopping.stop)
        )

    def _ends_with(self, output: Output, stop: bytes) -> bool:
        """Whether the sequence ends somewhere inside the last token."""
        text = b"".join(self.token_bytes[token] for token in output)
        ends = range(len(text) - len(self.token_bytes[output[-1]]) + 1, len(text) + 1)
        return any(text[:end].endswith(stop) for end in ends)

    def logprobs(self, output: Output) -> np.ndarray:
        if output not in self.known:
            self.known[output] = table_logprobs((*self.prompt, *output)).astype(np.float64)
        return self.known[output]

    def best(self, beams: Sequence[Scored], size: int, penalty: np.ndarray | float = 0.0) -> list[Scored]:
        """The M best continuations of the beams; ties as flat indices would have them."""
        found = []
        for beam, (output, score) in enumerate(beams):
            totals = score + self.logprobs(output) - penalty
            if len(output) < self.stopping.min_tokens:
                totals[list(self.ending_ids)] = -np.inf
            found += [(-total, beam, token) for token, total in enumerate(totals.tolist()) if total > -np.inf]
        width = max(2, 1 + len(self.ending_ids)) * size
        return [((*beams[beam][0], token), -cost) for cost, beam, token in sorted(found)[:width]]

    def can_improve(self, params: Beam | GroupBeam, best: Scored, worst: float) -> bool:
        if params.early_stopping is True:
            return False
        is_far = params.early_stopping == "never" and params.length_penalty > 0
        length = self.stopping.max_tokens if is_far else len(best[0])
        return best[1] / length**params.length_penalty > worst


def beam_search(rules: Rules, params: Beam) -> list[Scored]:
    beams: list[Scored] = [((), 0.0)]
    finished: list[Scored] = []
    while True:
        best = rules.best(beams, params.num_beams)
        is_last = len(best[0][0]) == rules.stopping.max_tokens
        over = [is_last or rules.is_ended(output) for output, _ in best]
        for (output, score), is_over in list(zip(best, over, strict=True))[: params.num_beams]:
            if is_over:
                finished.append((output, score / len(output) ** params.length_penalty))
        finished = sorted(finished, key=lambda h: -h[1])[: params.num_beams]
        beams = [path for path, is_over in zip(best, over, strict=True) if not is_over][: params.num_beams]
        is_full = len(finished) == params.num_beams
        if not beams or (is_full and not rules.can_improve(params, beams[0], finished[-1][1])):
            return finished[: params.n]


@dataclass
class Group:
    beams: list[Scored] = field(default_factory=lambda: [((), 0.0)])
    finished: list[Scored] = field(default_factory=list)
    is_done: bool = False

    def add(self, path: Scored, params: GroupBeam) -> None:
        size = params.num_beams // params.num_beam_groups
        score = path[1] / len(path[0]) ** params.length_penalty
        if len(self.finished) < size or score > min(h[1] for h in self.finished):
            self.finished.append((path[0], score))
            if len(self.finished) > size:
                del self.finished[min(range(len(self.finished)), key=lambda i: (self.finished[i][1], i))]

    def advance(self, rules: Rules, params: GroupBeam, taken: np.ndarray) -> None:
        size = params.num_beams // params.num_beam_groups
        best = rules.best(self.beams, size, params.diversity_penalty * taken)
        self.beams = []
        for rank, path in enumerate(best):
            if len(self.beams) == size:
                break
            if not rules.is_ended(path[0]):
                self.beams.append(path)
            elif rank < size:
                self.add(path, params)
        is_full = len(self.finished) == size
        self.is_done = is_full and not rules.can_improve(params, best[0], min(h[1] for h in self.finished))


def group_beam_search(rules: Rules, params: GroupBeam) -> list[Scored]:
    groups = [Group() for _ in range(params.num_beam_groups)]
    for _ in range(rules.stopping.max_tokens):
        taken = np.zeros(len(rules.token_bytes))
        for group in groups:
            if group.is_done:
                taken[rules.eos[0]] += params.num_beams // params.num_beam_groups
                continue
            group.advance(rules, params, taken)
            np.add.at(taken, [output[-1] for output, _ in group.beams], 1)
        if all(group.is_done for group in groups):
            break
    for group in groups:
        for path in group.beams if not group.is_done else []:
            group.add(path, params)
    pooled = sorted((h for group in groups for h in group.finished), key=lambda h: h[1])
    return pooled[::-1][: params.n]
