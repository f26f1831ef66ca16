"""The ten primitives, each shown by a toy strategy that needs it, over the model that checks every page it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence

import pytest
import torch

from decoding.contract.params import LogitsParams, Request, Sampling, StoppingParams
from decoding.engine.engine import Engine
from decoding.seam import (
    Draw,
    Emit,
    Feed,
    Finish,
    FinishReason,
    Move,
    Observation,
    Open,
    Purpose,
    Reading,
    Scores,
    Strategy,
    Tools,
    Want,
)
from decoding.stopping import Stopping
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.rounding_error import of_entropies, of_log_softmax
from tests.decoding.table_model import TableModel, table_engine

PROMPT = (3, 1, 4, 1, 5, 9, 2)
GREEDY = LogitsParams(temperature=0)
OVER = Finish(FinishReason.STOP)
DRAW = Want((Draw(),))

Play = Generator[Move, Observation, None]
Body = Callable[[Tools, Sequence[int]], Play]


def ask(logits: LogitsParams = GREEDY, max_tokens: int = 6, rows: int = 4, seed: int = 0) -> Request:
    return Request(PROMPT, Sampling(rows), logits, StoppingParams(max_tokens), seed=seed)


def toy(body: Body) -> Callable[[Request, Stopping, Tools], Strategy]:
    """A strategy from a generator: it yields Moves and is sent Observations."""

    class Toy:
        def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
            self._tools = tools

        def begin(self, prompt_ids: Sequence[int]) -> Move:
            self._body = body(self._tools, prompt_ids)
            return next(self._body)

        def step(self, seen: Observation) -> Move:
            return self._body.send(seen)

    return Toy


def emit(tokens: Sequence[int]) -> Move:
    return Move(emit=(Emit(0, tuple(tokens), finish=OVER),))


def play(body: Body, request: Request | None = None, engine: Engine | None = None) -> Answer:
    (answer,) = run(engine or table_engine(), [request or ask()], toy(body))
    assert answer.failure is None, answer.failure
    return answer


def greedy_continuation(prompt: Sequence[int], count: int) -> list[int]:
    request = Request(tuple(prompt), Sampling(), GREEDY, StoppingParams(count))
    return run(table_engine(), [request])[0].tokens()


def test_feed_ids_continues_a_row_where_it_ended() -> None:
    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt[:3])),))
        seen = yield Move((Feed(seen.rows[0].row, tuple(prompt[3:]), want=DRAW),))
        assert seen.rows[0].length == len(prompt)
        yield emit(seen.rows[0].last.tokens)

    assert play(body).tokens() == greedy_continuation(PROMPT, 1)


def test_feed_embeddings_takes_vectors_in_place_of_ids_and_survives_preemption() -> None:
    vectors = torch.arange(6.0).reshape(2, 3)

    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt)),))
        seen = yield Move((Feed(seen.rows[0].row, embeds=vectors, want=DRAW),))
        tokens = list(seen.rows[0].last.tokens)
        for _ in range(5):
            seen = yield Move((Feed(seen.rows[0].row, (tokens[-1],), want=DRAW),))
            tokens += seen.rows[0].last.tokens
        yield emit(tokens)

    alone = play(body).tokens()
    assert alone[0] != greedy_continuation(PROMPT, 1)[0]
    crowded = table_engine(num_pages=9)
    answers = run(crowded, [ask(rows=1)] * 3, toy(body))
    assert crowded.scheduler.counters.preemptions > 0
    assert [a.tokens() for a in answers] == [alone] * 3


def test_a_latent_position_is_never_handed_to_others_by_the_prefix_index() -> None:
    engine = table_engine()

    def body(vector: float) -> Body:
        def inner(tools: Tools, prompt: Sequence[int]) -> Play:
            seen = yield Move((Feed(Open(), tuple(prompt)),))
            seen = yield Move((Feed(seen.rows[0].row, embeds=torch.full((1, 1), vector), want=DRAW),))
            seen = yield Move((Feed(seen.rows[0].row, (1, 1, 1, 1, 1, 1), want=DRAW),))
            yield emit(seen.rows[0].last.tokens)

        return inner

    assert play(body(0.25), engine=engine).tokens() != play(body(0.5), engine=engine).tokens()


def test_a_preempted_row_does_not_take_another_vectors_page_for_its_own() -> None:
    """Both logs hold the same ids: the page of the one before stays in the index when the other is fed again."""

    def body(vector: float) -> Body:
        def inner(tools: Tools, prompt: Sequence[int]) -> Play:
            seen = yield Move((Feed(Open(), tuple(prompt)),))
            seen = yield Move((Feed(seen.rows[0].row, embeds=torch.full((1, 1), vector)),))
            for token in (1, 2, 3):
                seen = yield Move((Feed(seen.rows[0].row, (token,), want=DRAW),))
            yield emit(seen.rows[0].last.tokens)

        return inner

    engine, answer = table_engine(), Answer()
    play(body(0.25), engine=engine)
    engine.add(1, ask(), toy(body(0.5)))
    while engine.has_work:
        for output in engine.tick():
            answer.take(output)
        engine.scheduler.give_way(list(engine.scheduler.running))
    assert answer.tokens() == play(body(0.5)).tokens()


def test_want_reads_every_quantity_at_the_position_it_was_asked_for() -> None:
    model = TableModel()
    want = Want((Draw(),), True, 3, gather=(0, 5), full=True, entropy=True, hidden=True, layers=(0, 2), attention=True)
    inner = Want(gather_next=True, top_k=2)
    seen_readings: list[Reading] = []

    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt), want=want, inner=inner),))
        seen_readings.extend(seen.rows[0].readings)
        yield emit(())

    play(body, engine=table_engine(models={"main": model}))
    last, first = seen_readings[-1], seen_readings[0]
    assert last.hidden is not None
    logp = model.head(last.hidden.unsqueeze(0).double()).log_softmax(-1)[0]
    assert last.full is not None
    error = of_log_softmax(float(logp.abs().max()), model.vocab)
    torch.testing.assert_close(last.full.double(), logp.double(), rtol=0, atol=2 * error)
    assert last.tokens == (int(logp.argmax()),)
    assert last.logprobs == pytest.approx([float(logp.max())], abs=2 * error)
    assert last.gathered == pytest.approx([float(logp[0]), float(logp[5])], abs=2 * error)
    assert [i for i, _ in last.top] == logp.sort(descending=True, stable=True).indices[:3].tolist()
    assert last.entropy is not None
    exact = model.head(last.hidden.unsqueeze(0).double())[0].double().log_softmax(-1)
    h = float(-(exact.exp() * exact).sum())
    v = float((exact.exp() * (exact + h) ** 2).sum())
    h_error, v_error = of_entropies(h, v, float(exact.abs().max()), model.vocab)
    assert last.entropy == pytest.approx(h, abs=h_error)
    assert last.varentropy == pytest.approx(v, abs=v_error)
    assert torch.equal(last.layers[2], model.head(last.hidden.double().unsqueeze(0) + 2)[0])
    assert last.attention is not None
    assert last.attention.tolist() == [[float(t) for t in PROMPT]]
    assert len(seen_readings) == len(PROMPT)
    assert [r.position for r in seen_readings] == list(range(len(PROMPT)))
    assert first.next_score is not None
    assert len(first.top) == 2


def test_fork_shares_a_past_and_writes_apart() -> None:
    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt), want=Want(top_k=3)),))
        parent = seen.rows[0]
        tokens = [[token] for token, _ in parent.last.top]
        seen = yield Move(tuple(Feed(parent.row, (t[0],), want=DRAW) for t in tokens))
        assert len({r.row for r in seen.rows}) == 3
        for _ in range(4):
            for branch, row in zip(tokens, seen.rows, strict=True):
                branch.extend(row.last.tokens)
            feeds = (Feed(r.row, (b[-1],), want=DRAW) for b, r in zip(tokens, seen.rows, strict=True))
            seen = yield Move(tuple(feeds))
        for branch in tokens:
            assert branch[1:] == greedy_continuation((*prompt, branch[0]), 4)
        yield emit([t for branch in tokens for t in branch])

    assert len(play(body).tokens()) == 15


def test_truncate_forgets_the_tail_of_a_row() -> None:
    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), (*prompt, 7, 7, 7)),))
        seen = yield Move((Feed(seen.rows[0].row, drop=3, want=DRAW),))
        assert seen.rows[0].length == len(prompt)
        first = seen.rows[0].last.tokens
        seen = yield Move((Feed(seen.rows[0].row, (first[0],), want=DRAW),))
        seen = yield Move((Feed(seen.rows[0].row, (8,), drop=1),))
        seen = yield Move((Feed(seen.rows[0].row, (first[0],), drop=1, want=DRAW),))
        yield emit((*first, *seen.rows[0].last.tokens))

    assert play(body).tokens() == greedy_continuation(PROMPT, 2)


def test_drop_frees_a_row_and_hold_keeps_one_without_feeding_it() -> None:
    engine = table_engine()
    used: list[int] = []

    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt)),))
        root = seen.rows[0].row
        seen = yield Move((Feed(root, (1,)), Feed(root, (2,), want=DRAW)))
        first, second = seen.rows
        for _ in range(5):
            seen = yield Move((Feed(second.row, (5, 5, 5, 5)),), hold=(first.row,))
            second = seen.rows[0]
        used.append(engine.used_pages)
        seen = yield Move((Feed(first.row, (3,), want=DRAW),))
        used.append(engine.used_pages)
        yield emit(seen.rows[0].last.tokens)

    assert play(body, engine=engine).tokens() == greedy_continuation((*PROMPT, 1, 3), 1)
    assert used[1] < used[0]


def test_a_row_that_was_dropped_is_gone() -> None:
    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt)),))
        root = seen.rows[0].row
        seen = yield Move((Feed(root, (1,)), Feed(root, (2,))))
        gone = seen.rows[0].row
        seen = yield Move((Feed(seen.rows[1].row, (3,)),))
        yield Move((Feed(gone, (4,)),))

    (answer,) = run(table_engine(), [ask()], toy(body))
    assert answer.failure is not None
    assert answer.failure.code == "internal"


def test_open_runs_rows_of_another_model_in_lock_step() -> None:
    models = {"main": TableModel(), "draft": TableModel(seed=5, page_size=8, num_pages=20)}

    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        feeds = (Feed(Open(), tuple(prompt), want=DRAW), Feed(Open("draft"), tuple(prompt[-2:]), want=DRAW))
        tokens: list[list[int]] = [[], []]
        seen = yield Move(feeds)
        for _ in range(4):
            for mine, row in zip(tokens, seen.rows, strict=True):
                mine.extend(row.last.tokens)
            seen = yield Move(tuple(Feed(r.row, (t[-1],), want=DRAW) for t, r in zip(tokens, seen.rows, strict=True)))
        yield emit((*tokens[0], *tokens[1]))

    got = play(body, engine=table_engine(models=models)).tokens()
    assert got[:4] == greedy_continuation(PROMPT, 4)
    draft_alone = table_engine(models={"main": TableModel(seed=5, page_size=8, num_pages=20)})
    request = Request(PROMPT[-2:], Sampling(), GREEDY, StoppingParams(4))
    assert got[4:] == run(draft_alone, [request])[0].tokens()


def test_emit_streams_in_the_tick_it_was_made_and_finish_ends_a_choice() -> None:
    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt), want=DRAW),))
        seen = yield Move((Feed(seen.rows[0].row, (1,)),), emit=(Emit(1, (7, 8)),))
        yield Move(emit=(Emit(0, (9,), finish=OVER), Emit(1, (), finish=OVER)))

    engine = table_engine()
    engine.add(5, ask(), toy(body))
    first = engine.tick()
    assert [(e.choice, e.token_ids) for o in first for e in o.emits] == [(1, (7, 8))]
    assert first[0].usage is None
    (last,) = engine.tick()
    assert last.usage is not None
    assert [e.choice for e in last.emits] == [0, 1]


def test_random_numbers_are_keyed_by_seed_choice_position_and_purpose() -> None:
    numbers: list[tuple[float, ...]] = []

    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        keys = [(Draw(), 3), (Draw(1), 3), (Draw(), 4), (Draw(0, Purpose.SPECULATION_ACCEPT), 3)]
        numbers.append(tuple(tools.uniform(d, p)[0] for d, p in keys))
        numbers.append(tuple(tools.uniform(Draw(), 3, count=3)))
        seen = yield Move((Feed(Open(), tuple(prompt)),))
        yield emit(seen.rows[0].last.tokens if seen.rows[0].readings else ())

    play(body, ask(seed=11))
    play(body, ask(seed=11))
    play(body, ask(seed=12))
    assert numbers[0] == numbers[2] != numbers[4]
    assert len(set(numbers[0])) == 4
    assert numbers[1][0] == numbers[0][0]
    assert len(set(numbers[1])) == 3
    assert all(0 <= u < 1 for group in numbers for u in group)


def test_several_draws_of_one_position_are_independent() -> None:
    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        want = Want(tuple(Draw(i) for i in range(40)))
        seen = yield Move((Feed(Open(), tuple(prompt), want=want),))
        yield emit(seen.rows[0].last.tokens)

    assert len(set(play(body, ask(LogitsParams(temperature=3.0))).tokens())) > 10


def test_the_pipeline_runs_at_a_hypothetical_history() -> None:
    """A verification window: every position of one feed sees its own history, as if fed one by one."""
    penalties = LogitsParams(temperature=0, repetition_penalty=1.7, frequency_penalty=0.9)
    plain = run(table_engine(), [Request(PROMPT, Sampling(), penalties, StoppingParams(6))])[0].tokens()
    processed = Want((Draw(),), full=True, scores=Scores.PROCESSED)

    def body(tools: Tools, prompt: Sequence[int]) -> Play:
        seen = yield Move((Feed(Open(), tuple(prompt), want=Want((Draw(),), full=True, scores=Scores.LOGITS)),))
        root = seen.rows[0]
        window = (*plain[:5],)
        logits = root.last.full
        assert logits is not None
        by_hand = tools.process(root.row, (), logits)
        assert int(by_hand.argmax()) == root.last.tokens[0]
        differs = tools.process(root.row, window, logits)
        assert not torch.equal(by_hand, differs)
        seen = yield Move((Feed(root.row, window, want=processed, inner=processed),))
        drawn = [r.tokens[0] for r in seen.rows[0].readings]
        yield emit((*root.last.tokens, *drawn))

    assert play(body, ask(penalties)).tokens() == plain


def test_injected_tokens_are_attended_to_but_not_penalised() -> None:
    biased = LogitsParams(temperature=0, frequency_penalty=50.0)

    def scores_of_the_fed(*, is_injected: bool) -> list[bool]:
        is_low: list[bool] = []

        def body(tools: Tools, prompt: Sequence[int]) -> Play:
            seen = yield Move((Feed(Open(), tuple(prompt)),))
            want = Want(gather=(11, 12), scores=Scores.PROCESSED)
            seen = yield Move((Feed(seen.rows[0].row, (11, 12), want=want, num_injected=2 if is_injected else 0),))
            is_low.extend(score < -40 for score in seen.rows[0].last.gathered)
            seen = yield Move((Feed(seen.rows[0].row, (13,), want=Want(top_k=1)),))
            yield emit([seen.rows[0].last.top[0][0]])

        assert play(body, ask(biased)).tokens() == greedy_continuation((*PROMPT, 11, 12, 13), 1)
        return is_low

    assert scores_of_the_fed(is_injected=False) == [True, True]
    assert scores_of_the_fed(is_injected=True) == [False, False]


def test_nothing_of_what_was_dropped_stays_behind_injected_or_latent() -> None:
    """The tokens fed in its place are read as tokens, and penalties see them."""
    penalised = LogitsParams(temperature=0, frequency_penalty=50.0)
    want = Want((Draw(),), gather=(11, 12), scores=Scores.PROCESSED)

    def said(*detours: Feed) -> list[float]:
        found: list[float] = []

        def body(tools: Tools, prompt: Sequence[int]) -> Play:
            seen = yield Move((Feed(Open(), tuple(prompt)),))
            drop = 0
            for detour in detours:
                seen = yield Move((dataclasses.replace(detour, parent=seen.rows[0].row, drop=drop),))
                drop = 2
            seen = yield Move((Feed(seen.rows[0].row, (11, 12), drop=drop, want=want),))
            found.extend((*seen.rows[0].last.gathered, *seen.rows[0].last.tokens))
            yield emit([1])

        play(body, ask(penalised))
        return found

    injected = Feed(Open(), (8, 9), num_injected=2)
    latent = Feed(Open(), embeds=torch.ones(2, 3))
    assert said() == said(injected) == said(latent) == said(latent, injected)
    assert max(said()[:2]) < -40


def test_an_exception_in_one_strategy_ends_that_request_alone() -> None:
    def broken(tools: Tools, prompt: Sequence[int]) -> Play:
        yield Move((Feed(Open(), tuple(prompt)),))
        raise RuntimeError("boom")

    engine = table_engine()
    answer = Answer()
    good = Request(PROMPT, Sampling(), GREEDY, StoppingParams(8))
    engine.add(0, ask(), toy(broken))
    engine.add(1, good, build)
    answers = {0: Answer(), 1: answer}
    while engine.has_work:
        for output in engine.tick():
            answers[output.request_id].take(output)
    assert answers[0].failure is not None
    assert answer.tokens() == greedy_continuation(PROMPT, 8)
    engine.check_integrity()
