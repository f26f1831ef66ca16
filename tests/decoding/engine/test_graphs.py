"""Recorded decode steps: a recording that only calls the function again shows what goes in, and what padding does."""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decoding.attention.choice import AttentionMaker
from decoding.attention.interface import Batch, DecodeInputs, PagedAttention
from decoding.attention.pages import LayerShape
from decoding.contract.params import Beam, LogitsParams, Request, Sampling, StoppingParams
from decoding.engine.cache import PageCache
from decoding.model.graphs import (
    MOST_TOKENS,
    CannotCapture,
    CudaCapture,
    DecodeGraphs,
    Run,
    bucket_of,
    buckets_for,
    padded,
)
from decoding.model.loading import wrap
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.layout import PageBook, Row
from tests.decoding.tiny import tiny

CPU = torch.device("cpu")


def call_again(run: Run) -> Run:
    """Stands for a recording."""
    return run


def decode_batch(*lengths: int) -> Batch:
    """Rows of those lengths, each fed its last token."""
    book = PageBook(800, 16)
    rows = [Row(list(range(10, 10 + length))) for length in lengths]
    book.batch([(row, len(row.tokens) - 1) for row in rows])
    return book.batch([(row, 1) for row in rows])


def row_exact_product(a: np.ndarray, b: np.ndarray, dtype: np.dtype[np.float32]) -> np.ndarray:  # [m, k], [k, n]
    """Triton's interpreter multiplies with numpy, whose order of sums depends on a row's place; a tensor core's not."""
    return np.stack([a[:, i, None] * b[None, i] for i in range(a.shape[1])]).sum(axis=0, dtype=dtype)


class Spy:
    """A forward whose result is what it was given."""

    def __init__(self) -> None:
        self.recorded: list[DecodeInputs] = []

    def decode(self, inputs: DecodeInputs) -> Run:
        self.recorded.append(inputs)
        return lambda: torch.stack([inputs.token_ids, inputs.positions, inputs.slots, inputs.kv_lengths], dim=1)


def given(batch: Batch) -> np.ndarray:
    return np.stack([batch.token_ids, batch.positions, batch.slots, batch.positions + 1], axis=1)


def test_a_replay_sees_the_numbers_of_its_own_tick() -> None:
    spy = Spy()
    graphs = DecodeGraphs(spy.decode, call_again, CPU)
    for lengths in ((5, 40, 9), (70, 3, 2), (200, 8, 8, 8)):
        batch = decode_batch(*lengths)
        found = graphs.run(batch, 1)
        assert found is not None
        assert np.array_equal(found.numpy(), given(batch))
        tables = spy.recorded[0].page_tables[: batch.num_rows, : batch.page_tables.shape[1]]
        assert np.array_equal(tables.numpy(), batch.page_tables)
    assert len(spy.recorded) == 1, "one recording serves all of a bucket"


def test_nothing_of_a_larger_tick_is_left_in_a_smaller_one() -> None:
    spy = Spy()
    graphs = DecodeGraphs(spy.decode, call_again, CPU)
    graphs.run(decode_batch(100, 100, 100, 100), 1)
    graphs.run(decode_batch(5, 5, 5), 1)
    (inputs,) = spy.recorded
    assert inputs.page_tables[:3, 1:].count_nonzero() == 0
    assert inputs.page_tables[3].count_nonzero() == 0
    columns = (inputs.token_ids, inputs.positions, inputs.slots, inputs.kv_lengths)
    assert [column[3].item() for column in columns] == [0, 0, 0, 1]  # the padding row: page 0, which is nobody's


def test_a_bucket_holds_rows_and_pages() -> None:
    assert bucket_of(decode_batch(5)) == (1, 16)
    assert bucket_of(decode_batch(5, 257, 5)) == (4, 64)
    assert bucket_of(decode_batch(*[2] * 600)) == (640, 16), "however many rows"
    assert padded(decode_batch(5, 257, 5), 4, 64).shape == (4 * (4 + 64),)


