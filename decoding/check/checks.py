"""What is tried: each request alone, then disturbed in every way that a server disturbs. Nothing may differ."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from decoding.check.bench import MANY_PAGES, Bench, Size
from decoding.check.cases import Subject, neighbours
from decoding.check.outside import outside
from decoding.check.runs import Endless, Run, run_alone, run_crowd
from decoding.contract.params import Request
from decoding.engine.cache import IntegrityError
from decoding.engine.engine import Engine
from decoding.strategies import Build

FEW_PAGES = 8
SHORT_TICK = 3
NUM_NEIGHBOURS = 6
LATER = 19237.619137  # odd in seconds and in all their parts: parities differ

_KEEPS = "it keeps something from one request to the next (a global, a cache), or draws from the system's entropy"
_CLOCK = "it reads a clock"
_UNKEYED = "it draws random numbers that the request's seed does not name: use Draw, tools.uniform or tools.draw"
_NEIGHBOURS = "it depends on the requests beside it"
_ROWS = "its numbers depend on the other rows of the batch"
_FEEDS = "its numbers depend on how its rows were fed"


@dataclass(frozen=True, slots=True)
class Finding:
    """condition: in which it showed. step: the first that differs; 0 is `begin`."""

    condition: str
    request: Request
    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Passed:
    condition: str
    note: str = ""


Result = Finding | Passed


class NeverFits(RuntimeError):
    """The cache is too small for a request, even alone."""


@dataclass(frozen=True)
class Check:
    """One subject's. Its conditions are tried in order until one finds something."""

    bench: Bench
    build: Build
    subject: Subject
    references: list[Run] = field(default_factory=list)

    def results(self) -> Iterator[Result]:
        for condition in (
            self.alone, self.twice, self.later, self.reseeded, self.chunked, self.cached, self.preempted, self.mixed,
            self.cramped, self.cancelled,
        ):  # fmt: skip
            result = self._result(condition)
            yield result
            if isinstance(result, Finding):
                return

    def _result(self, condition: Callable[[], Result]) -> Result:
        try:
            return condition()
        except (Endless, IntegrityError, NeverFits) as error:
            return Finding(condition.__name__, self.subject.requests[0], 0, f"{type(error).__name__}: {error}")

    def alone(self) -> Result:
        for request in self.subject.requests:
            run = Run()
            try:
                with outside():
                    run = run_alone(self._engine(), request, self.build)
            except Endless as error:
                return Finding("alone", request, len(run.record.steps), str(error))
            self.references.append(run)
            found = _fault(run, request)
            if found is not None:
                return Finding("alone", request, *found)
        return Passed("alone")

    def twice(self) -> Result:
        return self._again("twice", _KEEPS)

    def later(self) -> Result:
        return self._again("later", _CLOCK, clock=1e9 + LATER)

    def reseeded(self) -> Result:
        return self._again("reseeded", _UNKEYED, seed=1)

    def chunked(self) -> Result:
        size = Size(tick_tokens=SHORT_TICK)
        return self._disturbed("chunked prefill", lambda request, _: run_alone(self._engine(size), request, self.build))

    def cached(self) -> Result:
        def run(request: Request, _: random.Random) -> Run:
            engine = self._engine()
            run_alone(engine, request, self.build)
            second = run_alone(engine, request, self.build)
            second.num_disturbed = second.answer.usage.cached_tokens if second.answer.usage else 0
            return second

        return self._disturbed("cached prefix", run, counted="tokens were cached")

    def preempted(self) -> Result:
        return self._disturbed(
            "preempted",
            lambda request, rng: run_alone(self._engine(), request, self.build, preempts=rng),
            counted="times",
        )

    def mixed(self) -> Result:
        return self._crowded("mixed", self._engine(), cancels=False)

    def cancelled(self) -> Result:
        return self._crowded("cancelled", self._engine(), cancels=True)

    def cramped(self) -> Result:
        """Over as few pages as each of them can just live in."""
        pages = FEW_PAGES
        while pages < MANY_PAGES:
            engine = self._engine(Size(pages))
            try:
                result = self._crowded("too few pages", engine, cancels=False)
            except NeverFits:
                pages += pages // 2
                continue
            num_preempted = engine.scheduler.counters.preemptions
            return result if isinstance(result, Finding) else Passed(result.condition, f"{num_preempted} preemptions")
        return Passed("too few pages", "no request was preempted: each needs them all")

    def _engine(self, size: Size = Size()) -> Engine:  # noqa: B008 - frozen
        return self.bench.engine(size)

    def _again(self, condition: str, why: str, **world: float) -> Result:
        pairs = list(zip(self.subject.requests, self.references, strict=True))
        for request, reference in reversed(pairs):  # in another order: what counts requests counts otherwise
            with outside(**world):  # type: ignore[arg-type]
                run = run_alone(self._engine(), request, self.build)
            found = _difference(reference, run)
            if found is not None:
                return Finding(condition, request, found.step, f"{found.what}: {why}")
        return Passed(condition)

    def _disturbed(self, condition: str, again: Callable[[Request, random.Random], Run], counted: str = "") -> Result:
        rng, count = random.Random(condition), 0
        for request, reference in zip(self.subject.requests, self.references, strict=True):
            with outside():
                run = again(request, rng)
            found = _difference(reference, run)
            if found is not None:
                why = _FEEDS if found.is_seen else _KEEPS
                return Finding(condition, request, found.step, f"{found.what}: {why}")
            count += run.num_disturbed
        return Passed(condition, f"{count} {counted}" if counted else "")

    def _crowded(self, condition: str, engine: Engine, *, cancels: bool) -> Result:
        requests = [*self.subject.requests, *neighbours(self.bench.vocabulary, NUM_NEIGHBOURS)]
        own = self.subject.requests
        order = sorted(range(len(requests)), key=lambda i: random.Random(i).random())
        with outside():
            runs = run_crowd(engine, [requests[i] for i in order], self.build, random.Random(1), cancels=cancels)
        if any(run.failure is not None and run.failure.code == "never_fits" for run in runs.values()):
            raise NeverFits(f"a request needs more than {MANY_PAGES} pages")
        for at, run in runs.items():
            if order[at] < len(own):
                found = _difference(self.references[order[at]], run)
                if found is not None:
                    why = _ROWS if found.is_seen else _NEIGHBOURS
                    return Finding(condition, own[order[at]], found.step, f"{found.what}: {why}")
        return Passed(condition)


