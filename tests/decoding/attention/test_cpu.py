"""The CPU backend agrees with the oracle, and bitwise with itself however a query arrives."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from decoding.attention.cpu import CPUAttention
from decoding.attention.interface import LayerSpec, PagedAttention
from decoding.attention.pages import LAYERS_AT_ONCE, LayerShape, Pages, copy_stacked
from decoding.attention.reference import ReferenceAttention
from decoding.attention.tiles import block_edges
from tests.decoding.layout import PageBook, Row
from tests.decoding.rounding_error import of_attention, of_scores

CPU = torch.device("cpu")
LAYERS = 2
SHAPES = {
    "grouped": LayerShape(heads=9, kv_heads=3, head_dim=64, v_head_dim=64),
    "multi-head": LayerShape(heads=4, kv_heads=4, head_dim=16, v_head_dim=16),
    "one-kv-head": LayerShape(heads=5, kv_heads=1, head_dim=80, v_head_dim=80),
    "two-dims": LayerShape(heads=4, kv_heads=2, head_dim=24, v_head_dim=8),
}
SINKS = torch.linspace(-2, 2, 9)
SPECS = {
    "plain": LayerSpec(0, 0.125),
    "window": LayerSpec(0, 0.125, sliding_window=37),
    "softcap": LayerSpec(0, 0.3, softcap=2.0),
    "sinks": LayerSpec(0, 0.125, sinks=SINKS, sliding_window=50),
}


@dataclass(frozen=True, slots=True)
class Sequence:
    """What one row would feed at every position: [heads, length, dim] each."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def sequence(shape: LayerShape, length: int, seed: int) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((shape.heads, shape.head_dim), (shape.kv_heads, shape.head_dim), (shape.kv_heads, shape.v_head_dim))
    return Sequence(*(torch.randn(heads, length, dim, generator=generator) for heads, dim in sizes))


def backend(shape: LayerShape, num_pages: int = 400, page_size: int = 16) -> CPUAttention:
    made = CPUAttention([shape] * LAYERS, page_size=page_size)
    made.allocate(num_pages)
    return made


def oracle(shape: LayerShape, num_pages: int = 400) -> ReferenceAttention:
    made = ReferenceAttention([shape] * LAYERS, device=CPU, dtype=torch.float32)
    made.allocate(num_pages)
    return made


def attend(
    attention: PagedAttention, spec: LayerSpec, sequences: list[Sequence], ticks: list[list[int]]
) -> list[torch.Tensor]:
    """Feed every sequence ticks[t][row] tokens at tick t; return each row's outputs, [length, heads, v_head_dim]."""
    book = PageBook(400, attention.page_size, seed=len(ticks))
    rows = [Row([0] * each.query.shape[1]) for each in sequences]
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for counts in ticks:
        live = [index for index, count in enumerate(counts) if count]
        spans = [slice(rows[index].fed, rows[index].fed + counts[index]) for index in live]
        fed = [(sequences[index], span) for index, span in zip(live, spans, strict=True)]
        parts = [
            torch.cat([getattr(each, name)[:, span] for each, span in fed], 1)[None]
            for name in ("query", "key", "value")
        ]
        batch = book.batch([(rows[index], counts[index]) for index in live])
        out = attention.forward(spec, *parts, attention.plan(batch))[0]
        for index, (start, end) in zip(live, pairwise(batch.query_starts.tolist()), strict=True):
            found[index].append(out[start:end])
    return [torch.cat(each) for each in found]


def assert_agree(
    mine: list[torch.Tensor], others: list[torch.Tensor], spec: LayerSpec, sequences: list[Sequence]
) -> None:
    """Both are rounded."""
    for row, found, expected in zip(sequences, mine, others, strict=True):
        error = 2 * of_attention(row.query, row.key, row.value, spec.scaling)
        torch.testing.assert_close(found, expected, rtol=0, atol=error)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_prefill_and_decode_agree_with_the_oracle(shape: LayerShape, spec: LayerSpec) -> None:
    if spec.sinks is not None:
        spec = LayerSpec(0, spec.scaling, sliding_window=spec.sliding_window, sinks=SINKS[: shape.heads])
    sequences = [sequence(shape, length, seed) for seed, length in enumerate((300, 70, 5))]
    ticks = [[150, 40, 0], [149, 29, 4], [1, 1, 1]]
    assert_agree(
        attend(backend(shape), spec, sequences, ticks), attend(oracle(shape), spec, sequences, ticks), spec, sequences
    )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_chunks_and_neighbours_do_not_change_a_bit(spec: LayerSpec) -> None:
    shape = SHAPES["grouped"]
    length = 330
    row = sequence(shape, length, seed=7)
    (whole,) = attend(backend(shape), spec, [row], [[length]])
    for chunk in (1, 7, 16, 131):
        ticks = [[min(chunk, length - start)] for start in range(0, length, chunk)]
        assert torch.equal(attend(backend(shape), spec, [row], ticks)[0], whole), chunk
    for neighbours in (1, 4, 16):
        lengths = np.random.default_rng(neighbours).integers(2, 330, neighbours).tolist()
        others = [sequence(shape, size, seed=size) for size in lengths]
        ticks = [[size - 1 for size in lengths] + [length - 1], [1] * (neighbours + 1)]
        assert torch.equal(attend(backend(shape), spec, [*others, row], ticks)[-1], whole), neighbours


