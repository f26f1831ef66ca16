"""Rows that decode, by the interpreted Triton kernels, agree with the oracle; how they are split and which of them are
attended together changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from decoding.attention import triton as backend_module
from decoding.attention.interface import Batch, DecodeInputs, LayerSpec
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.attention.triton import TritonAttention, num_spans
from tests.decoding.attention.test_triton import row_exact_product

CPU = torch.device("cpu")
PAGE = 16
PAGES = 120
SHAPE = LayerShape(heads=4, kv_heads=1, head_dim=16, v_head_dim=16)
PLAIN = LayerSpec(0, 0.2)


class World:
    """Pages with something in each, and rows over shuffled ones of them; the siblings begin with the same ones."""

    def __init__(
        self,
        shape: LayerShape,
        lengths: Sequence[int],
        *,
        shared_pages: int = 0,
        siblings: Sequence[int] | None = None,
        columns: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(len(lengths))
        self.shape = shape
        self.keys, self.values = (
            torch.randn(PAGES, shape.kv_heads, PAGE, dim, generator=generator)
            for dim in (shape.head_dim, shape.v_head_dim)
        )
        free = (np.random.default_rng(1).permutation(PAGES - 1) + 1).tolist()
        common = [free.pop() for _ in range(shared_pages)]
        needed = [-(-length // PAGE) for length in lengths]
        tables = np.zeros((len(lengths), max([*needed, columns])), np.int64)
        for row, count in enumerate(needed):
            first = common if siblings is None or row in siblings else []
            tables[row, :count] = (first + [free.pop() for _ in range(count - len(first))])[:count]
        self.batch = rows_of(tables, np.array(lengths))
        self.parts = [
            torch.randn(1, heads, len(lengths), dim, generator=generator)
            for heads, dim in (
                (shape.heads, shape.head_dim),
                (shape.kv_heads, shape.head_dim),
                (shape.kv_heads, shape.v_head_dim),
            )
        ]

    def attended(
        self,
        spec: LayerSpec,
        rows: Sequence[int] | None = None,
        *,
        is_oracle: bool = False,
        inputs: DecodeInputs | None = None,
    ) -> torch.Tensor:  # [rows, heads, v_head_dim]
        rows = range(self.batch.num_rows) if rows is None else rows
        made = oracle(self.shape) if is_oracle else backend(self.shape)
        made.allocate(PAGES)
        made.pages.keys[0].copy_(self.keys)
        made.pages.values[0].copy_(self.values)
        parts = [part[:, :, list(rows)] for part in self.parts]
        plan = made.plan(some(self.batch, rows)) if inputs is None else made.decode_plan(inputs)
        return made.forward(spec, *parts, plan)[0]


def backend(shape: LayerShape) -> TritonAttention:
    return TritonAttention([shape], device=CPU, dtype=torch.float32, block=16, span=32)


def oracle(shape: LayerShape) -> ReferenceAttention:
    return ReferenceAttention([shape], device=CPU, dtype=torch.float32)


def rows_of(tables: np.ndarray, lengths: np.ndarray) -> Batch:
    """One token each, the last."""
    ones = np.ones_like(lengths)
    return Batch.of_rows(np.zeros_like(lengths), lengths - 1, ones, tables, PAGE)


def some(batch: Batch, rows: Sequence[int]) -> Batch:
    return rows_of(batch.page_tables[list(rows)], batch.kv_lengths[list(rows)])


def assert_agrees(world: World, spec: LayerSpec) -> None:
    torch.testing.assert_close(world.attended(spec), world.attended(spec, is_oracle=True), rtol=1e-5, atol=1e-5)


SHAPES = {
    "multi-head": LayerShape(heads=3, kv_heads=3, head_dim=16, v_head_dim=16),
    "multi-query": LayerShape(heads=71, kv_heads=1, head_dim=16, v_head_dim=16),
    "head-dim-80": LayerShape(heads=4, kv_heads=2, head_dim=80, v_head_dim=80),
    "head-dim-96": LayerShape(heads=3, kv_heads=1, head_dim=96, v_head_dim=96),
    "head-dim-256": LayerShape(heads=2, kv_heads=1, head_dim=256, v_head_dim=256),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("window", [None, 40])
def test_split_rows_of_every_shape_agree_with_the_oracle(shape: LayerShape, window: int | None) -> None:
    assert_agrees(World(shape, [1, 70, 33, 64]), replace(PLAIN, sliding_window=window))


def test_biases_by_distance_are_added_and_the_farthest_share_the_last() -> None:
    bias = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    assert_agrees(World(SHAPE, [70, 1, 25]), replace(PLAIN, bias=bias))


def test_spans_that_grow_hold_every_key_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 times as many keys as a span: behind 32 of them there are longer ones."""
    assert [num_spans(keys, 32) for keys in (1, 32, 33, 1024, 1025, 1088, 1089, 2048, 2049)] == [
        1, 1, 2, 32, 33, 33, 34, 48, 49]  # fmt: skip
    world = World(SHAPE, [1200])
    split = world.attended(PLAIN)
    torch.testing.assert_close(split, world.attended(PLAIN, is_oracle=True), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(backend_module, "ENOUGH_PROGRAMS", 0)
    assert torch.equal(world.attended(PLAIN), split)


class Products:
    """Counts them, and adds up every row of theirs in one order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        monkeypatch.setattr(np, "matmul", self._count)

    def _count(self, a: np.ndarray, b: np.ndarray, dtype: np.dtype[np.float32]) -> np.ndarray:
        self.num += 1
        return row_exact_product(a, b, dtype)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("num_programs", [None, 2])
def test_siblings_share_the_spans_they_have_in_common_and_keep_their_bits(
    window: int | None, num_programs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if num_programs is not None:  # that take turns
        monkeypatch.setattr(backend_module, "ENOUGH_PROGRAMS", 0)
        monkeypatch.setattr(backend_module, "PROGRAMS_A_TILE", num_programs)
    products = Products(monkeypatch)
    spec = replace(PLAIN, sliding_window=window)
    world = World(SHAPE, [75, 90, 66, 70, 96, 80], shared_pages=4)
    together = world.attended(spec)
    shared, products.num = products.num, 0
    alone = torch.cat([world.attended(spec, [row]) for row in range(6)])
    assert torch.equal(together, alone)
    assert shared < 0.65 * products.num


def test_rows_between_siblings_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with other pages stand between them."""
    Products(monkeypatch)
    world = World(SHAPE, [50, 90, 75, 70, 3, 80], shared_pages=3, siblings=(0, 2, 3, 5))
    together = world.attended(PLAIN)
    assert torch.equal(together, torch.cat([world.attended(PLAIN, [row]) for row in range(6)]))


def test_the_tokens_of_one_row_can_come_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at its own length over the same pages: those of one row are attended together."""
    products = Products(monkeypatch)
    world = World(SHAPE, [70] * 5)
    table = np.tile(world.batch.page_tables[:1], (5, 1))
    world.batch = rows_of(table, np.arange(62, 67))
    found = world.attended(PLAIN)
    assert products.num == 2 * 5 * 2  # five blocks, for the first four and for the fifth
    torch.testing.assert_close(found, world.attended(PLAIN, is_oracle=True), rtol=1e-5, atol=1e-5)


def test_a_recorded_plan_reads_nothing_beyond_its_rows() -> None:
    """Padding rows of one token, tables wider than needed, and entries of former owners that point nowhere."""
    world = World(SHAPE, [75, 33, 70, 66], shared_pages=2, columns=12)
    tables = world.batch.page_tables.copy()
    for table, length in zip(tables, (75, 33, 70, 66), strict=True):
        table[-(-length // PAGE) :] = 1 << 40
    padding = 3
    inputs = [np.concatenate([own, np.full(padding, fill)])
              for own, fill in ((world.batch.slots, 0), (world.batch.kv_lengths, 1))]  # fmt: skip
    tables = np.concatenate([tables, np.full((padding, tables.shape[1]), 1 << 40)])
    tables[4:, 0] = 0
    slots, lengths = (torch.from_numpy(each) for each in inputs)
    zeros = torch.zeros(7, dtype=torch.int64)
    expected = world.attended(PLAIN, is_oracle=True)
    world.parts = [torch.nn.functional.pad(part, (0, 0, 0, padding)) for part in world.parts]
    found = world.attended(PLAIN, range(7), inputs=DecodeInputs(zeros, zeros, slots, lengths, torch.from_numpy(tables)))
    torch.testing.assert_close(found[:4], expected, rtol=1e-5, atol=1e-5)
    assert found.isfinite().all()


def test_many_rows_are_split_where_one_is_much_longer_or_many_have_a_span_in_common() -> None:
    shape = LayerShape(heads=4, kv_heads=4, head_dim=16, v_head_dim=16)
    attention = TritonAttention([shape], device=CPU, dtype=torch.float32)

    def programs(lengths: list[int], *, is_shared: bool = False) -> int:
        tables = np.arange(64 * 64).reshape(64, 64)
        tables[:, :16] = tables[0, :16] if is_shared else tables[:, :16]
        return attention.plan(rows_of(tables, np.array(lengths))).tiles[1][0].num_programs

    assert programs([300] * 64) == 1
    assert programs([40] * 64) == 1
    assert programs([40] * 63 + [1000]) == 4
    assert programs([300] * 64, is_shared=True) == 2
    assert programs([40] * 64, is_shared=True) == 1
    assert attention.plan(rows_of(np.arange(64)[None], np.array([1000]))).tiles[1][0].num_programs == 4


@pytest.mark.parametrize("pairs", [[(3, 9), (5, 4)], [(3, 9), (9, 4)]])
def test_pages_are_copied_as_they_were_in_every_layer(pairs: list[tuple[int, int]]) -> None:
    """Of layers of two shapes; also where a page is both read and written."""
    shapes = [SHAPE, replace(SHAPE, head_dim=24, v_head_dim=40), SHAPE]
    attention = TritonAttention(shapes, device=CPU, dtype=torch.float32)
    attention.allocate(12)
    parts = [*attention.pages.keys, *attention.pages.values]
    for part in parts:
        part.normal_()
    before = [part.clone() for part in parts]
    attention.copy_pages(pairs)
    for part, old in zip(parts, before, strict=True):
        expected = old.clone()
        for source, destination in pairs:
            expected[destination] = old[source]
        assert torch.equal(part, expected)
