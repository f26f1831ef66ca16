"""Phrases that never come, by going back: when one has been written, the token that began it is drawn anew.

    draw x_t; if the text now holds a banned phrase: let i be the token in which it begins, go back to before i, exclude
    what stood there from what is drawn there, and go on from i

A ban on single tokens would forbid their innocent uses; here a token is excluded only where it led to a phrase. What
may still be taken back is held back, as stop strings are: nothing that was answered is ever retracted. No paper; the
idea is the banned strings of ExLlamaV2 and KoboldCpp.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from decoding.plugin import Plugin, PluginStrategy, Request, Says, Strategy, Within, check

if TYPE_CHECKING:
    from decoding.plugin.words import Move, Observation, Progress, Stopping, Token, Tools

MAX_PHRASES, MAX_CHARS = 256, 256


@dataclass(frozen=True, slots=True)
class PhraseBan(PluginStrategy):
    """Sampling that goes back where it has written a banned phrase."""

    NAME = WITHIN = "phrase_ban"

    phrases: Annotated[tuple[str, ...], Says("Texts that the answer must not hold.")]
    tries: Annotated[
        int, Within(1, 1024), Says("Tokens that may be excluded in one place; then the request fails.")
    ] = 64

    def _check(self) -> None:
        fit = 0 < len(self.phrases) <= MAX_PHRASES and all(0 < len(each) <= MAX_CHARS for each in self.phrases)
        check(fit, "phrase_ban.phrases", f"must be 1 to {MAX_PHRASES} texts of 1 to {MAX_CHARS} characters")

    def decode(self, request: Request, stopping: Stopping, tools: Tools) -> Generator[Move, Observation]:
        from decoding.plugin.words import (
            EXCLUDED,
            START,
            Draw,
            Feed,
            Finish,
            Move,
            NothingToDraw,
            Report,
            is_possible,
            open_prompt,
            prompt_scores,
            whole_logits,
        )  # fmt: skip

        phrases = [phrase.encode() for phrase in self.phrases]
        report, logp, num_rewinds = Report(request), 0.0, 0
        plain, anew = report.want(Draw()), report.want_logits()
        held: list[Token] = []  # not answered yet
        before: list[Progress] = [START]  # of the stopping rules: before each held token, and behind the last
        banned: list[set[int]] = [set()]  # ids excluded in each held token's place, and in the next one's
        seen, prompt = (yield Move((open_prompt(request, plain),))), None
        if request.logprobs.prompt is not None:
            prompt = prompt_scores(request, seen.rows[0].readings)
        while True:
            view = seen.rows[0]
            if banned[-1]:
                scores = tools.process(view.row, (), whole_logits(view.last))
                scores[list(banned[-1])] = EXCLUDED
                if len(banned[-1]) > self.tries or not is_possible(scores):
                    raise NothingToDraw("every way on leads to a banned phrase")
                lane = len(banned[-1])  # a number of its own for each try
                is_greedy = request.logits.is_greedy
                x = int(scores.argmax()) if is_greedy else tools.draw(scores, Draw(), view.last.position, lane)
                token = report.picked(view.last, x, scores)
            else:
                token = report.drawn(view.last)
            progress, finish = stopping.push(before[-1], token.id)
            held, before, banned = [*held, token], [*before, progress], [*banned, set()]
            pieces = [tools.text_bytes((each.id,)) for each in held]
            text = b"".join(pieces)
            found = min((at for each in phrases if (at := text.find(each)) >= 0), default=None)
            if found is not None:
                i, drop = _token_at(pieces, found), len(held) - 1 - _token_at(pieces, found)
                banned[i].add(held[i].id)
                held, before, banned = held[:i], before[: i + 1], banned[: i + 1]
                num_rewinds += 1
                seen = yield Move((Feed(view.row, drop=drop, want=anew),), prompt=prompt)
                prompt = None
                continue
            n = len(held) if finish is not None else _token_at(pieces, _open_at(text, phrases))
            logp += sum(each.raw_logprob for each in held[:n])
            if finish is not None:
                score = logp if report.has_score else None
                finish = Finish(finish.reason, finish.stop_reason, score, (("rewinds", num_rewinds),))
            emit = (report.emit(0, held[:n], finish),) if n or finish else ()
            held, before, banned = held[n:], before[n:], banned[n:]
            seen = yield Move(() if finish else (Feed(view.row, (token.id,), want=plain),), emit=emit, prompt=prompt)
            prompt = None


def _token_at(pieces: list[bytes], at: int) -> int:
    """Which piece holds that byte; their number where none does."""
    for index, piece in enumerate(pieces):
        at -= len(piece)
        if at < 0:
            return index
    return len(pieces)


def _open_at(text: bytes, phrases: list[bytes]) -> int:
    """Where the first phrase begins that more text could complete; the end where none does."""
    longest = max(map(len, phrases))
    starts = range(max(len(text) - longest + 1, 0), len(text))
    return next((at for at in starts if any(each.startswith(text[at:]) for each in phrases)), len(text))


PLUGIN = Plugin(
    "phrase_ban",
    "1.0",
    strategies=(
        Strategy(
            "phrase_ban",
            PhraseBan,
            "Sampling without some phrases: goes back and writes something else.",
            "",
            when=("phrase_ban",),
        ),
    ),
)