def test_each_token_of_a_row_is_a_row_of_the_recording() -> None:
    book, rows = PageBook(400, 16), [Row(list(range(40))), Row(list(range(20)))]
    book.batch([(rows[0], 18), (rows[1], 3)])
    batch = book.batch([(rows[0], 4), (rows[1], 1)])
    spy = Spy()
    found = DecodeGraphs(spy.decode, call_again, CPU).run(batch, 1)
    assert found is not None
    assert found[:, 3].tolist() == [19, 20, 21, 22, 4], "as long as the row was when it had that token last"
    assert np.array_equal(found.numpy(), given(batch))
    tables = spy.recorded[0].page_tables
    assert tables.shape == (8, 16)
    assert np.array_equal(tables[:5, :2].numpy(), batch.page_tables[[0, 0, 0, 0, 1]])


def test_what_asks_for_more_than_plain_tokens_is_not_recorded() -> None:
    book, row = PageBook(400, 16), Row(list(range(20)))
    graphs = DecodeGraphs(Spy().decode, call_again, CPU)
    assert graphs.run(book.batch([(row, 1)], probe_rows=(0,)), 1) is None
    assert graphs.run(book.batch([(row, 1)], embeds={0: torch.zeros(4)}), 1) is None


def test_many_tokens_or_many_keys_for_each_run_plainly() -> None:
    """A token that is a row of its own reads again what those before it in its row have read."""
    book, row, most = PageBook(4000, 16), Row([0] * 50_000), MOST_TOKENS
    assert bucket_of(book.batch([(row, most)])) == (most, 64)
    assert bucket_of(book.batch([(row, most + 1)])) is None
    book.batch([(row, 40_000)])
    assert bucket_of(book.batch([(row, 1)])) == (1, 4096)
    assert bucket_of(book.batch([(row, 4)])) == (4, 4096)
    assert bucket_of(book.batch([(row, 5)])) is None


def test_recordings_end_with_the_memory_they_point_to() -> None:
    spy = Spy()
    graphs = DecodeGraphs(spy.decode, call_again, CPU)
    for generation in (1, 1, 2):
        graphs.run(decode_batch(5), generation)
    assert len(spy.recorded) == 2


def test_a_forward_that_cannot_be_recorded_is_not_tried_again() -> None:
    tries = []

    def refuse(run: Callable[[], torch.Tensor]) -> Run:
        tries.append(run)
        raise CannotCapture("it reads a number back")

    graphs = DecodeGraphs(Spy().decode, refuse, CPU)
    with pytest.warns(UserWarning, match="it reads a number back"):
        assert graphs.run(decode_batch(5), 1) is None
    assert graphs.run(decode_batch(5, 5), 1) is None
    assert len(tries) == 1


def in_memory_for(most_rows: int, most_pages: int) -> Callable[[Run], Run]:
    """Recordings, and memory for those of so many rows and pages."""

    def record(run: Run) -> Run:
        rows, pages = run().shape
        if rows > most_rows or pages > most_pages:
            raise torch.OutOfMemoryError("no memory")
        return run

    return record


def tables(inputs: DecodeInputs) -> Run:
    return lambda: inputs.page_tables


def test_what_memory_lacks_for_costs_only_what_is_no_smaller() -> None:
    graphs = DecodeGraphs(tables, in_memory_for(8, 64), CPU)
    assert graphs.run(decode_batch(5, 5), 1) is not None
    with pytest.warns(UserWarning, match="no memory"):
        assert graphs.run(decode_batch(*[5] * 9), 1) is None
    assert graphs.run(decode_batch(*[5] * 20), 1) is None, "not tried again"
    assert graphs.run(decode_batch(*[5] * 8), 1) is not None
    assert graphs.run(decode_batch(5, 5), 1) is not None


def test_all_that_can_come_is_recorded_at_once_the_largest_first() -> None:
    spy = Spy()
    graphs = DecodeGraphs(spy.decode, call_again, CPU)
    graphs.record(buckets_for(600, 70), 1, 0)
    sizes = [inputs.page_tables.shape for inputs in spy.recorded]
    assert sizes[0] == (640, 256)
    assert sizes[-1] == (1, 16)
    assert {pages for _, pages in sizes} == {16, 64, 256}
    assert all(one[0] * one[1] >= other[0] * other[1] for one, other in itertools.pairwise(sizes))
    for batch in (decode_batch(5), decode_batch(*[2] * 600), decode_batch(1100)):
        graphs.run(batch, 1)
    assert len(spy.recorded) == len(sizes), "nothing is left to be recorded while requests wait"


