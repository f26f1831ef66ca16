import asyncio
import math
import time

from loadtest.outcome import Completed, Outcome
from loadtest.run import Player, arrivals
from loadtest.scenario import Closed, Open, Scenario, Shape


def scenario(load: Closed | Open, requests: int, warmup: int = 0) -> Scenario:
    return Scenario("test", "", load, (Shape(prompt_words=8, max_tokens=4),), requests, warmup)


def ignore(_phase: str, _outcome: Outcome) -> None:
    return


class FakeClient:
    """Answers after a few turns of the loop, or all at once when `release_at` requests wait."""

    def __init__(self, release_at: int | None = None) -> None:
        self.prompts: list[str] = []
        self.running = 0
        self.most_running = 0
        self._release_at = release_at
        self._released = asyncio.Event()

    async def complete(self, prompt: str, max_tokens: int, started: float | None = None, beams: int = 1) -> Outcome:
        begin = time.perf_counter() if started is None else started
        self.prompts.append(prompt)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self._release_at is None:
            for _ in range(len(prompt) % 5 + 1):
                await asyncio.sleep(0)
        else:
            if self.running == self._release_at:
                self._released.set()
            await self._released.wait()
        self.running -= 1
        now = time.perf_counter()
        return Completed(begin, (now,), now, prompt_tokens=8, completion_tokens=4, wanted_tokens=max_tokens)


async def test_a_closed_loop_keeps_its_streams_busy_and_never_more() -> None:
    client = FakeClient()
    run = await Player(scenario(Closed(4), requests=20), 1, client, ignore).play()
    assert client.most_running == 4
    assert len(run.outcomes) == 20


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    client = FakeClient(release_at=6)  # a loop that waited would hang here
    run = await asyncio.wait_for(Player(scenario(Open(500.0), requests=6), 1, client, ignore).play(), 5)
    assert client.most_running == 6
    assert run.summary.completed == 6


async def test_open_requests_start_when_they_were_due() -> None:
    """Two of the clock's readings and their difference are rounded, each by half an ulp."""
    run = await Player(scenario(Open(500.0), requests=6), 1, FakeClient(), ignore).play()
    starts = [outcome.started - run.outcomes[0].started for outcome in run.outcomes]
    rounding = 2 * math.ulp(run.outcomes[-1].started)
    assert all(abs(start - due) <= rounding for start, due in zip(starts, arrivals(1, 500.0, 6), strict=True))


def test_arrivals_have_the_rate_asked_for_and_follow_the_seed() -> None:
    times = arrivals(seed=3, rate=10.0, count=2000)
    assert times == arrivals(seed=3, rate=10.0, count=2000) != arrivals(seed=4, rate=10.0, count=2000)
    assert times == sorted(times)
    assert 180 < times[-1] < 220


async def test_a_warmup_comes_first_and_is_not_measured() -> None:
    client, phases = FakeClient(), []
    run = await Player(
        scenario(Closed(2), requests=4, warmup=3), 1, client, lambda phase, _: phases.append(phase)
    ).play()
    assert phases == ["warmup"] * 3 + ["measured"] * 4
    assert run.summary.requests == 4
    assert len(set(client.prompts)) == 7


async def test_the_same_seed_sends_the_same_requests() -> None:
    first, second = FakeClient(), FakeClient()
    for client in (first, second):
        await Player(scenario(Closed(4), requests=12), 5, client, ignore).play()
    assert sorted(first.prompts) == sorted(second.prompts)
