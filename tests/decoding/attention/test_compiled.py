"""The compiled backend agrees with the oracle, and bitwise with itself however a query arrives, on any threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from decoding.attention.compiled import CompiledAttention
from decoding.attention.interface import LayerSpec
from decoding.attention.pages import LayerShape
from decoding.kernels.cpu.team import Team
from tests.decoding.attention.test_cpu import (
    LAYERS,
    SHAPES,
    SINKS,
    SPECS,
    assert_agree,
    assert_within,
    attend,
    last_scores_error,
    oracle,
    sequence,
)
from tests.decoding.layout import PageBook, Row

MANY = SHAPES | {"wide-group": LayerShape(heads=32, kv_heads=1, head_dim=16, v_head_dim=16)}


def backend(shape: LayerShape, *, threads: int = 1) -> CompiledAttention:
    made = CompiledAttention([shape] * LAYERS, Team(threads))
    made.allocate(400)
    return made


def fitted(spec: LayerSpec, shape: LayerShape) -> LayerSpec:
    if spec.sinks is None:
        return spec
    sinks = torch.linspace(-2, 2, shape.heads)
    return LayerSpec(0, spec.scaling, sliding_window=spec.sliding_window, sinks=sinks)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("shape", MANY.values(), ids=MANY.keys())
def test_prefill_and_decode_agree_with_the_oracle(shape: LayerShape, spec: LayerSpec) -> None:
    spec = fitted(spec, shape)
    sequences = [sequence(shape, length, seed) for seed, length in enumerate((300, 70, 5))]
    ticks = [[150, 40, 0], [149, 29, 4], [1, 1, 1]]
    assert_agree(
        attend(backend(shape), spec, sequences, ticks), attend(oracle(shape), spec, sequences, ticks), spec, sequences
    )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_chunks_neighbours_and_threads_do_not_change_a_bit(spec: LayerSpec) -> None:
    shape, length = SHAPES["grouped"], 330
    row = sequence(shape, length, seed=7)
    (whole,) = attend(backend(shape), spec, [row], [[length]])
    for chunk, threads in ((1, 1), (7, 2), (16, 1), (131, 3)):
        ticks = [[min(chunk, length - start)] for start in range(0, length, chunk)]
        assert torch.equal(attend(backend(shape, threads=threads), spec, [row], ticks)[0], whole), chunk
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


def test_leftovers_of_a_former_owner_cannot_poison_a_row() -> None:
    shape = SHAPES["two-dims"]
    attention = backend(shape)
    for pages in (*attention.pages.keys, *attention.pages.values):
        pages.fill_(float("nan"))
    (found,) = attend(attention, SPECS["plain"], [sequence(shape, 20, seed=1)], [[18], [1], [1]])
    assert found.isfinite().all()


def test_copy_pages_copies_keys_and_values_of_all_layers_as_they_were() -> None:
    attention = backend(SHAPES["multi-head"])
    tensors = [*attention.pages.keys, *attention.pages.values]
    for pages in tensors:
        pages.normal_()
    before = [pages.clone() for pages in tensors]
    attention.copy_pages([(3, 9), (9, 4)])
    for pages, old in zip(tensors, before, strict=True):
        assert torch.equal(pages[9], old[3])
        assert torch.equal(pages[4], old[9])


@pytest.mark.parametrize("spec_name", ["plain", "softcap", "window"])
def test_probed_scores_are_those_of_the_last_query_of_the_last_layer(spec_name: str) -> None:
    shape, scores = SHAPES["grouped"], []
    rows = [sequence(shape, length, seed=length) for length in (150, 40)]
    parts = [torch.cat([getattr(row, name) for row in rows], 1)[None] for name in ("query", "key", "value")]
    for attention in (backend(shape), oracle(shape)):
        batch = PageBook(400, 16).batch([(Row([0] * 150), 150), (Row([0] * 40), 40)], probe_rows=(0, 1))
        plan = attention.plan(batch)  # type: ignore[attr-defined]
        for layer in range(LAYERS):
            spec = SPECS[spec_name]
            layered = LayerSpec(layer, spec.scaling * (layer + 1), spec.sliding_window, spec.softcap)
            attention.forward(layered, *parts, plan)  # type: ignore[attr-defined]
        scores.append(attention.probed(plan))  # type: ignore[attr-defined]
    for row in (0, 1):
        error = 2 * last_scores_error(rows[row], SPECS[spec_name].scaling * LAYERS)
        assert_within(error, scores[0][row], scores[1][row])


def test_bytes_per_page_is_what_allocate_takes_per_page() -> None:
    attention = backend(SHAPES["two-dims"])
    assert attention.bytes_per_page() * 400 == sum(
        pages.nbytes for pages in (*attention.pages.keys, *attention.pages.values)
    )


def test_a_sink_above_every_score_takes_the_weight() -> None:
    shape = SHAPES["grouped"]
    sunk = LayerSpec(0, 0.125, sinks=torch.full_like(SINKS, 60.0))
    row = sequence(shape, 9, seed=1)
    (found,) = attend(backend(shape), sunk, [row], [[9]])
    largest = 0.125 * (row.query.norm(dim=-1).max() * row.key.norm(dim=-1).max())
    assert found.abs().max() <= 9 * (largest - 60.0).exp() * row.value.abs().max()


def test_queries_keys_and_values_of_other_shapes_are_refused_before_the_kernel_runs() -> None:
    shape = LayerShape(6, 2, 8, 8)
    attention = CompiledAttention([shape])
    attention.allocate(20)
    plan = attention.plan(PageBook(20, attention.page_size, 0).batch([(Row(list(range(3, 13))), 10)]))
    right = [torch.zeros(1, 6, 10, 8), torch.zeros(1, 2, 10, 8), torch.zeros(1, 2, 10, 8)]
    attention.forward(LayerSpec(0, 1.0), *right, plan)
    for index, wrong in ((0, (1, 5, 10, 8)), (0, (1, 6, 10, 4)), (1, (1, 1, 10, 8)), (2, (1, 2, 9, 8))):
        parts = [*right[:index], torch.zeros(wrong), *right[index + 1 :]]
        with pytest.raises(ValueError, match="attends with"):
            attention.forward(LayerSpec(0, 1.0), *parts, plan)
    with pytest.raises(ValueError, match="sinks"):
        attention.new_record(LayerSpec(0, 1.0, sinks=torch.zeros(5)))