def test_a_long_row_is_bitwise_the_same_decoded_or_prefilled() -> None:
    shape = SHAPES["grouped"]
    row = sequence(shape, 1500, seed=3)
    (whole,) = attend(backend(shape), SPECS["plain"], [row], [[1500]])
    (decoded,) = attend(backend(shape), SPECS["plain"], [row], [[1496], [1], [2], [1]])
    assert torch.equal(decoded, whole)


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_the_page_size_changes_no_bit(page_size: int) -> None:
    shape = SHAPES["two-dims"]
    row = sequence(shape, 200, seed=1)
    (expected,) = attend(backend(shape), SPECS["plain"], [row], [[200]])
    (found,) = attend(backend(shape, page_size=page_size), SPECS["plain"], [row], [[199], [1]])
    assert torch.equal(found, expected)


def test_leftovers_of_a_former_owner_cannot_poison_a_row() -> None:
    shape = SHAPES["multi-head"]
    attention = backend(shape)
    for pages in (*attention.pages.keys, *attention.pages.values):
        pages[1:] = float("nan")
    (found,) = attend(attention, SPECS["plain"], [sequence(shape, 20, seed=1)], [[18], [1], [1]])
    assert found.isfinite().all()


@pytest.mark.parametrize("make", [backend, oracle])
def test_copy_pages_copies_keys_and_values_of_all_layers_as_they_were(make) -> None:  # type: ignore[no-untyped-def]
    attention = make(SHAPES["multi-head"])
    tensors = [*attention.pages.keys, *attention.pages.values]
    for pages in tensors:
        pages.normal_()
    before = [pages.clone() for pages in tensors]
    attention.copy_pages([(3, 9), (9, 4)])
    for pages, old in zip(tensors, before, strict=True):
        assert torch.equal(pages[9], old[3])
        assert torch.equal(pages[4], old[9])


def test_stacked_layers_are_copied_as_single_ones() -> None:
    """What a GPU does, which copies the pages of many layers in one launch."""
    shapes = [SHAPES["two-dims"]] * LAYERS_AT_ONCE + [SHAPES["grouped"]] * 3
    pages = Pages(shapes, 16, torch.float32, torch.device("cpu"))
    pages.allocate(11)
    tensors = [*pages.keys, *pages.values]
    for tensor in tensors:
        tensor.normal_()
    before = [tensor.clone() for tensor in tensors]
    copy_stacked(pages.stacks, [(3, 9), (9, 4)])
    for tensor, old in zip(tensors, before, strict=True):
        old[[9, 4]] = old[[3, 9]]
        assert torch.equal(tensor, old)
    assert sum(stack.nbytes for stack in pages.stacks) == 11 * pages.bytes_per_page()


def last_scores_error(row: Sequence, scaling: float) -> torch.Tensor:  # [heads, keys]
    return of_scores(row.query[:, -1:], row.key, scaling)[:, 0]


def assert_within(error: torch.Tensor, mine: torch.Tensor, other: torch.Tensor) -> None:
    """Of scores, of which those outside a window are -inf."""
    assert torch.equal(mine.isfinite(), other.isfinite())
    seen = mine.isfinite()
    assert ((mine - other).abs() <= error)[seen].all()


@pytest.mark.parametrize("spec_name", ["plain", "softcap", "window"])
def test_probed_scores_are_those_of_the_last_query_of_the_last_layer(spec_name: str) -> None:
    shape = SHAPES["grouped"]
    rows = [sequence(shape, length, seed=length) for length in (150, 40)]
    parts = [torch.cat([getattr(row, name) for row in rows], 1)[None] for name in ("query", "key", "value")]
    scores = []
    for attention in (backend(shape), oracle(shape)):
        batch = PageBook(400, 16).batch([(Row([0] * 150), 150), (Row([0] * 40), 40)], probe_rows=(0, 1))
        plan = attention.plan(batch)
        for layer in range(LAYERS):
            spec = SPECS[spec_name]
            layered = LayerSpec(layer, spec.scaling * (layer + 1), spec.sliding_window, spec.softcap)
            attention.forward(layered, *parts, plan)
        scores.append(attention.probed(plan))
    for row, length in enumerate((150, 40)):
        assert scores[0][row].shape == (shape.heads, length)
        error = 2 * last_scores_error(rows[row], SPECS[spec_name].scaling * LAYERS)
        assert_within(error, scores[0][row], scores[1][row])
    if spec_name == "plain":
        query, key = rows[1].query[:, -1:], rows[1].key.repeat_interleave(shape.group, 0)
        assert_within(error, scores[0][1], (query @ key.transpose(1, 2))[:, 0] * 0.25)


def test_bytes_per_page_is_what_allocate_takes_per_page() -> None:
    attention = backend(SHAPES["two-dims"], num_pages=10)
    taken = sum(pages.nbytes for pages in (*attention.pages.keys, *attention.pages.values))
    assert attention.bytes_per_page() * 10 == taken


def test_block_edges_depend_on_the_position_alone() -> None:
    longest = block_edges(9000)
    for keys in (1, 64, 65, 300, 1024, 1025, 5000):
        edges = block_edges(keys)
        assert edges == longest[: len(edges)]
        assert edges[-2] < keys <= edges[-1]
