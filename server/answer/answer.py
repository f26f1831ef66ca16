"""All choices of one request: the tickets' outputs in, numbered pieces and the usage out."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from decoding.contract.frames import Chunk, Finished, Output, PromptScores, TraceEvent
from server.answer.choice import Choice, Piece, echo, joined
from server.served import Served
from server.translate.plan import Plan, Prompt, Shown
from server.wire.answers import CompletionTokensDetails, Decoding, PromptTokensDetails, TraceStep, Usage


class Answer:
    """Choice `prompt * n + choice` continues prompt `prompt`. An echo stands in the first piece of each choice."""

    def __init__(self, plan: Plan, served: Served, *, is_chat: bool = False) -> None:
        self._plan = plan
        self._choices = [self._choice(served, prompt, is_chat) for prompt in plan.prompts for _ in self._numbers]
        self._begun: set[int] = set()
        self._num_completion_tokens = 0
        self._cached_tokens = 0
        self._computed_tokens = 0
        self._drafted = 0
        self._accepted = 0
        self._trace: list[TraceStep] = []
        self.prompt_scores: list[PromptScores | None] = [None] * len(plan.prompts)

    @property
    def shown(self) -> Shown:
        return self._plan.shown

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    @property
    def decoding(self) -> Decoding:
        """Before the end: what runs."""
        return Decoding(self._plan.strategy, self._plan.effective)

    @property
    def final_decoding(self) -> Decoding:
        """After the end: what ran, how much work it was, and what was not taken of the trace."""
        trace = self.take_trace() if self.is_traced else UNSET
        return Decoding(self._plan.strategy, self._plan.effective, self._computed_tokens, trace)

    @property
    def is_traced(self) -> bool:
        return any(request.trace for request in self._plan.requests)

    @property
    def has_trace(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._trace)

    def take_trace(self) -> list[TraceStep]:
        """What the strategies said since it was last taken."""
        taken, self._trace = self._trace, []
        return taken

    def push(self, prompt: int, output: Output) -> Iterator[tuple[int, Piece]]:
        """The pieces this output adds."""
        if output.prompt is not None:
            self.prompt_scores[prompt] = output.prompt
        if output.finished is not None:
            self._finish(output.finished)
        self._trace += (self._trace_step(prompt, event) for event in output.trace)
        for chunk in output.chunks:
            yield self._piece(prompt, chunk)

    def scores_of(self, choice: int) -> PromptScores | None:
        """Log-probs of the prompt that a choice continues."""
        return self.prompt_scores[choice // self._plan.shown.num_choices]

    def usage(self) -> Usage:
        num_prompt, num_completion = self._plan.num_prompt_tokens, self._num_completion_tokens
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_completion,
            total_tokens=num_prompt + num_completion,
            prompt_tokens_details=PromptTokensDetails(
                self._cached_tokens, self._plan.num_pause_tokens or UNSET, self._plan.num_latent_tokens or UNSET
            ),
            completion_tokens_details=CompletionTokensDetails(self._accepted, self._drafted - self._accepted),
        )

    @property
    def _numbers(self) -> range:
        return range(self._plan.shown.num_choices)

    def _choice(self, served: Served, prompt: Prompt, is_chat: bool) -> Choice:
        shown, form = self._plan.shown, self._plan.message
        starts = is_chat or (served.encoder is not None and len(self._plan.requests[0].prompt_ids) == 1)
        detokenizer = served.tokenizer.detokenizer(
            skip_special_tokens=not shown.special_tokens,
            at_start=starts,
            shown=form.markers if form else (),
            behind=None if starts else prompt.ids[-1],
        )
        message = form.reader() if form else None
        return Choice(shown, served.eos_token_ids, detokenizer, offset=len(prompt.text), message=message)

    def _piece(self, prompt: int, chunk: Chunk) -> tuple[int, Piece]:
        choice = prompt * self._plan.shown.num_choices + chunk.choice
        piece = self._choices[choice].push(chunk)
        self._num_completion_tokens += len(chunk.token_ids)
        if self._plan.shown.echo and choice not in self._begun:
            piece = joined([self._echo(prompt), piece])
        self._begun.add(choice)
        return choice, piece

    def _echo(self, prompt: int) -> Piece:
        num_top = self._plan.shown.logprobs
        scores = self.prompt_scores[prompt] if num_top is not None else None
        return echo(self._plan.prompts[prompt], scores, num_top or 0)

    def _finish(self, finished: Finished) -> None:
        self._cached_tokens += finished.cached_tokens
        self._computed_tokens += finished.computed_tokens
        self._drafted += finished.drafted
        self._accepted += finished.accepted

    def _trace_step(self, prompt: int, event: TraceEvent) -> TraceStep:
        where = prompt if len(self._plan.prompts) > 1 else UNSET
        return TraceStep(event.step, event.kind, event.values, where)
