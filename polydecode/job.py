"""Planned requests on their way through the engine: so many at once as keep it busy, their answers gathered by the code
that gathers the server's."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable

from decoding.contract.frames import Output
from polydecode.runner import Runner
from server.answer.answer import Answer
from server.answer.choice import Piece, joined
from server.errors import ApiError
from server.queue.ticket import error_of
from server.served import Served
from server.translate.plan import Plan

Numbered = tuple[int, Piece]


class Job:
    """One plan and what has come of it: its pieces by choice, its vectors, or the error that ended it.

    index: the caller's number for it.
    """

    def __init__(self, index: int, plan: Plan, served: Served, *, is_chat: bool = False) -> None:
        self.index = index
        self.plan = plan
        self.answer = Answer(plan, served, is_chat=is_chat)
        self.vectors = [b""] * len(plan.requests)
        self.error: ApiError | None = None
        self._pieces: list[list[Piece]] = [[] for _ in range(self.answer.num_choices)]
        self._num_open = len(plan.requests)
        self._deadline: float | None = None

    @property
    def is_over(self) -> bool:
        return self._num_open == 0 or self.error is not None

    @property
    def num_rows(self) -> int:
        return sum(request.max_rows for request in self.plan.requests)

    @property
    def choices(self) -> list[Piece]:
        return [joined(pieces) for pieces in self._pieces]

    def begin(self) -> None:
        if self.plan.timeout is not None:
            self._deadline = time.monotonic() + self.plan.timeout

    def check_time(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.error = ApiError(504, "the request's time is up", code="timeout")

    def push(self, number: int, output: Output) -> list[Numbered]:
        """What the output of one of its prompts adds."""
        finished = output.finished
        if finished is not None and finished.error_code is not None:
            self.error = error_of(finished, finished.error_code)
            return []
        self.vectors[number] = output.vector or self.vectors[number]
        pieces = list(self.answer.push(number, output))
        for choice, piece in pieces:
            self._pieces[choice].append(piece)
        self._num_open -= finished is not None
        return pieces


Events = Generator[tuple[Job, list[Numbered] | None]]


def run(runner: Runner, jobs: Iterable[Job], most_rows: int) -> Events:
    """Each output's pieces as they come, and None at each job's end. most_rows: that the engine is given at once.

    Closing it, or an error raised through it, frees all that is still running.
    """
    waiting, under_way = iter(jobs), set[Job]()
    with runner.call() as call:
        while True:
            while sum(job.num_rows for job in under_way) < most_rows and (job := next(waiting, None)) is not None:
                under_way.add(job)
                job.begin()
                for number, request in enumerate(job.plan.requests):
                    call.add((job, number), request)
            if not under_way:
                return
            for (job, number), output in call.take():
                if not job.is_over:
                    yield job, job.push(number, output)
            for job in under_way:
                job.check_time()
            for job in [each for each in under_way if each.is_over]:
                under_way.remove(job)
                call.drop((job, number) for number in range(len(job.plan.requests)))
                yield job, None
