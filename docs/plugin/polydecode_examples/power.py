"""Power sampling: whole texts from p ** alpha, by Metropolis-Hastings over a growing text.

Karan & Du 2025, "Reasoning with Sampling: Your Base Model is Smarter Than You Think", arXiv 2510.14901.

    for each block of B tokens:
        extend x by B tokens of the proposal q
        N times: draw a cut m of x; x' = x[:m] and a continuation drawn from q, as long as x may be
                 A = min(1, (p(x') / p(x)) ** alpha * q(x | x') / q(x' | x)); with probability A: x <- x'

p is the model; q what the request's temperature and filters make of it: the authors take temperature 1 / alpha. With
reach "text" m is drawn from all of x, as in the paper, and nothing is settled before the end; with "block" from the
last block alone, so that earlier blocks are answered at once. Texts that end early have other lengths, and so other
numbers of cuts: q(x | x') counts them. A text that is over when its block's proposals are judged is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from decoding.plugin import GREEDY_KEYS, Exclusion, Plugin, PluginStrategy, Request, Says, Strategy, Within

if TYPE_CHECKING:
    from decoding.plugin.words import Feed, Finish, Move, Observation, Progress, RowId, Stopping, Token, Tools, Want


@dataclass(slots=True)
class Text:
    """x, of which all but the last token has been fed to the row.

    q: log-probs of the proposal. progress: of the stopping rules, before each token and behind the last.
    """

    row: RowId | None
    tokens: list[Token]
    q: list[float]
    progress: list[Progress]
    finish: Finish | None = None

    def before(self, m: int) -> Text:
        return Text(self.row, self.tokens[:m], self.q[:m], self.progress[: m + 1])

    def push(self, row: RowId, token: Token, q: float, progress: Progress, finish: Finish | None) -> None:
        self.row, self.finish = row, finish
        self.tokens.append(token)
        self.q.append(q)
        self.progress.append(progress)

    def log_p(self, m: int) -> float:
        """Of what stands behind the cut."""
        return sum(token.raw_logprob for token in self.tokens[m:])


@dataclass(frozen=True, slots=True)
class Power(PluginStrategy):
    """Markov chains over the text, that make likely texts likelier."""

    NAME = WITHIN = "power"

    alpha: Annotated[float, Within(1, 100), Says("The power that the model's probability is raised to.")] = 4.0
    block: Annotated[int, Within(1, 4096), Says("Tokens by which the text grows: B.")] = 16
    steps: Annotated[int, Within(1, 64), Says("Proposals for each block: N.")] = 4
    reach: Annotated[
        Literal["text", "block"], Says("How far back a proposal may begin: anywhere, or in the last block.")
    ] = "text"

    @property
    def max_rows(self) -> int:
        return 2

    def decode(self, request: Request, stopping: Stopping, tools: Tools) -> Generator[Move, Observation]:
        from decoding.plugin.words import (
            START,
            Draw,
            Feed,
            Finish,
            Move,
            NothingToDraw,
            Purpose,
            Report,
            Scores,
            open_prompt,
            prompt_scores,
        )  # fmt: skip

        report = Report(request, has_score=True)
        num_draws = num_proposed = num_accepted = num_settled = 0
        told: Move | None = None  # what the next Move has to say

        def drawing() -> Want:
            """No two draws share a number: each has a choice of its own in its key."""
            nonlocal num_draws
            num_draws += 1
            return report.want(Draw(num_draws), scores=Scores.PROCESSED)

        def grow(text: Text, length: int, feed: Feed, hold: tuple[RowId, ...] = ()) -> Generator[Move, Observation]:
            """Draws until the text is that long or over. feed: what reads the first token."""
            nonlocal told
            while True:
                say, told = told or Move(), Move()
                seen = yield Move((feed,), hold, say.emit, say.prompt)
                view = seen.rows[0]
                if num_draws == 1:
                    told = Move(prompt=prompt_scores(request, view.readings))
                if not view.last.tokens:
                    raise NothingToDraw
                token = report.drawn(view.last)
                progress, finish = stopping.push(text.progress[-1], token.id)
                text.push(view.row, token, view.last.drawn_scores[0], progress, finish)
                if text.finish is not None or len(text.tokens) >= length:
                    return
                feed = Feed(view.row, (token.id,), want=drawing())

        x, feed = Text(None, [], [], [START]), open_prompt(request, drawing())
        while True:
            begin = len(x.tokens)
            length, first = begin + self.block, begin if self.reach == "block" else 0
            yield from grow(x, length, feed)
            for _ in range(self.steps):
                num_proposed += 1
                u, v = tools.uniform(Draw(num_proposed, Purpose.ADAPTIVE), len(request.prompt_ids), 2)
                m = first + int(u * (len(x.tokens) - first))
                y = x.before(m)
                feed = Feed(x.row, drop=len(x.tokens) - 1 - m, want=drawing())
                yield from grow(y, length, feed, hold=(x.row,))
                log_a = self.alpha * (y.log_p(m) - x.log_p(m)) + sum(x.q[m:]) - sum(y.q[m:])
                log_a += math.log((len(x.tokens) - first) / (len(y.tokens) - first))
                if v < math.exp(min(log_a, 0.0)):
                    x, num_accepted = y, num_accepted + 1
            if x.finish is not None:
                break
            if self.reach == "block":
                told = Move(emit=(report.emit(0, x.tokens[num_settled:]),), prompt=told.prompt)
                num_settled = len(x.tokens)
            feed = Feed(x.row, (x.tokens[-1].id,), want=drawing())
        counts = (("proposed", num_proposed), ("accepted", num_accepted))
        end = Finish(x.finish.reason, x.finish.stop_reason, x.log_p(0), counts)
        yield Move(emit=(report.emit(0, x.tokens[num_settled:], end),), prompt=told.prompt)


PLUGIN = Plugin(
    "power",
    "1.0",
    strategies=(
        Strategy(
            "power",
            Power,
            "Texts that the model finds likely as a whole: better reasoning without training.",
            "Karan & Du 2025, arXiv 2510.14901",
            when=("power",),
            excludes=(Exclusion(GREEDY_KEYS, "its proposals are drawn"),),
        ),
    ),
)