@dataclass(frozen=True, slots=True)
class Difference:
    """is_seen: the numbers that were read differ, where the same was fed."""

    step: int
    what: str
    is_seen: bool = False


def _difference(one: Run, other: Run) -> Difference | None:
    """The first step in which two runs of a request are not the same, bit by bit."""
    steps = list(zip(one.record.steps, other.record.steps, strict=False))
    for step, (a, b) in enumerate(steps):
        if a.seen != b.seen:
            return Difference(step, "it reads other numbers after the same feeds", is_seen=True)
        if a.did != b.did:
            instead = (
                f"it {b.shown} where it {a.shown} before" if a.shown != b.shown else "its scores or log-probs differ"
            )
            return Difference(step, instead)
    if len(one.record.steps) != len(other.record.steps) or (one.record.error is None) != (other.record.error is None):
        error = other.record.error or one.record.error
        return Difference(len(steps), f"one of two runs ends here{_named(error)}")
    return None if one.said == other.said else Difference(len(steps) - 1, "the answer differs")


def _fault(run: Run, request: Request) -> tuple[int, str] | None:
    """What is wrong with a request that had the engine to itself: the step and why."""
    record, failure = run.record, run.failure
    if failure is not None and failure.code != "nothing_to_draw":
        error = record.error or failure.cause
        return len(record.steps), f"it fails{_named(error) or f' ({failure.code}: {failure.message})'}"
    for step, each in enumerate(record.steps):
        longest = max((length for _, length, _ in each.seen), default=0)
        if longest > request.max_length:
            promise = "as its params promise: see num_behind, feeds_last, second_context and judge_context"
            return step, f"a row has {longest} positions and not at most {request.max_length}, {promise}"
    return None


def _named(error: BaseException | None) -> str:
    return "" if error is None else f" with {type(error).__name__}: {error}"


def checked(bench: Bench, build: Build, subjects: Sequence[Subject]) -> Iterator[tuple[Subject, Result]]:
    for subject in subjects:
        for result in Check(bench, build, subject).results():
            yield subject, result