def test_what_is_recorded_ahead_touches_nobodys_page() -> None:
    spy = Spy()
    DecodeGraphs(spy.decode, call_again, CPU).record([(4, 16)], 1, 0)
    (inputs,) = spy.recorded
    assert not torch.stack([inputs.token_ids, inputs.positions, inputs.slots]).any()
    assert not inputs.page_tables.any()
    assert inputs.kv_lengths.tolist() == [1, 1, 1, 1]


def test_where_memory_ends_amid_the_recordings_the_smaller_ones_are_there() -> None:
    graphs = DecodeGraphs(tables, in_memory_for(64, 16), CPU)
    with pytest.warns(UserWarning, match="no memory"):
        graphs.record(buckets_for(128, 64), 1, 0)
    assert graphs.is_able
    assert sorted(graphs._recorded) == [(rows, 16) for rows in (1, 2, 4, 8, 16, 24, 32, 48, 64)]


class Table:
    """Device memory that a forward reads beside its inputs."""


def test_what_a_recording_reads_stays_while_it_can_be_replayed() -> None:
    """A CUDA graph holds addresses: the forward that was recorded is needed by nobody else any more."""
    tables: list[weakref.ref[Table]] = []

    def decode(inputs: DecodeInputs) -> Run:
        table = Table()
        tables.append(weakref.ref(table))

        def forward() -> torch.Tensor:
            assert table
            return inputs.token_ids

        return forward

    def record(run: Run) -> Run:
        out = run()
        return lambda: out

    graphs = DecodeGraphs(decode, record, CPU)
    graphs.run(decode_batch(5), 1)
    gc.collect()
    assert tables[0]() is not None
    graphs.run(decode_batch(5), 2)
    gc.collect()
    assert tables[0]() is None, "the recording is void, and so is what it read"


class FakeCuda:
    """torch.cuda as far as recordings go: notes what happens, and refuses to wait where it is told to."""

    def __init__(self) -> None:
        self.mode: int | str = 0
        self.events: list[str] = []
        self.handles = 0
        self.free = 1 << 30
        self.peak = 0

    def Stream(self) -> FakeCuda:
        return self

    current_stream = Stream

    def wait_stream(self, _stream: FakeCuda) -> None:
        self.events.append("wait")

    def stream(self, _stream: FakeCuda) -> AbstractContextManager[None]:
        return nullcontext()

    def graph(self, graph: FakeGraph, *, pool: tuple[int, int], stream: FakeCuda) -> AbstractContextManager[None]:
        assert stream is self
        graph.its_pool = pool
        self.events.append("record")
        return nullcontext()

    def graph_pool_handle(self) -> tuple[int, int]:
        self.handles += 1
        return (0, self.handles)

    def take(self, num_bytes: int) -> None:
        """What a forward allocates and gives back."""
        self.peak = max(self.peak, num_bytes)

    def empty_cache(self) -> None: ...

    def mem_get_info(self, _device: object = None) -> tuple[int, int]:
        return self.free, 1 << 30

    def memory_allocated(self) -> int:
        return 0

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = 0

    def get_sync_debug_mode(self) -> int | str:
        return self.mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.mode = mode

    def item(self) -> None:
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


class FakeGraph:
    its_pool = (0, 0)

    def pool(self) -> tuple[int, int]:
        return self.its_pool

    def replay(self) -> None: ...


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("Stream", "current_stream", "stream", "graph", "graph_pool_handle", "get_sync_debug_mode",
                 "set_sync_debug_mode", "empty_cache", "mem_get_info", "memory_allocated", "max_memory_allocated",
                 "reset_peak_memory_stats"):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    return fake


def test_a_forward_that_waits_for_the_gpu_is_found_out_before_it_is_recorded(cuda: FakeCuda) -> None:
    """A recording that fails leaves torch's allocator as if it were still going on."""

    def forward() -> torch.Tensor:
        cuda.item()
        return torch.zeros(1)

    with pytest.raises(CannotCapture, match="synchronizing"):
        CudaCapture()(forward)
    assert "record" not in cuda.events
    assert cuda.mode == 0


def test_what_memory_lacks_is_no_reason_to_record_nothing(cuda: FakeCuda) -> None:
    def forward() -> torch.Tensor:
        if cuda.mode == "error":
            raise torch.OutOfMemoryError
        return torch.zeros(1)

    with pytest.raises(torch.OutOfMemoryError):
        CudaCapture()(forward)


