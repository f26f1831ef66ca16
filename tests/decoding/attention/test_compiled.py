"""The compiled backend agrees with the oracle, and bitwise with itself however a query arrives, on any threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from decoding.attention.compiled import CompiledAttention
from decoding.attention.interface import LayerSpec
from decoding.attention.pages import LayerShape
from decoding.kernels.cpu.attend import PAGE
from decoding.kernels.cpu.team import Team
from tests.decoding.attention.test_cpu import (
    LAYERS,
    SHAPES,
    SINKS,
    SPECS,
    Sequence,
    assert_agree,
    assert_within,
    attend,
    last_scores_error,
    oracle,
    sequence,
)
from tests.decoding.layout import PageBook, Row
from tests.decoding.rounding_error import of_attention

MANY = SHAPES | {"wide-group": LayerShape(heads=32, kv_heads=1, head_dim=16, v_head_dim=16)}


BFLOAT16_EPS = torch.finfo(torch.bfloat16).eps
of_each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def backend(shape: LayerShape, dtype: torch.dtype = torch.float32, *, threads: int = 1) -> CompiledAttention:
    made = CompiledAttention([shape] * LAYERS, Team(threads), dtype=dtype)
    made.allocate(400)
    return made


def halved(row: Sequence) -> Sequence:
    return Sequence(*(part.bfloat16().float() for part in (row.query, row.key, row.value)))


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
@pytest.mark.parametrize("shape", MANY.values(), ids=MANY.keys())
def test_bfloat16_pages_hold_what_is_put_there_and_only_weights_are_rounded(shape: LayerShape, spec: LayerSpec) -> None:
    """The sum of a query's weights is 1, and each is off by at most half of a last place, before and after."""
    spec = fitted(spec, shape)
    sequences = [halved(sequence(shape, length, seed)) for seed, length in enumerate((300, 70, 5))]
    ticks = [[150, 40, 0], [149, 29, 4], [1, 1, 1]]
    found = attend(backend(shape, torch.bfloat16), spec, sequences, ticks)
    expected = attend(oracle(shape), spec, sequences, ticks)
    for row, mine, other in zip(sequences, found, expected, strict=True):
        error = BFLOAT16_EPS * row.value.abs().max() + 2 * of_attention(row.query, row.key, row.value, spec.scaling)
        torch.testing.assert_close(mine, other, rtol=0, atol=float(error))


def sharing(shape: LayerShape, count: int, common: int, length: int) -> list[Sequence]:
    """Sequences that begin alike."""
    first, *others = (sequence(shape, length, seed) for seed in range(count))
    names = ("query", "key", "value")
    return [
        first,
        *(
            Sequence(*(torch.cat([getattr(first, n)[:, :common], getattr(each, n)[:, common:]], 1) for n in names))
            for each in others
        ),
    ]


@of_each_dtype
@pytest.mark.parametrize("spec_name", ["plain", "window", "sinks"])
@pytest.mark.parametrize(("count", "common"), [(5, 160), (40, 16), (9, 32)])
def test_rows_that_share_pages_give_what_each_gives_alone(
    dtype: torch.dtype, spec_name: str, count: int, common: int
) -> None:
    shape, length = SHAPES["grouped"], 180
    spec, sequences = fitted(SPECS[spec_name], shape), sharing(shape, count, common, length)
    attention, book = backend(shape, dtype, threads=2), PageBook(400, PAGE)
    if count * length > 400 * PAGE:
        attention.allocate(count * length // PAGE)
        book = PageBook(count * length // PAGE, PAGE)
    rows = [Row([0] * length) for _ in sequences]

    def feed(fed: list[tuple[int, int]]) -> torch.Tensor:
        spans = [(sequences[i], slice(rows[i].fed, rows[i].fed + n)) for i, n in fed]
        parts = [torch.cat([getattr(s, name)[:, at] for s, at in spans], 1)[None] for name in ("query", "key", "value")]
        batch = book.batch([(rows[i], n) for i, n in fed])
        plan = attention.plan(batch)
        if all(n == 1 for _, n in fed) and len(fed) == count:
            assert len(plan.arrays[0]) < count, "no rows were put together"
        return attention.forward(spec, *parts, plan)[0]

    feed([(0, common)])
    for row in rows[1:]:
        row.pages, row.fed = list(rows[0].pages), common
    for i in range(count):
        feed([(i, length - common - 3 + min(i, 1))])  # one is a step behind the others
    found = [feed([(i, 1) for i in range(count)]) for _ in range(2)][-1]
    for i in range(count):
        (alone,) = attend(backend(shape, dtype), spec, [sequences[i]], [[length]])
        assert torch.equal(found[i], alone[rows[i].fed - 1]), i


@of_each_dtype
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_chunks_neighbours_and_threads_do_not_change_a_bit(spec: LayerSpec, dtype: torch.dtype) -> None:
    shape, length = SHAPES["grouped"], 330
    row = sequence(shape, length, seed=7)
    (whole,) = attend(backend(shape, dtype), spec, [row], [[length]])
    for chunk, threads in ((1, 1), (7, 2), (16, 1), (131, 3)):
        ticks = [[min(chunk, length - start)] for start in range(0, length, chunk)]
        assert torch.equal(attend(backend(shape, dtype, threads=threads), spec, [row], ticks)[0], whole), chunk
    for neighbours in (1, 4, 16):
        lengths = np.random.default_rng(neighbours).integers(2, 330, neighbours).tolist()
        others = [sequence(shape, size, seed=size) for size in lengths]
        ticks = [[size - 1 for size in lengths] + [length - 1], [1] * (neighbours + 1)]
        assert torch.equal(attend(backend(shape, dtype), spec, [*others, row], ticks)[-1], whole), neighbours


@of_each_dtype
def test_a_long_row_is_bitwise_the_same_decoded_or_prefilled(dtype: torch.dtype) -> None:
    shape = SHAPES["grouped"]
    row = sequence(shape, 1500, seed=3)
    (whole,) = attend(backend(shape, dtype), SPECS["plain"], [row], [[1500]])
    (decoded,) = attend(backend(shape, dtype), SPECS["plain"], [row], [[1496], [1], [2], [1]])
    assert torch.equal(decoded, whole)


@of_each_dtype
def test_leftovers_of_a_former_owner_cannot_poison_a_row(dtype: torch.dtype) -> None:
    shape = SHAPES["two-dims"]
    attention = backend(shape, dtype)
    for pages in (*attention.pages.keys, *attention.pages.values):
        pages.fill_(float("nan"))
    (found,) = attend(attention, SPECS["plain"], [sequence(shape, 20, seed=1)], [[18], [1], [1]])
    assert found.isfinite().all()


@of_each_dtype
def test_copy_pages_copies_keys_and_values_of_all_layers_as_they_were(dtype: torch.dtype) -> None:
    attention = backend(SHAPES["multi-head"], dtype)
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


@of_each_dtype
def test_bytes_per_page_is_what_allocate_takes_per_page(dtype: torch.dtype) -> None:
    attention = backend(SHAPES["two-dims"], dtype)
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
