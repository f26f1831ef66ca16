"""Look one token ahead: of the k likeliest next tokens the one whose best successor is likeliest together with it.

argmax_x p(x) * max_y p(y | x)
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from decoding.plugin import Plugin, PluginStrategy, Request, Says, Strategy, Within

if TYPE_CHECKING:
    from decoding.plugin.words import Move, Observation, Stopping, Tools


@dataclass(frozen=True, slots=True)
class Lookahead(PluginStrategy):
    """Looks one token ahead."""

    NAME = WITHIN = "lookahead"

    k: Annotated[int, Within(1, 64), Says("How many next tokens are tried.")] = 4

    @property
    def max_rows(self) -> int:
        return self.k

    @property
    def feeds_last(self) -> bool:
        return True

    def decode(self, request: Request, stopping: Stopping, tools: Tools) -> Generator[Move, Observation]:
        from decoding.plugin.words import Choice, Feed, Move, Report, open_prompt, prompt_scores

        report = Report(request)
        choice, want = Choice(report, stopping), report.want(top_k=self.k)
        seen = yield Move((open_prompt(request, want),))
        view, move = seen.rows[0], Move(prompt=prompt_scores(request, seen.rows[0].readings))
        while True:
            tried = report.candidates(view.last, self.k)
            feeds = tuple(Feed(view.row, (token.id,), want=want) for token, _ in tried)
            seen = yield Move(feeds, emit=move.emit, prompt=move.prompt)
            totals = [logp + row.last.top[0][1] for (_, logp), row in zip(tried, seen.rows, strict=True)]
            best = totals.index(max(totals))
            choice.push(tried[best][0])
            view, move = seen.rows[best], Move(emit=(choice.emit(),))
            if choice.is_over:
                yield move


STRATEGY = Strategy("lookahead", Lookahead, "Looks one token ahead.", "", when=("lookahead",), draws=False)
PLUGIN = Plugin("lookahead", "1.0", strategies=(STRATEGY,))