def test_what_there_is_no_memory_for_is_found_out_before_it_is_recorded(cuda: FakeCuda) -> None:
    """What larger recordings took serves the others, too."""
    capture = CudaCapture()

    def taking(num_bytes: int) -> Run:
        def forward() -> torch.Tensor:
            cuda.take(num_bytes)
            return torch.zeros(1)

        return forward

    with pytest.raises(torch.OutOfMemoryError):
        capture(taking(2 << 30))
    assert "record" not in cuda.events
    large = capture(taking(900 << 20))
    cuda.free = 100 << 20
    small = capture(taking(800 << 20))
    assert cuda.events.count("record") == 2
    with pytest.raises(torch.OutOfMemoryError):
        capture(taking(1000 << 20))
    del large, small
    gc.collect()
    with pytest.raises(torch.OutOfMemoryError):
        capture(taking(800 << 20))


def test_recordings_leave_to_the_ticks_what_those_need(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is not recorded at the start is not recorded while requests wait either."""
    recorded: list[tuple[int, ...]] = []

    def record(run: Run) -> Run:
        recorded.append(tuple(run().shape))
        cuda.free -= 100
        return run

    graphs = DecodeGraphs(tables, record, CPU)
    monkeypatch.setattr(graphs, "_device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    cuda.free = 1250
    graphs.record([(rows, 16) for rows in (1, 2, 4, 8, 16)], 1, leaves_bytes=1000)
    assert recorded == [(16, 16), (8, 16), (4, 16)]
    assert graphs.run(decode_batch(5, 5), 1) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), torch.AcceleratorError()])
def test_what_a_recording_meets_of_the_gpu_does_not_mean_that_the_model_cannot_be_recorded(
    error: Exception, cuda: FakeCuda
) -> None:
    def forward() -> torch.Tensor:
        if "record" in cuda.events:
            raise error
        return torch.zeros(1)

    with pytest.raises(type(error)):
        CudaCapture()(forward)


def test_recordings_share_a_pool_and_none_goes_into_one_that_is_gone(cuda: FakeCuda) -> None:
    """torch asserts that a pool it is given has a graph, or is new."""
    capture = CudaCapture()
    pools: list[tuple[int, int]] = []

    def recorded() -> Run:
        replay = capture(lambda: torch.zeros(1))
        (graph,) = (c.cell_contents for c in replay.__closure__ or () if isinstance(c.cell_contents, FakeGraph))
        pools.append(graph.its_pool)
        return replay

    first, second = recorded(), recorded()
    assert pools == [(0, 1), (0, 1)]
    del first, second
    gc.collect()
    recorded()
    assert pools[2] == (0, 2)


def test_an_engine_over_recorded_triton_attention_says_what_it_says_over_any_other() -> None:
    pytest.importorskip("triton")

    def answers(maker: AttentionMaker | None, capture: Callable[[Run], Run] | None) -> list[object]:
        lm = tiny("llama", num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=1)
        model = wrap(lm, capture=capture) if maker is None else wrap(lm, attention=maker, capture=capture)
        model.attention.allocate(40)
        engine = make_engine({"main": model}, {"main": PageCache(40, 16)}, eos_token_ids=(), tick_tokens=16)
        stopping = StoppingParams(6, ignore_eos=True)
        requests = [
            Request(tuple(range(3, 25)), logits=LogitsParams(temperature=0), stopping=stopping),
            Request((5, 6, 7), Sampling(n=2), stopping=stopping, seed=3),
            Request((9, 8), Beam(num_beams=2), LogitsParams(temperature=0), stopping=stopping),
        ]
        return [{i: c.token_ids for i, c in answer.choices.items()} for answer in run(engine, requests)]

    recorded = []

    def noting(forward: Run) -> Run:
        recorded.append(forward)
        return forward

    assert answers(triton_blocks, noting) == answers(None, None)
    assert recorded


def triton_blocks(
    shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype, *, is_uniform: bool = False
) -> PagedAttention:
    from decoding.attention.triton import TritonAttention  # noqa: PLC0415 - triton may be absent

    return TritonAttention(shapes, device=device, dtype=dtype, block=16, is_uniform=is_uniform)


def test_a_model_decodes_the_same_bits_in_padded_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(np, "matmul", row_exact_product)

    def states(capture: Callable[[Run], Run] | None) -> torch.Tensor:
        lm = tiny("llama", num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1)
        model = wrap(lm, attention=functools.partial(triton_blocks, is_uniform=True), capture=capture)
        model.attention.allocate(100)
        recorded.clear()  # what the model was tried with
        book, rows = PageBook(100, 16), [Row(list(range(3, 3 + length))) for length in (9, 20, 4)]
        model.forward(book.batch([(row, len(row.tokens) - 2) for row in rows]))
        ticks = [rows, rows[1:]]
        return torch.cat([model.forward(book.batch([(row, 1) for row in tick])).last.clone() for tick in ticks])

    recorded: list[Run] = []

    def noting(run: Run) -> Run:
        recorded.append(run)
        return run

    expected, found = states(None), states(noting)
    assert torch.equal(found, expected)
    assert len(recorded) == 3, "a prompt too"


def test_a_recorded_tick_of_prompts_windows_and_steps_says_what_a_plain_one_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, as this backend promises that it does not matter how a query came; over a sliding window."""
    pytest.importorskip("triton")
    monkeypatch.setattr(np, "matmul", row_exact_product)
    blocks = functools.partial(triton_blocks, is_uniform=True)

    def states(capture: Callable[[Run], Run] | None) -> torch.Tensor:
        lm = tiny("mistral", num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=1)
        model = wrap(lm, attention=blocks, capture=capture)
        model.attention.allocate(100)
        recorded.clear()  # what the model was tried with
        book, rows = PageBook(100, 16), [Row(list(range(3, 3 + length))) for length in (21, 14, 5)]
        ticks = [[(rows[0], 18), (rows[1], 13)], [(rows[0], 3), (rows[1], 1), (rows[2], 5)]]
        return torch.cat([model.forward(book.batch(tick)).last.clone() for tick in ticks])

    recorded: list[Run] = []

    def noting(run: Run) -> Run:
        recorded.append(run)
        return run

    expected, found = states(None), states(noting)
    assert len(recorded) == 2
    assert torch.equal(found, expected)


def test_ids_that_only_the_device_knows_reach_the_recording() -> None:
    graphs = DecodeGraphs(Spy().decode, call_again, CPU)
    for drawn in ([7, 8, 9], [4, 5, 6]):
        batch = dataclasses.replace(decode_batch(5, 40, 9), drawn=torch.tensor(drawn))
        found = graphs.run(batch, 1)
        assert found is not None
        assert found[:, 0].tolist() == drawn
        assert np.array_equal(found[:, 1:].numpy(), given(batch)[:, 1:])


class OnePlace:
    """Recordings that leave their results in memory that they share, as those of one pool do."""

    def __init__(self) -> None:
        self._memory = torch.zeros(0)

    def __call__(self, run: Run) -> Run:
        def replay() -> torch.Tensor:
            out = run()
            if len(self._memory) < len(out):
                self._memory = torch.zeros(512, out.shape[1])
            self._memory[: len(out)] = out
            return self._memory[: len(out)]

        return replay


def test_recorded_forwards_that_are_launched_ahead_say_what_plain_ones_say() -> None:
    """The request of one token joins in a recording of its own while another's result is not read yet."""
    pytest.importorskip("triton")

    def answers(*, launches_ahead: bool) -> list[object]:
        lm = tiny("llama", num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=1)
        model = wrap(lm, attention=triton_blocks, capture=OnePlace())
        model.attention.allocate(40)
        caches = {"main": PageCache(40, 16)}
        engine = make_engine({"main": model}, caches, eos_token_ids=(), tick_tokens=16, launches_ahead=launches_ahead)
        stopping = StoppingParams(9, ignore_eos=True)
        found = [Answer() for _ in range(3)]
        engine.add(0, Request((5, 6, 7), logits=LogitsParams(temperature=0), stopping=stopping), build)
        engine.add(1, Request((8, 9), Sampling(n=2), stopping=stopping, seed=3), build)
        for tick in range(30):
            if tick == 4:
                engine.add(2, Request((4,), stopping=stopping, seed=4), build)
            for output in engine.tick():
                found[output.request_id].take(output)
        assert bool(engine.launch_ahead.counters.taken) is launches_ahead
        return [answer.said for answer in found]

    assert answers(launches_ahead=True) == answers(launches_ahead=False)
