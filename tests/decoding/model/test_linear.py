"""Linears whose rows do not depend on each other, and merged ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from decoding.kernels import cpu as kernels
from decoding.model import linear
from decoding.model.elementwise import row_exact
from decoding.model.linear import (
    FIXED_ROWS,
    LinearFactory,
    LinearPart,
    MergedLinear,
    PackedLinear,
    PaddedLinear,
    is_row_exact,
)
from tests.decoding.rounding_error import EPS, of_product

SIZES = [(96, 64), (33, 40), (576, 1536)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("compiles", sorted({False, kernels.available()}))
def test_a_built_linear_multiplies_and_is_row_exact(rows: int, columns: int, has_bias: bool, compiles: bool) -> None:
    weight, bias = torch.randn(rows, columns), torch.randn(rows) if has_bias else None
    built = LinearFactory(compiles=compiles).build(weight, bias)
    x = torch.randn(1, 5, columns)
    assert ((built(x) - F.linear(x, weight, bias)).abs() <= 2 * of_product(x, weight, bias)).all()
    assert is_row_exact(built, columns, torch.float32)


def test_without_the_packed_product_rows_are_padded_until_they_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "can_pack", lambda _weight: False)
    weight = torch.randn(576, 1536)
    built = LinearFactory(compiles=False).build(weight, None)
    assert isinstance(built, PaddedLinear)
    assert is_row_exact(built, 1536, torch.float32)


def test_a_packed_product_that_fails_the_self_test_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def depends_on_the_row_count(self: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        return x.new_full((*x.shape[:-1], self.shape[0]), x.shape[-2] / 3)

    monkeypatch.setattr(PackedLinear, "forward", depends_on_the_row_count)
    assert isinstance(LinearFactory(compiles=False).build(torch.randn(16, 8), None), PaddedLinear)


def test_when_no_padding_agrees_every_product_has_the_same_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(x: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(len(x))
        return x @ weight.T

    monkeypatch.setattr("decoding.model.linear.F.linear", watched)
    found = PaddedLinear(torch.eye(4), None, linear.FIXED_ROWS)(torch.ones(1, 130, 4))
    assert seen == [64, 64, 64]
    assert torch.equal(found, torch.ones(1, 130, 4))


def test_merged_parts_share_one_product_and_each_hands_out_its_own() -> None:
    calls: list[torch.Tensor] = []
    weight = torch.randn(7, 5)

    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(x)
            return F.linear(x, weight)

    merged = MergedLinear(Counting(), [4, 3])
    first, second = LinearPart(merged, 0), LinearPart(merged, 1)
    x, other = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.equal(first(x), F.linear(x, weight)[:, :4])
    assert torch.equal(second(x), F.linear(x, weight)[:, 4:])
    assert len(calls) == 1
    first(x)
    assert torch.equal(second(other), F.linear(other, weight)[:, 4:])
    assert len(calls) == 3


@pytest.mark.parametrize("width", [64, 100, 1536])
@pytest.mark.parametrize("function", [F.silu, torch.sigmoid, lambda x: F.gelu(x, approximate="tanh")])
def test_an_activation_of_a_row_does_not_depend_on_the_rows_around_it(function, width: int) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(150, width) * 3
    for threads in (1, 3):
        torch.set_num_threads(threads)
        whole = row_exact(function, x)
        pieces = [row_exact(function, x[start : start + 7]) for start in range(0, 150, 7)]
        torch.set_num_threads(1)
        assert torch.equal(torch.cat(pieces), whole)
        error = 4 * EPS * x.abs().clamp(min=1)  # at most |x| or 1 large, of four operations that round
        assert ((whole - function(x)).abs() <= 2 * error).all()


@pytest.mark.parametrize("multiple", [4, FIXED_ROWS])
def test_no_rows_give_no_rows(multiple: int) -> None:
    assert PaddedLinear(torch.randn(7, 5), None, multiple)(torch.zeros(2, 0, 5)).shape == (2, 0, 7)
