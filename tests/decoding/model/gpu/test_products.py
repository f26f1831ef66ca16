"""Triton's products, interpreted on the CPU, agree with torch's, and bitwise with themselves in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from decoding.model.gpu import products
from decoding.model.gpu.products import (
    FEW_ROWS,
    InvariantProduct,
    PlainProduct,
    Tile,
    few_rows_tile,
    invariant_tile,
    multiply,
)
from tests.decoding.attention.test_triton import row_exact_product
from tests.decoding.kernels.launches import launches
from tests.decoding.rounding_error import of_product

TILE = Tile(16, 16, 16, 48, 4, 2)
"""So small that matrices of the interpreter's size have several, and several spans."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 21])
@pytest.mark.parametrize(("columns", "depth"), [(33, 40), (16, 130)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_product_and_adds_to_what_is_held(rows: int, columns: int, depth: int, has_bias: bool) -> None:
    x, weight, bias = random(rows, depth), random(columns, depth, seed=1), random(columns) if has_bias else None
    close = 2 * of_product(x, weight, bias)
    assert ((multiply(x, weight, bias, TILE) - F.linear(x, weight, bias)).abs() <= close).all()
    held = random(rows, columns, seed=2)
    expected = held + F.linear(x, weight, bias)
    found = multiply(x, weight, bias, TILE, held)
    assert found is held
    assert ((found - expected).abs() <= close + 1e-6).all()


def test_sixteen_bits_are_summed_in_float32_and_rounded_once() -> None:
    x, weight = random(3, 130).bfloat16(), random(20, 130, seed=1).bfloat16()
    exact = x.double() @ weight.double().T
    found = multiply(x, weight, None, TILE)
    assert found.dtype == torch.bfloat16
    once = torch.finfo(torch.bfloat16).eps  # the interpreter cuts off where a GPU rounds to the nearest
    torch.testing.assert_close(found.double(), exact, rtol=once, atol=1e-5)


def test_a_rows_bits_are_the_same_alone_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone its spans have programs of their own, in the largest batch one program walks them all."""
    monkeypatch.setattr(np, "matmul", row_exact_product)
    monkeypatch.setattr(products, "ENOUGH_PROGRAMS", 6)
    x, weight, bias = random(70, 130), random(40, 130, seed=1), random(40)
    whole = multiply(x, weight, bias, TILE)
    for rows in (1, 2, 16, 17):
        for start in (0, 5, 70 - rows):
            assert torch.equal(multiply(x[start : start + rows], weight, bias, TILE), whole[start : start + rows])
    held = random(70, 40, seed=3)
    added = multiply(x, weight, bias, TILE, held.clone())
    assert torch.equal(multiply(x[9:10], weight, bias, TILE, held[9:10].clone()), added[9:10])


def test_an_invariant_product_is_split_for_few_rows_and_not_for_many() -> None:
    product = InvariantProduct(torch.zeros(64, 4096).bfloat16(), None)
    counted = []
    for rows in (1, 300 * 64):
        x = torch.zeros(1, 4096).bfloat16().expand(rows, 4096)
        with launches() as counts:
            product(x)
        counted.append(dict(counts))
    assert counted == [{"multiply": 1, "add_spans": 1}, {"multiply": 1, "aten::clone": 1}]


@pytest.mark.parametrize(("columns", "depth"), [(28672, 4096), (4096, 14336), (6144, 4096), (1024, 3072), (576, 1536)])
def test_a_tile_leaves_a_gpu_enough_to_do_and_spans_enough_to_read_ahead(columns: int, depth: int) -> None:
    weight = torch.empty(columns, depth, dtype=torch.bfloat16, device="meta")
    tile = invariant_tile(weight)
    assert tile.span % tile.depth == 0
    assert tile.span >= 4 * tile.depth
    assert -(-columns // tile.columns) * -(-depth // tile.span) >= min(128, columns * depth // 2**16)
    assert -(-columns // few_rows_tile(weight).columns) >= min(256, columns // 16)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_few_rows_in_sixteen_bits_go_through_our_kernel(rows: int) -> None:
    product, x, held = PlainProduct(random(32, 48).bfloat16(), None), torch.zeros(rows, 48), torch.zeros(rows, 32)
    x, held = x.bfloat16(), held.bfloat16()
    with launches() as multiplied:
        product(x)
    with launches() as added:
        product.add_to(held, (x, None))
    ours = {"multiply": 1}
    assert dict(multiplied) == (ours if rows <= FEW_ROWS else {"aten::mm": 1})
    assert dict(added) == (ours if rows <= FEW_ROWS else {"aten::addmm_": 1})


@pytest.mark.parametrize("kind", [PlainProduct, InvariantProduct])
def test_as_a_linear_it_takes_any_shape_and_no_rows(kind: type[products.Product]) -> None:
    weight, bias = random(7, 5), random(7)
    product, x = kind(weight, bias), random(2, 3, 5)
    torch.testing.assert_close(product(x), F.linear(x, weight, bias), rtol=0, atol=1e-5)
    assert product(torch.zeros(2, 0, 5)).shape == (2, 0, 7)
    added = product.add_to(torch.ones(6, 7), (x.view(6, 5), None))
    torch.testing.assert_close(added, 1 + F.linear(x, weight, bias).view(6, 7), rtol=0, atol=1e-5)
    assert product.weight_bytes == 4 * 35
