"""The Triton backend, interpreted on the CPU, agrees with the oracle, and bitwise with itself in any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from decoding.attention import triton as backend_module
from decoding.attention.interface import LayerSpec
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.attention.triton import DECODE, TritonAttention
from tests.decoding.attention.test_cpu import Sequence, assert_agree, assert_within, attend, last_scores_error, sequence
from tests.decoding.layout import PageBook, Row

CPU = torch.device("cpu")
SHAPES = {
    "grouped": LayerShape(heads=6, kv_heads=2, head_dim=24, v_head_dim=24),
    "one-kv-head": LayerShape(heads=3, kv_heads=1, head_dim=16, v_head_dim=16),
    "multi-head": LayerShape(heads=2, kv_heads=2, head_dim=16, v_head_dim=16),
    "wide-group": LayerShape(heads=20, kv_heads=1, head_dim=16, v_head_dim=16),
    "two-dims": LayerShape(heads=2, kv_heads=1, head_dim=24, v_head_dim=8),
}
SPECS = {
    "plain": LayerSpec(0, 0.125),
    "window": LayerSpec(0, 0.125, sliding_window=17),
    "softcap": LayerSpec(0, 0.3, softcap=2.0),
    "sinks": LayerSpec(0, 0.125, sinks=torch.linspace(-2, 2, 6), sliding_window=20),
    "bias": LayerSpec(0, 0.125, bias=torch.linspace(-2, 2, 6 * 25).view(6, 25)),
}
CASES = [(shape, "plain") for shape in SHAPES if shape != "one-kv-head"] + [
    ("grouped", spec) for spec in SPECS if spec != "plain"
]


def backend(shape: LayerShape, dtype: torch.dtype = torch.float32, *, is_uniform: bool = False) -> TritonAttention:
    """Blocks and spans so small that short rows, which are all that the interpreter can bear, have several."""
    made = TritonAttention([shape] * 2, device=CPU, dtype=dtype, block=16, span=32, is_uniform=is_uniform)
    made.allocate(400)
    return made


def oracle(shape: LayerShape, dtype: torch.dtype = torch.float32) -> ReferenceAttention:
    made = ReferenceAttention([shape] * 2, device=CPU, dtype=dtype)
    made.allocate(400)
    return made


def fitted(spec: LayerSpec, shape: LayerShape) -> LayerSpec:
    """With as many sinks as heads."""
    return spec if spec.sinks is None else replace(spec, sinks=spec.sinks[: shape.heads])


@pytest.mark.parametrize(("shape_name", "spec_name"), CASES)
def test_mixed_ragged_batches_agree_with_the_oracle(shape_name: str, spec_name: str) -> None:
    shape, spec = SHAPES[shape_name], SPECS[spec_name]
    sequences = [sequence(shape, length, seed) for seed, length in enumerate((45, 20, 5))]
    ticks = [[37, 11, 0], [7, 8, 4], [1, 1, 1]]
    assert_agree(
        attend(backend(shape), spec, sequences, ticks), attend(oracle(shape), spec, sequences, ticks), spec, sequences
    )


def test_bfloat16_agrees_with_the_oracle() -> None:
    shape = SHAPES["grouped"]
    row = sequence(shape, 40, seed=1)
    halved = Sequence(row.query.bfloat16(), row.key.bfloat16(), row.value.bfloat16())
    (mine,), (other,) = (
        attend(make(shape, torch.bfloat16), SPECS["plain"], [halved], [[39], [1]]) for make in (backend, oracle)
    )
    assert mine.dtype == torch.bfloat16
    once = torch.finfo(torch.bfloat16).eps / 2  # the weights of the one, and the results of both
    torch.testing.assert_close(mine, other, rtol=0, atol=3 * once * float(row.value.abs().max()))


@pytest.mark.parametrize("spec_name", ["plain", "sinks"])
def test_splitting_by_keys_changes_no_bit(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["one-kv-head"]
    spec, row = fitted(SPECS[spec_name], shape), sequence(shape, 75, seed=2)
    (split,) = attend(backend(shape), spec, [row], [[74], [1]])
    monkeypatch.setattr(backend_module, "ENOUGH_PROGRAMS", 0)
    (whole,) = attend(backend(shape), spec, [row], [[74], [1]])
    assert torch.equal(split, whole)


def row_exact_product(a: np.ndarray, b: np.ndarray, dtype: np.dtype[np.float32]) -> np.ndarray:  # [m, k], [k, n]
    """Adds up every result in the order of k, as a tensor core does; numpy's order depends on a row's place."""
    return np.stack([a[:, i, None] * b[None, i] for i in range(a.shape[1])]).sum(axis=0, dtype=dtype)


def test_neighbours_chunks_and_prefill_change_no_bit_of_uniform_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "matmul", row_exact_product)
    shape, spec = SHAPES["one-kv-head"], SPECS["window"]
    row = sequence(shape, 50, seed=3)
    (whole,) = attend(backend(shape, is_uniform=True), spec, [row], [[50]])
    (chunks,) = attend(backend(shape, is_uniform=True), spec, [row], [[16], [7], [25], [1], [1]])
    assert torch.equal(chunks, whole)
    others = [sequence(shape, length, seed=length) for length in (3, 33)]
    mixed = attend(backend(shape, is_uniform=True), spec, [*others, row], [[2, 20, 0], [1, 13, 49], [0, 0, 1]])
    assert torch.equal(mixed[-1], whole)


def test_leftovers_of_a_former_owner_cannot_poison_a_row() -> None:
    shape = SHAPES["multi-head"]
    attention = backend(shape)
    for pages in (*attention.pages.keys, *attention.pages.values):
        pages.fill_(float("nan"))
    (found,) = attend(attention, SPECS["plain"], [sequence(shape, 20, seed=1)], [[18], [1], [1]])
    assert found.isfinite().all()


def test_probed_scores_are_those_of_the_reference() -> None:
    shape = SHAPES["grouped"]
    rows = [sequence(shape, length, seed=length) for length in (25, 10)]
    parts = [torch.cat([getattr(row, name) for row in rows], 1)[None] for name in ("query", "key", "value")]
    scores = []
    for attention in (backend(shape), oracle(shape)):
        batch = PageBook(400, 16).batch([(Row([0] * 25), 25), (Row([0] * 10), 10)], probe_rows=(1,))
        plan = attention.plan(batch)
        for layer in range(2):
            attention.forward(replace(SPECS["plain"], layer=layer), *parts, plan)
        scores.append(attention.probed(plan))
    assert scores[0].keys() == {1}
    assert_within(2 * last_scores_error(rows[1], SPECS["plain"].scaling), scores[0][1], scores[1][1])


@pytest.mark.parametrize(
    ("head_dim", "dtype", "block"),
    [(64, torch.bfloat16, 64), (128, torch.bfloat16, 64), (128, torch.float32, 32), (256, torch.float32, 16)],
)
def test_blocks_of_wide_heads_stay_small(head_dim: int, dtype: torch.dtype, block: int) -> None:
    shape = LayerShape(heads=2, kv_heads=1, head_dim=head_dim, v_head_dim=head_dim)
    assert TritonAttention([shape], device=CPU, dtype=dtype)._block_for(shape, DECODE) == block


def test_spans_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match="divide"):
        TritonAttention([SHAPES["grouped"]], device=CPU, dtype=torch.float32, block=64, span=96)
